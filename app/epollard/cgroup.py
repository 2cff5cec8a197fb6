"""The container's limits of CPU and memory, and its count of kills, as the kernel reports them. Only reads, and never raises.

A machine may have cgroup v1, v2, or both at once with the controllers divided between them. So every hierarchy that may hold a
limit is read, from our own cgroup up to the mount point, and the smallest limit counts: a child's may be larger than its
parent's, but the kernel enforces both. See cgroups(7), the kernel's admin-guide/cgroup-v2.rst and cgroup-v1/memory.rst.
"""

import math
import os
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Final, NamedTuple

# Expected size of a worker: a Flask or Django process with its libraries and some data takes between 50 and 110 MiB.
MEMORY_PER_WORKER: Final = 128 * 2**20

# The share of a limit that is kept free when workers are added, so that the existing ones can grow.
MEMORY_RESERVE: Final = 0.1
_V1_MEMORY: Final = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")

# Version 1 has no way to write "no limit": it shows the largest number of whole pages, a little under 2**63.
_UNLIMITED: Final = 2**62


class Sizing(NamedTuple):
    """The number of workers that fit, and the reason, such as `4 workers: quota 3.5 -> 4, affinity 16, memory 8`."""

    workers: int
    reason: str


def size(root: str = "/") -> Sizing:
    """The number of workers that fit into the limits, at least one. `root` is the directory that holds `/proc` and `/sys`."""
    quota = cpu_quota(root)
    memory = memory_limit(root)
    affinity = len(os.sched_getaffinity(0))
    terms = [affinity]
    words = ["quota none", f"affinity {affinity}", "memory unlimited"]
    if quota is not None:
        terms.append(math.ceil(quota))
        words[0] = f"quota {quota:.4g} -> {math.ceil(quota)}"
    if memory is not None:
        terms.append(max(1, memory // MEMORY_PER_WORKER))
        words[2] = f"memory {terms[-1]}"
    workers = min(terms)
    return Sizing(workers, f"{workers} worker{'s' * (workers != 1)}: {', '.join(words)}")


def cpu_quota(root: str = "/") -> float | None:
    """How many CPUs' worth of time may be used, above 0; `None` if there is no limit."""
    quotas = []
    for directory in _directories("", root):
        quotas.append(_ratio(_words(directory / "cpu.max")))
    for directory in _directories("cpu", root):
        quotas.append(_ratio(_words(directory / "cpu.cfs_quota_us")[:1] + _words(directory / "cpu.cfs_period_us")))
    return min((quota for quota in quotas if quota is not None), default=None)


def memory_limit(root: str = "/") -> int | None:
    """How many bytes may be used; `None` if there is no limit."""
    files = [directory / "memory.max" for directory in _directories("", root)]
    files += [directory / "memory.limit_in_bytes" for directory in _directories("memory", root)]
    limits = [limit for file in files for limit in map(_number, _words(file)) if limit is not None and limit < _UNLIMITED]
    return min(limits, default=None)


def memory_headroom(root: str = "/") -> int | None:
    """How many more bytes may be used without touching the reserve; negative if it is touched; `None` if nothing is known.

    The smallest value of all cgroups that have a limit, and of the machine. The page cache's inactive part counts as free.
    """
    headrooms = []
    for controller, names in (("", ("memory.max", "memory.current", "inactive_file")), ("memory", _V1_MEMORY)):
        for directory in _directories(controller, root):
            limit, used = (_number(*_words(directory / name)[:1] or [""]) for name in names[:2])
            if limit is not None and limit < _UNLIMITED and used is not None:
                cache = _number(_pairs(directory / "memory.stat").get(names[2], "")) or 0
                headrooms.append(int(limit * (1 - MEMORY_RESERVE)) - used + cache)
    machine = _pairs(Path(root, "proc/meminfo"))
    total, free = (_number(machine.get(name, "")) for name in ("MemTotal:", "MemAvailable:"))
    if total is not None and free is not None:
        headrooms.append((free - int(total * MEMORY_RESERVE)) << 10)
    return min(headrooms, default=None)


def oom_kills(root: str = "/") -> int | None:
    """How many processes of this cgroup the kernel has killed for lack of memory; `None` if it does not report this.

    The kernel counts a kill in the victim's cgroup, even if the limit was an ancestor's, so only our own cgroup is read.
    """
    files = [directory / "memory.events" for directory in _directories("", root)][:1]
    files += [directory / "memory.oom_control" for directory in _directories("memory", root)][:1]
    counts = [_number(_pairs(file).get("oom_kill", "")) for file in files]
    return max((count for count in counts if count is not None), default=None)


def _directories(controller: str, root: str) -> Iterator[Path]:
    """The directories of our own cgroup and its ancestors, up to the mount point, for one v1 controller ("" is v2)."""
    own = _path(controller, root)
    mount = _mount(controller, root)
    if own is None or mount is None:
        return
    visible, point = mount
    # In a container without a cgroup namespace of its own, the path starts at the host's root, but only our part of the
    # hierarchy is mounted. If the path is outside of that part (or above the namespace: `/..`), only the mount point is left.
    inside = own.relative_to(visible) if own.is_relative_to(visible) and ".." not in own.parts else PurePosixPath()
    for part in (inside, *inside.parents):
        yield point / part


def _path(controller: str, root: str) -> PurePosixPath | None:
    for line in _lines(Path(root, "proc/self/cgroup")):
        _, _, named = line.partition(":")
        controllers, _, path = named.partition(":")
        if controller in controllers.split(","):
            return PurePosixPath(path)
    return None


def _mount(controller: str, root: str) -> tuple[PurePosixPath, Path] | None:
    """Which part of the hierarchy is mounted, and where: proc_pid_mountinfo(5), fields 4 and 5."""
    for line in _lines(Path(root, "proc/self/mountinfo")):
        mount, _, source = line.partition(" - ")
        kind, _, rest = source.partition(" ")
        options = rest.rpartition(" ")[2].split(",")
        fields = mount.split()
        if len(fields) > 4 and ((kind == "cgroup" and controller in options) or (kind == "cgroup2" and not controller)):
            return PurePosixPath(fields[3]), Path(root, fields[4].lstrip("/"))
    return None


def _ratio(words: list[str]) -> float | None:
    """The first word, a quota, divided by the second, a period; `None` for the quotas "max" and -1."""
    numerator, denominator = map(_number, [*words, "", ""][:2])
    return numerator / denominator if numerator and denominator else None


def _number(text: str) -> int | None:
    return int(text) if text.isascii() and text.isdigit() and len(text) < 20 else None


def _words(file: Path) -> list[str]:
    return [word for line in _lines(file) for word in line.split()]


def _pairs(file: Path) -> dict[str, str]:
    """The first two words of each line: a name and its value."""
    return {words[0]: words[1] for words in map(str.split, _lines(file)) if len(words) > 1}


def _lines(file: Path) -> list[str]:
    try:
        return file.read_text("utf-8", "replace").splitlines()
    except OSError:
        return []
