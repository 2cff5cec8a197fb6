"""One process of clients: they send requests until standard input ends, then the outcome of each is printed as JSON."""

import json
import sys
import threading
import time
from pathlib import Path

TESTS = Path(__file__).resolve().parents[2] / "tests"
sys.path.insert(0, str(TESTS))

from load import Load  # noqa: E402 - it is in another directory


def watch(lags: list[tuple[float, float]], stopped: threading.Event) -> None:
    """Note when this machine wakes up a sleeping thread late: then it delays servers as well."""
    while not stopped.is_set():
        due = time.monotonic() + 0.01
        time.sleep(0.01)
        now = time.monotonic()
        if now - due > 0.02:
            lags.append((now, now - due))


def main() -> None:
    port, clients, target, pause, distance = sys.argv[1:]
    lags: list[tuple[float, float]] = []
    stopped = threading.Event()
    threading.Thread(target=watch, args=(lags, stopped), daemon=True).start()
    with Load(("127.0.0.1", int(port)), int(clients), target, float(pause), float(distance)) as load:
        sys.stdin.read()
    stopped.set()
    seen = {"answers": load.log, "failures": load.failures, "retries": load.retries, "workers": load.answers, "lags": lags}
    json.dump(seen, sys.stdout)


if __name__ == "__main__":
    main()
