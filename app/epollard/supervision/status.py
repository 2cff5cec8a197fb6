"""What the supervisor tells of itself: whether it is ready, why not, and its figures. Facts in, text out; decides nothing."""

import json
import math
from collections.abc import Iterator, Sequence
from typing import Any, Final, NamedTuple

from ..scoreboard import ABORTED, ACCEPTED, ACTIVE, BUSY, HEARTBEAT, REJECTED, REQUESTS, STATE, STATE_NAMES
from .slots import Process, Slot

# Seconds without a sign of life, after which what a worker last said of itself means nothing: it is as busy as can be.
SILENT: Final = 3.0


class Facts(NamedTuple):
    """The supervisor's state at one moment."""

    now: float  # time.monotonic()
    going: str  # "draining", "stopping", or "" where it stays
    wanted: int  # workers
    known: int  # workers that have once been ready all together; 0 before that
    generation: int
    slots: Sequence[Slot]
    processes: Sequence[Process]  # those of the slots, and what drains of slots that are gone
    past: Sequence[int]  # of workers that are gone: the sums of their records, by column


def enough(facts: Facts) -> int:
    """How many workers must be ready: half of them. Those that a bigger number has just asked for are not missed yet."""
    return math.ceil(min(facts.known or facts.wanted, facts.wanted) / 2)


def readiness(facts: Facts) -> tuple[bool, dict[str, Any]]:
    """Whether new clients are welcome, and what JSON has to say of it."""
    slots = [_slot(facts, slot) for slot in facts.slots]
    ready = sum(slot["state"] == "ready" for slot in slots)
    reasons = []
    if facts.going:
        reasons.append(f"the server is {facts.going}")
    if ready < enough(facts):
        reasons.append(f"{ready} of {facts.wanted} workers ready, {enough(facts)} needed")
        reasons += [f"worker {slot['slot']} is {slot['state']}" for slot in slots if slot["state"] != "ready"]
    told = {
        "ready": not reasons,
        "reasons": reasons,
        "workers": {"wanted": facts.wanted, "ready": ready, "needed": enough(facts)},
        "generation": facts.generation,
        "slots": slots,
    }
    return not reasons, told


def _slot(facts: Facts, slot: Slot) -> dict[str, Any]:
    """What has become of the slot: the worker that serves, else the one that is on its way."""
    if slot.serving:
        process = slot.serving[-1]
        state = "stuck" if slot.stuck else "ready"
        seconds = facts.now - (slot.stuck_at if slot.stuck else process.ready_since)
    elif booting := [process for process in slot.processes if not process.leaving]:
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
    """How busy the workers are that serve, 0 to 1, on an average; 0 where none does. Who keeps silent is wholly busy."""
    shares = [
        1.0 if facts.now - process.record[HEARTBEAT] / 1e9 > SILENT else process.record[BUSY] / 1000
        for slot in facts.slots
        for process in slot.serving
    ]
    return sum(shares) / len(shares) if shares else 0.0


def metrics(facts: Facts) -> str:
    """Prometheus text format, version 0.0.4."""
    return "".join(_metrics(facts))


def _metrics(facts: Facts) -> Iterator[str]:
    processes = facts.processes
    yield from _head("workers", "gauge", "Worker processes by state.")
    for state in range(1, len(STATE_NAMES)):
        count = sum(process.record[STATE] == state for process in processes)
        yield f'epollard_workers{{state="{STATE_NAMES[state]}"}} {count}\n'
    yield from _head("workers_wanted", "gauge", "Worker processes that there shall be.")
    yield f"epollard_workers_wanted {facts.wanted}\n"
    yield from _head("ready", "gauge", "1 where new clients are welcome, as /readyz has it.")
    yield f"epollard_ready {int(readiness(facts)[0])}\n"
    yield from _head("saturation", "gauge", "How busy the ready workers are: 0 is idle, 1 is all that they can.")
    yield f"epollard_saturation {saturation(facts):.4f}\n"
    yield from _head("connections", "gauge", "Connections that are open.")
    yield f"epollard_connections {sum(process.record[ACTIVE] for process in processes)}\n"
    for name, column, text in (
        ("connections_accepted", ACCEPTED, "Connections that were accepted."),
        ("requests", REQUESTS, "Requests that the application has answered."),
        ("requests_rejected", REJECTED, "Requests that the server has refused."),
        ("requests_aborted", ABORTED, "Requests whose answer could not be delivered whole."),
    ):
        yield from _head(f"{name}_total", "counter", text)
        yield f"epollard_{name}_total {facts.past[column] + sum(process.record[column] for process in processes)}\n"


def _head(name: str, kind: str, text: str) -> Iterator[str]:
    yield f"# HELP epollard_{name} {text}\n"
    yield f"# TYPE epollard_{name} {kind}\n"


def as_json(value: object) -> str:
    """One line, for a person with curl as much as for a program."""
    return json.dumps(value) + "\n"
