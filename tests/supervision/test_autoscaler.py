"""How many workers there should be: histories second by second, and what is wanted at their end. No process, no clock."""

import pytest

from epollard.supervision.autoscaler import GROW_AFTER, RELIEF, SHRINK_AFTER, TARGET, Autoscaler

MIB = 2**20


class World:
    """Workers that do a load of work (in whole workers), as much of it as they can; who is wanted is ready after `boot`."""

    def __init__(self, least=1, most=8, workers=None, boot=2, room=None, each=50 * MIB):
        self.elastic = Autoscaler(least, most)
        self.workers = self.ready = workers or least
        self.boot = boot
        self.room = room
        self.each = each
        self.now = 1000.0
        self.history = [self.workers]
        self.why = ""
        self.told = 0
        self._due = []

    def run(self, seconds, load):
        """So many seconds of a load: a number, or a function of the second."""
        for second in range(seconds):
            self.now += 1
            work = load(second) if callable(load) else load
            self.ready += sum(count for when, count in self._due if when <= self.now)
            self._due = [(when, count) for when, count in self._due if when > self.now]
            busy = min(work / self.ready, 1)
            wish, why = self.elastic.wish(self.now, self.workers, self.ready, busy, self.left, lambda: self.each)
            if wish > self.workers:
                self._due.append((self.now + self.boot, wish - self.workers))
            elif wish < self.workers:
                self.ready = min(self.ready, wish)
                self._due = []
            assert why or wish == self.workers  # no change without a reason
            if why:
                self.why = why
                self.told += 1
            self.workers = wish
            self.history.append(wish)
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
    """Whatever it starts from, under a steady load it comes to the same number, and stays there."""
    world = World(workers=start).run(150, load)
    assert world.workers == expected
    assert set(world.history[-60:]) == {expected}


def test_it_grows_within_seconds():
    """From 1 to 8 workers under full load: doubled almost each time, less than half a minute in all, boots included."""
    world = World().run(30, 100)
    assert world.workers == 8
    assert world.history[int(GROW_AFTER) + 2] > 1


@pytest.mark.parametrize("seconds", [1, 2])
def test_a_moment_of_load_starts_nobody(seconds):
    """What is over before another worker would have booted is no reason for one, however often it comes."""
    world = World(least=2).run(200, lambda second: 2 if second % 10 < seconds else 0.1)
    assert world.changes == 0


def test_it_shrinks_late_and_to_the_least():
    """Fewer come only when for half a minute fewer were needed."""
    world = World(workers=8).run(int(SHRINK_AFTER) - 1, 0)
    assert world.workers == 8
    assert world.run(3, 0).workers == 1


@pytest.mark.parametrize("period", [4, 10, 20, 30])
def test_load_that_comes_and_goes_does_not_make_it_flap(period):
    """Up and down within half a minute: it goes up once, and stays."""
    world = World().run(300, lambda second: 3.0 if second % period < period / 2 else 0.2)
    assert world.changes <= 3
    assert len(set(world.history[-200:])) == 1


@pytest.mark.parametrize("border", [k * TARGET for k in (1, 2, 3)])
def test_load_at_a_border_does_not_make_it_flap(border):
    """Noise around a load where one more is just needed, or just not."""
    world = World().run(300, lambda second: border + (0.12 if second % 3 else -0.12))
    assert world.changes <= 2


def test_while_new_workers_boot_no_more_are_asked_for():
    """Slow boots under full load: what is needed is reckoned from those who are ready."""
    world = World(most=100, boot=1000).run(60, 100)
    assert world.workers == 2  # one, busy all the time, needs 1.67


def test_the_bounds_hold():
    """Neither more than the most nor fewer than the least, from the first look on."""
    assert set(World(least=2, most=3, workers=2).run(100, 100).history) == {2, 3}
    assert set(World(least=2, most=3, workers=3).run(100, 0).history) == {2, 3}


def test_memory_is_a_bound_of_its_own():
    """With room for four of them, four is all there are, and the reason says so; with more room there are more."""
    world = World(room=220 * MIB).run(60, 100)
    assert world.workers == 4
    assert world.changes <= 3
    world.room = 320 * MIB
    assert world.run(30, 100).workers == 6


def test_the_reason_is_told():
    """It names what was measured, and memory where that was what decided."""
    assert World(most=2).run(10, 100).why == "1 of 1 workers ready, 100% busy"
    assert World(least=2, room=170 * MIB).run(10, 100).why == "2 of 2 workers ready, 100% busy; memory is left for 1 more"


def test_that_memory_is_the_bound_is_told_once():
    """Load for more, and no room: it is said, and not said again every second."""
    world = World(least=2, room=110 * MIB).run(60, 100)
    assert world.workers == 2
    assert world.why == "2 of 2 workers ready, 100% busy; memory is left for 0 more"
    assert world.told == 1


def test_where_memory_runs_short_one_goes_at_a_time():
    """Workers that have grown: one goes, and another only after it was seen what that brought; and none comes back at once."""
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


def test_the_least_stays_whatever_memory_says():
    """Below the least nobody is sent away."""
    assert World(least=3, workers=3, room=MIB).run(100, 0).workers == 3
