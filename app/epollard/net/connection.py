"""One client's connection: bytes to requests, responses to bytes, deadlines. Everything runs on the loop's thread.

The handler that the loop holds for a connection is its stage, so there are no flags to check first:

stage   the client ...                           epoll reports             deadline            next, or closed
------  ---------------------------------------  ------------------------  ------------------  ---------------------------------
HEAD    is idle, or sends a head                 input                     keep-alive, header  BODY, BUSY, FLUSH, LINGER, STREAM
BODY    sends a body                             input, room               body                HEAD, BUSY, FLUSH, LINGER
BUSY    waits for the application, or is paused  input once, room, an end  none                HEAD, BODY, FLUSH, LINGER, STREAM
FLUSH   takes the rest of a complete response    room                      write               as HEAD
LINGER  has its response and our FIN             input, to be discarded    LINGER_SECONDS      closed
STREAM  speaks another protocol, after a 101     input, room               ping                BUSY, FLUSH, LINGER

Write first: epoll is asked for room (writability) only for bytes that the kernel did not take; they have the write timeout. A
request that finds an idle connection costs one `recv`, one `send`, and no `epoll_ctl`.

Long: reading, sending and epoll's view are three sides of one state. As objects of their own they would call each other in
every request, at 50 ns a call, and each would need to know the stage.
"""

import os
import socket
from collections.abc import Callable
from types import MethodType
from typing import Any, Final, cast

from .. import log
from ..protocol import response
from ..protocol.body import ChunkedBody, LengthBody
from ..protocol.grammar import ProtocolError
from ..protocol.request import Fields, Request
from .context import NEVER, RECEIVE, WorkerContext
from .contracts import BodySink, DisconnectSink, Sink, UpgradedProtocol
from .loop import ERR, HUP, IN, OUT, RDHUP
from .write_buffer import DONTWAIT, FLUSH_TURN, File, WriteBuffer

# Bytes of a body received at once. Freeing a buffer of 64 KiB or more makes malloc(3) consolidate the heap each time.
RECEIVE_BODY: Final = 65536
# Pipelined requests of one client that are answered in a turn; the others wait for the next turn.
PIPELINE: Final = 64
# A connection that ends while the client still sends: discard this much more, for this long. Closing at once would send a
# reset, and the client might lose the response (RFC 9112 9.6).
LINGER_BYTES: Final = 1024 * 1024
LINGER_SECONDS: Final = 2.0
LAST: Final = DONTWAIT | int(socket.MSG_MORE)
UNREGISTERED: Final = -1  # as a mask: epoll does not know the connection

HEAD, BODY, BUSY, FLUSH, LINGER, STREAM = range(6)


class DiscardBody:
    """The sink of a body whose request has been answered without it."""

    def feed(self, content: bytes) -> None:
        """Nothing needs it."""

    def end(self) -> bytes:
        """The connection goes on with the next request."""
        return b""

    def abort(self) -> bool:
        """The response was sent."""
        return True


DISCARD_BODY: Final = DiscardBody()


def accept(context: WorkerContext, sock: "socket.SocketType", peer: object, local: tuple[str, str]) -> None:
    """Take over an accepted connection.

    The bytes that have arrived already are read before epoll knows the connection: a client with a single request is answered
    and gone without a single `epoll_ctl`.
    """
    host, port = peer[:2] if isinstance(peer, tuple) else ("", "")
    connection = Connection(sock, context, (host, str(port)), local)
    context.connections.add(connection)
    connection.on_head(IN)
    if connection.mask == UNREGISTERED and not connection.closed and not connection.paused:
        connection._listen()


class Connection:
    """One accepted socket, from its first byte to its close."""

    __slots__ = (
        "buffer",
        "closed",
        "closing",
        "context",
        "decoder",
        "discarded",
        "due",
        "fd",
        "last_fields",
        "local",
        "mask",
        "memo",
        "out",
        "paused",
        "peer",
        "rearm",
        "receive_size",
        "responses",
        "sink",
        "sock",
        "stage",
        "start",
        "unread",
    )

    def __init__(
        self, sock: "socket.SocketType", context: WorkerContext, peer: tuple[str, str], local: tuple[str, str]
    ) -> None:
        self.sock = sock
        self.fd = sock.fileno()
        self.context = context
        self.peer = peer  # host, port; empty for a Unix socket
        self.local = local  # SERVER_NAME, SERVER_PORT
        self.memo: Any = None  # what an application interface made of the two
        self.stage = HEAD
        self.closed = False
        self.due = context.header_due  # the deadline, on the monotonic clock
        # Receiving.
        self.buffer = b""  # received and not yet used ...
        self.start = 0  # ... from this offset on; meaningless while the buffer is empty
        self.receive_size = context.receive_size  # bytes that the next piece of a head may have
        self.last_fields: Fields | None = None  # of the last head, see `Request.last`
        self.decoder: LengthBody | ChunkedBody | None = None  # of the body in progress
        self.sink: Sink | None = None
        # Sending.
        self.responses: list[bytes] | None = None  # of a pipeline, not yet sent
        self.out: WriteBuffer | None = None  # bytes that the kernel did not take
        self.closing = False  # the connection ends with the response in progress ...
        self.unread = False  # ... and lingers, because the client may have sent more than was read
        self.discarded = 0  # bytes, while lingering
        # What epoll knows.
        self.mask = UNREGISTERED
        self.paused = False  # busy, and input is not reported: more has come, its sink has enough, or there is no need
        self.rearm = False  # bytes may be left that epoll reports only when asked again (edge-triggered, one-shot)

    # Receiving: the handlers of the stages.

    def on_head(self, events: int) -> None:
        """Idle, or in the middle of a head. Errors and hang-ups show in the result of `recv`.

        Long: the fast path (a single request, and a response that the kernel takes whole) contains what it could call.
        """
        context = self.context
        try:
            data = self.sock.recv(self.receive_size, DONTWAIT)
        except BlockingIOError:
            if context.oneshot and self.mask != UNREGISTERED:
                self._arm(context.watch_mask)
            return
        except OSError:
            self.close()
            return
        if not data:
            self.close()
            return
        if len(data) == self.receive_size:
            data = self._receive_more(data)
        if self.buffer:
            if self._lacks_end(data, events):
                return
            data = self.buffer
        elif events == IN:
            request = context.known.get(data)
            if request is None or not request.fast_path:
                request = self._read(data, request)
                if request is None:
                    return
            application = context.answer  # `context.answer(...)` looks for a method first
            answer = application(self, request)
            if answer and self.out is None:
                try:
                    sent = self.sock.send(answer, DONTWAIT)
                except BlockingIOError:
                    sent = 0
                except OSError:
                    self._lose_client()
                    return
                if sent == len(answer):
                    self.due = context.idle_due
                    return
                self._queue(memoryview(answer)[sent:])
            elif answer:  # behind bytes that the application has written and the kernel did not take, such as an early hint
                self.write(answer)
            if answer is not None and not self.closed:
                self._finish_response()
            return
        self._advance_and_rearm(data, events)

    def on_body(self, events: int) -> None:
        """In the middle of a request's body."""
        if events & OUT:
            self._flush()
            if self.closed:
                return
            if self.out is None:
                self._arm(self.context.watch_mask)
        data = self._receive()
        if data == b"":
            self.context.aborted += 1
            log.debug(f"{self.name()} left in the middle of a request's body")
            self.close()
            return
        self.rearm = self.context.oneshot or (self.context.flags != 0 and _may_be_more(data, events))
        if data:
            self.due = self.context.body_due
            self._take_body(data)
        if self.rearm and self.stage <= BODY and not self.closed:
            self._listen()

    def on_busy(self, events: int) -> None:
        """The application has the request: send its bytes, and stop listening to a client that sends more."""
        if events & (ERR | HUP):
            self._lose_client()
            return
        if events & IN:
            self.paused = True
        if events & OUT:
            self._flush()
        if events & self.context.disconnect_mask and self.decoder is None and self.sink is not None:
            sink, self.sink = self.sink, None
            cast(DisconnectSink, sink).on_disconnect()
        if not self.closed and self.stage == BUSY:
            self._arm_busy()

    def on_flush(self, events: int) -> None:
        """The response is complete but not yet sent."""
        if events & (ERR | HUP):
            self._lose_client()
        elif events & OUT:
            self._flush()

    def on_linger(self, events: int) -> None:
        """The response is sent. Up to a bound, discard the bytes that the client still sends; then close."""
        data = self._receive()
        if data is not None:
            self.discarded += len(data)
            if not data or self.discarded > LINGER_BYTES:
                self.close()
                return
        self._arm(self.context.watch_mask, force=self.context.flags != 0)

    def on_stream(self, events: int) -> None:
        """Another protocol."""
        if events & OUT:
            self._flush()
            if self.closed:
                return
            if self.out is None and not self.context.oneshot:
                self._arm(self.context.watch_mask)
        data = self._receive()
        if data == b"":
            self.close()
            return
        if data:
            self._feed_stream(data)
        rearm = self.context.oneshot or (self.context.flags != 0 and _may_be_more(data, events))
        if rearm and self.stage == STREAM and not self.closed:
            self._listen()

    def on_deadline(self) -> None:
        """`due` has passed."""
        if self.stage == HEAD:
            if self.buffer:
                self.reject(ProtocolError(408, "head not whole in time"))
            else:
                self.close()
        elif self.stage == BODY:
            self.reject(ProtocolError(408, "body stalled"))
        elif self.stage == LINGER:
            self.close()
        elif self.stage == STREAM and self.out is None:
            assert self.sink is not None
            cast(UpgradedProtocol, self.sink).on_deadline()
        elif self.out is not None and self.out.moves():
            self.due = self.context.write_due
        else:
            log.info(f"closed {self.name()}: it did not take its response for {self.context.timeouts.write:g} s")
            self.context.aborted += 1
            self.close()

    def expire_if_idle(self, due: float) -> None:
        """If no request is in progress, close at `due`."""
        if self.stage == HEAD and not self.buffer:
            self.due = due

    def _receive(self) -> bytes | None:
        """The bytes that have arrived. None: there are none yet. Empty: no more will come, because the client is gone."""
        try:
            return self.sock.recv(RECEIVE_BODY, DONTWAIT)
        except BlockingIOError:
            return None
        except OSError:
            return b""

    def _receive_more(self, data: bytes) -> bytes:
        """`data`, a piece that has filled `receive_size`; if that was the smaller size, with the bytes that follow it."""
        if self.receive_size == RECEIVE:
            return data
        self.receive_size = self.context.receive_size = RECEIVE
        try:
            return data + self.sock.recv(RECEIVE, DONTWAIT)
        except OSError:  # there are none yet; or the client is gone, which the next event shows
            return data

    # Requests.

    def _read(self, data: bytes, request: Request | None) -> Request | None:
        """The request, if `data` is one for the fast path. None: it is something else, which has been handled.

        `request`: from `WorkerContext.known`.
        """
        context = self.context
        if not context.fast_path or len(data) >= context.ask_from:
            self._advance_and_rearm(data, IN)
            return None
        try:
            if request is None:
                request = context.read_head(data, 0, self.last_fields)
                if request is not None and request.fast_path and request.size == len(data):
                    self.last_fields = request.last
                    return request
            self._serve(data, 0, request)
        except ProtocolError as error:
            self.reject(error)
        return None

    def _lacks_end(self, data: bytes, events: int) -> bool:
        """Add bytes to an unfinished head. Returns whether it is still unfinished. No byte is searched for the end twice."""
        context = self.context
        searched = len(self.buffer)
        self.buffer += data
        try:
            if not context.unfinished(self.buffer, searched):
                return False
        except ProtocolError as error:
            self.reject(error)
            return True
        if self._needs_rearm(data, events):
            self._arm(context.watch_mask, force=True)
        return True

    def _needs_rearm(self, data: bytes, events: int) -> bool:
        """Whether epoll must be asked again: always (one-shot), or if reported bytes may be left (edge-triggered)."""
        return self.context.flags != 0 and (len(data) >= self.context.ask_from or events & RDHUP != 0)

    def _advance_and_rearm(self, data: bytes, events: int) -> None:
        """As `_advance`; then ask epoll again if necessary."""
        self.rearm = self._needs_rearm(data, events)
        self._advance(data, 0)
        if self.rearm and self.stage <= BODY and self.mask != UNREGISTERED and not self.closed:
            self._listen()

    def _advance(self, data: bytes, start: int) -> None:
        """Answer the complete requests in `data` from `start` on, and keep the rest."""
        try:
            self._serve(data, start, self.context.read_head(data, start, self.last_fields))
        except ProtocolError as error:
            self.reject(error)

    def _serve(self, data: bytes, start: int, request: Request | None) -> None:
        """As `_advance`, after the first head was read. None: it is not complete. Raises `ProtocolError`.

        Long: each turn of this `while` is one request of a pipeline, so each call in it is a cost of every request.
        """
        context = self.context
        while request is not None:
            fields = request.fields
            self.last_fields = request.last
            start += request.size
            body = None
            if fields.simple and fields.length <= len(data) - start and fields.length <= context.limits.max_body:
                body = data[start : start + fields.length]
                start += fields.length
            if start != len(data):
                self.buffer = data
                self.start = start
            elif self.buffer:
                self.buffer = b""
            self.closing = context.draining or not fields.keep_alive
            if fields.framed and body is None:
                answer = self._begin_body(request)
            elif request.line.path == "*":
                answer = self._answer_options(request)
            elif body is not None:
                answer = context.answer_with_body(self, request, body)
            else:
                answer = context.answer(self, request)
            if answer is None or self.closed:
                if self.responses is not None:
                    self.write(b"")
                return
            # A client that sends requests but does not take its responses gets no further responses for now.
            if self.closing or not self.buffer or self.out is not None:
                self.write(answer, self.closing)
                if not self.closed:
                    self._finish_response()
                return
            if self.responses is None:
                self.responses = []
            self.responses.append(answer)
            if len(self.responses) == PIPELINE:
                # Until the next turn nothing more is received, so the buffer is bounded.
                self.defer()
                context.loop.post(self.complete)
                return
            data, start = self.buffer, self.start
            request = context.read_head(data, start, self.last_fields)
        if start or not self.buffer:
            self.due = context.header_due  # a head's deadline runs from its first byte
        self.buffer, self.start = data[start:], 0
        if self.responses is not None:
            self.write_now(b"")
            if self.out is not None:
                self._finish_response()

    def _begin_body(self, request: Request) -> bytes | None:
        """Answer a request whose body is not complete yet."""
        fields = request.fields
        if fields.chunked:
            self.decoder = ChunkedBody(self.context.limits.max_body)
        elif fields.length > self.context.limits.max_body:
            raise ProtocolError(413, f"body over {self.context.limits.max_body} bytes")
        else:
            self.decoder = LengthBody(fields.length)
        # A client that waits for "100 Continue" and never gets it may or may not send the body, so it is unknown where its next
        # request begins.
        self.closing = self.closing or fields.expect
        if request.line.path == "*":
            self.closing = True
            return self._answer_options(request)
        self._become(BUSY)
        self.due = NEVER
        answer = self.context.answer_streaming(self, request)
        if answer is not None and self.stage == BUSY:
            self._become(HEAD)
        return answer

    def _answer_options(self, request: Request) -> bytes:
        keep = response.CLOSE if self.closing else response.KEEP if request.fields.version == "1.0" else b""
        return response.options(self.context.date, keep)

    def _take_buffer(self) -> bytes:
        """Remove the bytes behind the request from the buffer and return them, to be used now."""
        data = self.buffer[self.start :]
        self.buffer = b""
        return data

    # Bodies and streams.

    def read_body(self, closing: bool, expected: bool) -> bytes | None:
        """Read the body and give it to the sink. Returns as an `Application` does.

        `closing`: the connection ends with the response. `expected`: send "100 Continue".
        """
        self.closing = closing
        if self.closed or self.decoder is None:
            return None
        self._become(BODY)
        self.due = self.context.body_due
        data = self._take_buffer()
        if data:
            try:
                answer = self._feed(data)
            except ProtocolError as error:
                self.reject(error)
                return None
            if self.decoder is None:
                return answer
        if expected and not data:
            self.write_now(response.CONTINUE)
        # Nothing need be done if epoll reports the client already, or if it was just accepted and `accept` is going to listen.
        deaf = self.paused or self.rearm or self.context.oneshot
        if self.stage == BODY and not self.closed and (deaf or self.mask not in (UNREGISTERED, self.context.watch_mask)):
            self._listen()
        return None

    def _feed(self, data: bytes) -> bytes | None:
        """Give bytes to the body. Returns the answer of the sink, once the body is complete."""
        decoder = self.decoder
        sink: Any = self.sink  # a `BodySink`, as there is a body
        assert decoder is not None
        content = decoder.feed(data)
        try:
            if content:
                sink.feed(content)
        except OSError as error:
            log.error(f"cannot keep the body of a request of {self.name()}: {error}")
            raise ProtocolError(507, "no room for the body") from None
        if not decoder.done:
            return None
        self.buffer, self.start = decoder.rest, 0
        self.decoder = None
        self.sink = None
        self.due = NEVER
        self._become(HEAD)
        answer: bytes | None = sink.end()
        return answer

    def _take_body(self, data: bytes) -> None:
        try:
            answer = self._feed(data)
        except ProtocolError as error:
            self.reject(error)
            return
        if answer is not None and not self.closed:
            self.write(answer)
            if not self.closed:
                self._finish_response()

    def _discard_body(self) -> None:
        """The request was answered before its body was complete: read the rest, as the response had no `Connection: close`."""
        self.sink = DISCARD_BODY
        self._become(BODY)
        self.due = self.context.body_due
        self._listen()

    def upgrade(self, head: bytes, sink: UpgradedProtocol) -> None:
        """Send the head of a 101. From then on every byte goes to the sink, which sends with `write_now` (RFC 9110 7.8)."""
        self.write_now(head)
        if self.closed:
            return
        self.sink = sink
        self._become(STREAM)
        self.due = self.context.stream_due if self.out is None else self.context.write_due
        data = self._take_buffer()
        self._listen()
        if data:
            self._feed_stream(data)

    def _feed_stream(self, data: bytes) -> None:
        if self.out is None:
            self.due = self.context.stream_due
        assert self.sink is not None
        self.sink.feed(data)

    def pause_reading(self) -> None:
        """The sink has more than it can use: nothing is received until `resume_reading`."""
        if not self.closed:
            self._become(BUSY)
            self.paused = True
            if self.out is None:
                self.due = NEVER
            self._arm_busy(force=True)

    def resume_reading(self) -> None:
        """The sink can use more again."""
        if not self.closed and self.stage == BUSY:
            self._become(STREAM if self.decoder is None else BODY)
            if self.out is None:
                self.due = self.context.stream_due if self.decoder is None else self.context.body_due
            self._listen()

    def attach(self, sink: BodySink | UpgradedProtocol) -> None:
        """From now on `sink` gets the request's body, and is notified if the client leaves."""
        self.sink = sink

    def detach(self) -> None:
        """The sink needs no more notifications."""
        self.sink = None

    # Responses.

    def defer(self) -> None:
        """The request's turn is over but its response is not complete: the connection waits for `complete`."""
        if self.responses is not None:
            self.write(b"")
        if self.closed:
            return
        self._become(BUSY)
        # In both cases epoll reports nothing now, and need not before the response is complete.
        if self.rearm or self.mask == UNREGISTERED:
            self.paused = True
        if self.out is None:
            self.due = NEVER
        notify = self.context.disconnect_mask != 0 and (self.paused or self.context.oneshot)  # else epoll reports it already
        if notify or self.out is not None:
            self._arm_busy(force=notify)

    def complete(self, data: bytes = b"", linger: bool = False) -> None:
        """The deferred response ends with these bytes. `linger`: the client may have sent more than was read."""
        if data:
            self.write(data)
        if not self.closed:
            self.unread = self.unread or linger
            self._finish_response()

    def reject(self, error: ProtocolError) -> None:
        """Refuse the request, log it, and close: it is unknown where the next request would begin."""
        self.context.rejected += 1
        log.info(f"rejected {self.name()}: {error.status} {error.reason}")
        sink, self.sink, self.decoder = self.sink, None, None
        if sink is not None and sink.abort():
            self.close()  # a part of the application's response was sent
            return
        self.closing = True
        self.buffer = b""
        self.unread = True
        self.write(response.refusal(error.status, self.context.date))
        if not self.closed:
            self._finish_response()

    def close_after_response(self) -> None:
        """The connection ends with the response in progress."""
        self.closing = True

    def close_if_draining(self) -> None:
        """If the worker is draining by now, the connection ends with the response in progress."""
        if self.context.draining:
            self.closing = True

    def set_deadline(self, due: float) -> None:
        """Call `on_deadline` at `due`, in seconds of the monotonic clock, and not before."""
        self.due = due

    def remember(self, memo: object) -> None:
        """Keep what an application interface has made of the two addresses, for the connection's next request."""
        self.memo = memo

    def name(self) -> str:
        """The peer, for the log."""
        host, port = self.peer
        return f"{host}:{port}" if host else "a Unix socket's client"

    def _finish_response(self) -> None:
        """The response is complete: go on to the next stage."""
        if self.out is not None:
            self._become(FLUSH)
            self.due = self.context.write_due
            self._arm(OUT | self.context.flags, force=True)
            return
        if self.closing:
            if self.unread or self.decoder is not None or self.buffer:
                self._linger()
            else:
                self.close()
            return
        if self.context.corked:
            self._draw_cork()
        if self.decoder is not None:
            self._discard_body()
            return
        if self.stage != HEAD:
            self._become(HEAD)
        self.due = 0.0 if self.context.draining else self.context.idle_due
        if self.buffer:
            data, start = self.buffer, self.start
            self.buffer = b""
            self._advance(data, start)
        if self.closed or self.stage != HEAD:
            return
        if self.mask == UNREGISTERED and not self.paused:
            return  # it is being accepted, and `accept` is going to listen
        if self.paused or self.rearm or self.context.oneshot or self.mask != self.context.watch_mask:
            self._listen()

    # Sending.

    def write(self, data: bytes, last: bool = False) -> None:
        """Send, or keep the bytes that the kernel does not take. Does nothing if the connection is closed.

        `last`: a close comes next, so these bytes and the end of the stream may leave as one segment (MSG_MORE, send(2)).
        """
        if self.closed:
            return
        if self.responses is not None:
            data = b"".join((*self.responses, data))
            self.responses = None
        if not data:
            return
        if self.out is not None:
            self.out.add(memoryview(data))
            return
        try:
            sent = self.sock.send(data, LAST if last else DONTWAIT)
        except BlockingIOError:
            sent = 0
        except OSError:
            self._lose_client()
            return
        if sent != len(data):
            self._queue(memoryview(data)[sent:])

    def write_now(self, data: bytes) -> None:
        """As `write`, but the bytes leave at once, even if they do not fill a segment (TCP_CORK, tcp(7))."""
        self.write(data)
        if self.context.corked and not self.closed:
            self._draw_cork()

    def write_two(self, head: bytes, body: bytes) -> None:
        """Send a head and a large body at once, without copying them together."""
        if self.closed or self.responses is not None or self.out is not None:
            self.write(head)
            self.write(body)
            return
        try:
            sent = self.sock.sendmsg((head, body), (), DONTWAIT)
        except BlockingIOError:
            sent = 0
        except OSError:
            self._lose_client()
            return
        if sent < len(head):
            self._queue(memoryview(head)[sent:])
            self.write(body)
        elif sent < len(head) + len(body):
            self._queue(memoryview(body)[sent - len(head) :])

    def write_file(self, fd: int, offset: int, count: int) -> None:
        """Send `count` bytes of a file from `offset` by sendfile(2). The descriptor is closed when that is done."""
        if self.closed or count == 0:
            os.close(fd)
            return
        self.write(b"")
        if self.closed:
            os.close(fd)
            return
        if self.out is None:
            self._queue(File(fd, offset, count))
            self._flush()
        else:
            self.out.add(File(fd, offset, count))

    def call_when_drained(self, callback: Callable[[], object]) -> None:
        """Call back once: as soon as few enough bytes wait for the client, or it is gone."""
        if self.out is None:
            callback()
        else:
            self.out.call_when_drained(callback)

    def _queue(self, piece: memoryview | File) -> None:
        self.out = WriteBuffer(self.sock, piece)
        self.due = self.context.write_due
        if self.stage == BUSY:
            self._arm_busy()
        elif self.stage == BODY or self.stage == STREAM:
            self._arm(self.context.watch_mask | OUT)
        # In the other stages a handler is running, which arms at its end.

    def _flush(self) -> None:
        """Send bytes that wait; after the last of them, go on to the next stage."""
        out = self.out
        if out is None:
            return
        try:
            moved = out.flush()
        except OSError:
            self._lose_client()
            return
        if moved:
            self.due = self.context.write_due
        if out.pending:
            # If edge-triggered, epoll reports a socket that is still writable only when asked again.
            more = moved >= FLUSH_TURN
            if self.stage == FLUSH:
                self._arm(OUT | self.context.flags, force=more)
            elif more and self.mask != UNREGISTERED:  # else its first turn is not over, and arms at its end
                self._arm(self.mask, force=True)
            return
        self.out = None
        if self.stage == FLUSH:
            self._finish_response()
        elif self.stage == BUSY:
            self.due = NEVER
        elif self.stage == STREAM:
            self.due = self.context.stream_due

    def _draw_cork(self) -> None:
        """Have the bytes written so far leave now; later ones are corked again."""
        try:
            self.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_CORK, 0)
            self.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_CORK, 1)
        except OSError:
            pass  # a Unix socket has no cork, and a connection that is gone needs none

    # The end.

    def _lose_client(self) -> None:
        """The client left before it had its response."""
        self.context.aborted += 1
        self.close()

    def _linger(self) -> None:
        """End the connection after a response. Bytes are unread, so closing it at once would send a reset."""
        self.decoder = self.sink = None
        try:
            self.sock.shutdown(socket.SHUT_WR)
        except OSError:
            self.close()
            return
        self.buffer = b""
        self.due = self.context.now + LINGER_SECONDS
        self._become(LINGER)
        self._arm(self.context.watch_mask, force=True)

    def close(self) -> None:
        """Close the socket, and notify the callbacks and the sink that wait for the client."""
        if self.closed:
            return
        self.closed = True
        if self.mask != UNREGISTERED:
            self.context.loop.forget(self.fd)
        self.context.connections.discard(self)
        self.sock.close()
        if self.out is not None:
            out, self.out = self.out, None
            out.close()
        if self.sink is not None:
            sink, self.sink = self.sink, None
            sink.abort()

    # What epoll knows.

    def _become(self, stage: int) -> None:
        self.stage = stage
        if self.mask != UNREGISTERED:
            self.context.loop.rehandle(self.fd, MethodType(_HANDLERS[stage], self))

    def _listen(self) -> None:
        """Have epoll report input, including input that has arrived already, and room if bytes wait for the client."""
        self.paused = self.rearm = False
        self._arm(self.context.watch_mask | (OUT if self.out else 0), force=True)

    def _arm_busy(self, force: bool = False) -> None:
        mask = (0 if self.paused else IN) | (OUT if self.out else 0)
        if self.decoder is None and self.sink is not None:
            mask |= self.context.disconnect_mask
        self._arm(mask | self.context.flags if mask else 0, force)

    def _arm(self, mask: int, force: bool = False) -> None:
        """Set what epoll reports. `force`: even if the mask stays the same, so that epoll reports again what is ready now."""
        loop = self.context.loop
        if self.mask == UNREGISTERED:
            loop.watch(self.fd, mask, MethodType(_HANDLERS[self.stage], self))
        elif mask != self.mask or force or self.context.oneshot:
            loop.rewatch(self.fd, mask)
        self.mask = mask


# By stage. The loop holds these, bound to the connection.
_HANDLERS: Final = (
    Connection.on_head,
    Connection.on_body,
    Connection.on_busy,
    Connection.on_flush,
    Connection.on_linger,
    Connection.on_stream,
)


def _may_be_more(data: bytes | None, events: int) -> bool:
    """Whether there may be more to receive behind this piece of a body or a stream, without another event."""
    return data is not None and (len(data) == RECEIVE_BODY or events & RDHUP != 0)
