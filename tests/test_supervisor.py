"""What the supervisor decides where a real server would need minutes, or a kernel in distress, to be brought to it."""

import errno
import itertools
import os
import socket
import subprocess
from types import SimpleNamespace

import pytest

from epollard import config, supervisor
from epollard.scoreboard import HEARTBEAT, READY, STATE
from epollard.slots import Process, Slot
from epollard.supervisor import Supervisor

PID = 2**22 + 1  # beyond what the kernel gives (proc_sys_kernel(5), pid_max)


@pytest.fixture
def clock(monkeypatch):
    """The supervisor's clock, which stands still unless a test moves it."""
    clock = SimpleNamespace(now=1000.0)
    monkeypatch.setattr(supervisor, "time", SimpleNamespace(monotonic=lambda: clock.now))
    return clock


@pytest.fixture
def started(clock, monkeypatch):
    """`started("--workers", "1")`: a supervisor that has bound nothing, watches nothing and has no child."""
    made = []

    def started(*words):
        settings = config.load(config.parse_arguments(words).given, {}).config
        found = Supervisor(settings, lambda: settings, ".")
        found._listeners.slots = [Slot(index, []) for index in range(found._workers)]
        made.append(found)
        return found

    yield started
    for found in made:
        found._loop.close()
        for fd in (found._pool._bell, found._pool._lifeline, found._pool._lifeline_writer):
            os.close(fd)


@pytest.fixture
def sent(monkeypatch):
    """The signals that the supervisor sends, which nobody gets."""
    found = []
    monkeypatch.setattr(os, "kill", lambda pid, number: found.append((pid, number)))
    return found


def process(of):
    """A worker of the first slot, as the supervisor would know it."""
    record = of._pool._scoreboard.claim()
    record[STATE] = READY
    record[HEARTBEAT] = int(of._now * 1e9)
    channel = socket.socket()
    channel.close()
    slot = of._listeners.slots[0]
    found = Process(PID, slot, of._generation, record, -1, channel, of._now)
    found.ready_since = of._now
    of._pool.processes[PID] = found
    slot.processes.append(found)
    return found


def test_a_process_that_cannot_be_forked_is_tried_again(started, clock, monkeypatch, capfd):
    """A limit on processes is waited out, ever more patiently, and the server goes on."""
    of = started("--workers", "1")
    of._pool.proven = 1
    attempts = []

    def fork():
        attempts.append(clock.now)
        raise OSError(errno.EAGAIN, os.strerror(errno.EAGAIN))

    monkeypatch.setattr(os, "fork", fork)
    for _ in range(100):
        of._step()
        clock.now += 0.5
    waits = [later - earlier for earlier, later in itertools.pairwise(attempts)]
    assert waits == [0.5, 0.5, 1, 2, 4, 8, 10, 10, 10]
    assert "worker 0 cannot be started: [Errno 11] Resource temporarily unavailable" in capfd.readouterr().err


def test_a_server_that_can_never_fork_ends(started, clock, monkeypatch):
    """Three attempts; then who started us should hear of it, by status 1."""
    of = started("--workers", "2")
    attempts = []

    def fork():
        attempts.append(clock.now)
        raise OSError(errno.ENOMEM, os.strerror(errno.ENOMEM))

    monkeypatch.setattr(os, "fork", fork)
    for _ in range(10):
        of._step()
        clock.now += 0.5
    assert of._stopping == supervisor.QUICK
    assert of._status == 1
    assert len(attempts) == 5  # the third of the first slot ends it


def test_no_free_record_is_no_crash(started, clock, monkeypatch, capfd):
    """So many workers that drain that there is no record for another one: it has to wait."""
    of = started("--workers", "1")
    of._pool.proven = 1
    monkeypatch.setattr(of._pool._scoreboard, "capacity", 0)
    of._step()
    assert "worker 0 cannot be started: all 0 records of the scoreboard are taken" in capfd.readouterr().err


def test_unknown_children_are_reaped(started):
    """A child that is nobody's worker is collected and forgotten."""
    of = started("--workers", "1")
    child = subprocess.Popen(["true"])
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
    of._reap()
    with pytest.raises(ChildProcessError):
        os.waitpid(child.pid, 0)
    child.returncode = 0


def test_a_reload_ends_a_series_of_early_deaths(started, clock):
    """Mended code is not made to wait for what the broken code has done."""
    of = started("--workers", "1")
    of._pool.proven = 1
    for _ in range(5):
        of._failed(of._listeners.slots[0])
    assert of._listeners.slots[0].next_attempt > of._now
    of.reload("test")
    assert of._listeners.slots[0].failures == 0
    assert of._listeners.slots[0].next_attempt <= of._now


def test_a_listener_that_cannot_be_had_is_no_worker_more(started, clock, sent, capfd):
    """TTIN where descriptors have run out: it says so, once, and goes on with the workers it has."""
    of = started("--workers", "1")
    process(of)
    joined = []

    class Group:
        def join(self):
            if joined:
                raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
            joined.append(socket.socket())
            return joined[0]

        def leave(self, listener):
            listener.close()

    of._listeners.groups = [Group(), Group()]
    of._workers = 2
    for _ in range(3):
        of._step()
    assert capfd.readouterr().err.count("no worker more: another listener cannot be had: Too many open files") == 1
    assert len(of._listeners.slots) == of._workers == 1
    assert joined[0].fileno() == -1  # closed
