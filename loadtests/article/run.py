"""Measures what the article asks, on its servers and on epollard in one run. Never uses a figure of another day or machine.

1. `ab -c 100`, HTTP/1.0, a new connection for each request: the article's servers, and epollard with every trigger and TCP
   option. A connection costs the client more than the server, so ab, on a processor of its own, limits the rate and the servers
   wait for it: compare the CPU time. With `--one-cpu` ab shares the server's processor, and the rate shows the cost too.
2. Backlog 1, 50 and the system's maximum: how long a hundred clients wait that connect at once, and the kernel's counters.
"""

import argparse
import errno
import os
import select
import socket
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))

import measure  # noqa: E402 - it is one directory above

APPLICATION = HERE.parent / "peers"  # hello.py: the same 13 bytes
SURVIVORS = ("blocking-loop", "level", "edge", "cork", "nodelay")  # the servers that do not exit after one request
BURST_TIMEOUT = 20.0  # seconds that a client of a burst waits for its response
AB_REQUESTS = 40000  # takes about two seconds: long enough that a client whose SYN was dropped comes back before the end
TRIGGERS = ("level", "edge", "oneshot")
TCP_OPTIONS = ("nodelay", "cork", "default")

Start = Callable[[int], measure.Server]  # takes the backlog


def article(python: str, name: str) -> Start:
    def start(backlog: int) -> measure.Server:
        port = measure.free_port()
        return measure.Server([python, "servers.py", name, str(port), str(backlog)], port, cwd=HERE)

    return start


def epollard(python: str, *options: str) -> Start:
    def start(backlog: int) -> measure.Server:
        port = measure.free_port()
        return measure.epollard(python, port, "hello:app", "--backlog", str(backlog), *options, app_directory=APPLICATION)

    return start


def system_backlog() -> int:
    return int(Path("/proc/sys/net/core/somaxconn").read_text())


def rates(python: str, rounds: int, requests: int, cpu: int) -> dict[str, dict[str, float]]:
    """Question 1: the median of the rounds, by the name of the server."""
    servers: dict[str, Start] = {f"article {name}": article(python, name) for name in SURVIVORS}
    for trigger in TRIGGERS:
        for option in TCP_OPTIONS:
            servers[f"epollard {trigger} {option}"] = epollard(python, "--trigger", trigger, "--tcp", option)
    loads: dict[str, list[measure.Load]] = {name: [] for name in servers}
    for turn in range(rounds):
        # Every other round goes backwards, because the order of the servers must not matter.
        for name in list(servers)[:: -1 if turn % 2 else 1]:
            try:
                with servers[name](system_backlog()) as server:
                    measure.ab(server, 1000, cpu=cpu)
                    loads[name].append(measure.ab(server, requests, cpu=cpu))
            except RuntimeError as problem:
                print(f"{name}: {problem}", file=sys.stderr)
    return {name: measure.median_load(done) for name, done in loads.items() if done}


def print_rates(found: dict[str, dict[str, float]], rounds: int, requests: int, cpu: int) -> None:
    where = f"ab on processor {cpu}, servers on {measure.SERVER_CPU}"
    print(f"\nab -c 100 -n {requests}, HTTP/1.0, a connection for each request; {where}; median of {rounds} rounds\n")
    measure.print_table(
        ["server", "requests/s", "best", "CPU us/request", "lowest", "highest", "busy %", "p50 ms", "p99 ms", "failed"],
        (
            [
                *(name, f"{row['requests_per_second']:.0f}", f"{row['requests_per_second_highest']:.0f}"),
                *(row[key] for key in ("cpu_us_per_request", "cpu_us_lowest", "cpu_us_highest")),
                *(f"{row['busy'] * 100:.0f}", f"{row['p50_ms']:.2f}", f"{row['p99_ms']:.2f}", int(row["errors"])),
            ]
            for name, row in sorted(found.items(), key=lambda item: -item[1]["requests_per_second"])
        ),
    )
    ours, theirs = (
        max(((row["requests_per_second"], name) for name, row in found.items() if name.startswith(kind)), default=(0.0, "none"))
        for kind in ("epollard", "article")
    )
    print(f"\nfastest: {ours[1]} {ours[0]:.0f}/s, {theirs[1]} {theirs[0]:.0f}/s: {ours[0] / theirs[0]:.2f} times")


def burst(port: int, clients: int) -> list[float]:
    """Connect all clients at once, send a request each, and read to the end.

    Returns how many seconds each client took: `BURST_TIMEOUT` if it had no response by then.
    """
    waiting: dict[int, tuple[socket.socket, float]] = {}
    taken: list[float] = []
    with select.epoll() as poll:
        for _ in range(clients):
            client = socket.socket(socket.AF_INET, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
            began = time.monotonic()
            error = client.connect_ex(("127.0.0.1", port))
            if error not in (0, errno.EINPROGRESS):
                raise OSError(error, os.strerror(error))
            waiting[client.fileno()] = client, began
            poll.register(client, select.EPOLLOUT)
        deadline = time.monotonic() + BURST_TIMEOUT
        while waiting and time.monotonic() < deadline:
            for number, event in poll.poll(0.1):
                client, began = waiting[number]
                try:
                    if event & select.EPOLLOUT:
                        client.send(b"GET / HTTP/1.0\r\nHost: localhost\r\n\r\n")
                        poll.modify(number, select.EPOLLIN)
                        continue
                    if client.recv(65536):
                        continue
                    taken.append(time.monotonic() - began)
                except OSError:
                    taken.append(BURST_TIMEOUT)
                del waiting[number]
                client.close()
        for client, _ in waiting.values():
            client.close()
    return taken + [BURST_TIMEOUT] * len(waiting)


def backlogs(python: str, rounds: int, clients: int) -> list[dict[str, Any]]:
    """Question 2: a row for each server and backlog."""
    servers: dict[str, Start] = {
        "article blocking-loop": article(python, "blocking-loop"),
        "article level": article(python, "level"),
        "epollard": epollard(python),
    }
    rows: list[dict[str, Any]] = []
    for name, start in servers.items():
        for backlog in (1, 50, system_backlog()):
            times: list[float] = []
            try:
                with start(backlog) as server:
                    before = measure.netstat_counters()
                    for _ in range(rounds):
                        times += burst(server.port, clients)
                    middle = measure.netstat_counters()
                    try:
                        load = measure.ab(server, AB_REQUESTS).as_dict()
                    except RuntimeError:
                        load = {}  # a few clients hang, and ab gives up when nothing has happened for 30 s
                    after = measure.netstat_counters()
            except RuntimeError as problem:
                print(f"{name}, backlog {backlog}: {problem}", file=sys.stderr)
                continue
            rows.append(
                {
                    "server": name,
                    "backlog": backlog,
                    "seconds": sorted(times),
                    "burst": {key: middle[key] - before[key] for key in before},
                    "ab": {**load, **{key: after[key] - middle[key] for key in after}},
                }
            )
    return rows


def print_backlogs(rows: Sequence[dict[str, Any]], rounds: int, clients: int) -> None:
    print(f"\n{clients} clients connect at once, {rounds} times; then ab -c 100 -n {AB_REQUESTS}\n")

    def cells(row: dict[str, Any]) -> list[object]:
        times: list[float] = row["seconds"]
        quantile = statistics.quantiles(times, n=100, method="inclusive")
        # A client whose SYN was dropped tries again after 1 s, then 2 s and 4 s later: the tail shows these steps.
        late = [sum(limit <= seconds for seconds in times) for limit in (0.9, 2.9, 6.9, BURST_TIMEOUT)]
        return [
            *(row["server"], row["backlog"], *(f"{seconds * 1e3:.1f}" for seconds in (quantile[49], quantile[98], times[-1]))),
            *(*late, row["burst"]["ListenOverflows"], row["burst"]["ListenDrops"]),
            *(f"{row['ab'][key]:.0f}" if key in row["ab"] else "hangs" for key in ("requests_per_second", "p99_ms", "max_ms")),
            row["ab"]["ListenOverflows"],
        ]

    headings = [
        "server",
        "backlog",
        "p50 ms",
        "p99 ms",
        "max ms",
        ">= 1 s",
        ">= 3 s",
        ">= 7 s",
        "unanswered",
        "overflows",
        "drops",
    ]
    measure.print_table([*headings, "ab req/s", "ab p99 ms", "ab max ms", "ab overflows"], map(cells, rows))


def plot(directory: Path, found: dict[str, dict[str, float]], rows: Sequence[dict[str, Any]], about: dict[str, str]) -> None:
    """Draw the two tables."""
    import matplotlib

    matplotlib.use("Agg")
    directory.mkdir(parents=True, exist_ok=True)
    note = f"{about['python'].split(' GCC')[0]}, Linux {about['kernel']}, {about['processor']}"
    if found:
        plot_rates(directory / "article-rates.png", found, note)
    if rows:
        plot_backlogs(directory / "article-backlog.png", rows, note)
    print(f"plots written to {directory}")


def plot_rates(path: Path, found: dict[str, dict[str, float]], note: str) -> None:
    from matplotlib import pyplot

    colours = {"epollard": "#2f6f4f", "article": "#b08d57"}
    names = sorted(found, key=lambda name: found[name]["requests_per_second"])
    figure, axes = pyplot.subplots(1, 2, figsize=(11, 5.2), sharey=True)
    columns = ("requests_per_second", "requests a second", "%.0f"), ("cpu_us_per_request", "CPU us a request", "%.1f")
    for axis, (key, title, form) in zip(axes, columns, strict=True):
        bars = axis.barh(names, [found[name][key] for name in names], color=[colours[name.split()[0]] for name in names])
        axis.bar_label(bars, fmt=form, padding=3, fontsize=8)
        axis.set_title(title, fontsize=10)
        axis.margins(x=0.14)
        axis.spines[["top", "right"]].set_visible(False)
    figure.suptitle("ab -c 100, HTTP/1.0, a new connection for each request", fontsize=11)
    figure.text(0.99, 0.005, note, ha="right", fontsize=7, color="#666666")
    figure.tight_layout()
    figure.savefig(path, dpi=130)


def plot_backlogs(path: Path, rows: Sequence[dict[str, Any]], note: str) -> None:
    from matplotlib import pyplot

    names = list(dict.fromkeys(row["server"] for row in rows))
    figure, axes = pyplot.subplots(1, len(names), figsize=(11, 4), sharey=True)
    for axis, name in zip(axes, names, strict=True):
        for row in rows:
            if row["server"] == name:
                times = [seconds for seconds in row["seconds"] if seconds < BURST_TIMEOUT]
                share = [100 * (place + 1) / len(row["seconds"]) for place in range(len(times))]
                axis.plot(share, times, drawstyle="steps-pre", label=f"backlog {row['backlog']}")
        axis.set_yscale("log")
        axis.set_title(name, fontsize=10)
        axis.set_xlabel("% of the clients served within")
        axis.grid(axis="y", alpha=0.3)
        axis.legend(fontsize=8, loc="upper left")
    axes[0].set_ylabel("seconds")
    figure.suptitle("Clients that connect at once: the cost of a short listen queue", fontsize=11)
    figure.text(0.99, 0.005, note, ha="right", fontsize=7, color="#666666")
    figure.tight_layout()
    figure.savefig(path, dpi=130)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=("rates", "backlog"), help="measure one of the two questions only")
    parser.add_argument("--rounds", type=int, default=5, help="how often to measure each server (default: %(default)s)")
    parser.add_argument("--requests", type=int, default=20000, help="requests of ab in each round (default: %(default)s)")
    parser.add_argument("--one-cpu", action="store_true", help="run ab on the server's processor")
    parser.add_argument("--clients", type=int, default=100, help="clients that connect at once (default: %(default)s)")
    parser.add_argument("--python", default=sys.executable, help="the interpreter that runs all servers")
    parser.add_argument(
        "--plots",
        type=measure.plots,
        metavar="DIRECTORY",
        help="also draw the tables, into this directory; requires matplotlib",
    )
    arguments = parser.parse_args()
    measure.need("ab", "taskset")
    os.sched_setaffinity(0, {measure.CLIENT_CPU})

    measure.own_network()
    about = measure.machine(arguments.python)
    print(", ".join(f"{key} {value}" for key, value in about.items()))
    found: dict[str, dict[str, float]] = {}
    rows: list[dict[str, Any]] = []
    if arguments.only != "backlog":
        cpu = measure.SERVER_CPU if arguments.one_cpu else measure.CLIENT_CPU
        found = rates(arguments.python, arguments.rounds, arguments.requests, cpu)
        print_rates(found, arguments.rounds, arguments.requests, cpu)
    if arguments.only != "rates":
        rows = backlogs(arguments.python, arguments.rounds, arguments.clients)
        print_backlogs(rows, arguments.rounds, arguments.clients)
    measure.save("article", {"machine": about, "rates": found, "backlogs": rows})
    if arguments.plots:
        plot(arguments.plots, found, rows, about)
    return 0


if __name__ == "__main__":
    sys.exit(main())
