"""Where values come from: the command line, variables, a TOML file, the defaults. `load` merges them into a `Config`.

Nothing here binds, forks, imports or logs.
"""

import difflib
import os
import re
import tomllib
from collections import ChainMap
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, Final, NamedTuple, NoReturn

from .. import cgroup
from . import values
from .options import ACTIONS, OPTIONS, PREFIX, SETTABLE, Config, flag, variable

# Variables that the server sets for its workers and its successor, and the factor by which tests scale waits: neither options
# nor mistakes.
_TOLERATED: Final = {"EPOLLARD_WORKER_ID", "EPOLLARD_GENERATION", "EPOLLARD_HANDOVER", "EPOLLARD_TEST_SCALE"}
# Kubernetes sets these in every container of a namespace that has a Service called `epollard` or `epollard-something`.
_SERVICE_LINK: Final = re.compile(r"EPOLLARD_(?:\w+_)?(?:SERVICE_(?:HOST|PORT)|SERVICE_PORT_\w+|PORT_[0-9]+_\w+)", re.ASCII)

_ACTION_FLAGS: Final = {flag(key) for key in ACTIONS}
_FLAGS: Final = {flag(key): key for key in SETTABLE if key != "app"}


class ConfigError(Exception):
    """One line: what is wrong, where it came from, what would be right."""


class Given(NamedTuple):
    """A value as it was written, and where."""

    texts: tuple[str, ...]  # one, except for a repeatable option
    source: str


class Arguments(NamedTuple):
    """The command line: an action ("" is to serve), and values by option."""

    action: str
    given: dict[str, Given]


class Loaded(NamedTuple):
    """A configuration, and the source of each of its values."""

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
        if name in _ACTION_FLAGS:
            if equals:
                raise ConfigError(f"{name}: takes no value, but {text!r} is given")
            action = name
        elif name in _FLAGS:
            key = _FLAGS[name]
            option = SETTABLE[key]
            if not equals:
                text = next(rest, "--")
                if text.startswith("--"):
                    raise ConfigError(f"{name}: the value is missing; it should be {option.value_type.expects}")
            before = given[key].texts if key in given and option.repeatable else ()
            given[key] = Given((*before, text), name)
        elif word.startswith("-"):
            raise ConfigError(_unknown("option", name, [*_FLAGS.values(), *ACTIONS], flag))
        elif "app" in given:
            raise ConfigError(f"unexpected argument {word!r}; the application is already named: {given['app'].texts[0]!r}")
        else:
            given["app"] = Given((word,), "command line")
    return Arguments(action, given)


def load(arguments: Mapping[str, Given], environ: Mapping[str, str]) -> Loaded:
    """Merge all sources: a flag beats a variable beats a well-known variable beats the file beats the default.

    All names are checked, but of several values for an option only the one that counts, so that a flag is always a way out.
    Raises `ConfigError`.
    """
    variables = _from_variables(environ)
    file = _from_file(arguments.get("config") or variables.get("config"))
    defaults = {key: Given((option.default,), "default") for key, option in OPTIONS.items()}
    given = ChainMap(dict(arguments), variables, _from_well_known(environ), file, defaults)
    if "bind" not in arguments and "bind" not in variables:
        given.maps[2].update(_from_host_and_port(environ.get("HOST", ""), environ.get("PORT", ""), given["bind"]))

    found: dict[str, Any] = {}
    sources: dict[str, str] = {}
    for key, option in OPTIONS.items():
        texts, sources[key] = given[key]
        parsed = tuple(_parse(option.value_type, text, sources[key]) for text in texts)
        found[key] = parsed if option.repeatable else parsed[0]
    for address in found["bind"]:
        if found["bind"].count(address) > 1 and not address.endswith(":0"):
            raise ConfigError(f"{sources['bind']}: {address!r} is given twice; once is enough")
    found["workers"], found["most_workers"], found["workers_reason"] = _worker_bounds(found["workers"], sources)
    found["admin_explicit"] = sources["admin"] != "default"
    if found["app"] is None:
        sources["app"] += " (the built-in demo)"
    return Loaded(Config(**found), sources)


def parse(key: str, text: str, source: str) -> Any:
    """The value of one option that was written elsewhere, such as in a command. Raises `ConfigError`."""
    return _parse(OPTIONS[key].value_type, text, source)


def _worker_bounds(value: Any, sources: dict[str, str]) -> tuple[int, int, str]:
    """The least and the most workers, and how they were found."""
    bounds = value if isinstance(value, tuple) else (value, value)
    sizing = cgroup.size() if values.AUTO in bounds else None
    least, most = (sizing.workers if sizing and bound == values.AUTO else bound for bound in bounds)
    # On a machine of an unexpected size, the bound that was given as a number wins over the automatic one.
    if bounds[1] == values.AUTO:
        most = max(least, most)
    else:
        least = min(least, most)
    number = f"{least} to {most} workers" if most > least else f"{least} worker{'s' * (least != 1)}"
    if sizing is None:
        return least, most, f"{number}: from {sources['workers']}"
    reason = f"{number}: {sizing.reason.partition(': ')[2]}"
    sources["workers"] += f" (auto; {reason})"
    return least, most, reason


def _parse(value_type: values.ValueType, text: str, source: str) -> Any:
    try:
        return value_type.parse(text)
    except ValueError as error:
        _refuse(source, text, value_type.expects, str(error))


def _refuse(source: str, text: str, expects: str, hint: str = "") -> NoReturn:
    raise ConfigError(f"{source}: {text!r} is not {expects}" + (f"; {hint}" if hint else ""))


def _unknown(what: str, name: str, keys: Collection[str], spell: Callable[[str], str]) -> str:
    """The message for a name that does not exist. An abbreviation (`-w`, `--work`) gets a suggestion, but is not accepted."""
    bare = name.lstrip("-").removeprefix(PREFIX).lower().replace("-", "_")
    close = [key for key in keys if bare and key.startswith(bare)] or difflib.get_close_matches(bare, keys, 1)
    right = f"did you mean {spell(close[0])}?" if close else "epollard --help lists all options"
    return f"unknown {what} {name!r}; {right}"


# --- Variables ---------------------------------------------------------------------------------------------------------


def _from_variables(environ: Mapping[str, str]) -> dict[str, Given]:
    known = {variable(key): key for key in SETTABLE}
    well_known = {name for option in OPTIONS.values() for name in option.well_known}
    given = {}
    for name, text in environ.items():
        if not name.startswith(PREFIX) or not text or name in _TOLERATED:
            continue
        if name in known:
            key = known[name]
            given[key] = Given(tuple(map(str.strip, text.split(","))) if SETTABLE[key].repeatable else (text,), name)
        elif name.removeprefix(PREFIX) in well_known and "://" not in text:
            raise ConfigError(f"unknown variable {name!r}; did you mean {name.removeprefix(PREFIX)}?")
        elif not (_SERVICE_LINK.fullmatch(name) or (name.endswith("_PORT") and "://" in text)):
            raise ConfigError(_unknown("variable", name, SETTABLE, variable))
    return given


def _from_well_known(environ: Mapping[str, str]) -> dict[str, Given]:
    """Variables without our prefix that other tools and platforms use, such as WORKERS; HOST and PORT are separate."""
    given = {}
    for key, option in OPTIONS.items():
        name = next((name for name in option.well_known if environ.get(name)), "")
        if name and key != "bind":
            given[key] = Given((environ[name],), name)
    return given


def _from_host_and_port(host: str, port: str, below: Given) -> dict[str, Given]:
    """HOST and PORT each replace their half of the address that would be bound without them."""
    if not host and not port:
        return {}
    address = _parse(values.ADDRESS, below.texts[0], below.source)
    if len(below.texts) > 1 or address.startswith("unix:"):
        address = OPTIONS["bind"].default
    old_host, _, old_port = address.rpartition(":")
    bare, host = host, f"[{host}]" if ":" in host and not host.startswith("[") else host
    if host and not values.is_host(host):
        _refuse("HOST", bare, "a host name or an IP address")
    if port and not values.is_port(port):
        _refuse("PORT", port, "a number from 0 to 65535")
    source = " and ".join(name for name, text in (("HOST", host), ("PORT", port)) if text)
    return {"bind": Given((f"{host or old_host}:{port or old_port}",), source)}


# --- Files -------------------------------------------------------------------------------------------------------------


def _from_file(named: Given | None) -> dict[str, Given]:
    """The named file; if none is named, `epollard.toml`, else the table in `pyproject.toml`, if there is one."""
    path, source = (named.texts[0], named.source) if named else ("", "configuration")
    for name in (path,) if path else ("epollard.toml", "pyproject.toml"):
        table = _read_table(name, source)
        if table is not None:
            return _from_table(table, name if name.isprintable() else repr(name))
    if path:
        missing = "has no table [tool.epollard]" if os.path.exists(path) else "does not exist"
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
        raise ConfigError(f"{source}: {name!r} is not valid TOML: {' '.join(str(error).split())}") from None
    if os.path.basename(name) == "pyproject.toml":
        tool = table.get("tool")
        found = tool.get("epollard") if isinstance(tool, dict) else None
        if found is not None and not isinstance(found, dict):
            raise ConfigError(f"{source}: tool.epollard in {name!r} is not a table; write [tool.epollard]")
        return found
    return table


def _from_table(table: dict[str, Any], source: str) -> dict[str, Given]:
    given = {}
    for key, value in table.items():
        if key not in OPTIONS:
            raise ConfigError(f"{source}: {_unknown('key', key, OPTIONS, str)}")
        option = OPTIONS[key]
        where = f"{source}: {key}"
        items = value if option.repeatable and isinstance(value, list) and value else [value]
        if not all(isinstance(item, str | int | float) and not isinstance(item, bool) for item in items):
            _refuse(where, str(value), option.value_type.expects)
        texts = tuple(str(item) for item in items)
        if texts != ("",):  # as with variables, empty means unset
            given[key] = Given(texts, where)
    return given
