"""CPU time a request of epollard and its peers, in turn within one run. Compares nothing that was measured on another day.

Each server runs the same application under the same interpreter, with one worker, on processor 0, without an access log; wrk
loads it with 64 connections from processor 1. A round measures every server once, freshly started; the table has the median of
the rounds.
"""

import argparse
import hashlib
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))

import measure  # noqa: E402 - it lies one directory above

# What a server is started with: the interpreter's directory, the port, the application (an attribute of hello.py).
Command = Callable[[Path, int, str], list[str]]

# Every peer has one worker process and its own default of everything else, but for what its remark says.
PEERS: dict[str, Command] = {
    "bjoern": lambda bin, port, app: [f"{bin}/python", "serve_bjoern.py", str(port), app],
    "granian": lambda bin, port, app: [
        *(f"{bin}/granian", "--interface", "wsgi", "--http", "1", "--workers", "1", "--no-access-log"),
        *("--log-level", "warning", "--host", "127.0.0.1", "--port", str(port), f"hello:{app}"),
    ],
    "socketify": lambda bin, port, app: [
        *(f"{bin}/python", "-m", "socketify", f"hello:{app}", "--interface", "wsgi", "--workers", "1"),
        *("--host", "127.0.0.1", "--port", str(port)),
    ],
    # Its HTTP router is a process of its own and counts: without it uWSGI keeps one connection for each worker.
    "uwsgi": lambda bin, port, app: [
        *(f"{bin}/uwsgi", "--http", f"127.0.0.1:{port}", "--http-keepalive", "--tcp-nodelay", "--master", "--processes", "1"),
        *("--listen", "1024", "--disable-logging", "--die-on-term", "--module", f"hello:{app}"),
    ],
    # Its default class, sync, has no keep-alive.
    "gunicorn": lambda bin, port, app: [
        *(f"{bin}/gunicorn", "--workers", "1", "--worker-class", "gthread", "--threads", "8", "--log-level", "warning"),
        *("--bind", f"127.0.0.1:{port}", f"hello:{app}"),
    ],
    "cheroot": lambda bin, port, app: [f"{bin}/cheroot", "--bind", f"127.0.0.1:{port}", f"hello:{app}"],
    "waitress": lambda bin, port, app: [f"{bin}/waitress-serve", f"--listen=127.0.0.1:{port}", f"hello:{app}"],
}

# The application's name in hello.py and the script that makes the requests.
CASES: dict[str, tuple[str, Path]] = {
    "hello": ("app", HERE.parent / "report.lua"),
    "unique": ("app", HERE / "unique.lua"),
    "pipelined": ("app", HERE / "pipelined.lua"),
    "10k": ("large", HERE.parent / "report.lua"),
}


def environment(python: str, directory: Path | None) -> Path:
    """The virtual environment of the peers for this interpreter, made the first time. Returns its bin directory."""
    if directory is None:
        about = [python, "-c", "import sys; print(sys.version, sys.base_prefix)"]
        identity = hashlib.sha256(subprocess.run(about, capture_output=True, check=True).stdout).hexdigest()[:12]
        directory = Path.home() / ".cache" / "epollard-peers" / identity
    bin = directory / "bin"
    wanted = [line for line in (HERE / "requirements.txt").read_text().split("\n") if line and not line.startswith("#")]
    done = directory / "tried.txt"
    if done.exists() and done.read_text().split("\n") == wanted:
        return bin
    print(f"making the peers' environment in {directory}", file=sys.stderr)
    subprocess.run([python, "-m", "venv", str(directory)], check=True)
    for requirement in wanted:
        log = directory / f"{requirement.partition('==')[0]}.log"
        with log.open("w") as output:
            install = [str(bin / "pip"), "install", requirement]
            status = subprocess.run(install, stdout=output, stderr=output, check=False).returncode
        print(f"  {requirement}: {'installed' if status == 0 else f'does not install, see {log}'}", file=sys.stderr)
    done.write_text("\n".join(wanted))
    return bin


def versions(bin: Path) -> dict[str, str]:
    about = "from importlib.metadata import distributions\nfor d in distributions(): print(d.name.lower(), d.version)"
    listed = subprocess.run([str(bin / "python"), "-c", about], capture_output=True, text=True, check=True).stdout
    found = dict(line.split() for line in listed.splitlines())
    return {name: found[name] for name in PEERS if name in found}


def server(name: str, bin: Path, app: str, options: list[str]) -> measure.Server:
    port = measure.free_port()
    if name == "epollard":
        return measure.epollard(str(bin / "python"), port, f"hello:{app}", *options, app_directory=HERE)
    # The environment is activated for those that look for their packages through the PATH (uWSGI embeds the interpreter).
    env = {"PYTHONPATH": str(HERE), "VIRTUAL_ENV": str(bin.parent), "PATH": f"{bin}:/usr/local/bin:/usr/bin:/bin"}
    if name == "uwsgi":
        env["UWSGI_VIRTUALENV"] = str(bin.parent)
    return measure.Server(PEERS[name](bin, port, app), port, env=env, cwd=HERE)


def order(item: tuple[str, dict[str, float]]) -> tuple[bool, float]:
    """Least CPU first; a server that failed, or stood still, has no figure to compare and comes last."""
    figures = item[1]
    return figures["errors"] > 0 or figures["busy"] < 0.5, figures["cpu_us_per_request"]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    names = ", ".join(["epollard", *PEERS])
    parser.add_argument("--peers", default="epollard,bjoern,granian,uwsgi,gunicorn", help=f"some of {names}; or: all")
    parser.add_argument("--case", action="append", choices=CASES, help="repeatable; default: all")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=int, default=3, help="of load in each round")
    parser.add_argument("--connections", type=int, default=64)
    parser.add_argument("--python", default=sys.executable, help="the interpreter for all")
    parser.add_argument("--venv", type=Path, help="the peers' environment; default: below ~/.cache, one for each interpreter")
    parser.add_argument("--option", action="append", default=[], help="for epollard, as in --option=--threads=1; repeatable")
    arguments = parser.parse_args()
    measure.need("wrk", "taskset")

    bin = environment(arguments.python, arguments.venv)
    installed = versions(bin)
    wanted = ["epollard", *PEERS] if arguments.peers == "all" else arguments.peers.split(",")
    if unknown := [name for name in wanted if name != "epollard" and name not in PEERS]:
        parser.error(f"no such peer: {', '.join(unknown)}; there are {names}")
    peers = [name for name in wanted if name == "epollard" or name in installed]
    for name in wanted:
        if name not in peers:
            print(f"{name}: not installed, left out", file=sys.stderr)
    about = measure.machine(arguments.python)
    result: dict[str, object] = {"machine": about, "versions": installed, "options": arguments.option, "cases": {}}
    print(", ".join(f"{key} {value}" for key, value in about.items()))
    print("peers:", ", ".join(f"{name} {version}" for name, version in installed.items()))

    for case in arguments.case or list(CASES):
        app, script = CASES[case]
        loads: dict[str, list[measure.Load]] = {name: [] for name in peers}
        for turn in range(arguments.rounds):
            # Every other round backwards: who is measured after whom must not matter.
            for name in peers if turn % 2 == 0 else peers[::-1]:
                try:
                    with server(name, bin, app, arguments.option) as started:
                        measure.wrk(started, 1, connections=arguments.connections, script=script)  # caches and allocators warm
                        load = measure.wrk(started, arguments.seconds, connections=arguments.connections, script=script)
                        loads[name].append(load)
                except RuntimeError as problem:
                    print(f"{name}, {case}: {problem}", file=sys.stderr)
        medians = {name: measure.median_load(loads[name]) for name in peers if loads[name]}
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
