"""Promises of the Swarm stack: it updates and rolls back under Locust's load, and no request is lost."""

import contextlib
import json
import secrets
from collections.abc import Iterator

import pytest

from container.engine import ROOT, SCALE, Container, docker, running, until
from container.test_under_load import JOURNEYS, Run

pytestmark = pytest.mark.timeout(300 * SCALE)


@pytest.fixture
def swarm() -> Iterator[None]:
    """A Swarm of this engine alone. One that exists already is used, and kept."""
    if json.loads(docker("info", "--format", "{{json .Swarm.LocalNodeState}}")) == "active":
        yield
        return
    docker("swarm", "init", "--advertise-addr", "127.0.0.1")
    try:
        yield
    finally:
        docker("swarm", "leave", "--force")
        docker("network", "rm", "docker_gwbridge", status=None)  # the engine creates it for the Swarm and does not remove it


class Deployment:
    """The Swarm stack under a name of its own."""

    def __init__(self) -> None:
        self.name = f"epollard-test-{secrets.token_hex(4)}"
        self.web = f"{self.name}_web"  # the service, and the network

    def deploy(self, image: str) -> None:
        """Deploy or update. The name leads to all tasks, because without IPVS in the kernel there are no virtual addresses."""
        file = "docker/swarm/stack.yaml"
        docker(
            *("stack", "deploy", "--resolve-image", "never", "--compose-file", file, self.name),
            IMAGE=image,
            ENDPOINT_MODE="dnsrr",
        )

    def tasks(self) -> dict[str, str]:
        """The healthy containers and their images."""
        lines = docker(
            "ps", "--filter", f"label=com.docker.swarm.service.name={self.web}", "--format", "{{.ID}} {{.Status}} {{.Image}}"
        )
        return {line.split()[0]: line.split()[-1] for line in lines.splitlines() if "(healthy)" in line}

    def serves(self, image: str) -> bool:
        """Whether there are exactly two tasks, both of this image."""
        return list(self.tasks().values()) == [image, image]

    def remove(self) -> None:
        """Remove the stack, repeatedly: the network is removed last, and not while the Swarm lists a task that uses it."""
        until("the stack is removed", 60, self._removed)

    def _removed(self) -> bool:
        docker("stack", "rm", self.name, status=None)
        return docker("network", "ls", "--quiet", "--filter", f"name={self.web}") == ""

    def updated(self) -> str:
        """The state of the update."""
        status = json.loads(docker("service", "inspect", self.web))[0].get("UpdateStatus") or {}
        return str(status.get("State", ""))


@pytest.fixture
def deployment(swarm: None) -> Iterator[Deployment]:
    made = Deployment()
    try:
        yield made
    except BaseException:
        print(docker("service", "ps", "--no-trunc", made.web, status=None))
        print(docker("service", "logs", made.web, status=None))
        raise
    finally:
        made.remove()


@contextlib.contextmanager
def locust(network: str) -> Iterator[Run]:
    """Locust as one process in the network of the service."""
    name = f"epollard-test-{secrets.token_hex(4)}"
    try:
        docker(
            *("run", "--detach", "--name", name, "--network", network, "--volume", f"{ROOT}/loadtests:/loadtests:ro"),
            *("locustio/locust:2.47.0", "--locustfile", "/loadtests/locustfile.py", "--host", "http://web:8000", "--headless"),
            *("--json", "--users", "40", "--spawn-rate", "40", "--think", "0.02"),
        )
        yield Run(Container(name))
    finally:
        docker("rm", "--force", name, status=None)


def test_a_swarm_updates_and_rolls_back(image: str, deployment: Deployment) -> None:
    """`docker stack deploy` of another image under load starts new tasks first, then removes the old ones; if the image does
    not start, the old tasks stay. No request fails. Each image names its application itself. Clients find the tasks by the
    DNS of an overlay network."""
    before, after, broken = (f"{deployment.name}:{word}" for word in ("before", "after", "broken"))
    for tag in (before, after):
        docker("tag", image, tag)
    with running(image) as container:
        docker("commit", "--change", "ENV APP=there.is.none:app", container.identity, broken)
    try:
        deployment.deploy(before)
        until("two tasks", 60, lambda: deployment.serves(before))
        with locust(deployment.web) as run:
            run.reach(500)
            deployment.deploy(after)
            until("the update", 90, lambda: deployment.updated() == "completed" and deployment.serves(after))
            kept = deployment.tasks().keys()
            deployment.deploy(broken)
            until("the rollback", 60, lambda: deployment.updated() == "rollback_completed")
            assert deployment.tasks().keys() == kept
            run.reach(run.count + 500)
            outcome = run.end()
        print(f"swarm: {outcome}")
        assert outcome.is_flawless(JOURNEYS)
    finally:
        for tag in (before, after, broken):
            docker("rmi", "--force", tag, status=None)
