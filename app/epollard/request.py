"""Requests from bytes: heads and bodies. No socket, no clock, no config: bytes in, facts out.

A reader has three outcomes and no more: a result, "more bytes needed", or `ProtocolError` with the status to answer. All that
decides where a message ends is judged here and nowhere else.

Clients repeat themselves, so what was judged once is remembered: a request line, a block of header fields, a field name, a
host. The caches are bounded, and never change an answer: same bytes, same judgement.
"""

import ipaddress
import re
from typing import Any, Final
from urllib.parse import unquote_to_bytes

# How much is remembered. Beyond a bound a cache is emptied, which costs one parse for each shape that is still in use.
CACHED_ENTRIES: Final = 256
CACHED_BYTES: Final = 2048

# RFC 9110 5.6.2: token. RFC 9110 5.5: field values hold visible characters, SP, HTAB and obs-text, so no control characters.
_TOKEN: Final = re.compile(r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+")
_CONTROLS: Final = bytes([*range(9), *range(10, 32), 127])
# RFC 3986 3.3, 3.4, loosely: visible ASCII. A fragment (#) is never sent (RFC 9110 7.1).
_TARGET: Final = re.compile(r"[!\"$-~]+")
# RFC 3986 3.2.2: reg-name (which covers IPv4), or an IP literal, then a port. Possessive: it cannot backtrack.
_HOST: Final = re.compile(r"(?:\[([0-9A-Fa-f:.]+)\]|(?:[A-Za-z0-9\-._~!$&'()*+,;=]|%[0-9A-Fa-f]{2})++)(?::[0-9]{0,5})?")
_DIGITS: Final = re.compile(r"[0-9]+")
_VERSION: Final = re.compile(r"[0-9]\.[0-9]")
_METHOD_LENGTH: Final = 32  # the longest registered method is UPDATEREDIRECTREF (17)
_VERSION_LENGTH: Final = len(" HTTP/1.1")
_LENGTH_DIGITS: Final = 18  # more than any file; keeps int() cheap
_SINGLETONS: Final = ("host", "content-length", "transfer-encoding", "content-type", "expect")

# RFC 9112 7.1: a chunk's size line, and the whole of the trailers, stay within these. Chunk extensions, which nobody reads, may
# be no more than this over the bytes of the body (7.1.1), or a small body would be endless.
CHUNK_LINE: Final = 1024
TRAILER_BYTES: Final = 16 * 1024
EXTENSION_BYTES: Final = 16 * 1024
_CHUNK_SIZE: Final = re.compile(rb"([0-9A-Fa-f]{1,15})(?:[\t ]*;[\t -~\x80-\xff]*)?")
# RFC 9110 6.5.1: fields that decide framing, routing or authentication have no place in a trailer.
_NO_TRAILERS: Final = frozenset(
    (
        *("transfer-encoding", "content-length", "host", "connection", "expect", "te", "trailer", "upgrade"),
        *("authorization", "cookie", "content-type", "content-encoding"),
    )
)


class ProtocolError(Exception):
    """The peer broke a rule. `status` is what to answer, `reason` what to write in the log (no byte of the peer's in it)."""

    def __init__(self, status: int, reason: str) -> None:
        super().__init__(status, reason)
        self.status = status
        self.reason = reason


class Line:
    """A request line without its version: method and target. Shared by all requests with the same bytes, so never changed."""

    __slots__ = ("authority", "form", "method", "path", "query", "target")

    def __init__(self, method: str, target: str, path: str, query: str, authority: str | None) -> None:
        self.method = method
        self.target = target  # as it was sent
        self.path = path  # percent-decoded bytes, as latin-1 (what PEP 3333 calls "bytes as unicode")
        self.query = query
        self.authority = authority  # of a target in absolute form, else None
        self.form: Any = None  # what an application interface made of it


class Fields:
    """The version and the header fields of a request, judged. Shared by all requests with the same bytes, so never changed."""

    __slots__ = ("chunked", "expect", "form", "framed", "host", "items", "keep_alive", "length", "version")

    def __init__(self, version: str, items: list[tuple[str, str]], single: dict[str, str]) -> None:
        self.version = version  # "1.0" or "1.1"
        self.items = items  # (name in lower case, value), in the order in which they came
        self.host = single.get("host")
        self.length = 0  # bytes of body; meaningless where `chunked`
        self.chunked = False
        self.expect = False  # the client waits for "100 Continue"
        self.framed = False  # there is a body to read, or one is announced
        self.keep_alive = version != "1.0"
        self.form: Any = None  # what an application interface made of it


class Request:
    """A head, and how many bytes it has. Shared by all requests with the same bytes, so never changed."""

    __slots__ = ("fields", "form", "line", "plain", "size")

    def __init__(self, line: Line, fields: Fields, size: int) -> None:
        self.line = line
        self.fields = fields
        self.size = size
        self.plain = fields.version == "1.1" and line.method != "HEAD"  # its answer needs no second look
        self.form: Any = None  # what an application interface made of it


class HeadReader:
    """Reads heads within limits: bytes a request line, number of fields, bytes of all fields (RFC 9112 2.2, 3, 5)."""

    def __init__(self, max_line: int, max_headers: int, max_header_bytes: int) -> None:
        self.max_line = max_line
        self.max_headers = max_headers
        self.max_header_bytes = max_header_bytes
        self._requests: dict[bytes, Request] = {}
        # Those of them after whose answer the connection goes on, that have no body, and ask the application.
        self.usual: dict[bytes, Request] = {}
        self._lines: dict[bytes, Line] = {}
        self._blocks: dict[bytes, Fields] = {}
        self._names: dict[str, str] = {}
        self._hosts: set[str] = set()

    def read(self, data: bytes, start: int = 0) -> Request | None:
        """Read the head that begins at `start`. None: more bytes are needed.

        Raises `ProtocolError` 400, 413, 414, 417, 431, 501, 505.
        """
        end = data.find(b"\r\n\r\n", start)
        if end < 0:
            self._judge_part(data, start)
            return None
        head = data[start : end + 4]
        return self._requests.get(head) or self._read_head(head)

    def _read_head(self, head: bytes) -> Request:
        # A target holds no space, so the first " HTTP/" ends it: what is left of it is remembered apart from what is right.
        left, _, right = head[:-4].partition(b" HTTP/")
        fields = self._blocks.get(right) or self._read_block(right)
        line = self._lines.get(left) or self._read_line(left)
        if line.authority is not None:
            fields = _with_host(fields, line.authority)
        request = Request(line, fields, len(head))
        if len(head) <= CACHED_BYTES:
            if len(self._requests) >= CACHED_ENTRIES:
                self._requests.clear()
                self.usual.clear()
            self._requests[head] = request
            if request.plain and fields.keep_alive and not fields.framed and line.path != "*":
                self.usual[head] = request
        return request

    def _judge_part(self, data: bytes, start: int) -> None:
        """Refuse early what can no longer become a good head: nobody waits for a deadline to hear it.

        A head that comes byte by byte comes here for each of them, so this looks at the request line and the end only.
        """
        if data.startswith(b"\r\n", start):
            start += 2
        end = data.find(b"\n", start, start + self.max_line + 2)
        if end < 0:
            first = data[start : start + self.max_line + 2]
            if len(first) > self.max_line + 1:  # the last byte may be the CR
                raise ProtocolError(414, f"request line over {self.max_line} bytes")
            if first and first != b"\r" and not _TOKEN.match(chr(first[0])):
                raise ProtocolError(400, "not HTTP")
            return
        first = data[start:end]
        if not first.endswith(b"\r") or data.endswith(b"\n\n"):
            raise ProtocolError(400, "bare LF in the head")
        if len(data) - (end + 1) > self.max_header_bytes + 1:  # as above
            raise ProtocolError(431, f"header fields over {self.max_header_bytes} bytes")
        left, _, version = first[:-1].partition(b" HTTP/")
        _judge_version(version.decode("latin-1"))
        if len(left) <= CACHED_BYTES and left not in self._lines:
            self._read_line(left)

    def _read_line(self, left: bytes) -> Line:
        first = left.removeprefix(b"\r\n")  # RFC 9112 2.2: an empty line before the request line is skipped
        if len(first) + _VERSION_LENGTH > self.max_line:
            raise ProtocolError(414, f"request line over {self.max_line} bytes")
        method, _, target = first.decode("latin-1").partition(" ")
        if not _TOKEN.fullmatch(method):
            raise ProtocolError(400, "bad method")
        if len(method) > _METHOD_LENGTH:  # RFC 9112 3
            raise ProtocolError(501, f"method over {_METHOD_LENGTH} bytes")
        if not _TARGET.fullmatch(target):
            raise ProtocolError(400, "bad request target")
        authority = None
        path, _, query = target.partition("?")
        if method == "CONNECT":
            raise ProtocolError(501, "CONNECT is for proxies")
        if target == "*":
            if method != "OPTIONS":
                raise ProtocolError(400, "request target * without OPTIONS")
        elif not path.startswith("/"):
            authority, path = self._read_absolute(path)
        if "%" in path:
            path = unquote_to_bytes(path).decode("latin-1")
        line = Line(method, target, path, query, authority)
        if len(left) <= CACHED_BYTES:
            if len(self._lines) >= CACHED_ENTRIES:
                self._lines.clear()
            self._lines[left] = line
        return line

    def _read_absolute(self, target: str) -> tuple[str, str]:
        """Authority and path of a target in absolute form (RFC 9112 3.2.2), without its query."""
        scheme, separator, rest = target.partition("://")
        authority, slash, path = rest.partition("/")
        if not separator or scheme.lower() not in ("http", "https") or not authority:
            raise ProtocolError(400, "bad request target")
        self._judge_host(authority)
        return authority, slash + path or "/"

    def _read_block(self, right: bytes) -> Fields:
        if len(right) > self.max_header_bytes + 3:
            raise ProtocolError(431, f"header fields over {self.max_header_bytes} bytes")
        lines = right.decode("latin-1").split("\r\n")
        version = lines[0]
        _judge_version(version)
        if len(right.translate(None, _CONTROLS)) + 2 * (len(lines) - 1) != len(right):
            raise ProtocolError(400, "control character in the head")
        if len(lines) - 1 > self.max_headers:
            raise ProtocolError(431, f"more than {self.max_headers} header fields")
        items = self._read_items(lines)
        single = dict(items)
        if len(single) != len(items):
            _judge_repeated(items)
        # RFC 9112 2.3: a higher minor version is read as the highest that we speak.
        fields = Fields("1.0" if version == "1.0" else "1.1", items, single)
        if fields.host is not None:
            self._judge_host(fields.host)
        elif fields.version == "1.1":
            raise ProtocolError(400, "no Host")
        _judge_framing(fields, single)
        if len(right) <= CACHED_BYTES:
            if len(self._blocks) >= CACHED_ENTRIES:
                self._blocks.clear()
            self._blocks[right] = fields
        return fields

    def _read_items(self, lines: list[str]) -> list[tuple[str, str]]:
        """(name in lower case, value) of each field line but the first line, which is the version."""
        names = self._names
        items = []
        for line in lines[1:]:
            name, colon, value = line.partition(":")
            lower = names.get(name) or self._new_name(name)
            if not colon:
                raise ProtocolError(400, "header field without a colon")
            items.append((lower, value.strip(" \t")))
        return items

    def _new_name(self, name: str) -> str:
        # White space before the colon (RFC 9112 5.1) and folded lines (5.2) are no token either: both are refused here.
        if not _TOKEN.fullmatch(name):
            raise ProtocolError(400, "bad header field name")
        lower = name.lower()
        if len(name) <= 64:
            if len(self._names) >= CACHED_ENTRIES:
                self._names.clear()
            self._names[name] = lower
        return lower

    def _judge_host(self, host: str) -> None:
        """RFC 9110 7.2: uri-host [":" port], or nothing; a port alone is in no http URI (4.2.1). Raises `ProtocolError` 400."""
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


def _judge_repeated(items: list[tuple[str, str]]) -> None:
    """A field that decides framing or routing comes once, or two readers may each believe another one (RFC 9112 11.2)."""
    seen = set()
    for name, _ in items:
        if name in seen and name in _SINGLETONS:
            raise ProtocolError(400, f"{name} more than once")
        seen.add(name)


def _judge_framing(fields: Fields, single: dict[str, str]) -> None:
    """Where the body ends (RFC 9112 6), and whether the connection goes on (9.3)."""
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
        if others:
            raise ProtocolError(501, "transfer coding other than chunked")
        fields.chunked = fields.framed = True
    elif length is not None:
        if not _DIGITS.fullmatch(length):
            raise ProtocolError(400, "bad Content-Length")
        if len(length) > _LENGTH_DIGITS:
            raise ProtocolError(413, "Content-Length of more than 18 digits")
        fields.length = int(length)
        fields.framed = fields.length > 0
    expect = single.get("expect")
    if expect is not None and fields.version != "1.0":
        if expect.lower() != "100-continue":
            raise ProtocolError(417, "unknown expectation")
        fields.expect = fields.framed
    if "connection" in single:
        options = {
            option.strip(" \t").lower() for name, value in fields.items if name == "connection" for option in value.split(",")
        }
        fields.keep_alive = "close" not in options and (fields.version != "1.0" or "keep-alive" in options)


def _with_host(fields: Fields, authority: str) -> Fields:
    """RFC 9112 3.2.2: the authority of a target in absolute form takes the place of Host."""
    other = Fields.__new__(Fields)
    for slot in Fields.__slots__:
        setattr(other, slot, getattr(fields, slot))
    other.host = authority
    other.items = [("host", authority), *(item for item in fields.items if item[0] != "host")]
    other.form = None
    return other


class LengthBody:
    """A body of a known length (RFC 9112 6.2)."""

    __slots__ = ("done", "left", "rest")

    def __init__(self, length: int) -> None:
        self.left = length
        self.done = length == 0
        self.rest = b""  # what came behind the body, once it is done

    def feed(self, data: bytes) -> bytes:
        """Take bytes from the connection, return those of the body."""
        if len(data) < self.left:
            self.left -= len(data)
            return data
        self.done = True
        self.rest = data[self.left :]
        return data[: self.left] if self.rest else data


class ChunkedBody:
    """A chunked body (RFC 9112 7.1) of at most `limit` bytes. Lines end by CRLF alone; trailers are judged and dropped."""

    __slots__ = ("_buffer", "_extensions", "_left", "_stage", "_taken", "_trailers", "done", "limit", "rest")

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.done = False
        self.rest = b""
        self._buffer = b""
        self._left = 0  # bytes of the chunk under way
        self._taken = 0
        self._extensions = 0
        self._trailers = 0
        self._stage = self._size

    def feed(self, data: bytes) -> bytes:
        """Take bytes from the connection, return those of the body. Raises `ProtocolError` 400, 413, 431."""
        if self._buffer:
            data = self._buffer + data
        content: list[bytes] = []
        start = 0
        while not self.done:
            after = self._stage(data, start, content)
            if after < 0:
                break
            start = after
        if self.done:
            self.rest = data[start:]
            self._buffer = b""
        else:
            self._buffer = data[start:]
        return b"".join(content)

    # Each stage returns where it stopped, or -1 where it needs more bytes than there are.

    def _size(self, data: bytes, start: int, content: list[bytes]) -> int:
        end = data.find(b"\r\n", start, start + CHUNK_LINE + 2)
        if end < 0:
            if len(data) - start > CHUNK_LINE + 1:  # the last byte may be the CR
                raise ProtocolError(400, f"chunk size line over {CHUNK_LINE} bytes")
            if b"\n" in data[start:]:
                raise ProtocolError(400, "bare LF in a chunk size line")
            return -1
        match = _CHUNK_SIZE.fullmatch(data, start, end)
        if not match:
            raise ProtocolError(400, "bad chunk size")
        self._left = int(match[1], 16)
        self._taken += self._left
        if self._taken > self.limit:
            raise ProtocolError(413, f"body over {self.limit} bytes")
        self._extensions += end - match.end(1)
        if self._extensions > self._taken + EXTENSION_BYTES:
            raise ProtocolError(400, "chunk extensions outweigh the body")
        self._stage = self._data if self._left else self._trailer
        return end + 2

    def _data(self, data: bytes, start: int, content: list[bytes]) -> int:
        end = start + self._left
        if len(data) < end:
            if len(data) == start:
                return -1
            content.append(data[start:])
            self._left -= len(data) - start
            return len(data)
        content.append(data[start:end])
        self._stage = self._crlf
        return end

    def _crlf(self, data: bytes, start: int, content: list[bytes]) -> int:
        after = data[start : start + 2]
        if not b"\r\n".startswith(after):
            raise ProtocolError(400, "chunk data not ended by CRLF")
        if len(after) < 2:
            return -1
        self._stage = self._size
        return start + 2

    def _trailer(self, data: bytes, start: int, content: list[bytes]) -> int:
        end = data.find(b"\r\n", start)
        if self._trailers + (len(data) - 1 if end < 0 else end) - start > TRAILER_BYTES:  # the last byte may be the CR
            raise ProtocolError(431, f"trailers over {TRAILER_BYTES} bytes")
        if end < 0:
            if b"\n" in data[start:]:
                raise ProtocolError(400, "bare LF in a trailer")
            return -1
        if end == start:
            self.done = True
            return end + 2
        line = data[start:end]
        name, colon, _ = line.decode("latin-1").partition(":")
        if not colon or not _TOKEN.fullmatch(name) or len(line.translate(None, _CONTROLS)) != len(line):
            raise ProtocolError(400, "bad trailer")
        if name.lower() in _NO_TRAILERS:
            raise ProtocolError(400, "forbidden trailer")
        self._trailers += len(line) + 2
        return end + 2
