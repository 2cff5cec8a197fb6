"""When a queue stands still. Who serves it meanwhile is `balance`, and has the real server in server/test_rescue.py."""

from types import SimpleNamespace

import pytest

from epollard.scoreboard import ACCEPTED
from epollard.supervision import slots
from epollard.supervision.slots import STUCK_AFTER, Slot


@pytest.fixture
def queue(monkeypatch):
    """A slot with a ready worker; `queue.length` is how many wait in its one listener."""
    queue = SimpleNamespace(length=0, slot=Slot(0, [None]), record=[0] * 16)
    queue.slot.processes.append(SimpleNamespace(record=queue.record, ready=True, leaving=False))
    monkeypatch.setattr(slots, "queue_length", lambda listener: queue.length)
    queue.slot.look(100.0, False)
    return queue


def test_who_has_only_just_come_does_not_wait_for_long(queue):
    """After a second without a look nobody knows for how long the queue has not been empty: it counts from now."""
    queue.length = 1
    queue.slot.look(101.0, False)
    assert not queue.slot.stuck
    queue.slot.look(101.0 + STUCK_AFTER / 2, False)
    assert not queue.slot.stuck
    queue.slot.look(101.0 + STUCK_AFTER + 0.01, False)
    assert queue.slot.stuck


def test_a_queue_that_moves_is_not_stuck(queue):
    """However long it is."""
    queue.length = 9
    for look in range(10):
        queue.record[ACCEPTED] += 1
        queue.slot.look(101.0 + look, False)
        assert not queue.slot.stuck
