"""The replacement policy: histories of slots, and which workers are started and retired in them. No process, no clock."""

import itertools
import math
import signal
from collections.abc import Callable

import pytest

from epollard import exits
from epollard.supervision.rollout import ATTEMPTS, BACKOFF_LAST, EARLY_EXIT, Exit, Rollout, Verdict, back_off
from epollard.supervision.slots import Process, Slot


class World:
    """Slots, and the workers that the policy has started and retired in them. A turn is a second."""

    def __init__(self, slots, *, boot=2, rollout=None):
        self.slots = [Slot(index, []) for index in range(slots)]
        self.rollout = rollout or Rollout()
        self.boot = boot  # seconds until a worker is ready, or exits instead
        self.broken: set[int] = set()  # the generations that exit instead
        self.status = 1  # the exit status of those
        self.due: Callable[[Process], str] = lambda worker: ""
        self.now = 1000.0
        self.events: list[str] = []
        self.verdicts: list[Verdict] = []

    @property
    def workers(self):
        return [worker for slot in self.slots for worker in slot.processes]

    @property
    def serving(self):
        """The generation that serves in each slot, 0 if there is none."""
        return [max((worker.generation for worker in slot.serving), default=0) for slot in self.slots]

    def run(self, seconds):
        """Let that many seconds go by. Returns what has happened in them."""
        before = len(self.events)
        for _ in range(seconds):
            for worker in self.workers:
                self.turn(worker)
            self.reconcile()
            self.now += 1
        return self.events[before:]

    def turn(self, worker):
        """A worker exits as it was asked to, becomes ready, or fails."""
        if worker.retiring:
            worker.slot.processes.remove(worker)
        elif not worker.ready and self.now - worker.started >= self.boot:
            if worker.generation in self.broken:
                self.exit(worker, self.status)
            else:
                worker.ready_since = self.now
                self.rollout.on_ready(worker)
                self.events.append(f"{name(worker)} ready")

    def exit(self, worker, code, by_others=False):
        """A worker exits that was not asked to."""
        worker.slot.processes.remove(worker)
        self.events.append(f"{name(worker)} exits")
        self.verdicts.append(self.rollout.on_exit(Exit(worker, code, by_others), self.now))
        return self.verdicts[-1]

    def reconcile(self):
        """Carry out what the policy plans."""
        if chosen := self.rollout.choose_for_recycling(self.workers, self.due):
            self.events.append(f"{name(chosen)} due")
        for slot in self.slots:
            plan = self.rollout.plan(slot, self.workers)
            for worker in (*plan.retire, *filter(None, [plan.recycle])):
                worker.retire(self.now, math.inf)
                self.events.append(f"{name(worker)} retires")
            if self.now >= plan.start_at:
                worker = Process(0, slot, self.rollout.generation, memoryview(b""), -1, None, self.now)
                slot.processes.append(worker)
                self.events.append(f"{name(worker)} starts")


def name(worker):
    """Its slot and generation."""
    return f"{worker.slot.index}.{worker.generation}"


@pytest.fixture
def serving():
    """Three slots that are served by generation 1, and have been for long enough."""
    world = World(3)
    world.run(60)
    world.events.clear()
    return world


# Starting.


def test_at_the_start_all_slots_boot_at_once():
    """There is nothing to lose yet: no slot waits for another one."""
    world = World(3)
    assert world.run(3) == ["0.1 starts", "1.1 starts", "2.1 starts", "0.1 ready", "1.1 ready", "2.1 ready"]
    assert world.rollout.complete(world.slots)
    assert world.rollout.proven == 1


def test_when_all_is_as_desired_nothing_happens(serving):
    """Nothing is started, retired or recycled."""
    assert serving.run(1000) == []


def test_a_worker_that_exits_is_replaced_at_once(serving):
    """In its own slot, whatever it died of, and without regard to the others."""
    assert serving.exit(serving.workers[1], 1) is Verdict.REPLACE
    assert serving.run(1) == ["1.1 starts"]


def test_all_workers_that_exit_are_replaced_at_once(serving):
    """Slots without a worker do not wait for each other, since none of them has anything to lose."""
    for worker in serving.workers:
        serving.exit(worker, 1)
    assert serving.run(1) == ["0.1 starts", "1.1 starts", "2.1 starts"]


# A new generation.


def test_a_new_generation_replaces_one_slot_at_a_time(serving):
    """A worker retires only once its replacement is ready, and only then does the next slot follow."""
    assert serving.rollout.begin(serving.slots) == 2
    assert not serving.rollout.complete(serving.slots)
    assert serving.run(8) == [
        *("0.2 starts", "0.2 ready", "0.1 retires"),
        *("1.2 starts", "1.2 ready", "1.1 retires"),
        *("2.2 starts", "2.2 ready", "2.1 retires"),
    ]
    assert serving.rollout.complete(serving.slots)
    assert serving.rollout.proven == 2


def test_the_first_replacement_is_the_trial(serving):
    """It does not boot: the generation is given up, no other slot is touched, and every old worker stays."""
    serving.rollout.begin(serving.slots)
    serving.broken = {2}
    assert serving.run(100) == ["0.2 starts", "0.2 exits"]
    assert serving.verdicts == [Verdict.ROLL_BACK]
    assert serving.rollout.generation == 1
    assert serving.serving == [1, 1, 1]
    assert all(slot.failures == 0 for slot in serving.slots)


def test_the_number_of_a_generation_that_was_given_up_does_not_come_again(serving):
    """The next one is told apart from it in the log and by the application."""
    serving.broken = {2}
    serving.rollout.begin(serving.slots)
    serving.run(10)
    assert serving.rollout.begin(serving.slots) == 3
    serving.run(20)
    assert serving.serving == [3, 3, 3]


def test_a_worker_that_exits_after_a_roll_back_is_replaced_by_the_proven_generation(serving):
    """What served before the failed reload serves after it."""
    serving.broken = {2}
    serving.rollout.begin(serving.slots)
    serving.run(10)
    serving.exit(serving.workers[0], 1)
    serving.run(10)
    assert serving.serving == [1, 1, 1]


def test_a_generation_that_has_been_ready_is_not_given_up(serving):
    """Once one of its workers has served, an early exit is tried again, and the next slot waits for that."""
    serving.rollout.begin(serving.slots)
    serving.run(3)
    serving.broken = {2}
    serving.run(3)
    assert serving.verdicts == [Verdict.RETRY]
    serving.broken = set()
    serving.run(20)
    assert serving.serving == [2, 2, 2]


def test_a_newer_generation_overtakes_one_that_boots(serving):
    """Code that hangs while it boots need not be waited for once there is newer code."""
    serving.boot = math.inf
    serving.rollout.begin(serving.slots)
    serving.run(10)
    serving.rollout.begin(serving.slots)
    assert serving.run(1) == ["0.2 retires", "0.3 starts"]
    serving.boot = 2
    assert serving.run(2) == ["0.3 ready", "0.1 retires", "1.3 starts"]


def test_a_worker_that_boots_in_an_empty_slot_is_not_overtaken(serving):
    """It is the only one that its slot can soon have. It is replaced once it is ready, like any other."""
    serving.exit(serving.workers[0], 1)
    serving.run(1)
    serving.rollout.begin(serving.slots)
    assert serving.run(2) == ["0.1 ready", "0.2 starts"]


# Recycling.


def test_workers_are_recycled_one_at_a_time(serving):
    """All are due at once: the second one has its turn when the first has been replaced, and not while a worker boots."""
    serving.due = lambda worker: "is too old" if worker.started < 1060 else ""
    assert serving.run(12) == [
        *("0.1 due", "0.1 starts", "0.1 ready", "0.1 retires"),
        *("1.1 due", "1.1 starts", "1.1 ready", "1.1 retires"),
        *("2.1 due", "2.1 starts", "2.1 ready", "2.1 retires"),
    ]
    assert [worker.started >= 1060 for worker in serving.workers] == [True, True, True]


def test_the_reason_for_recycling_is_kept(serving):
    """It is asked for once, and stands in the log."""
    due = iter(["", "is too old", "is too big"])
    serving.due = lambda worker: next(due)
    serving.run(1)
    assert [worker.recycle_reason for worker in serving.workers if worker.ready] == ["", "is too old", ""]


def test_a_replacement_that_does_not_boot_leaves_the_old_worker(serving):
    """An old worker is better than none: it serves, and the replacement is tried again."""
    serving.due = lambda worker: "is too old" if worker.started < 1060 else ""
    serving.broken = {1}
    serving.run(20)
    assert serving.serving == [1, 1, 1]
    assert set(serving.verdicts) == {Verdict.RETRY}
    assert not any("retires" in event for event in serving.events)


def test_a_worker_that_is_due_is_replaced_by_a_new_generation_as_well(serving):
    """A reload does not wait for recycling, nor the other way round."""
    serving.due = lambda worker: "is too old" if worker.generation == 1 else ""
    serving.run(1)
    serving.rollout.begin(serving.slots)
    serving.run(20)
    assert serving.serving == [2, 2, 2]
    assert len(serving.workers) == 3


# Early exits.


def test_replacements_are_put_off_more_and_more(serving):
    """The first one comes at once; the delay before the others doubles up to its bound."""
    serving.broken = {1}
    serving.boot = 0
    serving.exit(serving.workers[0], 1)
    serving.run(100)
    starts = [event for event in serving.events if event == "0.1 starts"]
    assert 10 < len(starts) < 16
    assert [back_off(failures) for failures in range(1, 10)] == [0, 0.5, 1, 2, 4, 8, 10, 10, 10]
    assert back_off(10**6) == BACKOFF_LAST


@pytest.mark.parametrize(("seconds", "failures"), [(0, 4), (EARLY_EXIT - 0.1, 4), (EARLY_EXIT, 0), (3600, 0)])
def test_a_worker_that_has_served_ends_a_series_of_early_exits(serving, seconds, failures):
    """Five seconds after it became ready, an exit is an accident: the next worker starts at once."""
    worker = serving.workers[0]
    worker.slot.failures = 3
    worker.ready_since = serving.now - seconds
    assert serving.exit(worker, 1) is (Verdict.RETRY if failures else Verdict.REPLACE)
    assert worker.slot.failures == failures


def test_a_new_generation_ends_a_series_of_early_exits(serving):
    """Mended code does not wait because of what the broken code has done."""
    slot = serving.slots[0]
    for _ in range(5):
        serving.rollout.on_failure(slot, serving.now)
    assert slot.next_attempt > serving.now
    serving.rollout.begin(serving.slots)
    assert (slot.failures, slot.next_attempt) == (0, 0.0)


@pytest.mark.parametrize(
    ("code", "ready", "by_others", "early"),
    [
        (-signal.SIGKILL, True, True, False),
        (-signal.SIGKILL, False, True, True),  # before it was ready: something is too big or too slow
        (-signal.SIGKILL, True, False, True),  # by us, or by the kernel for lack of memory
        (-signal.SIGSEGV, True, False, True),
        (1, True, False, True),
    ],
)
def test_a_kill_from_outside_is_no_failure(serving, code, ready, by_others, early):
    """It says nothing about the application, however often it happens: there is no back-off."""
    worker = serving.workers[0]
    worker.ready_since = serving.now if ready else math.inf
    assert serving.exit(worker, code, by_others) is (Verdict.RETRY if early else Verdict.REPLACE)
    assert worker.slot.failures == early


@pytest.mark.parametrize("code", [0, 1, exits.LOAD_FAILED, -signal.SIGTERM, -signal.SIGKILL])
def test_an_exit_that_was_asked_for_is_no_failure(serving, code):
    """However it exits, it neither adds to a series of early exits nor ends one."""
    worker = serving.workers[0]
    worker.retire(serving.now, 30)
    worker.slot.failures = 3
    assert serving.exit(worker, code) is Verdict.REPLACE
    assert worker.slot.failures == 3


# When the server ends.


def test_an_application_that_cannot_be_loaded_ends_the_server():
    """At the start, another attempt would end in the same way."""
    world = World(2)
    world.broken, world.status = {1}, exits.LOAD_FAILED
    world.run(3)
    assert world.verdicts[0] is Verdict.LOAD_ERROR


def test_an_application_that_could_be_loaded_before_is_tried_again(serving):
    """Once a worker has been ready, the same status is a failure like any other."""
    serving.broken, serving.status = {1}, exits.LOAD_FAILED
    serving.exit(serving.workers[0], 1)
    serving.run(30)
    assert set(serving.verdicts[1:]) == {Verdict.RETRY}


def test_workers_that_never_boot_end_the_server():
    """After three attempts in one slot; it is then up to what started the server."""
    world = World(1)
    world.broken = {1}
    while Verdict.GIVE_UP not in world.verdicts:
        world.run(1)
    assert world.verdicts == [*itertools.repeat(Verdict.RETRY, ATTEMPTS - 1), Verdict.GIVE_UP]


def test_a_successor_does_not_try_again():
    """While a predecessor still leads, the first failure ends the upgrade, before a worker has been ready and after it."""
    for proven in 0, 5:
        world = World(2, rollout=Rollout(5, successor=True))
        world.rollout.proven = proven
        world.broken = {5}
        world.run(3)
        assert world.verdicts[0] is Verdict.GIVE_UP


def test_a_successor_that_leads_tries_again():
    """From then on it is a supervisor like any other."""
    world = World(1, rollout=Rollout(5, successor=True))
    world.run(3)
    world.rollout.successor = False
    assert world.exit(world.workers[0], 1) is Verdict.RETRY
