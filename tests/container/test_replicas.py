"""Promises of replicas behind haproxy: they are replaced under Locust's load, and no request is lost."""

import csv
import os
import subprocess

import pytest

from container.engine import ROOT, SCALE, Stack, docker, stack, until
from container.test_under_load import JOURNEYS, headless, loaded

pytestmark = pytest.mark.timeout(300 * SCALE)

USERS = 80  # of Locust

OVER = "docker/haproxy/compose.yaml"


@pytest.fixture(scope="session")
def proxy(image: str) -> None:
    """haproxy's image."""
    docker("build", "--tag", "epollard-haproxy", "docker/haproxy")


def replicas(two: Stack) -> set[str]:
    return set(two.compose("ps", "--quiet", "web").split())


def backend(two: Stack) -> dict[str, dict[str, str]]:
    """haproxy's statistics of each server (and of all of them: BACKEND), by haproxy's name for it."""
    status, page = two.container("haproxy").ask("/;csv", inside=8404)
    assert status == 200
    rows = csv.DictReader(page.decode().removeprefix("# ").splitlines())
    return {row["svname"]: row for row in rows if row["pxname"] == "web"}


def up(two: Stack) -> int:
    """How many servers haproxy sends requests to."""
    return sum(row["status"].startswith("UP") for name, row in backend(two).items() if name != "BACKEND")


def replace(two: Stack, **environ: str) -> int:
    """Run what a user runs when the image has changed. Returns its exit status."""
    given = {"COMPOSE_FILE": f"compose.yaml:{OVER}", "COMPOSE_PROJECT_NAME": two.project, **environ}
    script = ROOT / "docker/haproxy/replace"
    return subprocess.run([script], cwd=ROOT, env=os.environ | two.environ | given, check=False, timeout=120 * SCALE).returncode


def test_replicas_are_replaced_one_after_the_other(proxy: None) -> None:
    """Two replicas behind haproxy are replaced by `docker/haproxy/replace` under load: no request fails. Each old one reports
    that it drains before it exits, so no request that was sent to it has to be sent again."""
    with stack(OVER, FIGURES_PORT="0", **headless(WORKERS="2", LOCUST_USERS=str(USERS))) as two:
        run = loaded(two)
        run.reach(1000)
        before = replicas(two)
        assert len(before) == up(two) == 2
        assert replace(two) == 0
        after = replicas(two)
        assert len(after) == 2
        assert not after & before
        until("haproxy uses the new replicas, and no others", 10, lambda: up(two) == 2)
        run.reach(run.count + 1000)
        together = backend(two)["BACKEND"]
        figures = {name: int(together[name]) for name in ("stot", "econ", "eresp", "wretr", "wredis", "chkdown", "srv_abrt")}
        events = [line for line in docker("logs", two.container("haproxy").identity).splitlines() if line.startswith("Server ")]
        outcome = run.end()
        print(f"haproxy: {figures}, {events}; {outcome}")
        assert outcome.is_flawless(JOURNEYS)
        assert sum("is DOWN, reason: Layer7 wrong status, code: 503" in event for event in events) == len(before)
        assert figures["econ"] == figures["eresp"] == 0
        # A new one has its address before it listens: a user may be refused once by each of them, and is sent elsewhere.
        assert figures["wretr"] + figures["wredis"] <= len(after) * USERS
        assert replace(two, APP="there.is.none:app") == 1
        assert replicas(two) == after, "a replica that cannot start replaces none"
