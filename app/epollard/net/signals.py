"""Signals arrive as bytes in the loop: a handler never interrupts anything, and decides nothing."""

import signal
import socket
from collections.abc import Callable, Collection

from .loop import IN, Loop


class Signals:
    """From now on calls `on_signal` with the number of each of these signals that arrives."""

    def __init__(self, loop: Loop, numbers: Collection[int], on_signal: Callable[[int], object]) -> None:
        self._on_signal = on_signal
        self._reader, self._writer = socket.socketpair()
        for end in (self._reader, self._writer):
            end.setblocking(False)
        signal.set_wakeup_fd(self._writer.fileno(), warn_on_full_buffer=False)
        for number in numbers:
            signal.signal(number, _do_nothing)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, numbers)  # the process that started us may have blocked them
        loop.watch(self._reader.fileno(), IN, self._on_bytes)

    def _on_bytes(self, events: int) -> None:
        for number in self._reader.recv(4096):
            self._on_signal(number)

    def close(self) -> None:
        """Report no more signals. Those that still arrive do nothing."""
        signal.set_wakeup_fd(-1)
        self._reader.close()
        self._writer.close()


def _do_nothing(*_: object) -> None:
    """A handler is needed only for the byte that the interpreter writes when a signal arrives (`signal.set_wakeup_fd`)."""
