"""Every option, declared once: flag, variable, TOML key, default, help and documentation all follow from its field here.

An option `some_name` is the flag `--some-name`, the variable `EPOLLARD_SOME_NAME` and the TOML key `some_name`. Wherever a
value comes from, it is text first and is parsed by its option's one `ValueType`.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any, Final, Literal, NamedTuple

from . import values

MAX_WORKERS: Final = 1024  # each has a record in shared memory and a place in the kernel's group of listeners
PREFIX: Final = "EPOLLARD_"


class Option(NamedTuple):
    """The declaration of an option; its names follow from the name of its field."""

    default: str
    value_type: values.ValueType
    group: str
    help: str
    well_known: tuple[str, ...] = ()  # variables without our prefix; the first that is set counts
    repeatable: bool = False  # many flags, a list separated by commas in a variable, a list in TOML


def _option(
    default: str,
    value_type: values.ValueType,
    group: str,
    help: str,
    *,
    well_known: tuple[str, ...] = (),
    repeatable: bool = False,
) -> Any:
    return dataclasses.field(metadata={"option": Option(default, value_type, group, help, well_known, repeatable)})


_SERVED: Final = "What to serve"
_NETWORK: Final = "Network"
_PROCESSES: Final = "Processes"
_CLIENTS: Final = "Timeouts and limits for clients"
_LOGS: Final = "Logs"

_OFTEN: Final = 10**12  # requests: more than a worker will ever handle


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """The configuration, checked and complete; made only by `sources.load`. Times are in seconds, sizes in bytes."""

    app: str | None = _option(
        "",
        values.APP,
        _SERVED,
        "application to serve: MODULE:ATTRIBUTE, or MODULE:FACTORY() for what a factory returns; without it, the built-in demo",
        well_known=("APP",),
    )
    interface: Literal["auto", "wsgi", "asgi"] = _option(
        "auto", values.choice("auto", "wsgi", "asgi"), _SERVED, "interface of the application; auto: detect it"
    )
    chdir: str = _option(
        ".", values.DIRECTORY, _SERVED, "change to this directory first; the application is imported from there"
    )
    bind: tuple[str, ...] = _option(
        "127.0.0.1:8000",
        values.ADDRESS,
        _NETWORK,
        "listen on HOST:PORT, [IPV6]:PORT or unix:PATH",
        well_known=("HOST", "PORT"),
        repeatable=True,
    )
    backlog: int = _option(
        "system", values.BACKLOG, _NETWORK, "maximum number of connections waiting to be accepted, for each listener"
    )
    trigger: Literal["level", "edge", "oneshot"] = _option(
        "level", values.choice("level", "edge", "oneshot"), _NETWORK, "how connections are registered with epoll"
    )
    tcp: Literal["nodelay", "cork", "default"] = _option(
        "nodelay",
        values.choice("nodelay", "cork", "default"),
        _NETWORK,
        "set TCP_NODELAY, TCP_CORK or neither on connections",
    )
    steer: Literal["on", "off"] = _option(
        "on", values.choice("on", "off"), _NETWORK, "steer new connections to workers that can take them, by a BPF program"
    )
    admin: str = _option(
        "127.0.0.1:8001",
        values.ADDRESS_OR_OFF,
        _NETWORK,
        "management address: /livez, /readyz, /metrics, and the commands of epollardctl",
    )
    workers: int = _option(
        values.AUTO,
        values.workers(MAX_WORKERS),
        _PROCESSES,
        "number of worker processes; auto: by the container's limits; MIN..MAX: scale by load",
        well_known=("WORKERS", "WEB_CONCURRENCY"),
    )
    most_workers: int  # not an option: the MAX of `workers`, which itself is the MIN; equal if there is no range
    workers_reason: str  # not an option: how `workers` was found, for the log
    admin_explicit: bool  # not an option: `admin` was set by the user, so failing to bind it is an error
    threads: int = _option(
        "8",
        values.count(1, 1024),
        _PROCESSES,
        "threads per worker; with 1, a worker handles strictly one request at a time",
        well_known=("THREADS",),
    )
    boot_timeout: float = _option(
        "120", values.TIME, _PROCESSES, "seconds to wait for a worker to load the application and become ready"
    )
    stuck_timeout: float = _option(
        "60", values.TIME, _PROCESSES, "replace a worker that has shown no sign of life for this many seconds"
    )
    graceful_timeout: float = _option(
        "30", values.TIME, _PROCESSES, "seconds to wait for in-flight requests when a worker stops"
    )
    drain_delay: float = _option(
        "0",
        values.or_off(values.TIME),
        _PROCESSES,
        "seconds to keep serving after SIGTERM, with /readyz failing, before draining",
    )
    max_requests: int = _option(
        values.OFF, values.or_off(values.count(1, _OFTEN)), _PROCESSES, "replace a worker that has handled this many requests"
    )
    max_requests_jitter: int = _option(
        values.OFF,
        values.or_off(values.count(1, _OFTEN)),
        _PROCESSES,
        "add up to this many to --max-requests, at random for each worker, so that not all are replaced at once",
    )
    max_worker_memory: int = _option(
        values.OFF,
        values.or_off(values.size(2**20, 2**40)),
        _PROCESSES,
        "replace a worker that has used more memory (PSS) than this for some seconds",
    )
    max_worker_age: float = _option(
        values.OFF, values.or_off(values.TIME), _PROCESSES, "replace a worker that is older than this"
    )
    header_timeout: float = _option("10", values.TIME, _CLIENTS, "seconds to wait for the complete head of a request")
    body_timeout: float = _option("30", values.TIME, _CLIENTS, "seconds to wait for more of a request body")
    write_timeout: float = _option("30", values.TIME, _CLIENTS, "seconds to wait for a client to take more of a response")
    keep_alive: float = _option("75", values.TIME, _CLIENTS, "seconds to wait for the next request on an idle connection")
    max_line: int = _option(
        "8k", values.size(64, 2**20), _CLIENTS, "maximum size of a request line; a longer one gets a 414 response"
    )
    max_headers: int = _option(
        "100", values.count(1, 10_000), _CLIENTS, "maximum number of header fields in a request; more get a 431 response"
    )
    max_header_bytes: int = _option(
        "64k", values.size(256, 2**24), _CLIENTS, "maximum size of all header fields together; more get a 431 response"
    )
    max_body: int = _option(
        "100M", values.size(0, 2**40), _CLIENTS, "maximum size of a request body; a larger one gets a 413 response"
    )
    ws_max_size: int = _option(
        "16M",
        values.size(1, 2**30),
        _CLIENTS,
        "maximum size of a WebSocket message, decompressed; a larger one closes the connection",
    )
    ws_ping_interval: float = _option(
        "20", values.TIME, _CLIENTS, "seconds of silence after which a WebSocket client is sent a ping"
    )
    ws_ping_timeout: float = _option(
        "20", values.TIME, _CLIENTS, "seconds to wait for a sign of life from a WebSocket client after a ping"
    )
    ws_deflate: Literal["on", "off"] = _option(
        "off", values.choice("on", "off"), _CLIENTS, "compress WebSocket messages (permessage-deflate)"
    )
    access_log: Literal["off", "text", "json"] = _option(
        "text", values.choice("off", "text", "json"), _LOGS, "log one line for each request on standard output"
    )
    log_level: str = _option(
        "info", values.choice("debug", "info", "warning", "error"), _LOGS, "lowest level to log on standard error"
    )


OPTIONS: Final[Mapping[str, Option]] = {
    field.name: field.metadata["option"] for field in dataclasses.fields(Config) if "option" in field.metadata
}

# Where a file with more options is. Not in `Config`, because it is used up by reading the file.
CONFIG_FILE: Final = Option("", values.FILE, "", "TOML file to read")
SETTABLE: Final[Mapping[str, Option]] = {"config": CONFIG_FILE, **OPTIONS}

# What to do instead of serving, and its help. Flags of the command line only.
ACTIONS: Final[Mapping[str, str]] = {
    "check": "import the application and exit: with 0, or with 3 and the reason",
    "print_config": "show every value and its source, and exit",
    "version": "show the version and exit",
    "help": "show this help and exit",
}


def flag(key: str) -> str:
    return "--" + key.replace("_", "-")


def variable(key: str) -> str:
    return PREFIX + key.upper()
