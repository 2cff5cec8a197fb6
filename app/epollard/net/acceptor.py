"""The accept loop: takes connections from listeners, and waits when there is no descriptor for another. Knows no HTTP."""

import errno
import resource
import select
import socket
from collections.abc import Callable, Sized
from functools import partial
from typing import Final

from .. import log
from .loop import IN, Loop

ACCEPTS: Final = 16  # connections of one listener and turn: a burst does not starve the clients that are being served
UNIX_NAME: Final = ("localhost", "80")  # SERVER_NAME and SERVER_PORT, which may not be empty (PEP 3333)

# Errors of accept(2) when the process or the machine has no room for a connection. Until it has, epoll wakes us at once again.
_EXHAUSTED: Final = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)
_NAMES: Final[dict[tuple[str, str], tuple[str, str]]] = {}

# Takes over an accepted socket, its peer's address, and the name of the listener.
Take = Callable[["socket.SocketType", object, tuple[str, str]], object]


def server_name(listener: socket.socket) -> tuple[str, str]:
    """SERVER_NAME and SERVER_PORT of a listener's connections. Equal names are one object, so that `is` can compare them."""
    name = UNIX_NAME
    if listener.family != socket.AF_UNIX:
        host, port = listener.getsockname()[:2]
        name = host, str(port)
    return _NAMES.setdefault(name, name)


class Acceptor:
    """The listeners of one process, and what becomes of their connections.

    `clients` are those that are connected now. `counts`, where another process reads them, are two cells: the connections
    accepted so far, and those that are open. They are written before and after the connections of one listener and turn, since
    `take` may leave by an exception in between; in place, because a function for it costs two calls a turn.
    """

    def __init__(self, loop: Loop, take: Take, clients: Sized, counts: memoryview | None = None) -> None:
        self._loop = loop
        self._take = take
        self._clients = clients
        self._counts = counts
        self.accepted = 0
        self._paused: list[socket.socket] = []  # until a descriptor may be free

    def add(self, listener: socket.socket) -> None:
        """Accept this listener's connections. It does not block."""
        # All workers share the listener of a Unix socket: wake one of them, not all (epoll_ctl(2)).
        mask = IN | select.EPOLLEXCLUSIVE if listener.family == socket.AF_UNIX else IN
        self._loop.watch(listener.fileno(), mask, partial(self._on_listener, listener, listener.family, server_name(listener)))

    def remove(self, listener: socket.socket) -> None:
        """Accept no more from this listener. Needed before it is closed (see `Loop.unwatch`)."""
        if listener in self._paused:
            self._paused.remove(listener)
        else:
            self._loop.unwatch(listener.fileno())

    def resume(self) -> None:
        """Once a second: try again where there was no descriptor."""
        paused, self._paused = self._paused, []
        for listener in paused:
            self.add(listener)

    def accept_one(self, listener: socket.socket) -> bool:
        """Accept one connection of a listener that was removed. False: there is none, or no descriptor for it."""
        try:
            fd, peer = listener._accept()  # type: ignore[attr-defined]
        except OSError:
            return False
        self.accepted += 1
        self._take(socket.SocketType(listener.family, socket.SOCK_STREAM, 0, fd), peer, server_name(listener))
        return True

    def count(self) -> None:
        """Write the counts. Also needed once a second: connections close in turns that accept none."""
        if self._counts is not None:
            self._counts[0] = self.accepted
            self._counts[1] = len(self._clients)

    def _on_listener(self, listener: socket.socket, family: int, name: tuple[str, str], events: int) -> None:
        accept = listener._accept  # type: ignore[attr-defined]
        take, counts = self._take, self._counts
        if counts is not None:
            counts[0] = self.accepted
        for _ in range(ACCEPTS):
            try:
                fd, peer = accept()
            except BlockingIOError:
                break
            except OSError as error:
                if error.errno in _EXHAUSTED:
                    self._pause(listener, error)
                    break
                continue  # the client left while it was waiting: accept(2), "Error handling"
            self.accepted += 1
            # The base class of `socket.socket`: it costs a third of what `socket.accept` returns.
            take(socket.SocketType(family, socket.SOCK_STREAM, 0, fd), peer, name)
        if counts is not None:
            counts[0] = self.accepted
            counts[1] = len(self._clients)

    def _pause(self, listener: socket.socket, error: OSError) -> None:
        """Leave the connections in the queue until `resume`, instead of being woken for nothing."""
        limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        log.warning(f"cannot accept ({error.strerror}; limit {limit}, {len(self._clients)} connections): waiting a second")
        self._loop.unwatch(listener.fileno())
        self._paused.append(listener)
