"""The bytes of a response as they are sent: how its body is framed, and whether it has the length that was promised.

No socket, no clock, no config. `start` gives the head and a writer, which frames the pieces of the body as they come; `whole`
gives a small response at once. A response without a Content-Length is chunked, or ends with its connection where the client
speaks HTTP/1.0 (RFC 9112 6.3). A body that is longer than its Content-Length is cut, because its excess would be read as
the next response; after one that is shorter the connection must close, because the client waits for the rest.
"""

from typing import Final, NamedTuple, Protocol

from . import response
from .request import Request
from .response import CHUNKED, CLOSE, COPY_BELOW, KEEP, LAST_CHUNK, Head

# The response to a request on which the application failed before it had sent anything.
INTERNAL_ERROR: Final = response.head("500 Internal Server Error", (("Content-Type", "text/plain; charset=utf-8"),))
INTERNAL_ERROR_BODY: Final = b"Internal Server Error\n"


class HeadEnds(Protocol):
    """The ends that a head may have: the connection's lines, Date and the empty line. They change with the date only."""

    date_end: bytes  # of HTTP/1.1, where the connection goes on
    close_end: bytes  # where it closes
    keep_end: bytes  # of HTTP/1.0, where it goes on


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
        """Frame a piece of the body. What is over the length is cut off."""
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
        """Frame a piece of `count` bytes that the kernel sends: the bytes before it, how many of it, the bytes behind it."""
        allowed = min(count, self.missing)
        self.excess = count - allowed
        self.missing -= allowed
        self.sent += allowed
        return b"", allowed, b""

    def end(self, trailers: bytes = b"") -> bytes:
        """The bytes that end the body. Such a body has no place for trailers."""
        return b""


class ChunkedWriter:
    """Writes a body in chunks (RFC 9112 7.1)."""

    __slots__ = ("sent",)
    full = False
    missing = excess = 0

    def __init__(self) -> None:
        self.sent = 0  # bytes of body, without their framing

    def write(self, data: bytes) -> bytes:
        """Frame a piece of the body. An empty one is no chunk, which would end the body."""
        size = len(data)
        self.sent += size
        return b"%x\r\n%b\r\n" % (size, data) if size else b""

    def write_file(self, count: int) -> tuple[bytes, int, bytes]:
        """As `LengthWriter.write_file`."""
        self.sent += count
        return (b"%x\r\n" % count, count, b"\r\n") if count else (b"", 0, b"")

    def end(self, trailers: bytes = b"") -> bytes:
        """The last chunk, and the trailers: whole field lines."""
        return b"0\r\n%b\r\n" % trailers if trailers else LAST_CHUNK


class CloseWriter:
    """Writes a body that ends with its connection (RFC 9112 6.3): its client speaks HTTP/1.0, which knows no chunks."""

    __slots__ = ("sent",)
    full = False
    missing = excess = 0

    def __init__(self) -> None:
        self.sent = 0  # bytes of body

    def write(self, data: bytes) -> bytes:
        """A piece of the body, as it is."""
        self.sent += len(data)
        return data

    def write_file(self, count: int) -> tuple[bytes, int, bytes]:
        """As `LengthWriter.write_file`."""
        self.sent += count
        return b"", count, b""

    def end(self, trailers: bytes = b"") -> bytes:
        """Nothing: the connection's end is the body's."""
        return b""


class NoBodyWriter:
    """Drops the body of a response that has none (RFC 9112 6.3): to HEAD, and with the statuses 204 and 304.

    An application need not know of this rule, so a body that is dropped here is not in `excess`.
    """

    __slots__ = ()
    full = True
    missing = excess = sent = 0

    def write(self, data: bytes) -> bytes:
        """Nothing."""
        return b""

    def write_file(self, count: int) -> tuple[bytes, int, bytes]:
        """As `LengthWriter.write_file`: no byte of it."""
        return b"", 0, b""

    def end(self, trailers: bytes = b"") -> bytes:
        """Nothing."""
        return b""


BodyWriter = LengthWriter | ChunkedWriter | CloseWriter | NoBodyWriter


class Opening(NamedTuple):
    """The beginning of a response."""

    head: bytes
    writer: BodyWriter
    closing: bool  # the connection closes after it, as its head says


def start(head: Head, request: Request, ends: HeadEnds, *, size: int | None, closing: bool) -> Opening:
    """Begin a response whose body comes piece by piece, or is large, or is not usual for another reason.

    `size`: bytes of the whole body where it is known though the application gave no Content-Length; `closing`: the connection
    closes after it in any case.
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
    if request.line.method == "HEAD":  # RFC 9110 9.3.2: the head is that of a GET
        writer = NoBodyWriter()
    if head.dated:
        parts.append(CLOSE + b"\r\n" if closing else KEEP + b"\r\n" if old else b"\r\n")
    else:
        parts.append(ends.close_end if closing else ends.keep_end if old else ends.date_end)
    return Opening(b"".join(parts), writer, closing)


def whole(head: Head | None, request: Request, ends: HeadEnds, body: object, closing: bool) -> bytes | None:
    """The usual response as bytes: a small body, all of it there. None where it is not usual, so that `start` is to be used.

    Its twin is written out in `LeaderFollowers.answer` for the most frequent case of all.
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
    """What the log says of a body that was cut because it is longer than its Content-Length."""
    return f"application sent more than its Content-Length on {request.line.method} {request.line.target}: cut"


def missing_warning(request: Request, missing: int) -> str:
    """What the log says of a body that ended `missing` bytes before its Content-Length."""
    line = request.line
    return f"application sent {missing} bytes less than its Content-Length on {line.method} {line.target}: closed"
