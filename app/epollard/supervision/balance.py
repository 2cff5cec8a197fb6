"""Which worker serves what: new connections go where they are served soonest; a queue that stands still is lent to a sibling.

While connections come, the queues are checked many times a second. While none come, the kernel reports the next one.
"""

import math
import socket
from collections.abc import Sequence
from typing import Final

from .. import log
from ..net import reuseport
from ..net.loop import IN, ONESHOT, Loop
from ..net.sockets import Group, TcpGroup
from . import steering
from .slots import Process, Slot

BUSY_INTERVAL: Final = 0.05  # seconds until we steer again while connections come
BURST_INTERVAL: Final = 0.01  # and while more come than go: a connection that gets to the wrong worker stays there for long
IDLE_INTERVAL: Final = 1.0  # and while none come, to notice those that close
QUIET: Final = 0.5  # seconds without a change, after which none come
PAUSE: Final = 0.5  # seconds by which we are late: then the machine stood still, not the workers
DECAY: Final = 0.8  # of the connections that we expect, from one time to the next: a burst is half forgotten after 150 ms
LOG_INTERVAL: Final = 10.0  # seconds before the log says again that a slot is stuck


class Balance:
    """The queues of all slots, and what was last done about them."""

    def __init__(self, loop: Loop, groups: Sequence[Group], steer: bool) -> None:
        self._loop = loop
        tcp_groups = [group for group in groups if isinstance(group, TcpGroup)]
        self._kernel = reuseport.Steering(tcp_groups if steer else ())
        self.due_at = 0.0  # when to steer next
        self._promised = 0.0  # when we should have been called
        self._busy_until = 0.0
        self._expected = 0.0  # connections before the next time
        self._armed: list[int] = []  # listeners whose next connection the kernel is to report
        self._arrived = False  # and it has
        self._logged: dict[int, float] = {}
        if steer and len(tcp_groups) < len(groups):
            log.info("a Unix socket has one queue for all workers, so its connections are not steered")

    @property
    def steered(self) -> bool:
        """Whether new connections go where we want them, as far as they come by TCP."""
        return bool(self._kernel.groups)

    def steer(self, now: float, slots: Sequence[Slot], retiring: Sequence[Slot]) -> None:
        """Find out how full each slot is, and steer and rescue accordingly. Retiring slots get no new connections."""
        every = [*slots, *retiring]
        resumed = now > self._promised + PAUSE
        loads = [slot.load for slot in every]
        came = 0
        for slot in every:
            was_stuck = slot.stuck
            came += slot.poll(now, resumed)
            if slot.stuck is not was_stuck:
                self._log(now, slot)
        self._expected = max(came, self._expected * DECAY)
        if len(every) > 1:
            weights = steering.shares([slot.load if slot.willing else None for slot in slots], self._expected)
            self._kernel.steer(
                {listener: weight for slot, weight in zip(slots, weights, strict=True) for listener in slot.listeners}
            )
            for slot in every:
                self._rescue(slot, slots)
        grown = sum(slot.load for slot in every) - sum(loads)
        if self._arrived or came or loads != [slot.load for slot in every] or any(slot.waiting for slot in every):
            self._busy_until = now + QUIET
        if now < self._busy_until:
            self.due_at = now + (BURST_INTERVAL if self._arrived or grown > len(every) else BUSY_INTERVAL)
            self.disarm()
        else:
            self._arm(every)
            self.due_at = now + IDLE_INTERVAL
        self._promised = self.due_at

    def _log(self, now: float, slot: Slot) -> None:
        if not slot.stuck:
            log.debug(f"worker {slot.index} accepts connections again")
        elif now - self._logged.get(slot.index, -math.inf) > LOG_INTERVAL:
            self._logged[slot.index] = now
            queued = f"{slot.waiting} queued connection{'s' * (slot.waiting != 1)}"
            log.info(f"worker {slot.index} is not accepting connections; siblings are taking its {queued}")

    # Queues that stand still.

    def _rescue(self, slot: Slot, slots: Sequence[Slot]) -> None:
        """Lend the slot's listeners to a sibling, or take them back."""
        rescuer = slot.rescuer
        if rescuer is not None and (slot.willing or not _helps(rescuer)):
            slot.rescuer = None
            _send(rescuer, slot, ())
        if slot.rescuer is None and slot.waiting and not slot.willing:
            self._lend(slot, slots)

    def _lend(self, slot: Slot, slots: Sequence[Slot]) -> None:
        siblings = [sibling for sibling in slots if sibling is not slot and sibling.willing]
        if siblings:
            rescuer = min(siblings, key=lambda sibling: sibling.load).serving[-1]
            if _send(rescuer, slot, slot.listeners):
                slot.rescuer = rescuer
                log.debug(f"{rescuer} serves the queue of worker {slot.index}")

    def lend_unserved(self, slots: Sequence[Slot], retiring: Sequence[Slot]) -> None:
        """All workers are about to drain: lend the queues that no worker serves, since clients may wait there by now."""
        for slot in (*slots, *retiring):
            if not slot.willing and (slot.rescuer is None or not _helps(slot.rescuer)):
                self._lend(slot, slots)

    # Waiting for the next connection.

    def _arm(self, slots: Sequence[Slot]) -> None:
        if not self._armed and len(slots) > 1:
            for slot in slots:
                for listener in slot.listeners:
                    if listener.family != socket.AF_UNIX:
                        self._armed.append(listener.fileno())
                        self._loop.watch(listener.fileno(), IN | ONESHOT, self._on_arrival)

    def _on_arrival(self, events: int) -> None:
        self.due_at = 0.0
        self._arrived = True

    def disarm(self) -> None:
        """Watch no listener. Needed before one is closed that other processes hold open (see `Loop.unwatch`)."""
        for fd in self._armed:
            self._loop.unwatch(fd)
        self._armed.clear()
        self._arrived = False


def _helps(rescuer: Process) -> bool:
    """Whether the worker lives, stays, and takes connections."""
    return rescuer in rescuer.slot.serving and not rescuer.slot.stuck


def _send(process: Process, slot: Slot, listeners: Sequence[socket.socket]) -> bool:
    """Lend a worker these listeners of `slot` or, where there are none, take them back (see worker.py)."""
    descriptors = [listener.fileno() for listener in listeners if listener.family != socket.AF_UNIX]
    message = b"%d" % slot.index
    try:
        if descriptors:
            socket.send_fds(process.channel, [message], descriptors)
        else:
            process.channel.send(message)
    except OSError:  # it reads nothing, or is gone: the next call finds another
        return False
    return True
