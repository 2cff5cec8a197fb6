"""One connection alone, on a pair of sockets and a loop that is turned by hand. No process, no sleep; time is an argument.

Most rows give the pieces that a client sends, and then the stage, the events that epoll would report, and the bytes that were
sent. They run with each trigger, because the stages and bytes must be the same, and the events are where the triggers differ.

Long: the rows of one class, each of which needs the same worker, client and application.
"""

import os
import select
import socket
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from epollard import log
from epollard.net import connection as connection_module
from epollard.net import write_buffer
from epollard.net.connection import (
    BODY,
    BUSY,
    FLUSH,
    HEAD,
    LINGER,
    LINGER_BYTES,
    LINGER_SECONDS,
    PIPELINE,
    RECEIVE_BODY,
    STREAM,
    Connection,
    accept,
)
from epollard.net.context import NEVER, RECEIVE, RECEIVE_FIRST, Limits, Timeouts, WorkerContext
from epollard.net.loop import ERR, HUP, IN, OUT, RDHUP, Loop
from epollard.protocol.request import Request
from harness import TRIGGERS, WAIT

pytestmark = pytest.mark.timeout(WAIT)

STAGES = {HEAD: "head", BODY: "body", BUSY: "busy", FLUSH: "flush", LINGER: "linger", STREAM: "stream"}
BIG = b"<" + bytes(1 << 20) + b">"  # more than a kernel takes at once
PEER = ("192.0.2.1", 5000)
LOCAL = ("server", "80")
START = 1000.0  # the monotonic clock at the beginning; the deadlines that are set then run from 1001
LIMITS = Limits(max_line=8190, max_headers=100, max_header_bytes=65536, max_body=1 << 20)
TIMEOUTS = Timeouts(header=10, body=20, write=30, keep_alive=40, ping_interval=50, ping_timeout=5)


def get(path: str = "/a", *fields: str) -> bytes:
    return "\r\n".join((f"GET {path} HTTP/1.1", "Host: test", *fields, "", "")).encode()


def post(path: str, length: int, *fields: str) -> bytes:
    return get(path, f"Content-Length: {length}", *fields).replace(b"GET", b"POST", 1)


def chunked(path: str = "/a") -> bytes:
    return get(path, "Transfer-Encoding: chunked").replace(b"GET", b"POST", 1)


class Body:
    """A sink that keeps the body, and answers when it is complete."""

    def __init__(self, app: "App", connection: Connection, path: str) -> None:
        self.app = app
        self.connection = connection
        self.path = path
        self.content = b""
        self.opened = False  # part of a response was sent
        self.answer: bytes | None = b""
        self.feeds = 0

    def feed(self, content: bytes) -> None:
        self.feeds += 1
        self.content += content
        if self.path == "/full":
            raise OSError(28, "No space left on device")
        if self.path == "/held":
            self.connection.pause_reading()

    def end(self) -> bytes | None:
        self.app.heard.append("end")
        if self.path == "/later":
            self.connection.defer()
            return None
        return b"<%d>" % len(self.content)

    def abort(self) -> bool:
        self.app.heard.append("abort")
        return self.opened

    def on_disconnect(self) -> None:
        self.app.heard.append("disconnect")
        if self.path == "/decides":
            self.connection.close()


class Echo(Body):
    """An upgraded protocol that sends back the bytes that it gets."""

    def feed(self, content: bytes) -> None:
        super().feed(content)
        self.connection.write_now(content)

    def on_deadline(self) -> None:
        self.app.heard.append("deadline")
        self.connection.set_deadline(self.connection.context.now + self.connection.context.timeouts.ping_timeout)


class App:
    """An application whose answer depends on the path."""

    def __init__(self) -> None:
        self.calls: list[str] = []
        self.heard: list[str] = []  # by sinks
        self.sink: Body
        self.connection: Connection

    def answer(self, connection: Connection, request: Request) -> bytes | None:
        path = request.line.path
        self.calls.append(path)
        self.connection = connection
        if path in ("/later", "/decides"):
            self.sink = Body(self, connection, path)
            if connection.context.disconnect_mask:
                connection.attach(self.sink)
            connection.defer()
            return None
        if path == "/upgrade":
            self.sink = Echo(self, connection, path)
            connection.attach(self.sink)
            connection.upgrade(b"<101>", self.sink)
            return None
        if path == "/written":
            connection.write(b"<writ")
            return b"ten>"
        if path == "/big":
            return BIG
        if path == "/file":
            connection.write_file(os.open("/dev/zero", os.O_RDONLY), 0, 10)
            return b""
        if path == "/streamed":
            connection.write(BIG)
            return b""
        return f"<{path}>".encode()

    def answer_with_body(self, connection: Connection, request: Request, body: bytes) -> bytes | None:
        answer = self.answer(connection, request)
        return answer and answer + b"%d" % len(body)

    def answer_streaming(self, connection: Connection, request: Request) -> bytes | None:
        self.calls.append(request.line.path)
        self.connection = connection
        self.sink = Body(self, connection, request.line.path)
        if request.line.path == "/early":  # answered without its body
            return b"<early>"
        connection.attach(self.sink)
        if request.fields.expect:
            connection.defer()
            return None
        return connection.read_body(connection.closing, False)


class Socket(socket.socket):
    """The worker's end. Records its system calls."""

    def __init__(self, sock: socket.socket) -> None:
        super().__init__(fileno=sock.detach())
        self.calls: list[str] = []
        self.most = 1 << 30  # bytes that `sendmsg` takes

    def recv(self, *arguments: Any) -> bytes:
        self.calls.append("recv")
        return super().recv(*arguments)

    def send(self, data: Any, flags: int = 0) -> int:
        self.calls.append("send more" if flags & socket.MSG_MORE else "send")
        return super().send(data, flags)

    def sendmsg(self, buffers: Any, *arguments: Any) -> int:
        self.calls.append("sendmsg")
        return super().send(b"".join(buffers)[: self.most], socket.MSG_DONTWAIT)

    def setsockopt(self, *arguments: Any) -> None:
        self.calls.append("cork" if arguments[2] else "uncork")
        if self.family != socket.AF_UNIX:
            super().setsockopt(*arguments)


class Epoll:
    """The loop's epoll. Counts system calls."""

    def __init__(self, epoll: select.epoll) -> None:
        self.epoll = epoll
        self.calls = 0

    def register(self, fd: int, mask: int) -> None:
        self.calls += 1
        self.epoll.register(fd, mask)

    def modify(self, fd: int, mask: int) -> None:
        self.calls += 1
        self.epoll.modify(fd, mask)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.epoll, name)


class Worker:
    """A loop and a context, with an application and a clock of the test's own."""

    def __init__(self, trigger: str, **options: Any) -> None:
        self.loop = Loop()
        self.epoll = Epoll(self.loop._epoll)
        self.loop._epoll = self.epoll  # type: ignore[assignment]
        self.app = App()
        self.trigger = trigger
        options = {"limits": LIMITS, "timeouts": TIMEOUTS, **options}
        self.context = WorkerContext(self.loop, self.app, trigger=trigger, **options)
        self.context.tick(START, 0.0)
        self.clients: list[Client] = []
        self.errors: list[Exception] = []
        self.loop.on_error = self.errors.append

    def connect(self, first: bytes = b"", tcp: bool = False) -> "Client":
        """A client whose connection is accepted after it has sent `first`."""
        if tcp:
            with socket.create_server(("127.0.0.1", 0)) as listener:
                theirs = socket.create_connection(listener.getsockname())
                ours, _ = listener.accept()
        else:
            ours, theirs = socket.socketpair()
        client = Client(self, Socket(ours), theirs)
        self.clients.append(client)
        if first:
            client.sock.sendall(first)
        before = set(self.context.connections)
        accept(self.context, client.end, PEER, LOCAL)
        found = set(self.context.connections) - before
        assert all(isinstance(connection, Connection) for connection in found)
        client.connection = found.pop() if found else None  # type: ignore[assignment]
        return client

    def close(self) -> None:
        for client in self.clients:
            if client.connection is not None:
                client.connection.close()
            client.sock.close()
            client.end.close()
        self.loop.close()


class Client:
    """The other end of a connection."""

    connection: Connection  # None: it was closed at once

    def __init__(self, worker: Worker, end: Socket, sock: socket.socket) -> None:
        self.worker = worker
        self.end = end
        self.sock = sock
        self.sock.setblocking(False)
        self.received = b""
        self.ended = False

    def send(self, data: bytes) -> None:
        """Send, and let the worker turn once."""
        self.sock.send(data)
        self.turn()

    def turn(self, times: int = 1) -> None:
        """Turn the loop, and receive the bytes that have arrived."""
        for _ in range(times):
            self.worker.loop.turn(0)
        self.receive()
        assert not self.worker.errors

    def receive(self) -> None:
        """Receive the bytes that have arrived."""
        try:
            while data := self.sock.recv(1 << 20):
                self.received += data
            self.ended = True
        except BlockingIOError:
            pass
        except ConnectionResetError:
            self.ended = True

    def take(self) -> bytes:
        """The bytes received since the last call."""
        received, self.received = self.received, b""
        return received

    def take_all(self) -> bytes:
        """The bytes received until no more come."""
        found = self.take()
        while True:
            self.turn()
            if not self.received:
                return found
            found += self.take()

    def fill(self) -> bytes:
        """Let the kernel take no more bytes for this client. Returns those that it has taken."""
        filled = b""
        try:
            while True:
                filled += bytes(self.end.send(bytes(4096), socket.MSG_DONTWAIT))
        except BlockingIOError:
            return filled

    def half_close(self) -> None:
        self.sock.shutdown(socket.SHUT_WR)
        self.turn()

    def leave(self) -> None:
        """Close, and let the worker turn once."""
        self.sock.close()
        self.worker.loop.turn(0)

    @property
    def stage(self) -> str:
        return "closed" if self.connection is None or self.connection.closed else STAGES[self.connection.stage]

    @property
    def mask(self) -> str | None:
        """The events that epoll would report, as the kernel has them. None: it does not know the connection."""
        for line in Path(f"/proc/self/fdinfo/{self.worker.epoll.fileno()}").read_text("ascii").splitlines():
            words = line.split()
            if words[0] == "tfd:" and int(words[1]) == self.end.fileno():
                events = int(words[3], 16)
                return " ".join(name for name, bit in (("IN", IN), ("OUT", OUT), ("RDHUP", RDHUP)) if events & bit)
        return None


Make = Callable[..., Worker]


@pytest.fixture
def make() -> Iterator[Make]:
    """`make("edge", corked=True)` makes a worker with that trigger."""
    made: list[Worker] = []

    def start(trigger: str, **options: Any) -> Worker:
        made.append(Worker(trigger, **options))
        return made[-1]

    yield start
    for worker in made:
        worker.close()


@pytest.fixture(params=TRIGGERS)
def worker(make: Make, request: pytest.FixtureRequest) -> Worker:
    """A worker with each trigger, whose sinks are not notified when clients leave (WSGI)."""
    return make(request.param)


@pytest.fixture(params=TRIGGERS)
def notified(make: Make, request: pytest.FixtureRequest) -> Worker:
    """A worker with each trigger, whose sinks are notified (ASGI)."""
    return make(request.param, notify_disconnects=True)


# --- Rows -------------------------------------------------------------------------------------------------------------

# The events of a connection that listens to its client. With edge-triggered events the end of the client is an edge of its own.
LISTENS = {"level": "IN", "edge": "IN RDHUP", "oneshot": "IN"}
# While the application has the request: as before, because a change costs a system call. A one-shot registration has ended.
STAYS = {"level": "IN", "edge": "IN RDHUP", "oneshot": ""}
# After a busy connection's client has said more: that was reported once, and then epoll is quiet.
QUIET = dict.fromkeys(TRIGGERS, "")
WRITES = dict.fromkeys(TRIGGERS, "OUT")
BOTH = {"level": "IN OUT", "edge": "IN OUT RDHUP", "oneshot": "IN OUT"}


class Row(NamedTuple):
    """A client sends these pieces, with a turn of the loop after each; then the connection has this stage."""

    pieces: list[bytes]
    stage: str
    mask: dict[str, str]
    sent: bytes


ROWS = {
    # Heads.
    "nothing": Row([], "head", LISTENS, b""),
    "a request": Row([get()], "head", LISTENS, b"</a>"),
    "the same request again": Row([get()] * 3, "head", LISTENS, b"</a>" * 3),
    "another request": Row([get(), get("/b")], "head", LISTENS, b"</a></b>"),
    "part of a head": Row([get()[:10]], "head", LISTENS, b""),
    "a head in two pieces": Row([get()[:10], get()[10:]], "head", LISTENS, b"</a>"),
    "a head in three pieces": Row([get()[:10], get()[10:12], get()[12:]], "head", LISTENS, b"</a>"),
    "two requests at once": Row([get() + get("/b")], "head", LISTENS, b"</a></b>"),
    "a request and a part": Row([get() + get()[:10]], "head", LISTENS, b"</a>"),
    "a part is completed": Row([get() + get("/b")[:10], get("/b")[10:] + get()], "head", LISTENS, b"</a></b></a>"),
    "a response written before the answer": Row([get("/written")], "head", LISTENS, b"<written>"),
    "OPTIONS *": Row([b"OPTIONS * HTTP/1.1\r\nHost: test\r\n\r\n"], "head", LISTENS, b"HTTP/1.1 200"),
    "an empty line first": Row([b"\r\n" + get()], "head", LISTENS, b"</a>"),
    # Heads that end the connection.
    "HTTP/1.0": Row([b"GET /a HTTP/1.0\r\n\r\n"], "closed", QUIET, b"</a>"),
    "Connection: close": Row([get("/a", "Connection: close")], "closed", QUIET, b"</a>"),
    "more behind a close": Row([get("/a", "Connection: close") + get()], "linger", LISTENS, b"</a>"),
    "no HTTP": Row([b"?\r\n\r\n"], "linger", LISTENS, b"HTTP/1.1 400"),
    "no HTTP in the second request": Row([get() + b"?\r\n\r\n"], "linger", LISTENS, b"</a>HTTP/1.1 400"),
    "no HTTP in pieces": Row([b"GET ", b"/\x00", b"\r\n\r\n"], "linger", LISTENS, b"HTTP/1.1 400"),
    "a head that has no end": Row([b"GET /a HTTP/1.1\r\nX: " + b"x" * 70_000], "linger", LISTENS, b"HTTP/1.1 431"),
    # Bodies.
    "a head without its body": Row([post("/a", 5)], "body", LISTENS, b""),
    "part of a body": Row([post("/a", 5) + b"ab"], "body", LISTENS, b""),
    "a body with its head": Row([post("/a", 5) + b"abcde"], "head", LISTENS, b"</a>5"),
    "a body behind its head": Row([post("/a", 5), b"abcde"], "head", LISTENS, b"<5>"),
    "a body in pieces": Row([post("/a", 5) + b"a", b"bc", b"de"], "head", LISTENS, b"<5>"),
    "a body and a request": Row([post("/a", 5), b"abcde" + get()], "head", LISTENS, b"<5></a>"),
    "a body and a part": Row([post("/a", 5), b"abcde" + get()[:10], get()[10:]], "head", LISTENS, b"<5></a>"),
    "two bodies": Row([post("/a", 2) + b"ab" + post("/b", 3) + b"abc"], "head", LISTENS, b"</a>2</b>3"),
    "chunks": Row([chunked(), b"3\r\nabc\r\n", b"0\r\n\r\n"], "head", LISTENS, b"<3>"),
    "chunks at once": Row([chunked() + b"3\r\nabc\r\n0\r\n\r\n" + get()], "head", LISTENS, b"<3></a>"),
    "no chunk": Row([chunked(), b"x\r\n"], "linger", LISTENS, b"HTTP/1.1 400"),
    "a body that is too large": Row([post("/a", (1 << 20) + 1)], "linger", LISTENS, b"HTTP/1.1 413"),
    "chunks that are too large": Row([chunked(), b"100001\r\n"], "linger", LISTENS, b"HTTP/1.1 413"),
    "no room for a body": Row([post("/full", 5), b"ab"], "linger", LISTENS, b"HTTP/1.1 507"),
    "a body and a close": Row([post("/a", 5, "Connection: close"), b"abcde"], "closed", QUIET, b"<5>"),
    "answered before its body": Row([post("/early", 5)], "body", LISTENS, b"<early>"),
    "the body of an answered request": Row([post("/early", 5), b"abcde" + get()], "head", LISTENS, b"<early></a>"),
    "an early answer, and a close": Row([post("/early", 5, "Connection: close")], "linger", LISTENS, b"<early>"),
    "OPTIONS * with a body": Row(
        [b"OPTIONS * HTTP/1.1\r\nHost: test\r\nContent-Length: 3\r\n\r\n"], "linger", LISTENS, b"HTTP/1.1 200"
    ),
    # Responses that come later.
    "a response to come": Row([get("/later")], "busy", STAYS, b""),
    "one behind another": Row([get() + get("/later")], "busy", STAYS, b"</a>"),
    "a client that says more": Row([get("/later"), get()], "busy", QUIET, b""),
    "a client that says much more": Row([get("/later"), get(), get()], "busy", QUIET, b""),
    "two requests, the first is to come": Row([get("/later") + get()], "busy", STAYS, b""),
    "a response to a body that is to come": Row([post("/later", 5), b"abcde"], "busy", STAYS, b""),
    # A body that comes faster than it is used.
    "a sink that has enough": Row([post("/held", 5), b"ab"], "busy", QUIET, b""),
    "a sink that has enough at once": Row([post("/held", 5) + b"ab"], "busy", QUIET, b""),
    "more for a sink that has enough": Row([post("/held", 5), b"ab", b"c"], "busy", QUIET, b""),
    # Another protocol.
    "an upgrade": Row([get("/upgrade")], "stream", LISTENS, b"<101>"),
    "bytes behind the upgrade": Row([get("/upgrade") + b"abc"], "stream", LISTENS, b"<101>abc"),
    "bytes of another protocol": Row([get("/upgrade"), b"abc", b"de"], "stream", LISTENS, b"<101>abcde"),
}


def check(client: Client, row: Row) -> None:
    assert client.stage == row.stage
    received = client.take()
    if b"HTTP/1.1" in row.sent:  # the server's own response
        assert received.startswith(row.sent)
        assert received.endswith(b"\r\n\r\n") or b"\r\n\r\n" in received
    else:
        assert received == row.sent
    assert client.ended == (row.stage in ("closed", "linger"))


@pytest.mark.parametrize("row", ROWS.values(), ids=ROWS)
def test_rows_for_a_known_client(worker: Worker, row: Row):
    """Each row, for a client that epoll knows already."""
    client = worker.connect()
    for piece in row.pieces:
        client.send(piece)
    client.turn(5)
    check(client, row)
    if row.stage != "closed":
        assert client.mask == row.mask[worker.trigger]


@pytest.mark.parametrize("row", ROWS.values(), ids=ROWS)
def test_rows_for_a_new_client(worker: Worker, row: Row):
    """Each row, for a client whose first piece had arrived when it was accepted, so that epoll need not know it yet."""
    client = worker.connect(b"".join(row.pieces[:1]))
    client.receive()
    for piece in row.pieces[1:]:
        client.send(piece)
    client.turn(5)
    check(client, row)
    if row.stage not in ("closed", "busy"):
        assert client.mask == row.mask[worker.trigger]
    elif row.stage == "busy":
        assert client.mask in (None, row.mask[worker.trigger])


@pytest.mark.parametrize("name", [name for name, row in ROWS.items() if row.stage == "head"])
def test_rows_byte_by_byte(worker: Worker, name: str):
    """Requests that come byte by byte get the same responses. Only a body then never comes with its head."""
    row = ROWS[name]
    client = worker.connect()
    for byte in b"".join(row.pieces):
        client.send(bytes([byte]))
    assert client.stage == "head"
    assert client.mask == LISTENS[worker.trigger]
    sent = row.sent.replace(b"</a>5", b"<5>").replace(b"</a>2</b>3", b"<2><3>")
    received = client.take()
    assert received.startswith(sent) if b"HTTP/1.1" in sent else received == sent


@pytest.mark.parametrize("name", [name for name, row in ROWS.items() if row.stage == "head" and "answered" not in name])
def test_rows_cut_in_two(worker: Worker, name: str):
    """Wherever the bytes are cut, the responses are the same."""
    row = ROWS[name]
    data = b"".join(row.pieces)
    plain = row.sent.replace(b"</a>5", b"<5>").replace(b"</a>2</b>3", b"<2><3>")
    for cut in range(1, len(data)):
        client = worker.connect(data[:cut])
        client.receive()
        client.send(data[cut:])
        received = client.take()
        for answer in b"</a>5", b"</a>2", b"</b>3":  # with its head
            received = received.replace(answer, b"<" + answer[-1:] + b">")
        assert received.startswith(plain) if b"HTTP/1.1" in plain else received == plain
        assert (client.stage, client.mask) == ("head", LISTENS[worker.trigger])
        client.connection.close()
        client.sock.close()
    assert not worker.context.connections


# --- The price --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("trigger", ["level", "edge"])
def test_a_request_costs_two_system_calls(make: Make, trigger: str):
    """A request that finds an idle connection costs one `recv` and one `send`; epoll is not asked."""
    worker = make(trigger)
    client = worker.connect()
    client.send(get())
    for request in get(), get("/b"), get("/c", "X: y"), post("/d", 3) + b"abc":
        worker.epoll.calls = 0
        client.end.calls.clear()
        client.send(request)
        assert client.end.calls == ["recv", "send"]
        assert worker.epoll.calls == 0


def test_a_one_shot_request_costs_one_more(make: Make):
    """A one-shot registration must be renewed after each event."""
    worker = make("oneshot")
    client = worker.connect()
    client.send(get())
    worker.epoll.calls = 0
    client.end.calls.clear()
    client.send(get())
    assert client.end.calls == ["recv", "send"]
    assert worker.epoll.calls == 1


def test_a_single_request_costs_no_epoll_call(worker: Worker):
    """Its request is there when it is accepted: one `recv`, one `send` that leaves with the FIN, and epoll never knows it."""
    before = worker.epoll.calls
    client = worker.connect(get("/a", "Connection: close"))
    assert client.connection is None
    assert client.end.calls == ["recv", "send more"]
    assert worker.epoll.calls == before
    assert not worker.context.connections
    client.receive()
    assert (client.take(), client.ended) == (b"</a>", True)
    assert client.end.fileno() == -1


def test_a_deferred_first_response_costs_no_epoll_call(worker: Worker):
    """Until the response is complete, epoll need not know a client that was deferred when it was accepted."""
    client = worker.connect(get("/later", "Connection: close"))
    assert (client.stage, client.mask) == ("busy", None)
    client.connection.complete(b"<later>")
    client.receive()
    assert (client.stage, client.take(), client.ended) == ("closed", b"<later>", True)


def test_pipelined_responses_leave_at_once(worker: Worker):
    """The responses to requests that came together are one `send`."""
    client = worker.connect()
    client.end.calls.clear()
    client.send(get() * 5)
    assert client.end.calls.count("send") == 1
    assert client.take() == b"</a>" * 5


def test_a_pipeline_has_a_bounded_part_of_a_turn(worker: Worker):
    """After `PIPELINE` responses the rest waits for the next turn, and meanwhile nothing more is received."""
    client = worker.connect()
    client.sock.send(get() * (PIPELINE + 3))
    worker.loop.turn(0)
    client.receive()
    posted = client.take()
    assert len(worker.app.calls) in (PIPELINE, PIPELINE + 3)  # a posted callback may run in the same turn
    client.turn(2)
    assert posted + client.take() == b"</a>" * (PIPELINE + 3)
    assert (client.stage, client.mask) == ("head", LISTENS[worker.trigger])


def test_a_pipeline_waits_in_the_middle(worker: Worker):
    """While the rest of a long pipeline waits, the connection is busy and its buffer grows no more."""
    client = worker.connect()
    posted: list[Any] = []
    worker.loop.post = lambda *call: posted.append(call)  # type: ignore[method-assign]
    client.send(get() * (PIPELINE + 1))
    assert client.stage == "busy"
    assert client.take() == b"</a>" * PIPELINE
    held = len(client.connection.buffer)
    client.send(get("/b"))
    client.turn()
    assert len(client.connection.buffer) == held
    [(complete,)] = posted
    complete()
    client.turn(2)
    assert client.take() == b"</a></b>"
    assert (client.stage, client.mask) == ("head", LISTENS[worker.trigger])


# --- Events that epoll reports once -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "size", [RECEIVE_FIRST - 1, RECEIVE_FIRST, RECEIVE_FIRST + 1, RECEIVE - 1, RECEIVE, RECEIVE + 1, 40_000]
)
@pytest.mark.parametrize("again", [False, True], ids=["first", "known"])
def test_heads_around_the_size_of_a_piece(worker: Worker, size: int, again: bool):
    """A head that is as long as one piece, or a byte shorter or longer, is answered, even if epoll reports it once."""
    head = get("/a", "X: " + "x" * (size - len(get("/a", "X: "))))
    assert len(head) == size
    client = worker.connect()
    if again:  # the client is read in large pieces from now on
        client.send(get("/b", "X: " + "x" * RECEIVE_FIRST))
        client.take()
    client.sock.send(head)
    client.turn(6)
    assert client.take() == b"</a>"
    assert (client.stage, client.mask) == ("head", LISTENS[worker.trigger])
    client.send(get())
    assert client.take() == b"</a>"


@pytest.mark.parametrize("size", [RECEIVE_BODY - 1, RECEIVE_BODY, RECEIVE_BODY + 1, 3 * RECEIVE_BODY])
@pytest.mark.parametrize("path", ["/upgrade", "/a"])
def test_bytes_around_the_size_of_a_piece(worker: Worker, size: int, path: str):
    """All bytes of a body or of another protocol are received, even if epoll reports them once."""
    client = worker.connect()
    client.send(post(path, size) if path == "/a" else get(path))
    client.take()
    client.end.setblocking(True)
    assert client.sock.send(bytes(size)) == size
    client.turn(6)
    assert len(worker.app.sink.content) == size
    if path == "/a":
        assert client.take() == b"<%d>" % size
        client.send(get())
        assert client.take() == b"</a>"


@pytest.mark.parametrize(
    "pieces", [[get()], [get() + get()], [get()[:9], get()[9:]], [post("/a", 3), b"abc"], [post("/a", 3) + b"abc"]], ids=str
)
def test_a_client_whose_last_bytes_come_with_its_end(worker: Worker, pieces: list[bytes]):
    """Even if epoll reports both as one event, the client gets its response, and then the connection is closed."""
    client = worker.connect()
    for piece in pieces[:-1]:
        client.send(piece)
    client.sock.send(pieces[-1])
    client.half_close()
    client.turn(2)
    assert client.take().startswith(b"<")
    assert client.stage == "closed"
    assert client.ended


def test_a_stream_whose_last_bytes_come_with_its_end(worker: Worker):
    """The protocol gets the last bytes, and is then aborted."""
    client = worker.connect()
    client.send(get("/upgrade"))
    client.sock.send(b"abc")
    client.half_close()
    client.turn(2)
    assert client.take() == b"<101>abc"
    assert client.stage == "closed"
    assert worker.app.heard == ["abort"]


def test_an_event_without_bytes(worker: Worker):
    """A handler may be called for nothing, because its number was another descriptor's. It must go on listening."""
    for pieces in [], [get()], [post("/a", 5)], [get("/upgrade")], [b"?\r\n\r\n"]:
        client = worker.connect()
        for piece in pieces:
            client.send(piece)
        stage = client.stage
        handler = worker.loop._handlers[client.end.fileno()]
        handler(IN)
        assert (client.stage, client.mask) == (stage, LISTENS[worker.trigger])


# --- The end of a client ----------------------------------------------------------------------------------------------


class End(NamedTuple):
    """A client leaves after these pieces; then its sink has been called like this."""

    pieces: list[bytes]
    heard: list[str]
    aborted: int


ENDS = {
    "idle": End([], [], 0),
    "after a request": End([get()], [], 0),
    "within a head": End([get()[:10]], [], 0),
    "within a body": End([post("/a", 5) + b"ab"], ["abort"], 1),
    "lingering": End([b"?\r\n\r\n"], [], 0),
    "in another protocol": End([get("/upgrade")], ["abort"], 0),
    "while its response is sent": End([get("/big")], [], 1),
    "with the last piece of a body": End([post("/a", 5) + b"ab"], ["end"], 1),
    "with a broken piece of a body": End([chunked()], ["abort"], 1),
}
LAST_PIECES = {"with the last piece of a body": b"cde", "with a broken piece of a body": b"x\r\n"}


@pytest.mark.parametrize("name", ENDS)
def test_a_client_that_leaves(worker: Worker, name: str):
    """In each stage the connection is closed; a response that could not be delivered counts as aborted."""
    end = ENDS[name]
    client = worker.connect()
    for piece in end.pieces:
        client.sock.send(piece)
        worker.loop.turn(0)
    client.sock.send(LAST_PIECES.get(name, b""))
    client.leave()
    worker.loop.turn(0)
    assert client.stage == "closed"
    assert client.end.fileno() == -1
    assert worker.app.heard == end.heard
    assert worker.context.aborted == end.aborted
    assert not worker.context.connections


@pytest.mark.parametrize("pieces", [[post("/a", 5)], [get("/upgrade")], [get("/later")]], ids=["body", "stream", "busy"])
def test_a_client_that_leaves_while_bytes_wait(worker: Worker, pieces: list[bytes]):
    """The same while bytes wait for the client in a stage that also receives."""
    client = worker.connect()
    for piece in pieces:
        client.send(piece)
    client.connection.write(BIG)
    client.leave()
    worker.loop.turn(0)
    assert client.stage == "closed"
    assert worker.context.aborted == 1


def test_a_new_client_that_has_left_already(worker: Worker):
    """A client that asks and leaves before it is accepted: its request is read, and the response counts as aborted."""
    ours, theirs = socket.socketpair()
    theirs.send(get())
    theirs.close()
    accept(worker.context, ours, PEER, LOCAL)
    assert worker.app.calls == ["/a"]
    assert worker.context.aborted == 1
    assert ours.fileno() == -1


def test_an_upgrade_for_a_client_that_has_left(worker: Worker):
    """The protocol is not begun."""
    client = worker.connect()
    client.send(get("/later"))
    client.sock.close()
    echo = Echo(worker.app, client.connection, "/upgrade")
    client.connection.upgrade(b"<101>", echo)
    assert (client.stage, echo.feeds) == ("closed", 0)


def test_a_sink_that_closes_when_its_client_leaves(notified: Worker):
    """`on_disconnect` may close the connection."""
    client = notified.connect()
    client.send(get("/decides"))
    client.half_close()
    assert (client.stage, notified.app.heard) == ("closed", ["disconnect"])


def test_a_file_behind_a_pipeline_for_a_client_that_has_left(worker: Worker):
    """The descriptor of the file is closed, too."""
    before = len(os.listdir("/proc/self/fd"))
    client = worker.connect()
    client.sock.send(get() + get("/file"))
    client.leave()
    worker.loop.turn(0)
    assert client.stage == "closed"
    assert len(os.listdir("/proc/self/fd")) == before


@pytest.mark.parametrize("more", [False, True], ids=["silent", "with bytes unread"])
def test_a_client_that_leaves_a_busy_connection(worker: Worker, more: bool):
    """It is noticed at once with triggers that still report it, and when the response is sent otherwise."""
    client = worker.connect()
    client.send(get("/later"))
    if more:
        client.send(get())
    client.leave()
    if worker.trigger == "oneshot":
        assert client.stage == "busy"
        client.connection.complete(b"<later>")
    assert client.stage == "closed"
    assert worker.context.aborted == 1


def test_a_reset_while_a_response_is_to_come(make: Make):
    """A reset is reported with every mask, except after a one-shot registration has ended."""
    for trigger in TRIGGERS:
        worker = make(trigger)
        client = worker.connect(tcp=True)
        client.sock.setblocking(True)
        client.sock.send(get("/later"))
        while client.stage != "busy":
            worker.loop.turn(1)
        client.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        client.sock.close()
        for _ in range(1000):
            worker.loop.turn(0)
            if client.stage == "closed":
                break
        if trigger == "oneshot":
            client.connection.complete(b"<later>")
        assert client.stage == "closed"
        assert worker.context.aborted == 1


def test_half_a_close_while_a_response_is_to_come(worker: Worker):
    """A client that has half closed still gets its response, and then the connection is closed."""
    client = worker.connect()
    client.send(get("/later"))
    client.half_close()
    client.turn()
    assert client.stage == "busy"
    client.connection.complete(b"<later>")
    client.turn(2)
    assert (client.take(), client.stage) == (b"<later>", "closed")
    assert worker.context.aborted == 0


def test_a_sink_is_notified_once(notified: Worker):
    """A sink is notified once that its client has half closed; the response can still be sent."""
    client = notified.connect()
    client.send(get("/later"))
    assert notified.app.heard == []
    client.half_close()
    client.turn(3)
    assert notified.app.heard == ["disconnect"]
    assert client.stage == "busy"
    client.connection.complete(b"<later>")
    client.turn(2)
    assert (client.take(), client.stage) == (b"<later>", "closed")


def test_a_sink_is_notified_of_a_client_that_has_said_more(notified: Worker):
    """Its next request is not received while the application is busy, but its end is still noticed."""
    client = notified.connect()
    client.send(get("/later"))
    client.send(get())
    client.turn()
    assert client.mask == "RDHUP"
    client.half_close()
    assert notified.app.heard == ["disconnect"]
    client.connection.complete(b"<later>")
    client.turn(3)
    assert client.take() == b"<later></a>"
    assert client.stage == "closed"


def test_a_sink_is_notified_of_a_new_client(notified: Worker):
    """A client that was deferred when it was accepted is watched for its end."""
    client = notified.connect(get("/later"))
    assert client.stage == "busy"
    assert client.mask == "RDHUP"
    client.half_close()
    assert notified.app.heard == ["disconnect"]


def test_a_detached_sink_is_not_notified(notified: Worker):
    """A sink that has detached itself does not want to know whether its client leaves."""
    client = notified.connect()
    client.send(get("/later"))
    client.connection.detach()
    client.half_close()
    client.turn(2)
    assert notified.app.heard == []
    client.connection.complete(b"<later>")
    client.turn(2)
    assert (client.take(), client.stage) == (b"<later>", "closed")


def test_a_client_that_is_gone_is_noticed_by_its_sink(notified: Worker):
    """A busy connection whose client has closed is closed, and its sink aborts."""
    client = notified.connect()
    client.send(get("/later"))
    client.leave()
    assert client.stage == "closed"
    assert notified.app.heard == ["abort"]
    assert notified.context.aborted == 1


def test_a_client_that_half_closes_after_its_body(notified: Worker):
    """The end came with the last piece of the body: a sink that is attached later is still notified."""
    client = notified.connect()
    client.send(post("/later", 3))
    client.sock.send(b"abc")
    client.half_close()
    client.turn(2)
    assert notified.app.heard == ["end"]  # the sink was detached with the body; an exchange attaches again
    client.connection.attach(notified.app.sink)
    client.connection.defer()
    client.turn(2)
    assert notified.app.heard == ["end", "disconnect"]
    client.connection.complete(b"<later>")
    client.turn(2)
    assert (client.take(), client.stage) == (b"<later>", "closed")


# --- Responses that come later ----------------------------------------------------------------------------------------


def test_a_later_response(worker: Worker):
    """It is sent when it is complete, and then the requests that have arrived meanwhile are answered, and later ones."""
    client = worker.connect()
    client.send(get("/later") + get("/b"))
    client.send(get("/c"))
    client.connection.write(b"<la")
    assert client.stage == "busy"
    client.connection.complete(b"ter>")
    client.turn(2)
    assert client.take() == b"<later></b></c>"
    assert (client.stage, client.mask) == ("head", LISTENS[worker.trigger])
    client.send(get())
    assert client.take() == b"</a>"


def test_responses_one_after_another(worker: Worker):
    """Requests that came together, whose responses all come later, are answered in order, one at a time."""
    client = worker.connect()
    client.send(get("/later") * 3)
    for number in range(1, 4):
        assert (len(worker.app.calls), client.stage) == (number, "busy")
        client.connection.complete(b"<%d>" % number)
        client.turn()
    assert client.take() == b"<1><2><3>"
    assert (client.stage, client.mask) == ("head", LISTENS[worker.trigger])


def test_a_later_response_that_closes(worker: Worker):
    """`close_after_response`: the connection ends with the response in progress."""
    client = worker.connect()
    client.send(get("/later"))
    client.connection.close_after_response()
    client.connection.complete(b"<later>")
    client.receive()
    assert (client.take(), client.stage, client.ended) == (b"<later>", "closed", True)


def test_a_later_response_may_linger(worker: Worker):
    """`linger`: the client may have sent more than was read, so only a FIN is sent, and the close waits for the client."""
    client = worker.connect()
    client.send(get("/later"))
    client.connection.close_after_response()
    client.connection.complete(b"<later>", linger=True)
    client.receive()
    assert (client.take(), client.stage, client.ended) == (b"<later>", "linger", True)
    client.leave()
    assert client.stage == "closed"


@pytest.mark.parametrize("draining", [False, True])
def test_close_if_draining(worker: Worker, draining: bool):
    """A response in progress closes its connection if the worker drains by now."""
    client = worker.connect()
    client.send(get("/later"))
    if draining:
        worker.context.drain()
    client.connection.close_if_draining()
    client.connection.complete(b"<later>")
    client.receive()
    assert client.take() == b"<later>"
    assert client.stage == ("closed" if draining else "head")


def test_100_continue(worker: Worker):
    """It is sent when the application wants the body; without it, the response would close the connection."""
    client = worker.connect()
    client.send(post("/a", 3, "Expect: 100-continue"))
    assert (client.stage, client.take()) == ("busy", b"")
    assert client.connection.closing
    client.connection.read_body(False, True)
    client.receive()
    assert client.take() == b"HTTP/1.1 100 Continue\r\n\r\n"
    assert (client.stage, client.mask) == ("body", LISTENS[worker.trigger])
    client.send(b"abc")
    assert client.take() == b"<3>"
    assert (client.stage, client.mask) == ("head", LISTENS[worker.trigger])


def test_no_100_continue_for_a_client_that_sends_its_body(worker: Worker):
    """A client that has not waited for it needs none."""
    client = worker.connect()
    client.send(post("/a", 5, "Expect: 100-continue") + b"abc")
    assert client.stage == "busy"
    client.connection.read_body(True, True)
    client.receive()
    assert client.take() == b""
    client.send(b"de")
    assert (client.take(), client.stage) == (b"<5>", "closed")


def test_a_response_without_100_continue(worker: Worker):
    """The client may send its body or not, so the next request cannot be found: the connection ends."""
    client = worker.connect()
    client.send(post("/a", 3, "Expect: 100-continue"))
    client.connection.complete(b"<no>")
    client.receive()
    assert (client.take(), client.stage, client.ended) == (b"<no>", "linger", True)


def test_a_body_is_held_back(worker: Worker):
    """A sink that has paused gets nothing more, and gets the rest when it resumes."""
    client = worker.connect()
    client.send(post("/held", 8) + b"ab")
    client.send(b"cd")
    client.turn(2)
    assert worker.app.sink.content == b"ab"
    client.connection.resume_reading()
    assert client.stage == "body"
    client.turn()
    assert worker.app.sink.content == b"abcd"
    client.connection.resume_reading()
    worker.app.sink.path = "/a"
    client.send(b"efgh" + get())
    client.turn()
    assert client.take() == b"<8></a>"
    assert (client.stage, client.mask) == ("head", LISTENS[worker.trigger])


def test_a_stream_is_held_back(worker: Worker):
    """The same for another protocol."""
    client = worker.connect()
    client.send(get("/upgrade"))
    client.connection.pause_reading()
    assert (client.stage, client.mask) == ("busy", "")
    client.send(b"abc")
    client.turn()
    assert worker.app.sink.content == b""
    client.connection.resume_reading()
    client.turn()
    assert (client.stage, client.mask) == ("stream", LISTENS[worker.trigger])
    assert client.take() == b"<101>abc"


def test_nothing_resumes_that_was_not_paused(worker: Worker):
    """`resume_reading` in another stage, or of a closed connection, changes nothing; nor does `pause_reading` of one."""
    client = worker.connect()
    client.connection.resume_reading()
    assert (client.stage, client.mask) == ("head", LISTENS[worker.trigger])
    client.connection.close()
    client.connection.resume_reading()
    client.connection.pause_reading()
    client.connection.defer()
    client.connection.complete(b"x")
    client.connection.write(b"x")
    client.connection.write_two(b"x", b"y")
    assert client.connection.read_body(False, True) is None
    client.receive()
    assert (client.stage, client.take()) == ("closed", b"")


# --- A client that does not take its response -------------------------------------------------------------------------


def test_a_large_response(worker: Worker):
    """Bytes that the kernel does not take wait for the client, which gets them all, and then its next request is answered."""
    client = worker.connect()
    client.sock.send(get("/big") + get())
    worker.loop.turn(0)
    assert (client.stage, client.mask) == ("flush", "OUT")
    assert client.connection.out is not None
    assert client.connection.out.pending > 0
    assert client.take_all() == BIG + b"</a>"
    assert (client.stage, client.mask) == ("head", LISTENS[worker.trigger])
    assert client.connection.out is None
    client.send(get("/b"))
    assert client.take() == b"</b>"


def test_a_large_first_response(worker: Worker):
    """The same for a client whose request had arrived when it was accepted."""
    client = worker.connect(get("/big", "Connection: close"))
    assert (client.stage, client.mask) == ("flush", "OUT")
    assert client.take_all() == BIG
    assert (client.stage, client.ended) == ("closed", True)


def test_no_more_responses_for_a_client_that_takes_none(worker: Worker):
    """Of a pipeline no further request is begun while a response waits for the client."""
    client = worker.connect()
    client.sock.send(get("/streamed") * 4)
    worker.loop.turn(0)
    worker.loop.turn(0)
    assert (worker.app.calls, client.stage, client.mask) == (["/streamed"], "flush", "OUT")
    assert client.take_all() == BIG * 4
    assert worker.app.calls == ["/streamed"] * 4


def test_the_kernel_takes_nothing(worker: Worker):
    """If not even the first byte is taken, the response waits whole: of one request, of a pipeline, and behind a body."""
    for requests, sent in (
        ([get()], b"</a>"),
        ([get() + get("/b")], b"</a></b>"),
        ([post("/a", 3), b"abc"], b"<3>"),
        ([get("/written")], b"<written>"),
    ):
        client = worker.connect()
        client.send(get())
        client.take()
        filled = client.fill()
        for piece in requests:
            client.sock.send(piece)
            worker.loop.turn(0)
        assert (client.stage, client.mask) == ("flush", "OUT")
        assert client.take_all() == filled + sent
        assert (client.stage, client.mask) == ("head", LISTENS[worker.trigger])


def test_the_kernel_takes_nothing_of_two(worker: Worker):
    """The same for a head and a large body."""
    client = worker.connect()
    client.send(get("/later"))
    filled = client.fill()
    client.connection.write_two(b"abc", b"defghi")
    assert client.take_all() == filled + b"abcdefghi"


def test_part_of_a_head_behind_a_large_response(worker: Worker):
    """The part is kept while the response waits for the client."""
    client = worker.connect()
    client.sock.send(get("/big") + get()[:10])
    worker.loop.turn(0)
    assert (client.stage, client.mask) == ("flush", "OUT")
    assert client.take_all() == BIG
    client.send(get()[10:])
    assert client.take() == b"</a>"


@pytest.mark.parametrize("path", ["/big", "/later", "/a", "/upgrade"])
def test_a_turn_has_a_bound(worker: Worker, path: str, monkeypatch: pytest.MonkeyPatch):
    """A client that takes everything gets a bounded part in each turn, and the rest in later ones: epoll is asked again."""
    monkeypatch.setattr(connection_module, "FLUSH_TURN", 1000)
    monkeypatch.setattr(write_buffer, "FLUSH_TURN", 1000)
    client = worker.connect()
    client.sock.send(post(path, 3) if path == "/a" else get(path))
    worker.loop.turn(0)
    if path != "/big":
        client.connection.write(BIG)
    stage = client.stage
    client.receive()
    sizes = [len(client.take())]
    while client.stage == stage and client.connection.out is not None:
        client.turn()
        sizes.append(len(client.take()))
    assert sum(sizes) == len(BIG) + len(b"<101>" if path == "/upgrade" else b"")
    assert len(sizes) > 3
    client.connection.close()


def test_a_bound_within_the_first_turn(worker: Worker, monkeypatch: pytest.MonkeyPatch):
    """The same for a file that is sent to a client while it is accepted."""
    monkeypatch.setattr(connection_module, "FLUSH_TURN", 5)
    monkeypatch.setattr(write_buffer, "FLUSH_TURN", 5)
    monkeypatch.setattr(write_buffer, "SENDFILE", 5)
    client = worker.connect(get("/file"))
    assert client.take_all() == bytes(10)
    assert (client.stage, client.mask) == ("head", LISTENS[worker.trigger])


def test_a_sink_pauses_while_a_response_waits(worker: Worker):
    """The write timeout stays, and the waiting bytes are sent; when the sink resumes, its bytes are received."""
    client = worker.connect()
    client.send(get("/upgrade"))
    client.connection.write(BIG)
    client.connection.pause_reading()
    assert (client.stage, client.mask, client.connection.due) == ("busy", "OUT", worker.context.write_due)
    client.sock.send(b"abc")
    client.connection.resume_reading()
    assert (client.stage, client.mask, client.connection.due) == ("stream", BOTH[worker.trigger], worker.context.write_due)
    assert client.take_all() == b"<101>" + BIG + b"abc"


def test_a_response_is_deferred_while_another_waits(worker: Worker):
    """An application may write much before it defers: the write timeout stays, and epoll reports room."""
    client = worker.connect()
    client.sock.send(get("/later"))
    worker.loop.turn(0)
    client.connection.write(BIG)
    client.connection.defer()
    assert client.connection.due == worker.context.write_due
    assert "OUT" in (client.mask or "")
    assert client.take_all() == BIG


def test_a_later_response_waits_for_its_client(worker: Worker):
    """While bytes of an unfinished response wait, epoll reports OUT, and no longer when they are sent."""
    client = worker.connect()
    client.send(get("/later"))
    client.connection.write(BIG)
    out = client.connection.out
    assert out is not None
    assert client.stage == "busy"
    assert client.mask is not None
    assert "OUT" in client.mask.split()
    client.connection.write(b"more")
    called: list[bool] = []
    client.connection.call_when_drained(lambda: called.append(True))
    assert not called
    assert client.take_all() == BIG + b"more"
    assert called == [True]
    assert client.connection.out is None
    assert client.mask == {"level": "IN", "edge": "IN", "oneshot": ""}[worker.trigger]
    client.connection.call_when_drained(lambda: called.append(True))
    assert called == [True, True]
    client.connection.complete(b"<end>")
    client.turn()
    assert client.take() == b"<end>"
    assert (client.stage, client.mask) == ("head", LISTENS[worker.trigger])


def test_a_client_that_says_more_while_a_later_response_waits(worker: Worker):
    """Its bytes are not received, and the waiting ones are sent."""
    client = worker.connect()
    client.send(get("/later"))
    client.connection.write(BIG)
    client.sock.send(get("/b"))
    worker.loop.turn(0)
    assert (client.stage, client.mask) == ("busy", "OUT")
    assert client.take_all() == BIG
    client.connection.complete(b"<later>")
    client.turn(2)
    assert client.take() == b"<later></b>"


def test_a_body_comes_while_a_response_waits(worker: Worker):
    """Both directions at once: bytes of the body are received while the response is sent."""
    client = worker.connect()
    client.send(post("/a", 6))
    client.connection.write(BIG)
    assert (client.stage, client.mask) == ("body", BOTH[worker.trigger])
    client.sock.send(b"abc")
    worker.loop.turn(0)
    assert (client.stage, worker.app.sink.content) == ("body", b"abc")
    assert client.take_all() == BIG
    assert (client.stage, client.mask) == ("body", LISTENS[worker.trigger])
    client.send(b"def")
    assert client.take() == b"<6>"


def test_a_stream_in_both_directions(worker: Worker):
    """Another protocol receives bytes while its own wait for the client."""
    client = worker.connect()
    client.send(get("/upgrade"))
    client.connection.write(BIG)
    assert (client.stage, client.mask) == ("stream", BOTH[worker.trigger])
    client.sock.send(b"abc")
    worker.loop.turn(0)
    assert (client.stage, client.mask) == ("stream", BOTH[worker.trigger])
    assert worker.app.sink.content == b"abc"
    assert client.take_all() == b"<101>" + BIG + b"abc"
    assert (client.stage, client.mask) == ("stream", LISTENS[worker.trigger])
    client.send(b"de")
    assert client.take() == b"de"


def test_an_upgrade_behind_bytes_that_wait(worker: Worker):
    """Even if the head of the 101 has to wait for the client, the protocol begins."""
    client = worker.connect()
    client.send(get("/later"))
    client.connection.write(BIG)
    echo = Echo(worker.app, client.connection, "/upgrade")
    worker.app.sink = echo
    client.connection.upgrade(b"<101>", echo)
    assert (client.stage, client.mask) == ("stream", BOTH[worker.trigger])
    assert client.take_all() == BIG + b"<101>"
    client.send(b"abc")
    assert client.take() == b"abc"


def test_a_client_that_leaves_while_a_later_response_waits(worker: Worker):
    """The connection is closed, and callbacks that wait for the client are called."""
    client = worker.connect()
    client.send(get("/later"))
    client.connection.write(BIG)
    called: list[bool] = []
    client.connection.call_when_drained(lambda: called.append(True))
    client.leave()
    assert client.stage == "closed"
    assert called == [True]
    assert worker.context.aborted == 1


def test_a_write_after_the_client_has_left(worker: Worker):
    """Each way of writing closes the connection and counts the response as aborted."""
    for write in (
        lambda connection: connection.write(b"x"),
        lambda connection: connection.write_two(b"x", b"y"),
        lambda connection: connection.write_file(os.open("/dev/zero", os.O_RDONLY), 0, 10),
        lambda connection: connection.complete(b"x"),
    ):
        client = worker.connect()
        client.send(get("/later"))
        worker.context.aborted = 0
        client.sock.close()
        write(client.connection)
        assert client.stage == "closed"
        assert worker.context.aborted == 1


def test_a_response_to_a_client_that_has_left(worker: Worker):
    """The same for responses that are sent at once: on the fast path, and of a pipeline."""
    for requests in get("/a"), get("/a") + get("/b"):
        client = worker.connect()
        client.sock.send(requests)
        client.sock.close()
        worker.context.aborted = 0
        worker.loop.turn(0)
        assert client.stage == "closed"
        assert worker.context.aborted == 1


# --- Ways of writing --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("most", [0, 1, 3, 4, 100])
def test_a_head_and_a_large_body(worker: Worker, most: int):
    """They are one system call, and arrive in order wherever the kernel cuts them."""
    client = worker.connect()
    client.send(get("/later"))
    client.end.calls.clear()
    client.end.most = most
    client.connection.write_two(b"abc", b"defghi")
    assert client.end.calls[0] == "sendmsg"
    assert client.take_all() == b"abcdefghi"
    client.connection.write(BIG)
    client.connection.write_two(b"abc", b"defghi")
    assert client.take_all() == BIG + b"abcdefghi"


def test_a_file(worker: Worker, tmp_path: Path):
    """A file is sent in its place among bytes, large or small, and its descriptor is closed."""
    path = tmp_path / "file"
    path.write_bytes(bytes(range(256)) * 8192)  # 2 MiB
    content = path.read_bytes()
    client = worker.connect()
    for offset, count in (0, len(content)), (1000, 10), (5, 0):
        client.send(get("/later"))
        fd = os.open(path, os.O_RDONLY)
        client.connection.write(b"<")
        client.connection.write_file(fd, offset, count)
        client.connection.write(b">")
        client.connection.complete()
        assert client.take_all() == b"<" + content[offset : offset + count] + b">"
        with pytest.raises(OSError, match="Bad file descriptor"):
            os.fstat(fd)
        assert (client.stage, client.mask) == ("head", LISTENS[worker.trigger])


def test_a_file_for_a_closed_connection(worker: Worker):
    """Its descriptor is closed all the same."""
    client = worker.connect()
    client.connection.close()
    fd = os.open("/dev/null", os.O_RDONLY)
    client.connection.write_file(fd, 0, 10)
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(fd)


def test_a_response_in_pieces_behind_a_pipeline(worker: Worker):
    """Bytes that an application writes by itself are sent behind the earlier responses of a pipeline."""
    client = worker.connect()
    client.send(get("/a") + get("/written"))
    assert client.take() == b"</a><written>"
    client.send(get("/a") + get("/later"))
    assert client.take() == b"</a>"
    client.connection.write_two(b"<la", b"ter>")
    client.connection.complete()
    client.receive()
    assert client.take() == b"<later>"


@pytest.mark.parametrize("trigger", TRIGGERS)
def test_the_cork_is_drawn(make: Make, trigger: str):
    """With TCP_CORK each complete message is sent at once: responses, pipelines, 100 Continue, and other protocols."""
    worker = make(trigger, corked=True)
    client = worker.connect()

    def drawn(*expected: bytes) -> bool:
        calls, client.end.calls[:] = [call for call in client.end.calls if call != "recv"], []
        assert client.take() == b"".join(expected)
        return calls[-2:] == ["uncork", "cork"] and any(call.startswith("send") for call in calls)

    client.send(get())
    assert drawn(b"</a>")
    client.send(get() * 2)
    assert drawn(b"</a></a>")
    client.send(get() + get("/b")[:10])
    assert drawn(b"</a>")
    client.send(get("/b")[10:])
    assert drawn(b"</b>")
    client.send(post("/a", 3) + b"abc")
    assert drawn(b"</a>3")
    client.send(get("/later"))
    client.connection.complete(b"<later>")
    client.receive()
    assert drawn(b"<later>")
    client.send(post("/a", 3, "Expect: 100-continue"))
    client.connection.read_body(False, True)
    client.receive()
    assert drawn(b"HTTP/1.1 100 Continue\r\n\r\n")
    client.send(b"abc")
    assert drawn(b"<3>")
    client.send(get("/upgrade"))
    assert drawn(b"<101>")
    client.send(b"abc")
    assert drawn(b"abc")


def test_a_cork_needs_a_tcp_socket(make: Make):
    """A response on a corked TCP connection arrives without filling a segment. A Unix socket has no cork, which is no error."""
    worker = make("level", corked=True)
    tcp = worker.connect(tcp=True)
    tcp.end.setsockopt(socket.IPPROTO_TCP, socket.TCP_CORK, 1)
    tcp.sock.settimeout(WAIT)
    tcp.sock.sendall(get())
    worker.loop.turn(1)
    assert tcp.sock.recv(100) == b"</a>"
    assert tcp.end.getsockopt(socket.IPPROTO_TCP, socket.TCP_CORK) == 1

    unix = worker.connect()
    plain = socket.socket(fileno=os.dup(unix.end.fileno()))
    with plain:
        accept(worker.context, plain, PEER, LOCAL)
        unix.send(get())
        assert unix.take() == b"</a>"
        [connection.close() for connection in list(worker.context.connections) if connection.sock is plain]


# --- Deadlines --------------------------------------------------------------------------------------------------------


class Deadline(NamedTuple):
    """After these pieces the deadline is `seconds` from the context's `now`; when it has passed, the stage is this one."""

    pieces: list[bytes]
    seconds: float
    stage: str
    sent: bytes
    rejected: int = 0
    aborted: int = 0


DEADLINES = {
    "a new client": Deadline([], TIMEOUTS.header, "closed", b""),
    "within the first head": Deadline([get()[:10]], TIMEOUTS.header, "linger", b"HTTP/1.1 408", 1),
    "idle": Deadline([get()], TIMEOUTS.keep_alive, "closed", b"</a>"),
    "idle after a pipeline": Deadline([get() * 2], TIMEOUTS.keep_alive, "closed", b"</a></a>"),
    "within a head behind a request": Deadline([get() + get()[:10]], TIMEOUTS.header, "linger", b"</a>HTTP/1.1 408", 1),
    "within a head after a request": Deadline([get(), get()[:10]], TIMEOUTS.header, "linger", b"</a>HTTP/1.1 408", 1),
    "within a body": Deadline([post("/a", 5)], TIMEOUTS.body, "linger", b"HTTP/1.1 408", 1),
    "within chunks": Deadline([chunked(), b"3\r\nab"], TIMEOUTS.body, "linger", b"HTTP/1.1 408", 1),
    "within the body of an answered request": Deadline([post("/early", 5)], TIMEOUTS.body, "closed", b"<early>", 1),
    "busy": Deadline([get("/later")], NEVER, "busy", b""),
    "a sink that has enough": Deadline([post("/held", 5) + b"ab"], NEVER, "busy", b""),
    "lingering": Deadline([b"?\r\n\r\n"], LINGER_SECONDS, "closed", b"HTTP/1.1 400", 1),
    "another protocol": Deadline([get("/upgrade")], TIMEOUTS.ping_interval, "stream", b"<101>"),
}


@pytest.mark.parametrize("row", DEADLINES.values(), ids=DEADLINES)
def test_deadlines(worker: Worker, row: Deadline):
    """Each stage has its deadline. Before it nothing happens; after it the connection ends in the way of that stage."""
    client = worker.connect()
    for piece in row.pieces:
        client.send(piece)
    client.turn()
    stage = client.stage
    due = worker.context.now + row.seconds
    assert client.connection.due == due
    rejected = worker.context.rejected
    if due != NEVER:
        worker.context.tick(due - 0.001, 0.0)
        assert client.stage == stage
        worker.context.tick(due, 0.0)
    client.receive()
    assert client.stage == row.stage
    assert client.take().startswith(row.sent)
    assert worker.context.rejected - rejected == (row.rejected if stage != "linger" else 0)
    assert worker.context.aborted == row.aborted


def test_a_deadline_runs_from_the_last_piece(worker: Worker):
    """Each piece of a body or of another protocol extends the deadline; a piece of a head does not."""
    head, body, stream = (worker.connect() for _ in range(3))
    head.send(get()[:10])
    body.send(post("/a", 5))
    stream.send(get("/upgrade"))
    due = head.connection.due
    worker.context.tick(START + 5, 0.0)
    head.send(get()[10:12])
    body.send(b"a")
    stream.send(b"a")
    assert head.connection.due == due
    assert body.connection.due == START + 6 + TIMEOUTS.body
    assert stream.connection.due == START + 6 + TIMEOUTS.ping_interval


def test_the_deadline_of_a_silent_stream(worker: Worker):
    """Another protocol handles its deadline itself, and sets the next one."""
    client = worker.connect()
    client.send(get("/upgrade"))
    due = client.connection.due
    worker.context.tick(due, 0.0)
    assert worker.app.heard == ["deadline"]
    assert client.stage == "stream"
    assert client.connection.due == due + 1 + TIMEOUTS.ping_timeout


@pytest.mark.parametrize("path", ["/big", "/later", "/upgrade"])
def test_a_client_that_takes_nothing(worker: Worker, path: str, monkeypatch: pytest.MonkeyPatch):
    """A response that the client does not take has a deadline in each stage, which is extended while the client takes some."""
    lines: list[str] = []
    monkeypatch.setattr(log, "info", lines.append)
    client = worker.connect()
    client.sock.send(get(path))
    worker.loop.turn(0)
    if path != "/big":
        client.connection.write(BIG)
    due = client.connection.due
    assert due == worker.context.write_due
    client.sock.recv(100_000)
    worker.context.tick(due, 0.0)  # it has taken some bytes, although there may be no room for more yet
    assert client.stage != "closed"
    assert client.connection.due == worker.context.write_due == due + 1 + TIMEOUTS.write
    worker.context.tick(due + 1 + TIMEOUTS.write, 0.0)
    assert client.stage == "closed"
    assert worker.context.aborted == 1
    [line] = lines
    assert "192.0.2.1:5000" in line
    assert "30 s" in line


def test_deadlines_after_what_waited_is_sent(worker: Worker):
    """When the client has taken everything, the deadline is that of the stage again."""
    for path, due in ("/later", NEVER), ("/upgrade", worker.context.stream_due), ("/big", worker.context.idle_due):
        client = worker.connect()
        client.sock.send(get(path))
        worker.loop.turn(0)
        if path != "/big":
            client.connection.write(BIG)
        assert client.connection.due == worker.context.write_due
        client.take_all()
        assert client.connection.due == due


def test_set_deadline(worker: Worker):
    """A sink may set a deadline, on the monotonic clock."""
    client = worker.connect()
    client.send(get("/upgrade"))
    client.connection.set_deadline(START + 3)
    worker.context.tick(START + 2.9, 0.0)
    assert worker.app.heard == []
    worker.context.tick(START + 3, 0.0)
    assert worker.app.heard == ["deadline"]


# --- Rejects and lingering --------------------------------------------------------------------------------------------


def test_a_reject(worker: Worker, monkeypatch: pytest.MonkeyPatch):
    """The client gets an error response, the log shows client and reason, and the rest is not read as a request."""
    lines: list[str] = []
    monkeypatch.setattr(log, "info", lines.append)
    client = worker.connect()
    client.send(b"GET / HTTP/1.1\r\n\r\n" + get())
    assert client.take().startswith(b"HTTP/1.1 400 ")
    assert client.stage == "linger"
    assert worker.app.calls == []
    assert worker.context.rejected == 1
    [line] = lines
    assert line.startswith("rejected 192.0.2.1:5000: 400 ")


@pytest.mark.parametrize("opened", [False, True])
def test_a_broken_body(worker: Worker, opened: bool):
    """The sink is aborted. If part of its response was sent, no error response can follow, and the connection is closed."""
    client = worker.connect()
    client.send(chunked())
    worker.app.sink.opened = opened
    client.send(b"x\r\n")
    client.receive()
    assert worker.app.heard == ["abort"]
    assert client.stage == ("closed" if opened else "linger")
    assert client.take().startswith(b"" if opened else b"HTTP/1.1 400 ")
    assert worker.context.rejected == 1


def test_a_broken_body_that_came_with_its_head(worker: Worker):
    """The same if the broken part came with the head."""
    client = worker.connect()
    client.send(chunked() + b"x\r\n")
    assert client.take().startswith(b"HTTP/1.1 400 ")
    assert (client.stage, worker.app.heard) == ("linger", ["abort"])


def test_lingering_has_a_bound(worker: Worker):
    """Bytes that a client sends after the end are discarded, up to `LINGER_BYTES`."""
    client = worker.connect()
    client.send(b"?\r\n\r\n")
    sent = 0
    while client.stage == "linger":
        sent += client.sock.send(bytes(RECEIVE_BODY))
        client.turn(2)
        assert sent <= LINGER_BYTES + RECEIVE_BODY
    assert sent > LINGER_BYTES
    assert client.stage == "closed"


def test_lingering_needs_a_connected_socket(worker: Worker, monkeypatch: pytest.MonkeyPatch):
    """After a reset shutdown(2) fails, and there is no client left to wait for."""

    def shutdown(how: int) -> None:
        raise OSError(107, "Transport endpoint is not connected")

    client = worker.connect()
    monkeypatch.setattr(client.end, "shutdown", shutdown)
    client.send(b"?\r\n\r\n")
    assert client.stage == "closed"


def test_lingering_ends_with_the_client(worker: Worker):
    """When the client closes its side, the connection is closed."""
    client = worker.connect()
    client.send(b"?\r\n\r\n")
    client.send(b"some bytes more")
    assert client.stage == "linger"
    client.half_close()
    client.turn()
    assert client.stage == "closed"


def test_a_rejection_behind_waiting_bytes(worker: Worker):
    """An error response that has to wait for the client is sent first, and then the connection lingers."""
    client = worker.connect()
    client.send(chunked())
    client.connection.write(BIG)
    client.sock.send(b"x\r\n")
    worker.loop.turn(0)
    assert (client.stage, client.mask) == ("flush", "OUT")
    received = client.take_all()
    assert received.startswith(BIG + b"HTTP/1.1 400 ")
    assert client.stage == "linger"


# --- Draining ---------------------------------------------------------------------------------------------------------


def test_draining_closes_with_the_next_response(worker: Worker):
    """Idle connections may send one more request, and every response then ends its connection."""
    idle, busy, body = (worker.connect() for _ in range(3))
    idle.send(get())
    busy.send(get("/later"))
    body.send(post("/a", 3))
    worker.context.drain()
    idle.send(get())
    assert (idle.take(), idle.stage) == (b"</a></a>", "closed")
    busy.connection.complete(b"<later>")
    busy.receive()
    assert (busy.take(), busy.stage) == (b"<later>", "head")
    assert busy.connection.due == 0.0  # the next tick
    worker.context.tick(START + 1, 0.0)
    assert busy.stage == "closed"
    body.send(b"abc")
    assert body.take() == b"<3>"
    new = worker.connect(get())
    new.receive()
    assert (new.take(), new.ended) == (b"</a>", True)


def test_only_idle_connections_expire(worker: Worker):
    """A connection with a request, or part of a head, in progress keeps its deadline."""
    idle, _, part, busy, body, stream = clients = [worker.connect() for _ in range(6)]
    idle.send(get())
    part.send(get()[:10])
    busy.send(get("/later"))
    body.send(post("/a", 3))
    stream.send(get("/upgrade"))
    worker.context.expire_idle(START + 1)
    assert [client.connection.due == START + 1 for client in clients] == [True, True, False, False, False, False]
    worker.context.tick(START + 1, 0.0)
    assert [client.stage for client in clients] == ["closed", "closed", "head", "busy", "body", "stream"]


# --- The rest ---------------------------------------------------------------------------------------------------------


def test_names_and_addresses(worker: Worker):
    """Peer and server are pairs of text, and the log has a name for the client of a Unix socket, too."""
    client = worker.connect()
    assert client.connection.peer == ("192.0.2.1", "5000")
    assert client.connection.local == LOCAL
    assert client.connection.name() == "192.0.2.1:5000"
    ours, theirs = socket.socketpair()
    with theirs:
        accept(worker.context, ours, "", LOCAL)
        [unix] = {*worker.context.connections} - {client.connection}
        assert isinstance(unix, Connection)
        assert unix.peer == ("", "")
        assert "Unix socket" in unix.name()
        unix.close()


def test_a_memo_stays_with_its_connection(worker: Worker):
    """A memo of an application interface is there for the next request."""
    client = worker.connect()
    client.send(get())
    memo = object()
    client.connection.remember(memo)
    client.send(get())
    assert client.connection.memo is memo


def test_open_connections_are_known(worker: Worker):
    """The context has the open connections, and closing one twice is closing it once."""
    clients = [worker.connect() for _ in range(3)]
    assert worker.context.connections == {client.connection for client in clients}
    clients[0].connection.close()
    clients[0].connection.close()
    assert worker.context.connections == {client.connection for client in clients[1:]}


def test_a_closed_connection_leaves_nothing_behind(worker: Worker):
    """Neither the loop nor epoll knows it, in every stage: its number may be reused at once."""
    for pieces in [], [get()], [post("/a", 5)], [get("/later")], [get("/upgrade")], [b"?\r\n\r\n"]:
        for first in False, True:
            client = worker.connect(b"".join(pieces) if first else b"")
            for piece in pieces if not first else ():
                client.send(piece)
            number = client.end.fileno()
            client.connection.close()
            assert number not in worker.loop._handlers
            assert client.mask is None
            client.sock.close()
    assert not worker.context.connections


def test_errors_and_hang_ups_alone(worker: Worker):
    """ERR or HUP closes a connection whose response is not yet sent."""
    for event in ERR, HUP, ERR | HUP | IN:
        client = worker.connect()
        client.send(get("/later"))
        worker.loop._handlers[client.end.fileno()](event)
        assert client.stage == "closed"
    for event in ERR, HUP:
        client = worker.connect()
        client.sock.send(get("/big"))
        worker.loop.turn(0)
        assert client.stage == "flush"
        worker.loop._handlers[client.end.fileno()](IN)  # another descriptor's, which had this number
        assert client.stage == "flush"
        worker.loop._handlers[client.end.fileno()](event)
        assert client.stage == "closed"
