"""What the supervisor knows of its workers: the slots and their processes. Decides nothing."""

import math
import os
import socket
from collections.abc import Sequence
from typing import Final

from ..net.sockets import queue_length
from ..scoreboard import ACCEPTED, ACTIVE, HEARTBEAT

# Seconds that a queue may stand still before its worker counts as stuck. The worker may be computing, or stopped, or the
# machine too small: whatever it is, others can take these connections sooner. It is seen when we look next, which may be late
# on a machine that is too small.
STUCK_AFTER: Final = 0.15
# Seconds before the second replacement of those who die early, doubled for each one more; the first comes at once. The bound is
# for the clients that the kernel sends to this slot meanwhile: they wait in its queue.
BACKOFF_FIRST: Final = 0.5
BACKOFF_LAST: Final = 10.0


class Slot:
    """A place for a worker. Owns its listeners, which outlive every worker."""

    def __init__(self, index: int, listeners: list[socket.socket]) -> None:
        self.index = index
        self.listeners = listeners
        self.processes: list[Process] = []  # the worker; its replacement; those that drain
        self.failures = 0  # early deaths in a row
        self.next_attempt = 0.0
        self.retires_at = math.inf  # when its worker is asked to go, because there are too many
        self.patient = False  # and whether it may then take its time
        # As `look` found it.
        self.waiting = 0  # connections in its queues
        self.accepted = 0  # by its processes
        self.moved = 0.0  # when its queues were last empty or moving
        self.stuck_at = math.inf  # since when they have not been
        self.rescuer: Process | None = None  # of another slot, who serves these listeners meanwhile

    @property
    def serving(self) -> "Sequence[Process]":
        """Those that take connections."""
        return [process for process in self.processes if process.ready and not process.leaving]

    @property
    def stuck(self) -> bool:
        return self.stuck_at < math.inf

    @property
    def willing(self) -> bool:
        """Whether new connections are welcome."""
        return not self.stuck and bool(self.serving)

    @property
    def load(self) -> int:
        """Connections that are open or wait."""
        return self.waiting + sum(process.record[ACTIVE] for process in self.processes if not process.leaving)

    def back_off(self, now: float) -> float:
        """One early death more. Returns how many seconds the next attempt is to wait."""
        self.failures += 1
        delay = min(BACKOFF_FIRST * 2.0 ** min(self.failures - 2, 60), BACKOFF_LAST) if self.failures > 1 else 0.0
        self.next_attempt = now + delay
        return delay

    def look(self, now: float, rested: bool) -> int:
        """Look at the queues; return how many connections came since the last time. If `rested`, so had everybody."""
        queued = sum(map(queue_length, self.listeners))
        accepted = sum(process.record[ACCEPTED] for process in self.processes)
        came = accepted - self.accepted + queued - self.waiting
        moves = accepted != self.accepted
        was_empty = not self.waiting  # it may have been so until a moment ago, and it is long since we looked
        self.waiting, self.accepted = queued, accepted
        if was_empty or not queued or moves or rested:
            self.moved = now
        if self.stuck:
            # Others may have emptied its queue: it is well when it takes something, or turns its loop.
            if moves or any(process.record[HEARTBEAT] > self.stuck_at * 1e9 for process in self.serving):
                self.stuck_at = math.inf
                self.moved = now
        elif now - self.moved >= STUCK_AFTER and self.serving:
            self.stuck_at = now
        return max(came, 0)


class Process:
    """A worker process, as it is seen from here."""

    def __init__(
        self, pid: int, slot: Slot, generation: int, record: memoryview, report: int, channel: socket.socket, started: float
    ) -> None:
        self.pid = pid
        self.slot = slot
        self.generation = generation
        self.record = record
        self.report = report  # a pipe, -1 once it is closed
        self.told = b""  # what came through it
        self.channel = channel  # hands it others' listeners
        self.started = started
        self.ready_since = math.inf
        self.leaving = False  # it was asked to go
        self.deadline = math.inf  # for that
        self.grace = math.inf  # the seconds until then that it was given
        self.dropped = False  # it was told to drop everything
        self.doom = ""  # why we kill it
        self.kill_at = math.inf
        # Of its wear.
        self.worn = ""  # why it is to be replaced
        self.lot = int.from_bytes(os.urandom(8), "little")
        self.used = 0  # bytes of memory, at the last look
        self.heavy = 0  # times in a row that this was too much
        self.next_sample = 0.0

    def leave(self, now: float, grace: float) -> None:
        """It goes within `grace` seconds. Being asked again gives no more time."""
        self.leaving = True
        if now + grace < self.deadline:
            self.deadline, self.grace = now + grace, grace

    @property
    def lingering(self) -> bool:
        """Whether it was asked to go and may take its time."""
        return self.leaving and self.deadline == math.inf

    def __str__(self) -> str:
        return f"worker {self.slot.index} (pid {self.pid})"

    @property
    def ready(self) -> bool:
        return self.ready_since < math.inf
