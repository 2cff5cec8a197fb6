"""A worker that stands still: new clients do not wait for it, and a sibling serves its queue."""

import contextlib
import os
import signal
import time

from harness import SCALE, wait_for
from load import Load

# Seconds that a client may wait because a worker stands still; a slow machine needs more.
PROMISE = 0.5 * max(SCALE / 2, 1)


def test_no_client_waits_for_a_stopped_worker(start):
    """Two workers are stopped in turn, for two seconds: no new client waits longer than promised, and none is turned away."""
    server = start(workers=3)
    with Load(server.address, pause=0.02) as load:
        for victim in server.workers()[:2]:
            before = load.count
            os.kill(victim, signal.SIGSTOP)
            end = time.monotonic() + 2
            wait_for(lambda end=end: time.monotonic() > end)
            os.kill(victim, signal.SIGCONT)
            assert load.count > before
            wait_for(lambda victim=victim: str(victim) in serving(server))
    assert [failure for failure in load.failures if "one-shot" in failure] == []
    assert load.slowest < PROMISE
    server.wait_log(r"worker [01] is not accepting connections; siblings are taking its \d+ queued")


def serving(server):
    return {server.get("/pid").text for _ in range(10)}


def test_a_queue_is_served_by_a_sibling(start):
    """Clients in the queue of a stopped worker are served meanwhile; when it resumes it gets its queue back."""
    server = start(workers=2, log_level="debug")
    stopped, other = server.workers()
    os.kill(stopped, signal.SIGSTOP)
    with contextlib.ExitStack() as stack:
        clients = [stack.enter_context(server.connect()).request("/pid", close=True) for _ in range(20)]
        assert {client.response().text for client in clients} == {str(other)}
    server.wait_log("serves the queue of worker 0")
    assert {server.get("/pid").text for _ in range(10)} == {str(other)}  # nothing new goes to the stopped one
    before = descriptors(other)
    os.kill(stopped, signal.SIGCONT)
    server.wait_log("worker 0 accepts connections again")
    wait_for(lambda: str(stopped) in serving(server))
    wait_for(lambda: descriptors(other) < before)


def descriptors(pid):
    return len(os.listdir(f"/proc/{pid}/fd"))


def test_a_queue_is_served_while_its_worker_boots(start, tmp_path):
    """The replacement of a dead worker takes long to boot; no client waits for it."""
    (tmp_path / "version").write_text("1")
    server = start("apps.boots:app", workers=2, env={"BOOTS": str(tmp_path)})
    (tmp_path / "hang").touch()
    first = server.workers()[0]
    os.kill(first, signal.SIGSTOP)
    with contextlib.ExitStack() as stack:
        clients = [stack.enter_context(server.connect()).request("/", close=True) for _ in range(20)]
        os.kill(first, signal.SIGKILL)
        wait_for((tmp_path / "hanging").exists)
        assert {client.response().text for client in clients} == {"1"}
        assert {server.get("/").text for _ in range(20)} == {"1"}
    (tmp_path / "hang").unlink()
    server.wait_log(r"worker 0 \(pid \d+\) is ready")


def test_an_idle_server_sleeps(start):
    """Without clients the supervisor wakes once a second to check its workers, and not for the queues."""
    server = start(workers=4)
    server.get("/")

    def switches():
        with open(f"/proc/{server.pid}/status", encoding="ascii") as file:
            return int(next(line.split()[1] for line in file if line.startswith("voluntary_ctxt_switches")))

    def quiet_second():
        before, end = switches(), time.monotonic() + 1
        wait_for(lambda: time.monotonic() > end)
        return switches() - before <= 3

    wait_for(quiet_second)
