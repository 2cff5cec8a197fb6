"""Promises of the image by itself."""

import hashlib
import json
import time
from pathlib import Path

import pytest

from container.engine import SCALE, docker, running, until

LOCKED = ("--read-only", "--cap-drop", "ALL", "--security-opt", "no-new-privileges")


def test_both_names_work(image: str) -> None:
    """`epollard` and `python -m epollard` are the same program."""
    script = docker("run", "--rm", image, "--version")
    module = docker("run", "--rm", "--entrypoint", "python", image, "-m", "epollard", "--version")
    assert script.startswith("epollard ")
    assert script == module


def test_its_user_is_a_number_and_not_root(image: str) -> None:
    """Kubernetes' `runAsNonRoot` requires a number; the processes run as that user."""
    with running(image) as container:
        until("it responds", 20, container.responds)
        user, _, _ = container.inspect()["Config"]["User"].partition(":")
        assert user.isdigit()
        assert int(user) > 0
        owners = container.python(
            "import json, os; print(json.dumps([os.stat(f'/proc/{p}').st_uid for p in os.listdir('/proc') if p.isdigit()]))"
        )
        assert set(owners) == {int(user)}


@pytest.mark.parametrize(
    "options",
    [("--user", "12345:0", "--read-only"), ("--user", "12345:54321", *LOCKED), LOCKED],
    ids=["any user", "any user and group", "own user"],
)
def test_any_user_and_a_read_only_root(image: str, options: tuple[str, ...]) -> None:
    """It serves as any user and with a file system that is not writable, small bodies and large ones."""
    with running(image, options=options) as container:
        until("it responds", 20, container.responds)
        assert container.ask("/hello") == (200, b"Hello, World!")
        body = bytes(range(256)) * 4096 * 2
        status, response = container.ask("/upload", "POST", body)
        assert status == 200
        assert json.loads(response) == {"length": len(body), "sha256": hashlib.sha256(body).hexdigest()}


@pytest.mark.parametrize("workers", ["1", "4"])
def test_an_idle_server_stops_at_once(image: str, workers: str) -> None:
    """`docker stop` of an idle server takes less than a second and the exit status is 0, so no worker has to be killed."""

    def stop() -> float:
        with running(image, options=("--env", f"WORKERS={workers}")) as container:
            until("it responds", 20, container.responds)
            start = time.monotonic()
            docker("stop", "--time", "20", container.identity)
            took = time.monotonic() - start
            assert container.inspect()["State"]["ExitCode"] == 0
        return took

    assert any(stop() < 1 * SCALE for _ in range(3))  # the best of three: a busy machine and its engine add to the time


@pytest.mark.parametrize(
    ("options", "command"),
    [
        ((), ()),
        (("--env", "PORT=9000"), ()),
        (("--env", "EPOLLARD_BIND=0.0.0.0:9000,unix:/dev/shm/socket"), ()),
        (("--env", "PORT=7000"), ("--bind", "0.0.0.0:9000")),
        (("--env", "PORT=7000"), ("--bind=0.0.0.0:9000", "epollard.demo:application")),
        (("--entrypoint", "python3"), ("-m", "epollard", "--bind", "0.0.0.0:9000")),
        (("--env", "PORT=9000"), ("--admin", "unix:/dev/shm/admin")),
        (("--env", "PORT=9000", "--env", "EPOLLARD_ADMIN=off"), ()),
        (("--entrypoint", "python3"), ("-m", "epollard", "--bind", "0.0.0.0:9000", "--admin=off")),
    ],
    ids=["default", "PORT", "two addresses", "flag", "flag and app", "module", "other management", "none", "none by flag"],
)
def test_the_health_check_finds_the_server(image: str, options: tuple[str, ...], command: tuple[str, ...]) -> None:
    """The HEALTHCHECK finds the addresses however they were given, with management and without, and turns healthy."""
    inside = 9000 if options else 8000
    with running(image, *command, options=("--health-interval", "500ms", *options), inside=inside) as container:

        def health() -> str:
            state = container.inspect()["State"]
            assert state["Running"]
            assert state["Health"]["Status"] != "unhealthy", state["Health"]["Log"]
            return str(state["Health"]["Status"])

        until("healthy", 20, lambda: health() == "healthy")
        assert container.responds(inside)


def test_the_health_check_can_fail(image: str) -> None:
    """If nothing listens at the address, the check reports it and fails."""
    check = ("epollardctl", "healthcheck")
    with running(image) as container:
        until("it responds", 20, container.responds)
        assert docker("exec", container.identity, *check) == "ready\n"
        no_listener = "--env", "EPOLLARD_ADMIN=0.0.0.0:9"
        assert "0.0.0.0:9" in docker("exec", *no_listener, container.identity, *check, status=1)
        no_port = "--env", "EPOLLARD_ADMIN=off", "--env", "PORT=9"
        assert "0.0.0.0:9" in docker("exec", *no_port, container.identity, *check, status=1)
        docker("exec", "--env", "EPOLLARD_THREADS=x", container.identity, *check, status=2)


def test_only_exec_can_command_the_server(image: str) -> None:
    """`docker exec NAME epollardctl` commands the server; the published port gives reports, but accepts no commands."""
    with running(image, options=("--publish", "127.0.0.1::8001", "--env", "WORKERS=1")) as container:
        until("it responds", 20, container.responds)
        assert container.ask("/readyz", inside=8001)[0] == 200
        assert b"epollard_saturation" in container.ask("/metrics", inside=8001)[1]
        assert container.ask("/drain", "POST", b"", inside=8001)[0] == 403
        assert docker("exec", container.identity, "epollardctl", "scale", "2") == "2 workers wanted\n"
        until("two workers", 20, lambda: b'"ready": 2' in container.ask("/readyz", inside=8001)[1])
        assert docker("exec", container.identity, "epollardctl", "drain") == "the server is stopping\n"
        until("ends", 20, lambda: not container.inspect()["State"]["Running"])
        assert container.inspect()["State"]["ExitCode"] == 0


def test_the_health_check_never_calls_the_application(image: str, tmp_path: Path) -> None:
    """A server is healthy even if its application returns errors only, and the check does not call the application."""
    (tmp_path / "own.py").write_text("def app(environ, start_response):\n    print('called')\n    raise RuntimeError\n")
    tmp_path.chmod(0o755)  # the image's user is another one
    options = ("--volume", f"{tmp_path}:/app:ro", "--health-interval", "500ms")
    with running(image, "own:app", options=options) as container:
        until("healthy", 20, lambda: container.inspect()["State"]["Health"]["Status"] == "healthy")
        assert "called" not in container.logs()
        assert container.ask("/")[0] == 500


@pytest.mark.parametrize("named", ["by variable", "by argument"])
def test_two_lines_serve_ones_own_application(image: str, tmp_path: Path, named: str) -> None:
    """FROM, COPY, and the application's name: nothing else is necessary."""
    (tmp_path / "Dockerfile").write_text("FROM epollard\nCOPY . .\n")
    (tmp_path / "own.py").write_text(
        "def app(environ, start_response):\n    start_response('200 OK', [])\n    return [b'mine, all mine']\n"
    )
    tag = f"epollard-test-{tmp_path.name.lower()}"
    docker("build", "--tag", tag, str(tmp_path))
    options, command = (("--env", "APP=own:app"), ()) if named == "by variable" else ((), ("own:app",))
    try:
        with running(tag, *command, options=("--read-only", *options)) as container:
            until("it responds", 20, container.responds)
            assert container.ask("/") == (200, b"mine, all mine")
    finally:
        docker("rmi", "--force", tag, status=None)


@pytest.mark.parametrize(("command", "status"), [("--nonsense", 2), ("nothing.there:app", 3)])
def test_each_cause_of_failure_has_its_exit_status(image: str, command: str, status: int) -> None:
    """It is 2 for bad configuration and 3 for an application that cannot be loaded, also in a container."""
    with running(image, command) as container:
        until("ends", 20, lambda: not container.inspect()["State"]["Running"])
        assert container.inspect()["State"]["ExitCode"] == status
