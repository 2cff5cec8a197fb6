"""What connections and application interfaces promise each other. Protocols, and the little that both interfaces share.

A connection calls an `Application` with each request, and gives the request's body to a `BodySink`. All but
`Runner.post` is called on the loop's thread.
"""

import time
from collections.abc import Callable, Collection
from typing import Any, Protocol, TypeVar

from ..protocol.request import Request

# `Connection` stands above this module, which only names it.
Connection = TypeVar("Connection", contravariant=True)

# Peer's host, request, status, bytes of body, seconds.
AccessLogger = Callable[[str, Request, int, int, float], object]


class Sink(Protocol):
    """Receives what a client sends after a head."""

    def feed(self, content: bytes) -> None:
        """Take a piece of it. May raise `OSError`."""

    def abort(self) -> bool:
        """The rest will never come: the client left, or broke a rule. True: some of the response was sent."""


class BodySink(Sink, Protocol):
    """Receives the body of a request."""

    def end(self) -> bytes | None:
        """The body is complete. Returns as `Application` does."""


class DisconnectSink(Sink, Protocol):
    """A sink that is notified when its client leaves during the response (`WorkerContext` with `notify_disconnects`)."""

    def on_disconnect(self) -> None:
        """The client sends nothing more: it half closed, or is gone, which only writing to it will show."""


class UpgradedProtocol(Sink, Protocol):
    """The owner of a connection's bytes after `Connection.upgrade`. Its `abort` is the end of the connection."""

    def on_deadline(self) -> None:
        """The client has been silent until the connection's deadline."""


class Application(Protocol[Connection]):
    """Answers requests. An answer is the whole response in bytes (empty if it was written already), or None: it comes later."""

    def answer(self, connection: Connection, request: Request, /) -> bytes | None:
        """Answer a request that has no body."""

    def answer_with_body(self, connection: Connection, request: Request, body: bytes, /) -> bytes | None:
        """Answer a request whose body came with its head."""

    def answer_streaming(self, connection: Connection, request: Request, /) -> bytes | None:
        """Answer a request whose body is still to come: `attach` a sink, then call `Connection.read_body`."""


class Interface(Application[Connection], Protocol[Connection]):
    """An application interface, as a worker runs it: the threads of WSGI, or the asyncio loop of ASGI."""

    answered: int  # requests

    def run(self, ready: Callable[[], object]) -> None:
        """Start the application, call `ready`, and serve until `stop`."""

    def watch_signals(self, numbers: Collection[int], on_signal: Callable[[int], object]) -> None:
        """Call `on_signal` on the loop's thread with each of these signals that arrives, as long as `run` runs."""

    def unwatch_signals(self) -> None:
        """Let signals do nothing: at the end, and in a child process that the application has forked."""

    def stop(self) -> None:
        """End `run`."""

    def stop_if_idle(self) -> bool:
        """There are no connections: end `run`, unless application code still runs for a former one. Returns whether it ends."""

    def alive(self, now: float) -> float:
        """When the worker last showed a sign of life (`time.monotonic()`): `now`, unless it cannot serve."""

    def busy_seconds(self, now: float) -> tuple[float, ...]:
        """Seconds of work until now, as sums: those of the loop's thread, then those of other threads on average."""


class Peer(Protocol):
    """The part of a connection that the access log shows."""

    peer: tuple[str, str]  # host, port


class Runner(Protocol):
    """What an exchange needs of the threads or the asyncio loop that run it. The two interfaces inherit from it."""

    answered: int  # requests
    _access: AccessLogger | None

    def post(self, callback: Callable[..., object], *arguments: Any) -> None:
        """Call back in this turn of the loop or the next. Any thread may ask."""

    def finished(self, connection: Peer, request: Request, code: int, sent: int, started: float) -> None:
        """A response is complete, or was given up. `sent`: bytes of body; `started`: `time.perf_counter()`."""
        self.answered += 1
        if self._access is not None:
            self._access(connection.peer[0], request, code, sent, time.perf_counter() - started)
