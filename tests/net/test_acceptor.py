"""The accept loop: how many connections a turn takes, which name they get, and what happens when descriptors run out."""

import errno
import os
import select
import socket
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from epollard import log
from epollard.net.acceptor import ACCEPTS, UNIX_NAME, Acceptor, server_name
from epollard.net.loop import Loop


class Acceptance:
    """An acceptor on a loop of its own, and all that it has taken and reported."""

    def __init__(self) -> None:
        self.loop = Loop()
        self.taken: list[tuple[socket.SocketType, Any, tuple[str, str]]] = []
        self.counts = memoryview(bytearray(16)).cast("q")
        self.seen: list[list[int]] = []  # the counts, as each `take` found them
        self.acceptor = Acceptor(self.loop, self.take, self.taken, self.counts)

    def take(self, sock: socket.SocketType, peer: object, name: tuple[str, str]) -> None:
        self.taken.append((sock, peer, name))
        self.seen.append(self.counts.tolist())

    def turn(self) -> int:
        """Turn the loop once without waiting: the number of connections taken."""
        before = len(self.taken)
        self.loop.turn(0)
        return len(self.taken) - before


@pytest.fixture
def acceptance() -> Iterator[Acceptance]:
    """An acceptor without listeners. What it has taken is closed at the end."""
    found = Acceptance()
    yield found
    for sock, _, _ in found.taken:
        sock.close()
    found.loop.close()


@pytest.fixture
def clients() -> Iterator[Callable[[socket.socket, int], list[socket.socket]]]:
    """`clients(listener, 3)` connects three."""
    opened: list[socket.socket] = []

    def connect(listener: socket.socket, count: int) -> list[socket.socket]:
        for _ in range(count):
            client = socket.socket(listener.family)
            opened.append(client)
            client.connect(listener.getsockname())
        return opened[-count:]

    yield connect
    for client in opened:
        client.close()


@pytest.fixture
def listener() -> Iterator[socket.socket]:
    """A TCP listener on a free port."""
    with socket.create_server(("127.0.0.1", 0), backlog=64) as found:
        found.setblocking(False)
        yield found


class Failing:
    """A listener whose accept(2) returns these error numbers, one a call, and then nothing more."""

    family = socket.AF_INET

    def __init__(self, listener: socket.socket, *errors: int) -> None:
        self._listener = listener
        self.errors = list(errors)
        self.calls = 0

    def fileno(self) -> int:
        return self._listener.fileno()

    def getsockname(self) -> Any:
        return self._listener.getsockname()

    def _accept(self) -> tuple[int, Any]:
        self.calls += 1
        if self.errors:
            number = self.errors.pop(0)
            raise OSError(number, os.strerror(number))
        found: tuple[int, Any] = self._listener._accept()  # type: ignore[attr-defined]
        return found


def test_connections_are_taken_with_peer_and_name(acceptance: Acceptance, listener: socket.socket, clients: Any):
    """Each connection comes with the address of its client, and with SERVER_NAME and SERVER_PORT of its listener."""
    acceptance.acceptor.add(listener)
    [client] = clients(listener, 1)
    assert acceptance.turn() == 1
    [(sock, peer, name)] = acceptance.taken
    assert peer == client.getsockname()
    assert name == ("127.0.0.1", str(listener.getsockname()[1]))
    client.sendall(b"hello")
    assert sock.recv(5) == b"hello"
    assert not os.get_inheritable(sock.fileno())


def test_equal_names_are_one_object(listener: socket.socket):
    """The name of a listener is compared with `is` for each request: equal ones are the same object."""
    with listener.dup() as again:
        assert server_name(listener) is server_name(again)
    with socket.create_server(("127.0.0.1", 0)) as other:
        assert server_name(listener) != server_name(other)


def test_unix_sockets_have_a_name_too(acceptance: Acceptance, clients: Any, tmp_path: Any):
    """SERVER_NAME may not be empty (PEP 3333), so the clients of a Unix socket get one that is not."""
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "socket"))
        listener.listen()
        listener.setblocking(False)
        acceptance.acceptor.add(listener)
        clients(listener, 1)
        assert acceptance.turn() == 1
        assert acceptance.taken[0][2] == UNIX_NAME == ("localhost", "80")


def test_one_of_those_that_share_a_unix_socket_wakes(clients: Any, tmp_path: Any, monkeypatch: pytest.MonkeyPatch):
    """A Unix socket is registered with EPOLLEXCLUSIVE, because all workers share one; a TCP listener is not."""
    masks: list[int] = []
    loop = Loop()
    monkeypatch.setattr(loop, "watch", lambda fd, mask, handler: masks.append(mask))
    acceptor = Acceptor(loop, lambda *accepted: None, ())
    with socket.socket(socket.AF_UNIX) as unix, socket.create_server(("127.0.0.1", 0)) as tcp:
        unix.bind(str(tmp_path / "socket"))
        acceptor.add(unix)
        acceptor.add(tcp)
    assert masks == [select.EPOLLIN | select.EPOLLEXCLUSIVE, select.EPOLLIN]
    loop.close()


def test_a_turn_takes_a_bounded_number(acceptance: Acceptance, listener: socket.socket, clients: Any):
    """A burst does not starve the clients that are being served: the rest of the queue waits for the next turn."""
    acceptance.acceptor.add(listener)
    clients(listener, ACCEPTS + 5)
    assert [acceptance.turn(), acceptance.turn(), acceptance.turn()] == [ACCEPTS, 5, 0]


def test_counts_are_written_after_each_batch(acceptance: Acceptance, listener: socket.socket, clients: Any):
    """Another process sees how many connections were accepted, and how many are open."""
    acceptance.acceptor.add(listener)
    clients(listener, 2)
    acceptance.turn()
    assert acceptance.seen == [[0, 0], [0, 0]]
    assert acceptance.counts.tolist() == [2, 2]
    acceptance.taken.pop()[0].close()
    acceptance.acceptor.count()
    assert acceptance.counts.tolist() == [2, 1]


def test_a_lost_loop_leaves_the_rest_to_the_next_turn(acceptance: Acceptance, listener: socket.socket, clients: Any):
    """If `take` leaves by an exception, the connections behind it are still in the queue."""

    class LostError(BaseException):
        pass

    def take(sock: socket.SocketType, peer: object, name: tuple[str, str]) -> None:
        acceptance.take(sock, peer, name)
        if len(acceptance.taken) == 1:
            raise LostError

    acceptor = Acceptor(acceptance.loop, take, acceptance.taken, acceptance.counts)
    acceptor.add(listener)
    clients(listener, 2)
    with pytest.raises(LostError):
        acceptance.turn()
    assert acceptance.counts.tolist() == [0, 0]
    assert acceptance.turn() == 1
    # The next batch begins with what the thread that lost the loop could not write.
    assert acceptance.seen == [[0, 0], [1, 0]]
    assert acceptance.counts.tolist() == [2, 2]


@pytest.mark.parametrize("number", [errno.ECONNABORTED, errno.EPROTO, errno.ENETDOWN, errno.EINTR])
def test_a_client_that_left_while_waiting_is_skipped(
    acceptance: Acceptance, listener: socket.socket, clients: Any, number: int
):
    """An error of the connection, not of ours: the next one is accepted in the same turn."""
    failing: Any = Failing(listener, number)
    acceptance.acceptor.add(failing)
    clients(listener, 1)
    assert acceptance.turn() == 1


@pytest.mark.parametrize("number", [errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM])
def test_without_a_descriptor_it_waits(
    acceptance: Acceptance, listener: socket.socket, clients: Any, number: int, monkeypatch: pytest.MonkeyPatch
):
    """One warning is logged, nothing wakes the loop until `resume`, and the clients are still in the queue then."""
    lines: list[str] = []
    monkeypatch.setattr(log, "warning", lines.append)
    failing: Any = Failing(listener, number)
    acceptance.acceptor.add(failing)
    clients(listener, 2)
    assert [acceptance.turn() for _ in range(3)] == [0, 0, 0]
    assert failing.calls == 1
    [line] = lines
    assert os.strerror(number) in line
    assert "0 connections" in line
    acceptance.acceptor.resume()
    assert acceptance.turn() == 2
    acceptance.acceptor.resume()  # nothing is paused now
    assert acceptance.turn() == 0


def test_a_removed_listener_is_not_accepted_from(acceptance: Acceptance, listener: socket.socket, clients: Any):
    """It may be removed while it waits for a descriptor, and added again: by a worker that gets it back."""
    failing: Any = Failing(listener, errno.EMFILE)
    acceptance.acceptor.add(failing)
    clients(listener, 1)
    assert acceptance.turn() == 0
    acceptance.acceptor.remove(failing)  # paused
    acceptance.acceptor.resume()
    assert acceptance.turn() == 0
    acceptance.acceptor.add(failing)
    acceptance.acceptor.remove(failing)  # watched
    assert acceptance.turn() == 0
    acceptance.acceptor.add(failing)
    assert acceptance.turn() == 1


def test_a_queue_is_emptied_one_by_one(acceptance: Acceptance, listener: socket.socket, clients: Any):
    """A worker that drains takes what is in the queue of a listener that it no longer watches, until nothing is."""
    clients(listener, 2)
    assert acceptance.acceptor.accept_one(listener)
    assert acceptance.acceptor.accept_one(listener)
    assert not acceptance.acceptor.accept_one(listener)
    assert [name for _, _, name in acceptance.taken] == [server_name(listener)] * 2
