"""Slots and their listeners, on real sockets: they come and go, and each client that has connected is in a queue that stays."""

import contextlib
import math
import os
import socket
from types import SimpleNamespace

import pytest

from epollard.net import syn_filter
from epollard.net.loop import Loop
from epollard.net.sockets import queue_length
from epollard.supervision.listeners import HANDSHAKE, Listeners
from harness import wait_for
from staff import settings

NOW = 1000.0
CLIENTS = 64  # the chance that all of them get into one of two queues is 2**-63


@pytest.fixture
def opened():
    """`opened(2, "--steer", "off")`: that many slots, each with a listener on a free port."""
    loop = Loop()
    made = []

    def opened(slots, *words, bind="127.0.0.1:0"):
        found = Listeners(loop)
        found.bind(settings("--bind", bind, *words), slots, [])
        made.append(found)
        return found

    yield opened
    for found in made:
        found.close(shared=False)
        found.unlink()
    loop.close()


@contextlib.contextmanager
def clients(listeners, count):
    """That many clients that have connected and sent something."""
    with contextlib.ExitStack() as stack:
        for _ in range(count):
            client = stack.enter_context(socket.create_connection(listeners.groups[0].address, timeout=5))
            client.sendall(b"GET / HTTP/1.1\r\n")
        wait_for(lambda: sum(queue_length(own) for slot in listeners.all_slots for own in slot.listeners) == count)
        yield


def serves(slot):
    """Put a ready worker into the slot, as far as the listeners see it."""
    worker = SimpleNamespace(ready=True, retiring=False, slot=slot, record=[0] * 16)
    slot.processes.append(worker)
    return worker


def test_one_more_slot_is_one_more_listener_on_the_same_port(opened):
    """It is in the kernel's group as well: each listener gets clients."""
    listeners = opened(1)
    assert listeners.resize(NOW, 2) == 2
    assert [slot.index for slot in listeners.slots] == [0, 1]
    assert len({slot.listeners[0].getsockname() for slot in listeners.slots}) == 1
    with clients(listeners, CLIENTS):
        assert all(queue_length(slot.listeners[0]) for slot in listeners.slots)


def test_a_retiring_slot_is_closed_when_its_queue_is_empty(opened):
    """Not before: queued clients would be turned away."""
    listeners = opened(2)
    with clients(listeners, CLIENTS):
        assert listeners.resize(NOW, 1) == 1
        (slot,) = listeners.retiring
        assert slot.index == 1
        assert slot.retires_at == NOW + HANDSHAKE
        listeners.retire(slot, late=False)
        assert listeners.retiring == [slot]
        for _ in range(queue_length(slot.listeners[0])):
            slot.listeners[0].accept()[0].close()
        listeners.retire(slot, late=False)
    assert listeners.retiring == []
    assert slot.listeners[0].fileno() == -1
    assert len(listeners.groups[0].members) == 1


def test_a_retiring_slot_does_not_wait_for_ever(opened):
    """Once its worker has used up its time, no process will empty the queue."""
    listeners = opened(2)
    with clients(listeners, CLIENTS):
        listeners.resize(NOW, 1)
        listeners.retire(listeners.retiring[0], late=True)
    assert listeners.retiring == []


@pytest.mark.parametrize("steer", ["on", "off"])
def test_a_slot_that_is_wanted_again_stays(opened, steer):
    """As long as its worker was not asked to exit, it is the same slot, and takes connections as before."""
    listeners = opened(2, "--steer", steer)
    slot = listeners.slots[1]
    listeners.resize(NOW, 1)
    assert listeners.resize(NOW + syn_filter.SYN_DROP_TIME / 2, 2) == 2
    assert listeners.slots[1] is slot
    assert listeners.retiring == []
    with clients(listeners, CLIENTS):  # a SYN that is dropped would be repeated after a second
        assert queue_length(slot.listeners[0])
    listeners.resize(NOW, 1)
    listeners.resize(slot.retires_at, 2)
    assert listeners.slots[1] is not slot


def test_without_steering_new_handshakes_are_refused_first(opened):
    """The kernel's hash still picks that listener: the SYNs are dropped, and no client has connected when it is closed."""
    listeners = opened(2, "--steer", "off")
    listeners.resize(NOW, 1)
    address = listeners.groups[0].address
    with contextlib.ExitStack() as stack:
        for _ in range(CLIENTS):
            client = stack.enter_context(socket.socket())
            client.setblocking(False)
            client.connect_ex(address)
            with contextlib.suppress(OSError):
                client.send(b"GET")
        assert queue_length(listeners.retiring[0].listeners[0]) == 0
        listeners.retire(listeners.retiring[0], late=False)
        assert listeners.retiring == []


def test_refusing_handshakes_leaves_the_queue_alone(opened):
    """When the server stops, no new handshake begins, but queued clients can still be accepted."""
    listeners = opened(1)
    with clients(listeners, 3):
        listeners.refuse_handshakes()
        with pytest.raises(TimeoutError):
            socket.create_connection(listeners.groups[0].address, timeout=0.2)
        assert queue_length(listeners.slots[0].listeners[0]) == 3


@pytest.mark.parametrize("shared", [False, True])
def test_a_unix_socket_refuses_clients_once_it_is_closed(opened, tmp_path, shared):
    """Although workers still have their copies; but not if a successor keeps using it."""
    path = str(tmp_path / "it.sock")
    listeners = opened(2, bind=f"unix:{path}")
    copy = listeners.slots[0].listeners[0].dup()
    listeners.close(shared)
    with copy, socket.socket(socket.AF_UNIX) as client:
        assert (client.connect_ex(path) == 0) is shared
    listeners.unlink()
    assert not os.path.exists(path)


def test_a_worker_keeps_only_the_listeners_of_its_slot(opened):
    """Otherwise a sibling's listener would live as long as this worker."""
    listeners = opened(3)
    listeners.resize(NOW, 2)
    listeners.disown(listeners.slots[1])
    assert [slot.listeners[0].fileno() == -1 for slot in listeners.all_slots] == [True, False, True]


def test_a_change_in_the_serving_workers_is_acted_upon_at_once(opened):
    """A worker becomes ready, leaves, or is gone: steering does not wait until it is due; without a change it does."""
    listeners = opened(2)
    calls = []
    listeners._balance = SimpleNamespace(due_at=math.inf, steer=lambda *words: calls.append(words))
    changes = []
    for change in (
        lambda: None,
        lambda: changes.append(serves(listeners.slots[0])),
        lambda: changes.append(serves(listeners.slots[1])),
        lambda: setattr(changes[0], "retiring", True),
        lambda: listeners.slots[1].processes.remove(changes[1]),
        lambda: listeners.retiring.append(listeners.slots.pop()),
        lambda: listeners.slots.append(listeners.retiring.pop()),
    ):
        change()
        for _ in range(3):
            assert listeners.steer(NOW) == math.inf
        assert len(calls) == 1
        calls.clear()
    listeners._balance = opened(1)._balance
