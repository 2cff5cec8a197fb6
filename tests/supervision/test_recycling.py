"""Worn workers: by requests, with a lot drawn for each, by age, and by memory that stays high."""

import os
from types import SimpleNamespace
from typing import Any

import pytest

from epollard.scoreboard import REQUESTS
from epollard.supervision import recycling
from epollard.supervision.recycling import SAMPLE_EVERY, SAMPLES, memory, next_worn, worn_out
from staff import settings


@pytest.fixture
def worker():
    """A worker that became ready at 100 s."""
    return SimpleNamespace(pid=os.getpid(), record=[0] * 16, ready_since=100.0, lot=7, heavy=0, next_sample=0.0)


def test_nobody_is_worn_out_by_default(worker):
    """Whatever it has done and however old it is."""
    worker.record[REQUESTS] = 10**15
    assert worn_out(worker, settings(), 10.0**9) == ""


@pytest.mark.parametrize(("jitter", "limit"), [("off", 500), ("1", 501), ("6", 500), ("100", 507)])
def test_requests_and_their_jitter(worker, jitter, limit):
    """The limit is what is configured and the worker's lot, which is never above the jitter."""
    wanted = settings("--max-requests", "500", "--max-requests-jitter", jitter)
    worker.record[REQUESTS] = limit - 1
    assert worn_out(worker, wanted, 101) == ""
    worker.record[REQUESTS] = limit
    assert worn_out(worker, wanted, 101) == f"has answered {limit} requests"


def test_age(worker):
    """Counted from when it became ready."""
    wanted = settings("--max-worker-age", "1h")
    assert worn_out(worker, wanted, 3699.9) == ""
    assert worn_out(worker, wanted, 3700) == "has served for 3600 s"


def test_memory_must_stay_high(worker, monkeypatch):
    """Three looks in a row, two seconds apart: what one request needs for a moment is no leak."""
    wanted = settings("--max-worker-memory", "100M")
    used: list[int] = []
    monkeypatch.setattr(recycling, "memory", lambda pid: used.pop(0) << 20)
    used += [101, 101, 100, 101, 101, 150]
    now = 100.0
    while used:
        said = worn_out(worker, wanted, now)
        assert worn_out(worker, wanted, now + SAMPLE_EVERY / 2) == said  # between two looks there is none
        assert said == ("" if used else "uses 150 MiB of memory")
        now += SAMPLE_EVERY
    assert worker.heavy == SAMPLES


def test_memory_is_measured():
    """Our own process uses some MiB, and a process that is gone none."""
    assert 5 << 20 < memory(os.getpid()) < 2 << 30
    assert memory(2**22 + 1) == 0


def test_one_at_a_time_and_none_while_others_start():
    """Of three that are worn out the second has its turn when the first is gone and its replacement ready."""
    wanted = settings("--max-requests", "1")
    made: list[Any] = [
        SimpleNamespace(record=[9] * 16, ready=True, ready_since=100.0, leaving=False, lot=0, worn="") for _ in range(3)
    ]
    first = next_worn(made, wanted, 101)
    assert first is made[0]
    assert first.worn == "has answered 9 requests"
    assert next_worn(made, wanted, 102) is None
    first.leaving = True
    replacement = SimpleNamespace(record=[0] * 16, ready=False, ready_since=103.0, leaving=False, lot=0, worn="")
    made.append(replacement)
    assert next_worn(made, wanted, 103) is None
    replacement.ready = True
    assert next_worn(made, wanted, 104) is made[1]
