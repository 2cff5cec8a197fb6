"""How many workers there should be: histories second by second, and what is desired at their end. No process, no clock."""

import pytest

from epollard.supervision.autoscaler import GROW_AFTER, RELIEF, SHRINK_AFTER, TARGET, Autoscaler

MIB = 2**20


class World:
    """Workers that do a load of work (counted in whole workers), as much as they can; an added one is ready after `boot` s."""

    def __init__(self, least=1, most=8, workers=None, boot=2, room=None, each=50 * MIB):
        self.autoscaler = Autoscaler(least, most)
        self.workers = self.ready = workers or least
        self.boot = boot
        self.room = room
        self.each = each
        self.now = 1000.0
        self.history = [self.workers]
        self.why = ""
        self.reasons = 0  # how often one was given
        self._due = []

    def run(self, seconds, load):
        """That many seconds of a load: a number, or a function of the second."""
        for second in range(seconds):
            self.now += 1
            work = load(second) if callable(load) else load
            self.ready += sum(count for when, count in self._due if when <= self.now)
            self._due = [(when, count) for when, count in self._due if when > self.now]
            busy = min(work / self.ready, 1)
            desired, why = self.autoscaler.desired(self.now, self.workers, self.ready, busy, self.left, lambda: self.each)
            if desired > self.workers:
                self._due.append((self.now + self.boot, desired - self.workers))
            elif desired < self.workers:
                self.ready = min(self.ready, desired)
                self._due = []
            assert why or desired == self.workers  # no change without a reason
            if why:
                self.why = why
                self.reasons += 1
            self.workers = desired
            self.history.append(desired)
        return self

    def left(self):
        return None if self.room is None else self.room - self.workers * self.each

    @property
    def changes(self):
        return sum(after != before for before, after in zip(self.history, self.history[1:], strict=False))


@pytest.mark.parametrize(
    ("load", "expected"),
    [
        (0.0, 1),
        (0.3, 1),
        (0.6, 1),
        (0.65, 1),  # a tenth of a worker is no reason
        (0.7, 2),
        (1.2, 2),
        (1.5, 3),
        (3.0, 5),
        (4.5, 8),
        (99, 8),
    ],
)
@pytest.mark.parametrize("start", [1, 3, 8])
def test_it_settles_where_workers_are_busy_enough(load, expected, start):
    """From any number of workers, a steady load leads to the same number, and there it stays."""
    world = World(workers=start).run(150, load)
    assert world.workers == expected
    assert set(world.history[-60:]) == {expected}


def test_it_grows_within_seconds():
    """From 1 to 8 workers under full load in less than half a minute, boots included: the number almost doubles each time."""
    world = World().run(30, 100)
    assert world.workers == 8
    assert world.history[int(GROW_AFTER) + 2] > 1


@pytest.mark.parametrize("seconds", [1, 2])
def test_a_short_peak_adds_no_worker(seconds):
    """A peak that is over before another worker would have booted is no reason for one, however often it comes."""
    world = World(least=2).run(200, lambda second: 2 if second % 10 < seconds else 0.1)
    assert world.changes == 0


def test_it_shrinks_late_down_to_the_minimum():
    """Workers are removed only after fewer were needed for half a minute."""
    world = World(workers=8).run(int(SHRINK_AFTER) - 1, 0)
    assert world.workers == 8
    assert world.run(3, 0).workers == 1


@pytest.mark.parametrize("period", [4, 10, 20, 30])
def test_load_that_comes_and_goes_does_not_make_it_flap(period):
    """Load that goes up and down within half a minute: the number rises once, and stays."""
    world = World().run(300, lambda second: 3.0 if second % period < period / 2 else 0.2)
    assert world.changes <= 3
    assert len(set(world.history[-200:])) == 1


@pytest.mark.parametrize("threshold", [k * TARGET for k in (1, 2, 3)])
def test_load_at_a_threshold_does_not_make_it_flap(threshold):
    """Noise around a load at which another worker is just needed, or just not."""
    world = World().run(300, lambda second: threshold + (0.12 if second % 3 else -0.12))
    assert world.changes <= 2


def test_while_new_workers_boot_no_more_are_added():
    """Slow boots under full load: the need is computed from the workers that are ready."""
    world = World(most=100, boot=1000).run(60, 100)
    assert world.workers == 2  # one, busy all the time, needs 1.67


def test_the_bounds_hold():
    """Neither more than the maximum nor fewer than the minimum, from the first decision on."""
    assert set(World(least=2, most=3, workers=2).run(100, 100).history) == {2, 3}
    assert set(World(least=2, most=3, workers=3).run(100, 0).history) == {2, 3}


def test_memory_limits_the_number():
    """With memory for four workers there are four, whatever the load; with more memory there are more."""
    world = World(room=220 * MIB).run(60, 100)
    assert world.workers == 4
    assert world.changes <= 3
    world.room = 320 * MIB
    assert world.run(30, 100).workers == 6


def test_the_reason_is_given():
    """It names what was measured, and memory if that decided."""
    assert World(most=2).run(10, 100).why == "1 of 1 workers ready, 100% busy"
    assert World(least=2, room=170 * MIB).run(10, 100).why == "2 of 2 workers ready, 100% busy; there is memory for 1 more"


def test_lack_of_memory_is_logged_once():
    """Load for more workers, and no memory: there is one log line, not one every second."""
    world = World(least=2, room=110 * MIB).run(60, 100)
    assert world.workers == 2
    assert world.why == "2 of 2 workers ready, 100% busy; there is memory for 0 more"
    assert world.reasons == 1


def test_short_memory_removes_one_worker_at_a_time():
    """Workers that have grown: one is removed, another only once the effect could be seen, and none is added again at once."""
    world = World(workers=6, room=6 * 50 * MIB).run(20, 3.6)
    assert world.workers == 6
    world.each = 70 * MIB
    world.run(1, 3.6)
    assert (world.workers, world.why) == (5, "memory is short")
    world.run(int(RELIEF) - 2, 3.6)
    assert world.workers == 5
    world.run(100, 3.6)
    assert world.workers == 4
    assert world.changes == 2


def test_the_minimum_stays_however_short_memory_is():
    """No worker of the minimum is removed."""
    assert World(least=3, workers=3, room=MIB).run(100, 0).workers == 3
