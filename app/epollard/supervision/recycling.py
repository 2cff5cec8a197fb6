"""Which worker is worn out, and why. Only finds it; the supervisor has it replaced."""

from collections.abc import Collection
from typing import Final

from ..config.options import Config
from ..scoreboard import REQUESTS
from .slots import Process

# Seconds between two looks at a worker's memory: the kernel walks its page tables, a ms for some 100 MiB.
SAMPLE_EVERY: Final = 2.0
# So many looks in a row must find too much: one request that needs a lot for a moment is no leak.
SAMPLES: Final = 3


def next_worn(processes: Collection[Process], config: Config, now: float) -> Process | None:
    """The next worker that is to be replaced, with `worn` saying why: one at a time, and none while others start."""
    staying = [process for process in processes if not process.leaving]
    if any(process.worn or not process.ready for process in staying):
        return None
    for process in staying:
        process.worn = worn_out(process, config, now)
        if process.worn:
            return process
    return None


def worn_out(process: Process, config: Config, now: float) -> str:
    """What completes the sentence "worker 2 (pid 71) ...: it is replaced"; "" where there is nothing to say."""
    answered = process.record[REQUESTS]
    if config.max_requests and answered >= config.max_requests + process.lot % (config.max_requests_jitter + 1):
        return f"has answered {answered} requests"
    if config.max_worker_age and now - process.ready_since >= config.max_worker_age:
        return f"has served for {now - process.ready_since:.0f} s"
    if too_heavy(process, config, now):
        return f"uses {process.used >> 20} MiB of memory"
    return ""


def too_heavy(process: Process, config: Config, now: float) -> bool:
    """Whether it uses too much memory, and has for some time."""
    if config.max_worker_memory and now >= process.next_sample:
        process.next_sample = now + SAMPLE_EVERY
        process.used = memory(process.pid)
        process.heavy = process.heavy + 1 if process.used > config.max_worker_memory else 0
    return process.heavy >= SAMPLES


def memory(pid: int) -> int:
    """Bytes that a process uses, of what is shared its part (PSS, proc_pid_smaps(5)); 0 where we may not look."""
    try:
        with open(f"/proc/{pid}/smaps_rollup", "rb") as file:
            for line in file:
                if line.startswith(b"Pss:"):
                    return int(line.split()[1]) << 10
    except OSError:  # it has gone; or a kernel that tells nobody
        pass
    return 0
