"""When a queue counts as stuck. How siblings then serve it is tested with a real server in server/test_rescue.py."""

from types import SimpleNamespace

import pytest

from epollard.scoreboard import ACCEPTED
from epollard.supervision import slots
from epollard.supervision.slots import STUCK_AFTER, Slot


@pytest.fixture
def queue(monkeypatch):
    """A slot with a ready worker; `queue.length` connections wait in its one listener."""
    queue = SimpleNamespace(length=0, slot=Slot(0, [None]), record=[0] * 16)
    queue.slot.processes.append(SimpleNamespace(record=queue.record, ready=True, retiring=False))
    monkeypatch.setattr(slots, "queue_length", lambda listener: queue.length)
    queue.slot.poll(100.0, False)
    return queue


def test_a_connection_that_has_only_just_come_has_not_waited(queue):
    """After a second without a poll it is unknown how long the queue has not been empty: the time counts from now."""
    queue.length = 1
    queue.slot.poll(101.0, False)
    assert not queue.slot.stuck
    queue.slot.poll(101.0 + STUCK_AFTER / 2, False)
    assert not queue.slot.stuck
    queue.slot.poll(101.0 + STUCK_AFTER + 0.01, False)
    assert queue.slot.stuck


def test_a_queue_that_moves_is_not_stuck(queue):
    """However long it is."""
    queue.length = 9
    for turn in range(10):
        queue.record[ACCEPTED] += 1
        queue.slot.poll(101.0 + turn, False)
        assert not queue.slot.stuck
