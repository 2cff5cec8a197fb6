"""Shared by the measuring tools: start one server, load it, read its CPU time. Never ends a process that it did not start.

Every load is bounded in time and count and stays on loopback, in a network namespace of its own if the kernel allows one.
The server runs on processor 0 and the client on processor 1 if there are two. On one processor the figures still show the cost
of a request, but not how many requests a second are possible.
"""

import argparse
import ctypes
import fcntl
import json
import os
import platform
import re
import shutil
import signal
import socket
import statistics
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from types import TracebackType
from typing import Any, Self

LOADTESTS = Path(__file__).resolve().parent
REPOSITORY = LOADTESTS.parent
RESULTS = REPOSITORY / "results"
SERVER_CPU = 0
CLIENT_CPU = 1 if (os.cpu_count() or 1) > 1 else 0
START_TIMEOUT = 20  # seconds until a server must respond

_libc = ctypes.CDLL(None, use_errno=True)
_CLONE_NEWUSER, _CLONE_NEWNET = 0x10000000, 0x40000000  # linux/sched.h
_PR_SET_PDEATHSIG = 1  # linux/prctl.h
_SIOCSIFFLAGS, _IFF_UP = 0x8914, 1  # netdevice(7)


def own_network() -> bool:
    """Move this process, and all that it will start, into a network with loopback only. Returns whether that was allowed.

    There the kernel's counters are ours alone, and no firewall tracks connections. A firewall's table would soon be full of
    closed ones, and it would then drop handshakes for seconds, as if the server were stuck.
    """
    user, group = os.getuid(), os.getgid()
    if _libc.unshare(_CLONE_NEWNET):
        if _libc.unshare(_CLONE_NEWUSER | _CLONE_NEWNET):
            why = os.strerror(ctypes.get_errno())
            print(f"no network namespace ({why}): the connections of other programs are counted too", file=sys.stderr)
            return False
        # A user namespace allows it; in it, keep our own user and group.
        Path("/proc/self/setgroups").write_text("deny")
        Path("/proc/self/uid_map").write_text(f"{user} {user} 1")
        Path("/proc/self/gid_map").write_text(f"{group} {group} 1")
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
        fcntl.ioctl(any_socket, _SIOCSIFFLAGS, struct.pack("16sH22x", b"lo", _IFF_UP))
    return True


def cpu_seconds(pid: int) -> float:
    """User and system time of a process, including ended threads. `clock_getcpuclockid(3)` counts nanoseconds, not ticks."""
    clock = ctypes.c_int()
    if error := _libc.clock_getcpuclockid(pid, ctypes.byref(clock)):
        raise ProcessLookupError(error, os.strerror(error))
    return time.clock_gettime(clock.value)


def tree(root: int) -> list[int]:
    """`root` and all its present descendants."""
    parents: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                stat = (entry / "stat").read_text()
            except OSError:
                continue  # it has just ended
            # The name in parentheses may hold spaces and parentheses: count from the last one.
            parents.setdefault(int(stat.rpartition(")")[2].split()[1]), []).append(int(entry.name))
    found = [root]
    for pid in found:
        found += parents.get(pid, ())
    return found


def tree_cpu_seconds(root: int) -> float:
    total = 0.0
    for pid in tree(root):
        try:
            total += cpu_seconds(pid)
        except OSError:
            pass  # it has ended since it was listed
    return total


def memory_bytes(pid: int) -> dict[str, int]:
    """`Rss` and `Pss` of a process in bytes, from `proc_pid_smaps(5)`. Pss counts a page that n processes share as one n-th."""
    rollup = Path(f"/proc/{pid}/smaps_rollup").read_text()
    found = re.findall(r"^(Rss|Pss): +(\d+) kB$", rollup, re.MULTILINE)
    return {name: int(kilobytes) * 1024 for name, kilobytes in found}


def end_with_us() -> None:
    """In a child, before its program begins: have the kernel send it TERM when we end, for whatever reason (prctl(2))."""
    _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def get(port: int, path: str = "/", timeout: float = 5.0) -> bytes:
    """The whole response to one HTTP/1.0 request, head and body."""
    with socket.create_connection(("127.0.0.1", port), timeout=timeout) as connection:
        connection.sendall(f"GET {path} HTTP/1.0\r\nHost: 127.0.0.1:{port}\r\n\r\n".encode())
        response = bytearray()
        while chunk := connection.recv(65536):
            response += chunk
    return bytes(response)


class Server:
    """One server under test, as a context manager: it responds at the start, and ends with all that it has started."""

    def __init__(
        self,
        argv: Sequence[str],
        port: int,
        *,
        env: Mapping[str, str] | None = None,
        cwd: Path | None = None,
        cpu: int | None = SERVER_CPU,  # None: any processor
    ) -> None:
        self.argv = [*(() if cpu is None else ("taskset", "-c", str(cpu))), *argv]
        self.port = port
        self._env = {**os.environ, **(env or {})}
        self._cwd = cwd
        self._output = tempfile.TemporaryFile()  # noqa: SIM115 - closed by __exit__

    def __enter__(self) -> Self:
        self._process = subprocess.Popen(
            self.argv,
            env=self._env,
            cwd=self._cwd,
            stdin=subprocess.DEVNULL,
            stdout=self._output,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # a group of its own, so that its descendants can be ended with it
            preexec_fn=end_with_us,
        )
        deadline = time.monotonic() + START_TIMEOUT
        try:
            while True:
                if self._process.poll() is not None:
                    raise RuntimeError(f"exited with {self._process.returncode} before it responded: {self.output()}")
                try:
                    if b" 200 " in get(self.port, timeout=2).partition(b"\r\n")[0]:
                        return self
                except OSError:
                    pass
                if time.monotonic() > deadline:
                    raise RuntimeError(f"did not respond within {START_TIMEOUT} s: {self.output()}")
                time.sleep(0.02)
        except BaseException:
            self._end()
            raise

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._end()

    @property
    def pid(self) -> int:
        return self._process.pid

    def output(self) -> str:
        """The end of its output, 4,000 bytes at most."""
        size = os.fstat(self._output.fileno()).st_size
        return os.pread(self._output.fileno(), 4000, max(0, size - 4000)).decode(errors="replace").strip()

    def cpu(self) -> float:
        """CPU seconds of all its processes so far."""
        return tree_cpu_seconds(self.pid)

    def workers(self) -> list[int]:
        """The processes without children: those that serve."""
        pids = tree(self.pid)
        return [pid for pid in pids if len(tree(pid)) == 1]

    def _end(self) -> None:
        # By group, not by tree: a descendant whose parent has ended is no longer found below us. No other process can have the
        # group's number as long as our child has not been waited for.
        if self._process.poll() is None:
            self._process.terminate()
            try:
                self._process.wait(5)
            except subprocess.TimeoutExpired:
                pass
        try:
            os.killpg(self._process.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
        self._process.wait()
        self._output.close()


def epollard(
    python: str, port: int, app: str | None, *options: str, app_directory: Path | None = None, cpu: int | None = SERVER_CPU
) -> Server:
    """epollard of this checkout with one worker and no access log. `options` override these."""
    path = os.pathsep.join(map(str, filter(None, [REPOSITORY / "app", app_directory])))
    argv = [python, "-m", "epollard", "--bind", f"127.0.0.1:{port}", "--workers", "1", "--access-log", "off"]
    argv += ["--log-level", "warning", *options]
    return Server([*argv, *([app] if app else [])], port, env={"PYTHONPATH": path}, cwd=app_directory or LOADTESTS, cpu=cpu)


@dataclass
class Load:
    """What a client measured, and the CPU time that the server spent meanwhile. Times are in seconds."""

    requests: int
    errors: int
    seconds: float
    p50: float
    p99: float
    slowest: float
    cpu: float = 0.0

    @property
    def rate(self) -> float:
        """Requests a second."""
        return self.requests / self.seconds if self.seconds else 0.0

    @property
    def cpu_us(self) -> float:
        """CPU microseconds a request."""
        return self.cpu / self.requests * 1e6 if self.requests else float("nan")

    @property
    def busy(self) -> float:
        """How much of the time the server was running: 1.0 is one processor."""
        return self.cpu / self.seconds if self.seconds else 0.0

    def as_dict(self) -> dict[str, float]:
        return {
            "requests": self.requests,
            "errors": self.errors,
            "seconds": round(self.seconds, 3),
            "requests_per_second": round(self.rate, 1),
            "cpu_us_per_request": round(self.cpu_us, 3),
            "busy": round(self.busy, 3),
            "p50_ms": round(self.p50 * 1e3, 3),
            "p99_ms": round(self.p99 * 1e3, 3),
            "max_ms": round(self.slowest * 1e3, 3),
        }


_WRK_REPORT = LOADTESTS / "report.lua"


def _client(argv: Sequence[str], timeout: float, cpu: int = CLIENT_CPU) -> subprocess.CompletedProcess[str]:
    pinned = ["taskset", "-c", str(cpu), *argv]
    return subprocess.run(pinned, capture_output=True, text=True, timeout=timeout, check=False)


def wrk(server: Server, seconds: int, *, path: str = "/", connections: int = 64, script: Path = _WRK_REPORT) -> Load:
    """Load by `wrk -t1`. The script prints the summary as JSON at the end: see `report.lua`."""
    argv = ["wrk", "-t1", f"-c{connections}", f"-d{seconds}s", "--timeout", "10s", "-s", str(script)]
    argv += [f"http://127.0.0.1:{server.port}{path}"]
    before = server.cpu()
    done = _client(argv, seconds + 30)
    after = server.cpu()
    found = re.search(r"^wrk-summary (\{.*\})$", done.stdout, re.MULTILINE)
    if not found:
        raise RuntimeError(f"wrk failed: {done.stdout}{done.stderr}")
    return _load(json.loads(found[1]), after - before)


def _load(summary: Mapping[str, Any], cpu: float) -> Load:
    return Load(
        requests=summary["requests"],
        errors=summary["errors"],
        seconds=summary["duration_us"] / 1e6,
        p50=summary["p50_us"] / 1e6,
        p99=summary["p99_us"] / 1e6,
        slowest=summary["max_us"] / 1e6,
        cpu=cpu,
    )


def websockets(server: Server, seconds: int, *, connections: int = 64, depth: int = 1) -> Load:
    """Load by `peers/websocket_client.py`. A request is a message and its echo, `depth` of them in flight per connection."""
    script = LOADTESTS / "peers" / "websocket_client.py"
    before = server.cpu()
    done = _client([sys.executable, str(script), *map(str, (server.port, seconds, connections, depth))], seconds + 30)
    after = server.cpu()
    if not done.stdout.startswith("summary "):
        raise RuntimeError(f"the client failed: {done.stdout}{done.stderr}")
    return _load(json.loads(done.stdout.removeprefix("summary ")), after - before)


def ab(server: Server, requests: int, *, concurrency: int = 100, cpu: int = CLIENT_CPU) -> Load:
    """Load by ApacheBench: HTTP/1.0, a new connection for each request."""
    with tempfile.NamedTemporaryFile() as percentiles:
        argv = ["ab", "-q", "-r", "-n", str(requests), "-c", str(concurrency), "-e", percentiles.name]
        argv += [f"http://127.0.0.1:{server.port}/"]
        before = server.cpu()
        done = _client(argv, 120, cpu)
        after = server.cpu()
        # ab's own table rounds to milliseconds; this file does not. Its first line names the columns; p100 is missing.
        rows = [line.split(",") for line in Path(percentiles.name).read_text().splitlines()[1:]]

    def number(pattern: str) -> float:
        found = re.search(pattern, done.stdout)
        if not found:
            raise RuntimeError(f"ab failed: {done.stdout}{done.stderr}")
        return float(found[1])

    times = {int(row[0]): float(row[1]) / 1e3 for row in rows}
    non_2xx = re.search(r"Non-2xx responses: +(\d+)", done.stdout)
    return Load(
        requests=int(number(r"Complete requests: +(\d+)")),
        errors=int(number(r"Failed requests: +(\d+)")) + (int(non_2xx[1]) if non_2xx else 0),
        seconds=number(r"Time taken for tests: +([0-9.]+)"),
        p50=times[50],
        p99=times[99],
        slowest=number(r"Total: +\d+ +\d+ +[0-9.]+ +\d+ +(\d+)") / 1e3,
        cpu=after - before,
    )


def netstat_counters() -> dict[str, int]:
    """The kernel's TCP counters that show a full accept queue, from /proc/net/netstat and /proc/net/snmp."""
    counters: dict[str, int] = {}
    for file in ("netstat", "snmp"):
        lines = Path(f"/proc/net/{file}").read_text().splitlines()
        for names, values in zip(lines[::2], lines[1::2], strict=True):
            counters |= dict(zip(names.split()[1:], map(int, values.split()[1:]), strict=True))
    return {name: counters[name] for name in ("ListenOverflows", "ListenDrops", "TCPTimeouts", "RetransSegs")}


def median_load(loads: Sequence[Load]) -> dict[str, float]:
    """The median of each figure over the rounds, and the spread of the one that matters most."""
    rows = [load.as_dict() for load in loads]
    result = {name: statistics.median(row[name] for row in rows) for name in rows[0]}
    result["errors"] = sum(row["errors"] for row in rows)
    result["cpu_us_lowest"] = min(row["cpu_us_per_request"] for row in rows)
    result["requests_per_second_highest"] = max(row["requests_per_second"] for row in rows)
    result["cpu_us_highest"] = max(row["cpu_us_per_request"] for row in rows)
    return result


def need(*tools: str) -> None:
    """Exit with a one-line message if a tool is missing."""
    packages = {"ab": "apache2-utils", "taskset": "util-linux"}
    for tool in tools:
        if shutil.which(tool) is None:
            sys.exit(f"{tool} is required but not on the PATH; on Debian: apt-get install {packages.get(tool, tool)}")


def plots(directory: str) -> Path:
    """The type of the option `--plots`. It is rejected before anything is measured if matplotlib is not installed."""
    if find_spec("matplotlib") is None:
        raise argparse.ArgumentTypeError("matplotlib is required (the extra `load`)")
    return Path(directory)


def machine(python: str) -> dict[str, str]:
    """What the figures depend on, apart from the code."""
    about = "import platform; print(platform.python_implementation(), platform.python_version(), platform.python_compiler())"
    version = subprocess.run([python, "-c", about], capture_output=True, text=True, check=True).stdout.strip()
    describe = ["git", "-C", str(REPOSITORY), "describe", "--always", "--dirty"]
    model = re.search(r"^model name\s*: (.*)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    load = os.getloadavg()[0]
    if load > 0.5:
        print(f"the machine is not idle (load average {load:.1f}): costs will be too high, rates too low", file=sys.stderr)
    return {
        "python": version,
        "kernel": platform.release(),
        "processor": model[1] if model else platform.machine(),
        "processors": str(os.cpu_count()),
        "load_average": f"{load:.2f}",
        "commit": subprocess.run(describe, capture_output=True, text=True, check=False).stdout.strip(),
        "date": time.strftime("%Y-%m-%d %H:%M:%SZ", time.gmtime()),
    }


def print_table(headings: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Print a Markdown table whose source is readable too: the first column is aligned left, the others right."""
    cells = [list(headings), *([f"{cell:.1f}" if isinstance(cell, float) else str(cell) for cell in row] for row in rows)]
    widths = [max(len(row[column]) for row in cells) for column in range(len(headings))]
    rule = ["-" * widths[0], *("-" * (width - 1) + ":" for width in widths[1:])]
    for first, *rest in (cells[0], rule, *cells[1:]):
        aligned = [first.ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(rest, widths[1:], strict=True))]
        print(f"| {' | '.join(aligned)} |")


def save(name: str, result: Mapping[str, Any]) -> Path:
    """Write a result as JSON below results/, which git ignores."""
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{name}-{time.strftime('%Y%m%d-%H%M%S')}.json"
    path.write_text(json.dumps(result, indent=2) + "\n")
    print(f"\nresult written to {path.relative_to(REPOSITORY)}")
    return path
