"""What each worker is doing, in one anonymous shared mapping. No file, no lock: each field has one writer.

A record is a row of 64-bit integers. The worker that owns a record writes it, and the supervisor reads all of them. An aligned
64-bit store is one instruction, so a reader sees either the old number or the new one, never half of each.
"""

import mmap
import socket
from typing import Final, NamedTuple

# The columns of a record.
STATE: Final = 0
HEARTBEAT: Final = 1  # time.monotonic_ns() when the worker last showed a sign of life
ACCEPTED: Final = 2  # connections accepted
ACTIVE: Final = 3  # connections open now
REQUESTS: Final = 4  # requests answered by the application
REJECTED: Final = 5  # requests refused by the server (4xx and 5xx of its own)
ABORTED: Final = 6  # requests whose response could not be sent completely
BUSY: Final = 7  # thousandths of the last second that it was busy
SHARED: Final = 8  # 1 while a predecessor has the same listeners (upgrade.py); written by the supervisor
STAYS: Final = 9  # 1 if siblings keep serving when this worker exits; written by the supervisor
WIDTH: Final = 16  # two cache lines, to which no other worker writes

# The states of a worker.
FREE: Final = 0
STARTING: Final = 1
READY: Final = 2
DRAINING: Final = 3
STATE_NAMES: Final = ("free", "starting", "ready", "draining")


class WorkerEnds(NamedTuple):
    """All that connects a worker with its supervisor: the worker's ends."""

    record: memoryview  # its record on the scoreboard
    lifeline: int  # a pipe whose end-of-file means that the supervisor is gone
    doorbell: int  # an eventfd that wakes the supervisor, which then reads the scoreboard
    report: int  # a pipe for the reason why the worker cannot serve; closed once it is ready
    channel: socket.socket  # over which it is lent listeners of its siblings


class Scoreboard:
    """A fixed number of records, shared with all processes that are forked later."""

    def __init__(self, capacity: int) -> None:
        self._memory = mmap.mmap(-1, capacity * WIDTH * 8)
        self._cells = memoryview(self._memory).cast("q")
        self.capacity = capacity

    def record(self, index: int) -> memoryview:
        """Record number `index`, to be read and written by column: `record[STATE] = READY`."""
        return self._cells[index * WIDTH : (index + 1) * WIDTH]

    def claim(self) -> memoryview:
        """A free record, cleared and marked as starting. `LookupError` if all are taken."""
        for index in range(self.capacity):
            record = self.record(index)
            if record[STATE] == FREE:
                record[:] = memoryview(bytes(WIDTH * 8)).cast("q")
                record[STATE] = STARTING
                return record
        raise LookupError(f"all {self.capacity} records of the scoreboard are taken")
