"""Leader and followers within one process: which thread turns the loop, and which requests wait for which thread.

A call is slow because it waits for the test, so no promise here depends on how long anything takes.
"""

import io
import socket
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from epollard.net.connection import accept
from epollard.net.context import Limits, Timeouts, WorkerContext
from epollard.net.loop import Loop
from epollard.wsgi import threads as threads_module
from epollard.wsgi.threads import LONG_AFTER, QUIET_CHECKS, SLOW_AFTER, LeaderFollowers
from harness import SCALE, wait_for

LOCAL = ("server", "80")


class App:
    """An application that waits on paths that have a gate. `running` lists the calls that wait."""

    def __init__(self) -> None:
        self.gates: dict[str, threading.Event] = {}
        self.running: list[str] = []
        self.threads: dict[str, str] = {}  # by the path: the thread that called last

    def __call__(self, environ: dict[str, Any], start_response: Any) -> list[bytes]:
        path = environ["PATH_INFO"]
        self.threads[path] = threading.current_thread().name
        if path in self.gates:
            self.running.append(path)
            self.gates[path].wait()
            self.running.remove(path)
        body = environ["wsgi.input"].read()
        start_response("200 OK", [("Content-Type", "text/plain")])
        return [path.encode() + b" " + body]


class Client:
    """One end of a pair of sockets, whose other end the worker has accepted."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self.sock.settimeout(10 * SCALE)

    def send(self, path: str, body: bytes = b"", *fields: str) -> "Client":
        length = (f"Content-Length: {len(body)}",) if body else ()
        head = "\r\n".join((f"{'POST' if body else 'GET'} {path} HTTP/1.1", "Host: test", *length, *fields, "", ""))
        self.sock.sendall(head.encode() + (b"" if fields else body))
        return self

    def response(self) -> bytes:
        """The body of a response."""
        received = b""
        while b"\r\n\r\n" not in received:
            received += self.more()
        head, _, body = received.partition(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 200 OK"), head
        length = int(head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0])
        while len(body) < length:
            body += self.more()
        return body

    def more(self) -> bytes:
        data = self.sock.recv(65536)
        assert data
        return data

    def get(self, path: str) -> bytes:
        return self.send(path).response()


class Worker:
    """A worker's threads and loop, and the connections of the test."""

    def __init__(self, threads: int) -> None:
        self.app = App()
        self.loop = Loop()
        self.logged: list[tuple[Any, ...]] = []
        self.runner = LeaderFollowers(
            self.loop, self.app, threads=threads, processes=1, access=lambda *line: self.logged.append(line), local=LOCAL
        )
        limits = Limits(max_line=8190, max_headers=100, max_header_bytes=65536, max_body=1 << 20)
        timeouts = Timeouts(header=60, body=60, write=60, keep_alive=60)
        self.context = WorkerContext(self.loop, self.runner, limits=limits, timeouts=timeouts)
        self.tick()
        self.loop.on_tick = self.tick
        self.ends: list[socket.socket] = []
        ready = threading.Event()
        self.threads = set(threading.enumerate())
        self.thread = threading.Thread(target=self.runner.run, args=(ready.set,), name="app-0")
        self.thread.start()
        assert ready.wait(10 * SCALE)
        self.threads = set(threading.enumerate()) - self.threads

    def tick(self) -> None:
        self.context.tick(time.monotonic(), time.time())

    def connect(self) -> Client:
        ours, theirs = socket.socketpair()
        self.ends.append(ours)
        accepted = socket.SocketType(socket.AF_UNIX, socket.SOCK_STREAM, 0, theirs.detach())
        accepted.setblocking(False)
        self.loop.post(accept, self.context, accepted, ("client", 1024), LOCAL)
        return Client(ours)

    def slow(self, path: str, body: bytes = b"") -> Client:
        """A client whose request waits in the application, on a thread that has not got the loop."""
        self.app.gates.setdefault(path, threading.Event()).clear()
        client = self.connect().send(path, body)
        wait_for(lambda: path in self.app.running, f"{path} runs")
        self.leader()  # it answers, so another thread turns the loop
        return client

    def finish(self, path: str) -> None:
        self.app.gates[path].set()

    def on_loop(self, function: Callable[[], Any]) -> Any:
        """What a function returns on the loop's thread."""
        found: list[Any] = []
        done = threading.Event()
        self.loop.post(lambda: (found.append(function()), done.set()))
        assert done.wait(10 * SCALE)
        return found[0]

    def leader(self) -> str:
        return str(self.on_loop(lambda: threading.current_thread().name))

    def stop(self) -> None:
        for gate in self.app.gates.values():
            gate.set()
        self.runner.stop()
        self.loop.wake()
        for thread in self.threads:
            thread.join(10 * SCALE)
        assert not any(thread.is_alive() for thread in self.threads), "a thread stays"
        for end in self.ends:
            end.close()
        for connection in tuple(self.context.connections):
            connection.close()
        self.loop.close()


@pytest.fixture
def start() -> Iterator[Callable[[int], Worker]]:
    workers: list[Worker] = []

    def start(threads: int) -> Worker:
        workers.append(Worker(threads))
        return workers[-1]

    yield start
    for worker in workers:
        worker.stop()


Start = Callable[[int], Worker]


def test_a_quick_call_runs_on_the_thread_that_turns_the_loop(start: Start):
    """No hand-over: as long as calls are quick, the first thread leads and calls the application itself."""
    worker = start(3)
    client = worker.connect()
    for number in range(5):
        assert client.get(f"/{number}") == b"/%d " % number
        assert worker.app.threads[f"/{number}"] == "app-0"
    assert worker.leader() == "app-0"
    assert worker.runner.answered == 5


def test_each_response_is_one_line_of_the_access_log(start: Start):
    """Quick ones, slow ones, those of a follower: peer, request, status, bytes of body, and a time that has passed."""
    worker = start(2)
    worker.connect().get("/quick")
    slow = worker.slow("/slow")
    worker.finish("/slow")
    slow.response()
    wait_for(lambda: len(worker.logged) == 2)
    for (peer, request, code, sent, seconds), path in zip(worker.logged, ("/quick", "/slow"), strict=True):
        assert (peer, request.line.path, code, sent) == ("client", path, 200, len(path) + 1)
        assert 0 < seconds < 10 * SCALE


def test_a_slow_call_loses_the_loop(start: Start):
    """The watcher takes the loop from it; a follower leads, and the slow call ends on the thread that it began on."""
    worker = start(2)
    slow = worker.slow("/slow")
    assert worker.connect().get("/quick") == b"/quick "
    assert worker.leader() == worker.app.threads["/quick"] == "app-1"
    worker.finish("/slow")
    assert slow.response() == b"/slow "
    assert worker.app.threads["/slow"] == "app-0"
    assert worker.leader() == "app-1"  # it leads on; the other thread is a follower now


def test_with_one_thread_the_watcher_turns_the_loop(start: Start):
    """Requests wait for the one thread, but connections are accepted and read, and `OPTIONS *` is answered."""
    worker = start(1)
    slow = worker.slow("/slow")
    waiting = worker.connect().send("/waiting")
    options = worker.connect()
    options.sock.sendall(b"OPTIONS * HTTP/1.1\r\nHost: test\r\n\r\n")
    assert options.response() == b""
    assert worker.leader() == "watcher"
    assert "/waiting" not in worker.app.threads
    worker.finish("/slow")
    assert (slow.response(), waiting.response()) == (b"/slow ", b"/waiting ")
    assert worker.leader() == "app-0"


def test_a_path_that_was_slow_goes_to_a_follower(start: Start):
    """The leader does not even begin such a request. After one quick call the path counts as quick again."""
    worker = start(3)
    slow = worker.slow("/slow")
    worker.finish("/slow")
    slow.response()
    leader = worker.leader()
    again = worker.slow("/slow")
    assert worker.app.threads["/slow"] != leader
    assert worker.leader() == leader
    worker.finish("/slow")
    again.response()
    client = worker.connect()
    wait_for(lambda: client.get("/slow") and worker.app.threads["/slow"] == worker.leader(), "the path is forgotten")


def test_a_follower_gets_the_body_too(start: Start):
    """A request that is given to a follower keeps the body that came with it."""
    worker = start(2)
    for _ in range(2):
        slow = worker.slow("/slow", b"body")
        worker.finish("/slow")
        assert slow.response() == b"/slow body"


def test_slow_requests_leave_the_last_thread_alone(start: Start, monkeypatch: pytest.MonkeyPatch):
    """Requests on paths that were slow wait for a follower, though the leader is free; quick ones are answered."""
    monkeypatch.setattr(threads_module, "LONG_AFTER", 1000)
    worker = start(2)
    worker.slow("/slow/1")
    worker.finish("/slow/1")
    worker.runner._slow_paths.update(dict.fromkeys(("/slow/2", "/slow/3")))
    first = worker.slow("/slow/2")
    second = worker.connect().send("/slow/3")
    assert worker.connect().get("/quick") == b"/quick "
    assert len(worker.runner._pending_slow) == 1
    worker.finish("/slow/2")
    assert (first.response(), second.response()) == (b"/slow/2 ", b"/slow/3 ")


def test_the_leader_runs_a_slow_request_if_no_follower_will(start: Start):
    """Long requests have all the other threads: then the last one is not kept for quick requests only."""
    worker = start(2)
    worker.runner._slow_paths.update(dict.fromkeys(("/slow/1", "/slow/2")))
    long = worker.slow("/slow/1")
    begun = time.monotonic()
    second = worker.connect().send("/slow/2")
    assert second.response() == b"/slow/2 "
    assert time.monotonic() - begun > LONG_AFTER / 2
    assert worker.connect().get("/quick") == b"/quick "
    worker.finish("/slow/1")
    assert long.response() == b"/slow/1 "


@pytest.mark.parametrize("slow", [False, True])
def test_a_client_that_leaves_while_its_request_waits(start: Start, slow: bool):
    """The application is not called, and the body that came is closed, for the leader as for a follower."""
    worker = start(2 if slow else 1)
    if slow:
        worker.runner._slow_paths["/gone"] = None
        worker.runner._slow_paths["/slow"] = None
    gone = worker.connect()
    gone.get("/quick")  # from now on epoll knows the connection, and reports its end
    waited = worker.slow("/slow")
    gone.send("/gone", b"x" * 10)
    jobs = worker.runner._pending_slow if slow else worker.runner._pending
    wait_for(lambda: jobs, "the request waits")
    _, _, body = jobs[0]
    assert isinstance(body, io.BytesIO)
    gone.sock.close()
    wait_for(lambda: len(worker.context.connections) == 1, "the worker notices")
    worker.finish("/slow")
    waited.response()
    assert worker.connect().get("/quick") == b"/quick "
    wait_for(lambda: body.closed)
    assert "/gone" not in worker.app.threads


def test_a_request_that_waited_while_draining_began(start: Start):
    """It is answered with `Connection: close`, though it was read before that."""
    worker = start(1)
    worker.slow("/slow")
    waiting = worker.connect().send("/waiting")
    wait_for(lambda: worker.runner._pending, "the request waits")
    worker.on_loop(worker.context.drain)
    worker.finish("/slow")
    received = waiting.more()
    assert b"Connection: close\r\n" in received
    assert waiting.sock.recv(1) == b""


def test_waiting_for_an_expected_body_costs_a_thread_and_not_the_loop(start: Start):
    """The application's first read sends "100 Continue", and then waits without the loop."""
    worker = start(1)
    client = worker.connect().send("/expecting", b"body", "Expect: 100-continue")
    assert client.more() == b"HTTP/1.1 100 Continue\r\n\r\n"
    assert worker.leader() == "watcher"
    client.sock.sendall(b"body")
    assert client.response() == b"/expecting body"
    assert worker.connect().get("/quick") == b"/quick "
    assert worker.leader() == "app-0"


def test_signs_of_life(start: Start):
    """A worker is alive while a thread is free or no request waits for one. Else it was when a thread last made progress."""
    worker = start(1)
    runner = worker.runner
    now = time.monotonic() + 1000
    assert runner.alive(now) == now
    worker.slow("/slow")
    assert runner.alive(now) == now  # nothing waits
    worker.connect().send("/waiting")
    wait_for(lambda: runner._pending, "the request waits")
    assert runner.alive(now) < time.monotonic()


def test_time_that_slow_requests_take(start: Start):
    """Only time without the loop counts, also while the request still runs; it is a share of the threads for slow requests."""
    worker = start(3)
    worker.connect().get("/quick")
    assert worker.runner.busy_seconds(time.monotonic())[1] == 0
    worker.slow("/slow")
    assert worker.runner.busy_seconds(time.monotonic() + 1000)[1] > 1000 / 2
    worker.finish("/slow")
    wait_for(lambda: worker.runner.busy_seconds(time.monotonic() + 1000)[1] < 1000 / 2, "the request is over")
    assert worker.runner.busy_seconds(time.monotonic())[1] > 0


def test_a_watcher_that_sleeps_is_woken(start: Start):
    """An idle worker's watcher costs nothing, and a slow call after a pause still loses the loop."""
    worker = start(2)
    for number in range(2):
        wait_for(lambda: worker.runner._watcher_sleeps, "the watcher sleeps", QUIET_CHECKS * SLOW_AFTER * 100)
        path = f"/slow/{number}"
        slow = worker.slow(path)
        assert worker.connect().get("/quick") == b"/quick "
        worker.finish(path)
        slow.response()


def test_known_slow_paths_have_a_bound(start: Start, monkeypatch: pytest.MonkeyPatch):
    """A client that requests ever more slow paths does not fill the memory."""
    monkeypatch.setattr(threads_module, "MAX_SLOW_PATHS", 2)
    worker = start(2)
    for number in range(4):
        path = f"/slow/{number}"
        slow = worker.slow(path)
        assert len(worker.runner._slow_paths) <= 2
        assert path in worker.runner._slow_paths
        worker.finish(path)
        slow.response()


def test_a_stop_ends_every_thread(start: Start):
    """Leader, followers and watcher end, whichever of them turns the loop. `Worker.stop` asserts it."""
    start(3).connect().get("/quick")
    start(1).slow("/slow")


def test_the_next_leader_goes_on_with_the_batch(start: Start):
    """A slow request in the middle of a batch of events delays none of the others, and each is answered once."""
    worker = start(2)
    clients = [worker.connect() for _ in range(10)]
    for client in clients:
        client.get("/hello")
    worker.app.gates["/slow"] = threading.Event()

    def all_at_once() -> None:
        for number, client in enumerate(clients):
            client.send("/slow" if number == 3 else f"/{number}")

    worker.on_loop(all_at_once)
    for number, client in enumerate(clients):
        if number != 3:
            assert client.response() == b"/%d " % number
    worker.finish("/slow")
    assert clients[3].response() == b"/slow "
