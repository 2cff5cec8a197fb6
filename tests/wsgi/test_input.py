"""Bodies as files: where they are kept, how they are read, and that nothing of them is left behind. No socket, no server."""

import io
import os
import tempfile
import threading
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, cast

import pytest

import corpus
from epollard.net.connection import Connection
from epollard.protocol.request import Request
from epollard.wsgi import input as wsgi_input
from epollard.wsgi.input import SPOOL_MEMORY, ExpectedInput, NoInput, Spool, Upload
from harness import SCALE, wait_for


def test_no_body_is_an_empty_file():
    """Every way of reading ends at once and returns the type that a binary file returns, every time."""
    body = NoInput()
    empty = io.BytesIO()
    for _ in range(2):
        for arguments in (), (-1,), (None,), (0,), (10,):
            assert body.read(*arguments) == empty.read(*arguments)
            assert body.readline(*arguments) == empty.readline(*arguments)
            assert body.readlines(*arguments) == empty.readlines(*arguments)
        assert list(body) == []
        body.close()


SIZES = [0, 1, SPOOL_MEMORY - 1, SPOOL_MEMORY, SPOOL_MEMORY + 1, 5 * SPOOL_MEMORY]


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("piece", [1000, 65536, 10**9])
def test_a_body_comes_back_as_it_came(size: int, piece: int):
    """It is in memory up to a limit and in a file above it, and reads the same from both."""
    data = os.urandom(size)
    spool = Spool()
    for start in range(0, size, piece):
        spool.write(data[start : start + piece])
    file = spool.rewind()
    assert isinstance(file, io.BytesIO) == (size <= SPOOL_MEMORY)
    assert file.read() == data
    assert file.read() == b""
    assert spool.rewind().read(10) == data[:10]
    spool.close()
    assert file.closed


READINGS = [
    ("read()", lambda file: [file.read()]),
    ("read(-1)", lambda file: [file.read(-1)]),
    ("read(None)", lambda file: [file.read(None)]),
    ("read(n)", lambda file: list(iter(lambda: file.read(70_001), b""))),
    ("readline()", lambda file: list(iter(file.readline, b""))),
    ("readline(n)", lambda file: list(iter(lambda: file.readline(100), b""))),
    ("readlines()", lambda file: file.readlines()),
    ("readlines(n) and the rest", lambda file: file.readlines(100) + file.readlines()),
    ("iter()", list),
]


@pytest.mark.parametrize(("name", "reading"), READINGS, ids=[row[0] for row in READINGS])
@pytest.mark.parametrize("lines", [3, 10_000])
def test_a_body_is_read_as_any_file(name: str, reading: Any, lines: int):
    """`read`, `readline`, `readlines` and iteration work as those of a file in memory, for small bodies and large ones."""
    data = b"".join(b"%d %s\n" % (number, b"x" * (number % 150)) for number in range(lines)) + b"no end"
    spool = Spool()
    spool.write(data)
    pieces = reading(spool.rewind())
    assert pieces == reading(io.BytesIO(data))
    assert b"".join(pieces) == data
    spool.close()


def test_a_large_body_has_no_name(tmp_path, monkeypatch: pytest.MonkeyPatch):
    """Other processes cannot find its file, which is gone with its last descriptor, even if the worker is killed."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    before = set(os.listdir("/proc/self/fd"))
    spool = Spool()
    spool.write(b"x" * (SPOOL_MEMORY + 1))
    assert os.listdir(tmp_path) == []
    assert str(tmp_path) in os.readlink(f"/proc/self/fd/{spool.rewind().fileno()}")
    spool.close()
    assert set(os.listdir("/proc/self/fd")) == before


def test_a_large_body_without_a_writable_directory(monkeypatch: pytest.MonkeyPatch):
    """With a read-only root and no /tmp, the body is a file in memory."""

    def nowhere(**options: object) -> None:
        raise FileNotFoundError("No usable temporary directory found")

    monkeypatch.setattr(tempfile, "TemporaryFile", nowhere)
    spool = Spool()
    spool.write(b"x" * SPOOL_MEMORY)
    spool.write(b"yz")
    file = spool.rewind()
    assert "memfd:" in os.readlink(f"/proc/self/fd/{file.fileno()}")
    assert not os.get_inheritable(file.fileno())
    assert file.read() == b"x" * SPOOL_MEMORY + b"yz"
    spool.close()


def test_a_full_disk(monkeypatch: pytest.MonkeyPatch):
    """It is an `OSError` when the body arrives, not when the body is read or closed."""
    with open("/dev/full", "w+b", buffering=0) as full:
        monkeypatch.setattr(wsgi_input, "_unnamed_file", lambda: full)
        spool = Spool()
        with pytest.raises(OSError, match="No space"):
            spool.write(b"x" * (SPOOL_MEMORY + 1))
        with pytest.raises(OSError, match="No space"):
            spool.write(b"x")
        spool.close()
        assert full.closed


def test_spools_are_independent():
    """Bodies that arrive at the same time do not mix."""
    spools = [Spool() for _ in range(8)]

    def fill(number: int) -> None:
        for _ in range(100):
            spools[number].write(bytes([number]) * 5000)

    threads = [threading.Thread(target=fill, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for number, spool in enumerate(spools):
        assert spool.rewind().read() == bytes([number]) * 500_000
        spool.close()


# --- Sinks


class FakeConnection:
    """Notes the calls of the sinks, in order."""

    def __init__(self, draining: bool = False) -> None:
        self.calls: list[Any] = []
        self.closed = False
        self.context = SimpleNamespace(draining=draining)

    def close_if_draining(self) -> None:
        self.calls.append("close_if_draining")

    def defer(self) -> None:
        self.calls.append("defer")

    def read_body(self, close: bool, ask: bool) -> None:
        self.calls.append(("read_body", close, ask))


class FakeCall:
    """The call that reads an input. What it posts is run when the test does so."""

    def __init__(self) -> None:
        self.aborted = False
        self.opened = False
        self.left_loop = 0
        self.posted: list[Callable[..., object]] = []

    def leave_loop(self) -> None:
        self.left_loop += 1

    def post(self, callback: Callable[..., object], /) -> None:
        self.posted.append(callback)


def expecting(*fields: str) -> Request:
    lines = ("POST / HTTP/1.1", "Host: a", "Content-Length: 4", "Expect: 100-continue", *fields, "", "")
    found = corpus.reader().read("\r\n".join(lines).encode())
    assert found is not None
    return found


def expected_input(*fields: str, draining: bool = False) -> tuple[FakeConnection, FakeCall, ExpectedInput]:
    connection, call = FakeConnection(draining), FakeCall()
    body = ExpectedInput(cast(Connection, connection), expecting(*fields))
    body.exchange = call
    return connection, call, body


def reading(body: ExpectedInput, call: FakeCall) -> tuple[threading.Thread, list[Any]]:
    """A thread that reads all of a body, and the list that gets the outcome: bytes, or the type of an exception."""
    found: list[Any] = []

    def read() -> None:
        try:
            found.append(body.read())
        except OSError as error:
            found.append(type(error))

    thread = threading.Thread(target=read)
    thread.start()
    wait_for(lambda: call.posted, "the thread waits for the body")
    return thread, found


def test_an_upload_is_answered_when_it_is_complete():
    """The application is called with the body at its beginning, and with `Connection: close` if the worker drains by now."""
    connection = FakeConnection()
    request = expecting()
    calls: list[Any] = []

    def run(connection: Connection, request: Request, body: Any) -> bytes:
        calls.append((connection, request, body.read()))
        return b"response"

    upload = Upload(run, cast(Connection, connection), request)
    upload.feed(b"ab")
    upload.feed(b"cd")
    assert calls == []
    assert upload.end() == b"response"
    assert calls == [(connection, request, b"abcd")]
    assert connection.calls == ["close_if_draining"]


def test_an_upload_that_is_aborted_is_given_up():
    """The application never hears of it, and no part of a response was sent."""
    upload = Upload(lambda *arguments: pytest.fail("called"), cast(Connection, FakeConnection()), expecting())
    upload.feed(b"ab")
    assert upload.abort() is False
    with pytest.raises(ValueError, match="closed file"):
        upload.feed(b"c")


def test_an_expected_body_is_asked_for_by_the_first_read():
    """The thread leaves the loop, then waits until the body is complete; reading on does not wait."""
    connection, call, body = expected_input()
    assert call.posted == []
    thread, found = reading(body, call)
    assert call.left_loop == 1
    assert connection.calls == []
    call.posted.pop()()
    assert connection.calls == [("read_body", False, True)]
    body.feed(b"ab")
    body.feed(b"c\n")
    body.end()
    thread.join(10 * SCALE)
    assert found == [b"abc\n"]
    assert connection.calls[1:] == ["defer"]
    assert (body.read(), body.readline(), body.readlines(), list(body)) == (b"", b"", [], [])
    assert call.left_loop == 1
    body.close()


@pytest.mark.parametrize(("fields", "draining"), [(("Connection: close",), False), ((), True)])
def test_an_expected_body_of_a_connection_that_closes(fields: tuple[str, ...], draining: bool):
    """The connection is asked for the body with the remark that it closes after the response."""
    connection, call, body = expected_input(*fields, draining=draining)
    thread, _ = reading(body, call)
    call.posted.pop()()
    assert connection.calls == [("read_body", True, True)]
    body.abort()
    thread.join(10 * SCALE)


@pytest.mark.parametrize("when", ["before it is asked for", "while it arrives"])
def test_an_expected_body_whose_client_leaves(when: str):
    """The read that waits raises `ConnectionResetError`, and so does every further one; the call sends nothing more."""
    connection, call, body = expected_input()
    thread, found = reading(body, call)
    if when == "while it arrives":
        call.posted.pop()()
        body.feed(b"a")
        assert body.abort() is False
    else:
        connection.closed = True
        call.posted.pop()()
    thread.join(10 * SCALE)
    assert found == [ConnectionResetError]
    assert call.aborted
    for _ in range(2):
        with pytest.raises(ConnectionResetError):
            body.read()
    assert body.abort() is False  # again: nothing waits, and nothing happens


def test_an_expected_body_is_not_asked_for_behind_a_response():
    """100 (Continue) comes before the final status or not at all: a read raises. An abort says that some was sent."""
    connection, call, body = expected_input()
    call.opened = True
    with pytest.raises(ConnectionResetError):
        body.read()
    assert (call.left_loop, call.posted, connection.calls) == (0, [], [])
    assert body.abort() is True
