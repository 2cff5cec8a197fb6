"""The management listener as an HTTP server, turned by hand: invalid requests, clients that do not finish, faults of ours."""

import contextlib
import json
import socket
import time

import pytest

from epollard.management import server
from epollard.management.server import CLIENT_TIMEOUT, MAX_CLIENTS, Page, Refused, Server


@pytest.fixture
def served(loop):
    """A listener with a page of 1 MB and commands that fail."""

    def fails(parameters):
        raise ZeroDivisionError

    def refuses(parameters):
        raise Refused(409, "not now")

    made = Server(
        loop,
        {"/livez": lambda: Page(200, "alive"), "/big": lambda: Page(200, "x" * 2**20)},
        {"/fails": fails, "/refuses": refuses},
    )
    made.listen("127.0.0.1:0", [])
    made.start()
    yield made
    made.close()


@pytest.fixture
def connect(served):
    """`connect(b"GET")`: a client that has sent that."""
    clients = []

    def connect(sent=b""):
        clients.append(socket.create_connection(served.groups[0].address))
        clients[-1].sendall(sent)
        return clients[-1]

    yield connect
    for client in clients:
        client.close()


def turn(loop, until):
    """Turn the loop until that holds."""
    deadline = time.monotonic() + 10
    while not until():
        assert time.monotonic() < deadline
        loop.turn(0.01)


def received(loop, client):
    """What a client receives up to the end."""
    client.setblocking(False)
    data = [b""]

    def ended():
        try:
            data.append(client.recv(65536))
        except BlockingIOError:
            return False
        return not data[-1]

    turn(loop, ended)
    return b"".join(data)


def request(target, method="GET"):
    return f"{method} {target} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode()


@pytest.mark.parametrize(
    ("sent", "status"),
    [
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", 400),
        (b"GET /livez HTTP/1.1\r\n\r\n", 400),
        (b"GET /livez HTTP/1.1\nHost: x\n\n", 400),
        (b"GET /" + b"x" * 5000 + b" HTTP/1.1\r\n", 414),
        (b"GET / HTTP/1.1\r\nHost: localhost\r\nA: " + b"x" * 100_000, 431),
        (b"GET /livez HTTP/3.0\r\nHost: localhost\r\n\r\n", 505),
        (b"POST /refuses HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\nContent-Length: 0\r\n\r\n", 400),
        (b"POST /refuses HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 413),
        (b"GET /%00%ff%0d%0a HTTP/1.1\r\nHost: localhost\r\n\r\n", 404),
    ],
)
def test_invalid_requests_get_their_status(loop, served, connect, sent, status):
    """The status says what was wrong, and the server keeps running."""
    response = received(loop, connect(sent))
    assert response.startswith(b"HTTP/1.1 %d " % status)
    assert json.loads(response.partition(b"\r\n\r\n")[2])["error"]
    assert received(loop, connect(request("/livez"))).endswith(b"\r\n\r\nalive")


def test_a_response_bigger_than_the_socket_buffer(loop, connect):
    """The rest is sent as the client reads."""
    assert received(loop, connect(request("/big"))).endswith(b"x" * 2**20)


@pytest.mark.parametrize("sent", [b"", b"GET /livez HTTP/1.1\r\n", request("/big")])
def test_a_client_has_a_deadline(loop, served, connect, sent):
    """It is closed when its time is over, whether it sends nothing, half a request, or does not read; and not before."""
    client = connect(sent or b"G")
    turn(loop, lambda: served.clients)
    (accepted,) = served.clients
    assert accepted.deadline <= time.monotonic() + CLIENT_TIMEOUT
    served.tick()
    assert list(served.clients) == [accepted]
    accepted.deadline = time.monotonic()
    served.tick()
    assert not served.clients
    with contextlib.suppress(ConnectionResetError):  # what it has sent is not read
        while client.recv(65536):
            pass


def test_the_oldest_client_makes_room(loop, served, connect):
    """One more than there may be: it is served, and the oldest is closed."""
    clients = []
    for count in range(MAX_CLIENTS):
        clients.append(connect(b"G"))
        turn(loop, lambda count=count: len(served.clients) == count + 1)
    oldest = next(iter(served.clients))
    assert received(loop, connect(request("/livez"))).endswith(b"alive")
    assert oldest not in served.clients
    assert received(loop, clients[0]) == b""


def test_a_fault_of_ours_is_a_response(loop, connect, capfd):
    """500 and a traceback in the log; the supervisor keeps running."""
    response = received(loop, connect(request("/fails", "POST")))
    assert response.startswith(b"HTTP/1.1 500 ")
    log = capfd.readouterr().err
    assert "internal error, please report it" in log
    assert "ZeroDivisionError" in log


def test_a_command_that_is_refused(loop, connect):
    """Its status and its reason are the response."""
    response = received(loop, connect(request("/refuses", "POST")))
    assert response.startswith(b"HTTP/1.1 409 ")
    assert response.endswith(b'\r\n\r\n{"error": "not now"}\n')


@pytest.mark.parametrize(
    ("address", "loopback"),
    [
        (("127.0.0.1", 1), True),
        (("127.9.9.9", 1), True),
        (("::1", 1, 0, 0), True),
        (("::ffff:127.0.0.1", 1, 0, 0), True),
        (("10.0.0.1", 1), False),
        (("fe80::1%eth0", 1, 0, 2), False),
        (("", 0), False),
        ("/run/it.sock", False),
    ],
)
def test_loopback(address, loopback):
    """Both families, and IPv4 addresses in IPv6 sockets; a Unix socket has no such address."""
    assert server._is_loopback(address) is loopback
