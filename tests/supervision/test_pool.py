"""The pool, where a real server would need minutes or a kernel in distress to be brought to it: deadlines, causes of death."""

import errno
import itertools
import math
import os
import signal
import subprocess

import pytest

from epollard import cgroup
from epollard.net.loop import Loop
from epollard.scoreboard import DRAINING, FREE, HEARTBEAT, READY, REQUESTS, STARTING, STATE
from epollard.supervision.pool import Pool
from epollard.supervision.slots import Slot
from staff import PID, abandon, hire, settings

NOW = 1000.0


@pytest.fixture
def pool(monkeypatch):
    """A pool without a child; the kernel has not killed for memory yet."""
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


# Birth.


def test_a_child_has_what_is_its_own_and_nothing_of_its_siblings(pool):
    """It knows who it is and takes signals as any program does; what leads to its siblings is closed in it."""
    told, teller = os.pipe()
    slot = Slot(3, [])
    sibling = fork(pool, slot)
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, ())

    def tell():
        facts = {
            "sibling": sibling.channel.fileno() == -1 and not os.path.exists(f"/proc/self/fd/{sibling.report}"),
            "lifeline": not os.path.exists(f"/proc/self/fd/{pool._lifeline_writer}"),
            "signals": {signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGQUIT)} == {signal.SIG_DFL},
            "mask": signal.pthread_sigmask(signal.SIG_BLOCK, ()) == mask,
            "name": (os.environ["EPOLLARD_WORKER_ID"], os.environ["EPOLLARD_GENERATION"]) == ("3", "7"),
        }
        os.write(teller, " ".join(fact for fact, holds in facts.items() if holds).encode())

    child = fork(pool, slot, tell)
    assert os.read(told, 100) == b"sibling lifeline signals mask name"
    os.close(told)
    os.close(teller)
    assert signal.pthread_sigmask(signal.SIG_BLOCK, ()) == mask
    assert slot.processes == [sibling, child]
    for dead in (sibling, child):
        os.waitpid(dead.pid, 0)
        pool.bury(dead.pid, 0, NOW)
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


# Life.


def test_a_worker_becomes_ready_once(pool):
    """What it has written is seen at the next look, and told to the supervisor that one time."""
    booting = process(pool, state=STARTING)
    assert pool.look(NOW, settings()) == []
    booting.record[STATE] = READY
    assert pool.look(NOW + 1, settings()) == [booting]
    assert booting.ready_since == NOW + 1
    assert pool.proven == 1
    assert pool.look(NOW + 2, settings()) == []


def test_booting_has_a_deadline_of_its_own(pool, sent):
    """The deadline for silence is not that of a worker which imports its application."""
    of = settings("--boot-timeout", "90", "--stuck-timeout", "5")
    booting = process(pool, state=STARTING)
    for second in range(90):
        pool.look(NOW + second, of)
        assert pool.next_look == NOW + 90
    assert sent == []
    pool.look(NOW + 90, of)
    assert sent == [(PID, signal.SIGUSR1)]
    assert booting.doom == "not ready after 90 s"


def test_silence_is_punished_when_the_deadline_has_passed(pool, sent):
    """Not a second before; first the stacks, half a second later the end, once."""
    of = settings("--stuck-timeout", "60")
    process(pool)
    now = NOW
    while not sent:
        pool.look(now, of)
        assert pool.next_look > now
        now += 0.5
    assert now - NOW == 60.5
    assert sent == [(PID, signal.SIGUSR1)]
    pool.look(now, of)
    assert sent == [(PID, signal.SIGUSR1), (PID, signal.SIGKILL)]
    pool.look(now + 0.5, of)
    assert len(sent) == 2


def test_a_sign_of_life_is_enough(pool, sent):
    """A worker that has been silent for 59 s and then speaks has 60 s more."""
    of = settings("--stuck-timeout", "60")
    alive = process(pool)
    for second in range(177):
        if second % 59 == 0:
            alive.record[HEARTBEAT] = int((NOW + second) * 1e9)
        pool.look(NOW + second, of)
    assert sent == []


def test_a_pause_of_everything_is_not_silence(pool, sent):
    """After `docker pause` for an hour every worker has as long as ever to speak, and no longer."""
    of = settings("--stuck-timeout", "60")
    process(pool)
    pool.look(NOW, of)
    for second in range(60):
        pool.look(NOW + 3600 + second, of)
    assert sent == []
    pool.look(NOW + 3660, of)
    assert sent == [(PID, signal.SIGUSR1)]


def test_a_deadline_shorter_than_the_heartbeat_kills_nobody(pool, sent):
    """Workers speak once a second: a stuck timeout of 10 ms would otherwise end each of them."""
    of = settings("--stuck-timeout", "10ms")
    alive = process(pool)
    for tenth in range(100):
        if tenth % 10 == 0:
            alive.record[HEARTBEAT] = int((NOW + tenth / 10) * 1e9)
        pool.look(NOW + tenth / 10, of)
    assert sent == []


def test_stacks_are_written_one_after_the_other(pool, sent):
    """If all workers are stuck at once their stacks are not mixed, and each has its half second to write them."""
    of = settings("--stuck-timeout", "60")
    for number in range(3):
        process(pool, PID + number)
    times: dict[tuple[int, int], float] = {}
    now = NOW
    while len(times) < 6:
        pool.look(now, of)
        for one in sent:
            times.setdefault(one, now)
        now += 1 / 32
    dumped, killed = ([times[PID + number, kind] for number in range(3)] for kind in (signal.SIGUSR1, signal.SIGKILL))
    assert [later - earlier for earlier, later in itertools.pairwise(dumped)] == [0.125, 0.125]
    assert [kill - dump for kill, dump in zip(killed, dumped, strict=True)] == [0.5, 0.5, 0.5]


def test_who_has_used_up_his_time_is_told_before_he_is_killed(pool, sent):
    """His stacks, then QUIT, by which his application hears of the end, then KILL. Not again, if he was told before."""
    of = settings("--graceful-timeout", "30")
    slow, quick = process(pool), process(pool, PID + 1)
    pool.retire(slow, NOW, 30, False)
    pool.retire(quick, NOW, 30, True)
    times: dict[tuple[int, int], float] = {}
    now = NOW
    while len(times) < 7:
        pool.look(now, of)
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


def test_being_asked_again_gives_no_more_time(pool, sent):
    """A worker that drains has no longer when the server is then stopped, but less where the stop is a quick one."""
    of = settings("--graceful-timeout", "30")
    leaving = process(pool)
    pool.retire(leaving, NOW, 30, False)
    pool.retire(leaving, NOW + 20, 30, False)
    pool.look(NOW + 20, of)
    assert pool.next_look == NOW + 30
    pool.retire(leaving, NOW + 20, 2, True)
    pool.look(NOW + 22, of)
    assert leaving.doom == "still busy 2 s after it was asked to go"
    assert [number for _, number in sent] == [signal.SIGTERM, signal.SIGTERM, signal.SIGQUIT, signal.SIGUSR1]


def test_who_drains_by_somebody_elses_wish_has_a_deadline_too(pool, sent):
    """TERM from outside: the supervisor learns of it by the worker's state, and it has as long as any other."""
    of = settings("--graceful-timeout", "20", "--stuck-timeout", "60")
    asked = process(pool)
    asked.record[STATE] = DRAINING
    pool.look(NOW, of)
    assert asked.leaving
    assert pool.next_look == NOW + 20
    assert sent == []


def test_no_core_file_of_who_was_not_ready(pool, sent):
    """Before a worker has handlers, QUIT would dump core: it gets TERM."""
    booting = process(pool, state=STARTING)
    pool.retire(booting, NOW, 2, True)
    assert sent == [(PID, signal.SIGTERM)]


def test_who_may_take_his_time_does_until_somebody_waits(pool, sent, capfd):
    """A worker that goes because the load fell has no deadline, but silence is punished; and one from when it is hurried."""
    of = settings("--stuck-timeout", "60")
    leaving, other = process(pool), process(pool, PID + 1)
    pool.retire(leaving, NOW, math.inf, False)
    for second in range(120):
        for one in leaving, other:
            one.record[HEARTBEAT] = int((NOW + second) * 1e9)
        pool.look(NOW + second, of)
    assert sent == [(PID, signal.SIGTERM)]
    assert pool.lingering == [leaving]
    pool.hurry(pool.lingering, NOW + 120, 30, "why")
    pool.hurry(pool.lingering, NOW + 140, 30, "why")
    assert pool.lingering == []
    assert leaving.deadline == NOW + 150
    said = f"why: worker 0 (pid {PID}), which drains, may finish what it has begun within 30 s\n"
    assert capfd.readouterr().err.count(said) == 1
    assert not other.leaving


def test_who_lingers_and_is_silent_is_killed(pool, sent):
    """To have time is not to be forgotten."""
    leaving = process(pool)
    pool.retire(leaving, NOW, math.inf, False)
    for second in range(61):
        pool.look(NOW + second, settings("--stuck-timeout", "60"))
    assert leaving.doom == "silent for 60 s"


# Death.


def test_the_dead_are_sorted_out(pool):
    """Who died early comes back with its code, who was asked to go does not, and of others the other one is told."""
    slot, told = Slot(0, []), []
    died = fork(pool, slot)
    asked = fork(pool, slot)
    asked.leaving = True
    child = subprocess.Popen(["false"])
    for pid in died.pid, asked.pid, child.pid:
        os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
    assert pool.reap(NOW, lambda *dead: told.append(dead)) == [(died, 0)]
    assert told == [(child.pid, 1)]
    assert pool.processes == {}
    child.returncode = 1


@pytest.mark.parametrize(
    ("code", "doom", "kills", "words"),
    [
        (0, "", 0, "exited with 0"),
        (3, "", 1, "exited with 3"),
        (-signal.SIGKILL, "", 0, "was killed by signal SIGKILL"),
        (-signal.SIGKILL, "", None, "was killed by signal SIGKILL"),
        (-signal.SIGKILL, "", 1, "was killed by the kernel for memory (limit 512 MiB)"),
        (-signal.SIGKILL, "silent for 60 s", 1, "was killed by us because it was silent for 60 s"),
        (0, "still busy", 0, "was ended by us because it was still busy"),
        (3, "still busy", 0, "exited with 3"),
        (-signal.SIGABRT, "silent for 60 s", 0, "was killed by signal SIGABRT"),
        (-signal.SIGTERM, "", 1, "was killed by signal SIGTERM"),
        (-50, "", 0, "was killed by signal 50"),
    ],
)
def test_the_cause_of_death(pool, monkeypatch, capfd, code, doom, kills, words):
    """SIGKILL alone says nothing: it was us, or the kernel has counted one kill more, or it was somebody else."""
    monkeypatch.setattr(cgroup, "oom_kills", lambda: kills)
    monkeypatch.setattr(cgroup, "memory_limit", lambda: 512 * 2**20)
    dead = process(pool)
    dead.doom = doom
    dead.record[REQUESTS] = 7
    pool.bury(PID, code, NOW + 12.3)
    expected = f"worker 0 (pid {PID}) {words} after 12.3 s; 7 requests answered, 0 connections open\n"
    assert capfd.readouterr().err.endswith(expected)
    assert pool.past[REQUESTS] == 7
    assert pool.processes == {}


def test_each_kill_for_memory_explains_one_death(pool, monkeypatch, capfd):
    """Two counted, three dead: the third was somebody else's doing."""
    monkeypatch.setattr(cgroup, "oom_kills", lambda: 2)
    monkeypatch.setattr(cgroup, "memory_limit", lambda: None)
    for number in range(3):
        process(pool, PID + number)
        pool.bury(PID + number, -signal.SIGKILL, NOW)
    lines = capfd.readouterr().err.splitlines()
    assert ["for memory after" in line for line in lines] == [True, True, False]


@pytest.mark.parametrize(("seconds", "failures"), [(0, 3), (4.9, 3), (5, 0), (3600, 0)])
def test_a_worker_that_has_served_ends_a_series_of_early_deaths(pool, seconds, failures):
    """Five seconds after it became ready a death is an accident: the next one starts at once."""
    dead = process(pool)
    dead.slot.failures = 3
    assert (pool.bury(PID, 1, NOW + seconds) is dead) is bool(failures)
    assert dead.slot.failures == failures


@pytest.mark.parametrize(
    ("code", "ready", "doom", "kills", "early"),
    [
        (-signal.SIGKILL, True, "", 0, False),
        (-signal.SIGKILL, False, "", 0, True),  # before it was ready: something is too big or too slow
        (-signal.SIGKILL, True, "silent", 0, True),  # by us
        (-signal.SIGKILL, True, "", 1, True),  # by the kernel, for memory
        (-signal.SIGSEGV, True, "", 0, True),
        (1, True, "", 0, True),
    ],
)
def test_what_somebody_else_kills_did_not_fail(pool, monkeypatch, code, ready, doom, kills, early):
    """A worker that is killed from outside says nothing of the application, however often it happens: no back-off."""
    monkeypatch.setattr(cgroup, "oom_kills", lambda: kills)
    dead = process(pool, state=READY if ready else STARTING)
    dead.doom = doom
    assert pool.bury(PID, code, NOW) is (dead if early else None)


@pytest.mark.parametrize("code", [0, 1, -signal.SIGTERM, -signal.SIGKILL])
def test_who_was_asked_to_go_did_not_fail(pool, code):
    """However it ends: no early death, and no end of a series of them."""
    dead = process(pool)
    dead.leave(NOW, 30)
    dead.slot.failures = 3
    assert pool.bury(PID, code, NOW + 10) is None
    assert dead.slot.failures == 3


def test_a_report_is_read_to_its_end_though_the_pipe_stays_open(pool, capfd):
    """A process that the application has started while it was imported may hold the other end for ever."""
    dead = process(pool)
    dead.report, writer = os.pipe()
    os.set_blocking(dead.report, False)
    pool._loop.watch(dead.report, 1, print)
    os.write(writer, b"what the application said")
    pool.bury(PID, 3, NOW)
    pool.show(dead)
    os.close(writer)
    assert capfd.readouterr().err.endswith("\nwhat the application said\n")


def test_the_same_report_is_printed_once(pool, capfd):
    """A worker that fails in the same way every ten seconds fills no disk; another failure is shown."""
    dead = process(pool)
    for dead.told in b"one", b"one", b"two", b"", b"two", b"one":
        pool.show(dead)
    assert capfd.readouterr().err == "one\ntwo\none\n"
