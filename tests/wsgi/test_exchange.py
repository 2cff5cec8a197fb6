"""One call and its response, without sockets: all ways in which an application may answer, with the loop and without.

Bytes are compared as a whole: the head, the framing of the body, and what happens to the connection behind it.

Long: the rows of one thing, which share the fakes at the top.
"""

import gzip
import io
import os
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

import corpus
from epollard.net.connection import Connection
from epollard.net.write_buffer import HIGH
from epollard.protocol.request import Request
from epollard.protocol.response import COPY_BELOW
from epollard.wsgi.environ import FileWrapper
from epollard.wsgi.exchange import ClientGoneError, Exchange, Runner
from epollard.wsgi.input import ExpectedInput
from epollard.wsgi.lease import LoopLease
from harness import SCALE, wait_for

App = Callable[[dict[str, Any], Any], Iterable[bytes]]

OK = b"HTTP/1.1 200 OK\r\nServer: epollard\r\n"
DATE = b"Date: D\r\n\r\n"
CLOSE = b"Connection: close\r\n"
KEEP = b"Connection: keep-alive\r\n"
ERROR = (
    b"HTTP/1.1 500 Internal Server Error\r\nContent-Type: text/plain; charset=utf-8\r\nServer: epollard\r\n"
    b"Content-Length: 22\r\nDate: D\r\n\r\nInternal Server Error\n"
)


class FakeConnection:
    """Notes the calls of an exchange, in order, and the bytes that were sent."""

    def __init__(self) -> None:
        self.sent = b""
        self.calls: list[str] = []
        self.peer = ("client", "1024")
        self.closed = False
        self.closing = False
        self.out: Any = None
        self.context = SimpleNamespace(draining=False, date_end=DATE, close_end=CLOSE + DATE, keep_end=KEEP + DATE)
        self.drained: list[Callable[[], object]] = []

    def name(self) -> str:
        return "client:1024"

    def write(self, data: bytes) -> None:
        self.sent += data

    def write_two(self, head: bytes, body: bytes) -> None:
        self.calls.append("write_two")
        self.sent += head + body

    def write_file(self, fd: int, offset: int, count: int) -> None:
        self.calls.append("write_file")
        self.sent += os.pread(fd, count, offset)
        os.close(fd)

    def close(self) -> None:
        self.calls.append("close")
        self.closed = True

    def complete(self) -> None:
        self.calls.append("complete")

    def defer(self) -> None:
        self.calls.append("defer")

    def close_after_response(self) -> None:
        self.closing = True

    def call_when_drained(self, callback: Callable[[], object]) -> None:
        if self.out is None:
            callback()
        else:
            self.drained.append(callback)


class FakeRunner(Runner):
    """Runs at once what is posted, and notes it."""

    def __init__(self, connection: FakeConnection) -> None:
        self.last_head = ("", None, None)
        self.answered = 0
        self._access = self.log
        self.connection = connection
        self.posted: list[str] = []
        self.passed_on = 0
        self.ends: list[tuple[int, int]] = []  # status and bytes of body of each response

    def post(self, callback: Callable[..., object], *arguments: Any) -> None:
        self.posted.append(getattr(callback, "__name__", "?"))
        callback(*arguments)

    def pass_loop_on(self) -> None:
        self.passed_on += 1

    def log(self, peer: str, request: Request, code: int, sent: int, seconds: float) -> None:
        assert "complete" not in self.connection.calls  # counted first
        self.ends.append((code, sent))


class Call:
    """An exchange with everything that it needs."""

    def __init__(self, on_loop: bool = True, line: str = "GET /path HTTP/1.1", *fields: str) -> None:
        request = corpus.reader().read("\r\n".join((line, "Host: a", *fields, "", "")).encode())
        assert request is not None
        self.connection = FakeConnection()
        self.connection.closing = not request.fields.keep_alive
        self.runner = FakeRunner(self.connection)
        self.lease: LoopLease[Exchange] = LoopLease()
        connection = cast(Connection, self.connection)
        if on_loop:
            self.lease.renew()
            self.exchange = Exchange()
            self.exchange.runner = self.runner
            self.exchange.connection = connection
            self.exchange.request = request
            self.exchange.lease = self.lease
            self.exchange.head = None
            self.exchange.opened = False
        else:
            self.exchange = Exchange.off_loop(self.runner, connection, request)

    def run(self, app: App) -> "Call":
        """Call the application as the threads do, and send what it returns."""
        exchange = self.exchange
        if exchange.on_loop:
            self.lease.running = exchange
        try:
            result = app({}, exchange.start_response)
        except BaseException as error:
            exchange.fail(error)
        else:
            exchange._leave_application()
            exchange.send_result(result)
        return self

    def lose_loop(self) -> None:
        """The watcher revokes the lease."""
        assert self.lease.revoke(self.exchange, 1.0)


@pytest.fixture(params=[True, False], ids=["on the loop", "off the loop"])
def on_loop(request: pytest.FixtureRequest) -> bool:
    return bool(request.param)


def answering(result: Any, *headers: tuple[str, str], status: str = "200 OK") -> App:
    """An application that returns this: the result itself, or what a function makes of the callable `write`."""

    def app(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        write = start_response(status, list(headers))
        return cast(Iterable[bytes], result(write) if callable(result) else result)

    return app


def pieces(*pieces: bytes) -> Callable[[Any], Iterator[bytes]]:
    return lambda write: iter(pieces)


def written(*first: bytes, then: Any = ()) -> Callable[[Any], Any]:
    def call(write: Any) -> Any:
        for data in first:
            write(data)
        return then

    return call


def length(number: int) -> tuple[str, str]:
    return "Content-Length", str(number)


def say(number: int) -> bytes:
    return b"Content-Length: %d\r\n" % number


def length_head(number: int) -> bytes:
    """The application's own Content-Length comes before the server's fields."""
    return b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\nServer: epollard\r\n" % number


CHUNKED = b"Transfer-Encoding: chunked\r\n"
LARGE = b"x" * (COPY_BELOW + 1)

ROWS: dict[str, tuple[str, App, bytes]] = {
    "a list of one": ("1.1", answering([b"abc"]), OK + say(3) + DATE + b"abc"),
    "a list of several": ("1.1", answering([b"ab", b"", b"c"]), OK + say(3) + DATE + b"abc"),
    "a tuple": ("1.1", answering((b"ab", b"c")), OK + say(3) + DATE + b"abc"),
    "an empty list": ("1.1", answering([]), OK + say(0) + DATE),
    "a list with its length": ("1.1", answering([b"abc"], length(3)), length_head(3) + DATE + b"abc"),
    "a large list": ("1.1", answering([LARGE]), OK + say(len(LARGE)) + DATE + LARGE),
    "a generator": ("1.1", answering(pieces(b"ab", b"", b"c")), OK + CHUNKED + DATE + b"2\r\nab\r\n1\r\nc\r\n0\r\n\r\n"),
    "a generator with its length": ("1.1", answering(pieces(b"ab", b"c"), length(3)), length_head(3) + DATE + b"abc"),
    "an empty generator": ("1.1", answering(pieces()), OK + say(0) + DATE),
    "a generator of nothing": ("1.1", answering(pieces(b"", b"")), OK + say(0) + DATE),
    "written": ("1.1", answering(written(b"ab", b"", b"c")), OK + CHUNKED + DATE + b"2\r\nab\r\n1\r\nc\r\n0\r\n\r\n"),
    "written, then a list": (
        "1.1",
        answering(written(b"ab", then=[b"c", b"d"])),
        OK + CHUNKED + DATE + b"2\r\nab\r\n2\r\ncd\r\n0\r\n\r\n",
    ),
    "written, with a length": ("1.1", answering(written(b"ab", then=[b"c"]), length(3)), length_head(3) + DATE + b"abc"),
    "no body": (
        "1.1",
        answering([b"abc"], status="304 Not Modified"),
        b"HTTP/1.1 304 Not Modified\r\nServer: epollard\r\n" + DATE,
    ),
    "no body, generator": (
        "1.1",
        answering(pieces(b"abc"), status="204 No Content"),
        b"HTTP/1.1 204 No Content\r\nServer: epollard\r\n" + DATE,
    ),
    "HTTP/1.0, a list": ("1.0", answering([b"abc"]), OK + say(3) + CLOSE + DATE + b"abc"),
    "HTTP/1.0, a generator": ("1.0", answering(pieces(b"ab", b"c")), OK + CLOSE + DATE + b"abc"),
    "no start_response": ("1.1", lambda environ, start_response: [b"abc"], ERROR),
    "no start_response, generator": ("1.1", lambda environ, start_response: iter([b"abc"]), ERROR),
    "text": ("1.1", answering(["abc"]), ERROR),
    "text, generator": ("1.1", answering(lambda write: iter(["abc"])), ERROR),
    "None": ("1.1", answering(None), ERROR),
    "write of text": ("1.1", answering(written(cast(bytes, "abc"))), ERROR),
}


@pytest.mark.parametrize("name", ROWS)
def test_a_result_is_sent(on_loop: bool, name: str):
    """All of it is sent, with a framing that its client can read. A result that cannot be sent is a 500."""
    version, app, expected = ROWS[name]
    call = Call(on_loop, f"GET /path HTTP/{version}").run(app)
    assert call.connection.sent == expected
    assert ("write_two" in call.connection.calls) == (LARGE in expected)  # a large body is not copied
    body = expected.partition(b"\r\n\r\n")[2]
    if CHUNKED in expected:
        body = b"".join(body.split(b"\r\n")[1:-3:2])
    assert call.runner.ends == [(int(expected[9:12]), len(body))]
    assert call.connection.closing == (version == "1.0")
    assert not call.connection.closed


@pytest.mark.parametrize(
    "result", [[b"abc"], pieces(b"ab", b"c"), written(b"ab", then=[b"c"])], ids=["list", "generator", "written"]
)
@pytest.mark.parametrize("headers", [[], [length(3)], [length(2)], [length(9)]], ids=["no length", "3", "2", "9"])
def test_the_response_to_head_has_no_body(
    on_loop: bool, result: Any, headers: list[tuple[str, str]], capfd: pytest.CaptureFixture[str]
):
    """A body that does not match its Content-Length is not logged either: an application need not make one for HEAD."""
    call = Call(on_loop, "HEAD /path HTTP/1.1").run(answering(result, *headers))
    head, end, body = call.connection.sent.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 200 OK\r\n")
    assert (end, body) == (b"\r\n\r\n", b"")
    assert call.runner.ends == [(200, 0)]
    assert not call.connection.closed
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize(
    "result", [[b"abc", b"de"], pieces(b"abc", b"de"), written(b"abc", then=[b"de"])], ids=["list", "generator", "written"]
)
@pytest.mark.parametrize("size", [0, 2, 3, 4])
def test_a_body_that_is_too_long_is_cut(on_loop: bool, result: Any, size: int, capfd: pytest.CaptureFixture[str]):
    """Bytes over the Content-Length would be read as the next response. The log has a warning."""
    call = Call(on_loop).run(answering(result, length(size)))
    assert call.connection.sent == length_head(size) + DATE + b"abcde"[:size]
    assert call.runner.ends == [(200, size)]
    assert not call.connection.closed
    assert "application sent more than its Content-Length on GET /path: cut" in capfd.readouterr().err


@pytest.mark.parametrize(
    "result", [[b"abc"], pieces(b"ab", b"c"), written(b"ab", then=[b"c"]), []], ids=["list", "generator", "written", "empty"]
)
def test_a_body_that_is_too_short_ends_the_connection(on_loop: bool, result: Any, capfd: pytest.CaptureFixture[str]):
    """The client would wait for the rest. The log has a warning."""
    call = Call(on_loop).run(answering(result, length(5)))
    body = b"abc" if result else b""
    assert call.connection.sent == length_head(5) + DATE + body
    assert call.connection.closed
    assert f"application sent {5 - len(body)} bytes less than its Content-Length on GET /path: closed" in capfd.readouterr().err


def test_a_draining_worker_announces_the_close(on_loop: bool):
    """Draining may have begun after the request was read."""
    call = Call(on_loop)
    call.connection.context.draining = True
    call.run(answering(pieces(b"abc")))
    assert call.connection.sent.startswith(OK + CHUNKED + CLOSE + DATE)
    assert call.connection.closing


# --- Turns


def test_a_response_on_the_loop_ends_by_returning():
    """The connection goes on when its turn ends, so nothing has to be posted."""
    call = Call().run(answering(pieces(b"abc")))
    assert call.runner.posted == []
    assert "complete" not in call.connection.calls


def test_a_response_off_the_loop_is_posted():
    """Methods of the connection are called on the loop's thread only; `complete` is the last of them."""
    call = Call(on_loop=False).run(answering(pieces(b"abc")))
    assert call.runner.posted == ["write", "write", "finished", "complete"]
    assert call.connection.calls == ["complete"]


@pytest.mark.parametrize("at", [0, 1, 2], ids=["the call", "the first piece", "the second piece"])
def test_a_loop_that_is_lost_while_the_application_runs(at: int):
    """From then on everything is posted, and every byte is sent once."""
    call = Call()

    def app(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        start_response("200 OK", [])
        if at == 0:
            call.lose_loop()

        def generate() -> Iterator[bytes]:
            for number in range(1, 4):
                if at == number:
                    call.lose_loop()
                yield b"%d" % number

        return generate()

    call.run(app)
    assert call.connection.sent == OK + CHUNKED + DATE + b"1\r\n1\r\n1\r\n2\r\n1\r\n3\r\n0\r\n\r\n"
    assert call.runner.posted == ["write"] * (4 - max(at - 1, 0)) + ["finished", "complete"]
    assert not call.exchange.on_loop


def test_a_loop_that_is_lost_in_write():
    """`write` sends on the loop as long as it can."""
    call = Call()

    def app(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        write = start_response("200 OK", [length(3)])
        write(b"a")
        assert call.runner.posted == []
        call.lose_loop()
        write(b"b")
        assert call.runner.posted == ["write"]
        return [b"c"]

    call.run(app)
    assert call.connection.sent == length_head(3) + DATE + b"abc"


def test_a_loop_that_is_lost_in_close():
    """The response was complete already, so only the end of the request is posted."""
    call = Call()

    class Result(list[bytes]):
        def close(self) -> None:
            call.lose_loop()

    call.run(answering(Result([b"abc"])))
    assert call.connection.sent == OK + say(3) + DATE + b"abc"
    assert call.runner.posted == ["complete"]


def test_the_loop_cannot_be_taken_while_the_server_sends():
    """It can be taken only while the application's code runs: the call, the steps of a generator, `close()`."""
    call = Call()
    takes: list[bool] = []

    def attempt() -> None:
        takes.append(call.lease.revoke(call.exchange, 1.0))
        if takes[-1]:
            call.lease.renew()

    def write(data: bytes) -> None:
        attempt()
        call.connection.sent += data

    call.connection.write = write  # type: ignore[method-assign]
    call.run(answering(pieces(b"a", b"b")))
    assert takes == [False] * 3


# --- Waiting for the client


class Full:
    """A write buffer that is full."""

    full = True


def test_a_client_that_takes_nothing_costs_the_exchange_its_loop():
    """On the loop: once too much waits for the client, the thread surrenders the loop, then waits until the client takes it."""
    call = Call()
    steps: list[int] = []

    def generate(write: Any) -> Iterator[bytes]:
        for number in range(3):
            steps.append(number)
            if number == 1:
                call.connection.out = Full()
            yield b"x"

    thread = threading.Thread(target=call.run, args=(answering(generate),))
    thread.start()
    wait_for(lambda: call.connection.drained, "the thread waits")
    assert steps == [0, 1]
    assert call.lease.contested
    assert call.runner.passed_on == 1
    assert call.connection.calls == ["defer"]
    call.connection.out = None
    call.connection.drained.pop()()
    thread.join(10 * SCALE)
    assert steps == [0, 1, 2]
    assert call.connection.sent == OK + CHUNKED + DATE + b"1\r\nx\r\n" * 3 + b"0\r\n\r\n"
    assert call.runner.posted[-1] == "complete"


def test_a_client_that_takes_nothing_holds_a_thread_without_the_loop():
    """Off the loop: after every `HIGH` bytes the thread waits until the client has taken them, so that no memory fills."""
    call = Call(on_loop=False)
    call.connection.out = Full()
    size = HIGH // 4
    steps: list[int] = []

    def generate(write: Any) -> Iterator[bytes]:
        for number in range(12):
            steps.append(number)
            yield b"x" * size

    thread = threading.Thread(target=call.run, args=(answering(generate, length(12 * size)),))
    thread.start()
    for taken in range(2):
        wait_for(lambda: call.connection.drained, "the thread waits")
        assert len(steps) <= 5 * (taken + 1)
        assert call.runner.passed_on == 0
        call.connection.drained.pop()()
    thread.join(10 * SCALE)
    assert len(call.connection.sent) > 12 * size
    assert len(steps) == 12


def test_the_loop_is_given_away_once():
    """A thread that is going to wait gives the loop away if it has it, and then has none."""
    call = Call()
    call.lease.running = call.exchange
    for _ in range(2):
        call.exchange.leave_loop()
        assert call.runner.passed_on == 1
        assert call.connection.calls == ["defer"]
        assert call.lease.running is None
        assert call.lease.contested


def test_a_loop_that_was_taken_is_not_given_away():
    """The watcher was faster."""
    call = Call()
    call.lease.running = call.exchange
    call.lose_loop()
    call.exchange.leave_loop()
    assert not call.exchange.on_loop
    assert call.runner.passed_on == 0
    assert call.connection.calls == []


# --- Clients that are gone


@pytest.mark.parametrize("how", ["closed", "aborted"])
def test_a_stream_ends_when_its_client_is_gone(on_loop: bool, how: str):
    """The generator is not asked for more than one piece after that, and is closed."""
    call = Call(on_loop)
    steps: list[str] = []

    def generate(write: Any) -> Iterator[bytes]:
        try:
            yield b"first"
            if how == "closed":
                call.connection.closed = True
            else:
                call.exchange.aborted = True
            yield b"second"
            steps.append("asked for a third")
        finally:
            steps.append("closed")

    call.run(answering(generate))
    assert steps == ["closed"]
    assert len(call.runner.ends) == 1
    assert ("complete" in call.connection.calls) == (not on_loop and how == "closed")


def test_write_raises_when_the_client_is_gone(on_loop: bool, capfd: pytest.CaptureFixture[str]):
    """An application that writes without end ends by that, and that is not its failure."""
    call = Call(on_loop)
    call.connection.closed = True
    caught: list[OSError] = []

    def app(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        write = start_response("200 OK", [])
        try:
            while True:
                write(b"more")
        except OSError as error:
            caught.append(error)
            raise

    call.run(app)
    assert [type(error) for error in caught] == [ClientGoneError]
    assert "failed" not in capfd.readouterr().err


# --- Files


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "file"
    path.write_bytes(os.urandom(3 * COPY_BELOW))
    return path


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


FILES: list[tuple[int, int | None, bool]] = [
    (0, None, True),
    (1, None, True),
    (2 * COPY_BELOW, None, False),  # a small rest is copied behind its head
    (3 * COPY_BELOW - 1, None, False),
    (3 * COPY_BELOW, None, False),
    (3 * COPY_BELOW + 1, None, False),
    (0, COPY_BELOW + 1, True),
    (5, COPY_BELOW, False),
    (5, 1, False),
    (5, 0, False),
]


@pytest.mark.parametrize(("offset", "size", "by_kernel"), FILES)
@pytest.mark.parametrize("buffering", [-1, 0])
def test_a_file_is_sent_from_its_position(
    on_loop: bool, path: Path, offset: int, size: int | None, by_kernel: bool, buffering: int
):
    """To its end or its Content-Length; a large one by the kernel, from a descriptor that the application cannot close."""
    content = path.read_bytes()[offset:][:size]
    before = descriptors()
    file = path.open("rb", buffering=buffering)
    file.seek(offset)
    call = Call(on_loop).run(answering(FileWrapper(file), *([] if size is None else [length(size)])))
    head = OK + say(len(content)) if size is None else length_head(size)
    assert call.connection.sent == head + DATE + content
    assert ("write_file" in call.connection.calls) == by_kernel
    assert call.runner.ends == [(200, len(content))]
    assert file.closed
    assert descriptors() == before


def test_a_file_that_is_too_short(on_loop: bool, path: Path, capfd: pytest.CaptureFixture[str]):
    """A Content-Length that cannot be kept ends with the connection."""
    content = path.read_bytes()
    call = Call(on_loop).run(answering(FileWrapper(path.open("rb")), length(len(content) + 1)))
    assert call.connection.sent == length_head(len(content) + 1) + DATE + content
    assert call.connection.closed
    assert "application sent 1 bytes less than its Content-Length" in capfd.readouterr().err


@pytest.mark.parametrize(("line", "status"), [("HEAD /path HTTP/1.1", "200 OK"), ("GET /path HTTP/1.1", "304 Not Modified")])
def test_a_file_where_no_body_may_be(on_loop: bool, path: Path, line: str, status: str):
    """Not a byte of it is sent, and its descriptors are closed."""
    before = descriptors()
    call = Call(on_loop, line).run(answering(FileWrapper(path.open("rb")), status=status))
    assert call.connection.sent.endswith(DATE)
    assert call.runner.ends == [(int(status[:3]), 0)]
    assert descriptors() == before


def test_a_file_for_a_client_that_was_refused(on_loop: bool, path: Path):
    """Nothing is sent, and its descriptors are closed."""
    before = descriptors()
    call = Call(on_loop)
    call.exchange.aborted = True
    call.run(answering(FileWrapper(path.open("rb"))))
    assert call.connection.sent == b""
    assert "complete" not in call.connection.calls
    assert descriptors() == before


def test_a_file_behind_what_was_written(on_loop: bool, path: Path):
    """It is read piece by piece and chunked, since the head was sent without a length."""
    call = Call(on_loop).run(answering(written(b"ab", then=FileWrapper(path.open("rb"), COPY_BELOW))))
    pieces = [b"ab", *(path.read_bytes()[i * COPY_BELOW :][:COPY_BELOW] for i in range(3))]
    assert call.connection.sent == OK + CHUNKED + DATE + b"".join(b"%x\r\n%b\r\n" % (len(p), p) for p in pieces) + b"0\r\n\r\n"


@pytest.mark.parametrize("kind", ["memory", "gzip", "pipe", "closed descriptor"])
def test_an_object_that_only_looks_like_a_file_is_read(on_loop: bool, path: Path, kind: str):
    """No descriptor, one with other bytes than `read` gives, or one without a size: it is read as any iterable."""
    content = b"text" * 1000
    file: Any
    if kind == "memory":
        file = io.BytesIO(content)
    elif kind == "gzip":
        path.write_bytes(gzip.compress(content))
        file = gzip.open(path)  # noqa: SIM115 - the exchange closes it
    else:
        reader, writer = os.pipe()
        os.write(writer, content)
        os.close(writer)
        file = os.fdopen(reader, "rb")
    call = Call(on_loop)
    if kind == "closed descriptor":
        file.close()
        call.run(answering(FileWrapper(file)))
        assert call.connection.sent == ERROR  # what `read` raises
    else:
        call.run(answering(FileWrapper(file)))
        assert call.connection.sent == OK + CHUNKED + DATE + b"%x\r\n%b\r\n0\r\n\r\n" % (len(content), content)
    assert file.closed


# --- start_response, and applications that fail


@pytest.mark.parametrize("error", [RuntimeError, SystemExit, KeyboardInterrupt, StopIteration, BaseException])
@pytest.mark.parametrize("when", ["before", "after start_response", "in the first step"])
def test_every_exception_is_a_500(on_loop: bool, error: type[BaseException], when: str, capfd: pytest.CaptureFixture[str]):
    """That holds as long as nothing is sent. The log has the traceback."""

    def steps() -> Iterator[bytes]:
        yield b""
        raise ValueError("raised on purpose")

    def app(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        if when != "before":
            start_response("200 OK", [("X-Secret", "1")])
        if when == "in the first step":
            return steps()
        raise error("raised on purpose")

    call = Call(on_loop).run(app)
    assert call.connection.sent == ERROR
    assert not call.connection.closed
    assert call.runner.ends == [(500, 22)]
    log = capfd.readouterr().err
    assert "application failed on GET /path of client:1024" in log
    assert "raised on purpose" in log


def test_an_error_behind_the_head_ends_the_connection(on_loop: bool):
    """The client sees that the body is incomplete."""

    def generate(write: Any) -> Iterator[bytes]:
        yield b"begun"
        raise RuntimeError("raised on purpose")

    call = Call(on_loop).run(answering(generate))
    assert call.connection.sent == OK + CHUNKED + DATE + b"5\r\nbegun\r\n"
    assert call.connection.closed
    assert call.runner.ends == [(200, 5)]


def test_close_is_called_once_whatever_happens(on_loop: bool, capfd: pytest.CaptureFixture[str]):
    """After a good response, a wrong one, a failed one. Its exception is only logged: the client has its response."""
    for steps, expected in (iter([b"ab"]), 200), (iter([cast(bytes, "text")]), 500), ((1 // 0 for _ in (1,)), 500):
        closed: list[None] = []

        class Result:
            def __init__(self, steps: Any, closed: list[None]) -> None:
                self.steps = steps
                self.closed = closed

            def __iter__(self) -> Any:
                return self.steps

            def close(self) -> None:
                self.closed.append(None)
                raise RuntimeError("raised by close()")

        call = Call(on_loop).run(answering(Result(steps, closed)))
        assert len(closed) == 1
        assert [code for code, _ in call.runner.ends] == [expected]
        assert "close() of the application's result failed on /path" in capfd.readouterr().err


def test_a_head_can_be_replaced_until_it_is_sent(on_loop: bool):
    """A call with `exc_info` replaces all of it; a second call without is an error."""

    def app(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        start_response("200 OK", [("X-First", "1")])
        try:
            raise ValueError
        except ValueError:
            start_response("503 Service Unavailable", [], sys.exc_info())
        return [b"abc"]

    call = Call(on_loop).run(app)
    assert call.connection.sent == b"HTTP/1.1 503 Service Unavailable\r\nServer: epollard\r\n" + say(3) + DATE + b"abc"

    def twice(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        start_response("200 OK", [])
        start_response("200 OK", [])
        return [b"abc"]

    assert Call(on_loop).run(twice).connection.sent == ERROR


def test_a_head_cannot_be_replaced_once_it_is_sent(on_loop: bool, capfd: pytest.CaptureFixture[str]):
    """`start_response` raises the exception that it is given, and the connection ends."""

    def app(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        start_response("200 OK", [])(b"begun")
        try:
            raise ValueError("noticed too late")
        except ValueError:
            start_response("500 Oops", [], sys.exc_info())
        return [b"never"]

    call = Call(on_loop).run(app)
    assert call.connection.sent == OK + CHUNKED + DATE + b"5\r\nbegun\r\n"
    assert call.connection.closed
    assert "noticed too late" in capfd.readouterr().err


@pytest.mark.parametrize(
    "headers", [[("X", "a\r\nY: b")], [("X\n", "a")], [(b"X", b"a")], [("Content-Length", "ten")], [("X",)], 5]
)
def test_a_bad_head_is_a_500(on_loop: bool, headers: Any):
    """It is judged before a byte of it is sent."""

    def app(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        start_response("200 OK", headers)
        return [b"abc"]

    assert Call(on_loop).run(app).connection.sent == ERROR


def test_a_list_of_headers_is_judged_as_it_is_now():
    """An application that gives the same list again, with other content, gets the head of that content."""
    call = Call()
    headers = [("X", "1")]
    for value in "1", "1", "2", "2\n":
        headers[0] = ("X", value)
        call.exchange.head = None
        if value == "2\n":
            with pytest.raises(ValueError, match="bad value"):
                call.exchange.start_response("200 OK", headers)
        else:
            call.exchange.start_response("200 OK", headers)
            assert call.exchange.head is not None
            assert b"X: %b\r\n" % value.encode() in call.exchange.head.lines


def test_the_input_of_a_call():
    """It is in the environ; one that waits for the client knows its exchange."""
    call = Call()
    environ: dict[str, Any] = {}
    body = io.BytesIO(b"body")
    call.exchange.set_input(environ, body)
    assert environ["wsgi.input"] is body
    expected = ExpectedInput(cast(Connection, call.connection), call.exchange.request)
    environ = {}
    call.exchange.set_input(environ, expected)
    assert environ["wsgi.input"] is expected
    assert cast(object, expected.exchange) is call.exchange
