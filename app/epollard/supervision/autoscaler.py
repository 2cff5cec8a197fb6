"""How many workers there should be, by how busy they are and what memory is left. Reads no clock, starts and stops nobody.

The work does not change with the number of those who do it: ready workers times their busyness is how many would be needed if
each was busy all the time. We want each to be busy TARGET of the time. More workers come soon, when the least of the latest
needs is above what there is; fewer come late, when the greatest of the needs of a long time is below it. So a moment's peak
starts nobody, and load that goes up and down within that time starts and stops nobody.
"""

import math
from collections import deque
from collections.abc import Callable
from typing import Final

from .status import Facts, saturation

EVERY: Final = 1.0  # seconds between two looks: workers say how busy they are once a second
TARGET: Final = 0.6  # of the time; what is left is for the time that it takes to see a change and to boot
TOLERANCE: Final = 0.1  # of a worker, which is no reason to start another
GROW_AFTER: Final = 3.0  # seconds
SHRINK_AFTER: Final = 30.0
# Where memory is short one worker goes, and then it is seen what that has brought; for so long nobody is added either.
RELIEF: Final = 10.0
LEAST_SIZE: Final = 16 * 2**20  # bytes that a worker is taken to need, at least


class Autoscaler:
    """The bounds, and what was seen lately."""

    def __init__(self, least: int, most: int) -> None:
        self.least = least
        self.most = most
        self.next_look = 0.0
        self._needs: deque[tuple[float, int]] = deque()  # when, how many
        self._relieved = -math.inf  # when memory was last so short that one had to go
        self._short = False  # there is none for another

    def __str__(self) -> str:
        return f"{self.least} to {self.most}"

    def look(self, facts: Facts, room: Callable[[], int | None], each: Callable[[], int]) -> tuple[int, str]:
        """How many workers to want from now on, and why, where that is to be said.

        `room` is how many bytes of memory may yet be used, negative where too much is used already, None where nobody sets a
        limit; `each` how many a worker uses. They are asked where it matters.
        """
        self.next_look = facts.now + EVERY
        ready = sum(len(slot.serving) for slot in facts.slots)
        return self.wish(facts.now, facts.desired, ready, saturation(facts), room, each)

    def wish(
        self, now: float, workers: int, ready: int, busy: float, room: Callable[[], int | None], each: Callable[[], int]
    ) -> tuple[int, str]:
        """As `look`: there are `workers`, of which some are `ready`, and these are `busy` so much of the time."""
        wanted = min(max(self._by_work(now, workers, math.ceil(ready * busy / TARGET - TOLERANCE)), self.least), self.most)
        why = f"{ready} of {workers} workers ready, {busy:.0%} busy"
        was_short, self._short = self._short, False
        left = room() if wanted > workers or workers == wanted > self.least else None
        if left is None:
            return wanted, why if wanted != workers else ""
        if left < 0 and workers > self.least:
            if now - self._relieved < RELIEF:
                return workers, ""
            self._relieved = now
            return workers - 1, "memory is short"
        fit = max(left, 0) // max(each(), LEAST_SIZE) if wanted > workers and now - self._relieved >= SHRINK_AFTER else 0
        if workers + fit >= wanted:
            return wanted, why if wanted != workers else ""
        self._short = True
        return workers + fit, f"{why}; memory is left for {fit} more" if fit or not was_short else ""

    def _by_work(self, now: float, workers: int, need: int) -> int:
        needs = self._needs
        needs.append((now, need))
        slack = EVERY / 2  # looks come a little late, and never early
        while needs[0][0] < now - SHRINK_AFTER - slack:
            needs.popleft()
        seen = now - needs[0][0] + slack
        latest = min(need for when, need in needs if when >= now - GROW_AFTER - slack)
        if latest > workers and seen >= GROW_AFTER:
            return latest
        greatest = max(need for _, need in needs)
        if greatest < workers and seen >= SHRINK_AFTER:
            return greatest
        return workers
