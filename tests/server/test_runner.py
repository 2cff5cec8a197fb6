"""asyncio as a guest on the worker's epoll: all of it works, beside the server's own connections, and who holds it is named."""

import re
import signal
import time

import pytest

from harness import SCALE, wait_for

APP = "apps.guests:app"
pytestmark = pytest.mark.interfaces("asgi")


@pytest.fixture
def server(serve):
    return serve(APP)


@pytest.mark.parametrize(
    ("facility", "answer"),
    [
        ("reader", "through a reader"),
        ("streams", "OVER A STREAM"),
        ("datagrams", "a datagram"),
        ("processes", "True"),
        ("executor?seconds=0", "True"),
        ("signals", "True"),
        ("runner", "True"),
        ("thread", "from a thread"),
        ("timers", "True"),
        ("libraries", "[2, 1] True"),
        ("sniffed", "True"),
        ("generator", "ended"),
        ("closing", "went on"),
    ],
)
def test_facilities(server, facility, answer):
    """Each works, again and again, on a connection that goes on."""
    if facility == "libraries":
        pytest.importorskip("anyio")
    with server.connect() as client:
        for _ in range(3):
            assert client.get("/" + facility).text == answer


def test_facilities_all_at_once(server):
    """None of them disturbs another one, nor what is asked meanwhile."""
    names = ["reader", "streams", "datagrams", "processes", "runner", "thread", "timers", "generator"] * 3
    clients = [server.connect().request("/" + name) for name in names]
    assert server.get("/hello").text == "Hello, world!"
    for name, client in zip(names, clients, strict=True):
        assert client.response().status == 200, name
        client.close()


def test_there_is_one_epoll(server):
    """The guest has none of its own."""
    assert server.get("/epolls").text == "1"


def test_a_thread_that_blocks_holds_up_nobody(server):
    """That is what executors are for."""
    with server.connect() as client:
        begun = time.monotonic()
        client.request("/executor?seconds=1")
        while time.monotonic() < begun + 0.5:
            assert server.get("/hello").status == 200
        assert client.response().text == "True"


def test_signals_of_the_server_are_heard_after_the_applications(serve):
    """The application has had a handler and taken it away: TERM drains the worker all the same."""
    server = serve(APP, own=True)
    assert server.get("/signals").text == "True"
    server.signal(signal.SIGTERM)
    assert server.ended(5 * SCALE) == 0
    assert "0 cut short" in server.log


def test_an_executors_thread_ends_before_the_worker(serve):
    """Work that was handed to a thread is not cut by a graceful stop."""
    server = serve(APP, own=True)
    assert server.get("/forever").text == "begun"
    server.signal(signal.SIGTERM)
    assert server.ended() == 0
    assert "Traceback" not in server.log


def test_who_holds_the_loop_is_named(serve):
    """File, line and function, once for each time, while it holds it: everybody waits for that code."""
    server = serve(APP, own=True)
    with server.connect() as client:
        client.request("/block")
        server.wait_log(r"event loop blocked for more than 250 ms at guests\.py:\d+ \(hold\), called by ")
        assert client.response().text == "held"
        assert client.get("/block").text == "held"
    server.wait_log("event loop blocked for more than 250 ms", 2)
    assert server.log.count("event loop blocked for more than 250 ms") == 2


def test_where_calls_wait_is_told(serve):
    """USR1: a thread's stack says nothing of coroutines, so each call says where it waits, and for what."""
    server = serve(APP, own=True)
    with server.connect() as client:
        client.request("/executor?seconds=1")
        server.get("/hello")
        server.signal(signal.SIGUSR1)
        match = server.wait_log(r"GET /executor\?seconds=1 of 127\.0\.0\.1:\d+ waits .*\n(      File .*\n)+")
        assert re.search(r'guests\.py", line \d+ in executor\n(.*\n)*.*guests\.py", line \d+ in app\n', match[0])
        server.wait_log(r"Current thread .*\n(  File .*\n)*.*in run_until_complete\n")
        assert client.response().text == "True"
    assert len(server.workers()) == 1


def test_who_waits_is_not_named(server):
    """Waiting is what the loop is for."""
    before = server.log
    assert server.get("/executor?seconds=0.6").text == "True"
    assert "loop blocked" not in server.log[len(before) :]


def test_debug_mode(serve):
    """asyncio's own checks are on, find nothing of ours, and everything goes on."""
    server = serve(APP, own=True, env={"PYTHONASYNCIODEBUG": "1"})
    with server.connect() as client:
        assert client.get("/debug").text == "True"
        for name in "reader", "streams", "processes", "timers", "generator":
            assert client.get("/" + name).status == 200, name
        assert client.post("/hello", b"x" * 300_000).status == 200
    server.signal(signal.SIGTERM)
    assert server.ended() == 0
    assert "Traceback" not in server.log
    assert "never" not in server.log


def test_a_task_that_fails_for_itself(server):
    """asyncio says so, as ever, on standard error; the worker goes on."""
    before = server.log.count("nobody asks")
    assert server.get("/lost").text == "lost"
    wait_for(lambda: server.log.count("RuntimeError: nobody asks") > before)
    assert server.get("/hello").status == 200
