"""Bodies of requests: bytes of the connection in, bytes of content out. No socket, no clock, no config.

A decoder returns the content that is in each piece, and raises `ProtocolError` if the client broke a rule. Once it is `done`,
`rest` holds the bytes behind the body, which begin the next request of a pipeline.
"""

import re
from typing import Final

from .grammar import FORBIDDEN_TRAILERS, TOKEN, VALUE, VALUE_CHARACTER, ProtocolError

# Limits of a chunk's size line and of all trailers together (RFC 9112 7.1). Chunk extensions are not read; they may exceed the
# bytes of the body by this much (7.1.1), else a client could send them without end.
CHUNK_LINE: Final = 1024
TRAILER_BYTES: Final = 16 * 1024
EXTENSION_BYTES: Final = 16 * 1024
_CHUNK_SIZE: Final = re.compile(rf"([0-9A-Fa-f]{{1,15}})(?:[\t ]*;{VALUE_CHARACTER}*)?".encode("latin-1"))


class LengthBody:
    """A body of a known length (RFC 9112 6.2)."""

    __slots__ = ("done", "left", "rest")

    def __init__(self, length: int) -> None:
        self.left = length
        self.done = length == 0
        self.rest = b""  # the bytes behind the body, once it is done

    def feed(self, data: bytes) -> bytes:
        """Take bytes of the connection, and return those of the body."""
        if len(data) < self.left:
            self.left -= len(data)
            return data
        self.done = True
        self.rest = data[self.left :]
        return data[: self.left] if self.rest else data


class ChunkedBody:
    """A chunked body (RFC 9112 7.1) of at most `limit` bytes. Lines end with CRLF only; trailers are judged and dropped."""

    __slots__ = ("_buffer", "_extensions", "_left", "_stage", "_taken", "_trailers", "done", "limit", "rest")

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.done = False
        self.rest = b""
        self._buffer = b""
        self._left = 0  # bytes to come of the current chunk
        self._taken = 0  # bytes of all chunks so far
        self._extensions = 0  # bytes of all extensions so far
        self._trailers = 0  # bytes of all trailers so far
        self._stage = self._size

    def feed(self, data: bytes) -> bytes:
        """Take bytes of the connection, and return those of the body. Raises `ProtocolError` 400, 413, 431."""
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

    # Each stage returns the index at which the next one begins, or -1 if it needs more bytes.

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
        name, colon, value = line.decode("latin-1").partition(":")
        if not colon or not TOKEN.fullmatch(name) or not VALUE.fullmatch(value):
            raise ProtocolError(400, "bad trailer")
        if name.lower() in FORBIDDEN_TRAILERS:
            raise ProtocolError(400, "forbidden trailer")
        self._trailers += len(line) + 2
        return end + 2
