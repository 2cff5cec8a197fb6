"""asyncio in guest mode, and the calls that run on it, within the test's process: start, turns, end, and what the log names."""

import asyncio
import re
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest

from epollard import log
from epollard.asgi import runner as module
from epollard.asgi.lifespan import StartupError
from epollard.asgi.runner import AsgiRunner
from epollard.net.loop import Loop
from puppet import Worker

GET = b"GET / HTTP/1.1\r\nHost: test\r\n\r\n"
ASK = (
    b"GET / HTTP/1.1\r\nHost: test\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n"
    b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n"
)
EVENTS = {"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"text/event-stream")]}
PIECE = {"type": "http.response.body", "body": b"x", "more_body": True}


def serve(app: Any, ready: Callable[[AsgiRunner], object]) -> AsgiRunner:
    """Run an application until `stop`; `ready` is called when it has started."""
    loop = Loop()
    runner = AsgiRunner(loop, app, max_message=1 << 20, deflate=False, access=None)
    try:
        runner.run(lambda: ready(runner))
    finally:
        loop.close()
    return runner


class App:
    """An application with a lifespan, which notes what happens to it."""

    def __init__(self, fails: str | None = None) -> None:
        self.notes: list[str] = []
        self.fails = fails

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        assert scope["type"] == "lifespan"
        self.notes.append((await receive())["type"])
        if self.fails is not None:
            await send({"type": "lifespan.startup.failed", "message": self.fails})
            return
        scope["state"]["word"] = "of the lifespan"
        await send({"type": "lifespan.startup.complete"})
        self.notes.append((await receive())["type"])
        await send({"type": "lifespan.shutdown.complete"})


# --- From the start to the end


def test_the_lifespan_encloses_everything() -> None:
    """The worker is ready after startup, and shutdown comes after `stop`."""
    app = App()

    def ready(runner: AsgiRunner) -> None:
        app.notes.append("ready")
        assert runner._scopes.state == {"word": "of the lifespan"}
        runner.stop()

    serve(app, ready)
    assert app.notes == ["lifespan.startup", "ready", "lifespan.shutdown"]


def test_an_application_that_cannot_start() -> None:
    """`run` raises with the application's reason, and the worker is never ready."""

    def ready(runner: AsgiRunner) -> None:
        raise AssertionError("ready")

    with pytest.raises(StartupError, match="the application could not start: no database"):
        serve(App("no database"), ready)


def test_tasks_of_the_application_are_cancelled_at_the_end() -> None:
    """After shutdown nothing of the application runs; its asynchronous generators are closed."""
    ends: list[str] = []
    kept: list[Any] = []

    async def endless() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            ends.append("task")

    async def generator() -> Any:
        try:
            yield 1
        finally:
            ends.append("generator")

    app = App()

    async def outer(scope: Any, receive: Any, send: Any) -> None:
        kept.append(asyncio.create_task(endless()))
        kept.append(generator())
        await anext(kept[1])
        await app(scope, receive, send)

    serve(outer, AsgiRunner.stop)
    assert app.notes == ["lifespan.startup", "lifespan.shutdown"]
    assert ends == ["task", "generator"]


def test_another_thread_may_stop_it() -> None:
    """`stop` wakes a loop that waits for events."""
    threads = []

    def ready(runner: AsgiRunner) -> None:
        threads.append(threading.Thread(target=lambda: runner.aio.call_soon_threadsafe(runner.stop)))
        threads[0].start()

    serve(App(), ready)
    threads[0].join()


def test_a_stop_cancels_calls(worker: Worker, capfd: pytest.CaptureFixture[str]) -> None:
    """A call that is cancelled by a stop is one line in the log, without a traceback."""
    client = worker.client(GET)
    worker.runner.stop()
    assert worker.runner.stopping
    worker.call.exchange.task.cancel()
    worker.turn()
    assert client.received().startswith(b"HTTP/1.1 500 ")
    logged = capfd.readouterr().err
    assert "cut short by a stop: GET / of 127.0.0.1:1024\n" in logged
    assert "Traceback" not in logged


# --- Guest mode


def test_connections_are_served_while_asyncio_waits(worker: Worker) -> None:
    """One epoll serves both: a client is answered while a task sleeps."""
    worker.puppet.first = [{"type": "http.response.start", "status": 200}, {"type": "http.response.body", "body": b"x"}]
    worker.puppet.returns = True
    client = worker.client()
    client.sock.sendall(GET)

    async def wait() -> None:
        while not worker.puppet.calls:
            await asyncio.sleep(0.001)

    worker.aio.run_until_complete(asyncio.wait_for(wait(), 10))
    assert client.received().endswith(b"\r\n\r\nx")


def test_the_first_step_runs_in_the_turn_that_read_the_request() -> None:
    """Requests of one packet are all begun, and answered, before asyncio has its turn."""
    order: list[str] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        order.append("step")
        asyncio.get_running_loop().call_soon(order.append, "soon")
        await send({"type": "http.response.start", "status": 200})
        await send({"type": "http.response.body"})

    with Worker(app) as worker:
        worker.client(GET * 3)
        assert order == ["step"] * 3 + ["soon"] * 3


def test_each_call_is_a_task_of_its_own(worker: Worker) -> None:
    """Also for tools that ask for the current task in the first step."""
    tasks = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        task = asyncio.current_task()
        assert task is not None
        tasks.append(task)
        await asyncio.sleep(0)
        assert asyncio.current_task() is task

    with Worker(app) as other:
        other.client(GET)
        other.client(GET)
    assert len({*tasks}) == 2


# --- Requests


@pytest.mark.parametrize(
    "end", [b"Content-Length: 3\r\n\r\nabc", b"Content-Length: 3\r\n\r\n", b"Transfer-Encoding: chunked\r\n\r\n"]
)
def test_a_handshake_with_a_body_is_refused(worker: Worker, end: bytes) -> None:
    """A WebSocket's handshake is a GET without a body, whether the body is there or still to come."""
    client = worker.client(ASK + end)
    assert client.received().startswith(b"HTTP/1.1 400 ")
    assert worker.puppet.calls == []


@pytest.mark.parametrize("data", [GET, ASK + b"\r\n"], ids=["http", "websocket"])
def test_a_worker_stops_when_no_call_runs(worker: Worker, data: bytes) -> None:
    """A call runs from its first wait until the application returns, whatever becomes of its client."""
    client = worker.client(data)
    assert not worker.runner.stop_if_idle()
    client.close()
    assert not worker.runner.stop_if_idle()
    worker.end()
    assert not worker.runner.stopping
    assert worker.runner.stop_if_idle()
    assert worker.runner.stopping


def test_what_a_worker_reports_of_itself(worker: Worker) -> None:
    """It is alive whenever it is asked, on its own loop; it is busy while that loop does not wait for events."""
    assert worker.runner.alive(5.0) == 5.0
    worker.loop.waited = 2.0
    assert worker.runner.busy_seconds(5.0) == (3.0,)


# --- Shutting down


@pytest.mark.parametrize(
    ("data", "messages"),
    [(GET, [EVENTS, PIECE]), (ASK + b"\r\n", [{"type": "websocket.accept"}])],
    ids=["server-sent events", "websocket"],
)
def test_a_dismissed_call_is_cancelled_in_a_moment(
    worker: Worker, monkeypatch: pytest.MonkeyPatch, data: bytes, messages: list[dict[str, Any]]
) -> None:
    """The client has the end of its stream at once; the application has a moment to notice by itself."""
    monkeypatch.setattr(module, "DISMISS_SECONDS", 0.01)
    client = worker.client(data)
    for message in messages:
        worker.send(message)
    client.raw()
    worker.context.drain()
    worker.runner.dismiss()
    assert client.raw()
    assert not worker.call.returned.done()

    async def wait() -> None:
        while not worker.call.returned.done():
            await asyncio.sleep(0.001)

    worker.aio.run_until_complete(asyncio.wait_for(wait(), 10))
    assert worker.call.returned.cancelled()


def test_a_call_that_has_an_end_is_not_dismissed(worker: Worker) -> None:
    """It may finish, however long that takes; the connection closes after it."""
    client = worker.client(GET)
    worker.context.drain()
    worker.runner.dismiss()
    assert worker.send({"type": "http.response.start", "status": 200}) is None
    worker.runner.dismiss()
    assert worker.send({"type": "http.response.body", "body": b"x"}) is None
    assert client.received() == b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nConnection: close\r\n\r\nx<end>"


# --- The log


def test_the_code_that_blocks_the_loop_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """File, line and function, and its caller; once for each time that it blocks."""
    lines: list[str] = []
    monkeypatch.setattr(module, "BLOCKED_SECONDS", 0.02)
    monkeypatch.setattr(module, "WATCH_SECONDS", 0.005)
    monkeypatch.setattr(log, "warning", lines.append)

    def block(runner: AsgiRunner) -> None:
        while "(block)" not in "".join(lines):
            time.sleep(0.001)
        time.sleep(0.05)  # several looks of the watcher
        runner.stop()

    async def app(scope: Any, receive: Any, send: Any) -> None:
        assert scope["type"] == "lifespan"

    serve(app, lambda runner: runner.aio.call_soon(block, runner))
    (line,) = [line for line in lines if "(block)" in line]  # a busy machine may hold up other code, too
    assert re.match(r"event loop blocked for more than 20 ms at test_runner\.py:\d+ \(block\), called by events\.py:\d+ ", line)


def test_where_calls_wait_is_logged(worker: Worker, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    """Each call with the frames of its coroutines, the innermost first; not more calls than a person reads."""
    clients = [worker.client(GET) for _ in range(3)]
    worker.runner.log_calls()
    logged = capfd.readouterr().err
    assert logged.count("GET / of 127.0.0.1:1024 waits (most recent call first)\n") == 3
    assert re.search(r'File ".*puppet\.py", line \d+ in __call__\n *File ".*exchange\.py", line \d+ in run\n', logged)
    assert "more calls" not in logged
    monkeypatch.setattr(module, "REPORTED_CALLS", 1)
    worker.runner.log_calls()
    logged = capfd.readouterr().err
    assert logged.count("waits (most recent call first)") == 1
    assert "and 2 more calls\n" in logged
    assert len(clients) == 3
