"""The files in docker/ and docs/deployment.md: schemas accept them, the options in them exist, and their times add up."""

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import httpx
import kubernetes_validate
import pytest
import yaml

from epollard.config import sources
from epollard.config.options import Config
from harness import Server

ROOT = Path(__file__).parents[1]
MANIFESTS = sorted((ROOT / "docker/kubernetes").glob("*.yaml"))
VERSIONS = ["1.29", "1.37"]  # of Kubernetes: the oldest and the newest that we claim to support

LEAST_MARGIN = 3.0  # seconds between the end of the graceful timeout and the kill by the orchestrator


class Loader(yaml.SafeLoader):
    """A loader that also knows Compose's `!reset`."""


Loader.add_constructor("!reset", lambda loader, node: None)


def read(name: str) -> Any:
    """The only document of a file, with each `${VARIABLE:-default}` replaced by its default."""
    text = re.sub(r"\$\{\w+(?::-([^}]*))?\}", lambda match: match[1] or "", (ROOT / name).read_text("utf-8"))
    return yaml.load(text, Loader)


def resources() -> Iterator[Any]:
    for path in MANIFESTS:
        yield from yaml.safe_load_all(path.read_text("utf-8"))


def resource(kind: str) -> Any:
    (found,) = (found for found in resources() if found["kind"] == kind)
    return found


POD = resource("Deployment")["spec"]["template"]
(WEB,) = POD["spec"]["containers"]
HAPROXY = (ROOT / "docker/haproxy/haproxy.cfg").read_text("utf-8")


def seconds(text: object) -> float:
    """`35`, `35s`, `500ms` or `1h`."""
    number, unit = re.fullmatch(r"([0-9.]+)(ms|s|h|)", str(text)).groups()
    return float(number) * {"ms": 0.001, "": 1, "s": 1, "h": 3600}[unit]


def haproxy(directive: str) -> float:
    """The time that follows a directive in haproxy.cfg."""
    (found,) = re.findall(rf"\b{directive} ([0-9]+(?:ms|s|h))\b", HAPROXY)
    return seconds(found)


class Deployed(NamedTuple):
    """A server as one of the files deploys it."""

    environ: dict[str, str]
    grace: float  # seconds from SIGTERM to the kill by the orchestrator
    noticed: float  # seconds until a load balancer sends no more to a draining server; 0 if there is no load balancer

    @property
    def config(self) -> Config:
        return sources.load({}, self.environ).config


def of_compose(*names: str) -> Deployed:
    """The server of Compose's files: the base, and those that override it."""
    services = [read(name)["services"]["web"] for name in names]
    environ = {
        key: "" if value is None else str(value) for service in services for key, value in service["environment"].items()
    }
    inter, fast, check = haproxy("inter"), haproxy("fastinter"), haproxy("timeout check")
    (fall,) = re.findall(r"\bfall (\d+)", HAPROXY)
    noticed = inter + fast * (int(fall) - 1) + check if len(names) > 1 else 0
    return Deployed(environ, seconds(services[-1]["stop_grace_period"]), noticed)


def of_swarm() -> Deployed:
    service = read("docker/swarm/stack.yaml")["services"]["web"]
    return Deployed(
        service["environment"], seconds(service["stop_grace_period"]), 0
    )  # Swarm removes a task from its balancer before the signal


def of_kubernetes() -> Deployed:
    environ = {variable["name"]: variable["value"] for variable in WEB["env"]}
    probe = WEB["readinessProbe"]
    noticed = probe["periodSeconds"] * probe["failureThreshold"] + probe["timeoutSeconds"]
    return Deployed(environ, POD["spec"]["terminationGracePeriodSeconds"], noticed)


def of_systemd() -> Deployed:
    (unit,) = re.findall(r"```ini\n(.*?)```", (ROOT / "docs/deployment.md").read_text("utf-8"), re.DOTALL)
    settings = dict(line.split("=", 1) for line in unit.splitlines() if re.match(r"\w+=", line))
    assert settings["KillMode"] == "mixed"
    return Deployed({}, seconds(settings["TimeoutStopSec"]), 0)


DEPLOYED = {
    "Compose": of_compose("compose.yaml"),
    "behind haproxy": of_compose("compose.yaml", "docker/haproxy/compose.yaml"),
    "Swarm": of_swarm(),
    "Kubernetes": of_kubernetes(),
    "systemd": of_systemd(),
}


# Times


@pytest.mark.parametrize("where", DEPLOYED)
def test_the_options_exist_and_their_values_are_valid(where: str) -> None:
    """Each `EPOLLARD_...` in the files is an option with a valid value: otherwise the server would not start."""
    environ = DEPLOYED[where].environ
    assert sources.load({}, environ)
    with pytest.raises(sources.ConfigError):
        sources.load({}, environ | {"EPOLLARD_NO_SUCH_THING": "1"})


@pytest.mark.parametrize("where", DEPLOYED)
def test_the_orchestrator_waits_for_the_graceful_timeout(where: str) -> None:
    """The kill by the orchestrator comes later than the drain delay and the graceful timeout together."""
    deployed = DEPLOYED[where]
    assert deployed.grace >= deployed.config.drain_delay + deployed.config.graceful_timeout + LEAST_MARGIN


@pytest.mark.parametrize("where", [where for where, deployed in DEPLOYED.items() if deployed.noticed])
def test_a_balancer_notices_before_the_listeners_close(where: str) -> None:
    """The drain delay is longer than a load balancer takes to notice that a server is draining."""
    deployed = DEPLOYED[where]
    assert deployed.config.drain_delay > deployed.noticed


def test_haproxy_closes_idle_connections_before_the_server() -> None:
    """Idle connections are closed by the side that would reuse them, and a response may take as long as the server allows."""
    served = DEPLOYED["behind haproxy"].config
    assert haproxy("timeout http-keep-alive") < served.keep_alive
    assert haproxy("timeout client") < served.keep_alive
    assert haproxy("timeout server") > served.graceful_timeout
    assert seconds(read("docker/haproxy/compose.yaml")["services"]["haproxy"]["stop_grace_period"]) > haproxy("hard-stop-after")


def test_health_checks_wait_longer_than_the_boot_timeout() -> None:
    """The first health check may take longer than the boot timeout, after which the server itself reports what hangs."""
    (period,) = re.findall(r"^HEALTHCHECK .*--start-period=(\S+)", (ROOT / "Dockerfile").read_text("utf-8"), re.MULTILINE)
    assert seconds(period) > DEPLOYED["Compose"].config.boot_timeout
    health = read("docker/swarm/stack.yaml")["services"]["web"]["healthcheck"]
    assert seconds(health["start_period"]) > DEPLOYED["Swarm"].config.boot_timeout
    probe = WEB["startupProbe"]
    assert probe["periodSeconds"] * probe["failureThreshold"] > DEPLOYED["Kubernetes"].config.boot_timeout


def test_the_table_agrees_with_the_files() -> None:
    """The numbers in docs/deployment.md are those of the files."""
    lines = (ROOT / "docs/deployment.md").read_text("utf-8").splitlines()
    start = next(number for number, line in enumerate(lines) if line.startswith("| seconds |"))
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[start : start + 6]]
    assert rows[0][1:] == list(DEPLOYED)
    table = {row[0].strip("`"): row[1:] for row in rows[2:]}
    found = {
        "a balancer has noticed after": [f"{found.noticed:g}" if found.noticed else "-" for found in DEPLOYED.values()],
        "EPOLLARD_DRAIN_DELAY": [f"{deployed.config.drain_delay:g}" for deployed in DEPLOYED.values()],
        "EPOLLARD_GRACEFUL_TIMEOUT": [f"{deployed.config.graceful_timeout:g}" for deployed in DEPLOYED.values()],
        "stop grace": [f"{deployed.grace:g}" for deployed in DEPLOYED.values()],
    }
    assert found == table


# Kubernetes


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("path", MANIFESTS, ids=lambda path: path.stem)
def test_the_manifests_obey_the_schemas(path: Path, version: str) -> None:
    """Kubernetes' own schemas accept every resource, and refuse one with a key that does not exist."""
    for found in yaml.safe_load_all(path.read_text("utf-8")):
        kubernetes_validate.validate(found, version, strict=True)
        found["spec"]["noSuchThing"] = 1
        with pytest.raises(kubernetes_validate.ValidationError):
            kubernetes_validate.validate(found, version, strict=True)


def test_references_between_the_manifests_are_right() -> None:
    """The Service, the disruption budget and the autoscaler select the Deployment's pods; ports are the container's."""
    deployment = resource("Deployment")
    labels = POD["metadata"]["labels"]
    assert deployment["spec"]["selector"]["matchLabels"] == labels
    assert resource("Service")["spec"]["selector"] == labels
    assert resource("PodDisruptionBudget")["spec"]["selector"]["matchLabels"] == labels
    target = resource("HorizontalPodAutoscaler")["spec"]["scaleTargetRef"]
    assert target == {key: deployment[key] for key in ("apiVersion", "kind")} | {"name": deployment["metadata"]["name"]}
    assert "replicas" not in deployment["spec"], "each `kubectl apply` would undo the autoscaler's work"
    ports = {port["name"]: port["containerPort"] for port in WEB["ports"]}
    assert {port["targetPort"] for port in resource("Service")["spec"]["ports"]} == {"http"} <= ports.keys()
    assert {WEB[probe]["httpGet"]["port"] for probe in ("startupProbe", "readinessProbe", "livenessProbe")} == {"management"}
    assert DEPLOYED["Kubernetes"].config.admin == f"0.0.0.0:{ports['management']}"
    annotations = POD["metadata"]["annotations"]
    assert annotations["prometheus.io/port"] == str(ports["management"])
    assert f"check port {ports['management']} " in HAPROXY


def test_probed_paths_and_the_autoscaler_metric_exist(start: Callable[..., Server]) -> None:
    """The probes' paths respond, and /metrics has the autoscaler's figure exactly once."""
    server = start(admin="127.0.0.1:0")
    host, port = server.admin
    paths = {WEB[probe]["httpGet"]["path"] for probe in ("startupProbe", "readinessProbe", "livenessProbe")}
    paths |= set(re.findall(r"http-check send meth GET uri (\S+)", HAPROXY))
    assert paths == {"/livez", "/readyz"}
    for path in paths:
        assert httpx.get(f"http://{host}:{port}{path}").status_code == 200
    page = httpx.get(f"http://{host}:{port}{POD['metadata']['annotations']['prometheus.io/path']}").text
    (metric,) = resource("HorizontalPodAutoscaler")["spec"]["metrics"]
    (line,) = re.findall(rf"^{metric['pods']['metric']['name']}\b.*", page, re.MULTILINE)
    assert re.fullmatch(r"epollard_saturation [01]\.\d+", line)


def test_pods_are_locked_down() -> None:
    """Not root, only /tmp is writable, no capabilities, no new privileges, the runtime's seccomp profile, no token."""
    assert POD["spec"]["securityContext"]["runAsNonRoot"] is True
    assert POD["spec"]["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert POD["spec"]["automountServiceAccountToken"] is False
    assert WEB["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    assert [mount["mountPath"] for mount in WEB["volumeMounts"]] == ["/tmp"]


def test_an_eviction_leaves_a_pod_running() -> None:
    """There are at least two pods, and evictions take one at a time; an update starts the new pod first."""
    assert resource("HorizontalPodAutoscaler")["spec"]["minReplicas"] >= 2
    assert resource("PodDisruptionBudget")["spec"]["maxUnavailable"] == 1
    assert resource("Deployment")["spec"]["strategy"]["rollingUpdate"] == {"maxSurge": 1, "maxUnavailable": 0}
    assert read("docker/swarm/stack.yaml")["services"]["web"]["deploy"]["update_config"]["order"] == "start-first"
