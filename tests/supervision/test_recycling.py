"""Which workers are due for recycling: by requests, with a jitter for each, by age, and by memory that stays high."""

import os
from types import SimpleNamespace

import pytest

from epollard.scoreboard import REQUESTS
from epollard.supervision import recycling
from epollard.supervision.recycling import SAMPLE_INTERVAL, SAMPLES, due_for_recycling, memory
from staff import settings


@pytest.fixture
def worker():
    """A worker that became ready at 100 s."""
    return SimpleNamespace(pid=os.getpid(), record=[0] * 16, ready_since=100.0, jitter=7, samples_over=0, next_sample=0.0)


def test_no_worker_is_recycled_by_default(worker):
    """However many requests it has answered, and however old it is."""
    worker.record[REQUESTS] = 10**15
    assert due_for_recycling(worker, settings(), 10.0**9) == ""


@pytest.mark.parametrize(("jitter", "limit"), [("off", 500), ("1", 501), ("6", 500), ("100", 507)])
def test_requests_and_their_jitter(worker, jitter, limit):
    """A worker's limit is the configured one plus its own jitter, which is never above --max-requests-jitter."""
    wanted = settings("--max-requests", "500", "--max-requests-jitter", jitter)
    worker.record[REQUESTS] = limit - 1
    assert due_for_recycling(worker, wanted, 101) == ""
    worker.record[REQUESTS] = limit
    assert due_for_recycling(worker, wanted, 101) == f"has answered {limit} requests"


def test_age(worker):
    """It is counted from when the worker became ready."""
    wanted = settings("--max-worker-age", "1h")
    assert due_for_recycling(worker, wanted, 3699.9) == ""
    assert due_for_recycling(worker, wanted, 3700) == "has served for 3600 s"


def test_memory_must_stay_high(worker, monkeypatch):
    """Three samples in a row, two seconds apart: what one request needs for a moment is no leak."""
    wanted = settings("--max-worker-memory", "100M")
    used: list[int] = []
    monkeypatch.setattr(recycling, "memory", lambda pid: used.pop(0) << 20)
    used += [101, 101, 100, 101, 101, 150]
    now = 100.0
    while used:
        reason = due_for_recycling(worker, wanted, now)
        assert due_for_recycling(worker, wanted, now + SAMPLE_INTERVAL / 2) == reason  # between two samples there is none
        assert reason == ("" if used else "uses 150 MiB of memory")
        now += SAMPLE_INTERVAL
    assert worker.samples_over == SAMPLES


def test_memory_is_measured():
    """Our own process uses some MiB, and a process that has exited none."""
    assert 5 << 20 < memory(os.getpid()) < 2 << 30
    assert memory(2**22 + 1) == 0
