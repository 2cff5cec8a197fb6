"""Runs Autobahn's WebSocket test suite against the server, without compression and with it. Status 1 if a mandatory case fails.

The suite (`autobahntestsuite`) is for Python 2.7, which must be installed with pip, and needs a C compiler; its other
requirements are installed below ~/.cache on the first run. All connections stay on 127.0.0.1.
"""

import argparse
import contextlib
import glob
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parent)]

from harness import Server  # noqa: E402 - it lies one directory above

# The suite's verdicts that are right. Non-strict: correct, but sooner or later than it might be.
GOOD = {"OK": "ok", "NON-STRICT": "non-strict", "INFORMATIONAL": "informational"}

TITLES = {
    1: "framing",
    2: "pings and pongs",
    3: "reserved bits",
    4: "opcodes",
    5: "fragmentation",
    6: "UTF-8",
    7: "closing",
    9: "limits, performance",
    10: "automatic fragmentation",
    12: "compression, different payloads",
    13: "compression, different parameters",
}


class Part(NamedTuple):
    """The cases that one run of the suite tries against one server."""

    deflate: str
    cases: tuple[str, ...]


PLAIN = tuple(f"{number}.*" for number in (1, 2, 3, 4, 5, 6, 7, 9, 10))
WHOLE = [
    Part("off", PLAIN),
    Part("on", PLAIN),
    *(Part("on", (f"12.{number}.*",)) for number in range(1, 6)),
    *(Part("on", (f"13.{number}.*",)) for number in range(1, 8)),
]
# Without the cases that move hundreds of MiB.
QUICK = [
    Part("off", tuple(case for case in PLAIN if case != "9.*")),
    Part("on", ("1.*", "5.*", "7.*", *(f"12.{group}.3" for group in range(1, 6)), *(f"13.{group}.3" for group in range(1, 8)))),
]


class Outcome(NamedTuple):
    """The result of one case."""

    deflate: str
    case: str
    behavior: str
    closing: str

    @property
    def good(self) -> bool:
        return self.behavior in GOOD and self.closing in GOOD


class MissingError(Exception):
    """The suite is not available here; the message gives the reason."""


def find_python() -> str:
    """A Python 2.7 with pip. Raises `MissingError`."""
    found = [shutil.which("python2.7"), *sorted(glob.glob(os.path.expanduser("~/.pyenv/versions/2.7*/bin/python")))]
    for python in filter(None, found):
        asked = subprocess.run([python, "-m", "pip", "--version"], capture_output=True, text=True, check=False)
        if asked.returncode == 0 and "python 2.7" in asked.stdout:
            return python
    raise MissingError("no Python 2.7 with pip")


def environment(python: str) -> Path:
    """A directory with the suite and its requirements, made on the first run. Raises `MissingError`."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    requirements = HERE / "requirements.txt"
    directory = cache / f"epollard-autobahn-{hashlib.sha256(requirements.read_bytes()).hexdigest()[:12]}"
    if directory.exists():
        return directory
    print(f"installing Autobahn's test suite into {directory}", file=sys.stderr)
    cache.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=cache, ignore_cleanup_errors=True) as temporary:
        target = Path(temporary) / "packages"
        words = [python, "-m", "pip", "install", "--no-deps", "--target", str(target), "-r", str(requirements)]
        done = subprocess.run(words, capture_output=True, stdin=subprocess.DEVNULL, text=True, errors="replace", check=False)
        if done.returncode:
            raise MissingError(f"the suite does not install: {done.stderr[-1000:]}")
        with contextlib.suppress(OSError):  # another process was quicker
            target.rename(directory)
    return directory


def run_part(python: str, packages: Path, part: Part, directory: Path) -> list[Outcome]:
    """Try the cases of one part against a server of its own. Raises `RuntimeError` if the suite itself fails."""
    server = Server("apps.websocket_routes:app", directory, ws_deflate=part.deflate, access_log="off")
    try:
        server.started()
        report = directory / "report"
        specification = {
            "outdir": str(report),
            "servers": [{"agent": "epollard", "url": f"ws://127.0.0.1:{server.port}/echo"}],
            "cases": list(part.cases),
            "exclude-cases": [],
            "exclude-agent-cases": {},
        }
        (directory / "specification.json").write_text(json.dumps(specification))
        # `addsitedir`, because zope is a namespace package, which PYTHONPATH alone does not make.
        start = f"import site; site.addsitedir({str(packages)!r}); from autobahntestsuite.wstest import run; run()"
        words = [python, "-c", start, "-m", "fuzzingclient", "-s", str(directory / "specification.json")]
        with (directory / "suite.log").open("w") as log:
            status = subprocess.run(words, stdout=log, stderr=log, cwd=directory, check=False).returncode
        if status or not (report / "index.json").exists():
            raise RuntimeError(f"the suite ended with {status}:\n{(directory / 'suite.log').read_text()[-2000:]}")
        server.stop()
    finally:
        server.kill()
    found = json.loads((report / "index.json").read_text())["epollard"]
    return [Outcome(part.deflate, case, one["behavior"], one["behaviorClose"]) for case, one in found.items()]


def run(parts: Sequence[Part], jobs: int, directory: Path) -> list[Outcome]:
    """Try all parts, `jobs` at a time; reports stay in `directory`. Raises `MissingError`, `RuntimeError`."""
    python = find_python()
    packages = environment(python)
    directories = [directory / f"{number}-{part.deflate}-{part.cases[0].rstrip('.*')}" for number, part in enumerate(parts)]
    for one in directories:
        one.mkdir(parents=True)
    with ThreadPoolExecutor(jobs) as pool:
        running = [pool.submit(run_part, python, packages, part, one) for part, one in zip(parts, directories, strict=True)]
        return [outcome for one in running for outcome in one.result()]


def table(outcomes: Sequence[Outcome]) -> str:
    """A Markdown table with a row for each group of cases and each setting."""
    rows: dict[tuple[int, str], Counter[str]] = {}
    for outcome in outcomes:
        counts = rows.setdefault((int(outcome.case.partition(".")[0]), outcome.deflate), Counter())
        counts["cases"] += 1
        counts[GOOD[outcome.behavior] if outcome.good else "failed"] += 1
    names = ["cases", *GOOD.values(), "failed"]
    lines = [f"| group | compression | {' | '.join(names)} |", "|---|---|" + "---:|" * len(names)]
    for (group, deflate), counts in sorted(rows.items(), key=lambda row: (row[0][1], row[0][0])):
        lines.append(f"| {group}. {TITLES.get(group, '')} | {deflate} | {' | '.join(str(counts[name]) for name in names)} |")
    total = sum(rows.values(), Counter())
    lines.append(f"| all | | {' | '.join(str(total[name]) for name in names)} |")
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="without the cases that move hundreds of MiB: half a minute")
    parser.add_argument("--jobs", type=int, default=max(1, (os.cpu_count() or 2) // 2), help="parts at a time")
    parser.add_argument("--reports", type=Path, help="keep the suite's own reports (HTML) here; a new directory")
    parser.add_argument("--only", help="parts whose first case matches this expression, as in --only '1[23]'")
    arguments = parser.parse_args()
    parts = [part for part in (QUICK if arguments.quick else WHOLE) if re.match(arguments.only or "", part.cases[0])]
    with tempfile.TemporaryDirectory() as temporary:
        try:
            outcomes = run(parts, arguments.jobs, arguments.reports or Path(temporary))
        except MissingError as problem:
            print(problem, file=sys.stderr)
            return 2
    print(table(outcomes))
    failed = [outcome for outcome in outcomes if not outcome.good]
    for outcome in failed:
        print(f"failed: {outcome.case}, compression {outcome.deflate}: {outcome.behavior}, closing {outcome.closing}")
    return 1 if failed or not outcomes else 0


if __name__ == "__main__":
    sys.exit(main())
