"""Measures whether quick requests wait for slow ones: one worker, eight threads. Never shows a rate without its latency.

First wrk sends quick requests alone, then again while eight clients keep sending a request that takes 100 ms. epollard promises
more than half of the undisturbed rate; the exit status is 1 if it is less.
"""

import argparse
import http.client
import os
import sys
import threading
import time
from pathlib import Path

import measure
from peers.commands import PEERS, environment, server, versions

SLOW_CLIENTS = 8
# Eight threads for the servers that have another default.
THREADS = {"epollard": ["--threads", "8"], "granian": ["--blocking-threads", "8"]}


def send_slow_requests(port: int, over: threading.Event, taken: list[float]) -> None:
    """Send slow requests until `over` is set, and append to `taken` how many seconds each takes."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    while not over.is_set():
        began = time.monotonic()
        connection.request("GET", "/sleep")
        connection.getresponse().read()
        taken.append(time.monotonic() - began)
    connection.close()


def measure_server(started: measure.Server, seconds: int, connections: int) -> tuple[measure.Load, measure.Load, list[float]]:
    """The load without and with slow requests, and how many seconds each slow one took, in ascending order."""
    measure.wrk(started, 1, connections=connections)
    quiet = measure.wrk(started, seconds, connections=connections)
    over = threading.Event()
    taken: list[float] = []
    clients = [threading.Thread(target=send_slow_requests, args=(started.port, over, taken)) for _ in range(SLOW_CLIENTS)]
    for client in clients:
        client.start()
    while len(taken) < SLOW_CLIENTS and any(client.is_alive() for client in clients):
        time.sleep(0.01)
    taken.clear()
    busy = measure.wrk(started, seconds, connections=connections)
    slow = sorted(taken)
    over.set()
    for client in clients:
        client.join()
    return quiet, busy, slow


def parse_arguments() -> argparse.Namespace:
    """The command line; `peers` is a list."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--peers",
        default="epollard",
        help=f"the servers to measure, separated by commas: epollard, {', '.join(PEERS)} (default: epollard)",
    )
    parser.add_argument(
        "--seconds", type=int, default=4, help="duration of each load; each server has two (default: %(default)s)"
    )
    parser.add_argument("--connections", type=int, default=64, help="connections of wrk (default: %(default)s)")
    parser.add_argument("--python", default=sys.executable, help="the interpreter that runs all servers")
    parser.add_argument(
        "--venv", type=Path, help="the peers' virtual environment (default: below ~/.cache, one for each interpreter)"
    )
    arguments = parser.parse_args()
    arguments.peers = arguments.peers.split(",")
    if unknown := {*arguments.peers} - {"epollard", *PEERS}:
        parser.error(f"no such peer: {', '.join(unknown)}")
    return arguments


def main() -> int:
    arguments = parse_arguments()
    measure.need("wrk", "taskset")
    os.sched_setaffinity(0, {measure.CLIENT_CPU})

    names: list[str] = arguments.peers
    # Without peers no environment is needed, if the interpreter's own directory has a `python` in it.
    alone = names == ["epollard"] and Path(arguments.python).with_name("python").exists()
    bin = Path(arguments.python).parent if alone else environment(arguments.python, arguments.venv)
    measure.own_network()
    about = measure.machine(arguments.python)
    print(", ".join(f"{key} {value}" for key, value in about.items()))
    result: dict[str, object] = {"machine": about, "versions": {} if alone else versions(bin)}
    rows = []
    status = 0
    for name in names:
        with server(name, bin, "mixed", THREADS.get(name, ())) as started:
            quiet, busy, slow = measure_server(started, arguments.seconds, arguments.connections)
        ratio = busy.rate / quiet.rate
        if name == "epollard" and ratio <= 0.5:
            status = 1
        result[name] = {"alone": quiet.as_dict(), "with_slow": busy.as_dict(), "ratio": round(ratio, 3), "slow_seconds": slow}
        rows.append(
            [
                *(name, f"{quiet.rate:.0f}", f"{busy.rate:.0f}", f"{ratio:.2f}"),
                *(f"{seconds * 1e3:.1f}" for load in (quiet, busy) for seconds in (load.p50, load.p99)),
                *(f"{len(slow) / busy.seconds:.0f}", f"{slow[len(slow) // 2] * 1e3:.0f}" if slow else "-"),
                quiet.errors + busy.errors,
            ]
        )
    print(
        f"\n{arguments.connections} connections with quick requests; then next to {SLOW_CLIENTS} clients of 100 ms responses\n"
    )
    headings = ["server", "alone/s", "with slow/s", "ratio", "alone p50 ms", "p99 ms", "with slow p50 ms", "p99 ms"]
    measure.print_table([*headings, "slow/s", "slow p50 ms", "errors"], rows)
    measure.save("mixed", result)
    return status


if __name__ == "__main__":
    sys.exit(main())
