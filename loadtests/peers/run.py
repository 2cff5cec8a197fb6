"""CPU time a request of epollard and its peers, in turn within one run. Compares nothing that was measured on another day.

Each server runs the same application under the same interpreter, with one worker, on processor 0, without an access log; wrk
loads it with 64 connections from processor 1. A round measures every server once, freshly started; the table has the median of
the rounds.
"""

import argparse
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))

import measure  # noqa: E402 - it lies one directory above
from peers.commands import ASGI_PEERS, PEERS, environment, server, versions  # noqa: E402

# The application (in hello.py, of WSGI; MODULE:NAME is of ASGI) and the script that makes the requests; or, for WebSockets, how
# many messages each client has under way.
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
    """Least CPU first; a server that failed, or stood still, has no figure to compare and comes last."""
    figures = item[1]
    return figures["errors"] > 0 or figures["busy"] < 0.5, figures["cpu_us_per_request"]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    names = ", ".join(["epollard", *(PEERS | ASGI_PEERS)])
    parser.add_argument("--peers", default="epollard,bjoern,granian,uwsgi,gunicorn,uvicorn", help=f"some of {names}; or: all")
    parser.add_argument("--case", action="append", choices=CASES, help="repeatable; default: all")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=int, default=3, help="of load in each round")
    parser.add_argument("--connections", type=int, default=64)
    parser.add_argument("--python", default=sys.executable, help="the interpreter for all")
    parser.add_argument("--venv", type=Path, help="the peers' environment; default: below ~/.cache, one for each interpreter")
    parser.add_argument("--option", action="append", default=[], help="for epollard, as in --option=--threads=1; repeatable")
    arguments = parser.parse_args()
    measure.need("wrk", "taskset")

    known = PEERS | ASGI_PEERS
    wanted = ["epollard", *known] if arguments.peers == "all" else arguments.peers.split(",")
    if unknown := [name for name in wanted if name != "epollard" and name not in known]:
        parser.error(f"no such peer: {', '.join(unknown)}; there are {names}")
    bin = environment(arguments.python, arguments.venv)
    installed = versions(bin)
    peers = [name for name in wanted if name == "epollard" or name in installed]
    for name in wanted:
        if name not in peers:
            print(f"{name}: not installed, left out", file=sys.stderr)
    measure.own_network()
    about = measure.machine(arguments.python)
    result: dict[str, object] = {"machine": about, "versions": installed, "options": arguments.option, "cases": {}}
    print(", ".join(f"{key} {value}" for key, value in about.items()))
    print("peers:", ", ".join(f"{name} {version}" for name, version in installed.items()))

    for case in arguments.case or list(CASES):
        app, script = CASES[case]
        able = ASGI_PEERS if ":" in app else PEERS
        fit = [name for name in peers if name == "epollard" or name in able]
        loads: dict[str, list[measure.Load]] = {name: [] for name in fit}
        for turn in range(arguments.rounds):
            # Every other round backwards: who is measured after whom must not matter.
            for name in fit if turn % 2 == 0 else fit[::-1]:
                try:
                    with server(name, bin, app, arguments.option if name == "epollard" else ()) as started:
                        make_load(started, 1, arguments.connections, script)  # caches and allocators warm
                        loads[name].append(make_load(started, arguments.seconds, arguments.connections, script))
                except RuntimeError as problem:
                    print(f"{name}, {case}: {problem}", file=sys.stderr)
        medians = {name: measure.median_load(loads[name]) for name in fit if loads[name]}
        result["cases"][case] = medians  # type: ignore[index]
        print(f"\n{case}: {arguments.connections} connections, {arguments.rounds} rounds of {arguments.seconds} s, median\n")
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
    measure.save("peers", result)
    return 0


if __name__ == "__main__":
    sys.exit(main())
