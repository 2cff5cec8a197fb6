"""Signals arrive as bytes in the loop: a handler never runs in the middle of anything, and decides nothing."""

import signal
import socket
from collections.abc import Callable, Collection

from .loop import IN, Loop


class Signals:
    """Has `obey` called with the number of each of these signals, from now on."""

    def __init__(self, loop: Loop, numbers: Collection[int], obey: Callable[[int], object]) -> None:
        self._obey = obey
        self._reader, self._writer = socket.socketpair()
        for end in (self._reader, self._writer):
            end.setblocking(False)
        signal.set_wakeup_fd(self._writer.fileno(), warn_on_full_buffer=False)
        for number in numbers:
            signal.signal(number, _do_nothing)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, numbers)  # whoever started us may have had it blocked
        loop.watch(self._reader.fileno(), IN, self._on_bytes)

    def _on_bytes(self, events: int) -> None:
        for number in self._reader.recv(4096):
            self._obey(number)

    def close(self) -> None:
        """Hear no more of them. Those that come do nothing."""
        signal.set_wakeup_fd(-1)
        self._reader.close()
        self._writer.close()


def _do_nothing(*_: object) -> None:
    """All that is wanted of the handler is the byte that the interpreter writes (`signal.set_wakeup_fd`)."""
