"""The supervisor, in situations that a real server would reach only after minutes, or on a kernel in distress."""

import errno
import itertools
import math
import os
import signal
import socket
from types import SimpleNamespace
from typing import Any

import pytest

from epollard import cgroup, supervisor
from epollard.supervision.slots import Slot
from epollard.supervisor import Supervisor
from staff import PID, abandon, hire, settings


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
        wanted = settings(*words)
        found = Supervisor(wanted, lambda: wanted, ".")
        found._listeners.slots = [Slot(index, []) for index in range(found._workers)]
        made.append(found)
        return found

    yield started
    for found in made:
        found._loop.close()
        abandon(found._pool)


def process(of, at=0):
    """A worker in that slot, as the supervisor would know it."""
    return hire(of._pool, of._listeners.slots[at], of._now, pid=PID + at, generation=of._rollout.generation)


def test_a_process_that_cannot_be_forked_is_tried_again(started, clock, monkeypatch, capfd):
    """A limit on processes is waited out, ever more patiently, and the server carries on."""
    of = started("--workers", "1")
    of._rollout.proven = 1
    attempts = []

    def fork():
        attempts.append(clock.now)
        raise OSError(errno.EAGAIN, os.strerror(errno.EAGAIN))

    monkeypatch.setattr(os, "fork", fork)
    for _ in range(100):
        of._reconcile()
        clock.now += 0.5
    waits = [later - earlier for earlier, later in itertools.pairwise(attempts)]
    assert waits == [0.5, 0.5, 1, 2, 4, 8, 10, 10, 10]
    assert "cannot start worker 0: [Errno 11] Resource temporarily unavailable" in capfd.readouterr().err


def test_a_server_that_can_never_fork_ends(started, clock, monkeypatch):
    """After three attempts the exit status is 1, and closed listeners are not touched again."""
    of = started("--workers", "2", "--bind", "127.0.0.1:0")
    of._listeners.bind(of._config, 2, [])
    attempts = []

    def fork():
        attempts.append(clock.now)
        raise OSError(errno.ENOMEM, os.strerror(errno.ENOMEM))

    monkeypatch.setattr(os, "fork", fork)
    for _ in range(10):
        of._reconcile()
        clock.now += 0.5
    assert of._stopping == supervisor.QUICK
    assert of._status == 1
    assert len(attempts) == 5  # the third of the first slot ends it


def test_no_free_record_is_no_crash(started, clock, monkeypatch, capfd):
    """If so many workers drain that there is no record for another one, it has to wait."""
    of = started("--workers", "1")
    of._rollout.proven = 1
    monkeypatch.setattr(of._pool._scoreboard, "capacity", 0)
    of._reconcile()
    assert "cannot start worker 0: all 0 records of the scoreboard are taken" in capfd.readouterr().err


def test_a_reload_ends_a_series_of_early_exits(started, clock):
    """Mended code does not wait because of what the broken code has done."""
    of = started("--workers", "1")
    of._rollout.proven = 1
    for _ in range(5):
        of._rollout.on_failure(of._listeners.slots[0], of._now)
    assert of._listeners.slots[0].next_attempt > of._now
    of.reload("test")
    assert of._listeners.slots[0].failures == 0
    assert of._listeners.slots[0].next_attempt <= of._now


def test_a_listener_that_cannot_be_opened_is_no_crash(started, clock, sent, capfd):
    """TTIN when there are no descriptors left: there is one log line, and the server carries on with the workers it has."""
    of = started("--workers", "1")
    process(of)
    joined: list[Any] = []

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
        of._reconcile()
    assert capfd.readouterr().err.count("cannot add a worker: another listener could not be opened: Too many open files") == 1
    assert len(of._listeners.slots) == of._workers == 1
    assert joined[0].fileno() == -1  # closed


@pytest.fixture
def scaled_down(started, clock, sent, monkeypatch):
    """A supervisor of one to two workers, and the worker that retires because the load fell."""
    of = started("--workers", "2", "--graceful-timeout", "30", "--stuck-timeout", "2h")
    of._rollout.proven = 1
    process(of)
    going = process(of, 1)
    of._autoscaler = SimpleNamespace(due_at=0.0, decide=lambda *_: (1, ""))
    monkeypatch.setattr(cgroup, "memory_headroom", lambda: 2**30)
    for _ in range(4):
        of._reconcile()
        clock.now += 1
    assert sent == [(PID + 1, signal.SIGTERM)]
    return of, going


def test_a_worker_that_retires_because_the_load_fell_is_not_hurried(scaled_down, clock, sent):
    """Its end is not urgent: its requests may take an hour."""
    of, going = scaled_down
    for _ in range(3600 // 2):
        of._reconcile()
        clock.now += 2
    assert going.deadline == math.inf
    assert len(sent) == 1


@pytest.mark.parametrize("by", ["memory", "reload", "scale", "stop"])
def test_a_lingering_worker_is_hurried_when_its_end_is_urgent(scaled_down, clock, monkeypatch, by):
    """If memory is short, or by a reload, another number of workers, or a stop: from then on it has the graceful timeout."""
    of, going = scaled_down
    if by == "memory":
        monkeypatch.setattr(cgroup, "memory_headroom", lambda: -1)
        of._tick()
    elif by == "reload":
        of.reload("test")
    elif by == "scale":
        of.scale(1, 1, "test")
    else:
        of._stop(supervisor.GRACEFUL, "")
    assert going.deadline == of._now + 30


def test_a_command_hurries_a_worker_that_is_about_to_be_asked_to_exit(started, clock, sent):
    """In the second before that, in which handshakes end, as much as after it."""
    of = started("--workers", "2", "--graceful-timeout", "30")
    going = (process(of), process(of, 1))[1]
    of._autoscaler = SimpleNamespace(due_at=0.0, decide=lambda *_: (1, ""))
    of._reconcile()
    assert of._listeners.retiring == [going.slot]
    of.scale(1, 1, "test")
    clock.now += 2
    of._reconcile()
    assert sent == [(PID + 1, signal.SIGTERM)]
    assert going.deadline == of._now + 30


def test_a_worker_that_retires_by_command_has_a_deadline(started, clock, sent):
    """TTOU is a command, whose sender may wait for it to be carried out."""
    of = started("--workers", "2", "--graceful-timeout", "30")
    process(of)
    going = process(of, 1)
    of._obey(signal.SIGTTOU, set())
    while not sent:
        of._reconcile()
        clock.now += 1
    assert going.deadline == of._now + 30
