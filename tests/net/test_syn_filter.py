"""Listeners that are closed without turning anybody away who was on the way in."""

import errno
import socket

import pytest

from epollard.net import syn_filter
from harness import wait_for

SOON = 0.3  # seconds in which a SYN that is not dropped is answered


@pytest.fixture
def listener():
    """As a server's: it hands out who has spoken, or is silent for a second."""
    with socket.socket() as made:
        made.bind(("127.0.0.1", 0))
        made.setsockopt(socket.IPPROTO_TCP, socket.TCP_DEFER_ACCEPT, 1)
        made.listen()
        made.setblocking(False)
        yield made


@pytest.fixture
def client(listener):
    """`client()` connects, or `TimeoutError`."""
    made = []

    def connect():
        made.append(socket.create_connection(listener.getsockname(), timeout=SOON))
        return made[-1]

    yield connect
    for one in made:
        one.close()


def test_nobody_new_comes_in(listener, client):
    """Whoever knocks is not heard, not even by the kernel; nothing says that nobody is there."""
    syn_filter.attach(listener)
    with pytest.raises(TimeoutError):
        client()
    assert not syn_filter.handshakes_in_progress([listener.getsockname()[1]])


def test_who_is_on_the_way_comes_in(listener, client):
    """A client that has connected and not yet spoken may speak after the door is shut, and is heard."""
    early = client()
    syn_filter.attach(listener)
    early.sendall(b"It is me")
    accepted, _ = wait_for(lambda: accept(listener))
    with accepted:
        assert accepted.recv(100) == b"It is me"


def accept(listener):
    try:
        return listener.accept()
    except BlockingIOError:
        return None


def test_who_waits_still_waits(listener, client):
    """The queue is as it was."""
    clients = [client() for _ in range(5)]
    for number, one in enumerate(clients):
        one.sendall(b"%d" % number)
    syn_filter.attach(listener)
    for number in range(5):
        accepted, _ = listener.accept()
        with accepted:
            assert accepted.recv(100) == b"%d" % number


def test_the_way_in_is_seen(listener, client):
    """A handshake under way is one from SYN to the first byte; other ports' do not count."""
    port = listener.getsockname()[1]
    assert not syn_filter.handshakes_in_progress([port])
    early = client()
    assert syn_filter.handshakes_in_progress([port])
    assert syn_filter.handshakes_in_progress([1, port])
    assert not syn_filter.handshakes_in_progress([1])
    assert not syn_filter.handshakes_in_progress([])
    early.sendall(b"It is me")
    assert not syn_filter.handshakes_in_progress([port])
    accepted, _ = listener.accept()
    with accepted:
        assert not syn_filter.handshakes_in_progress([port])


def test_a_door_opens_again(listener, client):
    """Who knocks then is let in; who has not been kept out before, too."""
    syn_filter.detach(listener)
    syn_filter.attach(listener)
    syn_filter.detach(listener)
    client()


def test_a_unix_socket(tmp_path):
    """Who comes is refused, who waits is still accepted."""
    listener, early, late = (socket.socket(socket.AF_UNIX) for _ in range(3))
    with listener, early, late:
        listener.bind(f"{tmp_path}/it")
        listener.listen()
        listener.setblocking(False)
        early.connect(f"{tmp_path}/it")
        syn_filter.attach(listener)
        assert late.connect_ex(f"{tmp_path}/it") == errno.ECONNREFUSED
        listener.accept()[0].close()
