"""The supervisor's facts as Prometheus metrics, text format 0.0.4. Pure."""

from collections.abc import Iterator
from typing import Final

from ..scoreboard import ABORTED, ACCEPTED, ACTIVE, REJECTED, REQUESTS, STATE, STATE_NAMES
from ..supervision.status import Facts, readiness, saturation

CONTENT_TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"

# A name without `_total`, the column of the scoreboard that it sums, and its HELP.
_COUNTERS: Final = (
    ("connections_accepted", ACCEPTED, "Connections that were accepted."),
    ("requests", REQUESTS, "Requests that the application has answered."),
    ("requests_rejected", REJECTED, "Requests that the server has refused."),
    ("requests_aborted", ABORTED, "Requests whose response could not be delivered completely."),
)


def text(facts: Facts) -> str:
    """The whole page."""
    return "".join(_lines(facts))


def _lines(facts: Facts) -> Iterator[str]:
    processes = facts.processes
    yield _head("workers", "gauge", "Worker processes by state.")
    for state in range(1, len(STATE_NAMES)):
        count = sum(process.record[STATE] == state for process in processes)
        yield f'epollard_workers{{state="{STATE_NAMES[state]}"}} {count}\n'
    yield _gauge("workers_wanted", f"{facts.desired}", "Worker processes that there should be.")
    yield _gauge("ready", f"{int(readiness(facts)[0])}", "1 if new clients are welcome, as /readyz reports it, else 0.")
    yield _gauge("saturation", f"{saturation(facts):.4f}", "How busy the ready workers are: 0 is idle, 1 is at their limit.")
    yield _gauge("connections", f"{sum(process.record[ACTIVE] for process in processes)}", "Connections that are open.")
    for name, column, meaning in _COUNTERS:
        count = facts.past[column] + sum(process.record[column] for process in processes)
        yield _head(f"{name}_total", "counter", meaning) + f"epollard_{name}_total {count}\n"


def _gauge(name: str, value: str, meaning: str) -> str:
    return _head(name, "gauge", meaning) + f"epollard_{name} {value}\n"


def _head(name: str, kind: str, meaning: str) -> str:
    return f"# HELP epollard_{name} {meaning}\n# TYPE epollard_{name} {kind}\n"
