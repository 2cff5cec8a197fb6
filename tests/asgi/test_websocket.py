"""An ASGI application's call for a WebSocket: which state follows which event, and which bytes are sent.

The states are those of the table in `epollard.asgi.websocket`. What frames mean is tested in tests/protocol.
"""

import asyncio
import re
from typing import Any

import pytest

from epollard.asgi import websocket
from epollard.asgi.exchange import CLIENT_LEFT, ClientDisconnected
from epollard.asgi.websocket import CLOSE_SECONDS, QUEUE
from epollard.net.write_buffer import HIGH
from epollard.protocol.request import Request
from puppet import DISMISS, DRAIN, HALF_CLOSE, RECEIVE, RETURN, SILENCE, VANISH, Event, Worker, happen, outcome

# The key, and the answer to it, are those of RFC 6455 1.3.
ASK = (
    b"GET /chat HTTP/1.1\r\nHost: test\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n"
    b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Protocol: a, b\r\n\r\n"
)
SWITCHED = (
    b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\n"
)
ACCEPT: dict[str, Any] = {"type": "websocket.accept"}
CLOSE: dict[str, Any] = {"type": "websocket.close"}
CONNECT = {"type": "websocket.connect"}
FAULT = ValueError("on purpose")


def refused(status: str) -> bytes:
    text = status.encode() + b"\n"
    fields = b"Content-Type: text/plain\r\nContent-Length: %d\r\nConnection: close\r\n\r\n" % len(text)
    return b"HTTP/1.1 " + status.encode() + b"\r\n" + fields + text + b"<end>"


def masked(opcode: int, payload: bytes = b"") -> bytes:
    """A frame of a client, whose mask is zero."""
    size = len(payload)
    return bytes((128 | opcode, 128 | size)) + bytes(4) + payload if size < 126 else b""


def frame(opcode: int, payload: bytes = b"") -> bytes:
    """A frame of the server."""
    return bytes((128 | opcode, len(payload))) + payload


def close(code: int, reason: bytes = b"") -> bytes:
    """The content of a close frame."""
    return code.to_bytes(2) + reason


def text(content: str) -> dict[str, Any]:
    return {"type": "websocket.send", "text": content}


def received(content: str | bytes) -> dict[str, Any]:
    return {"type": "websocket.receive", "text" if isinstance(content, str) else "bytes": content}


def disconnect(code: int, reason: str = "") -> dict[str, Any]:
    return {"type": "websocket.disconnect", "code": code, "reason": reason}


def deny(status: int = 401) -> dict[str, Any]:
    return {"type": "websocket.http.response.start", "status": status, "headers": []}


def deny_body(content: bytes, more: bool = False) -> dict[str, Any]:
    return {"type": "websocket.http.response.body", "body": content, "more_body": more}


HELLO = masked(1, b"hello")
PONG, PING, CLOSED = masked(10), frame(9), masked(8, close(1000))
DENIED = b"HTTP/1.1 401 Unauthorized\r\nContent-Length: 2\r\n\r\nno"


# What has happened since the handshake's request; the event, its outcome (for an exception a pattern of its text, None:
# nothing, or "sent"), the state after it, and all bytes that the client has received.
ROWS: list[tuple[list[Event], Event, Any, str, bytes]] = [
    # The handshake.
    ([], RECEIVE, CONNECT, "CONNECTING", b""),
    ([], ACCEPT, None, "OPEN", SWITCHED),
    ([], {**ACCEPT, "subprotocol": "b", "headers": [(b"x", b"y")]}, None, "OPEN", SWITCHED.replace(
        b"\r\n\r\n", b"\r\nSec-WebSocket-Protocol: b\r\nx: y\r\n\r\n")),
    ([], {**ACCEPT, "subprotocol": "c"}, "has not offered the subprotocol 'c'", "CONNECTING", b""),
    ([ACCEPT], ACCEPT, "websocket.accept after a response", "OPEN", SWITCHED),
    ([], text("x"), "websocket.send before websocket.accept", "CONNECTING", b""),
    ([], {"type": "websocket.nonsense"}, "unknown: 'websocket.nonsense'", "CONNECTING", b""),
    ([], CLOSE, None, "CLOSED", refused("403 Forbidden")),
    ([CLOSE, RECEIVE], RECEIVE, disconnect(1006), "CLOSED", refused("403 Forbidden")),
    ([CLOSE], ACCEPT, "the WebSocket is closed", "CLOSED", refused("403 Forbidden")),
    ([], RETURN, None, "CLOSED", refused("500 Internal Server Error")),
    ([], FAULT, None, "CLOSED", refused("500 Internal Server Error")),
    ([DRAIN], asyncio.CancelledError(), None, "CLOSED", refused("503 Service Unavailable")),
    ([], HALF_CLOSE, None, "CLOSED", b"<end>"),
    ([], VANISH, None, "CLOSED", b"<end>"),
    ([HALF_CLOSE, RECEIVE], RECEIVE, disconnect(1006), "CLOSED", b"<end>"),
    # A denial: a response of HTTP.
    ([], deny(), None, "CONNECTING", b""),
    ([deny()], deny_body(b"no"), None, "CLOSED", DENIED),
    ([deny(), deny_body(b"no"), RECEIVE], RECEIVE, disconnect(1006), "CLOSED", DENIED),
    ([deny(), deny_body(b"no")], RETURN, None, "CLOSED", DENIED),
    ([deny()], ACCEPT, "websocket.accept after a response", "CONNECTING", b""),
    ([deny()], CLOSE, "websocket.close within a denial", "CONNECTING", b""),
    ([ACCEPT], deny(), "websocket.http.response.start after websocket.accept", "OPEN", SWITCHED),
    # Messages.
    ([ACCEPT], text("hé"), None, "OPEN", SWITCHED + frame(1, b"h\xc3\xa9")),
    ([ACCEPT], {"type": "websocket.send", "bytes": bytearray(b"\0")}, None, "OPEN", SWITCHED + frame(2, b"\0")),
    ([ACCEPT], {"type": "websocket.send"}, "has neither text nor bytes", "OPEN", SWITCHED),
    ([RECEIVE, ACCEPT, HELLO], RECEIVE, received("hello"), "OPEN", SWITCHED),
    ([RECEIVE, ACCEPT, masked(2, b"\0")], RECEIVE, received(b"\0"), "OPEN", SWITCHED),
    ([RECEIVE, ACCEPT, HELLO, masked(1, b"2"), RECEIVE], RECEIVE, received("2"), "OPEN", SWITCHED),
    ([RECEIVE, HELLO, ACCEPT], RECEIVE, received("hello"), "OPEN", SWITCHED),
    ([ACCEPT], masked(9, b"ping"), None, "OPEN", SWITCHED + frame(10, b"ping")),
    # The client closes.
    ([ACCEPT], CLOSED, None, "CLOSED", SWITCHED + frame(8, close(1000)) + b"<end>"),
    ([ACCEPT], masked(8), None, "CLOSED", SWITCHED + frame(8) + b"<end>"),
    ([RECEIVE, ACCEPT, masked(8)], RECEIVE, disconnect(1005), "CLOSED", SWITCHED + frame(8) + b"<end>"),
    ([RECEIVE, ACCEPT, masked(8, close(3000, b"bye"))], RECEIVE, disconnect(3000, "bye"), "CLOSED",
     SWITCHED + frame(8, close(3000)) + b"<end>"),
    ([RECEIVE, ACCEPT, HELLO, CLOSED], RECEIVE, received("hello"), "CLOSED", SWITCHED + frame(8, close(1000)) + b"<end>"),
    ([ACCEPT, CLOSED], text("x"), "the WebSocket is closed", "CLOSED", SWITCHED + frame(8, close(1000)) + b"<end>"),
    ([ACCEPT, CLOSED], RETURN, None, "CLOSED", SWITCHED + frame(8, close(1000)) + b"<end>"),
    ([ACCEPT], HALF_CLOSE, None, "CLOSED", SWITCHED + b"<end>"),
    ([RECEIVE, ACCEPT, VANISH], RECEIVE, disconnect(1006), "CLOSED", SWITCHED + b"<end>"),
    ([ACCEPT, VANISH], text("x"), "the WebSocket is closed", "CLOSED", SWITCHED + b"<end>"),
    ([ACCEPT, VANISH], ClientDisconnected("gone"), None, "CLOSED", SWITCHED + b"<end>"),
    ([ACCEPT], b"\x81\x01a", None, "CLOSED", SWITCHED + frame(8, close(1002, b"frame without a mask")) + b"<end>"),
    # The application closes.
    ([ACCEPT], CLOSE, None, "CLOSING", SWITCHED + frame(8, close(1000))),
    ([ACCEPT], {**CLOSE, "code": 3000, "reason": "bye"}, None, "CLOSING", SWITCHED + frame(8, close(3000, b"bye"))),
    ([ACCEPT], {**CLOSE, "code": 1006}, "", "OPEN", SWITCHED),
    ([ACCEPT], RETURN, None, "CLOSING", SWITCHED + frame(8, close(1000))),
    ([ACCEPT], FAULT, None, "CLOSING", SWITCHED + frame(8, close(1011))),
    ([ACCEPT, CLOSE], text("x"), "the WebSocket is closed", "CLOSING", SWITCHED + frame(8, close(1000))),
    ([ACCEPT, CLOSE], CLOSE, None, "CLOSING", SWITCHED + frame(8, close(1000))),
    ([RECEIVE, ACCEPT, HELLO, CLOSE], RECEIVE, disconnect(1000), "CLOSING", SWITCHED + frame(8, close(1000))),
    ([RECEIVE, ACCEPT, CLOSE, HELLO], RECEIVE, disconnect(1000), "CLOSING", SWITCHED + frame(8, close(1000))),
    ([ACCEPT, CLOSE], masked(9, b"ping"), None, "CLOSING", SWITCHED + frame(8, close(1000))),
    ([ACCEPT, CLOSE], CLOSED, None, "CLOSED", SWITCHED + frame(8, close(1000)) + b"<end>"),
    ([ACCEPT, CLOSE], HALF_CLOSE, None, "CLOSED", SWITCHED + frame(8, close(1000)) + b"<end>"),
    ([ACCEPT, CLOSE], SILENCE, None, "CLOSED", SWITCHED + frame(8, close(1000)) + b"<end>"),
    # Silence.
    ([ACCEPT], SILENCE, None, "OPEN", SWITCHED + PING),
    ([ACCEPT, SILENCE, PONG], SILENCE, None, "OPEN", SWITCHED + PING + PING),
    ([ACCEPT, SILENCE, HELLO], SILENCE, None, "OPEN", SWITCHED + PING + PING),
    ([ACCEPT, SILENCE], SILENCE, None, "CLOSED",
     SWITCHED + PING + frame(8, close(1011, b"no answer to a ping")) + b"<end>"),
    ([RECEIVE, ACCEPT, SILENCE, SILENCE], RECEIVE, disconnect(1006, "no answer to a ping"), "CLOSED",
     SWITCHED + PING + frame(8, close(1011, b"no answer to a ping")) + b"<end>"),
    # The server's end.
    ([ACCEPT], DISMISS, None, "CLOSING", SWITCHED + frame(8, close(1012, b"service restart"))),
    ([RECEIVE, ACCEPT, DISMISS], RECEIVE, disconnect(1012, "service restart"), "CLOSING",
     SWITCHED + frame(8, close(1012, b"service restart"))),
    ([], DISMISS, None, "CONNECTING", b""),
    ([RECEIVE, RECEIVE], DISMISS, None, "CLOSED", refused("503 Service Unavailable")),
]  # fmt: skip


@pytest.mark.parametrize(("before", "event", "expected", "state", "sent"), ROWS, ids=range(len(ROWS)))
def test_states(worker: Worker, before: list[Event], event: Event, expected: Any, state: str, sent: bytes) -> None:
    """Each event in each state leads to one state, one outcome for the application, and these bytes for the client."""
    client = worker.client(ASK)
    for earlier in before:
        happen(worker, client, earlier)
    found = happen(worker, client, event)
    if isinstance(expected, str):
        assert isinstance(found, Exception)
        assert re.search(expected, str(found))
    else:
        assert found == expected
    assert worker.call.state == state
    assert client.received() == sent


def test_every_state_is_reached() -> None:
    """The rows leave out no state of the table."""
    named = re.findall(r"^    ([A-Z]{2,})  ", websocket.__doc__ or "", re.MULTILINE)
    assert {row[3] for row in ROWS} == set(named)


def test_a_handshake_that_is_refused(worker: Worker) -> None:
    """The application is not called for a request that breaks RFC 6455."""
    client = worker.client(ASK.replace(b"Version: 13", b"Version: 8"))
    assert client.received().startswith(b"HTTP/1.1 426 ")
    assert worker.puppet.calls == []


def test_a_call_that_ends_in_its_first_step() -> None:
    """It is not listed as one that waits."""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        assert await receive() == CONNECT
        await send(CLOSE)

    with Worker(app) as worker:
        assert worker.client(ASK).received() == refused("403 Forbidden")
        assert not worker.runner._calls


# --- Waiting


def test_tasks_that_receive_at_once(worker: Worker) -> None:
    """Each message goes to one task, also after the first of them has given up; the end goes to all."""
    client = worker.client(ASK)
    worker.receive()
    worker.send(ACCEPT)
    first, second, third = (worker.receive() for _ in range(3))
    first.cancel()
    worker.turn()
    client.send(HELLO)
    assert [outcome(task) for task in (second, third) if task.done()] == [received("hello")]
    client.send(CLOSED)
    assert sorted(outcome(task)["type"] for task in (second, third)) == ["websocket.disconnect", "websocket.receive"]


def test_a_client_of_an_application_that_does_not_receive(worker: Worker) -> None:
    """From a full queue on nothing is read; once the queue has room again everything arrives."""
    client = worker.client(ASK)
    worker.receive()
    worker.send(ACCEPT)
    client.send(HELLO * QUEUE)
    assert worker.call.exchange._held
    client.send(masked(1, b"held") + CLOSED)
    assert worker.call.state == "OPEN"
    for _ in range(QUEUE):
        assert worker.receive() == received("hello")
    assert not worker.call.exchange._held
    worker.turn()
    assert worker.call.state == "CLOSED"
    assert worker.receive() == received("held")
    assert worker.receive() == disconnect(1000)


def test_send_waits_for_a_client_that_does_not_read(worker: Worker) -> None:
    """All tasks that send wait while too much waits for the client, and go on when it has taken enough."""
    client = worker.client(ASK)
    worker.send(ACCEPT)
    message = {"type": "websocket.send", "bytes": bytes(3 * HIGH)}
    tasks = [worker.send(message) for _ in range(3)]
    assert not any(task.done() for task in tasks)
    tasks[0].cancel()
    size = 0
    while not all(task.done() for task in tasks):
        size += len(client.raw())
        worker.turn()
    assert [outcome(task) for task in tasks[1:]] == [None, None]
    assert size > 6 * HIGH


def test_a_client_that_leaves_while_send_waits(worker: Worker) -> None:
    """`send` goes on, and raises an exception from then on."""
    client = worker.client(ASK)
    worker.send(ACCEPT)
    task = worker.send({"type": "websocket.send", "bytes": bytes(4 * HIGH)})
    client.close()
    assert task.done()
    assert isinstance(worker.send(text("x")), ClientDisconnected)
    assert worker.call.state == "CLOSED"


def test_a_denial_that_is_listened_to(worker: Worker) -> None:
    """`receive` returns within a denial when it is complete."""
    client = worker.client(ASK)
    worker.receive()
    task = worker.receive()
    worker.send(deny())
    assert not task.done()
    worker.send(deny_body(b"no"))
    assert outcome(task) == disconnect(1006)
    assert client.received() == DENIED


def test_a_denial_without_an_end(worker: Worker, capfd: pytest.CaptureFixture[str]) -> None:
    """500, since nothing of it has been sent, and the log has the reason."""
    client = worker.client(ASK)
    worker.send(deny())
    worker.end()
    assert client.received().startswith(b"HTTP/1.1 500 ")
    assert "application returned without a response on GET /chat" in capfd.readouterr().err


@pytest.mark.parametrize("event", [HELLO, masked(9, b"ping"), PONG])
def test_a_client_that_goes_on_talking_gains_no_time(worker: Worker, event: bytes) -> None:
    """Its close frame has a deadline, which nothing else that it sends moves."""
    client = worker.client(ASK)
    worker.send(ACCEPT)
    worker.send(CLOSE)
    due = client.connection.due
    assert due == worker.context.now + CLOSE_SECONDS
    worker.context.now += 1
    client.send(event)
    assert client.connection.due == due


@pytest.mark.parametrize(
    ("events", "code", "size"),
    [
        ([ACCEPT, text("four"), CLOSED], 101, 4),
        ([ACCEPT, VANISH], 101, 0),
        ([ACCEPT, CLOSE, CLOSED], 101, 0),
        ([CLOSE], 403, 0),
        ([HALF_CLOSE], CLIENT_LEFT, 0),
        ([FAULT], 500, 0),
        ([deny(), deny_body(b"no")], 401, 2),
        ([deny(), deny_body(b"no", True), VANISH, RETURN], 401, 2),
    ],
)
def test_each_call_is_logged_once(events: list[Event], code: int, size: int) -> None:
    """Status and bytes of messages or of the response; 499 where the client left before there was an answer."""
    lines: list[tuple[int, int]] = []

    def access(peer: str, request: Request, code: int, sent: int, seconds: float) -> None:
        lines.append((code, sent))
        assert 0 <= seconds < 60

    with Worker(access=access) as worker:
        client = worker.client(ASK)
        for event in events:
            happen(worker, client, event)
        assert lines == [(code, size)]


@pytest.mark.parametrize(
    ("events", "expected"),
    [
        ([FAULT], "application failed on WebSocket /chat of 127.0.0.1:1024\n    Traceback"),
        ([ACCEPT, FAULT], "application failed on WebSocket /chat of 127.0.0.1:1024\n    Traceback"),
        ([RETURN], "application returned without a response on WebSocket /chat"),
        ([ACCEPT, b"\x81\x01a"], "rejected WebSocket of 127.0.0.1:1024: 1002 "),
        ([ACCEPT, SILENCE, SILENCE], "closed WebSocket of 127.0.0.1:1024: it did not respond to a ping"),
        ([ACCEPT, RETURN], ""),
        ([ACCEPT, VANISH, ClientDisconnected("gone")], ""),
        ([ACCEPT, VANISH, asyncio.CancelledError()], ""),
        ([DRAIN, asyncio.CancelledError()], ""),
    ],
)
def test_what_is_logged(worker: Worker, capfd: pytest.CaptureFixture[str], events: list[Event], expected: str) -> None:
    """The application's faults and the client's; nothing where the client has left, or the server ends the call."""
    client = worker.client(ASK)
    for event in events:
        happen(worker, client, event)
    logged = capfd.readouterr().err
    assert expected in logged
    assert bool(logged) == bool(expected)
