"""The bytes and files that wait for a client: order, limits, callbacks when there is room, and no descriptor left."""

import os
import select
import socket
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from epollard.net.write_buffer import FLUSH_TURN, HIGH, LOW, SENDFILE, File, WriteBuffer
from harness import WAIT, wait_for

Pair = tuple[socket.socket, socket.socket]
pytestmark = pytest.mark.timeout(WAIT)  # a fault here mostly shows as a loop without end, in many tests at once


def connected(family: str) -> Pair:
    """Our end, whose send buffer is small, and the client's."""
    if family == "unix":
        ours, theirs = socket.socketpair()
    else:
        with socket.create_server(("127.0.0.1", 0)) as listener:
            theirs = socket.create_connection(listener.getsockname())
            ours, _ = listener.accept()
    ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 65536)
    theirs.setblocking(False)
    return ours, theirs


@pytest.fixture(params=["tcp", "unix"])
def pair(request: pytest.FixtureRequest) -> Iterator[Pair]:
    """See `connected`."""
    ours, theirs = connected(request.param)
    with ours, theirs:
        yield ours, theirs


@pytest.fixture
def file(tmp_path: Path) -> Callable[[bytes], int]:
    """`file(content)`: a descriptor, which the test closes or hands over."""

    def make(content: bytes) -> int:
        path = tmp_path / "file"
        path.write_bytes(content)
        return os.open(path, os.O_RDONLY)

    return make


def is_open(fd: int) -> bool:
    try:
        os.fstat(fd)
    except OSError:
        return False
    return True


def receive(pair: Pair, out: WriteBuffer) -> bytes:
    """The bytes that have arrived at the client; empty if more can be sent first."""
    ours, theirs = pair
    readable, writable, _ = select.select([theirs], [ours] if out.pending else [], [], 10)
    assert readable or writable
    return theirs.recv(1 << 20) if readable else b""


def take(pair: Pair, out: WriteBuffer, count: int) -> bytes:
    """`count` bytes, as received by a client that takes all there is."""
    received = bytearray()
    while len(received) < count:
        out.flush()
        received += receive(pair, out)
    return bytes(received)


def fill(out: WriteBuffer) -> None:
    """Flush until the kernel takes no more bytes."""
    while out.flush():
        pass


def test_bytes_and_files_in_order(pair: Pair, file: Callable[[bytes], int]):
    """Pieces of both kinds are sent in the order in which they were added, each byte once."""
    ours, _ = pair
    head, content, tail = os.urandom(200_000), os.urandom(300_000), os.urandom(150_000)
    fd = file(content)
    out = WriteBuffer(ours, memoryview(head))
    out.add(File(fd, 0, len(content)))
    out.add(memoryview(tail))
    out.add(File(file(content), 1000, 5))
    expected = head + content + tail + content[1000:1005]
    assert out.pending == len(expected)
    assert take(pair, out, len(expected)) == expected
    assert out.pending == 0
    assert out.flush() == 0


def test_pending_is_what_the_kernel_did_not_take(pair: Pair):
    """`flush` returns the number of bytes sent; the others are pending."""
    ours, _ = pair
    data = os.urandom(1_000_000)
    out = WriteBuffer(ours, memoryview(data))
    moved = out.flush()
    assert 0 < moved < len(data)
    assert out.pending == len(data) - moved
    fill(out)
    assert take(pair, out, len(data)) == data


def test_a_file_never_blocks(pair: Pair, file: Callable[[bytes], int]):
    """A blocking socket becomes non-blocking when a file is sent, because sendfile(2) has no flag for that."""
    ours, _ = pair
    ours.setblocking(True)
    out = WriteBuffer(ours, File(file(bytes(5_000_000)), 0, 5_000_000))
    fill(out)  # comes back
    assert out.pending
    out.close()


class Greedy:
    """A socket that takes all bytes, like that of a client on the same machine that is as fast as we are."""

    def __init__(self) -> None:
        self.own, self.other = socket.socketpair()
        self.calls = 0

    def fileno(self) -> int:
        return self.own.fileno()

    def setblocking(self, flag: bool) -> None:
        self.own.setblocking(flag)

    def send(self, data: memoryview, flags: int) -> int:
        self.calls += 1
        return len(data)


def test_one_client_has_a_bounded_part_of_a_turn(monkeypatch: pytest.MonkeyPatch, file: Callable[[bytes], int]):
    """A client that takes everything gets about `FLUSH_TURN` bytes in a turn, and the result shows that it may take more."""
    greedy = Greedy()
    with greedy.own, greedy.other:
        small = FLUSH_TURN // 4
        out = WriteBuffer(greedy, memoryview(bytes(small)))  # type: ignore[arg-type]
        for _ in range(9):
            out.add(memoryview(bytes(small)))
        assert [out.flush() for _ in range(4)] == [FLUSH_TURN, FLUSH_TURN, 2 * small, 0]
        assert greedy.calls == 10

        counts: list[int] = []
        monkeypatch.setattr(os, "sendfile", lambda sock, fd, offset, count: counts.append(count) or count)
        size = FLUSH_TURN + SENDFILE + 1
        out = WriteBuffer(greedy, File(file(b""), 0, size))  # type: ignore[arg-type]
        assert out.flush() == FLUSH_TURN
        assert out.pending == SENDFILE + 1
        assert counts == [SENDFILE] * (FLUSH_TURN // SENDFILE)
        assert out.flush() == SENDFILE + 1


def test_full_is_above_high(pair: Pair):
    """With exactly `HIGH` bytes pending the buffer is not full yet."""
    out = WriteBuffer(pair[0], memoryview(bytes(HIGH)))
    assert not out.full
    out.add(memoryview(b"x"))
    assert out.full


def test_a_callback_for_room_is_called_once(pair: Pair):
    """At once if at most `LOW` bytes are pending, else as soon as they are, in order, and then never again."""
    ours, _ = pair
    called: list[str] = []
    out = WriteBuffer(ours, memoryview(bytes(LOW)))
    out.call_when_drained(lambda: called.append("at once"))
    assert called == ["at once"]
    out.add(memoryview(bytes(1_000_000)))
    out.call_when_drained(lambda: called.append("first"))
    out.call_when_drained(lambda: called.append("second"))
    while out.pending > LOW:
        assert called == ["at once"]
        out.flush()
        receive(pair, out)
    assert called == ["at once", "first", "second"]
    while out.pending:
        out.flush()
        receive(pair, out)
    out.close()
    assert called == ["at once", "first", "second"]


def test_a_callback_may_add_bytes_and_wait_again(pair: Pair):
    """A callback that adds bytes and asks for another call is called again when there is room, and not before."""
    ours, _ = pair
    called: list[int] = []

    def more() -> None:
        called.append(out.pending)
        if len(called) < 3:
            out.add(memoryview(bytes(HIGH)))
            out.call_when_drained(more)

    out = WriteBuffer(ours, memoryview(bytes(HIGH)))
    out.call_when_drained(more)
    take(pair, out, 3 * HIGH)
    assert len(called) == 3
    assert max(called) <= LOW
    assert out.pending == 0


def test_no_descriptor_is_left(pair: Pair, file: Callable[[bytes], int]):
    """A file is closed after its last byte; others are closed with the buffer, which then calls back."""
    ours, _ = pair
    sent, begun, never = (file(bytes(1_000_000)) for _ in range(3))
    called: list[str] = []
    out = WriteBuffer(ours, File(sent, 0, 10))
    out.add(File(begun, 0, 1_000_000))
    out.add(File(never, 0, 1_000_000))
    out.call_when_drained(lambda: called.append("gone"))
    fill(out)
    assert [is_open(fd) for fd in (sent, begun, never)] == [False, True, True]
    other = os.open("/dev/null", os.O_RDONLY)  # gets the number that is free: closing twice would close it
    assert other == sent
    assert called == []
    out.close()
    assert called == ["gone"]
    assert [is_open(fd) for fd in (begun, never)] == [False, False]
    assert is_open(other)
    os.close(other)


def test_a_file_that_has_shrunk_is_an_error(pair: Pair, file: Callable[[bytes], int], tmp_path: Path):
    """The promised bytes cannot be sent, so the client must not wait for them for ever."""
    ours, _ = pair
    fd = file(bytes(1000))
    out = WriteBuffer(ours, File(fd, 0, 2000))
    with pytest.raises(OSError, match="shorter"):
        fill(out)
    out.close()
    assert not is_open(fd)


@pytest.mark.parametrize("kind", ["bytes", "file"])
def test_a_client_that_is_gone_is_an_error(pair: Pair, file: Callable[[bytes], int], kind: str):
    """`flush` raises the kernel's error, and `close` still closes the files."""
    ours, theirs = pair
    fd = file(bytes(5_000_000))
    out = WriteBuffer(ours, memoryview(bytes(5_000_000)) if kind == "bytes" else File(fd, 0, 5_000_000))
    if kind == "bytes":
        out.add(File(fd, 0, 5_000_000))
    fill(out)
    theirs.close()  # with bytes unread: a reset
    with pytest.raises((BrokenPipeError, ConnectionResetError)):
        fill(out)
    out.close()
    assert not is_open(fd)


def test_progress_is_what_the_client_takes():
    """`moves`: bytes that the client took from the kernel since the last call or send. Sending is no progress."""
    ours, theirs = connected("unix")
    with ours, theirs:
        out = WriteBuffer(ours, memoryview(bytes(2_000_000)))
        fill(out)
        assert not out.moves()
        assert len(theirs.recv(1 << 20)) > 65536
        assert out.moves()
        assert not out.moves()
        fill(out)
        assert not out.moves()
        theirs.recv(1 << 20)
        out.moves()
        assert out.flush()
        theirs.recv(65536)  # much less than was just sent
        assert out.moves()


def test_progress_before_there_is_room():
    """A TCP client that takes a few bytes makes progress, even if there is no room to send more yet."""
    ours, theirs = connected("tcp")
    with ours, theirs:
        out = WriteBuffer(ours, memoryview(bytes(20_000_000)))
        fill(out)
        wait_for(lambda: not fill(out) and not out.moves())  # bytes on their way into the client's own buffer move without it
        taken = 0
        while not out.moves():
            taken += len(theirs.recv(1000))
        assert taken < 10_000_000
        wait_for(lambda: not out.moves())
