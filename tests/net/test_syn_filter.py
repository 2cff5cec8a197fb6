"""A listener is closed without resetting the clients that were about to connect."""

import errno
import socket

import pytest

from epollard.net import syn_filter
from harness import wait_for

SOON = 0.3  # seconds in which a SYN that is not dropped gets its SYN-ACK


@pytest.fixture
def listener():
    """A listener like a server's: a client is accepted when it has sent something, or after a second of silence."""
    with socket.socket() as made:
        made.bind(("127.0.0.1", 0))
        made.setsockopt(socket.IPPROTO_TCP, socket.TCP_DEFER_ACCEPT, 1)
        made.listen()
        made.setblocking(False)
        yield made


@pytest.fixture
def client(listener):
    """`client()` connects, or raises `TimeoutError`."""
    made = []

    def connect():
        made.append(socket.create_connection(listener.getsockname(), timeout=SOON))
        return made[-1]

    yield connect
    for one in made:
        one.close()


def test_new_connections_are_refused(listener, client):
    """The kernel drops the SYN: the client gets no reply at all, and no handshake is in progress."""
    syn_filter.attach(listener)
    with pytest.raises(TimeoutError):
        client()
    assert not syn_filter.handshakes_in_progress([listener.getsockname()[1]])


def test_handshakes_in_progress_complete(listener, client):
    """A client that has connected and not sent anything yet may send after the filter is attached, and is accepted."""
    early = client()
    syn_filter.attach(listener)
    early.sendall(b"early")
    accepted, _ = wait_for(lambda: accept(listener))
    with accepted:
        assert accepted.recv(100) == b"early"


def accept(listener):
    try:
        return listener.accept()
    except BlockingIOError:
        return None


def test_queued_connections_stay_queued(listener, client):
    """They can be accepted in their order, with what they have sent."""
    clients = [client() for _ in range(5)]
    for number, one in enumerate(clients):
        one.sendall(b"%d" % number)
    syn_filter.attach(listener)
    for number in range(5):
        accepted, _ = listener.accept()
        with accepted:
            assert accepted.recv(100) == b"%d" % number


def test_handshakes_in_progress_are_noticed(listener, client):
    """A handshake is in progress from the SYN to the first byte; those of other ports do not count."""
    port = listener.getsockname()[1]
    assert not syn_filter.handshakes_in_progress([port])
    early = client()
    assert syn_filter.handshakes_in_progress([port])
    assert syn_filter.handshakes_in_progress([1, port])
    assert not syn_filter.handshakes_in_progress([1])
    assert not syn_filter.handshakes_in_progress([])
    early.sendall(b"early")
    assert not syn_filter.handshakes_in_progress([port])
    accepted, _ = listener.accept()
    with accepted:
        assert not syn_filter.handshakes_in_progress([port])


def test_the_filter_can_be_detached(listener, client):
    """Then clients can connect again. Detaching a filter that is not there does no harm."""
    syn_filter.detach(listener)
    syn_filter.attach(listener)
    syn_filter.detach(listener)
    client()


def test_a_unix_socket_refuses_new_clients(tmp_path):
    """A new client is refused; a queued one can still be accepted."""
    listener, early, late = (socket.socket(socket.AF_UNIX) for _ in range(3))
    with listener, early, late:
        listener.bind(f"{tmp_path}/it")
        listener.listen()
        listener.setblocking(False)
        early.connect(f"{tmp_path}/it")
        syn_filter.attach(listener)
        assert late.connect_ex(f"{tmp_path}/it") == errno.ECONNREFUSED
        listener.accept()[0].close()
