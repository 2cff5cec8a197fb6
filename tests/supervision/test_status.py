"""What the supervisor tells of itself, from facts that are made up here: rows of slots, and what follows from them."""

import math

import pytest

from epollard.scoreboard import BUSY, HEARTBEAT, READY, REQUESTS, STATE, WIDTH
from epollard.supervision import status
from epollard.supervision.slots import Process, Slot

NOW = 1000.0


def slot(index, kind):
    """A slot in one of the states that there are."""
    made = Slot(index, [])
    if kind == "backing off":
        made.failures, made.next_attempt = 3, NOW + 2
    elif kind != "empty":
        record = memoryview(bytearray(WIDTH * 8)).cast("q")
        record[HEARTBEAT] = int((NOW - 0.5) * 1e9)
        process = Process(100 + index, made, 1, record, -1, None, NOW - 60)
        if kind != "booting":
            process.ready_since = NOW - 50
            record[STATE] = READY
        process.leaving = kind == "draining"
        if kind == "stuck":
            made.stuck_at = NOW - 1
        made.processes.append(process)
    return made


def facts(*kinds, wanted=0, known=0, going="", past=()):
    slots = [slot(index, kind) for index, kind in enumerate(kinds)]
    processes = [process for slot in slots for process in slot.processes]
    return status.Facts(NOW, going, wanted or len(kinds), known, 1, slots, processes, past or [0] * WIDTH)


@pytest.mark.parametrize(
    ("kinds", "known", "going", "reasons"),
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
def test_ready_or_why_not(kinds, known, going, reasons):
    """Ready is: half of the workers take connections, and the server stays. Else each reason is named."""
    ready, told = status.readiness(facts(*kinds, known=known, going=going))
    expected = [reason.format(number) for number, reason in enumerate(reasons)]
    assert told["reasons"] == expected
    assert ready is told["ready"] is (not reasons)


def test_a_replacement_hides_nobody():
    """While a slot's old worker still serves and its replacement boots, the slot is ready."""
    made = facts("ready")
    made.slots[0].processes.append(slot(0, "booting").processes[0])
    assert status.readiness(made)[1]["slots"][0]["state"] == "ready"


@pytest.mark.parametrize(
    ("shares", "silent", "expected"),
    [([0, 0], [], 0), ([1000, 1000], [], 1), ([200, 600], [], 0.4), ([0, 0], [1], 0.5), ([0], [0], 1), ([], [], 0)],
)
def test_saturation_is_the_mean_of_those_who_serve(shares, silent, expected):
    """Who has not been heard of for long is taken to be busy; who boots does not count."""
    made = facts(*["ready"] * len(shares), "booting")
    for index, share in enumerate(shares):
        record = made.slots[index].processes[0].record
        record[BUSY] = share
        if index in silent:
            record[HEARTBEAT] = int((NOW - status.SILENT - 1) * 1e9)
    assert math.isclose(status.saturation(made), expected)


def test_counters_go_on_after_a_worker():
    """What workers that are gone have counted is part of the total."""
    past = [0] * WIDTH
    past[REQUESTS] = 40
    made = facts("ready", past=past)
    made.slots[0].processes[0].record[REQUESTS] = 2
    assert "\nepollard_requests_total 42\n" in status.metrics(made)


def test_who_drains_is_counted_though_its_slot_is_gone():
    """A counter that falls while a worker drains, and rises when it is gone, would be taken for a new start (Prometheus)."""
    one = facts("ready")
    (drains,) = slot(1, "draining").processes
    drains.record[REQUESTS] = 5
    assert "\nepollard_requests_total 5\n" in status.metrics(one._replace(processes=[*one.processes, drains]))
