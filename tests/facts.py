"""The facts of a supervisor, built from the states of its slots, for tests."""

from collections.abc import Sequence

from epollard.scoreboard import HEARTBEAT, READY, STATE, WIDTH
from epollard.supervision.slots import Process, Slot
from epollard.supervision.status import Facts

NOW = 1000.0


def slot(index: int, kind: str) -> Slot:
    """A slot in one of its possible states."""
    made = Slot(index, [])
    if kind == "backing off":
        made.failures, made.next_attempt = 3, NOW + 2
    elif kind != "empty":
        record = memoryview(bytearray(WIDTH * 8)).cast("q")
        record[HEARTBEAT] = int((NOW - 0.5) * 1e9)
        process = Process(100 + index, made, 1, record, -1, None, NOW - 60)  # type: ignore[arg-type]  # it has no channel
        if kind != "booting":
            process.ready_since = NOW - 50
            record[STATE] = READY
        process.retiring = kind == "draining"
        if kind == "stuck":
            made.stuck_at = NOW - 1
        made.processes.append(process)
    return made


def facts(*kinds: str, desired: int = 0, known: int = 0, ending: str = "", past: Sequence[int] = ()) -> Facts:
    """The facts of a supervisor whose slots are in these states."""
    slots = [slot(index, kind) for index, kind in enumerate(kinds)]
    processes = [process for made in slots for process in made.processes]
    return Facts(NOW, ending, desired or len(kinds), known, 1, slots, processes, past or [0] * WIDTH)
