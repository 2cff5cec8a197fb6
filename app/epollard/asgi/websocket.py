"""One call of an ASGI application for a WebSocket (ASGI 3, spec 2.5): what follows from messages, closes, pings and silence.

`protocol.frames` turns bytes into messages and back. The handshake of a WebSocket is in one of these states:

    CONNECTING   the application has not accepted  -> OPEN (`_accept`), CLOSED (`_refuse`, a denial, or the client left)
    OPEN         both sides may send messages      -> CLOSING (`_close`), CLOSED (`_end`: the client closed, failed or left)
    CLOSING      our close frame is sent           -> CLOSED (`_end`: the client's close frame, its end, or its deadline)
    CLOSED       the application may still receive what has arrived, then `websocket.disconnect`

How far the application's call has come is the same as for HTTP (`exchange`: FIRST_STEP, LATE, RETURNED).
"""

import asyncio
import time
from collections import deque
from typing import Final

from .. import log
from ..net.connection import Connection
from ..net.context import NEVER
from ..net.write_buffer import HIGH, LOW
from ..protocol import handshake, response
from ..protocol.frames import BINARY, CLOSE, FAIL, PING, PONG, TEXT, Receiver, close_frame, frame
from ..protocol.handshake import Offer
from ..protocol.request import Request
from .exchange import (
    CLIENT_LEFT,
    DONE,
    FIRST_STEP,
    LATE,
    RETURNED,
    App,
    ClientDisconnected,
    HTTPExchange,
    Message,
    Runner,
    drained,
    resolve,
)
from .scope import Scope

QUEUE: Final = 64  # messages that wait for the application; more stay with the client
CLOSE_SECONDS: Final = 2.0  # for the client to return our close frame
# For a client to take what waits for it when the server shuts down: one that reads slowly would take for ever.
LAST_SECONDS: Final = 5.0
# RFC 6455 7.4.1; 1012 is from IANA's registry.
NORMAL: Final = 1000
NO_STATUS: Final = 1005
ABNORMAL: Final = 1006
INTERNAL_ERROR: Final = 1011
SERVICE_RESTART: Final = 1012

CONNECTING, OPEN, CLOSING, CLOSED = range(4)


class WebSocketExchange:
    """One call of the application for a WebSocket, and the sink of its connection from the handshake on."""

    __slots__ = (
        "_deadline",
        "_denial",
        "_greeted",
        "_held",
        "_messages",
        "_offer",
        "_outcome",
        "_pinged",
        "_receiver",
        "_size",
        "_state",
        "_waiter",
        "call",
        "connection",
        "request",
        "runner",
        "sent",
        "started",
        "task",
    )

    def __init__(self, runner: Runner, connection: Connection, request: Request, offer: Offer, *, max_message: int) -> None:
        self.runner = runner
        self.connection = connection
        self.request = request
        self.call = FIRST_STEP
        self.sent = 0  # bytes of messages
        self.started = time.perf_counter()
        self.task: asyncio.Task[None] | None = None
        self._offer = offer
        self._receiver = Receiver(max_message, offer.deflate)
        self._state = CONNECTING
        self._deadline = NEVER  # for the client's close frame
        self._greeted = False  # the application has received websocket.connect
        self._denial: HTTPExchange | None = None
        self._messages: deque[Message] = deque()  # for the application
        self._size = 0  # characters and bytes in them
        self._held = False  # more has arrived than the application takes
        self._outcome: tuple[int, str] | None = None  # how it ended: code and reason
        self._pinged = False  # and nothing has been received since
        self._waiter: asyncio.Future[None] | None = None  # for a message

    def begin(self, app: App, scope: Scope) -> None:
        """Call the application: its first step runs now."""
        self.connection.attach(self)
        self.connection.defer()
        task = self.runner.start(self.run(app, scope))
        if self.call == FIRST_STEP:
            self.call = LATE
            self.task = task
            self.runner.begun(self)

    async def run(self, app: App, scope: Scope) -> None:
        """Call the application, and make sure that the client learns of the end."""
        failed = dismissed = False
        try:
            await app(scope, self.receive, self.send)
        except BaseException as error:
            failed = True
            cancelled = isinstance(error, asyncio.CancelledError)
            gone = self._state == CLOSED and (cancelled or isinstance(error, ClientDisconnected))
            dismissed = cancelled and self.connection.context.draining
            if not gone and not dismissed:
                log.exception(f"application failed on WebSocket {self.request.line.target} of {self.connection.name()}", error)
        if self._denial is not None:
            if self._denial.response != DONE:
                self._denial.give_up(failed)
        elif self._state == CONNECTING:
            if not failed:
                log.error(f"application returned without a response on WebSocket {self.request.line.target}")
            self._refuse(503 if dismissed else 500)
        elif self._state == OPEN:
            self._close(INTERNAL_ERROR if failed else NORMAL, "")
        late = self.call == LATE
        self.call = RETURNED
        if late:
            self.runner.ended(self)

    # What the application calls.

    async def receive(self) -> Message:
        """`websocket.connect`, then messages, then `websocket.disconnect`."""
        if not self._greeted:
            self._greeted = True
            return {"type": "websocket.connect"}
        while not self._messages:
            if self._denial is not None:
                while (await self._denial.receive())["type"] != "http.disconnect":
                    pass
                return {"type": "websocket.disconnect", "code": ABNORMAL, "reason": ""}
            if self._outcome is not None:
                code, reason = self._outcome
                return {"type": "websocket.disconnect", "code": code, "reason": reason}
            waiter = self._waiter
            if waiter is None or waiter.done():
                waiter = self._waiter = asyncio.Future(loop=self.runner.aio)
                await waiter
            else:
                await asyncio.wait((waiter,))  # another task waits for it too, and may be cancelled
        message = self._messages.popleft()
        self._size -= len(message.get("text") or message.get("bytes") or b"")
        if self._held and self._size <= LOW and len(self._messages) < QUEUE // 2:
            self._release()
        return message

    async def send(self, message: Message) -> None:
        """Raises `ClientDisconnected`; `ValueError`, `TypeError`, `RuntimeError` where the application is wrong."""
        kind = message["type"]
        if self._state == CLOSED or (self._state == CLOSING and kind == "websocket.send"):
            raise ClientDisconnected("the WebSocket is closed")
        if self.connection.closed:
            self._end(ABNORMAL, "")
            raise ClientDisconnected("the client is gone")
        if kind == "websocket.send":
            if self._state != OPEN:
                raise RuntimeError("websocket.send before websocket.accept")
            text = message.get("text")
            if text is not None:
                self._send_message(TEXT, text.encode())
            else:
                content = message.get("bytes")
                if not isinstance(content, bytes | bytearray | memoryview):
                    raise TypeError("websocket.send has neither text nor bytes")
                self._send_message(BINARY, bytes(content))
            if self.connection.out is not None and self.connection.out.full:
                await drained(self.runner, self.connection)
        elif kind == "websocket.accept":
            self._accept(message)
        elif kind == "websocket.close":
            if self._denial is not None:
                raise RuntimeError("websocket.close within a denial")
            if self._state == CONNECTING:
                self._refuse(403)
            elif self._state == OPEN:
                self._close(message.get("code") or NORMAL, message.get("reason") or "")
        elif kind.startswith("websocket.http.response."):
            await self._deny(kind, message)
        else:
            raise RuntimeError(f"unknown: {kind!r}")

    def _accept(self, message: Message) -> None:
        if self._state != CONNECTING or self._denial is not None:
            raise RuntimeError("websocket.accept after a response")
        subprotocol = message.get("subprotocol")
        if subprotocol is not None and subprotocol not in self._offer.subprotocols:
            raise ValueError(f"the client has not offered the subprotocol {subprotocol!r}")
        date_end = self.connection.context.date_end
        head = handshake.accept_head(self._offer, subprotocol, message.get("headers") or (), date_end)
        self._state = OPEN
        self.connection.detach()
        self.connection.upgrade(head, self)
        if self.connection.closed:
            self._end(ABNORMAL, "")

    def _send_message(self, opcode: int, content: bytes) -> None:
        self.sent += len(content)
        deflate = self._offer.deflate
        connection = self.connection
        if deflate is None:
            connection.write_now(frame(opcode, content))
        else:
            connection.write_now(frame(opcode, deflate.compress(content), rsv1=True))

    async def _deny(self, kind: str, message: Message) -> None:
        """Send a message of a response other than 101 (the extension "websocket.http.response")."""
        if self._state != CONNECTING:
            raise RuntimeError(f"{kind} after websocket.accept")
        denial = self._denial
        if denial is None:
            denial = self._denial = HTTPExchange.denial(self.runner, self.connection, self.request, self.started)
            self._wake()
        await denial.send({**message, "type": kind.removeprefix("websocket.")})
        if denial.response == DONE:
            self._end(ABNORMAL, "")

    # The sink of the connection.

    def feed(self, content: bytes) -> None:
        """See `contracts.UpgradedProtocol`."""
        self._pinged = False
        connection = self.connection
        receiver = self._receiver
        while True:
            for kind, payload in receiver.feed(content):
                if kind == TEXT:
                    self._push({"type": "websocket.receive", "text": payload}, len(payload))
                elif kind == BINARY:
                    self._push({"type": "websocket.receive", "bytes": payload}, len(payload))
                elif kind == PING:
                    if self._state == OPEN and (connection.out is None or not connection.out.full):
                        connection.write_now(frame(PONG, payload))
                elif kind == CLOSE:
                    self._on_close(*payload)
                elif kind == FAIL:
                    self._on_failure(*payload)
            if not receiver.more or self._held:
                break
            content = b""
        if self._state == CLOSING:  # a client that goes on talking gains no time
            connection.set_deadline(self._deadline)

    def abort(self) -> bool:
        """See `contracts.UpgradedProtocol`: the connection is closed."""
        self._end(ABNORMAL, "")
        return True

    def on_disconnect(self) -> None:
        """See `contracts.DisconnectSink`: the client says nothing more. What it has said before can still be received."""
        if self._state == CONNECTING:
            self._end(ABNORMAL, "")
            self.connection.close()

    def on_deadline(self) -> None:
        """See `contracts.UpgradedProtocol`: the client is silent. Ping it; if it stays silent after that, it is gone."""
        connection = self.connection
        if self._state != OPEN:
            connection.close()
        elif self._pinged:
            log.info(f"closed WebSocket of {connection.name()}: it did not respond to a ping")
            self._end(ABNORMAL, "no answer to a ping")
            connection.write(close_frame(INTERNAL_ERROR, "no answer to a ping"))
            connection.close()
        else:
            self._pinged = True
            connection.set_deadline(connection.context.now + connection.context.timeouts.ping_timeout)
            connection.write_now(frame(PING, b""))

    def _push(self, message: Message, size: int) -> None:
        if self._state != OPEN:
            return
        self._messages.append(message)
        self._size += size
        waiter = self._waiter
        if waiter is not None and not waiter.done():
            waiter.set_result(None)
        elif (self._size > HIGH or len(self._messages) >= QUEUE) and not self._held:
            self._held = True
            self.connection.pause_reading()

    def _on_close(self, code: int, reason: str) -> None:
        if self._state == OPEN:
            self.connection.write(close_frame(None if code == NO_STATUS else code, ""))
        self._end(code, reason)
        self._leave()

    def _on_failure(self, code: int, reason: str) -> None:
        log.info(f"rejected WebSocket of {self.connection.name()}: {code} {reason}")
        self.connection.context.rejected += 1
        if self._state == OPEN:
            self.connection.write(close_frame(code, reason))
        self._end(code, reason)
        self._leave(linger=True)  # the client may have sent more

    def _release(self) -> None:
        """The application takes more again."""
        self._held = False
        connection = self.connection
        if self._state == CLOSED:
            return
        connection.attach(self)  # `on_disconnect` detached it
        if self._receiver.more:
            self.feed(b"")
        if connection.closed:
            self._end(ABNORMAL, "")
        elif not self._held:
            connection.resume_reading()

    # The end.

    def dismiss(self) -> bool:
        """The server is shutting down: close with code 1012, and cancel the call in a moment.

        False: the application has not yet decided whether to accept.
        """
        if self._state == OPEN:
            self._close(SERVICE_RESTART, "service restart")
            self.runner.aio.call_later(LAST_SECONDS, self.connection.close)
        elif self._state == CONNECTING and self._waiter is not None and not self._waiter.done():
            self._refuse(503)  # an application that waits for its client will decide nothing
        return self._state != CONNECTING

    def _close(self, code: int, reason: str) -> None:
        """Begin the closing handshake."""
        last = close_frame(code, reason)  # raises `ValueError`
        self._state = CLOSING
        connection = self.connection
        connection.write_now(last)
        self._messages.clear()
        self._size = 0
        if self._held:
            self._release()
        self._deadline = connection.context.now + CLOSE_SECONDS
        connection.set_deadline(self._deadline)
        self._outcome = self._outcome or (code, reason)
        self._wake()

    def _end(self, code: int, reason: str) -> None:
        if self._state != CLOSED:
            if self._denial is None:  # a denial is counted on its own
                status = CLIENT_LEFT if self._state == CONNECTING else 101
                self.runner.finished(self.connection, self.request, status, self.sent, self.started)
            self._state = CLOSED
        self._outcome = self._outcome or (code, reason)
        self._wake()

    def _leave(self, linger: bool = False) -> None:
        """Close the connection after what waits to be sent."""
        connection = self.connection
        connection.detach()
        connection.close_after_response()
        connection.complete(linger=linger)

    def _refuse(self, status: int) -> None:
        """Respond with an HTTP status instead of a WebSocket."""
        connection = self.connection
        self._state = CLOSED
        self._outcome = (ABNORMAL, "")
        self._wake()
        if connection.closed:
            return
        self.runner.finished(connection, self.request, status, 0, self.started)
        connection.write(response.refusal(status, connection.context.date), True)
        self._leave()

    def _wake(self) -> None:
        if self._waiter is not None:
            resolve(self._waiter)
