"""More workers and fewer, while clients ask: nobody is turned away, and new connections go where there is room."""

import contextlib
import re
import signal
from collections import Counter

from harness import wait_for
from load import Load, hold

PID = b"GET /pid HTTP/1.1\r\nHost: test\r\n\r\n"


def test_up_and_down_under_load_loses_nothing(start):
    """Eight times two workers more and two fewer: every request is answered."""
    server = start(workers=2)
    with Load(server.address) as load:
        for _ in range(4):
            scale(server, 4)
            wait_for(lambda: len(server.workers()) == 4, lambda: server.log)
            scale(server, 2)
            wait_for(lambda: len(server.workers()) == 2, lambda: server.log)
        assert wait_for(lambda: load.count > 500)
    assert load.failures == []


def test_a_slot_that_is_given_up_serves_those_who_have_connected(start):
    """Who has connected before TTOU and speaks only afterwards is answered: handshakes under way are waited for."""
    server = start(workers=4)
    with contextlib.ExitStack() as stack:
        silent = [stack.enter_context(server.connect()) for _ in range(40)]
        scale(server, 1)
        for client in silent:
            assert client.get("/").text == "Hello, world!"
    wait_for(lambda: len(server.workers()) == 1)


def test_a_slot_that_is_wanted_again_stays(start):
    """TTIN right after TTOU: the worker that was to go is kept."""
    server = start(workers=2)
    workers = server.workers()
    scale(server, 1)
    scale(server, 2)
    assert len(load_of(server, 100)) == 2
    assert server.workers() == workers


def test_long_lived_connections_are_even(start):
    """2,000 that are opened in bursts over 4 workers: the fullest holds at most 1.1 times the mean."""
    server = start(workers=4)
    with contextlib.ExitStack() as stack:
        clients = []
        for burst in 50, 150, 100, 300, 50, 150, 200, 300, 50, 250, 100, 200, 100:
            clients += hold(server.address, burst, stack, PID)
            held = Counter(client.recv(4096).rpartition(b"\n")[2] for client in clients[-burst:])
            assert sum(held.values()) == burst
        total = load_by_worker(clients)
    assert max(total.values()) <= 1.1 * 2000 / 4, total


def test_a_new_worker_fills_up_first(start):
    """Three hold connections and a fourth comes: most new ones go to it, until it has as many as the others."""
    server = start(workers=2)
    old = {str(pid).encode() for pid in server.workers()}
    with contextlib.ExitStack() as stack:
        clients = hold(server.address, 200, stack, PID)
        load_by_worker(clients)
        server.signal(signal.SIGTTIN)
        server.wait_log("3 workers ready")
        (new,) = {str(pid).encode() for pid in server.workers()} - old
        fresh = []
        for _ in range(10):
            burst = hold(server.address, 10, stack, PID)
            fresh += [client.recv(4096).rpartition(b"\n")[2] for client in burst]
        assert fresh.count(new) > 60  # 33 by chance, with a deviation of 5


def test_steering_can_be_switched_off(start):
    """Then the kernel's hash spreads connections, and scaling still answers whoever it has taken."""
    server = start(workers=2, steer="off")
    assert len(load_of(server, 40)) == 2
    server.signal(signal.SIGTTOU)
    wait_for(lambda: len(server.workers()) == 1)
    assert len(load_of(server, 20)) == 1
    assert "steer" not in server.log


def test_a_unix_socket_is_not_steered(start, tmp_path):
    """It says so once, and serves."""
    server = start(workers=2, bind=f"unix:{tmp_path}/it")
    assert server.log.count("its connections are not steered") == 1


def scale(server, workers):
    """One signal after the other: two that wait to be delivered are one (signal(7))."""
    while (wanted := want(server)) != workers:
        server.signal(signal.SIGTTIN if workers > wanted else signal.SIGTTOU)
        wait_for(lambda wanted=wanted: want(server) != wanted)


def want(server):
    return int((re.findall(r"scaling to (\d+) worker", server.log) or re.findall(r"(\d+) workers: from", server.log))[-1])


def load_of(server, count):
    """Which workers answer so many connections, one after the other."""
    return Counter(server.get("/pid").text for _ in range(count))


def load_by_worker(clients):
    """Ask each client's worker who it is."""
    found: Counter[int] = Counter()
    for client in clients:
        client.setblocking(False)
        with contextlib.suppress(BlockingIOError):
            client.recv(4096)
        client.setblocking(True)
        client.sendall(PID)
        found[client.recv(4096).rpartition(b"\n")[2]] += 1
    return found
