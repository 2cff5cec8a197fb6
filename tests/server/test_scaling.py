"""Scaling up and down while clients send requests: no client is rejected, and new connections go to the emptiest worker."""

import contextlib
import re
import signal
from collections import Counter

from harness import wait_for
from load import Load, hold

PID = b"GET /pid HTTP/1.1\r\nHost: test\r\n\r\n"


def test_up_and_down_under_load_loses_nothing(start):
    """Four times up by two workers and down again: every request is answered."""
    server = start(workers=2)
    with Load(server.address) as load:
        for _ in range(4):
            scale(server, 4)
            wait_for(lambda: len(server.workers()) == 4, lambda: server.log)
            scale(server, 2)
            wait_for(lambda: len(server.workers()) == 2, lambda: server.log)
        assert wait_for(lambda: load.count > 500)
    assert load.failures == []


def test_a_slot_that_retires_serves_clients_that_have_connected(start):
    """A client that connected before TTOU and sends its request after it is answered: handshakes in progress are waited for."""
    server = start(workers=4)
    with contextlib.ExitStack() as stack:
        silent = [stack.enter_context(server.connect()) for _ in range(40)]
        scale(server, 1)
        for client in silent:
            assert client.get("/").text == "Hello, world!"
    wait_for(lambda: len(server.workers()) == 1)


def test_a_slot_that_is_wanted_again_stays(start):
    """TTIN right after TTOU: the worker that was about to retire is kept."""
    server = start(workers=2)
    workers = server.workers()
    scale(server, 1)
    scale(server, 2)
    assert len(load_of(server, 100)) == 2
    assert server.workers() == workers


def test_long_lived_connections_are_even(start):
    """2,000 connections, opened in bursts, over 4 workers: the fullest has at most 1.1 times the mean."""
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
    """Two workers have connections and a third one starts: most new ones go to it, until it has as many as the others."""
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
    """The kernel's hash then spreads connections, and scaling still loses none of them."""
    server = start(workers=2, steer="off")
    assert len(load_of(server, 40)) == 2
    server.signal(signal.SIGTTOU)
    wait_for(lambda: len(server.workers()) == 1)
    assert len(load_of(server, 20)) == 1
    assert "steer" not in server.log


def test_a_unix_socket_is_not_steered(start, tmp_path):
    """The log says so once, and the socket is served."""
    server = start(workers=2, bind=f"unix:{tmp_path}/it")
    assert server.log.count("its connections are not steered") == 1


def scale(server, workers):
    """One signal after the other, since two pending signals of a kind are one (signal(7))."""
    while (count := desired(server)) != workers:
        server.signal(signal.SIGTTIN if workers > count else signal.SIGTTOU)
        wait_for(lambda count=count: desired(server) != count)


def desired(server):
    return int((re.findall(r"scaling to (\d+) worker", server.log) or re.findall(r"(\d+) workers: from", server.log))[-1])


def load_of(server, count):
    """How many of `count` connections, one after the other, each worker answers."""
    return Counter(server.get("/pid").text for _ in range(count))


def load_by_worker(clients):
    """How many of these connections each worker has."""
    found: Counter[int] = Counter()
    for client in clients:
        client.setblocking(False)
        with contextlib.suppress(BlockingIOError):
            client.recv(4096)
        client.setblocking(True)
        client.sendall(PID)
        found[client.recv(4096).rpartition(b"\n")[2]] += 1
    return found
