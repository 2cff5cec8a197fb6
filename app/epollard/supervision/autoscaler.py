"""How many workers there should be, by how busy they are and how much memory is left. Decides only; reads no clock.

The amount of work does not depend on the number of workers: ready workers times their busyness is how many would be needed if
each was busy all the time. We want each to be busy TARGET of the time. More workers are added soon, once even the least of the
latest needs is above what there is; workers are removed late, once even the greatest of the needs of a long time is below it.
So a short peak adds no worker, and load that goes up and down within that time neither adds nor removes any.
"""

import math
from collections import deque
from collections.abc import Callable
from typing import Final

from .status import Facts, saturation

INTERVAL: Final = 1.0  # seconds between two decisions: workers publish their busyness once a second
TARGET: Final = 0.6  # of the time; the rest is for the time that it takes to notice a change and to boot
TOLERANCE: Final = 0.1  # of a worker, which is no reason to add another one
GROW_AFTER: Final = 3.0  # seconds
SHRINK_AFTER: Final = 30.0
# If memory is short, one worker is removed; the effect is awaited for that many seconds before another one is.
RELIEF: Final = 10.0
MIN_WORKER_MEMORY: Final = 16 * 2**20  # bytes that a worker is assumed to need, at least


class Autoscaler:
    """The bounds, and the recent needs."""

    def __init__(self, least: int, most: int) -> None:
        self.least = least
        self.most = most
        self.due_at = 0.0  # when to decide next
        self._needs: deque[tuple[float, int]] = deque()  # when, how many
        self._relieved = -math.inf  # when a worker was last removed because memory was short
        self._short = False  # there is no memory for another worker

    def __str__(self) -> str:
        return f"{self.least} to {self.most}"

    def decide(self, facts: Facts, room: Callable[[], int | None], each: Callable[[], int]) -> tuple[int, str]:
        """How many workers to have from now on, and why, if there is something to log.

        `room` is how many bytes of memory are left: negative if too much is used already, None if there is no limit. `each` is
        how many bytes a worker uses. Both are called only if they matter.
        """
        self.due_at = facts.now + INTERVAL
        ready = sum(len(slot.serving) for slot in facts.slots)
        return self.desired(facts.now, facts.desired, ready, saturation(facts), room, each)

    def desired(
        self, now: float, workers: int, ready: int, busy: float, room: Callable[[], int | None], each: Callable[[], int]
    ) -> tuple[int, str]:
        """As `decide`: there are `workers`, of which some are `ready`, and these are `busy` for that part of the time."""
        desired = min(max(self._by_work(now, workers, math.ceil(ready * busy / TARGET - TOLERANCE)), self.least), self.most)
        why = f"{ready} of {workers} workers ready, {busy:.0%} busy"
        was_short, self._short = self._short, False
        left = room() if desired > workers or workers == desired > self.least else None
        if left is None:
            return desired, why if desired != workers else ""
        if left < 0 and workers > self.least:
            if now - self._relieved < RELIEF:
                return workers, ""
            self._relieved = now
            return workers - 1, "memory is short"
        may_grow = desired > workers and now - self._relieved >= SHRINK_AFTER
        fit = max(left, 0) // max(each(), MIN_WORKER_MEMORY) if may_grow else 0
        if workers + fit >= desired:
            return desired, why if desired != workers else ""
        self._short = True
        return workers + fit, f"{why}; there is memory for {fit} more" if fit or not was_short else ""

    def _by_work(self, now: float, workers: int, need: int) -> int:
        needs = self._needs
        needs.append((now, need))
        slack = INTERVAL / 2  # decisions come a little late, and never early
        while needs[0][0] < now - SHRINK_AFTER - slack:
            needs.popleft()
        observed = now - needs[0][0] + slack
        latest = min(need for when, need in needs if when >= now - GROW_AFTER - slack)
        if latest > workers and observed >= GROW_AFTER:
            return latest
        greatest = max(need for _, need in needs)
        if greatest < workers and observed >= SHRINK_AFTER:
            return greatest
        return workers
