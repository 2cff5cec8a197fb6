"""Leader and followers: a slow request delays no other one, and with one thread requests run strictly one at a time.

A request is slow because it waits for the test, so no promise here depends on how long anything takes.
"""

import os
import signal
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress

import pytest

from gates import Gate, Notes
from harness import wait_for

APP = "apps.routes:app"
pytestmark = [pytest.mark.every_trigger, pytest.mark.one_thread]
GET = b"GET %b HTTP/1.1\r\nHost: test\r\n\r\n"


@pytest.fixture
def server(serve):
    return serve(APP)


@pytest.fixture
def several(server, mode):
    """A server that has followers."""
    if mode.threads == 1:
        pytest.skip("one thread has no followers")
    return server


@pytest.fixture
def log(tmp_path):
    return Notes(tmp_path / "log")


class Slow:
    """Requests that wait in the application, each at its own gate. All gates open at the end."""

    def __init__(self, server, tmp_path):
        self.server = server
        self.tmp_path = tmp_path
        self.stack = ExitStack()
        self.gates = []
        self.clients = []

    def __enter__(self):
        self.stack.__enter__()
        return self

    def __exit__(self, *error):
        return self.stack.__exit__(*error)

    def ask(self, route="gate", known=False):
        """Send one more; its gate shows whether it runs yet. Its path is new, unless it is to be `known` as a slow one."""
        gate = self.stack.enter_context(Gate(self.tmp_path / f"gate-{len(self.gates)}"))
        self.gates.append(gate)
        client = self.stack.enter_context(self.server.connect())
        self.clients.append(client)
        client.send(GET % f"/{route}/{'' if known else gate.path}?fifo={gate.path}".encode())
        return gate

    def finish(self):
        """Open the gates one by one, as soon as a request waits there, and read the responses."""
        for gate, client in zip(self.gates, self.clients, strict=True):
            if not gate.opened:
                gate.wait().open()
            assert client.response().status == 200


@pytest.fixture
def slow(server, tmp_path):
    with Slow(server, tmp_path) as slow:
        yield slow


@pytest.mark.parametrize("route", ["gate", "gated_stream"])
def test_slow_requests_do_not_delay_quick_ones(several, slow, route):
    """Seven of eight threads wait, and all else is answered: on old connections and new ones, with bodies, as streams."""
    with several.connect() as old:
        assert old.get("/hello").status == 200
        for _ in range(7):
            slow.ask(route).wait()
            assert old.get("/hello").body == b"Hello, world!"
        for _ in range(5):
            assert several.get("/hello").status == 200
            assert old.post("/read?how=readline", b"x" * 300_000).status == 200
            assert len(old.get("/stream?n=20000").body) == 200_000
        slow.finish()
    assert several.get("/hello").status == 200


def test_a_slow_request_does_not_delay_the_rest_of_its_batch(several, slow):
    """If a request in the middle of a batch of events turns out to be slow, another thread goes on with the batch."""
    with ExitStack() as stack:
        clients = [stack.enter_context(several.connect()) for _ in range(50)]
        for client in clients:
            client.get("/hello")
        for _ in range(3):
            gate = None
            for number, client in enumerate(clients):
                if number == 10:
                    gate = slow.ask()
                client.send(GET % b"/target?%d" % number)
            for number, client in enumerate(clients):
                assert client.response().text == f"/target?{number}"
            gate.wait()
        slow.finish()


def test_more_slow_requests_than_threads(server, mode, slow):
    """With every thread busy further requests wait, and run when a thread is free: none is lost, none runs twice."""
    for _ in range(mode.threads):
        slow.ask().wait()
    for _ in range(5):
        slow.ask()
    quick = [slow.stack.enter_context(server.connect()).request("/target?quick") for _ in range(3)]
    assert all(client.quiet(0.05) for client in quick)
    slow.finish()
    for client in quick:
        assert client.response().text == "/target?quick"


def test_with_every_thread_busy_the_loop_goes_on(serve, mode, tmp_path):
    """A thread that runs no application code rejects bad requests, reads heads and bodies, and keeps deadlines."""
    server = serve(APP, header_timeout=1, body_timeout=1, keep_alive=1)
    with Slow(server, tmp_path) as slow:
        idle = slow.stack.enter_context(server.connect())
        assert idle.get("/hello").status == 200
        for _ in range(mode.threads):
            slow.ask().wait()
        with server.connect() as client:
            assert client.send(b"GET / HTTP/1.1\r\n\r\n").response().status == 400
        with server.connect() as client:
            assert client.send(b"GET / HT").response().status == 408
        with server.connect() as client:
            assert client.send(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\nabc").response().status == 408
        assert idle.closed()
        with server.connect() as client:
            assert client.send(b"OPTIONS * HTTP/1.1\r\nHost: a\r\n\r\n").response().status == 200
        with server.connect() as client:
            client.send(b"POST /digest HTTP/1.1\r\nHost: a\r\nContent-Length: 300000\r\n\r\n", b"x" * 300_000)
            slow.finish()
            assert client.response().status == 200


def test_known_slow_requests_leave_the_last_thread_alone(several, slow, mode):
    """A request whose path was slow goes to a follower at once, so that the leader stays free for quick ones."""
    slow.ask(known=True).wait()
    slow.finish()
    for _ in range(mode.threads - 1):
        slow.ask(known=True).wait()
    for _ in range(10):
        assert several.get("/hello").status == 200
    for gate, client in zip(slow.gates[1:], slow.clients[1:], strict=True):
        gate.wait().open()
        assert client.response().text == "through"


def test_long_requests_do_not_starve_paths_that_were_slow_once(several, slow, mode):
    """If long requests have all threads but the leader's, it runs requests whose path was slow: no other will."""
    slow.ask(known=True).wait()
    slow.finish()
    for _ in range(mode.threads - 1):
        slow.ask(known=True).wait()
    slow.ask(known=True).wait().open()
    assert slow.clients[-1].response().text == "through"
    assert several.get("/hello").status == 200


def readers(server, path):
    """The number of descriptors that the worker has of that FIFO."""
    (pid,) = server.workers()
    count = 0
    for name in os.listdir(f"/proc/{pid}/fd"):
        with suppress(OSError):
            count += os.readlink(f"/proc/{pid}/fd/{name}") == str(path)
    return count


def test_waiting_requests_find_a_thread_whichever_turns_the_loop(serve, mode, tmp_path):
    """Two threads become free at once while the watcher has the loop: one takes it, the other must find the waiting request."""
    if mode.threads == 1:
        pytest.skip("one thread has no followers")
    server = serve(APP, threads=2)
    with Slow(server, tmp_path) as slow:
        slow.ask(known=True).wait()
        slow.finish()
    for turn in range(40):
        (tmp_path / str(turn)).mkdir()
        with ExitStack() as stack:
            both = Gate(tmp_path / str(turn) / "both")
            last = stack.enter_context(Gate(tmp_path / str(turn) / "last"))
            clients = [stack.enter_context(server.connect()) for _ in range(3)]
            clients[0].request(f"/gate/?fifo={both.path}")  # takes a follower
            both.wait()
            clients[1].request(f"/gate/?fifo={last.path}")  # waits for one
            clients[2].request(f"/gate/{both.path}?fifo={both.path}")  # not known: takes the leader
            # If this takes long, the leader may run the waiting request instead: then this turn shows nothing.
            wait_for(lambda both=both, last=last: last.arrived() or readers(server, both.path) == 2, "two threads wait")
            both.open()
            last.wait().open()
            assert [client.response().status for client in clients] == [200, 200, 200]


@pytest.mark.parametrize("position", [0, 1, 5, 11])
def test_a_pipeline_that_becomes_slow_in_the_middle_keeps_its_order(several, tmp_path, position):
    """Requests before the slow one are answered meanwhile, those after it wait, and other clients do not."""
    with Gate(tmp_path / "gate") as gate, several.connect() as client:
        client.get("/hello")
        targets = [f"/target?{number}" for number in range(12)]
        targets[position] = f"/gate/{position}?fifo={gate.path}"
        client.send(*(GET % target.encode() for target in targets))
        gate.wait()
        for target in targets[:position]:
            assert client.response().text == target
        assert client.quiet(0.02)
        assert several.get("/hello").status == 200
        gate.open()
        assert client.response().text == "through"
        for target in targets[position + 1 :]:
            assert client.response().text == target


def test_a_client_that_sends_more_while_it_waits(server, tmp_path):
    """More requests arrive byte by byte while its slow one runs: they are read, and answered in order."""
    with Gate(tmp_path / "gate") as gate, server.connect() as client:
        client.get("/hello")
        client.request(f"/gate?fifo={gate.path}")
        gate.wait()
        for number in range(3):
            for byte in GET % b"/target?%d" % number:
                client.send(bytes((byte,)))
        gate.open()
        assert client.response().text == "through"
        assert [client.response().text for _ in range(3)] == [f"/target?{number}" for number in range(3)]
        assert client.get("/hello").status == 200


@pytest.mark.parametrize("how", ["close", "reset", "half_close"])
def test_a_client_that_leaves_while_its_request_runs(server, tmp_path, log, how):
    """The application is not disturbed, and its thread is free again. A client that only half closed gets its response."""
    with Gate(tmp_path / "gate") as gate:
        client = server.connect()
        client.request(f"/gate?fifo={gate.path}")
        gate.wait()
        getattr(client, how)()
        gate.open()
        if how == "half_close":
            assert client.response().text == "through"
            assert client.closed()
            client.close()
        assert server.get("/hello").status == 200


def test_a_stream_that_is_slow_in_its_close(several, tmp_path):
    """The response is complete before `close()` returns, but the next request is answered only after that."""
    with Gate(tmp_path / "closing") as closing, several.connect() as client:
        client.request(f"/gated_close?fifo={closing.path}")
        closing.wait()
        client.request("/target?next")
        assert client.response().text == "whole"
        assert client.quiet(0.02)
        assert several.get("/hello").status == 200
        closing.open()
        assert client.response().text == "/target?next"


@pytest.mark.parametrize("kind", ["", "&stream=1", "mixed"])
def test_one_thread_is_strictly_one_request_at_a_time(serve, mode, log, kind):
    """From the call to the end of `close()`, and for streams between their steps too. The application counts."""
    server = serve(APP, threads=1)
    kinds = ["", "&stream=1"] if kind == "mixed" else [kind]
    with ThreadPoolExecutor(12) as pool:
        statuses = list(pool.map(lambda i: server.get(f"/alone?log={log}{kinds[i % len(kinds)]}").status, range(36)))
    assert statuses == [200] * 36
    assert log.wait(36) == ["1"] * 36


def test_several_threads_do_run_at_the_same_time(several, log):
    """The counter of the test above does notice requests that overlap."""
    with ThreadPoolExecutor(12) as pool:
        assert all(pool.map(lambda _: several.get(f"/alone?log={log}&stream=1").status == 200, range(36)))
    assert max(map(int, log.wait(36))) > 1


@pytest.mark.parametrize("size", [1, 100_000])
def test_a_stream_never_changes_its_thread(server, log, size):
    """Its call, its steps and its `close()` run on one thread: thread-locals stay, and a database connection can be used."""
    with ThreadPoolExecutor(6) as pool:
        responses = list(pool.map(lambda _: server.get(f"/one_thread?size={size}&log={log}").body.split(), range(18)))
    expected = [word for number in range(1, 21) for word in (b"kept", b"%d" % number)]
    assert all(response == expected for response in responses)
    assert log.wait(18) == ["1 thread"] * 18


def test_waiting_for_an_expected_body_costs_a_thread_and_not_the_loop(several):
    """A client that was sent "100 Continue" and sends nothing keeps one thread waiting; quick requests have the others."""
    clients = [several.connect() for _ in range(7)]
    for client in clients:
        client.send(b"POST /read?how=read HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\nContent-Length: 3\r\n\r\n")
        assert client.response().status == 100
    for client in clients:
        assert several.get("/hello").status == 200
        assert client.send(b"abc").response().status == 200
        client.close()


def test_a_worker_after_a_thousand_changes_of_its_leader(several):
    """Slow and quick requests from many clients: every response comes, and to the client that asked for it."""

    def ask(number):
        with several.connect() as client:
            for turn in range(10):
                kind = "pause" if (number + turn) % 3 == 0 else "target"
                target = f"/{kind}?ms={(number + turn) % 20}&{number}"
                if client.get(target).text != target:
                    return False
        return True

    with ThreadPoolExecutor(24) as pool:
        assert all(pool.map(ask, range(150)))


def test_requests_in_progress_are_answered_when_the_server_is_stopped(serve, mode, tmp_path):
    """SIGTERM: requests that run or wait for a thread are answered with `Connection: close`, and then the server ends."""
    server = serve(APP, own=True, log_level="debug")
    with Slow(server, tmp_path) as slow:
        for _ in range(mode.threads):
            slow.ask().wait()
        waiting = slow.stack.enter_context(server.connect()).request("/target?waiting")
        begun = slow.stack.enter_context(server.connect())
        begun.send(b"GET /target?begun HTT")
        server.signal(signal.SIGTERM)
        server.wait_log("draining")
        begun.send(b"P/1.1\r\nHost: test\r\n\r\n")
        slow.gates[0].wait().open()
        for client in slow.clients[0], waiting, begun:
            response = client.response()
            assert (response.status, response.header("connection")) == (200, "close")
            assert client.closed()
        for gate in slow.gates[1:]:
            gate.open()
        assert server.ended() == 0
