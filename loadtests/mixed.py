"""Does a quick request wait for somebody else's slow one? One worker with eight threads. Never a rate without its latency.

First wrk asks for quick answers alone, then again while eight clients ask without pause for one that takes 100 ms.
epollard's promise: more than half of the undisturbed rate; exit status 1 where it is less.
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
# Eight threads for those that have another default.
THREADS = {"epollard": ["--threads", "8"], "granian": ["--blocking-threads", "8"]}


def ask_slowly(port: int, over: threading.Event, taken: list[float]) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    while not over.is_set():
        began = time.monotonic()
        connection.request("GET", "/sleep")
        connection.getresponse().read()
        taken.append(time.monotonic() - began)
    connection.close()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peers", default="epollard", help=f"comma-separated, some of epollard, {', '.join(PEERS)}")
    parser.add_argument("--seconds", type=int, default=4, help="of load, twice for each server")
    parser.add_argument("--connections", type=int, default=64)
    parser.add_argument("--python", default=sys.executable, help="the interpreter for all")
    parser.add_argument("--venv", type=Path, help="the peers' environment; default: below ~/.cache, one for each interpreter")
    arguments = parser.parse_args()
    measure.need("wrk", "taskset")
    os.sched_setaffinity(0, {measure.CLIENT_CPU})

    names = arguments.peers.split(",")
    if unknown := {*names} - {"epollard", *PEERS}:
        parser.error(f"no such peer: {', '.join(unknown)}")
    # Without peers no environment is made where the interpreter's own directory has a `python` in it.
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
            measure.wrk(started, 1, connections=arguments.connections)
            quiet = measure.wrk(started, arguments.seconds, connections=arguments.connections)
            over = threading.Event()
            taken: list[float] = []
            clients = [threading.Thread(target=ask_slowly, args=(started.port, over, taken)) for _ in range(SLOW_CLIENTS)]
            for client in clients:
                client.start()
            while len(taken) < SLOW_CLIENTS and any(client.is_alive() for client in clients):
                time.sleep(0.01)
            taken.clear()
            busy = measure.wrk(started, arguments.seconds, connections=arguments.connections)
            slow = sorted(taken)
            over.set()
            for client in clients:
                client.join()
        ratio = busy.rate / quiet.rate
        if name == "epollard" and ratio <= 0.5:
            status = 1
        result[name] = {"alone": quiet.as_dict(), "beside_slow": busy.as_dict(), "ratio": round(ratio, 3), "slow_seconds": slow}
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
