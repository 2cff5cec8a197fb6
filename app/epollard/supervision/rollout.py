"""The replacement policy: which slot gets a worker next, which workers have been replaced, and what an early exit means.

Each reload begins a new *generation* of workers. It is rolled out one slot at a time, and its first worker is a trial: if that
one does not boot, the generation is given up, and the workers of the last *proven* generation stay. A generation is proven once
one of its workers has been ready. Workers that are due for recycling are replaced in the same way, one at a time. No process,
no clock: slots and processes are read as facts, and the supervisor carries out what is planned here.
"""

import enum
import math
from collections.abc import Callable, Collection, Sequence
from typing import Final, NamedTuple

from .. import exits
from .slots import Process, Slot

# Seconds after a worker became ready. If workers exit sooner than that, it is a habit and no accident, and they are replaced
# ever more slowly.
EARLY_EXIT: Final = 5.0
# Early exits in a row, in one slot, after which the server gives up if no worker has ever been ready. What started the server
# then has to decide.
ATTEMPTS: Final = 3
# Seconds before the replacement after the second early exit in a row, doubled for each further one; after the first, it comes
# at once. There is an upper bound because the kernel may send clients to this slot meanwhile, which wait in its queue.
BACKOFF_FIRST: Final = 0.5
BACKOFF_LAST: Final = 10.0


class Verdict(enum.Enum):
    """What follows from the exit of a worker, or from the failure to start one."""

    REPLACE = enum.auto()  # a new one is started at once
    RETRY = enum.auto()  # it was early: a new one is started at the slot's `next_attempt`
    ROLL_BACK = enum.auto()  # the new generation is given up: the proven one stays
    LOAD_ERROR = enum.auto()  # the application cannot be loaded: the server ends
    GIVE_UP = enum.auto()  # no worker becomes ready: the server ends


class Exit(NamedTuple):
    """A worker has exited."""

    process: Process
    code: int  # exit status, or a negative signal number
    by_others: bool  # killed by SIGKILL, but neither by us nor by the kernel for lack of memory


class Plan(NamedTuple):
    """What to do about one slot."""

    retire: Sequence[Process]  # replaced, or no longer wanted
    recycle: Process | None  # replaced because it was due for recycling: nothing waits for its end
    start_at: float  # when to start a worker; math.inf: not now


class Rollout:
    """The generations of workers, and what is to be done so that every slot is served by the desired one."""

    def __init__(self, generation: int = 1, successor: bool = False) -> None:
        self.generation = generation  # the desired one
        self.proven = 0  # the newest generation of which a worker has been ready
        self.successor = successor  # a predecessor still leads: a worker that does not become ready ends the upgrade
        self._newest = generation  # the number of a generation that was given up is not used again

    def begin(self, slots: Collection[Slot]) -> int:
        """Begin a new generation. The back-off ends, as it was due to the old code."""
        self._newest += 1
        self.generation = self._newest
        for slot in slots:
            slot.failures = 0
            slot.next_attempt = 0.0
        return self.generation

    def complete(self, slots: Collection[Slot]) -> bool:
        """Whether every slot is served by a worker of the desired generation."""
        return all(any(process.generation >= self.generation for process in slot.serving) for slot in slots)

    def on_ready(self, process: Process) -> None:
        """A worker has become ready, which proves its generation."""
        self.proven = max(self.proven, process.generation)

    # Replacements.

    def plan(self, slot: Slot, processes: Collection[Process]) -> Plan:
        """What to do about `slot` now; `processes` are those of all slots."""
        staying = [process for process in slot.processes if not process.retiring]
        serving = max((process.generation for process in staying if process.ready and not process.recycle_reason), default=0)
        retire = [process for process in staying if self._superseded(process, serving)]
        recycle = next(
            (p for p in staying if p.recycle_reason and p.generation == serving and p not in retire),
            None,
        )
        if any(process.generation >= self.generation and not process.recycle_reason for process in staying):
            return Plan(retire, recycle, math.inf)
        # Workers that still serve are replaced one slot at a time, so that the first slot shows whether the others may follow.
        booting = any(not process.ready and not process.retiring for process in processes if process not in retire)
        return Plan(retire, recycle, math.inf if staying and booting else slot.next_attempt)

    def _superseded(self, process: Process, serving: int) -> bool:
        """Whether a newer generation serves in its slot, or it is a replacement that still boots and whose code is outdated."""
        return process.generation < serving or bool(serving and not process.ready and process.generation < self.generation)

    def choose_for_recycling(self, processes: Collection[Process], due: Callable[[Process], str]) -> Process | None:
        """The next worker to be recycled, of those that are `due`: one at a time, and none while another one boots.

        Its `recycle_reason` is set.
        """
        staying = [process for process in processes if not process.retiring]
        if any(process.recycle_reason or not process.ready for process in staying):
            return None
        for process in staying:
            process.recycle_reason = due(process)
            if process.recycle_reason:
                return process
        return None

    # Exits.

    def on_exit(self, exit: Exit, now: float) -> Verdict:
        """What follows from the exit of a worker."""
        process = exit.process
        if process.retiring:
            return Verdict.REPLACE
        if now - process.ready_since >= EARLY_EXIT:
            process.slot.failures = 0
            return Verdict.REPLACE
        if exit.by_others and process.ready:  # a kill from outside says nothing about the application
            return Verdict.REPLACE
        if not self.proven and exit.code == exits.LOAD_FAILED:
            return Verdict.LOAD_ERROR
        if 0 < self.proven < process.generation:
            self.generation = self.proven
            return Verdict.ROLL_BACK
        return self.on_failure(process.slot, now)

    def on_failure(self, slot: Slot, now: float) -> Verdict:
        """A worker has exited early, or could not be started: put off the next attempt, or give up."""
        slot.failures += 1
        slot.next_attempt = now + back_off(slot.failures)
        if self.successor or (not self.proven and slot.failures >= ATTEMPTS):
            return Verdict.GIVE_UP
        return Verdict.RETRY


def back_off(failures: int) -> float:
    """Seconds before the next attempt, after this number of early exits in a row."""
    return min(BACKOFF_FIRST * 2.0 ** min(failures - 2, 60), BACKOFF_LAST) if failures > 1 else 0.0
