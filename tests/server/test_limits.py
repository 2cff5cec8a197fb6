"""Deadlines that are kept, neither early nor late, and memory and descriptors that no client can use up."""

import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack

import pytest

from gates import Gate, Notes
from harness import SCALE, Client, wait_for

APP = "apps.routes:app"
pytestmark = [pytest.mark.interfaces("wsgi", "asgi"), pytest.mark.every_trigger]
SHORT = {"header_timeout": 1, "body_timeout": 1, "write_timeout": 1, "keep_alive": 1}
# Deadlines of 1 s are looked at once a second, so they are late by less than 2 s, and by what a busy machine adds.
LATEST = 3 + 2 * SCALE
GET = b"GET %b HTTP/1.1\r\nHost: test\r\n\r\n"
BODY = b"POST /digest HTTP/1.1\r\nHost: test\r\nContent-Length: 1000\r\n\r\n"


@pytest.fixture
def server(serve):
    return serve(APP, **SHORT)


def rejected(server, client):
    """How many lines the log has about a client's being rejected."""
    return server.log.count(f"rejected 127.0.0.1:{client.socket.getsockname()[1]}: 408 ")


def drip(client, pieces, gap=0.25):
    """Send piece after piece, until something comes back or none is left."""
    for piece in pieces:
        client.send(piece)
        if not client.quiet(gap):
            break


def test_deadlines(server):
    """A head, a body, an idle connection: each has its time, all of it, and not much more. All at once, for they wait."""
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
    """The head's deadline runs from its first byte: no byte prolongs it."""
    with server.connect() as client:
        begun = time.monotonic()
        drip(client, [b"GET / HTTP/1.1\r\n", *[b"X: y\r\n"] * 60])
        assert client.response().status == 408
        assert 1 <= time.monotonic() - begun < LATEST


def test_a_body_that_drips(server):
    """A body is late when nothing comes for so long: a slow client may take its time."""
    with server.connect() as client:
        drip(client, [BODY, *[b"x" * 100] * 10], 0.35)
        assert client.response().status == 200


def test_a_second_head_has_its_own_deadline(server):
    """Not what is left of the idle one's, and not none."""
    with server.connect() as client:
        client.send(GET % b"/hello", b"GET / HT")
        begun = time.monotonic()
        assert client.response().status == 200
        assert client.response().status == 408
        assert 1 <= time.monotonic() - begun < LATEST


def test_an_application_has_no_deadline(server, tmp_path):
    """None of the client's deadlines is the application's: it may think longer than all of them."""
    with Gate(tmp_path / "gate") as gate, server.connect() as client:
        client.request(f"/gate/{gate.path}?fifo={gate.path}")
        gate.wait()
        assert client.quiet(3.5)
        gate.open()
        assert client.response().text == "through"


@pytest.mark.parametrize("target", ["/size?n=50000000", "/closing?kind=endless&log=%s", "/file?path=%s&log=%s"])
def test_a_client_that_does_not_take_its_answer(server, tmp_path, target):
    """It is cut off, the log says so, and what it held is let go: thread, file, descriptor."""
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


def test_a_client_that_takes_its_answer_slowly(server):
    """Whoever takes some of it within the time gets all of it, although the kernel tells of room a third of its buffer late."""
    size = 30_000_000
    with Client(server.address, receive_buffer=65536) as client:
        client.request(f"/size?n={size}", close=True)
        received = 0
        for turn in range(1, 17):
            while received < turn * 60_000:
                received += len(client.socket.recv(20_000))
            time.sleep(0.25)  # not a wait for anything: the slowness of this client is what is tested
        assert received + len(client.rest()) > size


def test_a_client_that_takes_no_answers_fills_no_memory(server):
    """It is read no further while its answers wait."""
    before = int(server.get("/memory").text)
    with server.connect() as client:
        client.socket.settimeout(1)
        with pytest.raises(OSError, match=r"timed out|reset|[Bb]roken"):
            client.send((GET % b"/hello") * 1_000_000)
    assert int(server.get("/memory").text) - before < 8 * 1024


def test_a_client_that_asks_faster_than_it_is_answered_fills_no_memory(server):
    """It is read no further while its requests wait."""

    def flood(count):
        with server.connect() as client, ThreadPoolExecutor(1) as pool:
            sent = pool.submit(lambda: client.send((GET % b"/hello") * count).half_close())
            answers = b"".join(iter(lambda: client.socket.recv(1 << 20), b""))
            assert answers.count(b"Hello, world!") == count
            sent.result()
        return int(server.get("/memory").text)

    assert -flood(10_000) + flood(100_000) < 1536  # KiB; the requests are 3,700


def test_clients_with_long_heads_fill_no_memory(server):
    """What idle ones have sent is not kept."""
    head = b"GET /hello HTTP/1.1\r\nHost: test\r\nX: " + b"x" * 60_000 + b"\r\n\r\n"
    with ExitStack() as stack:

        def ask(count):
            for _ in range(count):
                assert stack.enter_context(server.connect()).send(head).response().status == 200
            return int(server.get("/memory").text)

        assert -ask(20) + ask(200) < 4 * 1024  # KiB; the heads are 12,000


def test_more_clients_than_descriptors(serve):
    """Where no descriptor is free, new clients wait in the queue and are answered when there is one; the log says why."""
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
    """What an application or a body needs a descriptor for fails alone; everybody else is served."""
    server = serve(APP, own=True, launcher=("prlimit", "--nofile=48"))
    path = tmp_path / "file"
    path.write_bytes(b"x" * 100_000)
    with ExitStack() as stack:
        asking = [stack.enter_context(server.connect()) for _ in range(2)]
        for client in asking:  # who has not spoken yet would wait for a descriptor like others
            assert client.get("/hello").status == 200
        idle: list[Client] = []
        while "cannot accept" not in server.log and len(idle) < 80:
            idle.append(stack.enter_context(server.connect()).send(b"G"))  # who is silent is not accepted
            asking[0].get("/hello")
        assert asking[0].post("/digest", b"x" * 300_000).status == 507
        assert asking[1].get(f"/file?path={path}").status == 500
        for client in idle:
            client.close()
    wait_for(lambda: server.get(f"/file?path={path}").status == 200)
