"""USR2 in a container: its PID 1 stays, and so does the container, while the supervisor in it is replaced."""

import time

import pytest

from container.engine import SCALE, Container, docker, running, until

LOCKED = ("--read-only", "--cap-drop", "ALL", "--security-opt", "no-new-privileges")


def upgrade(container: Container, count: int) -> None:
    """Upgrade for the `count`th time; wait until the old supervisor has stopped."""
    docker("kill", "--signal", "USR2", container.identity)
    until("the new supervisor leads", 20, lambda: container.logs().count("this supervisor leads") == count)
    until("the old supervisor has stopped", 20, lambda: container.logs().count(": stopped: ") == count)


@pytest.mark.parametrize("init", [(), ("--init",)], ids=["PID 1", "under tini"])
def test_the_container_keeps_running(image: str, init: tuple[str, ...]) -> None:
    """After each of three upgrades it serves and is healthy; `docker stop` ends it at once, with exit status 0."""
    with running(image, options=("--env", "WORKERS=2", *init, *LOCKED)) as container:
        until("it responds", 20, container.responds)
        started = container.inspect()["State"]["StartedAt"]
        for count in 1, 2, 3:
            upgrade(container, count)
            assert container.ask("/hello") == (200, b"Hello, World!")
            assert docker("exec", container.identity, "epollardctl", "healthcheck").strip() == "ready"
        state = container.inspect()["State"]
        assert state["Running"]
        assert state["StartedAt"] == started
        # tini, the relay, the supervisor, two workers, and the process that lists them: nothing else, not even a zombie.
        names = container.python("import json, os; print(json.dumps([p for p in os.listdir('/proc') if p.isdigit()]))")
        assert len(names) == 5 + len(init)
        begun = time.monotonic()
        docker("stop", "--time", "20", container.identity)
        assert time.monotonic() - begun < 10.0 * SCALE  # and not killed after 20
        assert container.inspect()["State"]["ExitCode"] == 0


def test_a_failed_upgrade_changes_nothing(image: str) -> None:
    """With a bad configuration file the old supervisor keeps serving; once the file is corrected, an upgrade succeeds."""
    options = ("--env", "WORKERS=1", "--env", "EPOLLARD_CONFIG=/tmp/it.toml", "--entrypoint", "sh")
    start = ("-c", "echo 'threads = 2' >/tmp/it.toml; exec epollard")
    with running(image, *start, options=options) as container:
        until("it responds", 20, container.responds)
        docker("exec", container.identity, "sh", "-c", "echo 'threads = none' >/tmp/it.toml")
        docker("kill", "--signal", "USR2", container.identity)
        until("the upgrade is abandoned", 20, lambda: "upgrade abandoned, this supervisor keeps running" in container.logs())
        assert container.responds()
        docker("exec", container.identity, "sh", "-c", "echo 'threads = 3' >/tmp/it.toml")
        upgrade(container, 1)
        assert container.responds()


def test_a_supervisor_that_dies_ends_the_container(image: str) -> None:
    """The exit status is 1, so that a restart policy applies."""
    with running(image, options=("--env", "WORKERS=1")) as container:
        until("it responds", 20, container.responds)
        upgrade(container, 1)
        leader = "import json, os; print(json.dumps([p for p in os.listdir('/proc') if p.isdigit() and p != '1'" + (
            " and open(f'/proc/{p}/stat').read().rpartition(')')[2].split()[1] == '1']))"
        )
        (pid,) = container.python(leader)
        container.python("import os, sys; os.kill(int(sys.argv[1]), 9); print('null')", pid)
        until("the container ends", 20, lambda: not container.inspect()["State"]["Running"])
        assert container.inspect()["State"]["ExitCode"] == 1
