"""`epollardctl`: tells a running server what to do, and asks whether it is well. Finds its address as the server itself does.

Exit status: 0 done, or well; 1 refused, not well, or nobody there; 2 a command that makes no sense, or bad configuration.
"""

import http.client
import json
import os
import socket
import sys
from collections.abc import Sequence
from typing import Any, Final
from urllib.parse import urlencode

from ..config import options

DONE: Final = 0
FAILED: Final = 1
BAD_USAGE: Final = 2

PATIENCE: Final = 3.0  # seconds for an answer; HEALTHCHECK gives us 5 for all
ANSWER_BYTES: Final = 1 << 20
_STRANGER: Final = "{}: what answers there is no epollard"

USAGE: Final = """\
usage: epollardctl COMMAND [OPTIONS]

  scale N        N workers; MIN..MAX: as many as they are busy
  reload         replace all workers by ones that import the application anew
  upgrade        replace the server itself by what is on disk now
  drain          stop, once what has begun is finished
  status         what the workers are doing
  healthcheck    exit status 0 where the server is ready, else 1 and why not

OPTIONS are those of epollard; --admin ADDR says where the server is managed. Without it that is read as the
server reads it: from its own command line where it is PID 1, from EPOLLARD_ADMIN, from its file, else 127.0.0.1:8001.
"""


class Failure(Exception):  # noqa: N818  (an answer, no fault)
    """One line: what did not work."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line `argv` (default: the program's own) and return the exit status."""
    words = list(sys.argv[1:] if argv is None else argv)
    if not words or words[0] in ("-h", "--help", "help"):
        print(USAGE, end="", file=sys.stdout if words else sys.stderr)
        return DONE if words else BAD_USAGE
    command, *words = words
    workers = words.pop(0) if command == "scale" and words else ""
    try:
        if command not in ("scale", "reload", "upgrade", "drain", "status", "healthcheck"):
            raise options.ConfigError(f"{command!r} is no command; epollardctl --help shows all there are")
        if command == "scale":
            options.parse("workers", workers, "scale")
        asked = options.parse_arguments(words)
        if asked.action == "--help":
            print(USAGE, end="")
            return DONE
        if extra := asked.action or "".join(asked.given["app"].texts if "app" in asked.given else ()):
            raise options.ConfigError(f"{command}: {extra!r} is one too many; epollardctl --help shows all there is")
        settings = find(asked)
    except options.ConfigError as error:
        print(f"epollardctl: {error}", file=sys.stderr)
        return BAD_USAGE
    try:
        print(_run(command, workers, settings))
    except Failure as failure:
        print(f"epollardctl: {failure}", file=sys.stderr if command != "healthcheck" else sys.stdout)
        return FAILED
    return DONE


def find(asked: options.Arguments) -> options.Config:
    """The configuration of the server that is meant. `ConfigError`."""
    settings = options.load({**options.parse_arguments(_command_line()).given, **asked.given}, os.environ).config
    os.chdir(settings.chdir)  # relative paths of Unix sockets count from there
    return settings


def _command_line() -> list[str]:
    """The arguments of PID 1, or none where that is some other program (`docker run --init`)."""
    try:
        with open("/proc/1/cmdline", encoding="utf-8", errors="surrogateescape") as file:
            words = file.read().split("\0")[:-1]
    except OSError:
        return []
    names = [os.path.basename(word) for word in words[:3]]  # python3 /usr/local/bin/epollard, or python3 -m epollard
    return words[names.index("epollard") + 1 :] if "epollard" in names else []


def _run(command: str, workers: str, settings: options.Config) -> str:
    """What to print. `Failure`."""
    if command == "healthcheck":
        return _check(settings)
    if settings.admin == "off":
        raise Failure("the server has no management address (--admin off)")
    if command == "status":
        _, told = _ask(settings.admin, "GET", "/readyz")
        try:
            return _table(told)
        except (LookupError, TypeError):
            raise Failure(_STRANGER.format(settings.admin)) from None
    target = f"/{command}?{urlencode({'workers': workers})}" if workers else f"/{command}"
    status, told = _ask(settings.admin, "POST", target)
    if status != http.client.ACCEPTED or "done" not in told:
        raise Failure(str(told.get("error", f"the server answers {status}")))
    return str(told["done"])


def _check(settings: options.Config) -> str:
    """Whether the server is ready. Where nobody manages it: whether every address answers, without asking the application."""
    if settings.admin != "off":
        try:
            status, told = _ask(settings.admin, "GET", "/readyz")
            if "ready" not in told:
                raise Failure(str(told.get("error", _STRANGER.format(settings.admin))))
        except Failure:
            if settings.admin_asked:
                raise
            # By default the server goes on without where somebody else has the address.
        else:
            if status != http.client.OK:
                raise Failure("; ".join(map(str, told.get("reasons", [f"the server answers {status}"]))))
            return "ready"
    for address in settings.bind:
        status, _ = _ask(address, "OPTIONS", "*")
        if status != http.client.OK:
            raise Failure(f"{address} answers {status}")
    return "every address answers"


def _table(told: dict[str, Any]) -> str:
    workers = told["workers"]
    lines = [f"{'ready' if told['ready'] else 'not ready'}: {workers['ready']} of {workers['wanted']} workers"]
    lines += told["reasons"]
    for slot in told["slots"]:
        parts = [f"worker {slot['slot']}: {slot['state']}"]
        parts += [f"{name} {slot[name]}" for name in ("pid", "generation") if name in slot]
        lines.append(", ".join(parts))
    return "\n".join(lines)


def _ask(address: str, method: str, target: str) -> tuple[int, dict[str, Any]]:
    """Status and JSON of one answer; of what is no JSON, nothing. `Failure`."""
    connection = http.client.HTTPConnection("localhost", timeout=PATIENCE)
    try:
        connection.sock = _connect(address)
        connection.request(method, target, headers={"Connection": "close"})
        answer = connection.getresponse()
        # All of it: who leaves early is counted as a client that was lost.
        body = answer.read(ANSWER_BYTES)
    except (OSError, http.client.HTTPException) as error:
        raise Failure(f"{address}: {getattr(error, 'strerror', None) or ' '.join(str(error).split())}") from None
    finally:
        connection.close()
    try:
        told = json.loads(body)
    except ValueError:
        told = {}
    return answer.status, told if isinstance(told, dict) else {}


def _connect(address: str) -> socket.socket:
    """The wildcard addresses reach this host when connected to (Linux)."""
    if not address.startswith("unix:"):
        host, _, port = address.rpartition(":")
        return socket.create_connection((host.strip("[]"), int(port)), timeout=PATIENCE)
    sock = socket.socket(socket.AF_UNIX)
    sock.settimeout(PATIENCE)
    try:
        sock.connect(address.removeprefix("unix:"))
    except OSError:
        sock.close()
        raise
    return sock


if __name__ == "__main__":
    sys.exit(main())
