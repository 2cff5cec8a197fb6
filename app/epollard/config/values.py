"""Types of option values: each turns text into a value, or fails with a hint at what was probably meant.

Text is typed by people, so each type accepts exactly what its description says: no sign, no underscore and no digits of other
scripts in a number, and an address is always brought into its one canonical form.
"""

import ipaddress
import os
import re
from collections.abc import Callable
from typing import Any, Final, NamedTuple, TypeVar

AUTO: Final = "auto"
OFF: Final = "off"


class ValueType(NamedTuple):
    """One way to write a value."""

    metavar: str
    expects: str  # completes the sentence "'x' is not ..."
    parse: Callable[[str], Any]  # raises ValueError; its message, if any, is a hint such as "did you mean ...?"


def _digits(text: str) -> int:
    """A number in ASCII digits and nothing else: int() also takes '+5', '1_000', ' 5 ' and the digits of other scripts."""
    if not (text.isascii() and text.isdigit() and len(text) <= 18):
        raise ValueError
    return int(text)


_Number = TypeVar("_Number", int, float)


def _within(value: _Number, low: _Number, high: _Number) -> _Number:
    if not low <= value <= high:
        raise ValueError
    return value


def count(low: int, high: int) -> ValueType:
    return ValueType("N", f"a number from {low} to {high}", lambda text: _within(_digits(text), low, high))


def choice(*words: str) -> ValueType:
    def parse(text: str) -> str:
        if text not in words:
            raise ValueError
        return text

    return ValueType("|".join(words), f"{', '.join(words[:-1])} or {words[-1]}", parse)


def or_off(other: ValueType) -> ValueType:
    """The other type, or `off`, which is 0."""

    def parse(text: str) -> Any:
        return 0 if text in (OFF, "0") else other.parse(text)

    return ValueType(f"{other.metavar}|{OFF}", f"{other.expects}, or {OFF}", parse)


_UNITS: Final = {"": 0, "k": 10, "m": 20, "g": 30}  # as powers of two
_SIZE: Final = re.compile(r"([0-9]{1,12}) ?(?:([kmg])(?:ib)?)?", re.ASCII | re.IGNORECASE)


def size(low: int, high: int) -> ValueType:
    def parse(text: str) -> int:
        match = _SIZE.fullmatch(text)
        if match is None:
            raise ValueError
        return _within(int(match[1]) << _UNITS[(match[2] or "").lower()], low, high)

    return ValueType("SIZE", f"a size such as 8192, 64k or 100M, from {_size_text(low)} to {_size_text(high)}", parse)


def _size_text(value: int) -> str:
    for power, unit in (30, "G"), (20, "M"), (10, "k"):
        if value and value % (1 << power) == 0:
            return f"{value >> power}{unit}"
    return str(value)


_SECONDS: Final = {"ms": 0.001, "": 1.0, "s": 1.0, "m": 60.0, "h": 3600.0}
_DURATION: Final = re.compile(r"([0-9]{1,9}(?:\.[0-9]{1,9})?)(ms|s|m|h|)", re.ASCII)
_SHORTEST: Final = 0.001
_LONGEST: Final = 24 * 3600.0  # more than a day is most likely a mistake of units


def _parse_duration(text: str) -> float:
    match = _DURATION.fullmatch(text)
    if match is None:
        raise ValueError
    return _within(float(match[1]) * _SECONDS[match[2]], _SHORTEST, _LONGEST)


def workers(most: int) -> ValueType:
    """A number, `auto`, or two of these as a range."""

    def one(text: str) -> int | str:
        return text if text == AUTO else _within(_digits(text), 1, most)

    def parse(text: str) -> int | str | tuple[int | str, int | str]:
        low, dots, high = text.partition("..")
        if not dots:
            return one(text)
        ends = one(low), one(high)
        if isinstance(ends[0], int) and isinstance(ends[1], int) and ends[0] > ends[1]:
            raise ValueError(f"did you mean {high}..{low}?")
        return ends

    return ValueType("N|auto|MIN..MAX", f"a number from 1 to {most}, auto, or two of these as MIN..MAX", parse)


_KERNEL_BACKLOG: Final = 4096  # the kernel's own default since Linux 5.4, used if /proc is not readable
_INT_MAX: Final = 2**31 - 1


def _parse_backlog(text: str) -> int:
    if text == "system":
        try:
            with open("/proc/sys/net/core/somaxconn", encoding="ascii") as file:
                return int(file.read())
        except OSError:
            return _KERNEL_BACKLOG
    return _within(_digits(text), 1, _INT_MAX)


# The name of a module's file may contain a dash, the name of an attribute may not.
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


def is_port(text: str) -> bool:
    return text.isascii() and text.isdigit() and len(text) <= 5 and int(text) <= 65535


def is_host(text: str) -> bool:
    try:
        if text.startswith("[") and text.endswith("]"):
            return text.isprintable() and bool(ipaddress.IPv6Address(text[1:-1]))
        if not text.strip("0123456789."):
            return bool(ipaddress.IPv4Address(text))
    except ValueError:
        return False
    return _NAME.fullmatch(text) is not None


def _canonical(text: str) -> str:
    """The address in its one canonical form, or "" if it is not an address."""
    if text.startswith("unix:"):
        path = os.fsencode(text[5:])
        return text if 0 < len(path) <= _SUN_PATH and b"\0" not in path else ""
    host, _, port = text.rpartition(":")
    return f"{host}:{int(port)}" if is_host(host) and is_port(port) else ""


def _parse_address(text: str) -> str:
    if address := _canonical(text):
        return address
    port = text.removeprefix(":")
    if is_port(port):
        raise ValueError(f"did you mean 0.0.0.0:{port} (every interface) or 127.0.0.1:{port} (this machine only)?")
    host, _, port = text.rpartition(":")
    authority = text.partition("://")[2].partition("/")[0]
    path = f"unix:{text}" if text.startswith("/") else ""
    for guess in path, authority, f"{authority}:80", f"[{host}]:{port}", f"{text}:8000", f"[{text}]:8000":
        if _canonical(guess):
            raise ValueError(f"did you mean {guess}?")
    raise ValueError


def _parse_address_or_off(text: str) -> str:
    return text if text == OFF else _parse_address(text)


APP: Final = ValueType("APP", "MODULE:ATTRIBUTE or MODULE:FACTORY()", _parse_app)
ADDRESS: Final = ValueType("ADDR", f"HOST:PORT, [IPV6]:PORT or unix:PATH (at most {_SUN_PATH} bytes)", _parse_address)
ADDRESS_OR_OFF: Final = ValueType(f"ADDR|{OFF}", f"{ADDRESS.expects}, or {OFF}", _parse_address_or_off)
DIRECTORY: Final = ValueType("DIR", "a directory that can be entered", _parse_directory)
FILE: Final = ValueType("FILE", "the name of a TOML file", str)
BACKLOG: Final = ValueType("N|system", "a number of connections from 1 up, or system", _parse_backlog)
TIME: Final = ValueType("TIME", "a time above 0 and up to 24h such as 10, 1.5, 500ms or 2m", _parse_duration)
