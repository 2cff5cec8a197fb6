"""Prometheus metrics, from facts that are made up: which samples there are, and that counters only grow."""

import pytest

from epollard.management import metrics
from epollard.scoreboard import ACTIVE, BUSY, REQUESTS, WIDTH
from facts import facts, slot


@pytest.mark.parametrize(
    ("kinds", "sample"),
    [
        (["ready", "stuck", "booting"], 'epollard_workers{state="ready"} 2'),
        (["ready"], "epollard_workers_wanted 1"),
        (["ready"], "epollard_ready 1"),
        (["booting"], "epollard_ready 0"),
        (["ready", "ready"], "epollard_saturation 0.2500"),
        (["ready", "ready"], "epollard_connections 3"),
        (["ready", "ready"], "epollard_requests_total 0"),
    ],
)
def test_each_sample_is_there_once(kinds, sample):
    """With the value that follows from the facts."""
    made = facts(*kinds)
    made.processes[0].record[BUSY] = 500
    made.processes[0].record[ACTIVE] = 3
    assert metrics.text(made).splitlines().count(sample) == 1


def test_counters_include_workers_that_are_gone():
    """What they have counted is part of the total."""
    past = [0] * WIDTH
    past[REQUESTS] = 40
    made = facts("ready", past=past)
    made.slots[0].processes[0].record[REQUESTS] = 2
    assert "\nepollard_requests_total 42\n" in metrics.text(made)


def test_counters_include_workers_that_drain_though_their_slot_is_gone():
    """A counter that falls while a worker drains, and rises when it is gone, would look like a restart (Prometheus)."""
    one = facts("ready")
    (drains,) = slot(1, "draining").processes
    drains.record[REQUESTS] = 5
    assert "\nepollard_requests_total 5\n" in metrics.text(one._replace(processes=[*one.processes, drains]))
