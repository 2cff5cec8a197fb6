"""asyncio in guest mode in a real server: it works next to the server's connections, and the log names code that blocks it."""

import re
import signal
import time

import pytest

from harness import SCALE, wait_for

APP = "apps.facilities:app"
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
    """Each facility of asyncio works, again and again, on one connection."""
    if facility == "libraries":
        pytest.importorskip("anyio")
    with server.connect() as client:
        for _ in range(3):
            assert client.get("/" + facility).text == answer


def test_facilities_all_at_once(server):
    """They disturb neither each other nor requests that come meanwhile."""
    names = ["reader", "streams", "datagrams", "processes", "runner", "thread", "timers", "generator"] * 3
    clients = [server.connect().request("/" + name) for name in names]
    assert server.get("/hello").text == "Hello, world!"
    for name, client in zip(names, clients, strict=True):
        assert client.response().status == 200, name
        client.close()


def test_there_is_one_epoll(server):
    """asyncio has none of its own."""
    assert server.get("/epolls").text == "1"


def test_a_thread_that_blocks_does_not_block_the_loop(server):
    """Blocking code in an executor does not delay other requests."""
    with server.connect() as client:
        begun = time.monotonic()
        client.request("/executor?seconds=1")
        while time.monotonic() < begun + 0.5:
            assert server.get("/hello").status == 200
        assert client.response().text == "True"


def test_the_server_handles_signals_after_the_application_did(serve):
    """The application has set a handler and removed it: SIGTERM drains the worker all the same."""
    server = serve(APP, own=True)
    assert server.get("/signals").text == "True"
    server.signal(signal.SIGTERM)
    assert server.ended(5 * SCALE) == 0
    assert "0 cut short" in server.log


def test_an_executors_thread_ends_before_the_worker(serve):
    """A graceful stop waits for work that was handed to a thread."""
    server = serve(APP, own=True)
    assert server.get("/forever").text == "begun"
    server.signal(signal.SIGTERM)
    assert server.ended() == 0
    assert "Traceback" not in server.log


def test_code_that_blocks_the_loop_is_named(serve):
    """The log has file, line and function, once for each time, while the code blocks."""
    server = serve(APP, own=True)
    with server.connect() as client:
        client.request("/block")
        server.wait_log(r"event loop blocked for more than 250 ms at facilities\.py:\d+ \(hold\), called by ")
        assert client.response().text == "held"
        assert client.get("/block").text == "held"
    server.wait_log("event loop blocked for more than 250 ms", 2)
    assert server.log.count("event loop blocked for more than 250 ms") == 2


def test_sigusr1_logs_where_calls_wait(serve):
    """A thread's stack does not show coroutines, so each call is logged with the place where it waits."""
    server = serve(APP, own=True)
    with server.connect() as client:
        client.request("/executor?seconds=1")
        server.get("/hello")
        server.signal(signal.SIGUSR1)
        match = server.wait_log(r"GET /executor\?seconds=1 of 127\.0\.0\.1:\d+ waits .*\n(      File .*\n)+")
        assert re.search(r'facilities\.py", line \d+ in executor\n(.*\n)*.*facilities\.py", line \d+ in app\n', match[0])
        server.wait_log(r"Current thread .*\n(  File .*\n)*.*in run_until_complete\n")
        assert client.response().text == "True"
    assert len(server.workers()) == 1


def test_code_that_waits_is_not_named(server):
    """A call that awaits something does not block the loop."""
    before = server.log
    assert server.get("/executor?seconds=0.6").text == "True"
    assert "loop blocked" not in server.log[len(before) :]


def test_debug_mode(serve):
    """asyncio's own checks find no fault of the server, and everything works."""
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


def test_a_task_that_fails_on_its_own(server):
    """asyncio reports it on standard error, as usual; the worker continues."""
    before = server.log.count("not awaited")
    assert server.get("/lost").text == "lost"
    wait_for(lambda: server.log.count("RuntimeError: not awaited") > before)
    assert server.get("/hello").status == 200
