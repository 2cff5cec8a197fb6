"""A process of clients: asks until its standard input ends, then prints as JSON what became of each request."""

import json
import sys
from pathlib import Path

TESTS = Path(__file__).resolve().parents[2] / "tests"
sys.path.insert(0, str(TESTS))

from load import Load  # noqa: E402 - it lies in another directory


def main() -> None:
    port, clients, target, pause, distance = sys.argv[1:]
    with Load(("127.0.0.1", int(port)), int(clients), target, float(pause), float(distance)) as load:
        sys.stdin.read()
    json.dump({"answers": load.log, "failures": load.failures, "retries": load.retries, "workers": load.answers}, sys.stdout)


if __name__ == "__main__":
    main()
