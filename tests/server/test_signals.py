"""TTIN, TTOU, USR1, while the server keeps serving."""

import os
import re
import signal

import pytest

from harness import wait_for

CONTROL = "apps.control:app"


def test_ttin_adds_a_worker(start):
    """It has a slot and a listener of its own, and answers."""
    server = start(CONTROL, workers=1)
    (first,) = server.workers()
    server.signal(signal.SIGTTIN)
    server.wait_log("2 workers ready")
    assert server.workers()[0] == first
    seen = set()
    wait_for(lambda: seen.add(server.get("/env").text) or len(seen) == 2)
    assert seen == {"0 1", "1 1"}


def test_ttou_removes_a_worker(start, tmp_path):
    """The one in the highest slot finishes its requests; all new connections go to the other one."""
    server = start(CONTROL, workers=2)
    first, second = server.workers()
    client = None
    while client is None:
        candidate = server.connect()
        if int(candidate.get("/pid").text) == second:
            client = candidate.request(f"/until?{tmp_path}/go")
        else:
            candidate.close()
    with client:
        wait_for((tmp_path / "go.running").exists)
        server.signal(signal.SIGTTOU)
        server.wait_log("1 worker ready")
        wait_for(lambda: listeners_of(second) == 0)
        assert {int(server.get("/pid").text) for _ in range(20)} == {first}
        (tmp_path / "go").touch()
        assert client.response().text == "done"
    server.wait_log(rf"worker 1 \(pid {second}\) exited with 0")
    assert server.workers() == [first]


def listeners_of(pid):
    """How many listening TCP sockets a process has open."""
    with open("/proc/net/tcp", encoding="ascii") as file:
        listening = {row[9] for row in map(str.split, file) if row[3] == "0A"}
    links = [os.readlink(f"/proc/{pid}/fd/{name}") for name in os.listdir(f"/proc/{pid}/fd") if name.isdigit()]
    return sum(link.removeprefix("socket:[").removesuffix("]") in listening for link in links)


def test_ttou_leaves_the_last_worker(start):
    """There is always at least one."""
    server = start(CONTROL, workers=1)
    (first,) = server.workers()
    server.signal(signal.SIGTTOU)
    server.wait_log("SIGTTOU: scaling to 1 worker$")
    assert int(server.get("/pid").text) == first


def test_up_and_down_loses_no_connection(start):
    """While workers are added, one connection after the other is answered."""
    server = start(CONTROL, workers=2)
    for number, count in (signal.SIGTTIN, 3), (signal.SIGTTIN, 4), (signal.SIGTTIN, 5), (signal.SIGTTIN, 6):
        server.signal(number)
        wait_for(lambda count=count: server.get("/").text == "hello" and f"{count} workers ready" in server.log)
    assert len(server.workers()) == 6


@pytest.mark.parametrize("threads", [1, 8])
def test_usr1_shows_every_stack(start, threads):
    """The supervisor's own, and those of all threads of all workers; everything keeps running."""
    server = start(CONTROL, workers=2, threads=threads)
    workers = server.workers()
    server.signal(signal.SIGUSR1)
    server.wait_log(r'supervisor\.py", line \d+ in run$')
    server.wait_log(r'worker\.py", line \d+ in run$', 2)
    for pid in workers:  # one after the other, each with a heading
        assert re.search(rf"the stacks of worker \d \(pid {pid}\):\n(Thread|Current thread|Stack) ", server.log)
    assert server.get("/").text == "hello"
    assert server.workers() == workers


@pytest.mark.parametrize(
    "number", [signal.SIGHUP, signal.SIGTTIN, signal.SIGTTOU, signal.SIGUSR1, signal.SIGUSR2, signal.SIGINT]
)
def test_a_worker_survives_signals_that_are_meant_for_the_supervisor(start, number):
    """A terminal or `kill 0` sends a signal to every process of the group; a worker acts only on TERM and QUIT."""
    server = start(CONTROL)
    workers = server.workers()
    os.kill(workers[0], number)
    assert server.get("/").text == "hello"
    assert server.workers() == workers
