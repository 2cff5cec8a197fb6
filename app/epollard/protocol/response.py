"""Heads of responses: facts in, bytes out. No socket, no clock, no config.

An application's status and headers are judged before a byte of them is sent (`HeadError`), since the author of a value with a
line break in it could write a response of their own. Judged heads are remembered, within a bound.
"""

import re
import time
from collections.abc import Iterable
from http import HTTPStatus
from typing import Any, Final

from .grammar import (
    CACHED_BYTES,
    CACHED_ENTRIES,
    DIGITS,
    FORBIDDEN_TRAILERS,
    HOP_BY_HOP,
    LENGTH_DIGITS,
    TOKEN,
    VALUE,
    VALUE_CHARACTER,
)

# A body of up to this many bytes is copied behind its head, for one send of both; a larger one is sent without a copy.
COPY_BELOW: Final = 64 * 1024

_STATUS: Final = re.compile(rf"([1-9][0-9]{{2}})(?: {VALUE_CHARACTER}*)?")
_REASONS: Final = {status.value: status.phrase for status in HTTPStatus}

CONTINUE: Final = b"HTTP/1.1 100 Continue\r\n\r\n"
CLOSE: Final = b"Connection: close\r\n"
KEEP: Final = b"Connection: keep-alive\r\n"
CHUNKED: Final = b"Transfer-Encoding: chunked\r\n"
LAST_CHUNK: Final = b"0\r\n\r\n"


class HeadError(ValueError):
    """The application's status or headers cannot be sent."""


class Head:
    """A status and its header fields, judged and serialised. Shared by all responses that have them, so it never changes.

    `lines` lacks the parts that differ between responses: framing, Connection, Date (unless `dated`), the empty line.
    """

    __slots__ = ("bodiless", "close", "code", "dated", "events", "fast_length", "length", "lines", "plain")

    def __init__(self, code: int, lines: bytes, length: int | None, close: bool, dated: bool) -> None:
        self.code = code
        self.lines = lines
        self.length = length  # the application's Content-Length
        self.close = close  # the application asked for the connection's end
        self.dated = dated  # the application gave a Date
        self.bodiless = code == 204 or code == 304  # RFC 9112 6.3
        self.events = False  # server-sent events: a stream that does not end by itself
        self.plain = not (self.bodiless or close or dated)  # nothing in it changes framing, Connection or Date
        # A body of this length makes the response: `lines`, the server's end of the head, the body. -1: no length does.
        self.fast_length = length if self.plain and length is not None and length <= COPY_BELOW else -1


KNOWN_HEADS: dict[Any, Head] = {}


def head(status: str, headers: Iterable[tuple[str, str]]) -> Head:
    """Judge and serialise the head of a response (WSGI). Raises `HeadError` for a value, `TypeError` for a type."""
    key: Any = (status, *headers)
    try:
        known = KNOWN_HEADS.get(key)
    except TypeError:
        raise TypeError("headers must be tuples of two strings") from None
    if known is None:
        known = _new_head(status, key[1:])
        if len(known.lines) <= CACHED_BYTES:
            if len(KNOWN_HEADS) >= CACHED_ENTRIES:
                KNOWN_HEADS.clear()
            KNOWN_HEADS[key] = known
    return known


KNOWN_RAW_HEADS: dict[Any, Head] = {}


def raw_head(status: int, headers: Iterable[Iterable[bytes]]) -> Head:
    """As `head`, from a number and pairs of bytes (ASGI)."""
    pairs = tuple(map(tuple, headers))
    key: Any = (status, *pairs)
    known = KNOWN_RAW_HEADS.get(key)
    if known is None:
        if type(status) is not int and not isinstance(status, HTTPStatus):
            raise TypeError(f"status must be a number, not {type(status).__name__}")
        known = _new_head(f"{status:d} {_REASONS.get(status, '')}", decode_fields(pairs))
        if len(known.lines) <= CACHED_BYTES:
            if len(KNOWN_RAW_HEADS) >= CACHED_ENTRIES:
                KNOWN_RAW_HEADS.clear()
            KNOWN_RAW_HEADS[key] = known
    return known


def decode_fields(pairs: Iterable[Iterable[bytes]]) -> list[tuple[str, str]]:
    """Decode names and values as an ASGI application gives them. Raises `TypeError`."""
    decoded = []
    for name, value in pairs:
        if not isinstance(name, bytes) or not isinstance(value, bytes):
            raise TypeError(f"header names and values must be bytes: {name!r}: {value!r}")
        decoded.append((name.decode("latin-1"), value.decode("latin-1")))
    return decoded


def judge_field(name: str, value: str) -> str:
    """Judge a header field, and return its name in lower case. Raises `HeadError`, `TypeError`."""
    if not isinstance(name, str) or not isinstance(value, str):
        raise TypeError(f"header names and values must be strings: {name!r}: {value!r}")
    if not TOKEN.fullmatch(name):
        raise HeadError(f"bad header name {name!r}")
    if not VALUE.fullmatch(value):
        raise HeadError(f"bad value of header {name}: {value!r}")
    return name.lower()


def field_lines(headers: Iterable[Iterable[bytes]]) -> bytes:
    """The field lines of trailers, or of a response that precedes the final one (103). Raises `HeadError`, `TypeError`."""
    lines = []
    for name, value in decode_fields(headers):
        if judge_field(name, value) in FORBIDDEN_TRAILERS:
            raise HeadError(f"header {name} outside the head of a final response")
        lines.append(f"{name}: {value}\r\n")
    return "".join(lines).encode("latin-1")


def _new_head(status: str, headers: Iterable[tuple[str, str]]) -> Head:
    if not isinstance(status, str):
        raise TypeError(f"status must be a string, not {type(status).__name__}")
    match = _STATUS.fullmatch(status)
    if not match:
        raise HeadError(f"bad status {status!r}")
    code = int(match[1])
    if code < 200:
        raise HeadError(f"{code} is not a final status")
    # Joined, not formatted: a subclass of str, such as an enumeration, may format as a text other than the judged one.
    lines = ["HTTP/1.1 ", match[0], "\r\n" if " " in match[0] else " \r\n"]
    length = None
    close = dated = served = events = False
    for name, value in headers:
        lower = judge_field(name, value)
        if lower in HOP_BY_HOP:
            close = close or (lower == "connection" and "close" in value.lower())
            continue
        if lower == "content-length":
            if not DIGITS.fullmatch(value) or len(value) > LENGTH_DIGITS or (length is not None and length != int(value)):
                raise HeadError(f"bad Content-Length {value!r}")
            if length is not None:
                continue
            length = int(value)
            if code == 204:  # RFC 9110 8.6
                continue
        elif lower == "date":
            dated = True
        elif lower == "server":
            served = True
        elif lower == "content-type":
            events = value.lower().startswith("text/event-stream")
        lines += (name, ": ", value, "\r\n")
    if not served:
        lines.append("Server: epollard\r\n")
    head = Head(code, "".join(lines).encode("latin-1"), length, close, dated)
    head.events = events
    return head


def date_line(now: float) -> bytes:
    """The Date field (RFC 9110 6.6.1) for `now`, seconds since the epoch."""
    t = time.gmtime(now)
    day = ("Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun")[t.tm_wday]
    month = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")[t.tm_mon - 1]
    return f"Date: {day}, {t.tm_mday:02d} {month} {t.tm_year} {t.tm_hour:02d}:{t.tm_min:02d}:{t.tm_sec:02d} GMT\r\n".encode()


def refusal(status: int, date: bytes, *, body: bool = True) -> bytes:
    """The server's own response to a request that it refuses; the connection closes. `date` is a whole Date line."""
    phrase = _REASONS.get(status, "Error")
    text = f"{status} {phrase}\n".encode()
    fields = f"HTTP/1.1 {status} {phrase}\r\nServer: epollard\r\nContent-Type: text/plain\r\nContent-Length: {len(text)}\r\n"
    if status == 426:  # RFC 9110 15.5.22, RFC 6455 4.4
        fields += "Upgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\n"
    return b"".join((fields.encode(), CLOSE, date, b"\r\n", text if body else b""))


def options(date: bytes, keep: bytes) -> bytes:
    """The response to `OPTIONS *`, which is about the server and not the application (RFC 9110 9.3.7).

    `keep` is a Connection line or empty, `date` a whole Date line.
    """
    return b"".join((b"HTTP/1.1 200 OK\r\nServer: epollard\r\nContent-Length: 0\r\n", keep, date, b"\r\n"))
