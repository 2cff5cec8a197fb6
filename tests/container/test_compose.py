"""Promises of the Compose stack."""

import json

from container.engine import Container, docker, stack, until
from epollard.config import options

LISTENERS = """
import json
rows = [line.split() for line in open('/proc/net/tcp')][1:]
print(json.dumps([(row[1], row[9]) for row in rows if row[3] == '0A']))  # local address and inode of each listener
"""


def test_every_option_is_passed_through(image: str) -> None:
    """A variable that is set outside reaches the server; one that is not set there is not set inside either."""
    names = ["APP", "WORKERS", "WEB_CONCURRENCY", "THREADS", "EPOLLARD_CONFIG", *map(options.variable, options.OPTIONS)]
    with stack(**{name: f"<{name}>" for name in names}) as outside:
        found = json.loads(outside.compose("config", "--format", "json"))["services"]["web"]["environment"]
    assert found == {name: f"<{name}>" for name in names}


def test_it_can_be_managed_from_outside(image: str) -> None:
    """The management listener is reachable through its published port, from this machine only."""
    with stack() as plain:
        plain.compose("up", "--detach", "--wait", "web")
        web = plain.container("web")
        assert web.ask("/readyz", inside=8001)[0] == web.ask("/hello")[0] == 200
        assert [port["HostIp"] for port in web.inspect()["NetworkSettings"]["Ports"]["8001/tcp"]] == ["127.0.0.1"]


def test_four_workers_one_address(image: str) -> None:
    """`WORKERS=4 docker compose up` is healthy: four listeners share one address, so one group, and four processes respond."""
    with stack(WORKERS="4") as four:
        four.compose("up", "--detach", "--wait", "web")
        web = four.container("web")
        listeners = [(address, inode) for address, inode in web.python(LISTENERS) if address == "00000000:1F40"]
        assert len(listeners) == 4
        assert len({inode for _, inode in listeners}) == 4
        assert len(pids(web, 4)) == 4


def pids(web: Container, count: int) -> set[int]:
    """The processes that respond, once there are `count` of them."""
    found: set[int] = set()

    def enough() -> bool:
        found.add(json.loads(web.ask("/json")[1])["pid"])
        return len(found) >= count

    until(f"{count} workers respond", 20, enough)
    return found


def test_it_is_locked_down(image: str) -> None:
    """No capability, no new privileges, only /tmp is writable; the kernel's settings are those of the file."""
    program = """
import json
status = dict(line.split(':', 1) for line in open('/proc/1/status'))
root = next(line.split() for line in open('/proc/mounts') if line.split()[1] == '/')
print(json.dumps([status['CapEff'].strip(), status['CapBnd'].strip(), status['NoNewPrivs'].strip(), root[3].split(',')[0],
                  int(open('/proc/sys/net/core/somaxconn').read()), int(open('/proc/sys/net/ipv4/tcp_migrate_req').read())]))
"""
    with stack(SOMAXCONN="1234") as locked:
        locked.compose("up", "--detach", "--wait", "web")
        web = locked.container("web")
        assert web.python(program) == ["0" * 16, "0" * 16, "1", "ro", 1234, 1]
        assert web.inspect()["HostConfig"]["Ulimits"] == [{"Name": "nofile", "Soft": 16384, "Hard": 16384}]
        docker("stop", web.identity)
        assert web.inspect()["State"]["ExitCode"] == 0
