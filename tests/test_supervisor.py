"""What the supervisor decides where a real server would need minutes, or a kernel in distress, to be brought to it."""

import errno
import itertools
import os
import signal
import socket
import subprocess
from types import SimpleNamespace

import pytest

from epollard import cgroup, config, supervisor
from epollard.scoreboard import FREE, HEARTBEAT, READY, STATE
from epollard.supervisor import Process, Slot, Supervisor

PID = 2**22 + 1  # beyond what the kernel gives (proc_sys_kernel(5), pid_max)


@pytest.fixture
def clock(monkeypatch):
    """The supervisor's clock, which stands still unless a test moves it."""
    clock = SimpleNamespace(now=1000.0)
    monkeypatch.setattr(
        supervisor, "time", SimpleNamespace(monotonic=lambda: clock.now, monotonic_ns=lambda: int(clock.now * 1e9))
    )
    return clock


@pytest.fixture
def started(clock, monkeypatch):
    """`started("--workers", "1")`: a supervisor that has bound nothing, watches nothing and has no child."""
    made = []

    def started(*words):
        settings = config.load(config.parse_arguments(words).given, {}).config
        found = Supervisor(settings, lambda: settings, ".")
        found._slots = [Slot(index, []) for index in range(found._workers)]
        made.append(found)
        return found

    yield started
    for found in made:
        found._loop.close()
        found._signals.close()
        found._wakeup.close()
        for fd in (found._bell, found._lifeline, found._lifeline_writer):
            os.close(fd)


@pytest.fixture
def sent(monkeypatch):
    """The signals that the supervisor sends, which nobody gets."""
    found = []
    monkeypatch.setattr(os, "kill", lambda pid, number: found.append((pid, number)))
    return found


def process(of, slot=0, pid=PID):
    """A worker that is ready, as the supervisor would know it."""
    record = of._scoreboard.claim()
    record[STATE] = READY
    record[HEARTBEAT] = int(of._now * 1e9)
    channel = socket.socket()
    channel.close()
    found = Process(pid, of._slots[slot], of._generation, record, -1, channel, of._now)
    found.ready_since = of._now
    of._processes[pid] = found
    of._slots[slot].processes.append(found)
    return found


@pytest.mark.parametrize(
    ("code", "doom", "kills", "words"),
    [
        (0, "", 0, "exited with 0"),
        (3, "", 1, "exited with 3"),
        (-signal.SIGKILL, "", 0, "was killed by signal SIGKILL"),
        (-signal.SIGKILL, "", None, "was killed by signal SIGKILL"),
        (-signal.SIGKILL, "", 1, "was killed by the kernel for memory (limit 512 MiB)"),
        (-signal.SIGKILL, "silent for 60 s", 1, "was killed by us because it was silent for 60 s"),
        (-signal.SIGABRT, "silent for 60 s", 0, "was killed by signal SIGABRT"),
        (-signal.SIGTERM, "", 1, "was killed by signal SIGTERM"),
        (-50, "", 0, "was killed by signal 50"),
    ],
)
def test_the_cause_of_death(started, monkeypatch, code, doom, kills, words):
    """SIGKILL alone says nothing: it was us, or the kernel has counted one kill more, or it was somebody else."""
    monkeypatch.setattr(cgroup, "oom_kills", lambda: 0)
    monkeypatch.setattr(cgroup, "memory_limit", lambda: 512 * 2**20)
    of = started("--workers", "1")
    monkeypatch.setattr(cgroup, "oom_kills", lambda: kills)
    dead = process(of)
    dead.doom = doom
    assert of._cause(dead, code) == words


def test_each_kill_for_memory_explains_one_death(started, monkeypatch):
    """Two counted, three dead: the third was somebody else's doing."""
    counted = [7]
    monkeypatch.setattr(cgroup, "oom_kills", lambda: counted[0])
    monkeypatch.setattr(cgroup, "memory_limit", lambda: None)
    of = started("--workers", "1")
    counted[0] += 2
    words = [of._cause(process(of), -signal.SIGKILL) for _ in range(3)]
    assert words == ["was killed by the kernel for memory"] * 2 + ["was killed by signal SIGKILL"]


def test_silence_is_punished_when_the_deadline_has_passed(started, clock, sent):
    """Not a second before; first the stacks, half a second later the end."""
    of = started("--workers", "1", "--stuck-timeout", "60")
    process(of)
    since = clock.now
    while not sent:
        of._step()
        clock.now += 0.5
    assert clock.now - since == 60.5
    assert sent == [(PID, signal.SIGUSR1)]
    of._step()
    assert sent == [(PID, signal.SIGUSR1), (PID, signal.SIGKILL)]
    clock.now += 0.5
    of._step()
    assert len(sent) == 2


def test_a_sign_of_life_is_enough(started, clock, sent):
    """A worker that has been silent for 59 s and then speaks has 60 s more."""
    of = started("--workers", "1", "--stuck-timeout", "60")
    alive = process(of)
    for second in range(177):
        if second % 59 == 0:
            alive.record[HEARTBEAT] = int(clock.now * 1e9)
        of._step()
        clock.now += 1
    assert sent == []


def test_a_pause_of_everything_is_not_silence(started, clock, sent):
    """After `docker pause` for an hour every worker has as long as ever to speak, and no longer."""
    of = started("--workers", "1", "--stuck-timeout", "60")
    process(of)
    of._step()
    clock.now += 3600
    for _ in range(60):
        of._step()
        clock.now += 1
    assert sent == []
    of._step()
    assert sent == [(PID, signal.SIGUSR1)]


def test_a_deadline_shorter_than_the_heartbeat_kills_nobody(started, clock, sent):
    """Workers speak once a second: a stuck timeout of 10 ms would otherwise end each of them."""
    of = started("--workers", "1", "--stuck-timeout", "10ms")
    alive = process(of)
    for tenth in range(100):
        if tenth % 10 == 0:
            alive.record[HEARTBEAT] = int(clock.now * 1e9)
        of._step()
        clock.now += 0.1
    assert sent == []


def test_a_process_that_cannot_be_forked_is_tried_again(started, clock, monkeypatch, capfd):
    """A limit on processes is waited out, ever more patiently; nothing is leaked meanwhile, and the server goes on."""
    of = started("--workers", "1")
    of._proven = 1
    attempts = []

    def fork():
        attempts.append(clock.now)
        raise OSError(errno.EAGAIN, os.strerror(errno.EAGAIN))

    monkeypatch.setattr(os, "fork", fork)
    before = os.listdir("/proc/self/fd")
    for _ in range(100):
        of._step()
        clock.now += 0.5
    waits = [later - earlier for earlier, later in itertools.pairwise(attempts)]
    assert waits == [0.5, 0.5, 1, 2, 4, 8, 10, 10, 10]
    assert os.listdir("/proc/self/fd") == before
    assert of._scoreboard.record(0)[STATE] == FREE
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
    of._proven = 1
    monkeypatch.setattr(of._scoreboard, "capacity", 0)
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


def test_stacks_are_written_one_after_the_other(started, clock, sent):
    """If all workers are stuck at once their stacks are not mixed, and each has its half second to write them."""
    of = started("--workers", "3", "--stuck-timeout", "60")
    for slot in range(3):
        process(of, slot, PID + slot)
    times = {}
    while len(times) < 6:
        of._step()
        for one in sent:
            times.setdefault(one, clock.now)
        clock.now += 1 / 32
    dumped, killed = ([times[PID + slot, number] for slot in range(3)] for number in (signal.SIGUSR1, signal.SIGKILL))
    assert [later - earlier for earlier, later in itertools.pairwise(dumped)] == [0.125, 0.125]
    assert [kill - dump for kill, dump in zip(killed, dumped, strict=True)] == [0.5, 0.5, 0.5]


@pytest.mark.parametrize(("seconds", "failures"), [(0, 4), (4.9, 4), (5, 0), (3600, 0)])
def test_a_worker_that_has_served_ends_a_series_of_early_deaths(started, clock, seconds, failures):
    """Five seconds after it became ready a death is an accident: the next one starts at once."""
    of = started("--workers", "1")
    of._proven = 1
    dead = process(of)
    dead.slot.failures = 3
    of._now += seconds
    of._bury(dead, 1)
    assert dead.slot.failures == failures
    assert (dead.slot.next_attempt > of._now) is bool(failures)


@pytest.mark.parametrize(
    ("code", "ready", "doom", "kills", "failures"),
    [
        (-signal.SIGKILL, True, "", 0, 0),
        (-signal.SIGKILL, False, "", 0, 1),  # before it was ready: something is too big or too slow
        (-signal.SIGKILL, True, "silent", 0, 1),  # by us
        (-signal.SIGKILL, True, "", 1, 1),  # by the kernel, for memory
        (-signal.SIGSEGV, True, "", 0, 1),
        (1, True, "", 0, 1),
    ],
)
def test_what_somebody_else_kills_did_not_fail(started, clock, monkeypatch, code, ready, doom, kills, failures):
    """A worker that is killed from outside says nothing of the application, however often it happens: no back-off."""
    monkeypatch.setattr(cgroup, "oom_kills", lambda: kills)
    of = started("--workers", "1")
    of._oom_kills = 0
    of._proven = 1
    dead = process(of)
    dead.ready_since = of._now if ready else float("inf")
    dead.doom = doom
    of._bury(dead, code)
    assert dead.slot.failures == failures


def test_a_reload_ends_a_series_of_early_deaths(started, clock):
    """Mended code is not made to wait for what the broken code has done."""
    of = started("--workers", "1")
    of._proven = 1
    for _ in range(5):
        of._failed(of._slots[0])
    assert of._slots[0].next_attempt > of._now
    of.reload("test")
    assert of._slots[0].failures == 0
    assert of._slots[0].next_attempt <= of._now


def test_a_report_is_read_to_its_end_though_the_pipe_stays_open(started, capfd):
    """A process that the application has started while it was imported may hold the other end for ever."""
    of = started("--workers", "1")
    of._proven = 1
    dead = process(of)
    dead.report, writer = os.pipe()
    os.set_blocking(dead.report, False)
    of._loop.watch(dead.report, 1, print)
    os.write(writer, b"what the application said")
    of._bury(dead, 3)
    os.close(writer)
    assert capfd.readouterr().err.endswith("\nwhat the application said\n")


def test_the_same_report_is_printed_once(started, capfd):
    """A worker that fails in the same way every ten seconds fills no disk; another failure is shown."""
    of = started("--workers", "1")
    of._proven = 1
    for told in b"one", b"one", b"two", b"", b"two", b"one":
        dead = process(of)
        dead.told = told
        of._bury(dead, 3)
    assert [line for line in capfd.readouterr().err.splitlines() if line in ("one", "two")] == ["one", "two", "one"]


def test_being_asked_again_gives_no_more_time(started, clock, sent):
    """A worker that drains because of TTOU has no longer when the server is then stopped."""
    of = started("--workers", "1", "--graceful-timeout", "30")
    leaving = process(of)
    of._retire(leaving)
    of._now += 20
    of._stop(supervisor.GRACEFUL, "")
    assert leaving.deadline == of._now + 10
    of._stop(supervisor.QUICK, "")
    assert leaving.deadline == of._now + 2
    assert sent == [(PID, signal.SIGTERM), (PID, signal.SIGTERM), (PID, signal.SIGQUIT)]


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

    of._groups = [Group(), Group()]
    of._workers = 2
    for _ in range(3):
        of._step()
    assert capfd.readouterr().err.count("no worker more: another listener cannot be had: Too many open files") == 1
    assert len(of._slots) == of._workers == 1
    assert joined[0].fileno() == -1  # closed
