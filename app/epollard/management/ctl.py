"""`epollardctl`: sends commands to a running server, and checks its health. Finds the address in the way the server does.

Exit status: 0 done, or healthy; 1 refused, not healthy, or no server there; 2 an invalid command, or bad configuration.
"""

import http.client
import json
import os
import socket
import sys
from collections.abc import Sequence
from typing import Any, Final
from urllib.parse import urlencode

from .. import exits
from ..config import sources
from ..config.options import Config

RESPONSE_TIMEOUT: Final = 3.0  # seconds; the image's HEALTHCHECK has 5 in all
MAX_RESPONSE: Final = 1 << 20  # bytes
_STATUS: Final = "the server responds with status {}"
_NOT_EPOLLARD: Final = "{}: the server there is not epollard"

USAGE: Final = """\
usage: epollardctl COMMAND [OPTIONS]

  scale N        set the number of workers; MIN..MAX scales between the two by load
  reload         replace all workers by ones that import the application again
  upgrade        replace the server itself by the version that is now on disk
  drain          finish in-flight requests, then stop
  status         show the state of each worker
  healthcheck    exit with 0 if the server is ready, else print why not and exit with 1

OPTIONS are those of epollard; --admin ADDR is the server's management address. Without it the address is found as the
server finds it: in the command line of PID 1 (if that is epollard), in EPOLLARD_ADMIN, in the configuration file, or it is
127.0.0.1:8001.
"""


class Failure(Exception):  # noqa: N818  (a result, not a fault)
    """One line: what did not work."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line `argv` (default: the program's own) and return the exit status."""
    words = list(sys.argv[1:] if argv is None else argv)
    if not words or words[0] in ("-h", "--help", "help"):
        print(USAGE, end="", file=sys.stdout if words else sys.stderr)
        return exits.OK if words else exits.BAD_CONFIGURATION
    command, *words = words
    workers = words.pop(0) if command == "scale" and words else ""
    try:
        if command not in ("scale", "reload", "upgrade", "drain", "status", "healthcheck"):
            raise sources.ConfigError(f"unknown command {command!r}; epollardctl --help lists all commands")
        if command == "scale":
            sources.parse("workers", workers, "scale")
        arguments = sources.parse_arguments(words)
        if arguments.action == "--help":
            print(USAGE, end="")
            return exits.OK
        if extra := arguments.action or "".join(arguments.given["app"].texts if "app" in arguments.given else ()):
            raise sources.ConfigError(f"{command}: unexpected argument {extra!r}; epollardctl --help shows the usage")
        settings = find(arguments)
    except sources.ConfigError as error:
        print(f"epollardctl: {error}", file=sys.stderr)
        return exits.BAD_CONFIGURATION
    try:
        print(_run(command, workers, settings))
    except Failure as failure:
        print(f"epollardctl: {failure}", file=sys.stderr if command != "healthcheck" else sys.stdout)
        return exits.FAILED
    return exits.OK


def find(arguments: sources.Arguments) -> Config:
    """The configuration of the server that is meant. `ConfigError`."""
    settings = sources.load({**sources.parse_arguments(_command_line()).given, **arguments.given}, os.environ).config
    os.chdir(settings.chdir)  # relative paths of Unix sockets start there
    return settings


def _command_line() -> list[str]:
    """The arguments of PID 1, or none if that is another program (`docker run --init`)."""
    try:
        with open("/proc/1/cmdline", encoding="utf-8", errors="surrogateescape") as file:
            words = file.read().split("\0")[:-1]
    except OSError:
        return []
    names = [os.path.basename(word) for word in words[:3]]  # python3 /usr/local/bin/epollard, or python3 -m epollard
    return words[names.index("epollard") + 1 :] if "epollard" in names else []


def _run(command: str, workers: str, settings: Config) -> str:
    """Returns what to print. `Failure`."""
    if command == "healthcheck":
        return _check(settings)
    if settings.admin == "off":
        raise Failure("the server has no management address (--admin off)")
    if command == "status":
        _, report = _request(settings.admin, "GET", "/readyz")
        try:
            return _table(report)
        except (LookupError, TypeError):
            raise Failure(_NOT_EPOLLARD.format(settings.admin)) from None
    target = f"/{command}?{urlencode({'workers': workers})}" if workers else f"/{command}"
    status, result = _request(settings.admin, "POST", target)
    if status != http.client.ACCEPTED or "done" not in result:
        raise Failure(str(result.get("error", _STATUS.format(status))))
    return str(result["done"])


def _check(settings: Config) -> str:
    """Whether the server is ready. Without management: whether each address responds, without asking the application."""
    if settings.admin != "off":
        try:
            status, report = _request(settings.admin, "GET", "/readyz")
            if "ready" not in report:
                raise Failure(str(report.get("error", _NOT_EPOLLARD.format(settings.admin))))
        except Failure:
            if settings.admin_explicit:
                raise
            # If another program has the default address, the server runs without management.
        else:
            if status != http.client.OK:
                raise Failure("; ".join(map(str, report.get("reasons", [_STATUS.format(status)]))))
            return "ready"
    for address in settings.bind:
        status, _ = _request(address, "OPTIONS", "*")
        if status != http.client.OK:
            raise Failure(f"{address} responds with status {status}")
    return "every address responds"


def _table(report: dict[str, Any]) -> str:
    workers = report["workers"]
    lines = [f"{'ready' if report['ready'] else 'not ready'}: {workers['ready']} of {workers['wanted']} workers"]
    lines += report["reasons"]
    for slot in report["slots"]:
        parts = [f"worker {slot['slot']}: {slot['state']}"]
        parts += [f"{name} {slot[name]}" for name in ("pid", "generation") if name in slot]
        lines.append(", ".join(parts))
    return "\n".join(lines)


def _request(address: str, method: str, target: str) -> tuple[int, dict[str, Any]]:
    """Status and JSON object of one response; an empty object if it is not one. `Failure`."""
    connection = http.client.HTTPConnection("localhost", timeout=RESPONSE_TIMEOUT)
    try:
        connection.sock = _connect(address)
        connection.request(method, target, headers={"Connection": "close"})
        response = connection.getresponse()
        # All of it: a client that leaves before the end is counted as aborted.
        body = response.read(MAX_RESPONSE)
    except (OSError, http.client.HTTPException) as error:
        raise Failure(f"{address}: {getattr(error, 'strerror', None) or ' '.join(str(error).split())}") from None
    finally:
        connection.close()
    try:
        value = json.loads(body)
    except ValueError:
        value = {}
    return response.status, value if isinstance(value, dict) else {}


def _connect(address: str) -> socket.socket:
    """Connect. On Linux connecting to a wildcard address reaches this host."""
    if not address.startswith("unix:"):
        host, _, port = address.rpartition(":")
        return socket.create_connection((host.strip("[]"), int(port)), timeout=RESPONSE_TIMEOUT)
    sock = socket.socket(socket.AF_UNIX)
    sock.settimeout(RESPONSE_TIMEOUT)
    try:
        sock.connect(address.removeprefix("unix:"))
    except OSError:
        sock.close()
        raise
    return sock


if __name__ == "__main__":
    sys.exit(main())
