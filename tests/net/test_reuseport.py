"""BPF programs on groups of real listeners: each gets exactly the connections that the weights give it."""

import contextlib
import errno
import socket

import pytest

from epollard.net import bpf, sockets
from epollard.net.reuseport import _SO_ATTACH_REUSEPORT_CBPF, Steering, program
from epollard.net.sockets import queue_length
from harness import wait_for


@pytest.fixture
def group():
    """`group(4)`: a group of that many real listeners."""
    with contextlib.ExitStack() as stack:

        def group(count):
            (found,), _ = sockets.bind(["127.0.0.1:0"], count, 1024, "nodelay")
            stack.callback(sockets.close, [found], [found.members])
            return found

        yield group


@pytest.fixture
def connect():
    """`connect(group, 10)`: make that many connections that send a byte. Returns the length of each member's queue."""
    with contextlib.ExitStack() as stack:

        def connect(group, count):
            before = sum(map(queue_length, group.members))
            for _ in range(count):
                stack.enter_context(socket.create_connection(group.address)).send(b"G")
            wait_for(lambda: sum(map(queue_length, group.members)) == before + count)
            return [queue_length(member) for member in group.members]

        yield connect


@pytest.mark.parametrize(("weights", "targets"), [([1, 0, 0, 0], [0]), ([0, 0, 0, 1], [3]), ([0, 5, 0, 3], [1, 3])])
def test_only_listeners_with_a_weight_get_connections(group, connect, weights, targets):
    """A listener with a weight of 0 gets none of 100 connections, and each other one gets some."""
    four = group(4)
    Steering([four]).steer(dict(zip(four.members, weights, strict=True)))
    found = connect(four, 100)
    assert [index for index, count in enumerate(found) if count] == targets
    assert sum(found) == 100


def test_connections_follow_the_weights(group, connect):
    """Of 400 connections nine tenths go to one listener and one tenth to the other, within six standard deviations."""
    two = group(2)
    Steering([two]).steer({two.members[0]: 9, two.members[1]: 1})
    assert abs(connect(two, 400)[0] - 360) < 36


def test_indices_stay_right_while_listeners_come_and_go(group, connect):
    """The kernel moves the last listener into the place of one that leaves; steering still reaches the right listener."""
    four = group(4)
    steered = Steering([four])
    for leaving in 1, 0, 2, 1, 0, 3, 1:
        four.leave(four.members[leaving])
        four.join()
        for meant in list(four.members):
            steered.steer({meant: 1})
            before = queue_length(meant)
            connect(four, 3)
            assert queue_length(meant) == before + 3


def test_a_listener_that_other_processes_hold_open_still_leaves(group, connect):
    """A process that an application forked may keep a copy for ever: the copy must not get connections."""
    two = group(2)
    with two.members[0].dup():
        two.leave(two.members[0])
        assert len(two.members) == 1
        assert connect(two, 10) == [10]


def test_the_longest_program_is_accepted(group, connect):
    """The kernel accepts the program for the greatest number of workers that can be configured."""
    two = group(2)
    bpf.attach(two.members[0], _SO_ATTACH_REUSEPORT_CBPF, program([0] + [1] * 1023))
    assert len(program([1] * 1024)) // 8 <= 4096  # BPF_MAXINSNS
    bpf.attach(two.members[0], _SO_ATTACH_REUSEPORT_CBPF, program([0, 10**6] + [1] * 1022))
    assert connect(two, 20)[1] >= 15  # all except those with an index that does not exist


def test_a_kernel_that_refuses_programs_is_not_asked_again(group, connect, monkeypatch, capfd):
    """That is logged once, and connections are spread by the kernel's hash."""
    two = group(2)
    steered = Steering([two])

    def attach(listener, option, code):
        raise OSError(errno.ENOPROTOOPT, "Protocol not available")

    monkeypatch.setattr(bpf, "attach", attach)
    for weight in range(1, 4):
        steered.steer({two.members[0]: weight})
    assert capfd.readouterr().err.count("new connections cannot be steered (Protocol not available)") == 1
    assert sum(connect(two, 20)) == 20


def test_the_same_program_is_attached_once(group, monkeypatch):
    """Steering many times a second costs no system call as long as the weights stay the same."""
    two = group(2)
    steered = Steering([two])
    attached = []
    monkeypatch.setattr(bpf, "attach", lambda listener, option, code: attached.append(code))
    for _ in range(3):
        steered.steer({two.members[0]: 1})
    assert len(attached) == 1
