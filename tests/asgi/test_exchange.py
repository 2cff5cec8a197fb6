"""An ASGI application's call for an HTTP request: which state follows which event, and which bytes are sent.

The states are those of the table in `epollard.asgi.exchange`, in its order: call, body, response, client.

Long: the rows of one table.
"""

import asyncio
import contextvars
import os
import re
from pathlib import Path
from typing import Any

import pytest

from epollard.asgi import exchange as http
from epollard.asgi.exchange import CLIENT_LEFT, ClientDisconnected
from epollard.net.write_buffer import HIGH, LOW
from epollard.protocol.request import Request
from puppet import DISMISS, DRAIN, HALF_CLOSE, RECEIVE, RETURN, VANISH, Event, Worker, happen, outcome

GET = b"GET / HTTP/1.1\r\nHost: test\r\n\r\n"
GET_TE = b"GET / HTTP/1.1\r\nHost: test\r\nTE: trailers\r\n\r\n"
GET_10 = b"GET / HTTP/1.0\r\n\r\n"
GET_KEEP_10 = b"GET / HTTP/1.0\r\nConnection: keep-alive\r\n\r\n"
HEAD = b"HEAD / HTTP/1.1\r\nHost: test\r\n\r\n"
POST = b"POST / HTTP/1.1\r\nHost: test\r\nContent-Length: 5\r\n\r\n"
POST_MUCH = b"POST / HTTP/1.1\r\nHost: test\r\nContent-Length: 200000\r\n\r\n"
EXPECT = b"POST / HTTP/1.1\r\nHost: test\r\nContent-Length: 5\r\nExpect: 100-continue\r\n\r\n"

OK = b"HTTP/1.1 200 OK\r\n"
CHUNKED = OK + b"Transfer-Encoding: chunked\r\n\r\n"
ERROR = b"HTTP/1.1 500 Internal Server Error\r\nContent-Type: text/plain; charset=utf-8\r\nContent-Length: 22\r\n\r\n"
ERROR += b"Internal Server Error\n"
GONE = {"type": "http.disconnect"}
FAULT = ValueError("on purpose")


def start(*headers: tuple[bytes, bytes], status: int = 200, **more: Any) -> dict[str, Any]:
    return {"type": "http.response.start", "status": status, "headers": headers, **more}


def body(content: bytes = b"", more: bool = False) -> dict[str, Any]:
    return {"type": "http.response.body", "body": content, "more_body": more}


def request(content: bytes = b"", more: bool = False) -> dict[str, Any]:
    return {"type": "http.request", "body": content, "more_body": more}


def length(size: int) -> tuple[bytes, bytes]:
    return b"content-length", b"%d" % size


EVENTS = (b"content-type", b"text/event-stream")
HINT = {"type": "http.response.early_hint", "links": [b"</a.css>"]}
TRAILERS = {"type": "http.response.trailers", "headers": [(b"x", b"y")]}


# The request and what has happened so far; the event, its outcome (a pattern of an exception's text is enough, None: nothing
# or "sent"), the states after it, and the bytes that the client has received.
ROWS: list[tuple[bytes, list[Event], Event, Any, str, bytes]] = [
    # The request's body.
    (GET, [], RECEIVE, request(), "LATE CONSUMED AWAITED PRESENT", b""),
    (POST + b"12345", [], RECEIVE, request(b"12345"), "LATE CONSUMED AWAITED PRESENT", b""),
    (POST, [], b"12", None, "LATE ARRIVING AWAITED PRESENT", b""),
    (POST + b"12", [], RECEIVE, request(b"12", True), "LATE ARRIVING AWAITED PRESENT", b""),
    (POST, [b"12", b"34"], RECEIVE, request(b"1234", True), "LATE ARRIVING AWAITED PRESENT", b""),
    (POST, [b"12"], b"345", None, "LATE WHOLE AWAITED PRESENT", b""),
    (POST, [b"12", RECEIVE, b"345"], RECEIVE, request(b"345"), "LATE CONSUMED AWAITED PRESENT", b""),
    (POST_MUCH, [], bytes(LOW), None, "LATE ARRIVING AWAITED PRESENT", b""),
    (POST_MUCH, [bytes(LOW)], b"1", None, "LATE HELD AWAITED PRESENT", b""),
    (POST_MUCH, [bytes(LOW), b"1", b"2"], RECEIVE, request(bytes(LOW) + b"1", True), "LATE ARRIVING AWAITED PRESENT", b""),
    (POST_MUCH, [bytes(LOW), b"1", b"2", RECEIVE], RECEIVE, request(b"2", True), "LATE ARRIVING AWAITED PRESENT", b""),
    (EXPECT, [], start(), None, "LATE EXPECTED STARTED PRESENT", b""),
    (EXPECT, [], body(b"x"), "before http.response.start", "LATE EXPECTED AWAITED PRESENT", b""),
    (EXPECT, [start(), body(b"x", True)], RECEIVE, GONE, "LATE LOST OPEN PRESENT", CHUNKED.replace(
        b"Transfer-Encoding: chunked\r\n", b"Transfer-Encoding: chunked\r\nConnection: close\r\n") + b"1\r\nx\r\n"),
    (EXPECT + b"12345", [], RECEIVE, request(b"12345"), "LATE CONSUMED AWAITED PRESENT", b""),
    # The response's beginning.
    (GET, [], start(), None, "LATE WHOLE STARTED PRESENT", b""),
    (GET, [start()], start(), "start twice", "LATE WHOLE STARTED PRESENT", b""),
    (GET, [start(), body()], start(), "start twice", "LATE WHOLE DONE PRESENT", OK + b"Content-Length: 0\r\n\r\n"),
    (GET, [], start(status=99), "not a final status|bad status", "LATE WHOLE AWAITED PRESENT", b""),
    (GET, [], start((b"x", b"a\r\nb")), "bad value", "LATE WHOLE AWAITED PRESENT", b""),
    (GET, [], body(), "before http.response.start", "LATE WHOLE AWAITED PRESENT", b""),
    (GET, [start()], {"type": "http.response.body", "body": "x"}, "bytes, not str", "LATE WHOLE STARTED PRESENT", b""),
    (GET, [], {"type": "http.nonsense"}, "unknown or not offered", "LATE WHOLE AWAITED PRESENT", b""),
    # The usual response, and those that are not.
    (GET, [start()], body(b"four"), None, "LATE WHOLE DONE PRESENT", OK + b"Content-Length: 4\r\n\r\nfour"),
    (GET, [start(length(4))], body(b"four"), None, "LATE WHOLE DONE PRESENT", OK + b"content-length: 4\r\n\r\nfour"),
    (GET, [start(), DRAIN], body(b"four"), None, "LATE WHOLE DONE PRESENT",
     OK + b"Content-Length: 4\r\nConnection: close\r\n\r\nfour<end>"),
    (GET_10, [start()], body(b"four"), None, "LATE WHOLE DONE PRESENT",
     OK + b"Content-Length: 4\r\nConnection: close\r\n\r\nfour<end>"),
    (GET_KEEP_10, [start()], body(b"four"), None, "LATE WHOLE DONE PRESENT",
     OK + b"Content-Length: 4\r\nConnection: keep-alive\r\n\r\nfour"),
    (HEAD, [start()], body(b"four"), None, "LATE WHOLE DONE PRESENT", OK + b"Content-Length: 4\r\n\r\n"),
    (HEAD, [start(length(9))], body(b"four"), None, "LATE WHOLE DONE PRESENT", OK + b"content-length: 9\r\n\r\n"),
    (GET, [start(status=204)], body(b"four"), None, "LATE WHOLE DONE PRESENT", b"HTTP/1.1 204 No Content\r\n\r\n"),
    (GET, [start((b"connection", b"close"))], body(b"x"), None, "LATE WHOLE DONE PRESENT",
     OK + b"Content-Length: 1\r\nConnection: close\r\n\r\nx<end>"),
    # Piece by piece.
    (GET, [start()], body(b"fo", True), None, "LATE WHOLE OPEN PRESENT", CHUNKED + b"2\r\nfo\r\n"),
    (GET, [start()], body(b"", True), None, "LATE WHOLE OPEN PRESENT", CHUNKED),
    (GET, [start(), body(b"fo", True)], body(b"ur"), None, "LATE WHOLE DONE PRESENT",
     CHUNKED + b"2\r\nfo\r\n2\r\nur\r\n0\r\n\r\n"),
    (GET, [start(), body(b"x")], body(b"y"), "after the end of the response", "LATE WHOLE DONE PRESENT",
     OK + b"Content-Length: 1\r\n\r\nx"),
    (GET_10, [start(), body(b"fo", True)], body(b"ur"), None, "LATE WHOLE DONE PRESENT",
     OK + b"Connection: close\r\n\r\nfour<end>"),
    (GET, [start(length(4)), body(b"fo", True)], body(b"ur"), None, "LATE WHOLE DONE PRESENT",
     OK + b"content-length: 4\r\n\r\nfour"),
    # A body that does not have its length.
    (GET, [start(length(3)), body(b"ab", True)], body(b"cdef"), None, "LATE WHOLE DONE PRESENT",
     OK + b"content-length: 3\r\n\r\nabc"),
    (GET, [start(length(3))], body(b"abcdef"), None, "LATE WHOLE DONE PRESENT", OK + b"content-length: 3\r\n\r\nabc"),
    (GET, [start(length(9))], body(b"abc"), None, "LATE WHOLE DONE GONE", OK + b"content-length: 9\r\n\r\nabc<end>"),
    # Extensions.
    (GET, [], HINT, None, "LATE WHOLE AWAITED PRESENT", b"HTTP/1.1 103 Early Hints\r\nLink: </a.css>\r\n\r\n"),
    (GET, [start()], HINT, "after http.response.start", "LATE WHOLE STARTED PRESENT", b""),
    (GET_10, [], HINT, "unknown or not offered", "LATE WHOLE AWAITED PRESENT", b""),
    (GET, [start(trailers=True)], TRAILERS, "unknown or not offered", "LATE WHOLE STARTED PRESENT", b""),
    (GET_TE, [], TRAILERS, "before the start", "LATE WHOLE AWAITED PRESENT", b""),
    (GET_TE, [start()], TRAILERS, "not announced", "LATE WHOLE STARTED PRESENT", b""),
    (GET_TE, [start(trailers=True)], body(b"x"), None, "LATE WHOLE OPEN PRESENT", CHUNKED + b"1\r\nx\r\n"),
    (GET_TE, [start(trailers=True), body(b"x")], TRAILERS, None, "LATE WHOLE DONE PRESENT",
     CHUNKED + b"1\r\nx\r\n0\r\nx: y\r\n\r\n"),
    (GET_TE, [start(trailers=True)], TRAILERS, None, "LATE WHOLE DONE PRESENT", CHUNKED + b"0\r\nx: y\r\n\r\n"),
    (GET_TE, [start(trailers=True)], {**TRAILERS, "more_trailers": True}, None, "LATE WHOLE STARTED PRESENT", b""),
    (GET_TE, [start(length(1), trailers=True), body(b"x")], TRAILERS, None, "LATE WHOLE DONE PRESENT",
     OK + b"content-length: 1\r\n\r\nx"),
    (GET_TE, [start(trailers=True), TRAILERS], TRAILERS, "after the end", "LATE WHOLE DONE PRESENT",
     CHUNKED + b"0\r\nx: y\r\n\r\n"),
    # The application's end.
    (GET, [], RETURN, None, "RETURNED WHOLE DONE PRESENT", ERROR),
    (GET, [start()], RETURN, None, "RETURNED WHOLE DONE PRESENT", ERROR),
    (GET, [start(), body(b"x", True)], RETURN, None, "RETURNED WHOLE DONE GONE", CHUNKED + b"1\r\nx\r\n<end>"),
    (GET, [start(), body(b"x")], RETURN, None, "RETURNED WHOLE DONE PRESENT", OK + b"Content-Length: 1\r\n\r\nx"),
    (GET, [], FAULT, None, "RETURNED WHOLE DONE PRESENT", ERROR),
    (GET, [start()], FAULT, None, "RETURNED WHOLE DONE PRESENT", ERROR),
    (GET, [start(), body(b"x", True)], FAULT, None, "RETURNED WHOLE DONE GONE", CHUNKED + b"1\r\nx\r\n<end>"),
    (GET, [start(), body(b"x")], FAULT, None, "RETURNED WHOLE DONE PRESENT",
     OK + b"Content-Length: 1\r\n\r\nx"),
    # The client's end.
    (GET, [], HALF_CLOSE, None, "LATE WHOLE AWAITED LEFT", b""),
    (GET, [HALF_CLOSE], RECEIVE, request(), "LATE CONSUMED AWAITED LEFT", b""),
    (GET, [HALF_CLOSE, RECEIVE], RECEIVE, GONE, "LATE CONSUMED AWAITED LEFT", b""),
    (GET, [HALF_CLOSE, start()], body(b"x"), None, "LATE WHOLE DONE LEFT", OK + b"Content-Length: 1\r\n\r\nx<end>"),
    (GET, [HALF_CLOSE], RETURN, None, "RETURNED WHOLE DONE LEFT", b"<end>"),
    (GET, [start(), body(b"x", True), HALF_CLOSE], RETURN, None, "RETURNED WHOLE DONE LEFT", CHUNKED + b"1\r\nx\r\n<end>"),
    (GET, [], VANISH, None, "LATE WHOLE AWAITED GONE", b"<end>"),
    (GET, [VANISH], start(), "the client is gone", "LATE WHOLE AWAITED GONE", b"<end>"),
    (GET, [VANISH], RETURN, None, "RETURNED WHOLE DONE GONE", b"<end>"),
    (GET, [VANISH], ClientDisconnected("gone"), None, "RETURNED WHOLE DONE GONE", b"<end>"),
    (POST, [b"12"], HALF_CLOSE, None, "LATE ARRIVING AWAITED GONE", b"<end>"),
    (POST, [b"12", HALF_CLOSE], RECEIVE, request(b"12", True), "LATE ARRIVING AWAITED GONE", b"<end>"),
    (POST, [b"12", HALF_CLOSE, RECEIVE], RECEIVE, GONE, "LATE ARRIVING AWAITED GONE", b"<end>"),
    (EXPECT, [VANISH], RECEIVE, GONE, "LATE LOST AWAITED GONE", b"<end>"),
    # The server's end.
    (GET, [start(EVENTS), body(b"x", True)], DISMISS, None, "LATE WHOLE DONE GONE",
     OK + b"content-type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nx\r\n0\r\n\r\n<end>"),
    (GET, [start(EVENTS), body(b"x", True), DISMISS], body(b"y"), "the client is gone", "LATE WHOLE DONE GONE",
     OK + b"content-type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nx\r\n0\r\n\r\n<end>"),
    (GET, [start(), body(b"x", True)], DISMISS, None, "LATE WHOLE OPEN PRESENT", CHUNKED + b"1\r\nx\r\n"),
    (GET, [start(EVENTS)], DISMISS, None, "LATE WHOLE STARTED PRESENT", b""),
    (GET, [], DISMISS, None, "LATE WHOLE AWAITED PRESENT", b""),
]  # fmt: skip


@pytest.mark.parametrize(("data", "before", "event", "expected", "states", "sent"), ROWS, ids=range(len(ROWS)))
def test_states(
    worker: Worker, data: bytes, before: list[Event], event: Event, expected: Any, states: str, sent: bytes
) -> None:
    """Each event in each state leads to one state, one outcome for the application, and these bytes for the client."""
    client = worker.client(data)
    for earlier in before:
        happen(worker, client, earlier)
    found = happen(worker, client, event)
    if isinstance(expected, str):
        assert isinstance(found, Exception)
        assert re.search(expected, str(found))
    else:
        assert found == expected
    assert worker.call.states == states
    assert client.received() == sent


def test_every_state_is_reached() -> None:
    """The rows leave out no state of the table, except that of the first step, which has tests of its own."""
    reached = {name for row in ROWS for name in row[4].split()}
    table = (http.__doc__ or "").partition("\n\n    call")[2]
    named = set(re.findall(r"\b[A-Z_]{4,}\b", table))
    assert named - reached == {"FIRST_STEP"}
    assert reached <= named


# --- The first step


def test_a_response_of_the_first_step_goes_back_as_bytes(worker: Worker) -> None:
    """The connection sends it in the turn that read the request, and the call is never listed as one that waits."""
    worker.puppet.first = [start(), body(b"four")]
    worker.puppet.returns = True
    client = worker.client(GET * 3)
    assert client.received() == (OK + b"Content-Length: 4\r\n\r\nfour") * 3
    assert [call.states for call in worker.puppet.calls] == ["RETURNED WHOLE DONE PRESENT"] * 3
    assert not worker.runner._calls
    assert worker.runner.answered == 3


def test_a_call_that_goes_on_after_its_response_is_late(worker: Worker) -> None:
    """The client has its response, and may ask again, while the call still runs."""
    worker.puppet.first = [start(), body(b"four")]
    client = worker.client(GET)
    first = worker.call
    assert client.received() == OK + b"Content-Length: 4\r\n\r\nfour"
    assert first.states == "LATE WHOLE DONE PRESENT"
    client.send(GET)
    assert client.received() == OK + b"Content-Length: 4\r\n\r\nfour"
    assert worker.runner._calls
    for call in worker.puppet.calls:
        call.returned.set_result(None)
    worker.turn()
    assert not worker.runner._calls


def test_a_stream_begun_in_the_first_step(worker: Worker) -> None:
    """Pieces are written as they come, in the first step too."""
    worker.puppet.first = [start(), body(b"fo", True)]
    client = worker.client(GET)
    assert client.received() == CHUNKED + b"2\r\nfo\r\n"
    assert worker.send(body(b"ur")) is None
    assert client.received() == b"2\r\nur\r\n0\r\n\r\n"


def test_an_application_that_fails_in_its_first_step(worker: Worker) -> None:
    """The 500 goes back as the response of the first step."""
    worker.puppet.first = [start(status=99)]
    client = worker.client(GET + GET)
    assert client.received() == ERROR * 2
    assert {call.states for call in worker.puppet.calls} == {"RETURNED WHOLE DONE PRESENT"}


def test_a_request_that_is_refused_at_once(worker: Worker) -> None:
    """A body that breaks a rule with its first bytes: the application is not called."""
    client = worker.client(b"POST / HTTP/1.1\r\nHost: test\r\nTransfer-Encoding: chunked\r\n\r\nnonsense\r\n")
    assert client.received().startswith(b"HTTP/1.1 400 ")
    assert worker.puppet.calls == []


# --- Waiting


def test_receive_waits_for_each_piece(worker: Worker) -> None:
    """Without a piece, or the body's end, there is nothing to receive."""
    client = worker.client(POST)
    task = worker.receive()
    assert not task.done()
    client.send(b"12")
    assert outcome(task) == request(b"12", True)
    task = worker.receive()
    client.send(b"345")
    assert outcome(task) == request(b"345")


def test_two_tasks_that_receive(worker: Worker) -> None:
    """Each message goes to one of them; the end goes to both."""
    client = worker.client(POST)
    tasks = [worker.receive() for _ in range(2)]
    client.send(b"12345")
    assert [outcome(task) for task in tasks if task.done()] == [request(b"12345")]
    client.connection.close()
    worker.turn()
    assert sorted(str(outcome(task)["type"]) for task in tasks) == ["http.disconnect", "http.request"]


def test_a_receive_that_is_cancelled_takes_nothing(worker: Worker) -> None:
    """The next one has what comes."""
    client = worker.client(POST)
    task = worker.receive()
    task.cancel()
    worker.turn()
    client.send(b"12345")
    assert isinstance(outcome(task), asyncio.CancelledError)
    assert worker.receive() == request(b"12345")


@pytest.mark.parametrize("event", ["response", "half close", "close"])
def test_a_task_that_listens_is_notified(worker: Worker, event: str) -> None:
    """`http.disconnect` comes when the response is complete, or the client has left."""
    client = worker.client(GET)
    worker.receive()
    task = worker.receive()
    assert not task.done()
    if event == "response":
        happen(worker, client, start())
        happen(worker, client, body(b"x"))
    else:
        happen(worker, client, HALF_CLOSE if event == "half close" else VANISH)
        worker.turn()
    assert outcome(task) == GONE


def test_100_continue_is_sent_when_the_application_receives(worker: Worker) -> None:
    """Not before, and once only (RFC 9110 10.1.1)."""
    client = worker.client(EXPECT)
    assert client.received() == b""
    task = worker.receive()
    assert client.received() == b"HTTP/1.1 100 Continue\r\n\r\n"
    client.send(b"12345")
    assert outcome(task) == request(b"12345")
    assert client.received() == b""


def test_send_waits_for_a_client_that_does_not_read(worker: Worker) -> None:
    """From HIGH on, until LOW: `send` returns when the client has taken enough."""
    client = worker.client(GET)
    worker.send(start())
    task = worker.send(body(bytes(4 * HIGH), True))
    assert not task.done()
    received = 0
    while not task.done():
        received += len(client.raw())
        worker.turn()
    assert outcome(task) is None
    assert received > 2 * HIGH


def test_a_client_that_leaves_while_send_waits(worker: Worker) -> None:
    """`send` raises, unless the response was complete."""
    client = worker.client(GET)
    worker.send(start())
    task = worker.send(body(bytes(4 * HIGH), True))
    client.close()
    assert isinstance(outcome(task), ClientDisconnected)

    client = worker.client(GET)
    worker.send(start())
    task = worker.send(body(bytes(4 * HIGH)))
    client.close()
    assert outcome(task) is None


# --- What follows


def test_the_next_request_is_not_a_part_of_this_ones_task() -> None:
    """Pipelined requests are answered in order, each in a context and a task of its own."""
    mark = contextvars.ContextVar("mark", default="clean")
    seen: list[tuple[str, bool]] = []
    tasks: list[Any] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        seen.append((mark.get(), asyncio.current_task() in tasks))
        mark.set("dirty")
        tasks.append(asyncio.current_task())
        if scope["path"] == "/late":
            await asyncio.sleep(0)
        await send(start())
        await send(body(scope["path"].encode()))

    paths = [b"/late", b"/a", b"/late", b"/b"]
    with Worker(app) as worker:
        client = worker.client(b"".join(GET.replace(b"/", path, 1) for path in paths))
        responses = [OK + b"Content-Length: %d\r\n\r\n%b" % (len(path), path) for path in paths]
        assert client.received() == b"".join(responses)
    assert seen == [("clean", False)] * 4


@pytest.mark.parametrize(
    ("events", "code", "size"),
    [
        ([start(), body(b"four")], 200, 4),
        ([start(), body(b"fo", True), body(b"ur")], 200, 4),
        ([start(length(3)), body(b"four")], 200, 3),
        ([start(), body(b"fo", True), VANISH, RETURN], 200, 2),
        ([VANISH, RETURN], CLIENT_LEFT, 0),
        ([HALF_CLOSE, RETURN], CLIENT_LEFT, 0),
        ([RETURN], 500, 22),
        ([FAULT], 500, 22),
    ],
)
def test_each_call_is_logged_once(events: list[Event], code: int, size: int) -> None:
    """Status and bytes of body, without framing; 499 where the client left before there was a response."""
    lines: list[tuple[int, int]] = []

    def access(peer: str, request: Request, code: int, sent: int, seconds: float) -> None:
        lines.append((code, sent))
        assert (peer, request.line.target) == ("127.0.0.1", "/")
        assert 0 <= seconds < 60

    with Worker(access=access) as worker:
        client = worker.client(GET)
        for event in events:
            happen(worker, client, event)
        assert lines == [(code, size)]
        assert worker.runner.answered == 1


@pytest.mark.parametrize(
    ("cause", "expected"),
    [
        (ClientDisconnected("gone"), ""),
        (asyncio.CancelledError(), ""),
        (ExceptionGroup("of a framework", [ClientDisconnected("gone")]), "the application raised ExceptionGroup"),
        (ExceptionGroup("of a framework", [ClientDisconnected("gone"), FAULT]), "ExceptionGroup: of a framework"),
        (FAULT, "ValueError: on purpose"),
    ],
)
def test_an_application_is_not_blamed_for_its_client(
    worker: Worker, capfd: pytest.CaptureFixture[str], cause: BaseException, expected: str
) -> None:
    """The log has no traceback of an exception whose root is that the client left; it has every other one."""
    client = worker.client(GET)
    happen(worker, client, VANISH)
    happen(worker, client, cause)
    logged = capfd.readouterr().err
    assert expected in logged
    assert bool(logged) == bool(expected)
    assert ("Traceback" in logged) == (FAULT in getattr(cause, "exceptions", (cause,)))


# --- Files


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "file"
    path.write_bytes(b"0123456789")
    return path


def test_a_file_by_its_path(worker: Worker, path: Path) -> None:
    """With its length, and nothing of it stays open."""
    client = worker.client(GET)
    before = os.listdir("/proc/self/fd")
    worker.send(start())
    assert worker.send({"type": "http.response.pathsend", "path": str(path)}) is None
    assert client.received() == OK + b"Content-Length: 10\r\n\r\n0123456789"
    assert os.listdir("/proc/self/fd") == before


@pytest.mark.parametrize(
    ("piece", "sent", "position"),
    [
        ({}, b"23456789", 10),
        ({"count": 3}, b"234", 5),
        ({"count": 100}, b"23456789", 10),
        ({"offset": 0}, b"0123456789", 2),
        ({"offset": 4, "count": 2}, b"45", 2),
        ({"offset": 100}, b"", 2),
        ({"count": 0}, b"", 2),
    ],
)
@pytest.mark.parametrize("more", [False, True], ids=["last", "more"])
def test_a_piece_of_an_open_file(
    worker: Worker, path: Path, piece: dict[str, Any], sent: bytes, position: int, more: bool
) -> None:
    """From its position, which moves, or from an offset, which leaves it where it is."""
    client = worker.client(GET)
    with path.open("rb", buffering=0) as file:
        file.seek(2)
        worker.send(start())
        message = {"type": "http.response.zerocopysend", "file": file, "more_body": more, **piece}
        assert worker.send(message) is None
        assert file.tell() == position
    chunk = b"%x\r\n%b\r\n" % (len(sent), sent) if sent else b""
    expected = CHUNKED + chunk if more else OK + b"Content-Length: %d\r\n\r\n" % len(sent) + sent
    assert client.received() == expected


@pytest.mark.parametrize(
    ("what", "error"), [("fifo", "not a regular file"), ("nothing", "No such file"), ("before", "offset -1 is before the file")]
)
def test_what_cannot_be_sent_as_a_file(worker: Worker, path: Path, what: str, error: str) -> None:
    """An error of the application, which leaves no descriptor open and may still answer otherwise."""
    client = worker.client(GET)
    before = os.listdir("/proc/self/fd")
    worker.send(start())
    if what == "before":
        with path.open("rb") as file:
            found = worker.send({"type": "http.response.zerocopysend", "file": file, "offset": -1})
    else:
        os.mkfifo(path.parent / "fifo")
        found = worker.send({"type": "http.response.pathsend", "path": str(path.parent / what)})
    assert error in str(found)
    assert os.listdir("/proc/self/fd") == before
    worker.send(body(b"x"))
    assert client.received() == OK + b"Content-Length: 1\r\n\r\nx"
