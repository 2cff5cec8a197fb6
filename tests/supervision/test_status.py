"""Readiness and saturation, from facts that are made up here: rows of slots, and what follows from them."""

import math

import pytest

from epollard.scoreboard import BUSY, HEARTBEAT
from epollard.supervision import status
from facts import NOW, facts, slot


@pytest.mark.parametrize(
    ("kinds", "known", "ending", "reasons"),
    [
        (["ready"], 1, "", []),
        (["ready"], 0, "", []),
        (["booting"], 0, "", ["0 of 1 workers ready, 1 needed", "worker 0 is booting"]),
        (["stuck"], 1, "", ["0 of 1 workers ready, 1 needed", "worker 0 is stuck"]),
        (["backing off"], 1, "", ["0 of 1 workers ready, 1 needed", "worker 0 is backing off"]),
        (["draining"], 1, "", ["0 of 1 workers ready, 1 needed", "worker 0 is without a worker"]),
        (["empty"], 1, "", ["0 of 1 workers ready, 1 needed", "worker 0 is without a worker"]),
        (["ready", "stuck"], 2, "", []),
        (["ready", "stuck", "booting"], 3, "", ["1 of 3 workers ready, 2 needed", "worker 1 is stuck", "worker 2 is booting"]),
        (["ready", "booting", "booting", "booting"], 1, "", []),  # three more have just been asked for
        (["ready", "booting", "booting", "booting"], 0, "", ["1 of 4 workers ready, 2 needed", *["worker {} is booting"] * 3]),
        (["ready", "ready"], 8, "", []),  # six fewer have just been asked for
        (["ready", "ready"], 2, "draining", ["the server is draining"]),
        (["stuck"], 1, "stopping", ["the server is stopping", "0 of 1 workers ready, 1 needed", "worker 0 is stuck"]),
    ],
)
def test_ready_or_why_not(kinds, known, ending, reasons):
    """Ready means that half of the workers take connections, and that the server stays. Otherwise each reason is named."""
    ready, report = status.readiness(facts(*kinds, known=known, ending=ending))
    expected = [reason.format(number) for number, reason in enumerate(reasons)]
    assert report["reasons"] == expected
    assert ready is report["ready"] is (not reasons)


def test_a_booting_replacement_does_not_hide_the_worker():
    """While a slot's old worker still serves and its replacement boots, the slot is ready."""
    made = facts("ready")
    made.slots[0].processes.append(slot(0, "booting").processes[0])
    assert status.readiness(made)[1]["slots"][0]["state"] == "ready"


@pytest.mark.parametrize(
    ("shares", "silent", "expected"),
    [([0, 0], [], 0), ([1000, 1000], [], 1), ([200, 600], [], 0.4), ([0, 0], [1], 0.5), ([0], [0], 1), ([], [], 0)],
)
def test_saturation_is_the_mean_of_the_serving_workers(shares, silent, expected):
    """A worker without a recent heartbeat counts as busy; one that boots does not count."""
    made = facts(*["ready"] * len(shares), "booting")
    for index, share in enumerate(shares):
        record = made.slots[index].processes[0].record
        record[BUSY] = share
        if index in silent:
            record[HEARTBEAT] = int((NOW - status.SILENT - 1) * 1e9)
    assert math.isclose(status.saturation(made), expected)
