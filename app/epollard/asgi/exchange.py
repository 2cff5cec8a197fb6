"""One HTTP call of an ASGI application (ASGI 3, spec 2.5) and its answer.

The first step of the application runs in the turn that read the request. Where it answers in that step, the answer goes back as
bytes, as a WSGI answer does; from then on the call is *late*, and writes to its connection by itself.
"""

import asyncio
import os
import stat
from collections.abc import Awaitable, Callable, MutableMapping
from functools import partial
from typing import Any, Final, Protocol

from .. import log
from ..net.connection import Connection
from ..net.write_buffer import LOW
from ..protocol import response
from ..protocol.request import Request
from ..protocol.response import COPY_BELOW, KNOWN_RAW_HEADS, LAST_CHUNK, Head
from .scope import Scope

CLIENT_LEFT: Final = 499  # in the access log, as nginx has it

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

_ERROR: Final = response.head("500 Internal Server Error", (("Content-Type", "text/plain; charset=utf-8"),))
_ERROR_BODY: Final = b"Internal Server Error\n"


class ClientDisconnected(OSError):  # noqa: N818 - named as in the specification: an event, not a fault
    """The client is gone, or has its whole answer: what is sent reaches nobody (spec 2.4)."""


class Host(Protocol):
    """What a call needs from the loop that it runs on."""

    aio: asyncio.AbstractEventLoop
    stopping: bool  # what still runs is cancelled

    def post(self, callback: Callable[..., object], *arguments: Any) -> None:
        """HTTPExchange something in this turn of the loop, but not now."""

    def finished(self, connection: Connection, request: Request, code: int, sent: int, started: float) -> None:
        """An answer is whole, or given up."""

    def ended(self, call: Any) -> None:
        """The application has returned."""


class HTTPExchange:
    """One call of the application, and its answer."""

    __slots__ = (
        "_body",
        "_chunked",
        "_held",
        "_left",
        "_size",
        "_trailers",
        "_waiters",
        "answer",
        "asked",
        "connection",
        "dead",
        "done",
        "ended",
        "head",
        "host",
        "late",
        "left",
        "opened",
        "request",
        "sent",
        "started",
        "task",
        "whole",
    )

    def __init__(self, host: Host, connection: Connection, request: Request) -> None:
        self.host = host
        self.connection = connection
        self.request = request
        self.answer: bytes | None = None  # what the first step leaves
        self.late = False  # the first step is over
        self.head: Head | None = None
        self.opened = False  # the head is sent
        self.done = False  # the answer is whole, or given up
        self.ended = False  # the application has returned
        self.left = False  # the client says nothing more: it has its answer, or half closed, or is gone
        self.dead = False  # nothing may be sent any more
        self.whole = True  # the request's body is all there
        self.sent = 0  # bytes of body
        self.started = 0.0  # time.perf_counter()
        self.task: asyncio.Task[None] | None = None
        self.asked = True  # the client need not be told to send its body
        self._body: list[bytes] | None = []  # what of it has arrived; None: the application has had all
        self._size = 0
        self._trailers: bytes | None  # what of them was given; None: none are to come
        self._left: int | None  # bytes of body that are to come; None: unknown
        self._chunked: bool
        self._held = False  # more has arrived than the application takes
        self._waiters: list[asyncio.Future[None]] | None = None

    async def run(self, app: App, scope: Scope) -> None:
        """HTTPExchange the application, and see to it that there is an answer."""
        try:
            await app(scope, self.receive, self.send)
        except BaseException as error:
            self._fail(error)
        else:
            if not self.done:
                self.give_up()
        self.ended = True
        if self.late:
            self.host.ended(self)

    # What the application calls.

    async def receive(self) -> Message:
        """The body piece by piece, then `http.disconnect` as soon as it is true."""
        if self._body is not None and not self.done:
            if not self.asked:
                self._ask()
            while self._body == [] and not self.whole and not self.left and not self.done:
                await self._wait()
            body = self._body  # which another task may have had meanwhile
            if body is not None and (body or self.whole):
                content = b"".join(body)
                if self.whole:
                    self._body = None
                else:
                    body.clear()
                    self._size = 0
                    if self._held:
                        self._held = False
                        self.connection.resume_reading()
                return {"type": "http.request", "body": content, "more_body": not self.whole}
        while not self.left and not self.done and not self.connection.closed:
            await self._wait()
        return {"type": "http.disconnect"}

    async def send(self, message: Message) -> None:
        """Raises `ClientDisconnected`; `response.HeadError`, `TypeError`, `RuntimeError` where the application is wrong."""
        kind = message["type"]
        connection = self.connection
        if self.dead or connection.closed:
            raise ClientDisconnected("the client is gone")
        if kind == "http.response.body":
            body = message.get("body", b"")
            if type(body) is not bytes:
                body = _as_bytes(body)
            head = self.head
            if head is None:
                raise RuntimeError("http.response.body before http.response.start")
            if self.done:
                raise RuntimeError("http.response.body after the end of the answer")
            if not message.get("more_body", False):
                size = len(body)
                if not self.opened and head.plain and self.request.plain and size <= COPY_BELOW and self._trailers is None:
                    # The usual answer, written out: one small body.
                    context = connection.context
                    end = context.close_end if connection.closing or context.draining else context.date_end
                    if head.length == size:
                        data = head.lines + end + body
                    elif head.length is None:
                        data = b"%bContent-Length: %d\r\n%b%b" % (head.lines, size, end, body)
                    else:
                        self._send_body(body, False)
                        return
                    connection.close_if_draining()
                    self.sent = size
                    self.opened = self.done = True
                    if self.late:
                        connection.write(data, connection.closing)
                        self._finish()
                    else:
                        self.host.finished(connection, self.request, head.code, size, self.started)
                        self.answer = data
                    return
                self._send_body(body, False)
            else:
                self._send_body(body, True)
            if connection.out is not None and connection.out.full:
                await self._drained()
        elif kind == "http.response.start":
            if self.head is not None:
                raise RuntimeError("http.response.start twice")
            key = message["status"], *message.get("headers", ())  # which may be an iterator, so it is read once
            try:
                self.head = KNOWN_RAW_HEADS[key]
            except (KeyError, TypeError):
                self.head = response.raw_head(key[0], key[1:])
            self._trailers = b"" if message.get("trailers", False) else None
        else:
            await self._send_more(kind, message)

    # The sink of the request's body.

    def feed(self, content: bytes) -> None:
        """See `connection.Sink`."""
        assert self._body is not None
        self._body.append(content)
        self._size += len(content)
        if self._size > LOW and not self._held and self.late:
            self._held = True
            self.connection.pause_reading()
        self._wake()

    def end(self) -> bytes | None:
        """See `connection.Sink`."""
        self.whole = True
        if self.late:
            self.connection.attach(self)
            self.connection.defer()
            self._held = False
        self._wake()
        return None

    def abort(self) -> bool:
        """See `connection.Sink`."""
        self.dead = self.left = True
        self._wake()
        return self.opened

    def on_disconnect(self) -> None:
        """See `connection.DisconnectSink`."""
        self.left = True
        self._wake()

    # The end.

    def finish_stream(self) -> None:
        """The server is going: end an answer that has no end of its own, and let the application know."""
        if self.done or self.dead or self.connection.closed:
            return
        self.connection.close_after_response()
        if self._chunked:
            self.connection.write(LAST_CHUNK, True)
        self._finish()
        self.dead = True

    def _fail(self, error: BaseException) -> None:
        """The application raised."""
        line = self.request.line
        where = f"{line.method} {line.target} of {self.connection.name()}"
        if isinstance(error, ClientDisconnected) or (
            isinstance(error, asyncio.CancelledError) and (self.dead or self.connection.closed)
        ):
            log.debug(f"the client left in the middle of {where}")
        elif (self.dead or self.connection.closed) and _is_of_leaving(error):
            log.info(f"the client left in the middle of {where}, and the application raised {type(error).__name__}")
        elif isinstance(error, asyncio.CancelledError) and self.host.stopping:
            log.info(f"cut short by a stop: {where}")
        else:
            log.exception(f"application failed on {where}", error)
        if not self.done:
            self._refuse()

    def give_up(self, failed: bool = False) -> None:
        """The application returned, or `failed`, which is in the log already, without a whole answer."""
        if self.dead or self.connection.closed:
            pass
        elif self.left and self.asked:  # as it may: it was told that the client is gone
            self.connection.close()
        elif not failed:
            line = self.request.line
            said = "the end of its answer" if self.opened else "an answer"
            log.error(f"application returned without {said} on {line.method} {line.target}")
        self._refuse()

    def _refuse(self) -> None:
        """Answer 500 where nothing is sent yet; else the connection's early end is the one way left to say so."""
        if self.dead or self.connection.closed:
            self._finish()
        elif self.opened:
            self.connection.close()
            self._finish()
        else:
            self.head = _ERROR
            self._trailers = None
            self._send_body(_ERROR_BODY, False)

    def _finish(self) -> None:
        """The answer is whole: the connection goes on."""
        code = self.head.code if self.head else CLIENT_LEFT
        self.host.finished(self.connection, self.request, code, self.sent, self.started)
        self.done = self.opened = True
        if self._waiters:
            self._wake()
        connection = self.connection
        if not self.late:
            self.answer = b""
            return
        connection.detach()
        if connection.closed or self.dead:  # where it was refused, what it was told is still to arrive
            return
        if connection.buffer:
            self.host.post(connection.complete)  # the next request is not a part of this task, nor of its context
        else:
            connection.complete()

    # Receiving.

    def _ask(self) -> None:
        """The client waits for "100 Continue" (RFC 9110 10.1.1)."""
        connection = self.connection
        if self.opened or connection.closed:  # 100 comes before the final status or never
            self.left = True
            return
        self.asked = True
        connection.attach(self)
        connection.read_body(connection.context.draining or not self.request.fields.keep_alive, True)

    async def _wait(self) -> None:
        waiter: asyncio.Future[None] = asyncio.Future(loop=self.host.aio)
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
        """What few applications send: the extensions of the specification."""
        connection = self.connection
        extensions = self.request.memo["extensions"]
        if kind not in extensions and kind != "http.response.push":
            raise RuntimeError(f"unknown or not offered: {kind!r}")
        if kind == "http.response.early_hint":
            if self.opened or self.head is not None:
                raise RuntimeError("http.response.early_hint after http.response.start")
            hints = response.field_lines([(b"Link", bytes(link)) for link in message.get("links", ())])
            connection.write(b"HTTP/1.1 103 Early Hints\r\n" + hints + b"\r\n")
            return
        if self.head is None or self.done:
            raise RuntimeError(f"{kind} {'after the end' if self.done else 'before the start'} of the answer")
        if kind == "http.response.trailers":
            if self._trailers is None:
                raise RuntimeError("http.response.trailers were not announced")
            self._trailers += response.field_lines(message.get("headers", ()))
            if not message.get("more_trailers", False):
                opening = b"" if self.opened else self._open(None)
                connection.write(opening + (b"0\r\n%b\r\n" % self._trailers if self._chunked else b""), connection.closing)
                self._finish()
        elif kind == "http.response.pathsend":
            # Opened like this so that a FIFO in its place holds up nobody.
            fd = os.open(message["path"], os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
            self._send_file(fd, 0, None, False)
        else:
            file = message["file"]
            fd = os.dup(file if type(file) is int else file.fileno())
            self._send_file(fd, message.get("offset"), message.get("count"), message.get("more_body", False))
        if connection.out is not None and connection.out.full:
            await self._drained()

    def _open(self, whole: int | None) -> bytes:
        assert self.head is not None
        self.opened = True
        opening, self._left, self._chunked = self.connection.open(self.head, self.request, whole)
        return opening

    def _begin(self, size: int, more: bool) -> bytes:
        """The head, if it is still to be sent, before so many bytes of body."""
        if self.opened:
            return b""
        return self._open(size if not more and self._trailers is None else None)

    def _send_body(self, body: bytes, more: bool) -> None:
        connection = self.connection
        opening = self._begin(len(body), more)
        left = self._left
        if left is not None:
            if len(body) > left:
                self._warn_of_too_much()
                body = body[:left]
            self._left = left - len(body)
        self.sent += len(body)
        if self._chunked:
            body = response.chunk(body) if body else b""
            if not more and self._trailers is None:
                body += LAST_CHUNK
        if len(body) <= COPY_BELOW:
            connection.write(opening + body, not more and connection.closing and not self._left)
        elif opening:
            connection.write_two(opening, body)
        else:
            connection.write(body)
        if not more:
            self._end_body()

    def _send_file(self, fd: int, offset: int | None, count: int | None, more: bool) -> None:
        """Send a piece of an open file, whose descriptor is ours. Without an offset: from where the file is, which moves on."""
        connection = self.connection
        try:
            status = os.fstat(fd)
            if not stat.S_ISREG(status.st_mode):
                raise RuntimeError("this is no regular file")
            here = os.lseek(fd, 0, os.SEEK_CUR) if offset is None else offset
            if here < 0:
                raise ValueError(f"offset {here} is before the file")
            rest = max(status.st_size - here, 0)
            count = rest if count is None else max(min(count, rest), 0)
            if offset is None:
                os.lseek(fd, count, os.SEEK_CUR)
            opening = self._begin(count, more)
            left = self._left
            if left is not None:
                if count > left:
                    self._warn_of_too_much()
                count = min(count, left)
                self._left = left - count
            chunked = self._chunked and count > 0
            connection.write(opening + (b"%x\r\n" % count if chunked else b""))
            self.sent += count
            own, fd = fd, -1
            connection.write_file(own, here, count)
        finally:
            if fd >= 0:
                os.close(fd)
        last = self._chunked and not more and self._trailers is None
        connection.write((b"\r\n" if chunked else b"") + (LAST_CHUNK if last else b""))
        if not more:
            self._end_body()

    def _end_body(self) -> None:
        if self._left and not self.connection.closed:
            line = self.request.line
            short = f"{self._left} bytes less than its Content-Length"
            log.warning(f"application sent {short} on {line.method} {line.target}: closed")
            self.connection.close()
        if self._trailers is None or self.connection.closed:  # else they are to come
            self._finish()

    def _warn_of_too_much(self) -> None:
        line = self.request.line
        if line.method != "HEAD" and self.head is not None and not self.head.bodiless:
            log.warning(f"application sent more than its Content-Length on {line.method} {line.target}: cut")

    async def _drained(self) -> None:
        """Wait while too much waits for the client already."""
        drained: asyncio.Future[None] = asyncio.Future(loop=self.host.aio)
        self.connection.call_when_drained(partial(resolve, drained))
        await drained
        if self.connection.closed and not self.done:
            raise ClientDisconnected("the client is gone")


def resolve(future: asyncio.Future[None]) -> None:
    """Wake who waits, unless that was given up."""
    if not future.done():
        future.set_result(None)


def _is_of_leaving(error: BaseException | None) -> bool:
    """Whether `ClientDisconnected` is at the root of it: frameworks raise exceptions of their own from it, or groups of it."""
    while error is not None and not isinstance(error, ClientDisconnected):
        if isinstance(error, BaseExceptionGroup):
            return all(map(_is_of_leaving, error.exceptions))
        error = error.__cause__ or error.__context__
    return error is not None


def _as_bytes(body: object) -> bytes:
    if isinstance(body, bytes | bytearray | memoryview):
        return bytes(body)
    raise TypeError(f"a body is bytes, not {type(body).__name__}")
