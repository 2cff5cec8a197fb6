"""One HTTP call of an ASGI application (ASGI 3, HTTP spec 2.5) and its response.

The application's first step runs in the turn of the loop that read the request. If it answers within that step, the response
is returned as bytes, as in WSGI; after that step the exchange writes to its connection itself.

An exchange is in one state of each of four kinds. Each kind only moves forward, except between ARRIVING and HELD. The method in
parentheses makes the transition:

    call      FIRST_STEP  the first step runs                   -> LATE (`begin`: the step is over), RETURNED (`run`)
              LATE        it waits, or runs again               -> RETURNED (`run`)
              RETURNED    the application has returned

    body      WHOLE       all of it is here, or there is none   -> CONSUMED (`_take_body`)
    (of the   CONSUMED    the application has all of it
    request)  EXPECTED    the client waits for "100 Continue"   -> ARRIVING or LOST (`_ask_for_body`)
              ARRIVING    it is read as it comes                -> HELD (`feed`), WHOLE (`end`)
              HELD        more has come than the application
                          takes, so it is not read              -> ARRIVING (`_take_body`), WHOLE (`end`)
              LOST        a response has begun without it, so the client will not send it

    response  AWAITED     the application has sent nothing      -> STARTED (`send`), OPEN (`_open`: a 500), DONE (`_finish`)
              STARTED     its head is known, and not yet sent   -> OPEN (`_open`), DONE (`send`: the usual response, `_finish`)
              OPEN        its head has been sent                -> DONE (`_finish`)
              DONE        it is complete, or was given up

    client    PRESENT     it listens, and may send more         -> LEFT (`on_disconnect`), GONE (`abort`, `dismiss`)
              LEFT        it sends nothing more; it may listen  -> GONE (`abort`)
              GONE        nothing may be sent to it

The body begins as WHOLE, unless `read_body` finds that it is still to come: then as EXPECTED or ARRIVING.

Long: it is one class, and its states and their table belong together.
"""

import asyncio
import os
import stat
import time
from collections.abc import Awaitable, Callable, Coroutine, MutableMapping
from functools import partial
from typing import Any, Final, Protocol

from .. import log
from ..net import contracts
from ..net.connection import BODY as READING_BODY
from ..net.connection import Connection
from ..net.write_buffer import LOW
from ..protocol import response, response_body
from ..protocol.request import Request
from ..protocol.response import COPY_BELOW, KNOWN_RAW_HEADS, Head
from .scope import Scope

CLIENT_LEFT: Final = 499  # the status in the access log, as in nginx's

FIRST_STEP, LATE, RETURNED = range(3)
EXPECTED, ARRIVING, HELD, WHOLE, CONSUMED, LOST = range(6)
AWAITED, STARTED, OPEN, DONE = range(4)
PRESENT, LEFT, GONE = range(3)

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]


class ClientDisconnected(OSError):  # noqa: N818 - named as in the specification: an event, not a fault
    """The client is gone, or has its whole response: nothing more that is sent can reach it (spec 2.4)."""


class Runner(contracts.Runner, Protocol):
    """What an exchange needs of the event loop that it runs on."""

    aio: asyncio.AbstractEventLoop
    timed: bool  # whether `finished` needs to know when an exchange has started
    stopping: bool  # calls that still run are being cancelled

    def start(self, coroutine: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """Start a task. Its first step has run when this returns."""

    def begun(self, exchange: Any) -> None:
        """The first step is over, and the application has not returned."""

    def ended(self, exchange: Any) -> None:
        """The application has returned, in a later step."""


class HTTPExchange:
    """One call of the application for an HTTP request, and its response. The sink of the request's body."""

    __slots__ = (
        "_pieces",
        "_size",
        "_trailers",
        "_waiters",
        "_writer",
        "answer",
        "body",
        "call",
        "client",
        "connection",
        "head",
        "request",
        "response",
        "runner",
        "sent",
        "started",
        "task",
    )

    def __init__(self, runner: Runner, connection: Connection, request: Request) -> None:
        self.runner = runner
        self.connection = connection
        self.request = request
        self.call = FIRST_STEP
        self.body = WHOLE
        self.response = AWAITED
        self.client = PRESENT
        self.answer: bytes | None = None  # the result of the first step, see `Application.answer`
        self.head: Head | None = None
        self.sent = 0  # bytes of the response's body
        self.started = 0.0  # time.perf_counter()
        self.task: asyncio.Task[None] | None = None
        self._pieces: list[bytes] = []  # of the request's body: received, and not yet taken by the application
        self._size = 0  # bytes in them
        self._trailers: bytes | None  # those that were given so far; None: none were announced
        self._writer: response_body.BodyWriter  # from OPEN on, so never for the usual response
        self._waiters: list[asyncio.Future[None]] | None = None

    @classmethod
    def denial(cls, runner: Runner, connection: Connection, request: Request, started: float) -> "HTTPExchange":
        """For a WebSocket's handshake that the application denies with a response, within the call for the WebSocket."""
        exchange = cls(runner, connection, request)
        exchange.call = LATE
        exchange.started = started
        connection.attach(exchange)
        return exchange

    def begin(self, app: App, scope: Scope) -> bytes | None:
        """Call the application. Returns as `Application.answer` does."""
        runner = self.runner
        if runner.timed:
            self.started = time.perf_counter()
        task = runner.start(self.run(app, scope))
        if self.call == FIRST_STEP:
            self.call = LATE
            self.task = task
            runner.begun(self)
        answer = self.answer
        if answer is None:
            connection = self.connection
            if not connection.closed and self.client != GONE:
                connection.attach(self)
                if connection.stage != READING_BODY:
                    connection.defer()
        return answer

    async def run(self, app: App, scope: Scope) -> None:
        """Call the application, and make sure that there is a response."""
        try:
            await app(scope, self.receive, self.send)
        except BaseException as error:
            self._fail(error)
        else:
            if self.response != DONE:
                self.give_up()
        late = self.call == LATE
        self.call = RETURNED
        if late:
            self.runner.ended(self)

    # What the application calls.

    async def receive(self) -> Message:
        """The body piece by piece, then `http.disconnect` once the client has left or the response is complete."""
        if self.body < CONSUMED and self.response != DONE:
            if self.body == EXPECTED:
                self._ask_for_body()
            while not self._pieces and self.body < WHOLE and self.client == PRESENT and self.response != DONE:
                await self._wait()
            if self._pieces or self.body == WHOLE:  # else another task has taken it in the meantime
                return self._take_body()
        while self.client == PRESENT and self.response != DONE and self.body != LOST and not self.connection.closed:
            await self._wait()
        return {"type": "http.disconnect"}

    async def send(self, message: Message) -> None:
        """Raises `ClientDisconnected`; `response.HeadError`, `TypeError`, `RuntimeError` where the application is wrong.

        Long: every response takes this path twice, and a method for each kind of message would cost 50 ns each time.
        """
        kind = message["type"]
        connection = self.connection
        if self.client == GONE or connection.closed:
            raise ClientDisconnected("the client is gone")
        if kind == "http.response.body":
            body = message.get("body", b"")
            if type(body) is not bytes:
                body = _as_bytes(body)
            head = self.head
            if head is None:
                raise RuntimeError("http.response.body before http.response.start")
            if self.response == DONE:
                raise RuntimeError("http.response.body after the end of the response")
            more = message.get("more_body", False)
            if not more and self.response == STARTED and self._trailers is None:
                context = connection.context
                closing = connection.closing or context.draining
                data = response_body.whole(head, self.request, context, body, closing)
                if data is not None:
                    if closing:
                        connection.close_after_response()
                    self.sent = len(body)
                    self.response = DONE
                    if self.call == FIRST_STEP:
                        self.runner.finished(connection, self.request, head.code, self.sent, self.started)
                        self.answer = data
                    else:
                        connection.write(data, closing)
                        self._finish()
                    return
            self._send_body(body, more)
            if connection.out is not None and connection.out.full:
                await self._drained()
        elif kind == "http.response.start":
            if self.response != AWAITED:
                raise RuntimeError("http.response.start twice")
            key = message["status"], *message.get("headers", ())  # the headers may be an iterator, so they are read once
            try:
                self.head = KNOWN_RAW_HEADS[key]
            except (KeyError, TypeError):
                self.head = response.raw_head(key[0], key[1:])
            self.response = STARTED
            self._trailers = b"" if message.get("trailers", False) else None
        else:
            await self._send_more(kind, message)

    # The sink of the request's body.

    def read_body(self) -> bool:
        """Begin to read the request's body, which is still to come. False: it was refused at once."""
        if self.request.fields.expect:
            self.body = EXPECTED
            return True
        self.body = ARRIVING
        self.connection.attach(self)
        self.connection.read_body(self.connection.closing, False)
        return self.client != GONE

    def feed(self, content: bytes) -> None:
        """See `contracts.BodySink`."""
        self._pieces.append(content)
        self._size += len(content)
        if self._size > LOW and self.body == ARRIVING and self.call != FIRST_STEP:
            self.body = HELD
            self.connection.pause_reading()
        if self._waiters:
            self._wake()

    def end(self) -> bytes | None:
        """See `contracts.BodySink`."""
        self.body = WHOLE
        if self.call != FIRST_STEP:
            self.connection.attach(self)
            self.connection.defer()
        self._wake()
        return None

    def abort(self) -> bool:
        """See `contracts.BodySink`."""
        self.client = GONE
        self._wake()
        return self.response >= OPEN

    def on_disconnect(self) -> None:
        """See `contracts.DisconnectSink`."""
        self.client = LEFT
        self._wake()

    # The end.

    def dismiss(self) -> bool:
        """The server is shutting down: end the response if it has no end of its own. True: cancel the call in a moment."""
        if self.response != OPEN or self.head is None or not self.head.events:
            return False
        if self.client != GONE and not self.connection.closed:
            self.connection.close_after_response()
            self.connection.write(self._writer.end(), True)
            self._finish()
            self.client = GONE
        return True

    def _fail(self, error: BaseException) -> None:
        """The application raised an exception."""
        where = f"{self._name()} of {self.connection.name()}"
        gone = self.client == GONE or self.connection.closed
        cancelled = isinstance(error, asyncio.CancelledError)
        if isinstance(error, ClientDisconnected) or (cancelled and gone):
            log.debug(f"the client left in the middle of {where}")
        elif gone and _caused_by_disconnect(error):
            log.info(f"the client left in the middle of {where}, and the application raised {type(error).__name__}")
        elif cancelled and self.runner.stopping:
            log.info(f"cut short by a stop: {where}")
        else:
            log.exception(f"application failed on {where}", error)
        if self.response != DONE:
            self._refuse()

    def give_up(self, failed: bool = False) -> None:
        """There is no complete response: the application returned without one or has `failed`, which is already in the log."""
        if self.client == GONE or self.connection.closed:
            pass
        elif self.client == LEFT:  # the application knows this, and may have nothing more to send
            self.connection.close()
        elif not failed:
            missing = "the end of its response" if self.response == OPEN else "a response"
            log.error(f"application returned without {missing} on {self._name()}")
        self._refuse()

    def _refuse(self) -> None:
        """Send a 500 if nothing has been sent. Otherwise close the connection early, which is all that can show the failure."""
        if self.client == GONE or self.connection.closed:
            self._finish()
        elif self.response == OPEN:
            self.connection.close()
            self._finish()
        else:
            self.head = response_body.INTERNAL_ERROR
            self._trailers = None
            self._send_body(response_body.INTERNAL_ERROR_BODY, False)

    def _finish(self) -> None:
        """The response is complete: the connection goes on."""
        if self.response == OPEN:
            self.sent = self._writer.sent
        code = self.head.code if self.head else CLIENT_LEFT
        self.runner.finished(self.connection, self.request, code, self.sent, self.started)
        self.response = DONE
        if self._waiters:
            self._wake()
        if self.call == FIRST_STEP:
            self.answer = b""
            return
        connection = self.connection
        connection.detach()
        if connection.closed or self.client == GONE:  # the refusal may still be on its way to the client
            return
        if connection.buffer:
            self.runner.post(connection.complete)  # the next request must not run in this task and its context
        else:
            connection.complete()

    # Receiving.

    def _ask_for_body(self) -> None:
        """The client waits for "100 Continue" (RFC 9110 10.1.1)."""
        connection = self.connection
        if self.response >= OPEN or connection.closed:  # a 100 may only come before the final status
            self.body = LOST
            return
        self.body = ARRIVING
        connection.attach(self)
        connection.read_body(connection.context.draining or not self.request.fields.keep_alive, True)

    def _take_body(self) -> Message:
        """As much of the body as has arrived. If the body was held, the connection goes on reading."""
        content = b"".join(self._pieces)
        self._pieces.clear()
        self._size = 0
        more = self.body < WHOLE
        if self.body == WHOLE:
            self.body = CONSUMED
        elif self.body == HELD:
            self.body = ARRIVING
            self.connection.resume_reading()
        return {"type": "http.request", "body": content, "more_body": more}

    async def _wait(self) -> None:
        """Wait until something changes."""
        waiter: asyncio.Future[None] = asyncio.Future(loop=self.runner.aio)
        if self._waiters is None:
            self._waiters = []
        self._waiters.append(waiter)
        try:
            await waiter
        finally:
            self._waiters.remove(waiter)

    def _wake(self) -> None:
        for waiter in self._waiters or ():
            resolve(waiter)

    # Sending.

    async def _send_more(self, kind: str, message: Message) -> None:
        """Send a message of one of the specification's extensions."""
        connection = self.connection
        extensions = self.request.memo["extensions"]
        if kind not in extensions and kind != "http.response.push":
            raise RuntimeError(f"unknown or not offered: {kind!r}")
        if kind == "http.response.early_hint":
            if self.response != AWAITED:
                raise RuntimeError("http.response.early_hint after http.response.start")
            hints = response.field_lines([(b"Link", bytes(link)) for link in message.get("links", ())])
            connection.write(b"HTTP/1.1 103 Early Hints\r\n" + hints + b"\r\n")
            return
        if self.response == AWAITED or self.response == DONE:
            raise RuntimeError(f"{kind} {'after the end' if self.response == DONE else 'before the start'} of the response")
        if kind == "http.response.trailers":
            self._send_trailers(message)
        elif kind == "http.response.pathsend":
            # Opened without blocking, so that a FIFO in its place does not block the loop.
            fd = os.open(message["path"], os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
            self._send_file(fd, 0, None, False)
        else:
            file = message["file"]
            fd = os.dup(file if type(file) is int else file.fileno())
            self._send_file(fd, message.get("offset"), message.get("count"), message.get("more_body", False))
        if connection.out is not None and connection.out.full:
            await self._drained()

    def _send_trailers(self, message: Message) -> None:
        if self._trailers is None:
            raise RuntimeError("http.response.trailers were not announced")
        self._trailers += response.field_lines(message.get("headers", ()))
        if not message.get("more_trailers", False):
            connection = self.connection
            opening = b"" if self.response == OPEN else self._open(None)
            connection.write(opening + self._writer.end(self._trailers), connection.closing)
            self._finish()

    def _open(self, size: int | None) -> bytes:
        """Begin the response. Returns the bytes of its head. `size`: bytes of the whole body, if known."""
        assert self.head is not None
        connection = self.connection
        context = connection.context
        closing = connection.closing or context.draining
        opening, self._writer, closing = response_body.start(self.head, self.request, context, size=size, closing=closing)
        self.response = OPEN
        if closing:
            connection.close_after_response()
        return opening

    def _send_body(self, body: bytes, more: bool) -> None:
        connection = self.connection
        last = not more and self._trailers is None
        opening = b"" if self.response == OPEN else self._open(len(body) if last else None)
        writer = self._writer
        body = writer.write(body)
        if writer.excess:
            log.warning(response_body.excess_warning(self.request))
        if last:
            body += writer.end()
        if len(body) <= COPY_BELOW:
            connection.write(opening + body, not more and connection.closing and not writer.missing)
        elif opening:
            connection.write_two(opening, body)
        else:
            connection.write(body)
        if not more:
            self._end_body()

    def _send_file(self, fd: int, offset: int | None, count: int | None, more: bool) -> None:
        """Send a piece of an open file, and close the descriptor. Without an offset: from its position, which moves on."""
        connection = self.connection
        last = not more and self._trailers is None
        try:
            offset, count = _piece(fd, offset, count)
            opening = b"" if self.response == OPEN else self._open(count if last else None)
            writer = self._writer
            before, count, behind = writer.write_file(count)
            if writer.excess:
                log.warning(response_body.excess_warning(self.request))
            connection.write(opening + before)
            own, fd = fd, -1
            connection.write_file(own, offset, count)
        finally:
            if fd >= 0:
                os.close(fd)
        connection.write(behind + writer.end() if last else behind)
        if not more:
            self._end_body()

    def _end_body(self) -> None:
        missing = self._writer.missing
        if missing and not self.connection.closed:
            log.warning(response_body.missing_warning(self.request, missing))
            self.connection.close()
        if self._trailers is None or self.connection.closed:  # else the trailers are still to come
            self._finish()

    async def _drained(self) -> None:
        await drained(self.runner, self.connection)
        if self.connection.closed and self.response != DONE:
            raise ClientDisconnected("the client is gone")

    def _name(self) -> str:
        """The request, for the log."""
        line = self.request.line
        return f"{line.method} {line.target}"


async def drained(runner: Runner, connection: Connection) -> None:
    """Wait until few enough bytes wait for the client."""
    waiter: asyncio.Future[None] = asyncio.Future(loop=runner.aio)
    connection.call_when_drained(partial(resolve, waiter))
    await waiter


def resolve(future: asyncio.Future[None]) -> None:
    """Wake the task that waits, unless it has given up."""
    if not future.done():
        future.set_result(None)


def _piece(fd: int, offset: int | None, count: int | None) -> tuple[int, int]:
    """Where a piece of a file begins, and its length. Without an offset: at the file's position, which moves to its end.

    Raises `OSError`; `RuntimeError`, `ValueError` where the application is wrong.
    """
    status = os.fstat(fd)
    if not stat.S_ISREG(status.st_mode):
        raise RuntimeError("this is not a regular file")
    start = os.lseek(fd, 0, os.SEEK_CUR) if offset is None else offset
    if start < 0:
        raise ValueError(f"offset {start} is before the file")
    rest = max(status.st_size - start, 0)
    count = rest if count is None else max(min(count, rest), 0)
    if offset is None:
        os.lseek(fd, count, os.SEEK_CUR)
    return start, count


def _caused_by_disconnect(error: BaseException | None) -> bool:
    """Whether `ClientDisconnected` is the root cause: frameworks raise their own exceptions from it, or groups of it."""
    while error is not None and not isinstance(error, ClientDisconnected):
        if isinstance(error, BaseExceptionGroup):
            return all(map(_caused_by_disconnect, error.exceptions))
        error = error.__cause__ or error.__context__
    return error is not None


def _as_bytes(body: object) -> bytes:
    if isinstance(body, bytes | bytearray | memoryview):
        return bytes(body)
    raise TypeError(f"a body is bytes, not {type(body).__name__}")
