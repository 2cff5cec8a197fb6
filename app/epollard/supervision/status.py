"""The supervisor's state at one moment, and what follows from it: whether it is ready, why not, how busy it is. Pure."""

import math
from collections.abc import Sequence
from typing import Any, Final, NamedTuple

from ..scoreboard import BUSY, HEARTBEAT
from .slots import Process, Slot

# Seconds without a heartbeat, after which a worker's record is no longer trusted: it counts as wholly busy.
SILENT: Final = 3.0


class Facts(NamedTuple):
    """The supervisor's state at one moment."""

    now: float  # time.monotonic()
    ending: str  # "draining", "stopping", or "" if it stays
    desired: int  # workers
    known: int  # workers that have once been ready all together; 0 before that
    generation: int
    slots: Sequence[Slot]
    processes: Sequence[Process]  # those of the slots, and those of former slots that still drain
    past: Sequence[int]  # the sums of the records of workers that are gone, by column


def enough(facts: Facts) -> int:
    """How many workers must be ready: half of them, not counting those that were only just asked for."""
    return math.ceil(min(facts.known or facts.desired, facts.desired) / 2)


def readiness(facts: Facts) -> tuple[bool, dict[str, Any]]:
    """Whether new clients are welcome, and the report of it, for JSON."""
    slots = [_slot(facts, slot) for slot in facts.slots]
    ready = sum(slot["state"] == "ready" for slot in slots)
    reasons = []
    if facts.ending:
        reasons.append(f"the server is {facts.ending}")
    if ready < enough(facts):
        reasons.append(f"{ready} of {facts.desired} workers ready, {enough(facts)} needed")
        reasons += [f"worker {slot['slot']} is {slot['state']}" for slot in slots if slot["state"] != "ready"]
    report = {
        "ready": not reasons,
        "reasons": reasons,
        "workers": {"wanted": facts.desired, "ready": ready, "needed": enough(facts)},
        "generation": facts.generation,
        "slots": slots,
    }
    return not reasons, report


def _slot(facts: Facts, slot: Slot) -> dict[str, Any]:
    """The slot's state: that of the worker that serves, else of the one that boots."""
    if slot.serving:
        process = slot.serving[-1]
        state = "stuck" if slot.stuck else "ready"
        seconds = facts.now - (slot.stuck_at if slot.stuck else process.ready_since)
    elif booting := [process for process in slot.processes if not process.retiring]:
        process, state = booting[-1], "booting"
        seconds = facts.now - process.started
    elif slot.next_attempt > facts.now:
        return {"slot": slot.index, "state": "backing off", "failures": slot.failures, "next": slot.next_attempt - facts.now}
    else:
        return {"slot": slot.index, "state": "without a worker"}
    return {
        "slot": slot.index,
        "state": state,
        "seconds": round(max(seconds, 0), 3),
        "pid": process.pid,
        "generation": process.generation,
    }


def saturation(facts: Facts) -> float:
    """How busy the serving workers are on average, from 0 to 1; 0 if there are none."""
    shares = [
        1.0 if facts.now - process.record[HEARTBEAT] / 1e9 > SILENT else process.record[BUSY] / 1000
        for slot in facts.slots
        for process in slot.serving
    ]
    return sum(shares) / len(shares) if shares else 0.0
