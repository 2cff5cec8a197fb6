"""Counts the requests that fail while four workers under load are reloaded, replaced, stopped and killed.

Half of the sixty clients keep their connection, and repeat a request once if a connection that they had used before closes
before a byte of the response (RFC 9112 9.3.1); half make a new one for each request. Every failure is counted. Each scenario
has a promise; the exit status is 1 if one is broken. Everything stays on loopback, and only processes that were started here
are ended.

Long: a scenario, its promise and its row of the table are read together.
"""

import argparse
import contextlib
import json
import os
import random
import re
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parent), str(HERE.parent / "peers"), str(HERE.parents[1] / "tests")]

import commands  # type: ignore[import-not-found]  # noqa: E402 - these are in other directories

import hands  # noqa: E402
import measure  # noqa: E402
from harness import leaves, session  # noqa: E402
from load import Answer, Failure, hold  # noqa: E402

WORKERS = 4
WAIT_LIMIT = 0.5  # seconds that a new client may wait while a worker is stopped
STOPPED = 3.0  # seconds for which a worker is stopped
EVENNESS = 1.1  # connections of the fullest worker, at most, as a multiple of the mean
LONG_LIVED = 2000  # connections
BIN = 0.25  # seconds of one point in a plot
AFTERMATH = 10.0  # seconds after a kill in which a client may still notice the failure

# --- Servers --------------------------------------------------------------------------------------------------------

INTERFACES = ("wsgi", "asgi")

Command = Callable[[Path, int, str], list[str]]
PEERS: dict[str, Command] = {
    "gunicorn": lambda bin, port, kind: [
        *(f"{bin}/gunicorn", "--workers", str(WORKERS), "--reuse-port", "--log-level", "critical"),
        *("--worker-class", "gthread" if kind == "wsgi" else "asgi", *(["--threads", "8"] if kind == "wsgi" else [])),
        *("--bind", f"127.0.0.1:{port}", f"applications:{kind}"),
    ],
    "uvicorn": lambda bin, port, kind: [
        *(f"{bin}/uvicorn", "--workers", str(WORKERS), "--no-access-log", "--log-level", "critical"),
        *("--interface", "asgi3", "--host", "127.0.0.1", "--port", str(port), f"applications:{kind}"),
    ],
    "granian": lambda bin, port, kind: [
        *(f"{bin}/granian", "--interface", kind, "--workers", str(WORKERS), "--no-access-log", "--log-level", "critical"),
        *("--host", "127.0.0.1", "--port", str(port), f"applications:{kind}"),
    ],
}


def start(name: str, kind: str, python: str, bin: Path | None, options: Sequence[str]) -> measure.Server:
    """A server with four workers, on any processor."""
    port = measure.free_port()
    if name == "epollard":
        more = ("--workers", str(WORKERS), "--log-level", "info", *options)
        return measure.epollard(python, port, f"applications:{kind}", *more, app_directory=HERE, cpu=None)
    assert bin
    return measure.Server(PEERS[name](bin, port, kind), port, env={"PYTHONPATH": str(HERE)}, cwd=HERE, cpu=None)


# --- Disturbances ---------------------------------------------------------------------------------------------------


class Snapshot(NamedTuple):
    """The connections that a worker held when it was stopped."""

    when: float
    held: list[hands.Held]


@dataclass
class Run:
    """One scenario at one server: the disturbances, the clients' outcomes, and the verdict."""

    scenario: str
    name: str
    kind: str
    server: measure.Server
    part: float = 1.0  # of the usual number of disturbances
    begun: float = 0.0
    ended: float = 0.0
    marks: list[float] = field(default_factory=list)  # when it was disturbed
    snapshots: list[Snapshot] = field(default_factory=list)
    last_term: float = float("inf")
    answers: list[Answer] = field(default_factory=list)
    failures: list[Failure] = field(default_factory=list)
    workers: Counter[str] = field(default_factory=Counter)  # answers by process
    retries: int = 0
    lag: float = 0.0  # seconds by which the machine woke up a sleeping thread too late, at worst
    problems: list[str] = field(default_factory=list)
    remark: str = ""

    def times(self, usual: int) -> range:
        """The usual number of disturbances, scaled by `part`."""
        return range(max(1, round(usual * self.part)))

    def mark(self) -> None:
        self.marks.append(time.monotonic())

    def pids(self) -> list[int]:
        """The present workers, oldest first, without the resource tracker of Python's multiprocessing."""
        return [pid for pid in leaves(self.server.pid) if pid != self.server.pid and b"resource_tracker" not in _command(pid)]

    def wait(self, what: str, condition: Callable[[], object], seconds: float = 30.0) -> bool:
        deadline = time.monotonic() + seconds
        while not condition():
            if time.monotonic() > deadline:
                self.problems.append(f"not within {seconds:g} s: {what}")
                return False
            time.sleep(0.01)
        return True

    def stop(self, pid: int) -> None:
        """Stop a worker and note which connections it holds."""
        hands.stop(pid)
        self.snapshots.append(Snapshot(time.monotonic(), hands.in_hands(pid, self.server.port)))

    def held_while_stopped(self, begun: float, ended: float, port: int) -> hands.Held | None:
        """The connection from this client port if a worker that was stopped during that time held it, else None."""
        for snapshot in self.snapshots:
            if begun <= snapshot.when <= ended:
                for held in snapshot.held:
                    if held.port == port:
                        return held
        return None

    @property
    def failed(self) -> list[Failure]:
        """The failures that count: a client that is refused after TERM has lost nothing."""
        return [failure for failure in self.failures if not (failure.refused and failure.when > self.last_term)]

    @property
    def waits(self) -> list[float]:
        """Seconds that new clients waited."""
        return sorted(answer.seconds for answer in self.answers if answer.kind == "one-shot")


def _command(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""


@contextlib.contextmanager
def clients(run: Run, arguments: argparse.Namespace, target: str) -> Iterator[None]:
    """Clients in processes of their own; at the end, their outcomes are added to the run's."""
    count, processes = arguments.clients, arguments.processes
    share = [count // processes + (number < count % processes) for number in range(processes)]
    timing = str(arguments.pause), str(arguments.distance)
    started = [
        subprocess.Popen(
            [sys.executable, str(HERE / "clients.py"), str(run.server.port), str(each), target, *timing],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        for each in share
    ]
    try:
        time.sleep(1.0)  # until they have started and requests have been served undisturbed
        yield
    finally:
        for process in started:
            assert process.stdin
            process.stdin.close()
            process.stdin = None  # else `communicate` would flush it
        for process in started:
            seen = json.loads(process.communicate(timeout=60)[0])
            run.answers += [Answer(*answer) for answer in seen["answers"]]
            run.failures += [Failure(*failure) for failure in seen["failures"]]
            run.workers.update(seen["workers"])
            run.retries += seen["retries"]
            run.lag = max([run.lag, *(late for _, late in seen["lags"])])


def replaced(run: Run, old: set[int]) -> bool:
    """Whether no old worker is left and all new ones are present."""
    new = run.pids()
    return len(new) == WORKERS and not old & {*new}


def reloads(run: Run) -> None:
    """HUP 30 times, each after the last reload is complete."""
    for _ in run.times(30):
        old = {*run.pids()}
        run.mark()
        os.kill(run.server.pid, signal.SIGHUP)
        run.wait("all workers replaced", partial(replaced, run, old))
        time.sleep(0.1)


def upgrades(run: Run) -> None:
    """USR2 10 times: a new supervisor, from the code on disk, takes over the listeners."""
    for _ in run.times(10):
        old = {*run.pids()}
        run.mark()
        os.kill(run.server.pid, signal.SIGUSR2)
        run.wait("all workers replaced", partial(replaced, run, old))
        time.sleep(0.1)


def scalings(run: Run) -> None:
    """Change the number of workers 60 times, 2 to 6; the next change comes when that is reached, or after a second."""
    wanted = WORKERS
    for _ in run.times(60):
        target = random.choice([number for number in range(2, 7) if number != wanted])
        run.mark()
        while wanted != target:
            up = target > wanted
            os.kill(run.server.pid, signal.SIGTTIN if up else signal.SIGTTOU)
            wanted += 1 if up else -1
            time.sleep(0.05)  # two pending signals of one kind are merged into one (signal(7))
        deadline = time.monotonic() + 1
        while len(run.pids()) != target and time.monotonic() < deadline:
            time.sleep(0.02)
        if logged := re.findall(r"scaling to (\d+) worker", run.server.output()):
            wanted = int(logged[-1])  # on a busy machine two signals may have been merged
    run.wait(f"{wanted} workers", lambda: len(run.pids()) == wanted)


def recycling(run: Run) -> None:
    """Every worker is replaced after 500 requests, for 30 seconds."""
    known = {*run.pids()}
    end = time.monotonic() + max(3.0, 30 * run.part)
    while time.monotonic() < end:
        if new := {*run.pids()} - known:
            known |= new
            run.mark()
        time.sleep(0.02)
    run.remark = f"{len(known) - WORKERS} replaced"
    if len(known) < 2 * WORKERS:
        run.problems.append("too few workers were replaced")


def kills(run: Run) -> None:
    """SIGKILL to a random worker each second for a minute. It is stopped for an instant first, to see what it holds."""
    for _ in run.times(60):
        if pids := run.pids():
            victim = random.choice(pids)
            run.mark()
            run.stop(victim)
            os.kill(victim, signal.SIGKILL)
        time.sleep(1.0)


def stops(run: Run) -> None:
    """SIGSTOP to a random worker for 3 seconds, 15 times, with a second in between."""
    for _ in run.times(15):
        victim = random.choice(run.pids())
        run.mark()
        run.stop(victim)
        time.sleep(STOPPED)
        os.kill(victim, signal.SIGCONT)
        time.sleep(1.0)


def undisturbed(run: Run) -> None:
    """No disturbance except TERM at the end, which every run has."""
    time.sleep(1.0)


def long_lived(run: Run) -> None:
    """Open 2,000 connections in bursts and keep them open."""
    bursts = []
    with contextlib.ExitStack() as stack:
        held: list[socket.socket] = []
        while len(held) < LONG_LIVED:
            burst = min(random.randrange(20, 300), LONG_LIVED - len(held))
            bursts.append(burst)
            run.mark()
            new = hold(("127.0.0.1", run.server.port), burst, stack, b"GET /pid HTTP/1.1\r\nHost: chaos\r\n\r\n")
            for client in new:
                client.recv(4096)
            held += new
        counts = [len(hands.in_hands(pid, run.server.port)) for pid in run.pids()]
    ratio = max(counts) / (LONG_LIVED / WORKERS)
    run.remark = f"{len(bursts)} bursts; {', '.join(map(str, sorted(counts)))}: fullest {ratio:.3f} of the mean"
    if sum(counts) != LONG_LIVED or ratio > EVENNESS:
        run.problems.append(run.remark)


def orphans(run: Run) -> None:
    """SIGKILL to the supervisor: its workers drain and exit, and leave nothing behind."""
    time.sleep(1.0)
    run.mark()
    run.last_term = time.monotonic()
    os.kill(run.server.pid, signal.SIGKILL)
    if run.wait("all workers are gone", lambda: not [pid for pid in session(run.server.pid) if pid != run.server.pid]):
        run.remark = f"all gone after {time.monotonic() - run.last_term:.1f} s"
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # ignores TIME_WAIT, but not a listener
        try:
            probe.bind(("127.0.0.1", run.server.port))
        except OSError:
            run.problems.append("the port is still bound")


# --- Promises -------------------------------------------------------------------------------------------------------


def nothing_lost(run: Run) -> None:
    """No request fails."""
    if run.failed:
        run.problems.append(f"{len(run.failed)} failed: {run.failed[0].error}")


def only_held_requests(run: Run) -> None:
    """A request fails only if a killed worker held its connection, never if it was waiting in the worker's queue.

    A worker holds requests that it has read and, for the microseconds between accepting and reading, one that it has not.
    """
    innocent = []
    unread = 0
    for failure in run.failed:
        held = run.held_while_stopped(failure.when - AFTERMATH, failure.when, failure.port) if failure.port else None
        if held is None:
            innocent.append(failure)
        elif held.unread:
            unread += 1
    run.remark = f"{len(run.failed) - len(innocent) - unread} had been read, {unread} just accepted"
    if innocent:
        run.problems.append(f"{len(innocent)} requests failed that no killed worker held: {innocent[0]}")


def no_long_wait(run: Run) -> None:
    """No new client waits longer than half a second, except those that the stopped worker had already accepted.

    The machine's own lag is added: if it wakes up a sleeping thread late, it also wakes up late the worker that accepts.
    """
    nothing_lost(run)
    slow = [answer for answer in run.answers if answer.kind == "one-shot" and answer.seconds > WAIT_LIMIT]
    late = [answer for answer in slow if not run.held_while_stopped(answer.when - answer.seconds, answer.when, answer.port)]
    run.remark = f"{len(late)} new clients waited over {WAIT_LIMIT * 1e3:.0f} ms, {len(slow) - len(late)} were held by it"
    if any(answer.seconds > WAIT_LIMIT + run.lag for answer in late):
        worst = max(late, key=lambda answer: answer.seconds)
        run.problems.append(f"{len(late)} waited over {WAIT_LIMIT * 1e3:.0f} ms, one {worst.seconds:.2f} s")


def nothing_left(run: Run) -> None:
    """Workers drain and exit, and no port stays bound; `orphans` itself has checked it."""


class Scenario(NamedTuple):
    """A disturbance, and the promise that must hold under it."""

    disturb: Callable[[Run], None]
    judge: Callable[[Run], None]
    options: tuple[str, ...] = ()
    target: str = "/"
    load: bool = True  # clients send requests meanwhile
    ends: bool = True  # with TERM, under load
    peers: tuple[str, ...] = ("gunicorn", "uvicorn", "granian")  # those that support it


SCENARIOS = {
    "reloads": Scenario(reloads, nothing_lost),
    "scalings": Scenario(scalings, nothing_lost, peers=("gunicorn", "uvicorn")),
    "upgrades": Scenario(upgrades, nothing_lost, peers=()),
    "recycling": Scenario(recycling, nothing_lost, ("--max-requests", "500", "--max-requests-jitter", "50"), peers=()),
    "TERM": Scenario(undisturbed, nothing_lost),
    "kills": Scenario(kills, only_held_requests, target="/?ms=1"),
    "stops": Scenario(stops, no_long_wait),
    "stops-unsteered": Scenario(stops, no_long_wait, ("--steer", "off"), peers=()),
    "long-lived": Scenario(long_lived, nothing_lost, load=False),
    "orphans": Scenario(orphans, nothing_left, ends=False),
}
FOR_COMPARISON = {"stops-unsteered"}  # shown, but without a promise


def play(title: str, name: str, kind: str, arguments: argparse.Namespace, bin: Path | None) -> Run:
    """Play one scenario at one server."""
    scenario = SCENARIOS[title]
    with start(name, kind, arguments.python, bin, scenario.options) as server:
        run = Run(title, name, kind, server, arguments.part)
        run.wait("all workers are present", lambda: len(run.pids()) == WORKERS)
        time.sleep(1.0)
        run.begun = time.monotonic()
        load = clients(run, arguments, scenario.target)
        with load if scenario.load else contextlib.nullcontext():
            scenario.disturb(run)
            if scenario.ends:
                time.sleep(0.5)
                run.last_term = time.monotonic()
                run.marks.append(run.last_term)
                os.kill(server.pid, signal.SIGTERM)
                run.wait("the server has exited", lambda: not _running(server.pid))
        run.ended = time.monotonic()
        if left := [pid for pid in session(server.pid) if pid != server.pid]:
            run.problems.append(f"processes left behind: {left}")
        scenario.judge(run)
        if run.problems and arguments.log:
            print(server.output(), file=sys.stderr)
    return run


def _running(pid: int) -> bool:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"


# --- Results --------------------------------------------------------------------------------------------------------

HEADINGS = [
    *("scenario", "interface", "disturbances", "answered", "failed", "retried", "p99 ms", "slowest ms", "lag ms", "promise", "")
]


def row(run: Run) -> list[object]:
    """A row of the table."""
    waits = run.waits or [0.0]
    verdict = "broken" if run.problems else "kept"
    if run.scenario in FOR_COMPARISON or run.name != "epollard":
        verdict = "-"
    return [
        run.scenario if run.name == "epollard" else f"{run.scenario}, {run.name}",
        *(run.kind.upper(), len(run.marks), len(run.answers), len(run.failed), run.retries),
        *(f"{seconds * 1e3:.0f}" for seconds in (waits[len(waits) * 99 // 100], waits[-1], run.lag)),
        *(verdict, run.remark),
    ]


def as_dict(run: Run) -> dict[str, Any]:
    """The part of a run that is saved."""
    return {
        "scenario": run.scenario,
        "server": run.name,
        "interface": run.kind,
        "disturbances": [round(when - run.begun, 3) for when in run.marks],
        "seconds": round(run.ended - run.begun, 3),
        "answered": len(run.answers),
        "failed": [failure._replace(when=round(failure.when - run.begun, 3))._asdict() for failure in run.failed],
        "refused_after_term": len(run.failures) - len(run.failed),
        "retried": run.retries,
        "lag_ms": round(run.lag * 1e3, 1),
        "processes": len(run.workers),
        "slowest": [
            {"when": round(answer.when - run.begun, 3), "seconds": round(answer.seconds, 3)}
            for answer in sorted(run.answers, key=lambda answer: -answer.seconds if answer.kind == "one-shot" else 0)[:5]
        ],
        "problems": run.problems,
        "remark": run.remark,
        "bin_seconds": BIN,
        "answered_by_bin": rates(run),
    }


def rates(run: Run) -> list[int]:
    """The number of responses in each time bin of the run."""
    found = Counter(int((answer.when - run.begun) / BIN) for answer in run.answers)
    return [found[place] for place in range(int((run.ended - run.begun) / BIN) + 1)]


def plot(directory: Path, runs: Sequence[Run], kind: str, about: dict[str, str]) -> None:
    """Plot requests over time, with the disturbances.

    Long: it only sets up one figure, from top to bottom.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    shown = [run for run in runs if run.kind == kind and run.answers]
    if not shown:
        return
    directory.mkdir(parents=True, exist_ok=True)
    figure, axes = pyplot.subplots(len(shown), 1, figsize=(11, 1.9 * len(shown)), squeeze=False)
    for axis, run in zip(axes[:, 0], shown, strict=True):
        counts = rates(run)
        times = [BIN * (place + 0.5) for place in range(len(counts))]
        axis.vlines([when - run.begun for when in run.marks], 0, 1, transform=axis.get_xaxis_transform(), color="#cccccc", lw=1)
        axis.fill_between(times, [count / BIN for count in counts], color="#2f6f4f", alpha=0.55, lw=0)
        axis.set_ylim(0)
        axis.set_xlim(0, run.ended - run.begun)
        slowest = [0.0] * len(counts)
        for answer in run.answers:
            if answer.kind == "one-shot":
                place = int((answer.when - run.begun) / BIN)
                slowest[place] = max(slowest[place], answer.seconds * 1e3)
        right = axis.twinx()
        right.plot(times, slowest, color="#b08d57", lw=1)
        right.set_ylim(0, max(*slowest, 500.0) * 1.05)
        right.tick_params(labelsize=7, colors="#b08d57")
        if run.failed:
            at = [failure.when - run.begun for failure in run.failed]
            axis.plot(at, [0.04] * len(at), "o", color="#c0392b", ms=4, transform=axis.get_xaxis_transform(), clip_on=False)
        name = run.scenario if run.name == "epollard" else f"{run.scenario}, {run.name}"
        axis.set_title(f"{name}: {len(run.answers):,} answered, {len(run.failed)} failed", fontsize=9, loc="left")
        axis.tick_params(labelsize=7)
        axis.spines[["top"]].set_visible(False)
        right.spines[["top"]].set_visible(False)
    axes[-1, 0].set_xlabel("seconds", fontsize=8)
    key = "green: responses a second; brown, right: the slowest new client, ms; grey: a disturbance; red: a failure"
    note = f"{about['python'].split(' GCC')[0]}, Linux {about['kernel']}, {about['processors']} processors"
    figure.suptitle(f"{kind.upper()}: {key}", fontsize=9)
    figure.text(0.99, 0.003, note, ha="right", fontsize=7, color="#666666")
    figure.tight_layout(rect=(0, 0.005, 1, 0.99))
    figure.savefig(directory / f"chaos-{kind}.png", dpi=110)
    print(f"plot written to {directory}")


def parse_arguments() -> argparse.Namespace:
    """The command line; `only`, `interface` and `peers` are lists.

    Long: each option is declared here, with its help.
    """
    description = (__doc__ or "").partition("\n\nLong:")[0]
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default=",".join(SCENARIOS), help="scenarios, separated by commas (default: %(default)s)")
    parser.add_argument(
        "--interface", default=",".join(INTERFACES), help="interfaces, separated by commas (default: %(default)s)"
    )
    parser.add_argument("--clients", type=int, default=60, help="how many clients send requests (default: %(default)s)")
    parser.add_argument("--processes", type=int, default=3, help="processes of the clients (default: %(default)s)")
    parser.add_argument(
        "--pause", type=float, default=0.03, help="seconds between two requests of a client (default: %(default)s)"
    )
    parser.add_argument(
        "--distance",
        type=float,
        default=0.02,
        help="seconds for which a new connection is silent, at most (default: %(default)s)",
    )
    parser.add_argument(
        "--part", type=float, default=1.0, help="fraction of the usual number of disturbances (default: %(default)s)"
    )
    parser.add_argument(
        "--peers", default="", help="also disturb these servers where they support it: gunicorn,uvicorn,granian"
    )
    parser.add_argument(
        "--peers-environment",
        type=Path,
        metavar="DIRECTORY",
        help="the peers' virtual environment (default: below ~/.cache, one for each interpreter)",
    )
    parser.add_argument("--python", default=sys.executable, help="the interpreter that runs all servers")
    parser.add_argument(
        "--plots", type=measure.plots, metavar="DIRECTORY", help="write plots into this directory; requires matplotlib"
    )
    parser.add_argument("--log", action="store_true", help="show the end of the server's log if a promise is broken")
    parser.add_argument("--seed", type=int, default=random.randrange(1 << 32), help="repeat the random choices of another run")
    arguments = parser.parse_args()
    for name, known in ("only", SCENARIOS), ("interface", INTERFACES), ("peers", PEERS):
        words = getattr(arguments, name).split(",") if getattr(arguments, name) or name != "peers" else []
        if unknown := {*words} - {*known}:
            parser.error(f"--{name}: unknown: {', '.join(sorted(unknown))}")
        setattr(arguments, name, words)
    return arguments


def main() -> int:
    arguments = parse_arguments()
    titles, kinds, peers = arguments.only, arguments.interface, arguments.peers
    bin = commands.environment(arguments.python, arguments.peers_environment) if peers else None
    measure.own_network()
    about = measure.machine(arguments.python) | {"seed": str(arguments.seed)}
    print(", ".join(f"{key} {value}" for key, value in about.items()), flush=True)
    random.seed(arguments.seed)
    runs = []
    for title in titles:
        for kind in kinds:
            for name in ("epollard", *peers):
                if name != "epollard" and name not in SCENARIOS[title].peers:
                    continue
                if (name, kind) == ("uvicorn", "wsgi"):
                    continue
                try:
                    run = play(title, name, kind, arguments, bin)
                except RuntimeError as error:
                    print(f"{title}, {name}, {kind}: {error}", file=sys.stderr)
                    if name == "epollard":
                        return 1
                    continue
                runs.append(run)
                print(*row(run), sep=" | ", flush=True)
                for problem in run.problems:
                    print(f"  {problem}", flush=True)
    print()
    measure.print_table(HEADINGS, map(row, runs))
    measure.save("chaos", {"machine": about, "clients": arguments.clients, "runs": [as_dict(run) for run in runs]})
    if arguments.plots:
        for kind in kinds:
            plot(arguments.plots, runs, kind, about)
    broken = [run for run in runs if run.problems and run.name == "epollard" and run.scenario not in FOR_COMPARISON]
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())
