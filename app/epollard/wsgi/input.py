"""`wsgi.input` (PEP 3333): the body of a request, of any size, as the file that the application reads.

A body is read before the application is called, so that a slow sender holds no thread. The exception is a client that waits to
be asked for its body.
"""

import io
import os
import tempfile
import threading
from collections.abc import Callable, Iterator
from typing import Any, Final, Protocol

from ..net.connection import Connection
from ..protocol.request import Request

SPOOL_MEMORY: Final = 256 * 1024  # bytes of a request's body kept in memory; the rest goes to an unnamed file

Run = Callable[[Connection, Request, Any], bytes | None]


class Caller(Protocol):
    """The call that reads an input."""

    aborted: bool  # the client is gone or was refused: nothing is sent
    opened: bool  # the head of the response is sent

    def leave_loop(self) -> None:
        """The thread is going to wait: it gives the loop away."""

    def post(self, callback: Callable[..., object], /) -> None:
        """Call something on the loop's thread."""


class NoInput:
    """`wsgi.input` of a request without a body. One for all: it has no state."""

    def read(self, size: int | None = -1) -> bytes:
        """Nothing."""
        return b""

    def readline(self, size: int | None = -1) -> bytes:
        """Nothing."""
        return b""

    def readlines(self, hint: int | None = -1) -> list[bytes]:
        """Nothing."""
        return []

    def __iter__(self) -> Iterator[bytes]:
        return iter(())

    def close(self) -> None:
        """Nothing to close."""


class Spool:
    """Keeps a body that arrives: in memory up to `SPOOL_MEMORY` bytes, then in an unnamed file (open(2), O_TMPFILE).

    Where no directory is writable, as on a read-only root without /tmp, the file is one in memory (memfd_create(2)).
    """

    def __init__(self) -> None:
        self._file: Any = io.BytesIO()
        self._memory = True
        self._size = 0

    def write(self, content: bytes) -> None:
        """Append. `OSError` where there is no room."""
        self._size += len(content)
        if self._memory and self._size > SPOOL_MEMORY:
            kept = self._file.getvalue()  # not getbuffer(): if no file can be made, its view would keep close() from closing
            self._file = _unnamed_file()
            self._memory = False
            self._append(kept)
        self._append(content)

    def _append(self, content: bytes | memoryview) -> None:
        left = memoryview(content)
        while left:
            left = left[self._file.write(left) :]

    def rewind(self) -> Any:
        """The body, now complete, as a binary file at its beginning."""
        self._file.seek(0)
        if isinstance(self._file, io.FileIO):
            self._file = io.BufferedReader(self._file)
        return self._file

    def close(self) -> None:
        """Give back memory or file."""
        self._file.close()


def _unnamed_file() -> Any:
    # Not buffered, so that a full disk is an error when the body arrives, and not in a late flush, when it would hit the
    # application or pass unnoticed.
    try:
        return tempfile.TemporaryFile(buffering=0)
    except FileNotFoundError:
        return os.fdopen(os.memfd_create("epollard-body", os.MFD_CLOEXEC), "w+b", buffering=0)


class Upload:
    """The sink of a body that is read before the application is called: a slow sender holds no thread."""

    __slots__ = ("_connection", "_request", "_run", "_spool")

    def __init__(self, run: Run, connection: Connection, request: Request) -> None:
        self._run = run
        self._connection = connection
        self._request = request
        self._spool = Spool()

    def feed(self, content: bytes) -> None:
        """See `contracts.BodySink`."""
        self._spool.write(content)

    def end(self) -> bytes | None:
        """See `contracts.BodySink`."""
        connection = self._connection
        connection.close_if_draining()  # draining may have begun since the head came
        return self._run(connection, self._request, self._spool.rewind())

    def abort(self) -> bool:
        """See `contracts.BodySink`."""
        self._spool.close()
        return False


class ExpectedInput:
    """`wsgi.input` of a client that waits for "100 Continue" (RFC 9110 10.1.1), which the application's first read sends.

    The application runs before the body is there, so its first read waits, and another thread turns the loop meanwhile.
    """

    def __init__(self, connection: Connection, request: Request) -> None:
        self._connection = connection
        self._request = request
        self._spool = Spool()
        self._file: Any = None
        self._arrived = threading.Lock()
        self._arrived.acquire()
        self._aborted = False
        self.exchange: Caller | None = None

    # The sink, on the loop's thread.

    def feed(self, content: bytes) -> None:
        """See `contracts.BodySink`."""
        self._spool.write(content)

    def end(self) -> None:
        """See `contracts.BodySink`."""
        self._connection.defer()
        self._arrived.release()

    def abort(self) -> bool:
        """See `contracts.BodySink`."""
        self._aborted = True
        exchange = self.exchange
        if exchange is not None:
            exchange.aborted = True
        if self._arrived.locked():
            self._arrived.release()
        return exchange is not None and exchange.opened

    def _ask(self) -> None:
        connection = self._connection
        if connection.closed:
            self.abort()
        else:
            connection.read_body(connection.context.draining or not self._request.fields.keep_alive, True)

    # The file, on the application's thread.

    def _body(self) -> Any:
        if self._file is None:
            exchange = self.exchange
            assert exchange is not None
            if self._aborted or exchange.opened:  # 100 comes before the final status or never
                raise ConnectionResetError("the client was not asked for the body, or did not send all of it")
            exchange.leave_loop()
            exchange.post(self._ask)
            self._arrived.acquire()
            if self._aborted:
                raise ConnectionResetError("the client did not send all of the body")
            self._file = self._spool.rewind()
        return self._file

    def read(self, size: int | None = -1) -> bytes:
        """As `io.BufferedIOBase.read`. `ConnectionResetError` where the body does not come."""
        body: bytes = self._body().read(size)
        return body

    def readline(self, size: int | None = -1) -> bytes:
        """As `io.IOBase.readline`."""
        line: bytes = self._body().readline(size)
        return line

    def readlines(self, hint: int | None = -1) -> list[bytes]:
        """As `io.IOBase.readlines`."""
        lines: list[bytes] = self._body().readlines(hint)
        return lines

    def __iter__(self) -> Iterator[bytes]:
        return iter(self._body())

    def close(self) -> None:
        """Give back memory or file."""
        self._spool.close()
