"""Docker and Compose, used by their command lines as a user would. Everything that is started here is always removed."""

import contextlib
import http.client
import json
import os
import secrets
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

ROOT = Path(__file__).parents[2]
SCALE = float(os.environ.get("EPOLLARD_TEST_SCALE") or 1)  # all waits are multiplied by it

T = TypeVar("T")


def missing() -> str:
    """Why the tests cannot run here; empty if they can."""
    for command in (["docker", "info"], ["docker", "compose", "version"]):
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=60 * SCALE, check=False)
        except OSError as error:
            return f"{command[0]}: {error.strerror}"
        if done.returncode:
            return f"{' '.join(command)}: {(done.stderr.strip() or done.stdout.strip()).splitlines()[-1]}"
    return ""


def docker(*words: str, status: int | None = 0, timeout: float = 300, **environ: str) -> str:
    """The standard output of `docker WORDS`. Its exit status must be `status`, unless that is None."""
    done = subprocess.run(
        ["docker", *words],
        capture_output=True,
        text=True,
        timeout=timeout * SCALE,
        cwd=ROOT,
        env=os.environ | environ,
        check=False,
    )
    assert status is None or done.returncode == status, (
        f"docker {' '.join(words)}: {done.returncode}\n{done.stdout}{done.stderr}"
    )
    return done.stdout


def until(what: str, seconds: float, ask: Callable[[], T]) -> T:
    """The first true value that `ask` returns. It is called repeatedly, for `seconds` at most."""
    deadline = time.monotonic() + seconds * SCALE
    while not (found := ask()):
        assert time.monotonic() < deadline, f"waited {seconds * SCALE:.0f} s in vain: {what}"
        time.sleep(0.05)
    return found


class Container:
    """A container that has been started."""

    def __init__(self, identity: str) -> None:
        self.identity = identity

    def inspect(self) -> Any:
        return json.loads(docker("inspect", self.identity))[0]

    def python(self, program: str, *arguments: str) -> Any:
        """Run a program in the container, as the container's user. It prints JSON."""
        return json.loads(docker("exec", self.identity, "python3", "-c", program, *arguments))

    def logs(self) -> str:
        done = subprocess.run(
            ["docker", "logs", self.identity], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=True
        )
        return done.stdout

    def port(self, inside: int = 8000) -> int:
        """The host's port for the container's port `inside`."""
        return int(self.inspect()["NetworkSettings"]["Ports"][f"{inside}/tcp"][0]["HostPort"])

    def ask(
        self, path: str, method: str = "GET", body: bytes | None = None, headers: Mapping[str, str] = {}, inside: int = 8000
    ) -> tuple[int, bytes]:
        """Status and body of one request on a connection of its own. `OSError` if there is no response."""
        client = http.client.HTTPConnection("127.0.0.1", self.port(inside), timeout=20 * SCALE)
        try:
            client.request(method, path, body, headers)
            response = client.getresponse()
            return response.status, response.read()
        except http.client.HTTPException as error:  # the engine's own proxy accepts before the server does
            raise ConnectionError(repr(error)) from error
        finally:
            client.close()

    def responds(self, inside: int = 8000) -> bool:
        """Whether it serves yet. Fails if the container has exited."""
        state = self.inspect()["State"]
        assert state["Running"], f"exited with {state['ExitCode']}\n{self.logs()}"
        try:
            return self.ask("/hello", inside=inside)[0] == 200
        except OSError:
            return False


@contextlib.contextmanager
def running(image: str, *command: str, options: Sequence[str] = (), inside: int = 8000) -> Iterator[Container]:
    """A container of `image` with a free port of the host for its port `inside`, removed at the end."""
    name = f"epollard-test-{secrets.token_hex(4)}"
    try:
        docker("run", "--detach", "--name", name, "--publish", f"127.0.0.1::{inside}", *options, image, *command)
        container = Container(name)
        yield container
    except BaseException:
        print(docker("logs", name, status=None))
        raise
    finally:
        docker("rm", "--force", "--volumes", name, status=None)


class Stack:
    """The Compose stack under a project name of its own, on free ports."""

    def __init__(self, *files: str, **environ: str) -> None:
        self.project = f"epollard-test-{secrets.token_hex(4)}"
        self.environ = {"PORT": "0", "ADMIN_PORT": "0", "LOCUST_PORT": "0"} | environ
        self.files = [word for file in ("compose.yaml", *files) for word in ("--file", file)]

    def compose(self, *words: str, status: int | None = 0, timeout: float = 300) -> str:
        return docker(
            "compose", "--project-name", self.project, *self.files, *words, status=status, timeout=timeout, **self.environ
        )

    def container(self, service: str) -> Container:
        return Container(self.compose("ps", "--all", "--quiet", service).split()[0])


@contextlib.contextmanager
def stack(*files: str, **environ: str) -> Iterator[Stack]:
    """A stack that the test starts; everything that belongs to it is removed at the end."""
    made = Stack(*files, **environ)
    try:
        yield made
    except BaseException:
        print(made.compose("--profile", "load", "logs", "--no-color", "--tail", "200", status=None))
        raise
    finally:
        made.compose("--profile", "load", "down", "--volumes", "--remove-orphans", "--timeout", "5")
