"""One call of a WSGI application (PEP 3333) and its answer. Knows of threads only that the loop may be taken from it.

An exchange runs on the loop's thread as long as it is quick; it may lose the loop to another thread while the application's
code runs (threads.py), and from then on sends by posting to the loop.
"""

import io
import os
import stat
import threading
from collections.abc import Callable, Iterable
from types import TracebackType
from typing import Any, Final, Protocol

from .. import log
from ..net.connection import Connection
from ..net.write_buffer import HIGH
from ..protocol import response
from ..protocol.request import Request
from ..protocol.response import COPY_BELOW, LAST_CHUNK, Head
from .environ import Environ, FileWrapper
from .input import ExpectedInput

ExcInfo = tuple[type[BaseException], BaseException, TracebackType | None]
StartResponse = Callable[..., Callable[[bytes], None]]
App = Callable[[Environ, StartResponse], Iterable[bytes]]
Headers = list[tuple[str, str]]

_ERROR: Final = response.head("500 Internal Server Error", (("Content-Type", "text/plain; charset=utf-8"),))
_ERROR_BODY: Final = b"Internal Server Error\n"
_FILES: Final = (io.BufferedReader, io.BufferedRandom, io.FileIO)


class ClientGoneError(ConnectionResetError):
    """The client is gone, or was refused: what is written reaches nobody."""


class Host(Protocol):
    """What an exchange needs from the threads that it runs on."""

    reply: tuple[str, Any, Any]  # the last status and headers, and what they were judged to be

    def post(self, callback: Callable[..., object], *arguments: Any) -> None:
        """Call something on the loop's thread."""

    def vacate(self) -> None:
        """The loop's thread has to wait for something: somebody else takes the loop."""

    def finished(self, connection: Connection, request: Request, code: int, sent: int, started: float) -> None:
        """An answer is whole, or given up. On the loop's thread."""


class Hold:
    """A thread's hold of the loop, which the watcher may take away while the application's code runs.

    The thread writes `running`, and clears it when the code is over; then it looks at `claimed`. The watcher writes `claimed`,
    then looks at `running` once more. Each writes before it looks, so at least one sees the other (CPython's lock puts all
    writes into one order); where both do, the watcher's mutex holds the thread until it is decided.
    """

    __slots__ = ("_mutex", "claimed", "running")

    def __init__(self) -> None:
        self.running: Exchange | None = None
        self.claimed: Exchange | None = None
        self._mutex = threading.Lock()

    def take(self, exchange: "Exchange") -> bool:
        """The watcher takes the loop from this thread. False: the exchange's code is over, or waits without the loop."""
        with self._mutex:
            if self.claimed is not None:
                return False
            self.claimed = exchange
            if self.running is exchange:
                return True
            self.claimed = None
            return False

    def give(self, exchange: "Exchange") -> None:
        """After `running` was cleared: the thread gives the loop away by itself."""
        with self._mutex:
            self.claimed = exchange

    def lost(self) -> bool:
        """After `running` was cleared and `claimed` seen: whether the loop was taken. True until the thread has it again."""
        with self._mutex:
            return self.claimed is not None


class Exchange:
    """One call of the application, and its answer. Whoever makes one sets what has no value here."""

    host: Host
    connection: Connection
    request: Request
    hold: Hold | None  # of the thread that it began on; None: that one has not got the loop
    head: Head | None
    opened: bool  # the head is sent

    # As an exchange begins on the loop's thread. Class attributes: for the usual one most of them never change.
    leading = True  # this thread turns the loop
    away = True  # ... and may lose it now, for the application's code runs: `hold.running` is this exchange
    dead = False  # nothing may be sent any more
    sent = 0  # bytes of body
    started = 0.0  # time.perf_counter()
    _left: int | None = None  # bytes of body that are to come; None: unknown
    _chunked = False
    _posted = 0  # bytes posted to the loop since the client was last waited for
    _whole_inline = False  # all is sent, and returning says so, if the loop is not lost before

    @classmethod
    def beside(cls, host: Host, connection: Connection, request: Request) -> "Exchange":
        """An exchange on a thread that has not got the loop."""
        exchange = cls()
        exchange.host = host
        exchange.connection = connection
        exchange.request = request
        exchange.hold = None
        exchange.head = None
        exchange.opened = exchange.leading = exchange.away = False
        return exchange

    def give(self, environ: Environ, body: Any) -> None:
        """Make `body` the input of the call."""
        environ["wsgi.input"] = body
        if type(body) is ExpectedInput:
            body.exchange = self

    def start_response(self, status: str, headers: Headers, exc_info: ExcInfo | None = None) -> Callable[[bytes], None]:
        """PEP 3333. Raises `response.HeadError` or `TypeError` where the head cannot be sent."""
        if exc_info is not None:
            try:
                if self.opened:
                    raise exc_info[1].with_traceback(exc_info[2])
            finally:
                exc_info = None
        elif self.head is not None:
            raise AssertionError("start_response was called before, and no exc_info is given")
        host = self.host
        said, fields, head = host.reply
        if headers != fields or status != said:
            head = response.head(status, headers)
            if type(headers) is list:
                host.reply = status, list(headers), head
        self.head = head
        return self.write

    def write(self, data: bytes) -> None:
        """PEP 3333: the callable that `start_response` returns. `ClientGoneError`: or who writes without end would not end."""
        if type(data) is not bytes:
            raise TypeError(f"write() takes bytes, not {type(data).__name__}")
        self._back()
        try:
            self._send(data)
            if self.dead or self.connection.closed:
                raise ClientGoneError("the client is gone")
        finally:
            self._leave()

    def whole(self, body: bytes) -> bytes | None:
        """The usual answer as bytes: one small body. None where it is not usual."""
        head = self.head
        if head is None or not head.plain or self.opened or type(body) is not bytes:
            return None
        request = self.request
        connection = self.connection
        size = len(body)
        if request.plain and not connection.closing:
            end = connection.context.date_end
        elif request.line.method == "HEAD":
            return None
        elif connection.closing:
            end = connection.context.close_end
        else:
            end = connection.context.keep_end
        if size > COPY_BELOW:
            return None
        if head.length == size:
            return head.lines + end + body
        if head.length is None:
            return b"%bContent-Length: %d\r\n%b%b" % (head.lines, size, end, body)
        return None

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
        where = f"{line.method} {line.target} of {self.connection.name()}"
        if isinstance(error, ClientGoneError):
            log.debug(f"the client left in the middle of {where}")
        else:
            log.exception(f"application failed on {where}", error)
        if not self.opened:
            self.head = _ERROR
            self._send_whole(_ERROR_BODY)
            self._send_end()
        else:
            # The head promised another body. A connection that ends early is the one way left to say so.
            self._call(self.connection.close)
            self._finish()

    def post(self, callback: Callable[..., object], /) -> None:
        """Call something on the loop's thread."""
        self.host.post(callback)

    # Turns: which code runs while somebody else may take the loop away.

    def _leave(self) -> None:
        """The application's code comes next."""
        if self.leading:
            assert self.hold is not None
            self.away = True
            self.hold.running = self

    def _back(self) -> None:
        """The application's code is over. `leading` tells whether nobody took the loop meanwhile, and holds until `_leave`."""
        if self.away:
            hold = self.hold
            assert hold is not None
            self.away = False
            hold.running = None
            if hold.claimed is not None and hold.lost():
                self.leading = False

    def step_down(self) -> None:
        """This thread is going to wait: it gives the loop away, if it has it."""
        self._back()
        if self.leading:
            assert self.hold is not None
            self.hold.give(self)
            self.leading = False
            self.connection.defer()
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
        self.opened = True
        self._posted = 0
        opening, self._left, self._chunked = self.connection.open(head, self.request, whole)
        return opening

    def _send(self, data: bytes) -> None:
        """Some of the body, and the head before it."""
        opening = b"" if self.opened else self._open(None)
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
            if connection.out is None or not connection.out.full:
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
        if self.opened:
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
                whole = self.opened and self._left == 0  # asked on nevertheless: code after the last piece wants to run
                self._send(piece)
                if whole:
                    return
            if self.connection.closed or self.dead:
                return
            self._leave()
        self._back()

    def _send_file(self, wrapper: FileWrapper) -> bool:
        """False where the file is not one for sendfile(2). One that reads otherwise than its descriptor (gzip) is none."""
        file = wrapper.filelike
        head = self.head
        if head is None or self.opened or type(file) not in _FILES or type(getattr(file, "raw", file)) is not io.FileIO:
            return False
        try:
            fd = file.fileno()
            offset = file.tell()
            status = os.fstat(fd)
        except (OSError, ValueError):
            return False
        count = status.st_size - offset
        if not stat.S_ISREG(status.st_mode) or count <= 0:  # files of proc(5) have no size, but content
            return False
        if head.length is not None:
            count = min(count, head.length)
        self._back()
        if count <= COPY_BELOW:
            self._send_whole(os.pread(fd, count, offset))
            return True
        # A descriptor of our own: the application may close its file long before a slow client has it all.
        own = os.dup(fd)
        self._put(self._open(count))
        if self._left and not self.dead:
            self._left -= count
            self.sent = count
            self._call(self.connection.write_file, own, offset, count)
        else:
            os.close(own)
        return True

    def _send_end(self) -> None:
        """The application has no more."""
        self._back()
        if not self.opened:
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
        assert self.head is not None
        # Counted first: the end of the last connection is the end of a worker that drains.
        self._call(self.host.finished, self.connection, self.request, self.head.code, self.sent, self.started)
        if self.leading:
            self._whole_inline = True
        elif not self.dead:
            self.host.post(self.connection.complete)

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
            self.host.post(self.connection.complete)
