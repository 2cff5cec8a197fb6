"""Workers die in every way, and the server carries on: each is replaced in its slot, and the log says why."""

import contextlib
import ctypes
import os
import re
import signal
import sys
from pathlib import Path

import pytest

from harness import SCALE, Client, alive, children, wait_for

CONTROL = "apps.control:app"
BOOTS = "apps.boots:app"


def listeners(port):
    """The inodes of the TCP sockets that listen on a port of 127.0.0.1: proc_net_tcp(5), state 0A."""
    rows = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    return {row[9] for row in rows if row[1] == f"0100007F:{port:04X}" and row[3] == "0A"}


def open_files(pid, kind):
    """The inodes of the open sockets or pipes of a process, one for each descriptor."""
    found = []
    for name in os.listdir(f"/proc/{pid}/fd"):
        with contextlib.suppress(OSError):
            match = re.fullmatch(rf"{kind}:\[(\d+)\]", os.readlink(f"/proc/{pid}/fd/{name}"))
            found += [match[1]] if match else []
    return found


def answering(server, count):
    """Connect until `count` workers have answered. Returns their pids."""
    pids = set()
    wait_for(lambda: pids.add(int(server.get("/pid").text)) or len(pids) == count, lambda: f"{count} workers, not {pids}")
    return pids


def replacement(server, *old):
    """Wait for as many workers as `old` ones, all of them new."""
    wait_for(lambda: len(server.workers()) == len(old) and not {*old} & {*server.workers()}, lambda: server.log)
    return server.workers()


def test_four_workers_are_four_listeners_of_one_group(start):
    """Each worker has one of four listeners on the same port to itself, and each of them answers."""
    server = start(CONTROL, workers=4)
    group = listeners(server.port)
    workers = server.workers()
    assert len(group) == len(workers) == 4
    owned = [group.intersection(open_files(pid, "socket")) for pid in workers]
    assert [len(own) for own in owned] == [1, 1, 1, 1]
    assert set.union(*owned) == group == group.intersection(open_files(server.pid, "socket"))
    assert answering(server, 4) == set(workers)


def test_workers_know_their_slot_and_generation(start):
    """EPOLLARD_WORKER_ID is the slot; EPOLLARD_GENERATION counts reloads."""
    server = start(CONTROL, workers=2)
    seen = set()
    wait_for(lambda: seen.add(server.get("/env").text) or len(seen) == 2)
    assert seen == {"0 1", "1 1"}


def test_a_worker_holds_nothing_of_the_supervisor(start):
    """Of its parent's sockets a worker has only its own listener, of its parent's pipes only one end of the lifeline."""
    server = start(CONTROL, workers=3)
    for pid in server.workers():
        assert len(set(open_files(pid, "socket")) & set(open_files(server.pid, "socket"))) == 1
        (lifeline,) = set(open_files(pid, "pipe")) & set(open_files(server.pid, "pipe"))
        assert open_files(pid, "pipe").count(lifeline) == 1
        assert open_files(server.pid, "pipe").count(lifeline) == 2


def test_subprocesses_of_an_application_ignore_no_signal_because_of_us(start):
    """Subprocesses inherit what a worker ignores: only signals that Python itself ignores, and restores (SIGPIPE, SIGXFSZ)."""
    server = start(CONTROL)
    ignored = server.get("/ignored").text
    assert not {"SIGTERM", "SIGHUP", "SIGQUIT", "SIGUSR1", "SIGUSR2", "SIGCHLD", "SIGTTIN", "SIGTTOU"} & set(
        re.findall(r"\w+", ignored)
    )


def test_connections_in_the_queue_of_a_dead_worker_are_answered(start):
    """Stop one of two workers, connect, kill it: its replacement or its sibling serves the queue, and no client is rejected."""
    server = start(CONTROL, workers=2)
    stopped = server.workers()[0]
    os.kill(stopped, signal.SIGSTOP)
    with contextlib.ExitStack() as stack:
        clients = [stack.enter_context(server.connect()).request("/pid", close=True) for _ in range(40)]
        os.kill(stopped, signal.SIGKILL)
        answered = [int(client.response().text) for client in clients]
    assert stopped not in answered


@pytest.mark.parametrize(
    ("act", "words"),
    [
        ("/exit?0", r"exited with 0"),
        ("/exit?7", r"exited with 7"),
        ("/kill?9", r"was killed by signal SIGKILL"),
        ("/kill?11", r"was killed by signal SIGSEGV"),
        ("/kill?40", r"was killed by signal 40"),
    ],
)
def test_the_log_says_how_a_worker_ended(start, act, words):
    """Once, with slot, process, age, requests and connections; and another worker is there at once."""
    server = start(CONTROL, workers=2)
    old = server.workers()
    with server.connect() as client:
        client.request(act)
        died = server.wait_log(
            rf"worker ([01]) \(pid (\d+)\) {words} after \d+\.\d s; \d+ requests answered, \d connections open"
        )
        assert client.rest() == b""
    assert int(died[2]) in old
    wait_for(lambda: len(server.workers()) == 2)
    server.wait_log(rf"worker {died[1]} \(pid (?!{died[2]})\d+\) is ready")
    assert server.log.count(f"(pid {died[2]})") == 1


def test_a_crash_leaves_a_stack(start):
    """After a segmentation fault the log shows where in Python it happened."""
    server = start(CONTROL)
    with server.connect() as client:
        client.request("/kill?11")
        server.wait_log(r"Fatal Python error: Segmentation fault")
        server.wait_log(r'control\.py", line \d+ in kill$')


def test_early_exits_back_off(start):
    """The first replacement comes at once, the second and third after 0.5 s and 1 s; the other worker serves meanwhile."""
    server = start(CONTROL, workers=2)
    for count, delay in (1, None), (2, "0.5"), (3, "1"):
        wait_for(lambda: end_slot_0(server))
        server.wait_log(r"worker 0 \(pid \d+\) exited with 1 ", count)
        if delay:
            server.wait_log(rf"worker 0 has exited early {count} times in a row: the next one starts in {delay} s")
            assert len(server.workers()) == 1
        server.wait_log(r"worker 0 \(pid \d+\) is ready", count)
    assert "worker 1 (pid" not in server.log


def end_slot_0(server):
    """End the process in slot 0, if a new connection happens to come to it. Returns whether it did."""
    with server.connect() as client:
        mine = client.get("/env").text.startswith("0 ")
        if mine:
            assert client.request("/exit?1").rest() == b""
        return mine


def test_an_application_that_does_not_import_ends_the_server(start, tmp_path):
    """The status is 3, and the log ends with the application's traceback, once, however many workers tried."""
    (tmp_path / "raise").touch()
    server = start(BOOTS, workers=4, env={"BOOTS": str(tmp_path)}, wait=False)
    assert server.ended() == 3
    assert server.log.endswith("\nRuntimeError: this application was told not to boot\n"), server.log
    assert server.log.count("Traceback (most recent call last):") == 1
    assert "supervisor" not in server.log.partition("Traceback")[2]


def test_a_mistyped_application_ends_the_server(start):
    """The status is 3, and the last line suggests the right name."""
    server = start("apps.hello:ap", workers=2, wait=False)
    assert server.ended() == 3
    assert server.log.endswith("module 'apps.hello' has no attribute 'ap'; did you mean 'app'?\n"), server.log


def test_workers_that_never_boot_end_the_server(start, tmp_path):
    """An application that ends its process when it is imported is tried three times; then the status is 1."""
    (tmp_path / "exit").touch()
    server = start(BOOTS, env={"BOOTS": str(tmp_path)}, wait=False)
    assert server.ended() == 1
    assert len(re.findall(r"worker 0 \(pid \d+\) exited with 5", server.log)) == 3
    assert "no worker has become ready in 3 attempts" in server.log


@pytest.mark.parametrize("interface", ["wsgi", "asgi"])
def test_a_worker_without_its_threads_is_not_ready(start, tmp_path, interface):
    """If a limit forbids another thread, the worker does not become ready and then die: it does not boot."""
    (tmp_path / "limited.py").write_text(
        "import threading\n"
        "from apps.hello import app\n"
        "def start(self):\n"
        '    raise RuntimeError("can\'t start new thread")\n'
        "threading.Thread.start = start\n"
    )
    server = start("limited:app", chdir=tmp_path, interface=interface, wait=False)
    assert server.ended() == 1
    assert "no worker has become ready in 3 attempts" in server.log


def test_a_worker_that_does_not_boot_in_time_is_replaced(start, tmp_path):
    """The boot timeout is separate from the stuck timeout; the log shows where the application hangs."""
    (tmp_path / "hang").touch()
    server = start(BOOTS, boot_timeout=1, env={"BOOTS": str(tmp_path)}, wait=False)
    server.wait_log(r"worker 0 \(pid \d+\) was not ready after 1 s: its stacks follow")
    server.wait_log(r'boots\.py", line \d+ in <module>$')
    server.wait_log(r"worker 0 \(pid \d+\) was killed by the supervisor because it was not ready after 1 s")
    (tmp_path / "hang").unlink()
    server.started()
    assert server.get("/").text == "1"


def test_a_slow_boot_is_not_stuck(start, tmp_path):
    """The stuck timeout does not apply while the application is imported: here the import takes 3 s, the timeout is 2 s."""
    (tmp_path / "hang").touch()
    server = start(BOOTS, stuck_timeout=2, boot_timeout=60, env={"BOOTS": str(tmp_path)}, wait=False)
    wait_for((tmp_path / "hanging").exists)
    booting = server.workers()
    wait_for(lambda: age(booting[0]) > 3.2, seconds=10)
    (tmp_path / "hang").unlink()
    server.started()
    assert server.workers() == booting


def age(pid):
    """A process's age in seconds, from its start in ticks since boot (proc_pid_stat(5), field 22)."""
    ticks = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19])
    return float(Path("/proc/uptime").read_text().split()[0]) - ticks / os.sysconf("SC_CLK_TCK")


def test_a_stuck_worker_shows_its_stacks_and_is_replaced(start):
    """If code never gives the interpreter back, the log shows which code, and a replacement serves."""
    server = start(CONTROL, stuck_timeout=2, threads=8)
    (old,) = server.workers()
    with server.connect() as client:
        client.request("/hang")
        server.wait_log(rf"worker 0 \(pid {old}\) was silent for 2 s: its stacks follow, then it is ended", seconds=10 * SCALE)
        server.wait_log(r'control\.py", line \d+ in hang$')
        server.wait_log(rf"worker 0 \(pid {old}\) was killed by the supervisor because it was silent for 2 s after ")
        replacement(server, old)
    assert server.get("/").text == "hello"


def test_a_stopped_worker_is_replaced(start):
    """A worker that cannot even write its stacks is killed all the same."""
    server = start(CONTROL, stuck_timeout=2)
    (old,) = server.workers()
    os.kill(old, signal.SIGSTOP)
    with server.connect() as client:
        assert int(client.get("/pid").text) != old
    assert "was killed by the supervisor because it was silent for 2 s" in server.log


def test_a_long_request_is_not_stuck(start, tmp_path):
    """A worker that waits for its application is alive: with 8 threads it answers other requests meanwhile."""
    server = start(CONTROL, stuck_timeout=2, threads=8)
    (old,) = server.workers()
    with server.connect() as client:
        client.request(f"/until?{tmp_path}/go")
        wait_for((tmp_path / "go.running").exists)
        since = age(old)
        wait_for(lambda: server.get("/").text == "hello" and age(old) - since > 3.2, seconds=10)
        (tmp_path / "go").touch()
        assert client.response().text == "done"
    assert server.workers() == [old]


def test_workers_without_a_supervisor_finish_and_exit(start, tmp_path):
    """When the supervisor is killed, its workers finish the requests in flight, then exit too."""
    server = start(CONTROL, workers=2)
    workers = server.workers()
    with server.connect() as client:
        client.request(f"/until?{tmp_path}/go")
        wait_for((tmp_path / "go.running").exists)
        os.kill(server.pid, signal.SIGKILL)
        assert server.ended() == -signal.SIGKILL
        wait_for(lambda: sum(map(alive, workers)) == 1)
        wait_for(lambda: not listeners(server.port))
        (tmp_path / "go").touch()
        assert client.response().text == "done"
    wait_for(lambda: not any(map(alive, workers)))


@pytest.mark.parametrize("drains", [False, True])
def test_without_a_supervisor_there_is_a_deadline_too(start, tmp_path, drains):
    """No process is left to kill a worker that does not end: it ends itself, even if it was draining already."""
    server = start(CONTROL, workers=1, graceful_timeout=3)
    (worker,) = server.workers()
    with server.connect() as client:
        client.request(f"/until?{tmp_path}/never")
        wait_for((tmp_path / "never.running").exists)
        if drains:
            os.kill(worker, signal.SIGTERM)
            wait_for(lambda: len(server.workers()) == 2)
        os.kill(server.pid, signal.SIGKILL)
        assert server.ended() == -signal.SIGKILL
        wait_for(lambda: not alive(worker), lambda: server.log)
    assert "not drained in time: closing the remaining connections" in server.log


SUBREAPER = """
import ctypes, os, sys
assert ctypes.CDLL(None).prctl(36, 1, 0, 0, 0) == 0  # PR_SET_CHILD_SUBREAPER, which exec keeps: prctl(2)
os.execv(sys.argv[1], sys.argv[1:])
"""


def test_orphans_are_reaped_silently(start, tmp_path):
    """As PID 1 of a container the supervisor inherits orphans; none stays a zombie, and none is logged."""
    assert ctypes.CDLL(None).prctl
    server = start(CONTROL, launcher=[sys.executable, "-c", SUBREAPER])
    orphan = int(server.get(f"/orphan?{tmp_path}/go").text)
    wait_for(lambda: orphan in children(server.pid))
    before = server.log
    (tmp_path / "go").touch()
    wait_for(lambda: not Path(f"/proc/{orphan}").exists())  # a zombie would have its directory still
    assert server.get("/").text == "hello"
    assert server.log == before


def test_a_worker_that_gets_term_from_outside_is_replaced_at_once(start, tmp_path):
    """After `kill -TERM` a worker drains, and its replacement is there before it has exited."""
    server = start(CONTROL)
    (old,) = server.workers()
    with server.connect() as client:
        client.request(f"/until?{tmp_path}/go")
        wait_for((tmp_path / "go.running").exists)
        os.kill(old, signal.SIGTERM)
        server.wait_log(r"worker 0 \(pid \d+\) is ready")
        assert int(server.get("/pid").text) != old
        (tmp_path / "go").touch()
        assert client.response().text == "done"
    server.wait_log(rf"worker 0 \(pid {old}\) exited with 0")


def test_the_supervisor_has_one_thread_and_no_application(start):
    """So forking is safe, and its memory stays small."""
    server = start(CONTROL)
    assert os.listdir(f"/proc/{server.pid}/task") == [str(server.pid)]
    assert "/_ctypes" not in Path(f"/proc/{server.pid}/maps").read_text()
    assert "/_ctypes" in Path(f"/proc/{server.workers()[0]}/maps").read_text()


def test_clients_of_other_workers_do_not_notice_a_death(start):
    """Keep-alive connections to the other worker stay open."""
    server = start(CONTROL, workers=2)
    with contextlib.ExitStack() as stack:
        clients: dict[int, Client] = {}
        wait_for(lambda: clients.update([pid_and_client(server, stack)]) or len(clients) == 2)
        victim, other = clients
        os.kill(victim, signal.SIGKILL)
        assert clients[victim].rest() == b""
        assert int(clients[other].get("/pid").text) == other


def pid_and_client(server, stack):
    client = stack.enter_context(server.connect())
    return int(client.get("/pid").text), client
