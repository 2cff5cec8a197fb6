"""How likely each slot should be to get the next connection, from how many connections each has. Pure: no socket, no clock."""

import itertools
import math
from collections.abc import Sequence
from typing import Final

# A difference of less than 1/FINENESS of the greatest weight is not worth another program for the kernel.
FINENESS: Final = 64
# The least number of connections that we expect until we steer again: for each slot, and as a part of those that are open. The
# bigger, the more evenly connections are spread, however many are open already; the smaller, the harder we steer, and a burst
# that comes unexpectedly meets a program which sends all of it to one worker.
LEAST_EXPECTED: Final = 4
PART_EXPECTED: Final = 0.5


def shares(loads: Sequence[int | None], expected: float) -> list[int]:
    """Weights from 0 to FINENESS by which, after `expected` more connections, all loads would be even.

    As water fills a vessel with an uneven floor: a slot above the level gets nothing. A load of None stands for a slot that
    must get nothing, unless that holds for all of them: then connections wait in all queues alike.
    """
    floors = sorted(load for load in loads if load is not None)
    if not floors:
        return [FINENESS] * len(loads)
    expected = max(expected, LEAST_EXPECTED * len(floors), PART_EXPECTED * sum(floors))
    level = 0.0
    for count, total in enumerate(itertools.accumulate(floors), 1):
        level = (expected + total) / count
        if count == len(floors) or level <= floors[count]:
            break
    deepest = level - floors[0]
    return [0 if load is None else math.ceil(FINENESS * max(level - load, 0) / deepest) for load in loads]
