"""A handover from one supervisor to the next: what is left, what cannot be read, and the states of both sides."""

import json
import math
import os
import signal
import socket

import pytest

from epollard.net import sockets
from epollard.supervision import upgrade
from epollard.supervision.upgrade import VARIABLE, Handover, HandoverError, Role, SuccessorState, Upgrade

NOTHING = Handover([], [], 1, 1, (1, 1), (1, 1))
# What versions that are out there write, and expect from us.
KEYS = ["admin", "bounds", "configured", "elder", "format", "generation", "lead", "slots", "wills"]


def turn(loop):
    for _ in range(3):
        loop.turn(0)


class Supervisors:
    """A chain of supervisors in this process: each one's successor is spawned without a program."""

    def __init__(self, loop, monkeypatch):
        self.loop = loop
        self.monkeypatch = monkeypatch
        self.obeyed: list[int] = []
        self.killed: list[tuple[int, int]] = []
        self.upgrades: list[Upgrade] = []
        self.left = ""
        monkeypatch.setattr(os, "posix_spawn", self.spawn)
        monkeypatch.setattr(os, "kill", lambda pid, number: self.killed.append((pid, number)))

    def spawn(self, program, arguments, environ):
        """Keep what the successor would inherit: the same descriptors, by other numbers."""
        left = json.loads(environ[VARIABLE])
        for key in "elder", "lead":
            left[key] = os.dup(left[key])
        self.left = json.dumps(left)
        return 4711

    def first(self):
        self.upgrades.append(Upgrade(self.loop, ".", lambda number, heard: self.obeyed.append(number)))
        return self.upgrades[-1]

    def next(self):
        """The one that was spawned last, after it has read what it inherits."""
        made = self.first()
        self.monkeypatch.setenv(VARIABLE, self.left)
        assert made.inherit()
        return made

    def pair(self):
        """A leader and its successor."""
        old = self.first()
        old.requested = "test"
        old.spawn(NOTHING, 5.0)
        return old, self.next()


@pytest.fixture
def chain(loop, monkeypatch):
    """Supervisors that upgrade one another."""
    made = Supervisors(loop, monkeypatch)
    yield made
    for one in made.upgrades:
        one.disown()


def handed_over(chain):
    """A predecessor and the leader that it has made of its successor."""
    old, new = chain.pair()
    new.report_started()
    turn(chain.loop)
    new.report_ready()
    turn(chain.loop)
    assert old.successor_ready
    assert old.hand_over() == 4711
    turn(chain.loop)
    new.take_over([])
    return old, new


# States.


def test_a_handover_step_by_step(chain):
    """Each report moves both sides on; whether something else can be changed follows from that."""
    old, new = chain.pair()
    assert (old.role, old.successor.state, old.deadline) == (Role.LEADER, SuccessorState.STARTING, 5.0)
    assert (new.role, new.shared, new.under_way) == (Role.SUCCESSOR, True, "this supervisor does not lead yet")
    assert old.under_way == "an upgrade is under way"
    assert not old.requested
    new.report_started()
    turn(chain.loop)
    assert (old.successor.state, old.deadline) == (SuccessorState.BOOTING, math.inf)
    assert not old.successor_ready
    new.report_ready()
    turn(chain.loop)
    assert old.successor_ready
    old.hand_over()
    turn(chain.loop)
    assert (old.role, old.shared, old.handed_over, old.must_wait) == (Role.PREDECESSOR, True, True, True)
    assert (new.role, new.shared, new.under_way, new.must_wait) == (Role.LEADER, False, "", False)


def test_the_first_one_is_the_relay_for_all_leaders(chain):
    """Signals reach the leader after one upgrade and after two, and its exit status becomes the relay's."""
    first, second = handed_over(chain)
    first.pass_on(signal.SIGHUP)
    first.pass_on(signal.SIGCHLD)
    turn(chain.loop)
    assert chain.obeyed == [signal.SIGHUP]
    second.requested = "test"
    second.spawn(NOTHING, 5.0)
    third = chain.next()
    third.report_ready()
    turn(chain.loop)
    second.hand_over()
    turn(chain.loop)
    third.take_over([])
    assert not second.must_wait
    assert second.end(0) == 0
    first.pass_on(signal.SIGTERM)
    turn(chain.loop)
    assert chain.obeyed == [signal.SIGHUP, signal.SIGTERM]
    assert third.end(7) == 7
    third.disown()
    turn(chain.loop)
    assert not first.must_wait
    assert first.end(0) == 7


def test_a_leader_that_dies_reports_no_status(chain):
    """The relay then exits with 1."""
    first, second = handed_over(chain)
    second.disown()
    turn(chain.loop)
    assert not first.must_wait
    assert first.end(0) == 1


def test_a_leader_whose_relay_is_gone_stops(chain, capfd):
    """The process that started the relay sees its end, and may start another server."""
    first, second = handed_over(chain)
    first._relay.channel.close()
    turn(chain.loop)
    assert chain.obeyed == [signal.SIGTERM]
    assert "the first supervisor is gone" in capfd.readouterr().err
    assert second.end(3) == 3


def test_usr1_from_the_relay_is_a_real_signal(chain):
    """Its handler is in C, and shows the stack."""
    first, _ = handed_over(chain)
    first.pass_on(signal.SIGUSR1)
    turn(chain.loop)
    assert chain.killed == [(os.getpid(), signal.SIGUSR1)]
    assert chain.obeyed == []


def test_a_successor_whose_predecessor_dies_is_an_orphan(chain):
    """It does not come to lead, and reports nothing to anyone."""
    old, new = chain.pair()
    old.disown()
    turn(chain.loop)
    assert new.role is Role.ORPHAN
    assert new.shared
    assert new.under_way == "this supervisor does not lead yet"
    new.report_ready()
    assert new.end(1) == 1


@pytest.mark.parametrize(
    ("code", "why"),
    [
        (2, "exited with 2 (bad configuration)"),
        (3, "exited with 3 (the application could not be loaded)"),
        (1, "exited with 1"),
        (0, "exited with 0"),
        (-9, "was killed by signal 9"),
    ],
)
def test_a_successor_that_fails_changes_nothing(chain, capfd, code, why):
    """The log says why, and another upgrade may follow; a process that is not the successor is not taken for it."""
    old, _ = chain.pair()
    assert not old.on_exit(1234, code)
    assert old.on_exit(4711, code)
    assert f"(pid 4711) {why}: upgrade abandoned, this supervisor keeps running" in capfd.readouterr().err
    assert (old.role, old.under_way, old.shared, old.must_wait) == (Role.LEADER, "", False, False)
    assert old.deadline == math.inf
    old.pass_on(signal.SIGHUP)
    assert old.end(4) == 4
    old.requested = "again"
    old.spawn(NOTHING, 6.0)
    assert old.deadline == 6.0


def test_a_successor_that_cannot_be_spawned_changes_nothing(chain, monkeypatch):
    """The error is the caller's, and no descriptor is left open."""
    old = chain.first()
    before = len(os.listdir("/proc/self/fd"))

    def fails(*words):
        raise OSError("no memory")

    monkeypatch.setattr(os, "posix_spawn", fails)
    with pytest.raises(OSError, match="no memory"):
        old.spawn(NOTHING, 5.0)
    assert len(os.listdir("/proc/self/fd")) == before
    assert old.successor is None
    assert not old.must_wait


def test_a_stop_takes_the_successor_along(chain, capfd):
    """It gets the signal and the deadline; what it reports from then on no longer counts, and its exit is no failure."""
    old, new = chain.pair()
    old.stop(signal.SIGTERM, 9.0)
    assert chain.killed == [(4711, signal.SIGTERM)]
    assert old.deadline == 9.0
    new.report_started()
    new.report_ready()
    turn(chain.loop)
    assert not old.successor_ready
    assert old.deadline == 9.0
    assert old.must_wait
    assert old.on_exit(4711, 0)
    assert not old.must_wait
    assert "abandoned" not in capfd.readouterr().err


@pytest.mark.parametrize(("stopped", "missed"), [(False, "start"), (True, "exit")])
def test_a_successor_whose_time_is_over_is_killed(chain, capfd, stopped, missed):
    """Only once, and the log says what it did not do in time."""
    old, _ = chain.pair()
    if stopped:
        old.stop(signal.SIGTERM, 9.0)
    old.kill()
    assert chain.killed[-1] == (4711, signal.SIGKILL)
    assert old.deadline == math.inf
    assert f"the new supervisor (pid 4711) did not {missed} in time: killing it" in capfd.readouterr().err


def test_a_stop_does_not_touch_a_leader(chain):
    """The predecessor drains; the successor keeps leading."""
    old, new = handed_over(chain)
    old.stop(signal.SIGTERM, 9.0)
    assert chain.killed == []
    assert old.on_exit(4711, 0)
    assert new.role is Role.LEADER


# What is left, and what is read of it.


def test_the_format_is_that_of_the_versions_that_are_out_there(chain):
    """Same keys, same number: an older version takes over from this one, and this one from an older."""
    chain.pair()
    left = json.loads(chain.left)
    assert sorted(left) == KEYS
    assert left["format"] == upgrade.FORMAT == 1


@pytest.mark.parametrize(
    "text",
    [
        "3",
        "[]",
        "{}",
        "no JSON",
        json.dumps({"format": upgrade.FORMAT + 1}),
        json.dumps({"format": upgrade.FORMAT, "wills": [[1, 2]], "admin": []}),
        NOTHING.encode(10**6, 10**6),
    ],
)
def test_a_handover_that_cannot_be_read(chain, monkeypatch, text):
    """It may be of another version, or made by hand: one line, and the variable is removed."""
    one = chain.first()
    monkeypatch.setenv(VARIABLE, text)
    with pytest.raises(HandoverError, match="EPOLLARD_HANDOVER: this version cannot take over from the one that is running"):
        one.inherit()
    assert VARIABLE not in os.environ


def test_without_a_handover_we_are_the_first(chain, monkeypatch):
    """And we lead at once."""
    monkeypatch.delenv(VARIABLE, raising=False)
    one = chain.first()
    assert not one.inherit()
    assert one.role is Role.LEADER
    assert not one.shared
    assert not one.under_way


# Listeners.


def inherited(inheritance):
    """An inheritance as a successor gets it: with descriptors of its own."""
    return inheritance._replace(listeners=[os.dup(fd) for fd in inheritance.listeners])


@pytest.fixture
def old():
    """`old("127.0.0.1:0", slots=3)`: what a predecessor listens with."""
    bound = []

    def bind(*addresses, slots=1, **options):
        bound.append(sockets.bind(addresses, slots, options.get("backlog", 16), options.get("tcp", "nodelay")))
        return bound[-1]

    yield bind
    for groups, listeners in bound:
        sockets.close(groups, listeners)
        sockets.unlink(groups)


def inheritances_of(groups, listeners):
    return [inherited(group.inheritance([own[at] for own in listeners])) for at, group in enumerate(groups)]


def test_the_kernels_order_is_handed_over(old):
    """After a listener has left, the kernel has the last one in its place: the order of the slots is another."""
    (group,), listeners = old("127.0.0.1:0", slots=4)
    group.leave(listeners[1][0])
    listeners.pop(1)
    left = inheritances_of([group], listeners)
    (found,), mine = sockets.bind(["127.0.0.1:0"], 3, 16, "nodelay", left)
    assert left == []
    inodes = [os.fstat(own[0].fileno()).st_ino for own in listeners]
    assert [os.fstat(own[0].fileno()).st_ino for own in mine] == inodes
    assert [os.fstat(member.fileno()).st_ino for member in found.members] == [inodes[0], inodes[2], inodes[1]]
    assert found.url == group.url
    sockets.close([found], mine)


def test_nothing_is_changed_before_it_is_ours(old):
    """TCP options and backlog are the predecessor's until `take_over`."""
    (group,), listeners = old("127.0.0.1:0", backlog=7, tcp="nodelay")
    left = inheritances_of([group], listeners)
    (found,), ((mine,),) = sockets.bind(["127.0.0.1:0"], 1, 5, "cork", left)

    def options():
        return [mine.getsockopt(socket.IPPROTO_TCP, option) for option in (socket.TCP_NODELAY, socket.TCP_CORK)]

    assert options() == [1, 0]
    found.take_over()
    assert options() == [0, 1]
    mine.close()


def test_a_unix_socket_is_recognized_by_its_file(old, tmp_path):
    """A socket with the same file is adopted, and its file not removed before it is ours. Another file is left alone."""
    path = tmp_path / "it"
    groups, listeners = old(f"unix:{path}")
    (found,), mine = sockets.bind([f"unix:{path}"], 1, 16, "nodelay", inheritances_of(groups, listeners))
    sockets.unlink([found])
    assert path.exists()
    found.take_over()
    sockets.unlink([found])
    assert not path.exists()
    sockets.close([found], mine)
    path.write_text("keeps the inode number from being used again")
    path.rename(tmp_path / "other")
    left = inheritances_of(groups, listeners)
    (found,), mine = sockets.bind([f"unix:{path}"], 1, 16, "nodelay", left)
    assert len(left) == 1
    sockets.unlink_inherited(left[0])
    assert path.exists()
    os.close(left[0].listeners[0])
    sockets.close([found], mine)
    sockets.unlink([found])


def test_an_address_that_is_not_wanted_stays_in_the_list(old):
    """It is not ours to close yet: a client that connects to it is still accepted."""
    groups, listeners = old("127.0.0.1:0", "127.0.0.1:0")
    wanted, spare = (f"127.0.0.1:{group.address[1]}" for group in groups)
    left = inheritances_of(groups, listeners)
    found, mine = sockets.bind([wanted], 1, 16, "nodelay", left)
    assert [f"127.0.0.1:{inheritance.port}" for inheritance in left] == [spare]
    with socket.create_connection(groups[1].address):
        pass
    os.close(left[0].listeners[0])
    sockets.close(found, mine)
