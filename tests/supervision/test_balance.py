"""Steering and rescue on real listeners, with workers that are only believed to be there and a clock that is an argument."""

import contextlib
import socket

import pytest

from epollard.net import sockets
from epollard.net.loop import Loop
from epollard.net.sockets import queue_length
from epollard.scoreboard import ACCEPTED, ACTIVE, WIDTH
from epollard.supervision.balance import BURST_INTERVAL, BUSY_INTERVAL, IDLE_INTERVAL, LOG_INTERVAL, QUIET, Balance
from epollard.supervision.slots import STUCK_AFTER, Process, Slot
from harness import wait_for

NOW = 1000.0


class World:
    """A group with a listener for each slot; each slot has a ready worker, whose end of the channel is `workers[index]`."""

    def __init__(self, stack, count):
        self.loop = Loop()
        self.stack = stack
        (self.group,), listeners = sockets.bind(["127.0.0.1:0"], count, 64, "nodelay")
        self.slots = [Slot(index, own) for index, own in enumerate(listeners)]
        self.workers = []
        for slot in self.slots:
            ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            theirs.setblocking(False)
            self.workers.append(theirs)
            process = Process(100 + slot.index, slot, 1, memoryview(bytearray(WIDTH * 8)).cast("q"), -1, ours, NOW)
            process.ready_since = NOW
            slot.processes.append(process)
        self.balance = Balance(self.loop, [self.group], True)
        self.now = NOW
        stack.callback(self.close)

    def close(self):
        self.balance.disarm()
        sockets.close([self.group], [slot.listeners for slot in self.slots])
        for slot, worker in zip(self.slots, self.workers, strict=True):
            slot.processes[0].channel.close()
            worker.close()
        self.loop.close()

    def steer(self, after=0.0):
        self.now += after
        self.balance.steer(self.now, self.slots, [])
        return self.balance.due_at - self.now

    def connect(self, count):
        """That many clients that have sent a byte; those that are accepted or queued, by slot."""
        for _ in range(count):
            self.stack.enter_context(socket.create_connection(self.group.address)).send(b"G")
        return lambda: [queue_length(slot.listeners[0]) for slot in self.slots]

    def lent(self, index):
        """What that worker was sent: of which slot, and how many descriptors. None: nothing."""
        try:
            message, descriptors, _, _ = socket.recv_fds(self.workers[index], 16, 8)
        except BlockingIOError:
            return None
        for fd in descriptors:
            socket.close(fd)
        return message, len(descriptors)


@pytest.fixture
def world():
    """`world(3)`: a world of three slots."""
    with contextlib.ExitStack() as stack:
        yield lambda count: World(stack, count)


def leave(slot):
    slot.processes[0].retiring = True


def test_new_connections_go_to_the_emptiest_slot(world):
    """And none to a slot that has no worker which takes connections."""
    three = world(3)
    three.slots[0].processes[0].record[ACTIVE] = 1000
    leave(three.slots[1])
    three.steer()
    queues = three.connect(20)
    wait_for(lambda: queues() == [0, 0, 20])


def test_a_queue_without_a_worker_is_lent_to_the_least_loaded_sibling(world):
    """Once; and it is taken back as soon as its slot has a worker again."""
    three = world(3)
    three.slots[1].processes[0].record[ACTIVE] = 5
    queues = three.connect(30)
    wait_for(lambda: sum(queues()) == 30)
    assert queues()[0]
    leave(three.slots[0])
    three.slots[2].processes[0].record[ACTIVE] = 500
    three.steer()
    assert three.slots[0].rescuer is three.slots[1].processes[0]
    assert three.lent(1) == (b"0", 1)
    three.steer(BUSY_INTERVAL)
    assert three.lent(1) is None
    three.slots[0].processes[0].retiring = False
    three.steer(BUSY_INTERVAL)
    assert three.slots[0].rescuer is None
    assert three.lent(1) == (b"0", 0)
    assert three.lent(2) is None


def test_a_queue_moves_on_when_its_rescuer_leaves(world):
    """Another sibling gets it."""
    three = world(3)
    queues = three.connect(30)
    wait_for(lambda: sum(queues()) == 30)
    leave(three.slots[0])
    three.steer()
    first = three.slots[0].rescuer
    assert first is not None
    leave(first.slot)
    three.steer(BUSY_INTERVAL)
    assert three.slots[0].rescuer is three.slots[3 - first.slot.index].processes[0]


def until_stuck(two):
    """Steer until the first slot is stuck, while the second one keeps accepting. Returns how long that took."""
    begin = two.now
    while not two.slots[0].stuck:
        two.slots[1].processes[0].record[ACCEPTED] += 1
        two.steer(BUSY_INTERVAL)
    return two.now - begin


def test_a_stuck_queue_is_lent_and_logged(world, capfd):
    """After it has not moved for a while; when its worker accepts something, it gets the queue back."""
    two = world(2)
    queues = two.connect(20)
    wait_for(lambda: sum(queues()) == 20)
    two.steer()
    assert until_stuck(two) == pytest.approx(STUCK_AFTER, abs=BUSY_INTERVAL)
    assert two.slots[0].rescuer is two.slots[1].processes[0]
    assert two.lent(1) == (b"0", 1)
    assert f"worker 0 is not accepting connections; siblings are taking its {queues()[0]} queued" in capfd.readouterr().err
    two.slots[0].processes[0].record[ACCEPTED] += 1
    two.steer(BUSY_INTERVAL)
    assert not two.slots[0].stuck
    assert two.lent(1) == (b"0", 0)


def test_a_slot_that_is_stuck_again_and_again_is_logged_now_and_then(world, capfd):
    """A worker at its limit does not fill the log."""
    two = world(2)
    queues = two.connect(20)
    wait_for(lambda: sum(queues()) == 20)
    two.steer()
    for pause, logged in (0, 1), (0, 0), (LOG_INTERVAL, 1):
        two.steer(pause)
        until_stuck(two)
        assert capfd.readouterr().err.count("is not accepting connections") == logged
        two.slots[0].processes[0].record[ACCEPTED] += 1
        two.steer(BUSY_INTERVAL)


def test_a_worker_that_is_gone_is_lent_nothing(world):
    """Its channel is closed: the queue waits for the next one."""
    two = world(2)
    queues = two.connect(20)
    wait_for(lambda: sum(queues()) == 20)
    leave(two.slots[0])
    two.workers[1].close()
    two.steer()
    assert two.slots[0].rescuer is None


def test_all_drain_and_no_queue_is_left_alone(world):
    """A queue that no worker serves is lent even if it looks empty: a client may have connected by now."""
    two = world(2)
    two.steer()
    leave(two.slots[0])
    two.balance.lend_unserved(two.slots, [])
    assert two.lent(1) == (b"0", 1)
    assert two.lent(0) is None


def test_how_often_the_queues_are_checked(world):
    """Often while connections come, once a second while none do; then the kernel reports the next one."""
    two = world(2)
    assert two.steer() == pytest.approx(IDLE_INTERVAL)
    queues = two.connect(1)
    wait_for(lambda: sum(queues()) == 1)
    assert two.balance.due_at > two.now
    two.loop.turn(1)
    assert two.balance.due_at == 0
    assert two.steer(0.1) == pytest.approx(BURST_INTERVAL)
    assert two.steer(BURST_INTERVAL) == pytest.approx(BUSY_INTERVAL)
    for slot in two.slots:
        with contextlib.suppress(BlockingIOError):
            slot.listeners[0].accept()[0].close()
            slot.processes[0].record[ACCEPTED] += 1
    two.steer(BUSY_INTERVAL)
    while two.steer(BUSY_INTERVAL) < IDLE_INTERVAL / 2:
        assert two.now < NOW + 5 * QUIET
    assert two.balance.due_at == pytest.approx(two.now + IDLE_INTERVAL)


def test_a_single_slot_has_nothing_to_balance(world):
    """No program is attached, and no listener is watched."""
    one = world(1)
    one.connect(1)
    for _ in range(3):
        one.steer(BUSY_INTERVAL)
    assert not one.balance._armed
    assert not one.balance._kernel._attached
