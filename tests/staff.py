"""Worker processes that exist only in a pool's books, and a configuration made of command-line words."""

import os
import socket

from epollard.config import sources
from epollard.config.options import Config
from epollard.scoreboard import HEARTBEAT, READY, STATE
from epollard.supervision.pool import Pool
from epollard.supervision.slots import Process, Slot

PID = 2**22 + 1  # beyond what the kernel gives (proc_sys_kernel(5), pid_max)


def settings(*words: str) -> Config:
    """The configuration that these words of a command line make."""
    return sources.load(sources.parse_arguments(words).given, {}).config


def hire(pool: Pool, slot: Slot, now: float, *, pid: int = PID, generation: int = 1, state: int = READY) -> Process:
    """A worker in that slot, started `now`, as the pool would know it."""
    record = pool._scoreboard.claim()
    record[STATE] = state
    record[HEARTBEAT] = int(now * 1e9)
    channel = socket.socket()
    channel.close()
    found = Process(pid, slot, generation, record, -1, channel, now)
    if state >= READY:
        found.ready_since = now
    pool.processes[pid] = found
    slot.processes.append(found)
    return found


def abandon(pool: Pool) -> None:
    """Close the descriptors of a pool that has no child."""
    for fd in (pool._doorbell, pool._lifeline, pool._lifeline_writer):
        os.close(fd)
