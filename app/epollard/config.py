"""Every option, declared once: flag, variable, TOML key, default, help and documentation all follow from its field here.

An option `some_name` is the flag `--some-name`, the variable `EPOLLARD_SOME_NAME` and the TOML key `some_name`. Wherever a
value comes from, it is text first and goes through the one parser of its kind. Nothing here binds, forks, imports or logs.
"""

import dataclasses
import difflib
import ipaddress
import os
import re
import textwrap
import tomllib
from collections import ChainMap
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, Final, Literal, NamedTuple, NoReturn, TypeVar

from . import cgroup

MAX_WORKERS: Final = 1024  # each has a record in memory and a place in the kernel's group of listeners

_AUTO: Final = "auto"
_PREFIX: Final = "EPOLLARD_"

# What the server tells its workers and its successor, and the factor by which tests scale waits: not options, not mistakes.
_TOLERATED: Final = {"EPOLLARD_WORKER_ID", "EPOLLARD_GENERATION", "EPOLLARD_HANDOVER", "EPOLLARD_TEST_SCALE"}
# Kubernetes puts these into every container beside a Service that is called `epollard` or `epollard-something`.
_SERVICE_LINK: Final = re.compile(r"EPOLLARD_(?:\w+_)?(?:SERVICE_(?:HOST|PORT)|SERVICE_PORT_\w+|PORT_[0-9]+_\w+)", re.ASCII)


class ConfigError(Exception):
    """One line: what is wrong, where it came from, what would be right."""


# --- Kinds of values -------------------------------------------------------------------------------------------------


class Kind(NamedTuple):
    """One way to write a value."""

    metavar: str
    expects: str  # completes the sentence "'x' is not ..."
    parse: Callable[[str], Any]  # raises ValueError, whose message (if any) is a hint at what would be right


def _digits(text: str) -> int:
    """A number in ASCII digits and nothing else: int() alone takes '+5', '1_000', ' 5 ' and other scripts' digits."""
    if not (text.isascii() and text.isdigit() and len(text) <= 18):
        raise ValueError
    return int(text)


_Number = TypeVar("_Number", int, float)


def _within(value: _Number, low: _Number, high: _Number) -> _Number:
    if not low <= value <= high:
        raise ValueError
    return value


def _count(low: int, high: int) -> Kind:
    return Kind("N", f"a number from {low} to {high}", lambda text: _within(_digits(text), low, high))


def _word(*words: str) -> Kind:
    def parse(text: str) -> str:
        if text not in words:
            raise ValueError
        return text

    return Kind("|".join(words), f"{', '.join(words[:-1])} or {words[-1]}", parse)


def _or_off(kind: Kind) -> Kind:
    """`off` is 0, which the kind itself does not allow."""
    return Kind(f"{kind.metavar}|off", f"{kind.expects}, or off", lambda text: 0 if text in ("off", "0") else kind.parse(text))


_UNITS: Final = {"": 0, "k": 10, "m": 20, "g": 30}  # as powers of two
_SIZE: Final = re.compile(r"([0-9]{1,12}) ?(?:([kmg])(?:ib)?)?", re.ASCII | re.IGNORECASE)


def _size(low: int, high: int) -> Kind:
    def parse(text: str) -> int:
        match = _SIZE.fullmatch(text)
        if match is None:
            raise ValueError
        return _within(int(match[1]) << _UNITS[(match[2] or "").lower()], low, high)

    return Kind("SIZE", f"a size such as 8192, 64k or 100M, from {_size_text(low)} to {_size_text(high)}", parse)


def _size_text(size: int) -> str:
    for power, unit in (30, "G"), (20, "M"), (10, "k"):
        if size and size % (1 << power) == 0:
            return f"{size >> power}{unit}"
    return str(size)


_SECONDS: Final = {"ms": 0.001, "": 1.0, "s": 1.0, "m": 60.0, "h": 3600.0}
_DURATION: Final = re.compile(r"([0-9]{1,9}(?:\.[0-9]{1,9})?)(ms|s|m|h|)", re.ASCII)
_LONGEST: Final = 24 * 3600.0  # more than a day is a mistake of units


def _parse_duration(text: str) -> float:
    match = _DURATION.fullmatch(text)
    if match is None:
        raise ValueError
    return _within(float(match[1]) * _SECONDS[match[2]], 0.001, _LONGEST)


def _parse_workers(text: str) -> int | str | tuple[int | str, int | str]:
    """A number, `auto`, or two of these: the least and the most."""

    def one(text: str) -> int | str:
        return text if text == _AUTO else _within(_digits(text), 1, MAX_WORKERS)

    low, dots, high = text.partition("..")
    if not dots:
        return one(text)
    least, most = one(low), one(high)
    if isinstance(least, int) and isinstance(most, int) and least > most:
        raise ValueError(f"did you mean {most}..{least}?")
    return least, most


def _parse_backlog(text: str) -> int:
    if text == "system":
        try:
            with open("/proc/sys/net/core/somaxconn", encoding="ascii") as file:
                return int(file.read())
        except OSError:
            return 4096  # the kernel's own default since 5.4
    return _within(_digits(text), 1, 2**31 - 1)


# A module's file may have a dash in its name, an attribute may not.
_SPEC: Final = re.compile(r"[\w-]+(?:\.[\w-]+)*(?::[^\W\d]\w*(?:\.[^\W\d]\w*)*(?:\(\))?)?")


def _parse_app(text: str) -> str | None:
    if not text or _SPEC.fullmatch(text):
        return text or None
    module, colon, attribute = text.partition(":")
    guess = module.removeprefix("./").removesuffix(".py").replace("/", ".") + colon + attribute
    raise ValueError(f"did you mean {guess}?" if _SPEC.fullmatch(guess) else "")


def _parse_directory(text: str) -> str:
    if not (os.path.isdir(text) and os.access(text, os.X_OK)):
        raise ValueError
    return text


_NAME: Final = re.compile(r"[A-Za-z0-9_](?:[A-Za-z0-9_.-]{0,252}[A-Za-z0-9_])?", re.ASCII)
_SUN_PATH: Final = 107  # bytes: unix(7), without the final NUL


def _is_port(text: str) -> bool:
    return text.isascii() and text.isdigit() and len(text) <= 5 and int(text) <= 65535


def _is_host(text: str) -> bool:
    try:
        if text.startswith("[") and text.endswith("]"):
            return text.isprintable() and bool(ipaddress.IPv6Address(text[1:-1]))
        if not text.strip("0123456789."):
            return bool(ipaddress.IPv4Address(text))
    except ValueError:
        return False
    return _NAME.fullmatch(text) is not None


def _address(text: str) -> str:
    """`text` in its one canonical form, or "" where it is no address."""
    if text.startswith("unix:"):
        path = os.fsencode(text[5:])
        return text if 0 < len(path) <= _SUN_PATH and b"\0" not in path else ""
    host, _, port = text.rpartition(":")
    return f"{host}:{int(port)}" if _is_host(host) and _is_port(port) else ""


def _parse_address(text: str) -> str:
    if address := _address(text):
        return address
    port = text.removeprefix(":")
    if _is_port(port):
        raise ValueError(f"did you mean 0.0.0.0:{port} (every interface) or 127.0.0.1:{port} (this machine only)?")
    host, _, port = text.rpartition(":")
    authority = text.partition("://")[2].partition("/")[0]
    path = f"unix:{text}" if text.startswith("/") else ""
    for guess in path, authority, f"{authority}:80", f"[{host}]:{port}", f"{text}:8000", f"[{text}]:8000":
        if _address(guess):
            raise ValueError(f"did you mean {guess}?")
    raise ValueError


def _parse_admin(text: str) -> str:
    return text if text == "off" else _parse_address(text)


_APP: Final = Kind("APP", "MODULE:ATTRIBUTE or MODULE:FACTORY()", _parse_app)
_ADDRESS: Final = Kind("ADDR", f"HOST:PORT, [IPV6]:PORT or unix:PATH (at most {_SUN_PATH} bytes)", _parse_address)
_ADMIN: Final = Kind("ADDR|off", f"{_ADDRESS.expects}, or off", _parse_admin)
_DIRECTORY: Final = Kind("DIR", "a directory that can be entered", _parse_directory)
_WORKERS: Final = Kind(
    "N|auto|MIN..MAX", f"a number from 1 to {MAX_WORKERS}, auto, or two of these as MIN..MAX", _parse_workers
)
_BACKLOG: Final = Kind("N|system", "a number of connections from 1 up, or system", _parse_backlog)
_TIME: Final = Kind("TIME", "a time above 0 and up to 24h such as 10, 1.5, 500ms or 2m", _parse_duration)


# --- The options -----------------------------------------------------------------------------------------------------


class Option(NamedTuple):
    """What is declared of an option; its names follow from the field's."""

    default: str
    kind: Kind
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
        Option("", _APP, _SERVED, "what to serve, or to call first where it ends in (); without it, the demo", ("APP",))
    )
    interface: Literal["auto", "wsgi", "asgi"] = _field(
        Option("auto", _word("auto", "wsgi", "asgi"), _SERVED, "what kind of application it is; auto: by how it can be called")
    )
    chdir: str = _field(Option(".", _DIRECTORY, _SERVED, "go there first; its Python modules are importable"))
    bind: tuple[str, ...] = _field(
        Option("127.0.0.1:8000", _ADDRESS, _NETWORK, "HOST:PORT, [IPV6]:PORT or unix:PATH", ("HOST", "PORT"), many=True)
    )
    backlog: int = _field(Option("system", _BACKLOG, _NETWORK, "connections that may wait to be accepted, of each listener"))
    trigger: Literal["level", "edge", "oneshot"] = _field(
        Option("level", _word("level", "edge", "oneshot"), _NETWORK, "how connections are registered with epoll")
    )
    tcp: Literal["nodelay", "cork", "default"] = _field(
        Option("nodelay", _word("nodelay", "cork", "default"), _NETWORK, "TCP_NODELAY, TCP_CORK or neither, on connections")
    )
    steer: Literal["on", "off"] = _field(
        Option("on", _word("on", "off"), _NETWORK, "new connections go to workers that can take them, by a BPF program")
    )
    admin: str = _field(
        Option("127.0.0.1:8001", _ADMIN, _NETWORK, "management: /livez, /readyz, /metrics, and the commands of epollardctl")
    )
    workers: int = _field(
        Option(
            _AUTO,
            _WORKERS,
            _PROCESSES,
            "worker processes; auto: by the container's limits; MIN..MAX: by how busy they are",
            ("WORKERS", "WEB_CONCURRENCY"),
        )
    )
    most_workers: int  # not an option: `workers` is the least, where it is less than this
    workers_reason: str  # not an option: how `workers` came about, in words
    admin_asked: bool  # not an option: `admin` is somebody's wish, so it must be had
    threads: int = _field(
        Option("8", _count(1, 1024), _PROCESSES, "threads of a worker; 1: one request at a time, strictly", ("THREADS",))
    )
    boot_timeout: float = _field(Option("120", _TIME, _PROCESSES, "for a worker to load the application and be ready"))
    stuck_timeout: float = _field(Option("60", _TIME, _PROCESSES, "for a worker's sign of life; a silent one is replaced"))
    graceful_timeout: float = _field(Option("30", _TIME, _PROCESSES, "for a stopping worker to finish what it has begun"))
    drain_delay: float = _field(
        Option("0", _or_off(_TIME), _PROCESSES, "of serving on after TERM, not ready any more, before the server drains")
    )
    max_requests: int = _field(
        Option("off", _or_off(_count(1, 10**12)), _PROCESSES, "answered by a worker, then it is replaced")
    )
    max_requests_jitter: int = _field(
        Option("off", _or_off(_count(1, 10**12)), _PROCESSES, "up to so many more, by lot: not all workers at once")
    )
    max_worker_memory: int = _field(
        Option("off", _or_off(_size(2**20, 2**40)), _PROCESSES, "used by a worker for some seconds (PSS), then it is replaced")
    )
    max_worker_age: float = _field(Option("off", _or_off(_TIME), _PROCESSES, "of a worker, then it is replaced"))
    header_timeout: float = _field(Option("10", _TIME, _CLIENTS, "for the head of a request to arrive whole"))
    body_timeout: float = _field(Option("30", _TIME, _CLIENTS, "for more of a request's body to arrive"))
    write_timeout: float = _field(Option("30", _TIME, _CLIENTS, "for the client to take more of an answer"))
    keep_alive: float = _field(Option("75", _TIME, _CLIENTS, "for the next request on an idle connection"))
    max_line: int = _field(Option("8k", _size(64, 2**20), _CLIENTS, "a request line; a longer one is answered 414"))
    max_headers: int = _field(Option("100", _count(1, 10_000), _CLIENTS, "header fields of a request; more are answered 431"))
    max_header_bytes: int = _field(Option("64k", _size(256, 2**24), _CLIENTS, "header fields together; more are answered 431"))
    max_body: int = _field(Option("100M", _size(0, 2**40), _CLIENTS, "the body of a request; a bigger one is answered 413"))
    ws_max_size: int = _field(Option("16M", _size(1, 2**30), _CLIENTS, "a WebSocket's message; a bigger one closes it"))
    ws_ping_interval: float = _field(Option("20", _TIME, _CLIENTS, "of silence, before a WebSocket's client is asked for life"))
    ws_ping_timeout: float = _field(Option("20", _TIME, _CLIENTS, "for a sign of life of a WebSocket's client that was asked"))
    ws_deflate: Literal["on", "off"] = _field(
        Option("off", _word("on", "off"), _CLIENTS, "compression of WebSockets' messages (permessage-deflate)")
    )
    access_log: Literal["off", "text", "json"] = _field(
        Option("text", _word("off", "text", "json"), _LOGS, "a line for each request, on standard output")
    )
    log_level: str = _field(
        Option("info", _word("debug", "info", "warning", "error"), _LOGS, "the least that is said on standard error")
    )


OPTIONS: Final[Mapping[str, Option]] = {
    field.name: field.metadata["option"] for field in dataclasses.fields(Config) if "option" in field.metadata
}


def flag(key: str) -> str:
    return "--" + key.replace("_", "-")


def variable(key: str) -> str:
    return _PREFIX + key.upper()


# Where the others may stand. Not in `Config`: once they have been read, nobody asks.
_FILE: Final = Option("", Kind("FILE", "the name of a TOML file", str), "", "")
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
    sizing = cgroup.size() if _AUTO in bounds else None
    least, most = (sizing.workers if sizing and bound == _AUTO else bound for bound in bounds)
    if bounds[1] == _AUTO:
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


def _parse(kind: Kind, text: str, source: str) -> Any:
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
    address = _parse(_ADDRESS, below.texts[0], below.source)
    if len(below.texts) > 1 or address.startswith("unix:"):
        address = OPTIONS["bind"].default
    old_host, _, old_port = address.rpartition(":")
    bare, host = host, f"[{host}]" if ":" in host and not host.startswith("[") else host
    if host and not _is_host(host):
        _refuse("HOST", bare, "a host name or an IP address")
    if port and not _is_port(port):
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
        return found if isinstance(found, dict) else None
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
