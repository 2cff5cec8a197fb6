"""Who serves what: new connections go where they are served soonest, and a queue that stands still goes to a sibling.

While connections come it looks at the queues many times a second. When none come it waits for the kernel to say so.
"""

import math
import socket
from collections.abc import Sequence
from typing import Final

from .. import log
from ..net import reuseport
from ..net.loop import IN, ONESHOT, Loop
from ..net.sockets import Group, TcpGroup
from .slots import Process, Slot

LOOK: Final = 0.05  # seconds between two looks while connections come
BURST_LOOK: Final = 0.01  # and while more come than go: what stays in the wrong place stays there for long
IDLE_LOOK: Final = 1.0  # and while none do, for those that close
QUIET: Final = 0.5  # seconds without a change; then none come
PAUSE: Final = 0.5  # seconds since our last look that were promised: the machine stood still, not the workers
DECAY: Final = 0.8  # of what we expect, from one look to the next: a burst is half forgotten after 150 ms
SAID: Final = 10.0  # seconds in which it is not said again that a slot is stuck


class Balance:
    """The queues of all slots, and what was last done about them."""

    def __init__(self, loop: Loop, groups: Sequence[Group], steer: bool) -> None:
        self._loop = loop
        shared = [group for group in groups if isinstance(group, TcpGroup)]
        self.steering = reuseport.Steering(shared if steer else ())
        self.next_look = 0.0
        self._promised = 0.0  # when the next look was to be
        self._busy_until = 0.0
        self._expected = 0.0  # connections before the next look
        self._armed: list[int] = []  # listeners of which we want to hear
        self._arrived = False  # and have heard
        self._said: dict[int, float] = {}
        if steer and len(shared) < len(groups):
            log.info("a Unix socket has one queue for all workers: there is nothing to steer")

    def _on_arrival(self, events: int) -> None:
        self.next_look = 0.0
        self._arrived = True

    def look(self, now: float, slots: Sequence[Slot], fading: Sequence[Slot]) -> None:
        """See how full each slot is, steer and rescue by it. Those that fade shall get nothing new."""
        every = [*slots, *fading]
        rested = now > self._promised + PAUSE
        loads = [slot.load for slot in every]
        came = 0
        for slot in every:
            was = slot.stuck
            came += slot.look(now, rested)
            if slot.stuck is not was:
                self._say(now, slot)
        self._expected = max(came, self._expected * DECAY)
        if len(every) > 1:
            weights = reuseport.shares([slot.load if slot.willing else None for slot in slots], self._expected)
            self.steering.steer(
                {listener: weight for slot, weight in zip(slots, weights, strict=True) for listener in slot.listeners}
            )
            for slot in every:
                self._rescue(slot, slots)
        grown = sum(slot.load for slot in every) - sum(loads)
        if self._arrived or came or loads != [slot.load for slot in every] or any(slot.waiting for slot in every):
            self._busy_until = now + QUIET
        if now < self._busy_until:
            self.next_look = now + (BURST_LOOK if self._arrived or grown > len(every) else LOOK)
            self.disarm()
        else:
            self._arm(every)
            self.next_look = now + IDLE_LOOK
        self._promised = self.next_look

    def _say(self, now: float, slot: Slot) -> None:
        if not slot.stuck:
            log.debug(f"worker {slot.index} takes connections again")
        elif now - self._said.get(slot.index, -math.inf) > SAID:
            self._said[slot.index] = now
            log.info(f"worker {slot.index} does not take its connections: {slot.waiting} wait, its siblings take them")

    def _rescue(self, slot: Slot, slots: Sequence[Slot]) -> None:
        """Lend the slot's listeners to a sibling, or take them back."""
        rescuer = slot.rescuer
        if rescuer is not None and (slot.willing or not _helps(rescuer)):
            slot.rescuer = None
            _tell(rescuer, slot, ())
        if slot.rescuer is None and slot.waiting and not slot.willing:
            self._lend(slot, slots)

    def _lend(self, slot: Slot, slots: Sequence[Slot]) -> None:
        siblings = [sibling for sibling in slots if sibling is not slot and sibling.willing]
        if siblings:
            rescuer = min(siblings, key=lambda sibling: sibling.load).serving[-1]
            if _tell(rescuer, slot, slot.listeners):
                slot.rescuer = rescuer
                log.debug(f"{rescuer} serves the queue of worker {slot.index}")

    def bequeath(self, slots: Sequence[Slot], fading: Sequence[Slot]) -> None:
        """All workers are about to drain: give away the queues of slots that have none, whoever may wait there by now."""
        for slot in (*slots, *fading):
            if not slot.willing and (slot.rescuer is None or not _helps(slot.rescuer)):
                self._lend(slot, slots)

    def _arm(self, slots: Sequence[Slot]) -> None:
        if not self._armed and len(slots) > 1:
            for slot in slots:
                for listener in slot.listeners:
                    if listener.family != socket.AF_UNIX:
                        self._armed.append(listener.fileno())
                        self._loop.watch(listener.fileno(), IN | ONESHOT, self._on_arrival)

    def disarm(self) -> None:
        """Watch no listener: before one is closed, which others hold open (see `Loop.unwatch`)."""
        for fd in self._armed:
            self._loop.unwatch(fd)
        self._armed.clear()
        self._arrived = False


def _helps(rescuer: Process) -> bool:
    """Whether it lives and stays, and takes connections."""
    return rescuer in rescuer.slot.serving and not rescuer.slot.stuck


def _tell(process: Process, slot: Slot, listeners: Sequence[socket.socket]) -> bool:
    """Lend it these listeners of `slot`, or take them back where there are none (see worker.py)."""
    descriptors = [listener.fileno() for listener in listeners if listener.family != socket.AF_UNIX]
    message = b"%d" % slot.index
    try:
        if descriptors:
            socket.send_fds(process.channel, [message], descriptors)
        else:
            process.channel.send(message)
    except OSError:  # it reads nothing, or is gone: whoever asks will find another
        return False
    return True
