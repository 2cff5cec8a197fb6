"""What the supervisor knows of its workers: the slots and their processes. Decides nothing."""

import math
import os
import socket
from collections.abc import Sequence
from typing import Final

from ..net.sockets import queue_length
from ..scoreboard import ACCEPTED, ACTIVE, HEARTBEAT

# Seconds that a queue may stand still before its worker counts as stuck. The worker may be computing, or stopped, or the
# machine too small: in any case, siblings can take these connections sooner. We notice at the next poll, which may be late on
# a machine that is too small.
STUCK_AFTER: Final = 0.15


class Slot:
    """A place for a worker. Owns its listeners, which outlive every worker."""

    def __init__(self, index: int, listeners: list[socket.socket]) -> None:
        self.index = index
        self.listeners = listeners
        self.processes: list[Process] = []  # the worker; its replacement; those that drain
        # For the rollout.
        self.failures = 0  # early exits in a row
        self.next_attempt = 0.0  # when the next worker may be started
        # For a slot that is one too many.
        self.retires_at = math.inf  # when its worker is asked to exit
        self.patient = False  # whether the worker may then take its time
        # As of the last `poll`.
        self.waiting = 0  # connections in its queues
        self.accepted = 0  # connections accepted by its processes
        self.moved = 0.0  # when its queues were last empty or moving
        self.stuck_at = math.inf  # since when they have not been
        self.rescuer: Process | None = None  # the worker of another slot that serves these listeners meanwhile

    @property
    def serving(self) -> "Sequence[Process]":
        """The processes that take connections."""
        return [process for process in self.processes if process.ready and not process.retiring]

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
        return self.waiting + sum(process.record[ACTIVE] for process in self.processes if not process.retiring)

    def poll(self, now: float, resumed: bool) -> int:
        """Read the lengths of the queues. Returns how many connections came since the last time.

        `resumed`: the supervisor itself was suspended until now, so that a queue which has not moved means nothing.
        """
        queued = sum(map(queue_length, self.listeners))
        accepted = sum(process.record[ACCEPTED] for process in self.processes)
        came = accepted - self.accepted + queued - self.waiting
        moves = accepted != self.accepted
        was_empty = not self.waiting  # perhaps until a moment ago, however long ago the last poll was
        self.waiting, self.accepted = queued, accepted
        if was_empty or not queued or moves or resumed:
            self.moved = now
        if self.stuck:
            # An empty queue proves nothing: a sibling may have emptied it. The worker must accept something or turn its loop.
            if moves or any(process.record[HEARTBEAT] > self.stuck_at * 1e9 for process in self.serving):
                self.stuck_at = math.inf
                self.moved = now
        elif now - self.moved >= STUCK_AFTER and self.serving:
            self.stuck_at = now
        return max(came, 0)


class Process:
    """A worker process, as the supervisor sees it."""

    def __init__(
        self, pid: int, slot: Slot, generation: int, record: memoryview, report: int, channel: socket.socket, started: float
    ) -> None:
        self.pid = pid
        self.slot = slot
        self.generation = generation
        self.record = record
        self.report_pipe = report  # -1 once it is closed
        self.report = b""  # what came through it: why the worker cannot serve
        self.channel = channel  # lends it listeners of other slots
        self.started = started
        self.ready_since = math.inf
        # Its end.
        self.retiring = False  # it was asked to exit
        self.deadline = math.inf  # for that
        self.grace = math.inf  # the seconds that it was given until then
        self.quit_sent = False  # it was told to drop everything
        self.kill_reason = ""  # why we end it by force, "" as long as we do not
        self.kill_at = math.inf
        # Recycling.
        self.recycle_reason = ""  # why it is to be replaced, "" as long as it is not
        self.jitter = int.from_bytes(os.urandom(8), "little")
        self.memory = 0  # bytes used, at the last sample
        self.samples_over = 0  # samples in a row that were over the limit
        self.next_sample = 0.0

    def retire(self, now: float, grace: float) -> None:
        """It is to exit within `grace` seconds. A second call can shorten that time, but not extend it."""
        self.retiring = True
        if now + grace < self.deadline:
            self.deadline, self.grace = now + grace, grace

    @property
    def lingering(self) -> bool:
        """Whether it was asked to exit and may take its time."""
        return self.retiring and self.deadline == math.inf

    @property
    def ready(self) -> bool:
        return self.ready_since < math.inf

    def __str__(self) -> str:
        return f"worker {self.slot.index} (pid {self.pid})"
