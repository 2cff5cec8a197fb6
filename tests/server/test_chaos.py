"""Chaos in brief: what loadtests/chaos/run.py does for minutes. Clients count every request that is lost."""

import os
import random
import signal
import time
from pathlib import Path

import pytest

import hands
from harness import SCALE, Client, leaves, session, wait_for
from load import Load

CHAOS = Path(__file__).parents[2] / "loadtests" / "chaos"
# How long a stopped worker may delay a client, in seconds; more on a slow machine.
PROMISE = 0.5 * max(SCALE / 2, 1)


@pytest.fixture(params=["wsgi", "asgi"])
def served(start, request):
    """`served(workers=4)` starts a server of the application for each interface."""
    return lambda **options: start(f"applications:{request.param}", chdir=CHAOS, **options)


def load(server, **options):
    """Clients whose connections are silent at first, like connections from far away."""
    return Load(server.address, pause=0.01, distance=0.02, **options)


def lost(load, ended=float("inf")):
    """The failures, except connections that were refused after the server had stopped listening."""
    return [failure for failure in load.failures if not (failure.refused and failure.when > ended)]


def workers(server):
    return [pid for pid in leaves(server.pid) if pid != server.pid]


def test_operations_lose_nothing(served):
    """During reloads, scaling up and down, recycling, and the final SIGTERM every request is answered."""
    server = served(workers=3, max_requests=300, max_requests_jitter=50)
    with load(server) as clients:
        for number in signal.SIGHUP, signal.SIGTTIN, signal.SIGTTOU, signal.SIGTTOU, signal.SIGHUP, signal.SIGTTIN:
            server.signal(number)
            before = clients.count
            wait_for(lambda before=before: clients.count > before + 300)
        server.wait_log("requests: replacing it")
        server.wait_log("of generation 3 ready")
        ended = time.monotonic()
        server.signal(signal.SIGTERM)
        assert server.ended() == 0
    assert lost(clients, ended) == []
    assert clients.count > 1800


def test_a_kill_costs_what_the_worker_had_read(served):
    """SIGKILL to a random worker, six times: only clients fail that it had accepted and whose bytes it had read completely."""
    server = served(workers=3)
    grips = []
    with load(server, target="/?ms=1") as clients:
        for number in range(1, 7):
            victim = random.choice(workers(server))
            hands.stop(victim)
            grips += hands.in_hands(victim, server.port)
            os.kill(victim, signal.SIGKILL)
            before = clients.count
            wait_for(lambda before=before: clients.count > before + 200)
            # A kill before a worker is ready would look like its own early exit.
            server.wait_log(r"worker \d+ \(pid \d+\) is ready", number)
        wait_for(lambda: len(workers(server)) == 3)
    read = {held.port for held in grips if not held.unread}
    assert [failure for failure in clients.failures if failure.port not in read] == []
    assert "has exited early" not in server.log


def test_no_new_client_waits_for_a_stopped_worker(served):
    """SIGSTOP to a worker, twice: only clients that it had accepted wait longer than promised, and none is refused."""
    server = served(workers=3)
    grips = []
    with load(server) as clients:
        for victim in workers(server)[:2]:
            hands.stop(victim)
            grips += hands.in_hands(victim, server.port)
            end = time.monotonic() + 1
            wait_for(lambda end=end: time.monotonic() > end)
            os.kill(victim, signal.SIGCONT)
            before = clients.count
            wait_for(lambda before=before: clients.count > before + 100)
    assert lost(clients) == []
    held = {held.port for held in grips}
    slow = [one for one in clients.log if one.kind == "one-shot" and one.seconds > PROMISE and one.port not in held]
    assert slow == []


def test_workers_do_not_outlive_their_supervisor(served):
    """SIGKILL to the supervisor: the workers serve the connections they have, then exit; nothing is left, the port is free."""
    server = served(workers=3)
    with load(server) as clients:
        wait_for(lambda: clients.count > 100)
        ended = time.monotonic()
        server.process.kill()
        server.process.wait()
        wait_for(lambda: not session(server.pid))
    assert lost(clients, ended) == []
    with pytest.raises(ConnectionRefusedError):
        Client(server.address)
