"""USR2 in a container: its PID 1 stays, and so does the container, whatever becomes of the supervisor in it."""

import time

import pytest

from container.engine import SCALE, Container, docker, running, until

LOCKED = ("--read-only", "--cap-drop", "ALL", "--security-opt", "no-new-privileges")


def upgrade(container: Container, count: int) -> None:
    """For the `count`th time; wait until the old supervisor's workers are gone."""
    docker("kill", "--signal", "USR2", container.identity)
    until("a new one leads", 20, lambda: container.logs().count("this supervisor leads") == count)
    until("the old one is empty", 20, lambda: container.logs().count(": stopped: ") == count)


@pytest.mark.parametrize("init", [(), ("--init",)], ids=["PID 1", "under tini"])
def test_the_container_goes_on(image: str, init: tuple[str, ...]) -> None:
    """Upgraded three times it serves and is well; `docker stop` ends it at once, with 0."""
    with running(image, options=("--env", "WORKERS=2", *init, *LOCKED)) as container:
        until("answers", 20, container.answers)
        started = container.inspect()["State"]["StartedAt"]
        for count in 1, 2, 3:
            upgrade(container, count)
            assert container.ask("/hello") == (200, b"Hello, World!")
            assert docker("exec", container.identity, "epollardctl", "healthcheck").strip() == "ready"
        state = container.inspect()["State"]
        assert state["Running"]
        assert state["StartedAt"] == started
        # tini, the relay, the supervisor, two workers: nothing else, no zombie either; and the one that asks.
        names = container.python("import json, os; print(json.dumps([p for p in os.listdir('/proc') if p.isdigit()]))")
        assert len(names) == 5 + len(init)
        begun = time.monotonic()
        docker("stop", "--time", "20", container.identity)
        assert time.monotonic() - begun < 10.0 * SCALE  # and not killed after 20
        assert container.inspect()["State"]["ExitCode"] == 0


def test_an_upgrade_that_fails_is_no_end(image: str) -> None:
    """With a bad configuration file the container keeps running with the old one; once it is fixed, it is upgraded."""
    options = ("--env", "WORKERS=1", "--env", "EPOLLARD_CONFIG=/tmp/it.toml", "--entrypoint", "sh")
    start = ("-c", "echo 'threads = 2' >/tmp/it.toml; exec epollard")
    with running(image, *start, options=options) as container:
        until("answers", 20, container.answers)
        docker("exec", container.identity, "sh", "-c", "echo 'threads = none' >/tmp/it.toml")
        docker("kill", "--signal", "USR2", container.identity)
        until("it is abandoned", 20, lambda: "upgrade abandoned, this supervisor keeps running" in container.logs())
        assert container.answers()
        docker("exec", container.identity, "sh", "-c", "echo 'threads = 3' >/tmp/it.toml")
        upgrade(container, 1)
        assert container.answers()


def test_a_supervisor_that_dies_ends_the_container(image: str) -> None:
    """With 1, so that a restart policy has something to do."""
    with running(image, options=("--env", "WORKERS=1")) as container:
        until("answers", 20, container.answers)
        upgrade(container, 1)
        leader = "import json, os; print(json.dumps([p for p in os.listdir('/proc') if p.isdigit() and p != '1'" + (
            " and open(f'/proc/{p}/stat').read().rpartition(')')[2].split()[1] == '1']))"
        )
        (pid,) = container.python(leader)
        container.python("import os, sys; os.kill(int(sys.argv[1]), 9); print('null')", pid)
        until("it ends", 20, lambda: not container.inspect()["State"]["Running"])
        assert container.inspect()["State"]["ExitCode"] == 1
