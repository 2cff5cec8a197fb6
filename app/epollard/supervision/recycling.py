"""Which worker is due for recycling, and why: too many requests, too old, too much memory. Decides nothing else."""

from typing import Final

from ..config.options import Config
from ..scoreboard import REQUESTS
from .slots import Process

# Seconds between two samples of a worker's memory: the kernel walks its page tables, which takes 1 ms per 100 MiB or so.
SAMPLE_INTERVAL: Final = 2.0
# Samples in a row that must be over the limit: one request that needs a lot of memory for a moment is no leak.
SAMPLES: Final = 3


def due_for_recycling(process: Process, config: Config, now: float) -> str:
    """Why a worker is to be replaced, to complete the sentence "worker 2 (pid 71) ..."; "" if it is not."""
    answered = process.record[REQUESTS]
    if config.max_requests and answered >= config.max_requests + process.jitter % (config.max_requests_jitter + 1):
        return f"has answered {answered} requests"
    if config.max_worker_age and now - process.ready_since >= config.max_worker_age:
        return f"has served for {now - process.ready_since:.0f} s"
    if over_memory_limit(process, config, now):
        return f"uses {process.memory >> 20} MiB of memory"
    return ""


def over_memory_limit(process: Process, config: Config, now: float) -> bool:
    """Whether the last few samples of its memory were over the limit. Takes a sample if one is due."""
    if config.max_worker_memory and now >= process.next_sample:
        process.next_sample = now + SAMPLE_INTERVAL
        process.memory = memory(process.pid)
        process.samples_over = process.samples_over + 1 if process.memory > config.max_worker_memory else 0
    return process.samples_over >= SAMPLES


def memory(pid: int) -> int:
    """Bytes that a process uses, including its part of shared pages (PSS, proc_pid_smaps(5)); 0 if the kernel does not say."""
    try:
        with open(f"/proc/{pid}/smaps_rollup", "rb") as file:
            for line in file:
                if line.startswith(b"Pss:"):
                    return int(line.split()[1]) << 10
    except OSError:  # it has exited, or this kernel does not let us read it
        pass
    return 0
