"""The pool, in situations that a real server would reach only after minutes, or on a kernel in distress."""

import errno
import itertools
import math
import os
import signal
import subprocess

import pytest

from epollard import cgroup, log
from epollard.net.loop import Loop
from epollard.scoreboard import DRAINING, FREE, HEARTBEAT, READY, REQUESTS, STARTING, STATE
from epollard.supervision.pool import Pool
from epollard.supervision.slots import Slot
from staff import PID, abandon, hire, settings

NOW = 1000.0


def turn(pool, now, config):
    """What the supervisor does in every turn. Returns the workers that have become ready."""
    ready = pool.follow_states(now, config)
    pool.check_deadlines(now, config)
    return ready


@pytest.fixture
def pool(monkeypatch):
    """A pool without a child; the kernel has not killed for lack of memory yet."""
    monkeypatch.setattr(cgroup, "oom_kills", lambda: 0)
    loop = Loop()
    made = Pool(loop)
    yield made
    loop.close()
    abandon(made)


def process(pool, pid=PID, state=READY, slot=None):
    """A worker as the pool would know it, at `NOW`."""
    return hire(pool, slot or Slot(0, []), NOW, pid=pid, state=state)


def fork(pool, slot, then=lambda: None):
    """Fork a worker that does no more than this."""
    if pool.fork(NOW, slot, 7, False) is not None:
        try:
            then()
        finally:
            os._exit(0)
    return slot.processes[-1]


# Starting workers.


def test_a_child_has_what_is_its_own_and_nothing_of_its_siblings(pool):
    """It knows its slot and generation and handles signals as any program does; what leads to its siblings is closed in it."""
    reader, writer = os.pipe()
    slot = Slot(3, [])
    sibling = fork(pool, slot)
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, ())

    def report():
        facts = {
            "sibling": sibling.channel.fileno() == -1 and not os.path.exists(f"/proc/self/fd/{sibling.report_pipe}"),
            "lifeline": not os.path.exists(f"/proc/self/fd/{pool._lifeline_writer}"),
            "signals": {signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGQUIT)} == {signal.SIG_DFL},
            "mask": signal.pthread_sigmask(signal.SIG_BLOCK, ()) == mask,
            "name": (os.environ["EPOLLARD_WORKER_ID"], os.environ["EPOLLARD_GENERATION"]) == ("3", "7"),
        }
        os.write(writer, " ".join(fact for fact, holds in facts.items() if holds).encode())

    child = fork(pool, slot, report)
    assert os.read(reader, 100) == b"sibling lifeline signals mask name"
    os.close(reader)
    os.close(writer)
    assert signal.pthread_sigmask(signal.SIG_BLOCK, ()) == mask
    assert slot.processes == [sibling, child]
    for dead in (sibling, child):
        os.waitpid(dead.pid, 0)
        pool.remove(dead.pid, 0, NOW)
    assert slot.processes == []


def test_a_fork_that_fails_leaves_nothing_behind(pool, monkeypatch):
    """No descriptor is leaked, the record is free again, and signals come as before."""

    def fail():
        raise OSError(errno.EAGAIN, os.strerror(errno.EAGAIN))

    monkeypatch.setattr(os, "fork", fail)
    before = os.listdir("/proc/self/fd"), signal.pthread_sigmask(signal.SIG_BLOCK, ())
    with pytest.raises(BlockingIOError):
        pool.fork(NOW, slot := Slot(0, []), 1, False)
    assert (os.listdir("/proc/self/fd"), signal.pthread_sigmask(signal.SIG_BLOCK, ())) == before
    assert pool._scoreboard.record(0)[STATE] == FREE
    assert slot.processes == []


# States and deadlines.


def test_a_worker_becomes_ready_once(pool):
    """What it has written is noticed in the next turn, and reported to the supervisor once."""
    booting = process(pool, state=STARTING)
    assert turn(pool, NOW, settings()) == []
    booting.record[STATE] = READY
    assert turn(pool, NOW + 1, settings()) == [booting]
    assert booting.ready_since == NOW + 1
    assert turn(pool, NOW + 2, settings()) == []


def test_booting_has_a_deadline_of_its_own(pool, sent):
    """The deadline for silence does not apply to a worker that is importing its application."""
    of = settings("--boot-timeout", "90", "--stuck-timeout", "5")
    booting = process(pool, state=STARTING)
    for second in range(90):
        turn(pool, NOW + second, of)
        assert pool.due_at == NOW + 90
    assert sent == []
    turn(pool, NOW + 90, of)
    assert sent == [(PID, signal.SIGUSR1)]
    assert booting.kill_reason == "not ready after 90 s"


def test_a_silent_worker_is_killed_when_the_deadline_has_passed(pool, sent):
    """Not a second earlier: first the stacks, half a second later SIGKILL, once."""
    of = settings("--stuck-timeout", "60")
    process(pool)
    now = NOW
    while not sent:
        turn(pool, now, of)
        assert pool.due_at > now
        now += 0.5
    assert now - NOW == 60.5
    assert sent == [(PID, signal.SIGUSR1)]
    turn(pool, now, of)
    assert sent == [(PID, signal.SIGUSR1), (PID, signal.SIGKILL)]
    turn(pool, now + 0.5, of)
    assert len(sent) == 2


def test_a_heartbeat_is_enough(pool, sent):
    """A worker that has been silent for 59 s and then sends a heartbeat has 60 s more."""
    of = settings("--stuck-timeout", "60")
    alive = process(pool)
    for second in range(177):
        if second % 59 == 0:
            alive.record[HEARTBEAT] = int((NOW + second) * 1e9)
        turn(pool, NOW + second, of)
    assert sent == []


def test_a_pause_of_everything_is_not_silence(pool, sent):
    """After `docker pause` for an hour every worker has its whole timeout for the next heartbeat, and no more."""
    of = settings("--stuck-timeout", "60")
    process(pool)
    turn(pool, NOW, of)
    for second in range(60):
        turn(pool, NOW + 3600 + second, of)
    assert sent == []
    turn(pool, NOW + 3660, of)
    assert sent == [(PID, signal.SIGUSR1)]


def test_a_deadline_shorter_than_the_heartbeat_kills_no_worker(pool, sent):
    """Heartbeats come once a second: a stuck timeout of 10 ms would otherwise end every worker."""
    of = settings("--stuck-timeout", "10ms")
    alive = process(pool)
    for tenth in range(100):
        if tenth % 10 == 0:
            alive.record[HEARTBEAT] = int((NOW + tenth / 10) * 1e9)
        turn(pool, NOW + tenth / 10, of)
    assert sent == []


def test_stacks_are_written_one_after_the_other(pool, sent):
    """If all workers are stuck at once their stacks are not mixed, and each has its half second to write them."""
    of = settings("--stuck-timeout", "60")
    for number in range(3):
        process(pool, PID + number)
    times: dict[tuple[int, int], float] = {}
    now = NOW
    while len(times) < 6:
        turn(pool, now, of)
        for one in sent:
            times.setdefault(one, now)
        now += 1 / 32
    dumped, killed = ([times[PID + number, kind] for number in range(3)] for kind in (signal.SIGUSR1, signal.SIGKILL))
    assert [later - earlier for earlier, later in itertools.pairwise(dumped)] == [0.125, 0.125]
    assert [kill - dump for kill, dump in zip(killed, dumped, strict=True)] == [0.5, 0.5, 0.5]


def test_a_worker_that_has_used_up_its_time_gets_quit_before_kill(pool, sent):
    """Its stacks, then QUIT, which lets the application know of the end, then KILL. QUIT is not sent a second time."""
    of = settings("--graceful-timeout", "30")
    slow, quick = process(pool), process(pool, PID + 1)
    pool.retire(slow, NOW, 30, False)
    pool.retire(quick, NOW, 30, True)
    times: dict[tuple[int, int], float] = {}
    now = NOW
    while len(times) < 7:
        turn(pool, now, of)
        for one in sent:
            times.setdefault(one, now - NOW)
        now += 1 / 32
    assert [(number, times[PID, number]) for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGQUIT, signal.SIGKILL)] == [
        (signal.SIGTERM, 0),
        (signal.SIGUSR1, 30),
        (signal.SIGQUIT, 30.5),
        (signal.SIGKILL, 31.5),
    ]
    assert [(number, times[PID + 1, number]) for number in (signal.SIGQUIT, signal.SIGUSR1, signal.SIGKILL)] == [
        (signal.SIGQUIT, 0),
        (signal.SIGUSR1, 30.125),
        (signal.SIGKILL, 30.625),
    ]


def test_a_second_request_to_exit_gives_no_more_time(pool, sent):
    """A worker that drains has no more time when the server is then stopped, but less if the stop is a quick one."""
    of = settings("--graceful-timeout", "30")
    leaving = process(pool)
    pool.retire(leaving, NOW, 30, False)
    pool.retire(leaving, NOW + 20, 30, False)
    turn(pool, NOW + 20, of)
    assert pool.due_at == NOW + 30
    pool.retire(leaving, NOW + 20, 2, True)
    turn(pool, NOW + 22, of)
    assert leaving.kill_reason == "still busy 2 s after it was asked to exit"
    assert [number for _, number in sent] == [signal.SIGTERM, signal.SIGTERM, signal.SIGQUIT, signal.SIGUSR1]


def test_a_worker_that_was_sent_term_from_outside_has_a_deadline_too(pool, sent):
    """The supervisor learns of it from the worker's state, and gives it as much time as any other."""
    of = settings("--graceful-timeout", "20", "--stuck-timeout", "60")
    asked = process(pool)
    asked.record[STATE] = DRAINING
    turn(pool, NOW, of)
    assert asked.retiring
    assert pool.due_at == NOW + 20
    assert sent == []


def test_a_worker_that_is_not_ready_leaves_no_core_file(pool, sent):
    """Before a worker has handlers, QUIT would dump core: it gets TERM."""
    booting = process(pool, state=STARTING)
    pool.retire(booting, NOW, 2, True)
    assert sent == [(PID, signal.SIGTERM)]


def test_a_lingering_worker_has_no_deadline_until_it_is_hurried(pool, sent, capfd):
    """A worker that retires because the load fell may take its time, until it is hurried."""
    of = settings("--stuck-timeout", "60")
    leaving, other = process(pool), process(pool, PID + 1)
    pool.retire(leaving, NOW, math.inf, False)
    for second in range(120):
        for one in leaving, other:
            one.record[HEARTBEAT] = int((NOW + second) * 1e9)
        turn(pool, NOW + second, of)
    assert sent == [(PID, signal.SIGTERM)]
    assert pool.lingering == [leaving]
    pool.hurry(pool.lingering, NOW + 120, 30, "why")
    pool.hurry(pool.lingering, NOW + 140, 30, "why")
    assert pool.lingering == []
    assert leaving.deadline == NOW + 150
    message = f"why: worker 0 (pid {PID}) is draining and now has 30 s to finish\n"
    assert capfd.readouterr().err.count(message) == 1
    assert not other.retiring


def test_a_lingering_worker_that_is_silent_is_killed(pool, sent):
    """Having no deadline to exit does not exempt it from the one for silence."""
    leaving = process(pool)
    pool.retire(leaving, NOW, math.inf, False)
    for second in range(61):
        turn(pool, NOW + second, settings("--stuck-timeout", "60"))
    assert leaving.kill_reason == "silent for 60 s"


# Exits.


def test_exits_are_sorted_out(pool):
    """Workers are returned with their codes, the other one that has exited is passed to the callback."""
    slot, others = Slot(0, []), []
    died = fork(pool, slot)
    asked = fork(pool, slot)
    asked.retiring = True
    child = subprocess.Popen(["false"])
    for pid in died.pid, asked.pid, child.pid:
        os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
    found = pool.reap(NOW, lambda *dead: others.append(dead))
    assert {(exit.process, exit.code) for exit in found} == {(died, 0), (asked, 0)}
    assert others == [(child.pid, 1)]
    assert pool.processes == {}
    child.returncode = 1


@pytest.mark.parametrize(
    ("code", "reason", "kills", "words"),
    [
        (0, "", 0, "exited with 0"),
        (3, "", 1, "exited with 3"),
        (-signal.SIGKILL, "", 0, "was killed by signal SIGKILL"),
        (-signal.SIGKILL, "", None, "was killed by signal SIGKILL"),
        (-signal.SIGKILL, "", 1, "was killed by the kernel for lack of memory (limit 512 MiB)"),
        (-signal.SIGKILL, "silent for 60 s", 1, "was killed by the supervisor because it was silent for 60 s"),
        (0, "still busy", 0, "was ended by the supervisor because it was still busy"),
        (3, "still busy", 0, "exited with 3"),
        (-signal.SIGABRT, "silent for 60 s", 0, "was killed by signal SIGABRT"),
        (-signal.SIGTERM, "", 1, "was killed by signal SIGTERM"),
        (-50, "", 0, "was killed by signal 50"),
    ],
)
def test_the_log_says_why_a_worker_exited(pool, monkeypatch, capfd, code, reason, kills, words):
    """SIGKILL alone says nothing: we sent it, or the kernel has counted one more kill, or it came from outside."""
    monkeypatch.setattr(cgroup, "oom_kills", lambda: kills)
    monkeypatch.setattr(cgroup, "memory_limit", lambda: 512 * 2**20)
    dead = process(pool)
    dead.kill_reason = reason
    dead.record[REQUESTS] = 7
    pool.remove(PID, code, NOW + 12.3)
    expected = f"worker 0 (pid {PID}) {words} after 12.3 s; 7 requests answered, 0 connections open\n"
    assert capfd.readouterr().err.endswith(expected)
    assert pool.past[REQUESTS] == 7
    assert pool.processes == {}


def test_each_kill_for_lack_of_memory_explains_one_exit(pool, monkeypatch, capfd):
    """The kernel has counted two, and three workers are gone: the third one was killed from outside."""
    monkeypatch.setattr(cgroup, "oom_kills", lambda: 2)
    monkeypatch.setattr(cgroup, "memory_limit", lambda: None)
    for number in range(3):
        process(pool, PID + number)
        pool.remove(PID + number, -signal.SIGKILL, NOW)
    lines = capfd.readouterr().err.splitlines()
    assert ["for lack of memory after" in line for line in lines] == [True, True, False]


@pytest.mark.parametrize(
    ("code", "reason", "kills", "by_others"),
    [
        (-signal.SIGKILL, "", 0, True),
        (-signal.SIGKILL, "silent", 0, False),  # by us
        (-signal.SIGKILL, "", 1, False),  # by the kernel, for lack of memory
        (-signal.SIGSEGV, "", 0, False),
        (1, "", 0, False),
    ],
)
def test_a_kill_from_outside_is_recognised(pool, monkeypatch, code, reason, kills, by_others):
    """SIGKILL that neither we nor the kernel has sent says nothing about the application."""
    monkeypatch.setattr(cgroup, "oom_kills", lambda: kills)
    dead = process(pool)
    dead.kill_reason = reason
    assert pool.remove(PID, code, NOW) == (dead, code, by_others)


@pytest.mark.parametrize(
    ("retiring", "code", "reason", "level"),
    [
        (True, 0, "", "INFO"),
        (True, -signal.SIGTERM, "", "INFO"),
        (True, 0, "still busy", "WARNING"),
        (True, 1, "", "WARNING"),
        (False, 0, "", "ERROR"),
        (False, 1, "", "ERROR"),
    ],
)
def test_an_unexpected_exit_is_an_error(pool, monkeypatch, retiring, code, reason, level):
    """An exit that was asked for is not, unless something went wrong."""
    levels = []
    for name in "info", "warning", "error":
        monkeypatch.setattr(log, name, lambda message, name=name: levels.append(name.upper()))
    dead = process(pool)
    dead.kill_reason = reason
    if retiring:
        dead.retire(NOW, 30)
    pool.remove(PID, code, NOW)
    assert levels == [level]


def test_a_report_is_read_to_its_end_though_the_pipe_stays_open(pool, capfd):
    """A process that the application started while it was imported may hold the other end for ever."""
    dead = process(pool)
    dead.report_pipe, writer = os.pipe()
    os.set_blocking(dead.report_pipe, False)
    pool._loop.watch(dead.report_pipe, 1, print)
    os.write(writer, b"what the application said")
    pool.remove(PID, 3, NOW)
    pool.print_report(dead)
    os.close(writer)
    assert capfd.readouterr().err.endswith("\nwhat the application said\n")


def test_the_same_report_is_printed_once(pool, capfd):
    """A worker that fails in the same way every ten seconds fills no disk; a different report is printed."""
    dead = process(pool)
    for dead.report in b"one", b"one", b"two", b"", b"two", b"one":
        pool.print_report(dead)
    assert capfd.readouterr().err == "one\ntwo\none\n"
