"""Every option, declared once: flag, variable, TOML key, default, help and documentation all follow from its field here.

An option `some_name` is the flag `--some-name`, the variable `EPOLLARD_SOME_NAME` and the TOML key `some_name`. Wherever a
value comes from, it is text first and goes through the one parser of its kind. Nothing here binds, forks, imports or logs.
"""

import dataclasses
import difflib
import os
import re
import textwrap
import tomllib
from collections import ChainMap
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, Final, Literal, NamedTuple, NoReturn

from .. import cgroup
from . import values as kinds

MAX_WORKERS: Final = 1024  # each has a record in memory and a place in the kernel's group of listeners

_PREFIX: Final = "EPOLLARD_"

# What the server tells its workers and its successor, and the factor by which tests scale waits: not options, not mistakes.
_TOLERATED: Final = {"EPOLLARD_WORKER_ID", "EPOLLARD_GENERATION", "EPOLLARD_HANDOVER", "EPOLLARD_TEST_SCALE"}
# Kubernetes puts these into every container beside a Service that is called `epollard` or `epollard-something`.
_SERVICE_LINK: Final = re.compile(r"EPOLLARD_(?:\w+_)?(?:SERVICE_(?:HOST|PORT)|SERVICE_PORT_\w+|PORT_[0-9]+_\w+)", re.ASCII)


class ConfigError(Exception):
    """One line: what is wrong, where it came from, what would be right."""


class Option(NamedTuple):
    """What is declared of an option; its names follow from the field's."""

    default: str
    kind: kinds.Kind
    group: str
    help: str
    also: tuple[str, ...] = ()  # well-known variables, the first that is set wins
    many: bool = False  # repeatable as a flag, separated by commas in a variable, a list in TOML


def _field(option: Option) -> Any:
    return dataclasses.field(metadata={"option": option})


_SERVED, _NETWORK, _PROCESSES, _CLIENTS, _LOGS = (
    "What is served",
    "Network",
    "Processes",
    "Clients: how long to wait, how much to accept",
    "Logs",
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """What the server was told, checked and complete. Made by `load` alone. Times in seconds, sizes in bytes."""

    app: str | None = _field(
        Option("", kinds.APP, _SERVED, "what to serve, or to call first where it ends in (); without it, the demo", ("APP",))
    )
    interface: Literal["auto", "wsgi", "asgi"] = _field(
        Option(
            "auto", kinds.word("auto", "wsgi", "asgi"), _SERVED, "what kind of application it is; auto: by how it can be called"
        )
    )
    chdir: str = _field(Option(".", kinds.DIRECTORY, _SERVED, "go there first; its Python modules are importable"))
    bind: tuple[str, ...] = _field(
        Option("127.0.0.1:8000", kinds.ADDRESS, _NETWORK, "HOST:PORT, [IPV6]:PORT or unix:PATH", ("HOST", "PORT"), many=True)
    )
    backlog: int = _field(
        Option("system", kinds.BACKLOG, _NETWORK, "connections that may wait to be accepted, of each listener")
    )
    trigger: Literal["level", "edge", "oneshot"] = _field(
        Option("level", kinds.word("level", "edge", "oneshot"), _NETWORK, "how connections are registered with epoll")
    )
    tcp: Literal["nodelay", "cork", "default"] = _field(
        Option(
            "nodelay", kinds.word("nodelay", "cork", "default"), _NETWORK, "TCP_NODELAY, TCP_CORK or neither, on connections"
        )
    )
    steer: Literal["on", "off"] = _field(
        Option("on", kinds.word("on", "off"), _NETWORK, "new connections go to workers that can take them, by a BPF program")
    )
    admin: str = _field(
        Option(
            "127.0.0.1:8001", kinds.ADMIN, _NETWORK, "management: /livez, /readyz, /metrics, and the commands of epollardctl"
        )
    )
    workers: int = _field(
        Option(
            kinds.AUTO,
            kinds.workers(MAX_WORKERS),
            _PROCESSES,
            "worker processes; auto: by the container's limits; MIN..MAX: by how busy they are",
            ("WORKERS", "WEB_CONCURRENCY"),
        )
    )
    most_workers: int  # not an option: `workers` is the least, where it is less than this
    workers_reason: str  # not an option: how `workers` came about, in words
    admin_asked: bool  # not an option: `admin` is somebody's wish, so it must be had
    threads: int = _field(
        Option("8", kinds.count(1, 1024), _PROCESSES, "threads of a worker; 1: one request at a time, strictly", ("THREADS",))
    )
    boot_timeout: float = _field(Option("120", kinds.TIME, _PROCESSES, "for a worker to load the application and be ready"))
    stuck_timeout: float = _field(Option("60", kinds.TIME, _PROCESSES, "for a worker's sign of life; a silent one is replaced"))
    graceful_timeout: float = _field(Option("30", kinds.TIME, _PROCESSES, "for a stopping worker to finish what it has begun"))
    drain_delay: float = _field(
        Option(
            "0", kinds.or_off(kinds.TIME), _PROCESSES, "of serving on after TERM, not ready any more, before the server drains"
        )
    )
    max_requests: int = _field(
        Option("off", kinds.or_off(kinds.count(1, 10**12)), _PROCESSES, "answered by a worker, then it is replaced")
    )
    max_requests_jitter: int = _field(
        Option("off", kinds.or_off(kinds.count(1, 10**12)), _PROCESSES, "up to so many more, by lot: not all workers at once")
    )
    max_worker_memory: int = _field(
        Option(
            "off",
            kinds.or_off(kinds.size(2**20, 2**40)),
            _PROCESSES,
            "used by a worker for some seconds (PSS), then it is replaced",
        )
    )
    max_worker_age: float = _field(Option("off", kinds.or_off(kinds.TIME), _PROCESSES, "of a worker, then it is replaced"))
    header_timeout: float = _field(Option("10", kinds.TIME, _CLIENTS, "for the head of a request to arrive whole"))
    body_timeout: float = _field(Option("30", kinds.TIME, _CLIENTS, "for more of a request's body to arrive"))
    write_timeout: float = _field(Option("30", kinds.TIME, _CLIENTS, "for the client to take more of an answer"))
    keep_alive: float = _field(Option("75", kinds.TIME, _CLIENTS, "for the next request on an idle connection"))
    max_line: int = _field(Option("8k", kinds.size(64, 2**20), _CLIENTS, "a request line; a longer one is answered 414"))
    max_headers: int = _field(
        Option("100", kinds.count(1, 10_000), _CLIENTS, "header fields of a request; more are answered 431")
    )
    max_header_bytes: int = _field(
        Option("64k", kinds.size(256, 2**24), _CLIENTS, "header fields together; more are answered 431")
    )
    max_body: int = _field(
        Option("100M", kinds.size(0, 2**40), _CLIENTS, "the body of a request; a bigger one is answered 413")
    )
    ws_max_size: int = _field(Option("16M", kinds.size(1, 2**30), _CLIENTS, "a WebSocket's message; a bigger one closes it"))
    ws_ping_interval: float = _field(
        Option("20", kinds.TIME, _CLIENTS, "of silence, before a WebSocket's client is asked for life")
    )
    ws_ping_timeout: float = _field(
        Option("20", kinds.TIME, _CLIENTS, "for a sign of life of a WebSocket's client that was asked")
    )
    ws_deflate: Literal["on", "off"] = _field(
        Option("off", kinds.word("on", "off"), _CLIENTS, "compression of WebSockets' messages (permessage-deflate)")
    )
    access_log: Literal["off", "text", "json"] = _field(
        Option("text", kinds.word("off", "text", "json"), _LOGS, "a line for each request, on standard output")
    )
    log_level: str = _field(
        Option("info", kinds.word("debug", "info", "warning", "error"), _LOGS, "the least that is said on standard error")
    )


OPTIONS: Final[Mapping[str, Option]] = {
    field.name: field.metadata["option"] for field in dataclasses.fields(Config) if "option" in field.metadata
}


def flag(key: str) -> str:
    return "--" + key.replace("_", "-")


def variable(key: str) -> str:
    return _PREFIX + key.upper()


# Where the others may stand. Not in `Config`: once they have been read, nobody asks.
_FILE: Final = Option("", kinds.Kind("FILE", "the name of a TOML file", str), "", "")
_NAMED: Final[Mapping[str, Option]] = {"config": _FILE, **OPTIONS}

# What is to be done with it all, if not to serve. On the command line only.
_ACTION_HELP: Final = {
    "check": "import the application, then exit: 0, or 3 and why not",
    "print_config": "show every value and where it came from, then exit",
    "version": "show the version, then exit",
    "help": "show this, then exit",
}
_ACTIONS: Final = {flag(key): key for key in _ACTION_HELP}
_FLAGS: Final = {flag(key): key for key in _NAMED if key != "app"}


# --- Where values come from ------------------------------------------------------------------------------------------


class Given(NamedTuple):
    """A value as it was written, and where."""

    texts: tuple[str, ...]  # one, except where the option may be given many times
    source: str


class Arguments(NamedTuple):
    """What the command line says: an action ("" is to serve) and values by option."""

    action: str
    given: dict[str, Given]


class Loaded(NamedTuple):
    """A configuration, and where each of its values came from."""

    config: Config
    sources: dict[str, str]


def parse_arguments(words: Sequence[str]) -> Arguments:
    """Read a command line (without the program's name). Raises `ConfigError`."""
    action = ""
    given: dict[str, Given] = {}
    rest = iter(words)
    for word in rest:
        name, equals, text = word.partition("=")
        if word in ("-h", "--help", "--version"):
            return Arguments("--help" if word == "-h" else word, {})
        if name in _ACTIONS:
            if equals:
                raise ConfigError(f"{name}: takes no value, but {text!r} is given")
            action = name
        elif name in _FLAGS:
            key = _FLAGS[name]
            option = _NAMED[key]
            if not equals:
                text = next(rest, "--")
                if text.startswith("--"):
                    raise ConfigError(f"{name}: a value is missing: {option.kind.expects}")
            before = given[key].texts if key in given and option.many else ()
            given[key] = Given((*before, text), name)
        elif word.startswith("-"):
            raise ConfigError(_unknown("option", name, [*_FLAGS.values(), *_ACTIONS.values()], flag))
        elif "app" in given:
            raise ConfigError(f"APP: {word!r} is one too many: {given['app'].texts[0]!r} is to be served")
        else:
            given["app"] = Given((word,), "command line")
    return Arguments(action, given)


def load(arguments: Mapping[str, Given], environ: Mapping[str, str]) -> Loaded:
    """Flag beats variable beats well-known variable beats file beats default. Raises `ConfigError`.

    Every name is judged; of the values only the winner, so that a flag is always a way out.
    """
    variables = _from_variables(environ)
    file = _from_file(arguments.get("config") or variables.get("config"))
    defaults = {key: Given((option.default,), "default") for key, option in OPTIONS.items()}
    given = ChainMap(dict(arguments), variables, _from_well_known(environ), file, defaults)
    if "bind" not in arguments and "bind" not in variables:
        given.maps[2].update(_from_host_and_port(environ.get("HOST", ""), environ.get("PORT", ""), given["bind"]))

    values: dict[str, Any] = {}
    sources: dict[str, str] = {}
    for key, option in OPTIONS.items():
        texts, sources[key] = given[key]
        parsed = tuple(_parse(option.kind, text, sources[key]) for text in texts)
        values[key] = parsed if option.many else parsed[0]
    for address in values["bind"]:
        if values["bind"].count(address) > 1 and not address.endswith(":0"):
            raise ConfigError(f"{sources['bind']}: {address!r} is given twice; once is enough")
    values["workers"], values["most_workers"], values["workers_reason"] = _size_up(values["workers"], sources)
    values["admin_asked"] = sources["admin"] != "default"
    if values["app"] is None:
        sources["app"] += " (the built-in demo)"
    return Loaded(Config(**values), sources)


def _size_up(asked: Any, sources: dict[str, str]) -> tuple[int, int, str]:
    """The least and the most workers, and how that came about."""
    bounds = asked if isinstance(asked, tuple) else (asked, asked)
    sizing = cgroup.size() if kinds.AUTO in bounds else None
    least, most = (sizing.workers if sizing and bound == kinds.AUTO else bound for bound in bounds)
    if bounds[1] == kinds.AUTO:
        most = max(least, most)  # on a machine that is smaller than was thought
    else:
        least = min(least, most)
    number = f"{least} to {most} workers" if most > least else f"{least} worker{'s' * (least != 1)}"
    if sizing is None:
        return least, most, f"{number}: from {sources['workers']}"
    reason = f"{number}: {sizing.reason.partition(': ')[2]}"
    sources["workers"] += f" (auto; {reason})"
    return least, most, reason


def parse(key: str, text: str, source: str) -> Any:
    """The value of one option, as it was written somewhere else. Raises `ConfigError`."""
    return _parse(OPTIONS[key].kind, text, source)


def _parse(kind: kinds.Kind, text: str, source: str) -> Any:
    try:
        return kind.parse(text)
    except ValueError as error:
        _refuse(source, text, kind.expects, str(error))


def _refuse(source: str, text: str, expects: str, hint: str = "") -> NoReturn:
    raise ConfigError(f"{source}: {text!r} is not {expects}" + (f"; {hint}" if hint else ""))


def _unknown(what: str, name: str, keys: Collection[str], spell: Callable[[str], str]) -> str:
    """What to say of a name that does not exist. An abbreviation (`-w`, `--work`) is asked about, never acted upon."""
    bare = name.lstrip("-").removeprefix(_PREFIX).lower().replace("-", "_")
    close = [key for key in keys if bare and key.startswith(bare)] or difflib.get_close_matches(bare, keys, 1)
    right = f"did you mean {spell(close[0])}?" if close else "epollard --help shows all there are"
    return f"unknown {what} {name!r}; {right}"


def _from_variables(environ: Mapping[str, str]) -> dict[str, Given]:
    known = {variable(key): key for key in _NAMED}
    well_known = {name for option in OPTIONS.values() for name in option.also}
    given = {}
    for name, text in environ.items():
        if not name.startswith(_PREFIX) or not text or name in _TOLERATED:
            continue
        if name in known:
            key = known[name]
            given[key] = Given(tuple(map(str.strip, text.split(","))) if _NAMED[key].many else (text,), name)
        elif name.removeprefix(_PREFIX) in well_known and "://" not in text:
            raise ConfigError(f"unknown variable {name!r}; did you mean {name.removeprefix(_PREFIX)}?")
        elif not (_SERVICE_LINK.fullmatch(name) or (name.endswith("_PORT") and "://" in text)):
            raise ConfigError(_unknown("variable", name, _NAMED, variable))
    return given


def _from_well_known(environ: Mapping[str, str]) -> dict[str, Given]:
    """WORKERS and the like: a value under another name."""
    given = {}
    for key, option in OPTIONS.items():
        name = next((name for name in option.also if environ.get(name)), "")
        if name and key != "bind":
            given[key] = Given((environ[name],), name)
    return given


def _from_host_and_port(host: str, port: str, below: Given) -> dict[str, Given]:
    """HOST and PORT: each changes its half of the address that would be bound without them."""
    if not host and not port:
        return {}
    address = _parse(kinds.ADDRESS, below.texts[0], below.source)
    if len(below.texts) > 1 or address.startswith("unix:"):
        address = OPTIONS["bind"].default
    old_host, _, old_port = address.rpartition(":")
    bare, host = host, f"[{host}]" if ":" in host and not host.startswith("[") else host
    if host and not kinds.is_host(host):
        _refuse("HOST", bare, "a host name or an IP address")
    if port and not kinds.is_port(port):
        _refuse("PORT", port, "a number from 0 to 65535")
    source = " and ".join(name for name, text in (("HOST", host), ("PORT", port)) if text)
    return {"bind": Given((f"{host or old_host}:{port or old_port}",), source)}


def _from_file(named: Given | None) -> dict[str, Given]:
    """The named file; without a name `epollard.toml`, else `pyproject.toml`'s table, where there is one."""
    path, source = (named.texts[0], named.source) if named else ("", "configuration")
    for name in (path,) if path else ("epollard.toml", "pyproject.toml"):
        table = _read_table(name, source)
        if table is not None:
            return _from_table(table, name if name.isprintable() else repr(name))
    if path:
        missing = "has no table [tool.epollard]" if os.path.exists(path) else "is not there"
        raise ConfigError(f"{source}: {path!r} {missing}; name a TOML file")
    return {}


def _read_table(name: str, source: str) -> dict[str, Any] | None:
    try:
        with open(name, "rb") as file:
            table = tomllib.load(file)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise ConfigError(f"{source}: {name!r} cannot be read: {error.strerror}") from None
    except (ValueError, RecursionError) as error:  # not TOML, or not UTF-8; a NUL in the name; a thousand brackets
        raise ConfigError(f"{source}: {name!r} is not TOML: {' '.join(str(error).split())}") from None
    if os.path.basename(name) == "pyproject.toml":
        tool = table.get("tool")
        found = tool.get("epollard") if isinstance(tool, dict) else None
        if found is not None and not isinstance(found, dict):
            raise ConfigError(f"{source}: {name!r} has tool.epollard, but not as the table [tool.epollard]")
        return found
    return table


def _from_table(table: dict[str, Any], source: str) -> dict[str, Given]:
    given = {}
    for key, value in table.items():
        if key not in OPTIONS:
            raise ConfigError(f"{source}: {_unknown('key', key, OPTIONS, str)}")
        option = OPTIONS[key]
        where = f"{source}: {key}"
        items = value if option.many and isinstance(value, list) and value else [value]
        if not all(isinstance(item, str | int | float) and not isinstance(item, bool) for item in items):
            _refuse(where, str(value), option.kind.expects)
        texts = tuple(str(item) for item in items)
        if texts != ("",):  # as with variables, empty is unset
            given[key] = Given(texts, where)
    return given


# --- What a person reads ---------------------------------------------------------------------------------------------

_WIDTH: Final = 96
_COLUMN: Final = 30


def help_text() -> str:
    """What `--help` shows, from the declarations."""
    lines = ["usage: epollard [OPTIONS] [APP]", "", *_entry("APP", OPTIONS["app"].help)]
    groups: dict[str, list[str]] = {}
    for key, option in OPTIONS.items():
        if key != "app":
            also = f"; also {', '.join(option.also)}" if option.also else ""
            repeat = ", repeatable" if option.many else ""
            entry = _entry(f"{flag(key)} {option.kind.metavar}", f"{option.help}{repeat} [{option.default}{also}]")
            groups.setdefault(option.group, []).extend(entry)
    for group, entries in groups.items():
        lines += ["", f"{group}:", *entries]
    lines += ["", "This run:"]
    lines += _entry("--config FILE", "the TOML file to read [default epollard.toml, else [tool.epollard] in pyproject.toml]")
    for name, key in _ACTIONS.items():
        lines += _entry("-h, --help" if key == "help" else name, _ACTION_HELP[key])
    lines += [
        "",
        "Every option --some-name is also the variable EPOLLARD_SOME_NAME and the key some_name in the",
        "TOML file. The flag beats the variable, the variable beats the file. TIME is in seconds, or",
        "500ms, 2m, 1h. SIZE is in bytes, or 64k, 100M, 1G.",
    ]
    return "\n".join(lines) + "\n"


def _entry(name: str, text: str) -> list[str]:
    indent = " " * _COLUMN
    lines = textwrap.wrap(text, _WIDTH, initial_indent=indent, subsequent_indent=indent, break_on_hyphens=False)
    head = f"  {name}"
    return [head, *lines] if len(head) > _COLUMN - 2 else [head.ljust(_COLUMN) + lines[0].lstrip(), *lines[1:]]


def show(loaded: Loaded) -> str:
    """What `--print-config` shows: a TOML file that would configure the same, each value with its source."""
    config = loaded.config
    values = {key: getattr(config, key) for key in OPTIONS}
    if config.most_workers > config.workers:
        values["workers"] = f"{config.workers}..{config.most_workers}"
    lines = [f"{key} = {_toml(value)}" for key, value in values.items()]
    width = min(max(map(len, lines)), _COLUMN)
    return "".join(f"{line:<{width}}  # {loaded.sources[key]}\n" for key, line in zip(OPTIONS, lines, strict=True))


def _toml(value: object) -> str:
    if isinstance(value, tuple):
        return f"[{', '.join(map(_toml, value))}]"
    if value is None or isinstance(value, str):
        shown = (char if char.isprintable() and char not in '"\\' else f"\\U{ord(char):08x}" for char in value or "")
        return f'"{"".join(shown)}"'
    return str(value)
