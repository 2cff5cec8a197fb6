"""What the connections of one worker share: limits, timeouts, the date, the application. Knows no socket.

A timeout is a number of seconds; a deadline is a point of the monotonic clock. The deadlines that start now are computed once a
second, so that the hot path sets one with a single store.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final, Protocol

from ..protocol import response
from ..protocol.request import HeadReader, Request
from .contracts import Application
from .loop import EDGE, IN, ONESHOT, RDHUP, TICK, Loop

# Bytes received at once. A new client is first read into a block that CPython allocates by itself (512 bytes with the 33 of an
# object): a way to malloc(3) and back costs 70 ns. If a client sends more than that at once, it and those that come in the
# rest of the second get the larger size from the start: asking the kernel a second time costs 800 ns.
RECEIVE_FIRST: Final = 512 - 33
RECEIVE: Final = 16384

NEVER: Final = float("inf")
UNLIMITED: Final = 1 << 62  # bytes


@dataclass(frozen=True, kw_only=True, slots=True)
class Limits:
    """How large a request may be. In bytes, except for the number of header fields."""

    max_line: int
    max_headers: int
    max_header_bytes: int
    max_body: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Timeouts:
    """How long a connection may wait in each stage, in seconds."""

    header: float  # from the first byte of a head to its last
    body: float  # between two pieces of a body
    write: float  # between two pieces that the client takes
    keep_alive: float  # between two requests
    ping_interval: float = NEVER  # from the last bytes of an upgraded connection's client to a ping
    ping_timeout: float = NEVER  # from the ping to the next bytes


class Client(Protocol):
    """What the context needs of a connection, which stands above this module."""

    sock: Any
    due: float

    def on_deadline(self) -> None:
        """`due` has passed."""

    def expire_if_idle(self, due: float) -> None:
        """If no request is in progress, close at `due`."""

    def close(self) -> None:
        """Close at once."""


class WorkerContext:
    """What the connections of one worker share. `trigger`: `level`, `edge` or `oneshot` (epoll(7))."""

    def __init__(
        self,
        loop: Loop,
        application: Application[Any],
        *,
        limits: Limits,
        timeouts: Timeouts,
        trigger: str = "level",
        corked: bool = False,
        notify_disconnects: bool = False,
    ) -> None:
        reader = HeadReader(limits.max_line, limits.max_headers, limits.max_header_bytes)
        self.loop = loop
        self.limits = limits
        self.timeouts = timeouts
        # Bound methods, so that no request has to look them up.
        self.read_head = reader.read
        self.unfinished = reader.unfinished
        self.answer: Callable[[Any, Request], bytes | None] = application.answer
        self.answer_with_body: Callable[[Any, Request, bytes], bytes | None] = application.answer_with_body
        self.answer_streaming: Callable[[Any, Request], bytes | None] = application.answer_streaming
        self.connections: set[Client] = set()
        self.draining = False
        self.rejected = self.aborted = 0
        self.receive_size = RECEIVE_FIRST  # bytes, for the first piece of a new client

        # How connections are registered.
        self.flags = {"level": 0, "edge": EDGE, "oneshot": ONESHOT}[trigger]
        self.oneshot = trigger == "oneshot"
        # A piece of at least this many bytes may not be all that there is to receive without another event.
        self.ask_from = {"level": UNLIMITED, "edge": RECEIVE, "oneshot": 0}[trigger]
        # The event of which sinks are notified. 0: they are not `DisconnectSink`s.
        self.disconnect_mask = RDHUP if notify_disconnects else 0
        # The end of a client that comes together with its last bytes is one edge with them; RDHUP shows that it was there.
        self.watch_mask = IN | self.flags | (RDHUP if notify_disconnects or trigger == "edge" else 0)
        # TCP_CORK (tcp(7)) is on. It is drawn after each response, or the kernel would hold back the end for 200 ms.
        self.corked = corked
        # The fast path sends a response and needs no more: neither to ask for the next event, nor to draw a cork, nor to close.
        self.fast_path = not self.oneshot and not corked
        self.known = reader.known if self.fast_path else {}

    def tick(self, monotonic: float, now: float) -> None:
        """Once a second: the date, and the deadlines.

        A pass over all connections, 60 ns each: 10,000 idle ones cost 0.06 % of a core. In return the hot path keeps a
        deadline with one store. Deadlines start from this second's end, so they are late by up to a second and never early.
        """
        self.date = response.date_line(now)
        # The last lines of a head: the connection persists, closes, or persists for a client of HTTP/1.0.
        self.date_end = self.date + b"\r\n"
        self.close_end = response.CLOSE + self.date_end
        self.keep_end = response.KEEP + self.date_end
        self.receive_size = RECEIVE_FIRST
        self.now = base = monotonic + TICK
        timeouts = self.timeouts
        self.header_due = base + timeouts.header
        self.body_due = base + timeouts.body
        self.write_due = base + timeouts.write
        self.idle_due = base + timeouts.keep_alive
        self.stream_due = base + timeouts.ping_interval
        late = [connection for connection in self.connections if connection.due <= monotonic]
        for connection in late:
            connection.on_deadline()

    def drain(self) -> None:
        """From now on every response has `Connection: close`."""
        self.draining = True
        self.fast_path = False
        self.known = {}

    def expire_idle(self, due: float) -> None:
        """Close idle connections at `due` and not at once: a request that is on its way to us would be lost."""
        for connection in self.connections:
            connection.expire_if_idle(due)

    def disown(self) -> None:
        """In a child process: close its copies of the sockets, and nothing else."""
        for connection in self.connections:
            connection.sock.close()
