"""Deadlines are kept, neither early nor late, and no client can use up memory or descriptors."""

import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack

import pytest

from gates import Gate, Notes
from harness import SCALE, Client, wait_for

APP = "apps.routes:app"
pytestmark = [pytest.mark.interfaces("wsgi", "asgi"), pytest.mark.every_trigger]
SHORT = {"header_timeout": 1, "body_timeout": 1, "write_timeout": 1, "keep_alive": 1}
# Deadlines are checked once a second, so one of 1 s may be late by almost 2 s, and by what a busy machine adds.
LATEST = 3 + 2 * SCALE
GET = b"GET %b HTTP/1.1\r\nHost: test\r\n\r\n"
BODY = b"POST /digest HTTP/1.1\r\nHost: test\r\nContent-Length: 1000\r\n\r\n"


@pytest.fixture
def server(serve):
    return serve(APP, **SHORT)


def rejected(server, client):
    """The number of log lines that report a 408 to this client."""
    return server.log.count(f"rejected 127.0.0.1:{client.socket.getsockname()[1]}: 408 ")


def drip(client, pieces, gap=0.25):
    """Send the pieces one by one, and stop early if the server sends something or closes."""
    for piece in pieces:
        client.send(piece)
        if not client.quiet(gap):
            break


def test_deadlines(server):
    """A head, a body and an idle connection each have their full time and not much more. Tested together to save time."""
    with ExitStack() as stack:
        kinds = {"silent": b"", "head": b"GET / HTTP/1.1\r\nHo", "body": BODY + b"abc", "idle": GET % b"/hello"}
        clients = {kind: stack.enter_context(server.connect()) for kind in kinds}
        begun = time.monotonic()
        for kind, client in clients.items():
            client.send(kinds[kind])
        assert clients["idle"].response().status == 200
        ended = {}
        for kind in "head", "body", "silent", "idle":
            client = clients[kind]
            if kind in ("head", "body"):
                response = client.response()
                assert (response.status, response.header("connection")) == (408, "close")
            assert client.closed()
            ended[kind] = time.monotonic() - begun
        assert all(1 <= seconds < LATEST for seconds in ended.values()), ended
        assert [rejected(server, clients[kind]) for kind in kinds] == [0, 1, 1, 0]


def test_a_head_that_drips(server):
    """The deadline of a head counts from its first byte; further bytes do not extend it."""
    with server.connect() as client:
        begun = time.monotonic()
        drip(client, [b"GET / HTTP/1.1\r\n", *[b"X: y\r\n"] * 60])
        assert client.response().status == 408
        assert 1 <= time.monotonic() - begun < LATEST


def test_a_body_that_drips(server):
    """The deadline of a body counts from the last bytes received, so a slow client is not cut off."""
    with server.connect() as client:
        drip(client, [BODY, *[b"x" * 100] * 10], 0.35)
        assert client.response().status == 200


def test_a_second_head_has_its_own_deadline(server):
    """The deadline of a second head is neither the rest of the idle connection's nor missing."""
    with server.connect() as client:
        client.send(GET % b"/hello", b"GET / HT")
        begun = time.monotonic()
        assert client.response().status == 200
        assert client.response().status == 408
        assert 1 <= time.monotonic() - begun < LATEST


def test_an_application_has_no_deadline(server, tmp_path):
    """None of the client's deadlines applies to the application, which may take longer than all of them."""
    with Gate(tmp_path / "gate") as gate, server.connect() as client:
        client.request(f"/gate/{gate.path}?fifo={gate.path}")
        gate.wait()
        assert client.quiet(3.5)
        gate.open()
        assert client.response().text == "through"


@pytest.mark.parametrize("target", ["/size?n=50000000", "/closing?kind=endless&log=%s", "/file?path=%s&log=%s"])
def test_a_client_that_does_not_read_its_response(server, tmp_path, target):
    """It is cut off, which is logged, and its thread, file and descriptor are released."""
    log = Notes(tmp_path / "log")
    path = tmp_path / "file"
    path.write_bytes(b"x" * 50_000_000)
    target = {0: target, 1: target.replace("%s", str(log)), 2: target.replace("%s", str(path), 1).replace("%s", str(log))}[
        target.count("%s")
    ]
    with Client(server.address, receive_buffer=4096) as client:
        port = client.socket.getsockname()[1]
        begun = time.monotonic()
        client.request(target)
        server.wait_log(f"closed 127.0.0.1:{port}: it did not take its response")
        assert time.monotonic() - begun >= 1
        if "log" in target:
            assert log.wait(1)[0].startswith("closed")
    assert server.get("/hello").status == 200


def test_a_client_that_reads_its_response_slowly(server):
    """A client that reads some of it within the time gets all of it, although the kernel reports free space in its send
    buffer only when a third of the buffer is free."""
    size = 30_000_000
    with Client(server.address, receive_buffer=65536) as client:
        client.request(f"/size?n={size}", close=True)
        received = 0
        for turn in range(1, 17):
            while received < turn * 60_000:
                received += len(client.socket.recv(20_000))
            time.sleep(0.25)  # not a wait for a condition: this client is slow, which is what is tested
        assert received + len(client.rest()) > size


def test_a_client_that_reads_no_responses_fills_no_memory(server):
    """The server stops reading its requests while responses wait to be sent."""
    before = int(server.get("/memory").text)
    with server.connect() as client:
        client.socket.settimeout(1)
        with pytest.raises(OSError, match=r"timed out|reset|[Bb]roken"):
            client.send((GET % b"/hello") * 1_000_000)
    assert int(server.get("/memory").text) - before < 8 * 1024


def test_a_client_that_sends_faster_than_it_is_served_fills_no_memory(server):
    """The server stops reading while complete requests wait to be served."""

    def flood(count):
        with server.connect() as client, ThreadPoolExecutor(1) as pool:
            sent = pool.submit(lambda: client.send((GET % b"/hello") * count).half_close())
            responses = b"".join(iter(lambda: client.socket.recv(1 << 20), b""))
            assert responses.count(b"Hello, world!") == count
            sent.result()
        return int(server.get("/memory").text)

    assert -flood(10_000) + flood(100_000) < 1536  # KiB; the requests have 3,700 KiB


def test_clients_with_long_heads_fill_no_memory(server):
    """The head that an idle client has sent is not kept."""
    head = b"GET /hello HTTP/1.1\r\nHost: test\r\nX: " + b"x" * 60_000 + b"\r\n\r\n"
    with ExitStack() as stack:

        def ask(count):
            for _ in range(count):
                assert stack.enter_context(server.connect()).send(head).response().status == 200
            return int(server.get("/memory").text)

        assert -ask(20) + ask(200) < 4 * 1024  # KiB; the heads have 12,000 KiB


def test_more_clients_than_descriptors(serve):
    """When no descriptor is free, new clients wait in the queue and are served when there is one; the log gives the reason."""
    server = serve(APP, launcher=("prlimit", "--nofile=48"))
    with ExitStack() as stack:
        clients = [stack.enter_context(server.connect()) for _ in range(80)]
        for client in clients:
            client.send(GET % b"/hello")
        first = clients[0].response()
        assert first.status == 200
        server.wait_log("cannot accept .*limit 48")
        waiting = clients[1:]
        clients[0].close()
        for client in waiting:
            assert client.response().status == 200
            client.close()
    assert server.get("/hello").status == 200
    wait_for(lambda: int(server.get("/fds").text) < 40)
    assert len(server.workers()) == 1
    assert "Traceback" not in server.log


@pytest.mark.interfaces("wsgi")  # in ASGI a body needs no file
def test_no_descriptor_for_a_file(serve, tmp_path):
    """Only a request that needs a descriptor for its body or in the application fails; all others are served."""
    server = serve(APP, own=True, launcher=("prlimit", "--nofile=48"))
    path = tmp_path / "file"
    path.write_bytes(b"x" * 100_000)
    with ExitStack() as stack:
        asking = [stack.enter_context(server.connect()) for _ in range(2)]
        for client in asking:  # otherwise they are not accepted yet, and would wait for a descriptor themselves
            assert client.get("/hello").status == 200
        idle: list[Client] = []
        while "cannot accept" not in server.log and len(idle) < 80:
            idle.append(stack.enter_context(server.connect()).send(b"G"))  # a silent client is not accepted
            asking[0].get("/hello")
        assert asking[0].post("/digest", b"x" * 300_000).status == 507
        assert asking[1].get(f"/file?path={path}").status == 500
        for client in idle:
            client.close()
    wait_for(lambda: server.get(f"/file?path={path}").status == 200)
