"""One call of a WSGI application (PEP 3333) and its response. Knows of threads only that the loop may be taken from it.

An exchange runs on the loop's thread as long as it is quick, and sends by calling the connection. It may lose the loop to
another thread while the application's code runs (lease.py), and from then on sends by posting to the loop. The application's
code runs between `_enter_application` and `_leave_application`; from all other code the loop cannot be taken.
"""

import io
import os
import stat
import threading
import time
from collections.abc import Callable, Iterable
from types import TracebackType
from typing import Any, Final, Protocol

from .. import log
from ..net import contracts
from ..net.connection import Connection
from ..net.write_buffer import HIGH
from ..protocol import response, response_body
from ..protocol.request import Request
from ..protocol.response import COPY_BELOW, Head
from ..protocol.response_body import INTERNAL_ERROR, INTERNAL_ERROR_BODY, BodyWriter
from .environ import Environ, FileWrapper
from .input import ExpectedInput
from .lease import LoopLease

ExcInfo = tuple[type[BaseException], BaseException, TracebackType | None]
StartResponse = Callable[..., Callable[[bytes], None]]
App = Callable[[Environ, StartResponse], Iterable[bytes]]
Headers = list[tuple[str, str]]

_FILES: Final = (io.BufferedReader, io.BufferedRandom, io.FileIO)


class ClientGoneError(ConnectionResetError):
    """The client is gone or was refused: nothing that is written reaches it."""


class Runner(contracts.Runner, Protocol):
    """What an exchange needs of the threads that it runs on."""

    last_head: tuple[str, Any, Any]  # the last status and header list, and the head that was made of them

    def pass_loop_on(self) -> None:
        """The leader, on whose thread this is called, has surrendered the loop: another thread takes it."""


class Exchange:
    """One call of the application, and its response. The code that makes one sets the attributes without a value here."""

    runner: Runner
    connection: Connection
    request: Request
    lease: LoopLease["Exchange"] | None  # of the thread that it began on; None: that thread has not got the loop
    head: Head | None
    opened: bool  # the head is sent

    # The state in which an exchange on the loop's thread begins. Class attributes, because most never change on the fast path.
    on_loop = True  # this thread turns the loop
    in_application = True  # ... and may lose it now, for the application's code runs: `lease.running` is this exchange
    aborted = False  # the client is gone or was refused: nothing is sent
    started = 0.0  # time.perf_counter()
    _writer: BodyWriter  # from `opened` on
    _posted = 0  # bytes posted to the loop since the client was last waited for
    _completes_on_return = False  # all is sent: the connection goes on when its turn ends, unless the loop is lost before

    @classmethod
    def off_loop(cls, runner: Runner, connection: Connection, request: Request) -> "Exchange":
        """An exchange on a thread that has not got the loop."""
        exchange = cls()
        exchange.runner = runner
        exchange.connection = connection
        exchange.request = request
        exchange.lease = None
        exchange.head = None
        exchange.opened = exchange.on_loop = exchange.in_application = False
        return exchange

    def set_input(self, environ: Environ, body: Any) -> None:
        """Make `body` the input of the call."""
        environ["wsgi.input"] = body
        if type(body) is ExpectedInput:
            body.exchange = self

    # What the application calls.

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
        runner = self.runner
        last_status, last_headers, head = runner.last_head
        if headers != last_headers or status != last_status:
            head = response.head(status, headers)
            if type(headers) is list:
                runner.last_head = status, list(headers), head
        self.head = head
        return self.write

    def write(self, data: bytes) -> None:
        """PEP 3333: the callable that `start_response` returns. `ClientGoneError` ends one that writes without end."""
        if type(data) is not bytes:
            raise TypeError(f"write() takes bytes, not {type(data).__name__}")
        self._leave_application()
        try:
            self._send(data)
            if self.aborted or self.connection.closed:
                raise ClientGoneError("the client is gone")
        finally:
            self._enter_application()

    # The end of the call.

    def send_result(self, result: Iterable[bytes]) -> None:
        """Send the application's result, whatever it is, and close it. Its code is over, as after `_leave_application`."""
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
        """The application raised: log it, and send the client what can still be sent."""
        self._leave_application()
        line = self.request.line
        where = f"{line.method} {line.target} of {self.connection.name()}"
        if isinstance(error, ClientGoneError):
            log.debug(f"the client left in the middle of {where}")
        else:
            log.exception(f"application failed on {where}", error)
        if not self.opened:
            self.head = INTERNAL_ERROR
            self._send_whole(INTERNAL_ERROR_BODY)
            self._send_end()
        else:
            # The head promised another body. To end the connection early is the one way left to say so.
            self._call(self.connection.close)
            self._finish()

    # Whose code runs, and which thread has the loop.

    def _enter_application(self) -> None:
        """The application's code comes next, and the watcher may take the loop."""
        if self.on_loop:
            assert self.lease is not None
            self.in_application = True
            self.lease.running = self

    def _leave_application(self) -> None:
        """The application's code is over. From here to `_enter_application`, `on_loop` is true or false for good."""
        if self.in_application:
            lease = self.lease
            assert lease is not None
            self.in_application = False
            lease.running = None
            if lease.contested and lease.revoked():
                self.on_loop = False

    def leave_loop(self) -> None:
        """This thread is going to wait: it gives the loop away, if it has it."""
        self._leave_application()
        if self.on_loop:
            assert self.lease is not None
            self.lease.surrender(time.monotonic())
            self.on_loop = False
            self.connection.defer()
            self.runner.pass_loop_on()

    def post(self, callback: Callable[..., object], /) -> None:
        """Call something on the loop's thread, later."""
        self.runner.post(callback)

    def _call(self, function: Callable[..., object], *arguments: object) -> None:
        """Call something on the loop's thread: at once, if it is this one."""
        if self.on_loop:
            function(*arguments)
        else:
            self.runner.post(function, *arguments)

    # Sending. The application's code is over.

    def _open(self, size: int | None) -> bytes:
        """The bytes of the head. `size`: of the whole body, where it is known."""
        head = self.head
        if head is None:
            raise AssertionError("the application did not call start_response")
        self.opened = True
        self._posted = 0
        connection = self.connection
        context = connection.context
        closing = connection.closing or context.draining
        opening, self._writer, closing = response_body.start(head, self.request, context, size=size, closing=closing)
        if closing:
            connection.close_after_response()
        return opening

    def _frame(self, data: bytes) -> bytes:
        """A piece of the body as it is sent."""
        framed = self._writer.write(data)
        if self._writer.excess:
            log.warning(response_body.excess_warning(self.request))
        return framed

    def _send(self, data: bytes) -> None:
        """Some of the body, and the head before it."""
        opening = b"" if self.opened else self._open(None)
        framed = self._frame(data)
        self._put(opening + framed if opening else framed)

    def _put(self, data: bytes) -> None:
        """Give bytes to the connection, then wait if too many of them wait for the client."""
        if not data or self.aborted:
            return
        connection = self.connection
        if self.on_loop:
            connection.write(data)
            if connection.out is None or not connection.out.full:
                return
            self.leave_loop()
        else:
            self.runner.post(connection.write, data)
            self._posted += len(data)
            if self._posted <= HIGH:
                return
        self._posted = 0
        drained = threading.Lock()
        drained.acquire()
        self.runner.post(connection.call_when_drained, drained.release)
        drained.acquire()

    def _send_whole(self, body: bytes) -> None:
        """All of the body, and the head before it."""
        if self.opened:
            self._send(body)
            return
        opening = self._open(len(body))
        framed = self._frame(body)
        if len(framed) <= COPY_BELOW:
            self._put(opening + framed)
        elif not self.aborted:
            self._call(self.connection.write_two, opening, framed)

    def _stream(self, result: Iterable[bytes]) -> None:
        """Each piece is sent before the next is asked for (PEP 3333)."""
        self._enter_application()
        for piece in result:
            self._leave_application()
            if type(piece) is not bytes:
                raise TypeError(f"the application's result holds {type(piece).__name__}, not bytes")
            if piece:
                full = self.opened and self._writer.full  # asked for more nevertheless: code behind the last piece is to run
                self._send(piece)
                if full:
                    return
            if self.connection.closed or self.aborted:
                return
            self._enter_application()
        self._leave_application()

    def _send_file(self, wrapper: FileWrapper) -> bool:
        """Send a file by sendfile(2). False: it is not one that can be. One of gzip gives other bytes than its descriptor."""
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
        if not stat.S_ISREG(status.st_mode) or count <= 0:  # files of proc(5) have content, but no size
            return False
        if head.length is not None:
            count = min(count, head.length)
        self._leave_application()
        if count <= COPY_BELOW:
            self._send_whole(os.pread(fd, count, offset))
            return True
        # A descriptor of our own: the application may close its file long before a slow client has it all.
        own = os.dup(fd)
        self._put(self._open(count))
        _, allowed, _ = self._writer.write_file(count)  # its length is known, so there is nothing before it or behind it
        if allowed and not self.aborted:
            self._call(self.connection.write_file, own, offset, allowed)
        else:
            os.close(own)
        return True

    def _send_end(self) -> None:
        """The application has no more."""
        self._leave_application()
        if not self.opened:
            self._put(self._open(0))
        writer = self._writer
        self._put(writer.end())
        if writer.missing and not self.connection.closed and not self.aborted:
            log.warning(response_body.missing_warning(self.request, writer.missing))
            self._call(self.connection.close)
        self._finish()

    def _finish(self) -> None:
        """All is sent: the connection goes on. On the loop it does so when the exchange returns."""
        assert self.head is not None
        # Counted first: the end of the last connection is the end of a worker that drains.
        self._call(self.runner.finished, self.connection, self.request, self.head.code, self._writer.sent, self.started)
        if self.on_loop:
            self._completes_on_return = True
        elif not self.aborted:
            self.runner.post(self.connection.complete)

    def _close(self, result: Iterable[bytes]) -> None:
        """Call `close()` of the result, always (PEP 3333). An exception is only logged, because the client has its response."""
        close = getattr(result, "close", None)
        if close is None:
            self._leave_application()
            return
        if not self.in_application:
            self._enter_application()
        led = self.on_loop
        try:
            close()
        except BaseException as error:
            log.exception(f"close() of the application's result failed on {self.request.line.target}", error)
        self._leave_application()
        if led and not self.on_loop and self._completes_on_return:
            self.runner.post(self.connection.complete)
