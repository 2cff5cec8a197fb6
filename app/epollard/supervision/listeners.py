"""The slots and their listeners: one more, one fewer, all closed; and no client that has connected is turned away."""

import socket
from typing import Final

from .. import log
from ..config.options import Config
from ..net import sockets, syn_filter
from ..net.loop import Loop
from .balance import Balance
from .slots import Slot

# Seconds between the last connection that is steered to a slot and its end. Handshakes in progress are over by then: the kernel
# keeps a client that sends nothing for a second (sockets.DEFER), and a lost packet is repeated after a second.
HANDSHAKE: Final = 1.25


class Listeners:
    """Where clients come in: a group for each address, each slot's listener of every group, and which worker serves which."""

    def __init__(self, loop: Loop) -> None:
        self.groups: list[sockets.Group] = []
        self.slots: list[Slot] = []
        self.retiring: list[Slot] = []  # those that are too many: steered away from, and closed when their queues are empty
        self._loop = loop
        self._balance = Balance(loop, (), False)
        self._serving: object = None  # when we last steered

    @property
    def all_slots(self) -> list[Slot]:
        """The slots that stay and those that are retiring."""
        return [*self.slots, *self.retiring]

    def bind(self, config: Config, slots: int, inheritances: list[sockets.Inheritance]) -> None:
        """Listen for that many slots; what is used of the `inheritances` is taken out of the list. `sockets.BindError`."""
        self.groups, listeners = sockets.bind(config.bind, slots, config.backlog, config.tcp, inheritances)
        self.slots = [Slot(index, own) for index, own in enumerate(listeners)]
        self._balance = Balance(self._loop, self.groups, config.steer == "on")
        for group in self.groups:
            log.info(f"listening on {group.url}")

    def steer(self, now: float) -> float:
        """Steer and rescue if that is due, or if other workers serve than the last time. Returns when it is due again."""
        serving = tuple({slot: slot.serving for slot in slots} for slots in (self.slots, self.retiring))
        if serving != self._serving or now >= self._balance.due_at:
            self._serving = serving
            self._balance.steer(now, self.slots, self.retiring)
        return self._balance.due_at

    def resize(self, now: float, wanted: int, patient: bool = False) -> int:
        """Have that many slots. Those that are too many retire; if `patient`, their workers may take their time.

        Returns how many there are: fewer than wanted if a listener cannot be opened.
        """
        steered = self._balance.steered
        while len(self.slots) > wanted:
            slot = self.slots.pop()
            slot.retires_at = now + (HANDSHAKE if steered else syn_filter.SYN_DROP_TIME)
            slot.patient = patient
            if not steered:
                _attach_filter(slot)
            self.retiring.append(slot)
        while len(self.slots) < wanted:
            if self.retiring and now < self.retiring[-1].retires_at:
                slot = self.retiring.pop()
                for listener in slot.listeners:
                    syn_filter.detach(listener)
                self.slots.append(slot)
                continue
            listeners: list[socket.socket] = []
            try:
                for group in self.groups:
                    listeners.append(group.join())
            except OSError as error:
                self._leave(listeners)
                log.error(f"cannot add a worker: another listener could not be opened: {error.strerror}")
                break
            self.slots.append(Slot(len(self.slots), listeners))
            self._balance.disarm()
        return len(self.slots)

    def retire(self, slot: Slot, late: bool) -> None:
        """Close the listeners of a retiring slot if its queues are empty, or if it is too late to wait for that."""
        # Where nothing is steered our copies are closed first, as when we stop: the worker then empties the queue for good.
        if late or not self._balance.steered or not any(map(sockets.queue_length, slot.listeners)):
            self.retiring.remove(slot)
            self._balance.disarm()
            self._leave(slot.listeners)

    def _leave(self, listeners: list[socket.socket]) -> None:
        for group, listener in zip(self.groups, listeners, strict=False):
            group.leave(listener)

    # The end.

    def refuse_handshakes(self) -> None:
        """Let no client begin to connect by TCP. A Unix socket needs no time for that."""
        for slot in self.all_slots:
            _attach_filter(slot)

    def handshakes_in_progress(self) -> bool:
        """Whether a client is in the middle of a handshake."""
        ports = [group.address[1] for group in self.groups if isinstance(group, sockets.TcpGroup)]
        return syn_filter.handshakes_in_progress(ports)

    def lend_unserved(self) -> None:
        """All workers are about to drain: leave no queue without one."""
        self._balance.lend_unserved(self.slots, self.retiring)

    def close(self, shared: bool) -> None:
        """Close our copies; unless they are another supervisor's as well (`shared`), shut Unix sockets down.

        First ours, then the workers': the process that closes last must have emptied the queue.
        """
        self._balance.disarm()
        for slot in self.slots[:1] if not shared else ():
            for listener in slot.listeners:
                if listener.family == socket.AF_UNIX:
                    syn_filter.attach(listener)
        sockets.close(self.groups, [slot.listeners for slot in self.all_slots])

    def unlink(self) -> None:
        """Remove the files of Unix sockets."""
        sockets.unlink(self.groups)

    def disown(self, own: Slot) -> None:
        """In a forked worker: close the listeners of all slots except its own."""
        sockets.close(self.groups, [slot.listeners for slot in self.all_slots if slot is not own])

    def inheritances(self) -> list[sockets.Inheritance]:
        """What a successor needs to have the same listeners (see upgrade.py)."""
        return [group.inheritance([slot.listeners[at] for slot in self.slots]) for at, group in enumerate(self.groups)]


def _attach_filter(slot: Slot) -> None:
    for listener in slot.listeners:
        if listener.family != socket.AF_UNIX:  # which needs no time for it, and which all slots share
            syn_filter.attach(listener)
