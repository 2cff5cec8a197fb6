"""Compares the CPU time for each request of epollard and its peers, in one run. Never uses a figure of another day.

Each server runs the same application under the same interpreter, with one worker, on processor 0, without an access log; wrk
loads it with 64 connections from processor 1. A round starts and measures every server once; the table shows the median of the
rounds.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))

import measure  # noqa: E402 - it is one directory above
from peers.commands import ASGI_PEERS, PEERS, environment, server, versions  # noqa: E402

# The application (WSGI: an attribute of hello.py; ASGI: MODULE:ATTRIBUTE), and the script that makes the requests or, for
# WebSockets, how many messages each client has in flight.
CASES: dict[str, tuple[str, Path | int]] = {
    "hello": ("app", HERE.parent / "report.lua"),
    "unique": ("app", HERE / "unique.lua"),
    "paths": ("app", HERE / "paths.lua"),
    "post": ("posted", HERE / "post.lua"),
    "pipelined": ("app", HERE / "pipelined.lua"),
    "10k": ("large", HERE.parent / "report.lua"),
    "asgi": ("asgi:app", HERE.parent / "report.lua"),
    "fastapi": ("asgi:fast", HERE.parent / "report.lua"),
    "echo": ("asgi:echo", 1),
    "echo of 8": ("asgi:echo", 8),
}


def make_load(server: measure.Server, seconds: int, connections: int, script: Path | int) -> measure.Load:
    if isinstance(script, int):
        return measure.websockets(server, seconds, connections=connections, depth=script)
    return measure.wrk(server, seconds, connections=connections, script=script)


def order(item: tuple[str, dict[str, float]]) -> tuple[bool, float]:
    """Least CPU time first. A server that failed or was idle for half of the time has no comparable figure and comes last."""
    figures = item[1]
    return figures["errors"] > 0 or figures["busy"] < 0.5, figures["cpu_us_per_request"]


def parse_arguments() -> argparse.Namespace:
    """The command line; `peers` is a list."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    known = ["epollard", *(PEERS | ASGI_PEERS)]
    names = ", ".join(known)
    parser.add_argument(
        "--peers",
        default="epollard,bjoern,granian,uwsgi,gunicorn,uvicorn",
        help=f"the servers to measure, separated by commas: {names}; or: all (default: %(default)s)",
    )
    parser.add_argument("--case", action="append", choices=CASES, help="a case to measure; repeatable (default: all)")
    parser.add_argument("--rounds", type=int, default=5, help="how often to measure each server (default: %(default)s)")
    parser.add_argument("--seconds", type=int, default=3, help="duration of the load in each round (default: %(default)s)")
    parser.add_argument("--connections", type=int, default=64, help="connections of the client (default: %(default)s)")
    parser.add_argument("--python", default=sys.executable, help="the interpreter that runs all servers")
    parser.add_argument(
        "--venv", type=Path, help="the peers' virtual environment (default: below ~/.cache, one for each interpreter)"
    )
    parser.add_argument(
        "--option", action="append", default=[], help="an option for epollard, as in --option=--threads=1; repeatable"
    )
    arguments = parser.parse_args()
    arguments.peers = known if arguments.peers == "all" else arguments.peers.split(",")
    if unknown := [name for name in arguments.peers if name not in known]:
        parser.error(f"no such peer: {', '.join(unknown)}; known are {names}")
    return arguments


def measure_case(case: str, peers: Sequence[str], bin: Path, arguments: argparse.Namespace) -> dict[str, dict[str, float]]:
    """The median of the rounds, by the name of the server."""
    app, script = CASES[case]
    able = ASGI_PEERS if ":" in app else PEERS
    names = [name for name in peers if name == "epollard" or name in able]
    loads: dict[str, list[measure.Load]] = {name: [] for name in names}
    for turn in range(arguments.rounds):
        # Every other round goes backwards, because the order of the servers must not matter.
        for name in names if turn % 2 == 0 else names[::-1]:
            try:
                with server(name, bin, app, arguments.option if name == "epollard" else ()) as started:
                    make_load(started, 1, arguments.connections, script)  # warms up caches and allocators
                    loads[name].append(make_load(started, arguments.seconds, arguments.connections, script))
            except RuntimeError as problem:
                print(f"{name}, {case}: {problem}", file=sys.stderr)
    return {name: measure.median_load(loads[name]) for name in names if loads[name]}


def print_case(medians: dict[str, dict[str, float]]) -> None:
    headings = ["server", "CPU us/request", "lowest", "highest", "requests/s", "busy %", "p50 ms", "p99 ms", "errors"]
    measure.print_table(
        headings,
        (
            [
                name, f["cpu_us_per_request"], f["cpu_us_lowest"], f["cpu_us_highest"], f"{f['requests_per_second']:.0f}",
                f"{f['busy'] * 100:.0f}", f"{f['p50_ms']:.2f}", f"{f['p99_ms']:.2f}", int(f["errors"]),
            ]
            for name, f in sorted(medians.items(), key=order)
        ),
    )  # fmt: skip


def main() -> int:
    arguments = parse_arguments()
    measure.need("wrk", "taskset")
    bin = environment(arguments.python, arguments.venv)
    installed = versions(bin)
    peers = [name for name in arguments.peers if name == "epollard" or name in installed]
    for name in arguments.peers:
        if name not in peers:
            print(f"{name}: not installed, left out", file=sys.stderr)
    measure.own_network()
    about = measure.machine(arguments.python)
    cases: dict[str, dict[str, dict[str, float]]] = {}
    print(", ".join(f"{key} {value}" for key, value in about.items()))
    print("peers:", ", ".join(f"{name} {version}" for name, version in installed.items()))

    for case in arguments.case or list(CASES):
        cases[case] = medians = measure_case(case, peers, bin, arguments)
        print(f"\n{case}: {arguments.connections} connections, {arguments.rounds} rounds of {arguments.seconds} s, median\n")
        print_case(medians)
    measure.save("peers", {"machine": about, "versions": installed, "options": arguments.option, "cases": cases})
    return 0


if __name__ == "__main__":
    sys.exit(main())
