"""Heads of requests: bytes in, facts out. No socket, no clock, no config.

Reading has three outcomes and no more: a request, "more bytes needed", or `ProtocolError` with the status of the response. The
facts that decide where a message ends are judged here and nowhere else; `body` reads on from there.

Clients repeat themselves, so judgements are remembered: of request lines, of sequences of field names, of hosts, of whole heads
that have come twice, and for each client the fields of its last head. A sequence of names that comes often is compiled to a
regular expression that reads such heads in one call, whatever the values. All these memories are bounded, and none changes a
judgement: the same bytes always have the same outcome.
"""

import ipaddress
import re
from collections.abc import Callable, Sequence
from typing import Any, Final
from urllib.parse import unquote_to_bytes

from .grammar import (
    CACHED_BYTES,
    CACHED_ENTRIES,
    CONTROLS,
    DIGITS,
    LENGTH_DIGITS,
    TOKEN,
    VALUE_CHARACTER,
    ProtocolError,
    elements,
)

# Hashes of heads that have come once. The heads themselves are kept from the second time on: keeping one that never comes
# again costs more than judging it.
SEEN_ENTRIES: Final = 1024
# Compiling an expression takes 5 ms. It is done after this many heads with the same names, if they have at most this many.
COMPILE_AFTER: Final = 256
COMPILE_NAMES: Final = 32

# RFC 3986 3.3, 3.4, loosely: visible ASCII, without "#", since a fragment is never sent (RFC 9110 7.1).
_TARGET: Final = re.compile(r"[!\"$-~]+")
# The fast path for request lines: method, target, path (with nothing to decode in it), query. Others are judged step by step.
_COMMON_LINE: Final = re.compile(r"(GET|HEAD|POST|PUT|DELETE|OPTIONS|PATCH) ((/[!\"$&->@-~]*+)(?:\?|\Z)([!\"$-~]*+))")
# RFC 3986 3.2.2: reg-name (which includes IPv4), or an IP literal, then a port. Possessive quantifiers: it cannot backtrack.
_HOST: Final = re.compile(r"(?:\[([0-9A-Fa-f:.]+)\]|(?:[A-Za-z0-9\-._~!$&'()*+,;=]|%[0-9A-Fa-f]{2})++)(?::[0-9]{0,5})?")
_NOTHING: Final = re.compile(r"(?!)")
_VERSION: Final = re.compile(r"[0-9]\.[0-9]")
_METHOD_LENGTH: Final = 32  # the longest registered method is UPDATEREDIRECTREF (17)
_VERSION_LENGTH: Final = len(" HTTP/1.1")
# Fields that decide framing or routing come once, or two readers might each believe a different one (RFC 9112 11.2).
_SINGLETONS: Final = ("host", "content-length", "transfer-encoding", "content-type", "expect")
# The fields that announce a body and determine its end (RFC 9112 6), a part of `grammar.FORBIDDEN_TRAILERS`.
_FRAMING: Final = ("content-length", "transfer-encoding", "expect")


class Line:
    """A request line without its version: method and target. Shared by all requests that have it, so it never changes."""

    __slots__ = ("authority", "memo", "method", "path", "query", "target")

    def __init__(self, method: str, target: str, path: str, query: str, authority: str | None = None) -> None:
        self.method = method
        self.target = target  # as it was sent
        self.path = path  # percent-decoded bytes, as latin-1 (PEP 3333: "bytes as unicode")
        self.query = query
        self.authority = authority  # of a target in absolute form, else None
        self.memo: Any = None  # what an application interface made of it


class Shape:
    """A version and the names of header fields, judged. Shared by all heads that have them, in this order."""

    __slots__ = ("bare", "connection", "count", "framing", "host", "match", "memo", "names", "version")

    def __init__(self, version: str, names: tuple[str, ...]) -> None:
        self.version = version  # "1.0" or "1.1"
        self.names = names  # in lower case
        self.host = names.index("host") if "host" in names else -1
        self.connection = tuple(index for index, name in enumerate(names) if name == "connection")
        self.framing = {name: index for index, name in enumerate(names) if name in _FRAMING}
        self.memo: Any = None  # what an application interface made of it
        self.count = 0  # heads with it
        self.match: Callable[[str], re.Match[str] | None] = _NOTHING.match  # reads such heads, except some white space
        self.bare: Fields | None = None  # where there is an expression: kept in place of fields that are too long

    def compile(self, raw: Sequence[str]) -> None:
        """Compile the expression from the version and the names, as they are sent. Possessive: it cannot backtrack."""
        lines = [rf"{re.escape(name)}:[ \t]*+({VALUE_CHARACTER}*+)(?<![ \t])\r\n" for name in raw[1:]]
        # The first " HTTP/" ends the target, whatever follows it.
        start = rf"([!-~]++ (?!HTTP/)[!-~]++) HTTP/{re.escape(raw[0])}\r\n"
        self.match = re.compile("".join((start, *lines, r"\r\n"))).match
        self.bare = Fields(self, [""] * len(self.names))


class Fields:
    """The version and the header fields of a request, judged. Shared by requests, so they never change."""

    __slots__ = (
        *("again", "block", "chunked", "expect", "memo", "framed", "host", "keep_alive", "length"),
        *("shape", "fast_path", "simple", "values", "version"),
    )

    def __init__(self, shape: Shape, values: Sequence[str]) -> None:
        self.shape = shape
        self.version = version = shape.version
        self.values = values  # in the order of the shape's names
        self.host = values[shape.host] if shape.host >= 0 else None
        self.length = 0  # bytes of body; without meaning where `chunked`
        self.chunked = False
        self.expect = False  # the client waits for "100 Continue"
        self.framed = False  # there is a body to be read
        self.simple = False  # ... of a known length, and its client does not wait for "100 Continue"
        self.keep_alive = version != "1.0"
        self.fast_path = False  # HTTP/1.1, no body, and the connection stays open
        self.block = b""  # their bytes, from the space before the version to the empty line; empty if they are too long
        self.again = False  # a client has sent them more than once, so a memo of them is worth keeping
        self.memo: Any = None  # what an application interface made of them

    @property
    def items(self) -> list[tuple[str, str]]:
        """(name in lower case, value), in the order in which they came."""
        return list(zip(self.shape.names, self.values, strict=True))


class Request:
    """A head, and how many bytes it has. Shared by all requests with the same bytes, so it never changes."""

    __slots__ = ("fast_path", "fields", "kept", "last", "line", "memo", "plain", "size")

    def __init__(self, line: Line, fields: Fields, size: int) -> None:
        self.line = line
        self.fields = fields
        self.last = fields if fields.block else fields.shape.bare  # to be kept for its client's next head
        self.size = size
        self.plain = fields.version == "1.1" and line.method != "HEAD"  # neither of them changes the response
        self.fast_path = self.plain and fields.fast_path and line.path != "*"
        self.kept = False  # it is remembered, so a memo of it is worth keeping
        self.memo: Any = None  # what an application interface made of it


class HeadReader:
    """Reads heads within limits: bytes a request line, number of fields, bytes of all fields (RFC 9112 2.2, 3, 5)."""

    def __init__(self, max_line: int, max_headers: int, max_header_bytes: int) -> None:
        self.max_line = max_line
        self.max_headers = max_headers
        self.max_header_bytes = max_header_bytes
        self.known: dict[bytes, Request] = {}
        self._lines: dict[str, Line] = {}
        self._shapes: dict[tuple[str, ...], Shape] = {}
        self._hosts: set[str] = set()
        self._seen: set[int] = set()
        self._safe = min(max_line, max_header_bytes)  # a head of up to this many bytes exceeds neither limit

    def read(self, data: bytes, start: int = 0, last: Fields | None = None) -> Request | None:
        """Read the head that begins at `start`. None: more bytes are needed. `last`: `Request.last` of its client's last head.

        Raises `ProtocolError` 400, 413, 414, 417, 431, 501, 505.
        """
        if last is not None and not start:
            before = data.removesuffix(last.block)
            if before is not data and len(data) <= self._safe:
                left = before.decode("latin-1")
                line = self._lines.get(left)
                if line is not None:
                    last.again = True
                    return self.known.get(data) or self._remember(data, line, last)
                line = self._read_common_line(left)
                if line is not None:  # a new line, so the head is new too
                    last.again = True
                    return Request(line, last, len(data))
        end = data.find(b"\r\n\r\n", start)
        if end < 0:
            self._judge_part(data, start)
            return None
        head = data[start : end + 4]
        known = self.known.get(head)
        if known is not None:
            return known
        if last is not None and len(head) <= self._safe:
            match = last.shape.match(head.decode("latin-1"))
            if match is not None:
                left, *values = match.groups()
                return self._make(head, left, Fields(last.shape, values))
        return self._read_head(head)

    def unfinished(self, data: bytes, searched: int) -> bool:
        """Whether the head at the start of `data`, which does not end within the first `searched` bytes, does not end at all.

        True is what `read` returns as None. `ProtocolError` is raised as there, but no byte is searched again for each piece.
        """
        if data.find(b"\r\n\r\n", max(searched - 3, 0)) >= 0:
            return False
        self._judge_part(data, 0)
        return True

    def _read_head(self, head: bytes) -> Request:
        # A target holds no space, so the first " HTTP/" ends it.
        left, _, right = head[:-4].partition(b" HTTP/")
        fields = self._read_fields(right)
        return self._make(head, left.decode("latin-1"), fields)

    def _make(self, head: bytes, left: str, fields: Fields) -> Request:
        host = fields.host
        if host is None:
            if fields.version == "1.1":
                raise ProtocolError(400, "no Host")  # RFC 9112 3.2
        elif host not in self._hosts:
            self._judge_host(host)
        shape = fields.shape
        if shape.framing:
            _judge_framing(fields)
        where = shape.connection
        if where:
            if len(where) == 1 and fields.values[where[0]] == "keep-alive":  # as most browsers send it
                fields.keep_alive = True
            else:
                _judge_connection(fields)
        fields.fast_path = fields.keep_alive and not fields.framed and fields.version == "1.1"
        if len(head) <= CACHED_BYTES:
            fields.block = head[len(left) :]
        return self._remember(head, self._lines.get(left) or self._read_common_line(left) or self._read_line(left), fields)

    def _remember(self, head: bytes, line: Line, fields: Fields) -> Request:
        """The request of a judged line and judged fields, remembered if it comes for the second time."""
        if line.authority is not None:
            fields = _with_host(fields, line.authority)
        request = Request(line, fields, len(head))
        if len(head) > CACHED_BYTES:
            return request
        key = hash(head)
        seen = self._seen
        if key in seen:  # or another head with the same hash, which does no harm
            request.kept = True
            if len(self.known) >= CACHED_ENTRIES:
                self.known.clear()
            self.known[head] = request
        else:
            if len(seen) >= SEEN_ENTRIES:
                seen.clear()
            seen.add(key)
        return request

    def _judge_part(self, data: bytes, start: int) -> None:
        """Refuse bytes that can no longer become a good head, so that their client need not wait for a deadline.

        A head that comes byte by byte is judged here for each byte, so only its request line and its end are examined.
        """
        if data.startswith(b"\r\n", start):
            start += 2
        end = data.find(b"\n", start, start + self.max_line + 2)
        if end < 0:
            first = data[start : start + self.max_line + 2]
            if len(first) > self.max_line + 1:  # the last byte may be the CR
                raise ProtocolError(414, f"request line over {self.max_line} bytes")
            if first and first != b"\r" and not TOKEN.match(chr(first[0])):
                raise ProtocolError(400, "not HTTP")
            return
        first = data[start:end]
        if not first.endswith(b"\r") or data.endswith(b"\n\n"):
            raise ProtocolError(400, "bare LF in the head")
        if len(data) - (end + 1) > self.max_header_bytes + 1:  # as above
            raise ProtocolError(431, f"header fields over {self.max_header_bytes} bytes")
        left, _, version = first[:-1].decode("latin-1").partition(" HTTP/")
        _judge_version(version)
        if len(left) <= CACHED_BYTES and left not in self._lines:
            self._read_line(left)

    def _read_common_line(self, left: str) -> Line | None:
        """Read a request line on the fast path. None: it is not for this path, be it good or bad."""
        match = _COMMON_LINE.fullmatch(left)
        if match is None or len(left) + _VERSION_LENGTH > self.max_line:
            return None
        method, target, path, query = match.groups()
        return self._keep_line(left, Line(method, target, path, query))

    def _keep_line(self, left: str, line: Line) -> Line:
        if len(left) <= CACHED_BYTES:
            if len(self._lines) >= CACHED_ENTRIES:
                self._lines.clear()
            self._lines[left] = line
        return line

    def _read_line(self, left: str) -> Line:
        first = left.removeprefix("\r\n")  # RFC 9112 2.2: an empty line before it is skipped
        if len(first) + _VERSION_LENGTH > self.max_line:
            raise ProtocolError(414, f"request line over {self.max_line} bytes")
        method, _, target = first.partition(" ")
        if not TOKEN.fullmatch(method):
            raise ProtocolError(400, "bad method")
        if len(method) > _METHOD_LENGTH:  # RFC 9112 3
            raise ProtocolError(501, f"method over {_METHOD_LENGTH} bytes")
        if not _TARGET.fullmatch(target):
            raise ProtocolError(400, "bad request target")
        authority = None
        path, _, query = target.partition("?")
        if method == "CONNECT":
            raise ProtocolError(501, "CONNECT is for proxies")  # RFC 9110 9.3.6
        if target == "*":
            if method != "OPTIONS":
                raise ProtocolError(400, "request target * without OPTIONS")
        elif not path.startswith("/"):
            authority, path = self._read_absolute(path)
        if "%" in path:
            path = unquote_to_bytes(path).decode("latin-1")
        return self._keep_line(left, Line(method, target, path, query, authority))

    def _read_absolute(self, target: str) -> tuple[str, str]:
        """Authority and path of a target in absolute form (RFC 9112 3.2.2), without its query."""
        scheme, separator, rest = target.partition("://")
        authority, slash, path = rest.partition("/")
        if not separator or scheme.lower() not in ("http", "https") or not authority:
            raise ProtocolError(400, "bad request target")
        self._judge_host(authority)
        return authority, slash + path or "/"

    def _read_fields(self, right: bytes) -> Fields:
        if len(right) > self.max_header_bytes + 3:
            raise ProtocolError(431, f"header fields over {self.max_header_bytes} bytes")
        text = right.decode("latin-1")
        lines = text.split("\r\n")
        # All lines at once. The first one, the version, counts as a name without a value.
        names, colons, values = zip(*[line.partition(":") for line in lines], strict=True)
        shape = self._shapes.get(names)
        if shape is None or colons[0]:  # the names do not show a colon after the version
            _judge_version(lines[0])
        if len(right.translate(None, CONTROLS)) + 2 * (len(lines) - 1) != len(right):
            raise ProtocolError(400, "control character in the head")
        if shape is None or colons.count(":") != len(lines) - 1:
            shape = self._read_shape(names, colons)
        shape.count += 1
        if shape.count == COMPILE_AFTER and len(names) <= COMPILE_NAMES:
            shape.compile(names)
        return Fields(shape, [value.strip(" \t") for value in values[1:]])

    def _read_shape(self, names: tuple[str, ...], colons: tuple[str, ...]) -> Shape:
        """Judge the version, which comes first, and the names, and remember them."""
        version = names[0]
        if len(names) - 1 > self.max_headers:
            raise ProtocolError(431, f"more than {self.max_headers} header fields")
        for name, colon in zip(names[1:], colons[1:], strict=True):
            # White space before the colon (RFC 9112 5.1) and a folded line (5.2) make a name that is not a token.
            if not TOKEN.fullmatch(name):
                raise ProtocolError(400, "bad header field name")
            if not colon:
                raise ProtocolError(400, "header field without a colon")
        lower = tuple(map(str.lower, names[1:]))
        for name in _SINGLETONS:
            if lower.count(name) > 1:
                raise ProtocolError(400, f"{name} more than once")
        # RFC 9110 2.5: a higher minor version is read as the highest that we speak.
        shape = Shape("1.0" if version == "1.0" else "1.1", lower)
        if sum(map(len, names)) <= CACHED_BYTES:
            if len(self._shapes) >= CACHED_ENTRIES:
                self._shapes.clear()
            self._shapes[names] = shape
        return shape

    def _judge_host(self, host: str) -> None:
        """Judge uri-host [":" port] (RFC 9110 7.2). Empty is good, a port alone is bad (4.2.1). Raises `ProtocolError` 400."""
        if not host or host in self._hosts:
            return
        match = _HOST.fullmatch(host)
        try:
            if not match:
                raise ValueError
            if match[1]:
                ipaddress.IPv6Address(match[1])
        except ValueError:
            raise ProtocolError(400, "bad Host") from None
        if len(host) <= 255:
            if len(self._hosts) >= CACHED_ENTRIES:
                self._hosts.clear()
            self._hosts.add(host)


def _judge_version(version: str) -> None:
    if not _VERSION.fullmatch(version):
        raise ProtocolError(400, "bad HTTP version")
    if version[0] != "1":
        raise ProtocolError(505, "not HTTP/1")


def _judge_framing(fields: Fields) -> None:
    """Decide where the body ends (RFC 9112 6)."""
    single = {name: fields.values[index] for name, index in fields.shape.framing.items()}
    coding = single.get("transfer-encoding")
    length = single.get("content-length")
    if coding is not None:
        if length is not None:
            raise ProtocolError(400, "both Transfer-Encoding and Content-Length")
        if fields.version == "1.0":
            raise ProtocolError(400, "Transfer-Encoding in HTTP/1.0")
        others, _, last = coding.lower().rpartition(",")
        if last.strip(" \t") != "chunked" or "chunked" in others:
            raise ProtocolError(400, "chunked is not the last transfer coding")
        if "," in coding:
            raise ProtocolError(501, "transfer coding other than chunked")
        fields.chunked = fields.framed = True
    elif length is not None:
        if not DIGITS.fullmatch(length):
            raise ProtocolError(400, "bad Content-Length")
        if len(length) > LENGTH_DIGITS:
            raise ProtocolError(413, f"Content-Length of more than {LENGTH_DIGITS} digits")
        fields.length = int(length)
        fields.framed = fields.length > 0
    expect = single.get("expect")
    if expect is not None and fields.version != "1.0":
        if expect.lower() != "100-continue":
            raise ProtocolError(417, "unknown expectation")
        fields.expect = fields.framed
    fields.simple = fields.framed and not fields.chunked and not fields.expect


def _judge_connection(fields: Fields) -> None:
    """Decide whether the connection stays open (RFC 9112 9.3)."""
    options = elements([fields.values[index].lower() for index in fields.shape.connection])
    fields.keep_alive = "close" not in options and (fields.version != "1.0" or "keep-alive" in options)


def _with_host(fields: Fields, authority: str) -> Fields:
    """The same fields with the authority of a target in absolute form in the place of Host (RFC 9112 3.2.2)."""
    others = [item for item in fields.items if item[0] != "host"]
    shape = Shape(fields.version, ("host", *(name for name, _ in others)))
    other = Fields(shape, (authority, *(value for _, value in others)))
    for slot in ("chunked", "expect", "framed", "keep_alive", "length", "simple", "fast_path"):
        setattr(other, slot, getattr(fields, slot))
    return other
