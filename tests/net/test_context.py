"""The context of a worker's connections: how they are registered, when the fast path is off, date and deadlines."""

import select
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from epollard.net.context import NEVER, RECEIVE, RECEIVE_FIRST, UNLIMITED, Limits, Timeouts, WorkerContext
from epollard.net.loop import TICK, Loop

IN, ET, ONESHOT, RDHUP = select.EPOLLIN, select.EPOLLET, select.EPOLLONESHOT, select.EPOLLRDHUP
LIMITS = Limits(max_line=100, max_headers=5, max_header_bytes=1000, max_body=50)
TIMEOUTS = Timeouts(header=1, body=2, write=3, keep_alive=4, ping_interval=5, ping_timeout=6)


class App:
    """An application that is never called."""

    def answer(self, connection: Any, request: Any, /) -> None:
        raise NotImplementedError

    def answer_with_body(self, connection: Any, request: Any, body: bytes, /) -> None:
        raise NotImplementedError

    def answer_streaming(self, connection: Any, request: Any, /) -> None:
        raise NotImplementedError


class Client:
    """A connection as the context sees it."""

    def __init__(self, due: float) -> None:
        self.sock = self
        self.due = due
        self.calls: list[str] = []

    def on_deadline(self) -> None:
        self.calls.append("deadline")

    def expire_if_idle(self, due: float) -> None:
        self.calls.append(f"expire {due}")

    def close(self) -> None:
        self.calls.append("close")


Make = Callable[..., WorkerContext]


@pytest.fixture
def make() -> Iterator[Make]:
    """`make(trigger="edge")` makes a context with a loop of its own."""
    loops: list[Loop] = []

    def start(**options: Any) -> WorkerContext:
        loops.append(Loop())
        return WorkerContext(loops[-1], App(), **{"limits": LIMITS, "timeouts": TIMEOUTS, **options})

    yield start
    for loop in loops:
        loop.close()


@pytest.mark.parametrize(
    ("trigger", "notify", "mask", "ask_from"),
    [
        ("level", False, IN, UNLIMITED),
        ("level", True, IN | RDHUP, UNLIMITED),
        ("edge", False, IN | ET | RDHUP, RECEIVE),
        ("edge", True, IN | ET | RDHUP, RECEIVE),
        ("oneshot", False, IN | ONESHOT, 0),
        ("oneshot", True, IN | ONESHOT | RDHUP, 0),
    ],
)
def test_how_connections_are_registered(make: Make, trigger: str, notify: bool, mask: int, ask_from: int):
    """The mask of a connection that listens, and the size of a piece after which epoll is asked again."""
    context = make(trigger=trigger, notify_disconnects=notify)
    assert context.watch_mask == mask
    assert context.ask_from == ask_from
    assert context.oneshot == (trigger == "oneshot")
    assert context.disconnect_mask == (RDHUP if notify else 0)


@pytest.mark.parametrize(
    ("options", "fast"),
    [
        ({}, True),
        ({"trigger": "edge"}, True),
        ({"notify_disconnects": True}, True),
        ({"trigger": "oneshot"}, False),
        ({"corked": True}, False),
    ],
)
def test_the_fast_path_sends_and_does_nothing_else(make: Make, options: dict[str, Any], fast: bool):
    """It is off if a response needs more than to be sent, and while the worker drains, because each response then closes."""
    context = make(**options)
    assert context.fast_path is fast
    context.drain()
    assert context.draining
    assert not context.fast_path
    assert context.known == {}


def test_limits_and_timeouts_have_names():
    """They are keyword-only, because four numbers in a row are easily mixed up, and they never change."""
    with pytest.raises(TypeError):
        Limits(100, 5, 1000, 50)
    with pytest.raises(TypeError):
        Timeouts(1, 2, 3, 4)
    with pytest.raises(AttributeError):
        LIMITS.max_body = 51
    assert Timeouts(header=1, body=2, write=3, keep_alive=4).ping_interval == NEVER


def test_limits_reach_the_reader(make: Make):
    """Heads are judged by the context's limits."""
    context = make()
    assert context.read_head(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n", 0, None) is not None
    with pytest.raises(Exception, match=r"line|long|over"):
        context.read_head(b"GET /" + b"x" * 100 + b" HTTP/1.1\r\nHost: a\r\n\r\n", 0, None)


def test_a_tick_sets_the_date_and_the_deadlines(make: Make):
    """Deadlines run from the end of the second that begins, so they are never early."""
    context = make()
    context.receive_size = RECEIVE
    context.tick(100.0, 0.0)
    assert context.date == b"Date: Thu, 01 Jan 1970 00:00:00 GMT\r\n"
    assert context.date_end == context.date + b"\r\n"
    assert context.close_end == b"Connection: close\r\n" + context.date_end
    assert context.keep_end == b"Connection: keep-alive\r\n" + context.date_end
    assert context.now == 100 + TICK
    due = (context.header_due, context.body_due, context.write_due, context.idle_due, context.stream_due)
    assert due == (102, 103, 104, 105, 106)
    assert context.receive_size == RECEIVE_FIRST


def test_a_tick_calls_the_connections_that_are_late(make: Make):
    """A deadline that is now has passed. A handler that closes another connection does no harm."""
    context = make()
    early, now, late = clients = [Client(99.5), Client(100.0), Client(100.1)]
    context.connections.update(clients)
    early.on_deadline = lambda: context.connections.discard(now)  # type: ignore[method-assign]
    context.tick(100.0, 0.0)
    assert now.calls == ["deadline"]
    assert late.calls == []


def test_all_connections(make: Make):
    """Idle ones get their last chance together, and a child process closes its copies of the sockets."""
    context = make()
    clients = [Client(NEVER), Client(NEVER)]
    context.connections.update(clients)
    context.expire_idle(7.0)
    context.disown()
    assert [client.calls for client in clients] == [["expire 7.0", "close"]] * 2
