"""Leader and followers: nobody waits for somebody else's slow request, and with one thread nothing runs beside anything else.

Slow is what waits for the test, so no promise here depends on how long anything takes.
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
    """Requests that wait in the application, each at a gate of its own. All gates open at the end."""

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
        """One more; its gate tells whether it runs already. On a path of its own, unless that shall be `known` to be slow."""
        gate = self.stack.enter_context(Gate(self.tmp_path / f"gate-{len(self.gates)}"))
        self.gates.append(gate)
        client = self.stack.enter_context(self.server.connect())
        self.clients.append(client)
        client.send(GET % f"/{route}/{'' if known else gate.path}?fifo={gate.path}".encode())
        return gate

    def finish(self):
        """Open the gates one by one, as soon as somebody waits there, and read the answers."""
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
    """Seven of eight threads wait, and everybody else is answered: on old connections, on new ones, with bodies, in streams."""
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


def test_those_that_came_in_the_same_batch_are_not_delayed(several, slow):
    """A slow request takes the loop with it from the middle of a batch: the rest of the batch goes on without it."""
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
    """With every thread busy the others wait, and are answered when one is free: none lost, none twice."""
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
    """Bad requests are rejected, heads and bodies read, deadlines kept, by a thread that runs no application code."""
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
    """A path that was slow goes to a follower at once, and the leader is for the quick."""
    slow.ask(known=True).wait()
    slow.finish()
    for _ in range(mode.threads - 1):
        slow.ask(known=True).wait()
    for _ in range(10):
        assert several.get("/hello").status == 200
    for gate, client in zip(slow.gates[1:], slow.clients[1:], strict=True):
        gate.wait().open()
        assert client.response().text == "through"


def test_long_requests_do_not_starve_what_was_slow_once(several, slow, mode):
    """Where long requests hold all threads but the leader's, it takes a path that was slow: nobody else would, for ever."""
    slow.ask(known=True).wait()
    slow.finish()
    for _ in range(mode.threads - 1):
        slow.ask(known=True).wait()
    slow.ask(known=True).wait().open()
    assert slow.clients[-1].response().text == "through"
    assert several.get("/hello").status == 200


def readers(server, path):
    """How many descriptors of the worker are that FIFO."""
    (pid,) = server.workers()
    count = 0
    for name in os.listdir(f"/proc/{pid}/fd"):
        with suppress(OSError):
            count += os.readlink(f"/proc/{pid}/fd/{name}") == str(path)
    return count


def test_waiting_requests_find_a_thread_whoever_turns_the_loop(serve, mode, tmp_path):
    """Two threads become free at once, and neither turns the loop: one takes it, the other must find the request that waits."""
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
            # Where this takes long, the leader may take the one that waits instead: then there is nothing to see this time.
            wait_for(lambda both=both, last=last: last.arrived() or readers(server, both.path) == 2, "two threads wait")
            both.open()
            last.wait().open()
            assert [client.response().status for client in clients] == [200, 200, 200]


@pytest.mark.parametrize("position", [0, 1, 5, 11])
def test_a_pipeline_that_becomes_slow_in_the_middle_keeps_its_order(several, tmp_path, position):
    """What is before the slow request is answered meanwhile, what is behind it waits; nobody else does."""
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


def test_a_client_that_sends_on_while_it_waits(server, tmp_path):
    """More requests, byte by byte, while its slow one runs: read in time, answered in order."""
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
    """The application is not disturbed, its thread comes back; who only said that it will send no more gets its answer."""
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
    """The answer is whole before `close()` returns, but the connection goes on after it only."""
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
    """From the call to the end of `close()`, streams between their steps included (the application counts)."""
    server = serve(APP, threads=1)
    kinds = ["", "&stream=1"] if kind == "mixed" else [kind]
    with ThreadPoolExecutor(12) as pool:
        answers = list(pool.map(lambda i: server.get(f"/alone?log={log}{kinds[i % len(kinds)]}").status, range(36)))
    assert answers == [200] * 36
    assert log.wait(36) == ["1"] * 36


def test_several_threads_do_run_beside_each_other(several, log):
    """The counter of the test above can count."""
    with ThreadPoolExecutor(12) as pool:
        assert all(pool.map(lambda _: several.get(f"/alone?log={log}&stream=1").status == 200, range(36)))
    assert max(map(int, log.wait(36))) > 1


@pytest.mark.parametrize("size", [1, 100_000])
def test_a_stream_never_changes_its_thread(server, log, size):
    """Its call, its steps and its `close()`: thread-locals are there, a database connection allows itself to be used."""
    with ThreadPoolExecutor(6) as pool:
        answers = list(pool.map(lambda _: server.get(f"/one_thread?size={size}&log={log}").body.split(), range(18)))
    expected = [word for number in range(1, 21) for word in (b"kept", b"%d" % number)]
    assert all(answer == expected for answer in answers)
    assert log.wait(18) == ["1 thread"] * 18


def test_waiting_for_a_body_costs_a_thread_only_where_it_must(several):
    """Who was told to continue and does not keeps a thread waiting; quick requests have the others."""
    clients = [several.connect() for _ in range(7)]
    for client in clients:
        client.send(b"POST /read?how=read HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\nContent-Length: 3\r\n\r\n")
        assert client.response().status == 100
    for client in clients:
        assert several.get("/hello").status == 200
        assert client.send(b"abc").response().status == 200
        client.close()


def test_a_worker_after_a_thousand_changes_of_its_leader(several):
    """Slow and quick mixed, from many clients: every answer comes, and to the one who asked."""

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


def test_requests_under_way_are_answered_when_the_server_is_stopped(serve, mode, tmp_path):
    """TERM: what runs and what waits for a thread is answered with `Connection: close`, and then all is over."""
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
            answer = client.response()
            assert (answer.status, answer.header("connection")) == (200, "close")
            assert client.closed()
        for gate in slow.gates[1:]:
            gate.open()
        assert server.ended() == 0
