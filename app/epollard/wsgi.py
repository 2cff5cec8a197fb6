"""WSGI (PEP 3333): a request to an `environ`, a result to bytes on a connection. Knows of threads only what `Exchange` says.

An exchange is one call of the application and what follows from it. It runs on the loop's thread as long as it is quick; it may
lose the loop to another thread while the application's code runs (threads.py), and from then on sends by posting to the loop.
"""

import io
import os
import stat
import sys
import tempfile
import threading
from collections.abc import Callable, Iterable, Iterator
from types import TracebackType
from typing import Any, Final, Protocol

from . import log, response
from .connection import HIGH, Connection
from .request import Fields, Line, Request
from .response import CHUNKED, CLOSE, KEEP, LAST_CHUNK, Head

SPOOL_MEMORY: Final = 256 * 1024  # bytes of a request's body kept in memory; the rest goes to an unnamed file
COPY_BELOW: Final = 64 * 1024  # bytes of body that are copied behind their head; more is sent without a copy

Environ = dict[str, Any]
ExcInfo = tuple[type[BaseException], BaseException, TracebackType | None]
StartResponse = Callable[..., Callable[[bytes], None]]
App = Callable[[Environ, StartResponse], Iterable[bytes]]
Headers = list[tuple[str, str]]
Run = Callable[[Connection, Request, Any], bytes | None]

_ERROR: Final = response.head("500 Internal Server Error", (("Content-Type", "text/plain; charset=utf-8"),))
_ERROR_BODY: Final = b"Internal Server Error\n"


class Host(Protocol):
    """What an exchange needs from the threads that it runs on."""

    def post(self, callback: Callable[..., object], *arguments: Any) -> None:
        """Call something on the loop's thread."""

    def vacate(self) -> None:
        """The loop's thread has to wait for something: somebody else takes the loop."""

    def finished(self, connection: Connection, request: Request, code: int, sent: int, started: float) -> None:
        """An answer is whole, or given up. On the loop's thread."""


# environ


class Environment:
    """Makes the `environ` of each request. What depends on the bytes of a head alone is kept with the head's cached facts."""

    def __init__(self, *, threads: int, processes: int) -> None:
        self._base: Environ = {
            "REQUEST_METHOD": "",
            "SCRIPT_NAME": "",
            "PATH_INFO": "",
            "QUERY_STRING": "",
            "REQUEST_URI": "",
            "RAW_URI": "",
            "SERVER_NAME": "",
            "SERVER_PORT": "",
            "REMOTE_ADDR": "",
            "REMOTE_PORT": "",
            "SERVER_SOFTWARE": "epollard",
            "GATEWAY_INTERFACE": "CGI/1.1",
            "wsgi.version": (1, 0),
            "wsgi.url_scheme": "http",
            "wsgi.input": NoInput(),
            "wsgi.input_terminated": True,
            "wsgi.errors": Errors(),
            "wsgi.multithread": threads > 1,
            "wsgi.multiprocess": processes > 1,
            "wsgi.run_once": False,
            "wsgi.file_wrapper": FileWrapper,
        }
        self._keys: dict[str, str] = {}

    def make(self, connection: Connection, request: Request) -> Environ:
        """The `environ` of a request, without `wsgi.input`."""
        fields = request.fields
        line = request.line
        environ: Environ = (fields.form or self._of_fields(fields)).copy()
        environ.update(line.form or self._of_line(line))
        environ["SERVER_NAME"], environ["SERVER_PORT"] = connection.local
        environ["REMOTE_ADDR"], environ["REMOTE_PORT"] = connection.peer
        return environ

    def _of_line(self, line: Line) -> dict[str, str]:
        form = line.form = {
            "REQUEST_METHOD": line.method,
            "PATH_INFO": line.path,
            "QUERY_STRING": line.query,
            "REQUEST_URI": line.target,
            "RAW_URI": line.target,
        }
        return form

    def _of_fields(self, fields: Fields) -> Environ:
        environ = self._base.copy()
        environ["SERVER_PROTOCOL"] = "HTTP/" + fields.version
        for name, value in fields.items:
            # "X_Forwarded_For" would become the same key as "X-Forwarded-For": whoever strips the one from strangers' requests
            # does not strip the other, so it is not passed on. Nor is Proxy, which CGI libraries take for a setting (httpoxy).
            if "_" in name or name == "proxy":
                continue
            key = self._keys.get(name) or self._new_key(name)
            if key in environ:
                environ[key] += ("; " if key == "HTTP_COOKIE" else ",") + value  # RFC 9110 5.3, RFC 6265 5.4
            else:
                environ[key] = value
        fields.form = environ
        return environ

    def _new_key(self, name: str) -> str:
        key = name.upper().replace("-", "_")
        if name not in ("content-type", "content-length"):
            key = "HTTP_" + key
        if len(self._keys) < 1024:
            self._keys[name] = key
        return key


class Errors:
    """`wsgi.errors`: standard error as it is at the time of writing, so that an application may redirect it."""

    def write(self, text: str) -> int:
        """As `io.TextIOBase.write`."""
        return sys.stderr.write(text)

    def writelines(self, lines: Iterable[str]) -> None:
        """As `io.IOBase.writelines`."""
        sys.stderr.writelines(lines)

    def flush(self) -> None:
        """As `io.IOBase.flush`."""
        sys.stderr.flush()


# wsgi.input


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
    """A body that arrives: in memory up to `SPOOL_MEMORY` bytes, then in an unnamed file (open(2), O_TMPFILE).

    Where no directory can be written, as on a read-only root without /tmp, the file lives in memory (memfd_create(2)).
    """

    def __init__(self) -> None:
        self._file: Any = io.BytesIO()
        self._memory = True
        self._size = 0

    def write(self, content: bytes) -> None:
        """Append. `OSError` where there is no room."""
        self._size += len(content)
        if self._memory and self._size > SPOOL_MEMORY:
            file = _unnamed_file()
            file.write(self._file.getbuffer())
            self._file = file
            self._memory = False
        self._file.write(content)

    def rewind(self) -> Any:
        """The body as a binary file, at its beginning."""
        self._file.seek(0)
        return self._file

    def close(self) -> None:
        """Give back memory or file."""
        self._file.close()


def _unnamed_file() -> Any:
    try:
        return tempfile.TemporaryFile(buffering=65536)
    except FileNotFoundError:
        return os.fdopen(os.memfd_create("epollard-body", os.MFD_CLOEXEC), "w+b", buffering=65536)


class Upload:
    """The sink of a body that is read before the application is called: a slow sender holds no thread."""

    __slots__ = ("_connection", "_request", "_run", "_spool")

    def __init__(self, run: Run, connection: Connection, request: Request) -> None:
        self._run = run
        self._connection = connection
        self._request = request
        self._spool = Spool()

    def feed(self, content: bytes) -> None:
        """See `connection.Sink`."""
        self._spool.write(content)

    def end(self) -> bytes | None:
        """See `connection.Sink`."""
        return self._run(self._connection, self._request, self._spool.rewind())

    def abort(self) -> None:
        """See `connection.Sink`."""
        self._spool.close()


class ExpectedInput:
    """`wsgi.input` of a client that waits for "100 Continue" (RFC 9110 10.1.1): it is told so when the application first reads.

    The application runs before the body is there, so its first read waits; the loop goes on without its thread.
    """

    def __init__(self, connection: Connection, request: Request) -> None:
        self._connection = connection
        self._request = request
        self._spool = Spool()
        self._file: Any = None
        self._arrived = threading.Lock()
        self._arrived.acquire()
        self._aborted = False
        self.exchange: Exchange | None = None

    # The sink, on the loop's thread.

    def feed(self, content: bytes) -> None:
        """See `connection.Sink`."""
        self._spool.write(content)

    def end(self) -> None:
        """See `connection.Sink`."""
        self._connection.suspend()
        self._arrived.release()

    def abort(self) -> None:
        """See `connection.Sink`."""
        self._aborted = True
        if self.exchange is not None:
            self.exchange.dead = True  # the client has had its answer, or is gone
        if self._arrived.locked():
            self._arrived.release()

    def _ask(self) -> None:
        connection = self._connection
        if connection.closed:
            self.abort()
        else:
            connection.read_body(connection.server.draining or not self._request.fields.keep_alive, True)

    # The file, on the application's thread.

    def _body(self) -> Any:
        if self._file is None:
            exchange = self.exchange
            assert exchange is not None
            exchange.step_down()
            exchange.host.post(self._ask)
            self._arrived.acquire()
            if self._aborted:
                raise ConnectionResetError("the client did not send the whole body")
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


# The answer


class FileWrapper:
    """`wsgi.file_wrapper`: a file to be sent, by sendfile(2) where it is a regular one, else piece by piece."""

    def __init__(self, filelike: Any, blksize: int = 65536) -> None:
        self.filelike = filelike
        self.blksize = blksize
        if hasattr(filelike, "close"):
            self.close = filelike.close

    def __iter__(self) -> Iterator[bytes]:
        return iter(lambda: self.filelike.read(self.blksize), b"")


class Exchange:
    """One call of the application, and its answer."""

    __slots__ = (
        "_chunked",
        "_left",
        "_opened",
        "_posted",
        "_whole_inline",
        "away",
        "connection",
        "dead",
        "head",
        "host",
        "leading",
        "request",
        "sent",
        "started",
        "token",
    )

    def __init__(self, host: Host, connection: Connection, request: Request, token: list["Exchange"] | None) -> None:
        self.host = host
        self.connection = connection
        self.request = request
        self.token = token
        self.leading = token is not None  # this thread turns the loop
        self.away = self.leading  # ... and may lose it now, for the application's code runs: `token` holds this exchange
        self.head: Head | None = None
        self._opened = False  # the head is sent
        self._whole_inline = False  # all is sent, and returning says so, if the loop is not lost before
        self.dead = False  # nothing may be sent any more
        self.sent = 0  # bytes of body
        self.started = 0.0

    def start_response(self, status: str, headers: Headers, exc_info: ExcInfo | None = None) -> Callable[[bytes], None]:
        """PEP 3333. Raises `response.HeadError` or `TypeError` where the head cannot be sent."""
        if exc_info is not None:
            try:
                if self._opened:
                    raise exc_info[1].with_traceback(exc_info[2])
            finally:
                exc_info = None
        elif self.head is not None:
            raise AssertionError("start_response was called before, and no exc_info is given")
        self.head = response.head(status, headers)
        return self.write

    def write(self, data: bytes) -> None:
        """PEP 3333: the callable that `start_response` returns."""
        if type(data) is not bytes:
            raise TypeError(f"write() takes bytes, not {type(data).__name__}")
        self._back()
        try:
            self._send(data)
        finally:
            self._leave()

    def whole(self, body: bytes) -> bytes | None:
        """The usual answer as bytes: one small body. None where it is not usual."""
        head = self.head
        if head is None or not head.plain or self._opened or type(body) is not bytes:
            return None
        self.sent = size = len(body)
        request = self.request
        if size > COPY_BELOW or request.line.method == "HEAD":
            return None
        connection = self.connection
        if connection.closing:
            end = connection.server.close_end
        elif request.fields.version == "1.1":
            end = connection.server.date_end
        else:
            end = connection.server.keep_end
        if head.length is None:
            return b"%bContent-Length: %d\r\n%b%b" % (head.lines, size, end, body)
        if head.length != size:
            return None
        return head.lines + end + body

    def deliver(self, result: Iterable[bytes]) -> None:
        """Send the application's result, whatever it is, and close it. Its code is over, as after `_back`."""
        try:
            try:
                if isinstance(result, FileWrapper) and self._send_file(result):
                    pass
                elif isinstance(result, (list, tuple)):
                    self._send_whole(b"".join(result))
                else:
                    self._stream(result)
                self._send_end()
            finally:
                self._close(result)
        except BaseException as error:
            self.fail(error)

    def fail(self, error: BaseException) -> None:
        """The application raised: say so in the log, and to the client what can still be said."""
        self._back()
        line = self.request.line
        log.exception(f"application failed on {line.method} {line.target} of {self.connection.name()}", error)
        if not self._opened:
            self.head = _ERROR
            self._send_whole(_ERROR_BODY)
            self._send_end()
        else:
            # The head promised another body. A connection that ends early is the one way left to say so.
            self._call(self.connection.close)
            self._finish()

    # Turns: which code runs while somebody else may take the loop away.

    def _leave(self) -> None:
        """The application's code comes next."""
        if self.leading:
            assert self.token is not None
            self.away = True
            self.token.append(self)

    def _back(self) -> None:
        """The application's code is over. `leading` tells whether nobody took the loop meanwhile, and holds until `_leave`."""
        if self.away:
            assert self.token is not None
            self.away = False
            try:
                self.token.pop()
            except IndexError:
                self.leading = False

    def step_down(self) -> None:
        """This thread is going to wait: it gives the loop away, if it has it."""
        self._back()
        if self.leading:
            self.leading = False
            self.connection.suspend()
            self.host.vacate()

    def _call(self, function: Callable[..., object], *arguments: object) -> None:
        """Call on the loop's thread."""
        if self.leading:
            function(*arguments)
        else:
            self.host.post(function, *arguments)

    # Sending. `_back` has been called.

    def _open(self, whole: int | None) -> bytes:
        """The head's bytes. `whole`: length of the body where it is known though the application did not say it."""
        head = self.head
        if head is None:
            raise AssertionError("the application did not call start_response")
        self._opened = True
        self._chunked = False
        self._posted = 0
        connection = self.connection
        line, fields = self.request.line, self.request.fields
        parts = [head.lines]
        self._left = head.length
        if head.bodiless:
            self._left = 0
        elif head.length is None and whole is not None:
            self._left = whole
            parts.append(b"Content-Length: %d\r\n" % whole)
        elif head.length is None and fields.version == "1.0":
            connection.closing = True
        elif head.length is None:
            self._chunked = True
            parts.append(CHUNKED)
        if line.method == "HEAD":
            self._left = 0
            self._chunked = False
        if head.close:
            connection.closing = True
        if connection.closing:
            parts.append(CLOSE)
        elif fields.version == "1.0":
            parts.append(KEEP)
        parts.append(b"\r\n" if head.dated else connection.server.date_end)
        return b"".join(parts)

    def _send(self, data: bytes) -> None:
        """Some of the body, and the head before it."""
        opening = b"" if self._opened else self._open(None)
        left = self._left
        if left is not None and len(data) > left:
            if self.request.line.method != "HEAD" and self.head is not None and not self.head.bodiless:
                line = self.request.line
                log.warning(f"application sent more than its Content-Length on {line.method} {line.target}: cut")
            data = data[:left]
        if left is not None:
            self._left = left - len(data)
        self.sent += len(data)
        if data and self._chunked:
            data = response.chunk(data)
        self._put(opening + data if opening else data)

    def _put(self, data: bytes) -> None:
        """Bytes to the connection. Waits while too many wait there already."""
        if not data or self.dead:
            return
        connection = self.connection
        if self.leading:
            connection.write(data)
            if connection.pending <= HIGH:
                return
            self.step_down()
        else:
            self.host.post(connection.write, data)
            self._posted += len(data)
            if self._posted <= HIGH:
                return
        self._posted = 0
        drained = threading.Lock()
        drained.acquire()
        self.host.post(connection.call_when_drained, drained.release)
        drained.acquire()

    def _send_whole(self, body: bytes) -> None:
        if self._opened:
            self._send(body)
            return
        opening = self._open(len(body))
        head = self.head
        assert head is not None
        if self._left == 0:
            self._put(opening)
        elif self._left != len(body):
            self._put(opening)
            self._send(body)
        else:
            self._left = 0
            self.sent = len(body)
            if len(body) <= COPY_BELOW:
                self._put(opening + body)
            elif not self.dead:
                self._call(self.connection.write_two, opening, body)

    def _stream(self, result: Iterable[bytes]) -> None:
        """Each piece is sent before the next is asked for (PEP 3333)."""
        self._leave()
        for piece in result:
            self._back()
            if type(piece) is not bytes:
                raise TypeError(f"the application's result holds {type(piece).__name__}, not bytes")
            if piece:
                self._send(piece)
            if self.connection.closed or self.dead or (self._opened and self._left == 0):
                return
            self._leave()
        self._back()

    def _send_file(self, wrapper: FileWrapper) -> bool:
        """False where the file is not one for sendfile(2), or the head's length is not its length."""
        file = wrapper.filelike
        try:
            fd = file.fileno()
            offset = file.tell()
            status = os.fstat(fd)
        except (AttributeError, OSError, ValueError):
            return False
        if not stat.S_ISREG(status.st_mode) or isinstance(file, io.TextIOBase):
            return False
        count = max(status.st_size - offset, 0)
        head = self.head
        if head is not None and head.length is not None:
            count = min(count, head.length)
        self._back()
        if count <= COPY_BELOW:
            self._send_whole(os.pread(fd, count, offset))
            return True
        self._put(self._open(count))
        if self._left:
            self._left -= count
            self.sent = count
            # A descriptor of our own: the application may close its file long before a slow client has it all.
            self._call(self.connection.write_file, os.dup(fd), offset, count)
        return True

    def _send_end(self) -> None:
        """The application has no more."""
        self._back()
        if not self._opened:
            self._put(self._open(0))
        if self._chunked:
            self._put(LAST_CHUNK)
        elif self._left and not self.connection.closed and not self.dead:
            line = self.request.line
            short = f"{self._left} bytes less than its Content-Length"
            log.warning(f"application sent {short} on {line.method} {line.target}: closed")
            self._call(self.connection.close)
        self._finish()

    def _finish(self) -> None:
        """The connection goes on, unless its turn is not over yet: then returning from it says the same."""
        if self.leading:
            self._whole_inline = True
        elif not self.dead:
            self.host.post(self.connection.finish)
        assert self.head is not None
        self._call(self.host.finished, self.connection, self.request, self.head.code, self.sent, self.started)

    def _close(self, result: Iterable[bytes]) -> None:
        """`close()` of the result, always (PEP 3333). What it raises is the log's: the client has its answer."""
        close = getattr(result, "close", None)
        if close is None:
            self._back()
            return
        if not self.away:
            self._leave()
        led = self.leading
        try:
            close()
        except BaseException as error:
            log.exception(f"close() of the application's result failed on {self.request.line.target}", error)
        self._back()
        if led and not self.leading and self._whole_inline:
            self.host.post(self.connection.finish)

