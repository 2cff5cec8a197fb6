"""The slots and their listeners: one more, one fewer, all of them closed, and nobody who has connected is turned away."""

import socket
from typing import Final

from .. import log
from ..config.options import Config
from ..net import sockets, syn_filter
from ..net.loop import Loop
from ..net.reuseport import waiting
from .balance import Balance
from .slots import Slot

# Seconds between the last connection that is steered to a slot and its end. Handshakes under way are over by then: who has said
# nothing is kept from us for a second (sockets.DEFER), and a packet that was lost is sent again after one.
HANDSHAKE: Final = 1.25


class Listeners:
    """Where clients come in: the groups (one for each address), a slot's listener of each, and who serves which."""

    def __init__(self, loop: Loop) -> None:
        self.groups: list[sockets.Group] = []
        self.slots: list[Slot] = []
        self.fading: list[Slot] = []  # of too many workers
        self._loop = loop
        self._balance = Balance(loop, (), False)
        self._serving: object = None  # at the last look

    @property
    def every(self) -> list[Slot]:
        """The slots that stay and those that fade."""
        return [*self.slots, *self.fading]

    def bind(self, config: Config, slots: int, wills: list[sockets.Will]) -> None:
        """Listen, for so many slots; of a predecessor's `wills` those remain that are not wanted. `sockets.BindError`."""
        self.groups, listeners = sockets.bind(config.bind, slots, config.backlog, config.tcp, wills)
        self.slots = [Slot(index, own) for index, own in enumerate(listeners)]
        self._balance = Balance(self._loop, self.groups, config.steer == "on")
        for group in self.groups:
            log.info(f"listening on {group.url}")

    def look(self, now: float) -> float:
        """Steer and rescue, if it is time for it or others serve than at the last look. Returns when to look again."""
        serving = tuple({slot: slot.serving for slot in slots} for slots in (self.slots, self.fading))
        if serving != self._serving or now >= self._balance.next_look:
            self._serving = serving
            self._balance.look(now, self.slots, self.fading)
        return self._balance.next_look

    def resize(self, now: float, wanted: int, patient: bool = False) -> int:
        """Have so many slots; those that are too many fade (`patient`: and their workers may take their time).

        Returns how many there are, fewer where no listener can be had.
        """
        steered = self._balance.steering.groups
        while len(self.slots) > wanted:
            slot = self.slots.pop()
            slot.fades_at = now + (HANDSHAKE if steered else syn_filter.SHUT)
            slot.patient = patient
            if not steered:
                _shut(slot)
            self.fading.append(slot)
        while len(self.slots) < wanted:
            if self.fading and now < self.fading[-1].fades_at:
                slot = self.fading.pop()
                for listener in slot.listeners:
                    syn_filter.reopen(listener)
                self.slots.append(slot)
                continue
            listeners: list[socket.socket] = []
            try:
                for group in self.groups:
                    listeners.append(group.join())
            except OSError as error:
                self._leave(listeners)
                log.error(f"no worker more: another listener cannot be had: {error.strerror}")
                break
            self.slots.append(Slot(len(self.slots), listeners))
            self._balance.disarm()
        return len(self.slots)

    def fade(self, slot: Slot, late: bool) -> None:
        """Close the listeners of a slot that is one too many, when nobody waits in its queues any more, or it is too late."""
        # Where nothing is steered our copies go first, as when we stop: the worker's look at the queue is the last one.
        if late or not self._balance.steering.groups or not any(map(waiting, slot.listeners)):
            self.fading.remove(slot)
            self._balance.disarm()
            self._leave(slot.listeners)

    def _leave(self, listeners: list[socket.socket]) -> None:
        for group, listener in zip(self.groups, listeners, strict=False):
            group.leave(listener)

    # The end.

    def shut(self) -> None:
        """Let nobody begin to connect by TCP. A Unix socket needs no time for that."""
        for slot in self.every:
            _shut(slot)

    def arriving(self) -> bool:
        """Whether somebody is in the middle of a handshake."""
        return syn_filter.arriving(group.address[1] for group in self.groups if isinstance(group, sockets.TcpGroup))

    def bequeath(self) -> None:
        """All workers are about to drain: let none of the queues be without one."""
        self._balance.bequeath(self.slots, self.fading)

    def close(self, shared: bool) -> None:
        """Close our copies; unless they are another's as well (`shared`), a Unix socket is shut.

        First ours, then the workers': whoever closes last must have emptied the queue.
        """
        self._balance.disarm()
        for slot in self.slots[:1] if not shared else ():
            for listener in slot.listeners:
                if listener.family == socket.AF_UNIX:
                    syn_filter.shut(listener)
        sockets.close(self.groups, [slot.listeners for slot in self.every])

    def unlink(self) -> None:
        """Remove the files of Unix sockets."""
        sockets.unlink(self.groups)

    def disown(self, own: Slot) -> None:
        """In a forked worker: close the listeners of all slots but its own."""
        sockets.close(self.groups, [slot.listeners for slot in self.every if slot is not own])

    def wills(self) -> list[sockets.Will]:
        """What a successor needs to have the same listeners (see upgrade.py)."""
        return [group.will([slot.listeners[at] for slot in self.slots]) for at, group in enumerate(self.groups)]


def _shut(slot: Slot) -> None:
    for listener in slot.listeners:
        if listener.family != socket.AF_UNIX:  # which needs no time for it, and which all slots share
            syn_filter.shut(listener)
