"""Bodies of responses: framed and counted. No socket, no clock, no config: an application's pieces in, bytes out.

`start` returns the head and a writer, which frames the pieces of the body as they come; `whole` returns a small response at
once. A body without a Content-Length is chunked, or ends with the connection if the client speaks HTTP/1.0 (RFC 9112 6.3).
A body that is longer than its Content-Length is cut, since the client would read the excess as the next response. After a body
that is shorter the connection has to close, since the client waits for the rest.
"""

from typing import Final, NamedTuple, Protocol

from . import response
from .request import Request
from .response import CHUNKED, CLOSE, COPY_BELOW, KEEP, LAST_CHUNK, Head

# The response to a request on which the application failed before it had sent anything.
INTERNAL_ERROR: Final = response.head("500 Internal Server Error", (("Content-Type", "text/plain; charset=utf-8"),))
INTERNAL_ERROR_BODY: Final = b"Internal Server Error\n"


class HeadEnds(Protocol):
    """The possible ends of a head: a Connection line or none, Date, and the empty line. They change only with the date."""

    date_end: bytes  # the connection stays open
    close_end: bytes  # it closes
    keep_end: bytes  # it stays open for a client of HTTP/1.0


class LengthWriter:
    """Writes a body of a known length (RFC 9112 6.2)."""

    __slots__ = ("excess", "missing", "sent")

    def __init__(self, length: int) -> None:
        self.missing = length  # bytes that are still to be sent
        self.sent = 0  # bytes of body
        self.excess = 0  # bytes that were cut off the last piece

    @property
    def full(self) -> bool:
        """Whether nothing more may be sent."""
        return self.missing == 0

    def write(self, data: bytes) -> bytes:
        """Frame a piece of the body. Bytes beyond the length are cut off."""
        size = len(data)
        if size > self.missing:
            self.excess = size - self.missing
            data = data[: self.missing]
            size = self.missing
        else:
            self.excess = 0
        self.missing -= size
        self.sent += size
        return data

    def write_file(self, count: int) -> tuple[bytes, int, bytes]:
        """Frame a piece of `count` bytes that the kernel sends from a file.

        Returns the bytes to be sent before it, how many of the piece itself to send, and the bytes to be sent after it.
        """
        allowed = min(count, self.missing)
        self.excess = count - allowed
        self.missing -= allowed
        self.sent += allowed
        return b"", allowed, b""

    def end(self, trailers: bytes = b"") -> bytes:
        """The bytes that end the body: none. Trailers are dropped, since only a chunked body has a place for them."""
        return b""


class ChunkedWriter:
    """Writes a body in chunks (RFC 9112 7.1)."""

    __slots__ = ("sent",)
    full = False
    missing = excess = 0

    def __init__(self) -> None:
        self.sent = 0  # bytes of body, without their framing

    def write(self, data: bytes) -> bytes:
        """Frame a piece of the body. An empty piece is not sent, since an empty chunk ends the body."""
        size = len(data)
        self.sent += size
        return b"%x\r\n%b\r\n" % (size, data) if size else b""

    def write_file(self, count: int) -> tuple[bytes, int, bytes]:
        """As `LengthWriter.write_file`."""
        self.sent += count
        return (b"%x\r\n" % count, count, b"\r\n") if count else (b"", 0, b"")

    def end(self, trailers: bytes = b"") -> bytes:
        """The last chunk and the trailers, which are whole field lines (`response.field_lines`)."""
        return b"0\r\n%b\r\n" % trailers if trailers else LAST_CHUNK


class CloseWriter:
    """Writes a body that ends with the connection (RFC 9112 6.3), to a client of HTTP/1.0, which has no chunks."""

    __slots__ = ("sent",)
    full = False
    missing = excess = 0

    def __init__(self) -> None:
        self.sent = 0  # bytes of body

    def write(self, data: bytes) -> bytes:
        """Count a piece of the body, which is sent as it is."""
        self.sent += len(data)
        return data

    def write_file(self, count: int) -> tuple[bytes, int, bytes]:
        """As `LengthWriter.write_file`."""
        self.sent += count
        return b"", count, b""

    def end(self, trailers: bytes = b"") -> bytes:
        """The bytes that end the body: none, since the end of the connection does."""
        return b""


class NoBodyWriter:
    """Drops the body of a response that has none (RFC 9112 6.3): one to HEAD, or with status 204 or 304.

    Applications may leave this rule to the server, so a body that is dropped here does not count as `excess`.
    """

    __slots__ = ()
    full = True
    missing = excess = sent = 0

    def write(self, data: bytes) -> bytes:
        """Drop a piece of the body."""
        return b""

    def write_file(self, count: int) -> tuple[bytes, int, bytes]:
        """As `LengthWriter.write_file`: nothing is to be sent."""
        return b"", 0, b""

    def end(self, trailers: bytes = b"") -> bytes:
        """The bytes that end the body: none."""
        return b""


BodyWriter = LengthWriter | ChunkedWriter | CloseWriter | NoBodyWriter


class Opening(NamedTuple):
    """The beginning of a response."""

    head: bytes
    writer: BodyWriter
    closing: bool  # its head announces that the connection closes after it


def start(head: Head, request: Request, ends: HeadEnds, *, size: int | None, closing: bool) -> Opening:
    """Begin a response on the slow path, with any head, and a body of any size in any number of pieces.

    `size`: bytes of the whole body, if known although the application gave no Content-Length. `closing`: the connection closes
    after the response in any case.
    """
    parts = [head.lines]
    old = request.fields.version == "1.0"
    writer: BodyWriter
    closing = closing or head.close
    if head.bodiless:
        writer = NoBodyWriter()
    elif head.length is not None:
        writer = LengthWriter(head.length)
    elif size is not None:
        writer = LengthWriter(size)
        parts.append(b"Content-Length: %d\r\n" % size)
    elif old:
        writer = CloseWriter()
        closing = True
    else:
        writer = ChunkedWriter()
        parts.append(CHUNKED)
    if request.line.method == "HEAD":  # its head is that of a GET (RFC 9110 9.3.2)
        writer = NoBodyWriter()
    if head.dated:
        parts.append(CLOSE + b"\r\n" if closing else KEEP + b"\r\n" if old else b"\r\n")
    else:
        parts.append(ends.close_end if closing else ends.keep_end if old else ends.date_end)
    return Opening(b"".join(parts), writer, closing)


def whole(head: Head | None, request: Request, ends: HeadEnds, body: object, closing: bool) -> bytes | None:
    """A whole response on the fast path: a `plain` head, and one small body. None: it has to take the slow path (`start`).

    `LeaderFollowers.answer` has a copy of the most frequent case, without the call.
    """
    if head is None or not head.plain or type(body) is not bytes or len(body) > COPY_BELOW:
        return None
    if request.plain and not closing:
        end = ends.date_end
    elif request.line.method == "HEAD":
        return None
    else:
        end = ends.close_end if closing else ends.keep_end
    size = len(body)
    if head.length == size:
        return head.lines + end + body
    if head.length is None:
        return b"%bContent-Length: %d\r\n%b%b" % (head.lines, size, end, body)
    return None


def excess_warning(request: Request) -> str:
    """The log line for a body that was cut because it is longer than its Content-Length."""
    return f"application sent more than its Content-Length on {request.line.method} {request.line.target}: cut"


def missing_warning(request: Request, missing: int) -> str:
    """The log line for a body that ended `missing` bytes before its Content-Length."""
    line = request.line
    return f"application sent {missing} bytes less than its Content-Length on {line.method} {line.target}: closed"
