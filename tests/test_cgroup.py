"""Trees of files as the kernel shows them, built in a directory; and the real one of this machine."""

import math
import os
from pathlib import Path

import pytest

from epollard import cgroup

V2 = "30 23 0:26 / /sys/fs/cgroup rw,nosuid shared:4 - cgroup2 cgroup2 rw,nsdelegate"
V1 = (
    "33 31 0:30 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu,cpuacct\n"
    "35 31 0:32 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory"
)
HYBRID = V1 + "\n41 31 0:38 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw"
# A v1 container that shares the cgroup namespace of its host: paths start at the host's root, but only our part is mounted.
V1_DOCKER = V1.replace(" / ", " /docker/c0ffee ")

MAX_V1 = str(2**63 - 4096)


def tree(tmp_path: Path, mounts: str, memberships: str, files: dict[str, str]) -> str:
    """A root directory with a /proc/self, and with these files under /sys/fs/cgroup."""
    files = {f"sys/fs/cgroup/{name}": text for name, text in files.items()}
    files |= {"proc/self/mountinfo": f"22 1 0:20 / /proc rw - proc proc rw\n{mounts}\n", "proc/self/cgroup": memberships}
    for name, text in files.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return str(tmp_path)


QUOTAS = [
    ("v2", V2, "0::/", {"cpu.max": "350000 100000\n"}, 3.5),
    ("v2 without a limit", V2, "0::/", {"cpu.max": "max 100000\n"}, None),
    ("v2, the root cgroup has no such file", V2, "0::/", {}, None),
    ("v2, the parent's limit is smaller", V2, "0::/a/b", {"a/b/cpu.max": "400000 100000", "a/cpu.max": "50000 100000"}, 0.5),
    ("v2, the child's limit is smaller", V2, "0::/a/b", {"a/b/cpu.max": "100000 50000", "a/cpu.max": "max 100000"}, 2.0),
    ("v2, a sibling's limit does not apply", V2, "0::/a", {"a/cpu.max": "max 100000", "b/cpu.max": "1000 100000"}, None),
    ("v2, above the namespace", V2, "0::/../x", {"cpu.max": "200000 100000", "../x/cpu.max": "1000 100000"}, 2.0),
    ("v1", V1, "4:cpu,cpuacct:/", {"cpu/cpu.cfs_quota_us": "150000", "cpu/cpu.cfs_period_us": "100000"}, 1.5),
    ("v1 without limit", V1, "4:cpu,cpuacct:/", {"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"}, None),
    (
        "v1, the parent's limit is smaller",
        V1,
        "4:cpu,cpuacct:/a/b",
        {
            "cpu/a/b/cpu.cfs_quota_us": "300000",
            "cpu/a/b/cpu.cfs_period_us": "100000",
            "cpu/a/cpu.cfs_quota_us": "20000",
            "cpu/a/cpu.cfs_period_us": "10000",
        },
        2.0,
    ),
    (
        "v1 in a container",
        V1_DOCKER,
        "4:cpu,cpuacct:/docker/c0ffee\n0::/docker/c0ffee",
        {"cpu/cpu.cfs_quota_us": "250000", "cpu/cpu.cfs_period_us": "100000"},
        2.5,
    ),
    (
        "v1 in a group of the container's own",
        V1_DOCKER,
        "4:cpu,cpuacct:/docker/c0ffee/web",
        {"cpu/web/cpu.cfs_quota_us": "100000", "cpu/web/cpu.cfs_period_us": "100000"},
        1.0,
    ),
    (
        "hybrid, the controller in v1",
        HYBRID,
        "4:cpu,cpuacct:/a\n1:name=systemd:/x\n0::/b",
        {"cpu/a/cpu.cfs_quota_us": "100000", "cpu/a/cpu.cfs_period_us": "50000", "unified/b/cpu.stat": ""},
        2.0,
    ),
    ("hybrid, the controller in v2", HYBRID, "1:name=systemd:/x\n0::/b", {"unified/b/cpu.max": "120000 100000"}, 1.2),
    ("nothing mounted", "", "0::/", {}, None),
    ("unreadable membership", V2, "nonsense", {"cpu.max": "x"}, None),
    ("digits of another script", V2, "0::/", {"cpu.max": "\u0663 100000"}, None),
    ("more fields than known", V2, "0::/", {"cpu.max": "150000 100000 7"}, 1.5),
    ("a huge number", V2, "0::/", {"cpu.max": "9" * 9999 + " 100000"}, None),
    ("an incomplete mount", "30 23 - cgroup2 cgroup2 rw", "0::/", {"cpu.max": "150000 100000"}, None),
]


@pytest.mark.parametrize(("mounts", "memberships", "files", "quota"), [pytest.param(*row, id=name) for name, *row in QUOTAS])
def test_cpu_quota(mounts: str, memberships: str, files: dict[str, str], quota: float | None, tmp_path: Path):
    """The smallest quota of our cgroup and its ancestors, in either version and in both at once."""
    assert cgroup.cpu_quota(tree(tmp_path, mounts, memberships, files)) == quota


MEMORY = [
    ("v2", V2, "0::/", {"memory.max": "1073741824\n"}, 2**30),
    ("v2 without a limit", V2, "0::/a", {"a/memory.max": "max"}, None),
    ("v2, the parent's limit is smaller", V2, "0::/a/b", {"a/b/memory.max": "2000", "a/memory.max": "1000"}, 1000),
    ("v1", V1, "7:memory:/a", {"memory/a/memory.limit_in_bytes": "536870912"}, 2**29),
    ("v1 without a limit", V1, "7:memory:/a", {"memory/a/memory.limit_in_bytes": MAX_V1}, None),
    (
        "v1, the parent's limit is smaller",
        V1,
        "7:memory:/a",
        {"memory/a/memory.limit_in_bytes": MAX_V1, "memory/memory.limit_in_bytes": "77"},
        77,
    ),
    ("v1 in a container", V1_DOCKER, "7:memory:/docker/c0ffee", {"memory/memory.limit_in_bytes": "9999"}, 9999),
    ("a path with a colon", V2, "0::/a:b", {"a:b/memory.max": "5"}, 5),
]


@pytest.mark.parametrize(("mounts", "memberships", "files", "limit"), [pytest.param(*row, id=name) for name, *row in MEMORY])
def test_memory_limit(mounts: str, memberships: str, files: dict[str, str], limit: int | None, tmp_path: Path):
    """The smallest limit in bytes; the huge number of version 1 is no limit."""
    assert cgroup.memory_limit(tree(tmp_path, mounts, memberships, files)) == limit


KILLS = [
    ("v2", V2, "0::/a", {"a/memory.events": "low 0\noom 3\noom_kill 2\noom_group_kill 5\n", "memory.events": "oom_kill 7"}, 2),
    ("v1", V1, "7:memory:/a", {"memory/a/memory.oom_control": "oom_kill_disable 0\nunder_oom 0\noom_kill 4\n"}, 4),
    ("v1 before Linux 4.13", V1, "7:memory:/a", {"memory/a/memory.oom_control": "oom_kill_disable 0\nunder_oom 0\n"}, None),
    ("hybrid", HYBRID, "7:memory:/a\n0::/", {"memory/a/memory.oom_control": "oom_kill 1\n"}, 1),
    ("no cgroup", "", "", {}, None),
]


@pytest.mark.parametrize(("mounts", "memberships", "files", "kills"), [pytest.param(*row, id=name) for name, *row in KILLS])
def test_oom_kills(mounts: str, memberships: str, files: dict[str, str], kills: int | None, tmp_path: Path):
    """The kernel's count of kills in our own cgroup, not in its ancestors; None if there is no count."""
    assert cgroup.oom_kills(tree(tmp_path, mounts, memberships, files)) == kills


SIZES = [
    ("350000 100000", str(2**30), 16, 4, "4 workers: quota 3.5 -> 4, affinity 16, memory 8"),
    ("200000 100000", "max", 16, 2, "2 workers: quota 2 -> 2, affinity 16, memory unlimited"),
    ("max 100000", "max", 3, 3, "3 workers: quota none, affinity 3, memory unlimited"),
    ("max 100000", str(300 * 2**20), 8, 2, "2 workers: quota none, affinity 8, memory 2"),
    ("10000 100000", "max", 8, 1, "1 worker: quota 0.1 -> 1, affinity 8, memory unlimited"),
    ("max 100000", str(2**20), 8, 1, "1 worker: quota none, affinity 8, memory 1"),
]


@pytest.mark.parametrize(("quota", "memory", "affinity", "workers", "reason"), SIZES)
def test_size_is_the_smallest_of_three_numbers(
    quota: str, memory: str, affinity: int, workers: int, reason: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """`auto` is the quota rounded up, the affinity or the memory, whichever is smallest, but at least 1."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(affinity)))
    assert cgroup.size(tree(tmp_path, V2, "0::/", {"cpu.max": quota, "memory.max": memory})) == (workers, reason)


def test_the_real_one():
    """On the machine that runs this test, the size fits its affinity and quota."""
    workers, reason = cgroup.size()
    assert 1 <= workers <= len(os.sched_getaffinity(0))
    assert workers <= math.ceil(cgroup.cpu_quota() or workers)
    assert f"affinity {len(os.sched_getaffinity(0))}, " in reason


STAT = "anon 100\nfile 90\ninactive_file {}\nactive_file 5\n"
HEADROOMS = [
    ("nothing is known", V2, "0::/", {}, None),
    ("no limit", V2, "0::/", {"memory.max": "max", "memory.current": "5000"}, None),
    ("a tenth is kept free", V2, "0::/", {"memory.max": "10000", "memory.current": "5000"}, 4000),
    ("too much is used", V2, "0::/", {"memory.max": "10000", "memory.current": "9500"}, -500),
    (
        "inactive page cache is free",
        V2,
        "0::/",
        {"memory.max": "10000", "memory.current": "9500", "memory.stat": STAT.format(3000)},
        2500,
    ),
    (
        "the parent has less left",
        V2,
        "0::/a",
        {"a/memory.max": "9000", "a/memory.current": "100", "memory.max": "10000", "memory.current": "8000"},
        1000,
    ),
    (
        "v1",
        V1,
        "7:memory:/a",
        {
            "memory/a/memory.limit_in_bytes": "20000",
            "memory/a/memory.usage_in_bytes": "10000",
            "memory/a/memory.stat": "inactive_file 7\ntotal_inactive_file 1000\n",
        },
        9000,
    ),
    (
        "v1 without a limit",
        V1,
        "7:memory:/",
        {"memory/memory.limit_in_bytes": MAX_V1, "memory/memory.usage_in_bytes": "1"},
        None,
    ),
]


@pytest.mark.parametrize(
    ("mounts", "memberships", "files", "headroom"), [pytest.param(*row, id=name) for name, *row in HEADROOMS]
)
def test_memory_that_is_left(mounts: str, memberships: str, files: dict[str, str], headroom: int | None, tmp_path: Path):
    """The cgroup with the least left counts: a tenth of its limit is kept free, the inactive page cache counts as free."""
    assert cgroup.memory_headroom(tree(tmp_path, mounts, memberships, files)) == headroom


@pytest.mark.parametrize(("free", "headroom"), [(500, 400 << 10), (50, -50 << 10)])
def test_the_machine_is_a_limit_too(free: int, headroom: int, tmp_path: Path):
    """Without a limit of a cgroup, or with a wider one, the machine's available memory counts (proc_meminfo(5), in KiB)."""
    root = tree(tmp_path, V2, "0::/", {"memory.max": str(2**40), "memory.current": "0"})
    (tmp_path / "proc" / "meminfo").write_text(f"MemTotal:  1000 kB\nMemFree:  1 kB\nMemAvailable:  {free} kB\n")
    assert cgroup.memory_headroom(root) == headroom
