"""One client's connection: bytes to requests, answers to bytes, deadlines. Never runs anything but on the loop's thread.

The handler that the loop holds for a connection is its stage: reading a head, reading a body, busy (the application has the
request), flushing an answer, lingering, a stream (another protocol took over). Write first, and ask epoll for writability only
for what the kernel did not take: a request that finds an idle connection costs one `recv`, one `send`, and no `epoll_ctl`.
"""

import os
import socket
from collections.abc import Callable
from typing import Any, Final, cast

from .. import log
from ..protocol import response
from ..protocol.body import ChunkedBody, LengthBody
from ..protocol.grammar import ProtocolError
from ..protocol.request import Fields, Request
from .context import NEVER, RECEIVE, WorkerContext
from .contracts import DisconnectSink, Sink, UpgradedProtocol
from .loop import ERR, HUP, IN, OUT, RDHUP
from .write_buffer import DONTWAIT, FLUSH_TURN, File, WriteBuffer

# Bytes received at once of a body. A buffer of 64 KiB and more costs a consolidation of the heap each time it is freed.
RECEIVE_BODY: Final = 65536
# What one client may take of a turn: answered requests of a pipeline (the rest waits for the next turn).
PIPELINE: Final = 64
# After an answer to a request that was not read whole: take this much more, for this long, so that the
# answer is not lost to a reset (RFC 9112 9.6).
LINGER_BYTES: Final = 1024 * 1024
LINGER_SECONDS: Final = 2.0
LAST: Final = DONTWAIT | int(socket.MSG_MORE)

HEAD, BODY, BUSY, FLUSH, LINGER, STREAM = range(6)


class DiscardBody:
    """The sink of a body whose request has been answered without it."""

    def feed(self, content: bytes) -> None:
        """Nobody wants it."""

    def end(self) -> bytes:
        """The connection may go on."""
        return b""

    def abort(self) -> bool:
        """It has its answer."""
        return True


DISCARD_BODY: Final = DiscardBody()


def accept(context: WorkerContext, sock: "socket.SocketType", peer: object, local: tuple[str, str]) -> None:
    """Take over an accepted connection.

    The bytes that have arrived already are read before epoll knows the connection: a client that asks once is answered and gone
    without a single `epoll_ctl`.
    """
    host, port = peer[:2] if isinstance(peer, tuple) else ("", "")
    connection = Connection(sock, context, (host, str(port)), local)
    context.connections.add(connection)
    connection.on_head(IN)
    if connection.mask < 0 and not connection.closed and not connection.paused:
        connection.watch()


class Connection:
    """One accepted socket, from its first byte to its close."""

    __slots__ = (
        "answers",
        "buffer",
        "closed",
        "closing",
        "context",
        "decoder",
        "discarded",
        "due",
        "fd",
        "last",
        "local",
        "mask",
        "memo",
        "out",
        "paused",
        "peer",
        "room",
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
        self.local = local
        self.stage = HEAD
        self.buffer = b""  # received and not yet used, from `start`
        self.start = 0
        self.answers: list[bytes] | None = None  # of a pipeline, not yet sent
        self.out: WriteBuffer | None = None  # what the kernel did not take
        self.room = context.room  # bytes that the next piece of a head may have
        self.decoder: LengthBody | ChunkedBody | None = None  # of the body under way
        self.sink: Sink | None = None
        self.closing = False  # after the answer under way
        self.unread = False  # ... lingering, since the client may have sent more than was read
        self.discarded: int  # bytes, while lingering
        self.closed = False
        self.paused = False  # not listening, for the application is busy
        self.mask = -1  # what epoll knows; -1: nothing
        self.due = context.header_due
        self.memo: Any = None  # what an application interface made of peer and local
        self.last: Fields | None = None  # of the last head, see `Request.last`

    # Events.

    def on_head(self, events: int) -> None:
        """Idle, or in the middle of a head. Errors and hang-ups show in what `recv` says."""
        context = self.context
        try:
            data = self.sock.recv(self.room, DONTWAIT)
        except BlockingIOError:
            if context.oneshot and self.mask >= 0:
                self._arm(context.watch_mask)
            return
        except OSError:
            self.close()
            return
        if not data:
            self.close()
            return
        if len(data) == self.room:
            data = self._receive_more(data)
        if self.buffer:
            if self._unfinished(data, events):
                return
            data = self.buffer
        elif events == IN:
            request = context.known.get(data)
            if request is None or not request.fast_path:
                request = self._read(data, request)
                if request is None:
                    return
            # The usual case, written out: one request alone, and one answer, all of it taken by the kernel.
            application = context.answer  # `context.answer(...)` looks for a method first
            answer = application(self, request)
            if answer:
                try:
                    sent = self.sock.send(answer, DONTWAIT)
                except BlockingIOError:
                    sent = 0
                except OSError:
                    self._lost()
                    return
                if sent == len(answer):
                    self.due = context.idle_due
                    return
                self._queue(memoryview(answer)[sent:])
            if answer is not None and not self.closed:
                self._answered()
            return
        self._advance_armed(data, events)

    def _read(self, data: bytes, request: Request | None) -> Request | None:
        """The one usual request that `data` is. None: it is something else, which has been dealt with. `request`: if known."""
        context = self.context
        if not context.fast_path or len(data) >= context.ask_from:
            self._advance_armed(data, IN)
            return None
        try:
            if request is None:
                request = context.read_head(data, 0, self.last)
                if request is not None and request.fast_path and request.size == len(data):
                    self.last = request.last
                    return request
            self._serve(data, 0, request)
        except ProtocolError as error:
            self.reject(error)
        return None

    def _unfinished(self, data: bytes, events: int) -> bool:
        """Whether a head that lacks its end lacks it with these bytes, too: what came before them is not searched again."""
        context = self.context
        searched = len(self.buffer)
        self.buffer += data
        try:
            if not context.unfinished(self.buffer, searched):
                return False
        except ProtocolError as error:
            self.reject(error)
            return True
        if self._asks_again(data, events):
            self._arm(context.watch_mask, force=True)
        return True

    def _receive_more(self, data: bytes) -> bytes:
        """What is behind bytes that filled their buffer, where that was a small one."""
        if self.room == RECEIVE:
            return data
        self.room = self.context.room = RECEIVE
        try:
            return data + self.sock.recv(RECEIVE, DONTWAIT)
        except OSError:  # there is no more yet; or the client is gone, which the next event tells
            return data

    def _asks_again(self, data: bytes, events: int) -> bool:
        """Whether epoll, which says things once, is to be asked again: always (one-shot), or where bytes may be left (edge)."""
        return self.context.flags != 0 and (len(data) >= self.context.ask_from or events & RDHUP != 0)

    def _advance_armed(self, data: bytes, events: int) -> None:
        """As `_advance`; and ask epoll again, where that is to be."""
        ask = self._asks_again(data, events)
        self.paused = ask
        self._advance(data, 0)
        if self.closed:
            return
        if ask and self.paused and self.stage <= BODY and self.mask >= 0:
            self.paused = False
            self._arm(self.context.watch_mask, force=True)
        elif self.mask < 0 and self.stage == HEAD:
            self.paused = False

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
        left = data is not None and (len(data) == RECEIVE_BODY or events & RDHUP != 0)
        ask = self.context.oneshot or (left and self.context.flags != 0)
        self.paused = ask
        if data:
            self.due = self.context.body_due
            self._take_body(data)
        if ask and self.paused and self.stage <= BODY and not self.closed:
            self._listen()

    def on_busy(self, events: int) -> None:
        """The application has the request: send what it gave, and stop listening to a client that says more."""
        if events & (ERR | HUP):
            self._lost()
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
        if self.context.flags and self.stage == STREAM and not self.closed:
            left = data is not None and (len(data) == RECEIVE_BODY or events & RDHUP != 0)
            if left or self.context.oneshot:
                self._listen()

    def on_flush(self, events: int) -> None:
        """The answer is whole but not sent whole."""
        if events & (ERR | HUP):
            self._lost()
        elif events & OUT:
            self._flush()

    def on_linger(self, events: int) -> None:
        """The answer is sent; what the client still sends is thrown away, within a bound, before the close."""
        data = self._receive()
        if data is not None:
            self.discarded += len(data)
            if not data or self.discarded > LINGER_BYTES:
                self.close()
                return
        self._arm(self.context.watch_mask, force=self.context.flags != 0)

    def _receive(self) -> bytes | None:
        """What has come. None: nothing yet. Empty: no more will, the client is gone."""
        try:
            return self.sock.recv(RECEIVE_BODY, DONTWAIT)
        except BlockingIOError:
            return None
        except OSError:
            return b""

    def expire_if_idle(self, due: float) -> None:
        """If no request is in progress, close at `due`."""
        if self.stage == HEAD and not self.buffer:
            self.due = due

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
            log.info(f"closed {self.name()}: it did not take its answer for {self.context.timeouts.write:g} s")
            self.context.aborted += 1
            self.close()

    # Requests.

    def _advance(self, data: bytes, start: int) -> None:
        """Answer the requests that are whole in `data` from `start` on; the rest is for later."""
        try:
            self._serve(data, start, self.context.read_head(data, start, self.last))
        except ProtocolError as error:
            self.reject(error)

    def _serve(self, data: bytes, start: int, request: Request | None) -> None:
        """As `_advance`, where the first request has been read. None: it is not whole. Raises `ProtocolError`."""
        context = self.context
        while request is not None:
            fields = request.fields
            self.last = request.last
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
                self.start = 0
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
                if self.answers is not None:
                    self.write(b"")
                return
            # A client that asks on but does not take its answers gets no more of them for now.
            if self.closing or not self.buffer or self.out is not None:
                self.write(answer, self.closing)
                if not self.closed:
                    self._answered()
                return
            if self.answers is None:
                self.answers = []
            self.answers.append(answer)
            if len(self.answers) == PIPELINE:
                # The rest waits for the next turn, and until then nothing more is received: the buffer has a bound.
                self.defer()
                context.loop.post(self.complete)
                return
            data = self.buffer
            start = self.start
            request = context.read_head(data, start, self.last)
        if start or not self.buffer:
            self.due = context.header_due  # a head's deadline runs from its first byte
        self.buffer = data[start:]
        self.start = 0
        if self.answers is not None:
            self.write(b"")
            if self.out is not None:
                self._answered()
            elif context.corked:
                self.draw_cork()

    def _begin_body(self, request: Request) -> bytes | None:
        fields = request.fields
        if fields.chunked:
            self.decoder = ChunkedBody(self.context.limits.max_body)
        elif fields.length > self.context.limits.max_body:
            raise ProtocolError(413, f"body over {self.context.limits.max_body} bytes")
        else:
            self.decoder = LengthBody(fields.length)
        # Who waits for "100 Continue" and never hears it may send the body or not: nobody knows where the next request begins.
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

    def read_body(self, closing: bool, expected: bool) -> bytes | None:
        """The sink wants its body. `closing`: after the answer. `expected`: say "100 Continue". Returns as applications do."""
        self.closing = closing
        if self.closed or self.decoder is None:
            return None
        self._become(BODY)
        self.due = self.context.body_due
        data = self.buffer[self.start :]
        self.buffer = b""
        self.start = 0
        if data:
            try:
                answer = self._feed(data)
            except ProtocolError as error:
                self.reject(error)
                return None
            if self.decoder is None:
                return answer
        if expected and not data:
            self.write(response.CONTINUE)
            if self.context.corked:
                self.draw_cork()
        # A client that epoll reports already, or that was just accepted and will be, needs no word to epoll.
        rearm = self.paused or self.context.oneshot or 0 <= self.mask != self.context.watch_mask
        if rearm and self.stage == BODY and not self.closed:
            self._listen()
        return None

    def pause_reading(self) -> None:
        """The sink has more than it can use: nothing is received until `resume_reading`."""
        if not self.closed:
            self._become(BUSY)
            self.paused = True
            if self.out is None:
                self.due = NEVER
            self._arm_busy(force=True)

    def resume_reading(self) -> None:
        """The sink wants more again."""
        if not self.closed and self.stage == BUSY:
            self._become(STREAM if self.decoder is None else BODY)
            if self.out is None:
                self.due = self.context.stream_due if self.decoder is None else self.context.body_due
            self._listen()

    def upgrade(self, head: bytes, sink: UpgradedProtocol) -> None:
        """Send the head of a 101; from here on every byte is the sink's, which may `write` (RFC 9110 7.8)."""
        self.write(head)
        if self.closed:
            return
        if self.context.corked:
            self.draw_cork()
        self.sink = sink
        self._become(STREAM)
        self.due = self.context.stream_due if self.out is None else self.context.write_due
        data = self.buffer[self.start :]
        self.buffer = b""
        self.start = 0
        self._listen()
        if data:
            self._feed_stream(data)

    def _feed_stream(self, data: bytes) -> None:
        if self.out is None:
            self.due = self.context.stream_due
        assert self.sink is not None
        self.sink.feed(data)
        if self.context.corked and not self.closed:
            self.draw_cork()

    def _feed(self, data: bytes) -> bytes | None:
        """Give bytes to the body. Returns the answer of the sink, once the body is whole."""
        decoder = self.decoder
        sink = self.sink
        assert decoder is not None
        assert sink is not None
        content = decoder.feed(data)
        try:
            if content:
                sink.feed(content)
        except OSError as error:
            log.error(f"cannot keep the body of a request of {self.name()}: {error}")
            raise ProtocolError(507, "no room for the body") from None
        if not decoder.done:
            return None
        self.buffer = decoder.rest
        self.start = 0
        self.decoder = None
        self.sink = None
        self.due = NEVER
        self._become(HEAD)
        return sink.end()

    def _take_body(self, data: bytes) -> None:
        try:
            answer = self._feed(data)
        except ProtocolError as error:
            self.reject(error)
            return
        if answer is not None and not self.closed:
            self.write(answer)
            if not self.closed:
                self._answered()

    def _skip_body(self) -> None:
        """Answered before its body was there: take the rest, for the client has not been told that the connection closes."""
        self.sink = DISCARD_BODY
        self._become(BODY)
        self.due = self.context.body_due
        self._listen()

    def _answer_options(self, request: Request) -> bytes:
        keep = response.CLOSE if self.closing else response.KEEP if request.fields.version == "1.0" else b""
        return response.options(self.context.date, keep)

    def reject(self, error: ProtocolError) -> None:
        """Say no, in the log too, and close: nobody knows where the next request would begin."""
        self.context.rejected += 1
        log.info(f"rejected {self.name()}: {error.status} {error.reason}")
        sink, self.sink, self.decoder = self.sink, None, None
        if sink is not None and sink.abort():
            self.close()  # what was begun cannot be unsaid
            return
        self.closing = True
        self.buffer = b""
        self.start = 0
        self.unread = True
        self.write(response.refusal(error.status, self.context.date))
        if not self.closed:
            self._answered()

    # Answers. What an application calls, on the loop's thread.

    def defer(self) -> None:
        """The request's turn is over but its answer is not whole: others go on, this connection waits for `complete`."""
        if self.answers is not None:
            self.write(b"")
        if self.closed:
            return
        self._become(BUSY)
        if self.mask < 0:
            self.paused = True  # epoll has never heard of it, and need not before the answer is whole
        if self.out is None:
            self.due = NEVER
        tell = self.context.disconnect_mask != 0 and (self.paused or self.context.oneshot)  # else epoll does so already
        if tell or self.out is not None:
            self._arm_busy(force=tell)

    def write(self, data: bytes, last: bool = False) -> None:
        """Send, or keep what the kernel does not take. Nothing happens where the connection is closed.

        `last`: a close comes next, so these bytes and the end of the stream may leave as one segment (MSG_MORE, send(2)).
        """
        if self.closed:
            return
        if self.answers is not None:
            data = b"".join((*self.answers, data))
            self.answers = None
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
            self._lost()
            return
        if sent != len(data):
            self._queue(memoryview(data)[sent:])

    def write_two(self, head: bytes, body: bytes) -> None:
        """Send a head and a large body at once, without copying them together."""
        if self.closed or self.answers is not None or self.out is not None:
            self.write(head)
            self.write(body)
            return
        try:
            sent = self.sock.sendmsg((head, body), (), DONTWAIT)
        except BlockingIOError:
            sent = 0
        except OSError:
            self._lost()
            return
        if sent < len(head):
            self._queue(memoryview(head)[sent:])
            self.write(body)
        elif sent < len(head) + len(body):
            self._queue(memoryview(body)[sent - len(head) :])

    def write_file(self, fd: int, offset: int, count: int) -> None:
        """Send `count` bytes of a file from `offset` by sendfile(2). The descriptor is closed when it is done."""
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

    def complete(self, data: bytes = b"", linger: bool = False) -> None:
        """The deferred response is whole with these last bytes. `linger`: the client may have sent more than was read."""
        if data:
            self.write(data)
        if not self.closed:
            self.unread = self.unread or linger
            self._answered()

    def attach(self, sink: Sink) -> None:
        """From now on `sink` gets the request's body, and hears what becomes of the client."""
        self.sink = sink

    def detach(self) -> None:
        """The sink has got all that it wants to hear."""
        self.sink = None

    def close_after_response(self) -> None:
        """The connection ends with the response in progress."""
        self.closing = True

    def close_if_draining(self) -> None:
        """The connection ends with the response in progress if the worker is draining by now."""
        if self.context.draining:
            self.closing = True

    def set_deadline(self, due: float) -> None:
        """`on_deadline` is to be called at `due`, in seconds of the monotonic clock, and not before."""
        self.due = due

    def remember(self, memo: object) -> None:
        """Keep what an application interface made of the two addresses, for the connection's next request."""
        self.memo = memo

    def call_when_drained(self, callback: Callable[[], object]) -> None:
        """Call back once: when little enough waits for the client, or it is gone."""
        if self.out is None:
            callback()
        else:
            self.out.call_when_drained(callback)

    def name(self) -> str:
        """The peer, for the log."""
        host, port = self.peer
        return f"{host}:{port}" if host else "a Unix socket's client"

    # Sending.

    def _answered(self) -> None:
        """The answer is whole: the next stage."""
        if self.out is not None:
            self._become(FLUSH)
            self.due = self.context.write_due
            self._arm(OUT | self.context.flags, force=True)
            return
        if self.closing:
            self._end()
            return
        if self.context.corked:
            self.draw_cork()
        if self.decoder is not None:
            self._skip_body()
            return
        if self.stage != HEAD or self.mask < 0:  # a connection just accepted begins without a handler
            self._become(HEAD)
        self.due = 0.0 if self.context.draining else self.context.idle_due
        if self.buffer:
            data, start = self.buffer, self.start
            self.buffer = b""
            self.start = 0
            self._advance(data, start)
        if self.closed or self.stage != HEAD or (self.mask < 0 and not self.paused):
            return
        if self.paused or self.context.oneshot or self.mask != self.context.watch_mask:
            self._arm(self.context.watch_mask, force=self.paused)
            self.paused = False

    def _queue(self, piece: memoryview | File) -> None:
        self.out = WriteBuffer(self.sock, piece)
        self.due = self.context.write_due
        if self.stage == BUSY:
            self._arm_busy()
        elif self.stage == BODY or self.stage == STREAM:
            self._arm(self.context.watch_mask | OUT)
        # Else its turn is not over, and what ends it arms.

    def draw_cork(self) -> None:
        """What was written leaves now; what comes is corked again."""
        try:
            self.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_CORK, 0)
            self.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_CORK, 1)
        except OSError:
            pass  # a Unix socket has none, and a connection that is gone needs none

    def _flush(self) -> None:
        """Send of what waits; when all is gone, the next stage."""
        out = self.out
        if out is None:
            return
        try:
            moved = out.flush()
        except OSError:
            self._lost()
            return
        if moved:
            self.due = self.context.write_due
        if out.pending:
            # Edge-triggered, what is writable still is not said again unless asked for.
            more = moved >= FLUSH_TURN
            if self.stage == FLUSH:
                self._arm(OUT | self.context.flags, force=more)
            elif more and self.mask >= 0:  # else its first turn is not over, and what ends it arms
                self._arm(self.mask, force=True)
            return
        self.out = None
        if self.stage == FLUSH:
            self._answered()
        elif self.stage == BUSY:
            self.due = NEVER
        elif self.stage == STREAM:
            self.due = self.context.stream_due

    def _lost(self) -> None:
        """The client is gone before its answer was."""
        self.context.aborted += 1
        self.close()

    def _end(self) -> None:
        """Close after an answer: at once, or lingering where unread bytes would turn the close into a reset."""
        if not self.unread and self.decoder is None and not self.buffer:
            self.close()
            return
        self.decoder = self.sink = None
        try:
            self.sock.shutdown(socket.SHUT_WR)
        except OSError:
            self.close()
            return
        self.buffer = b""
        self.start = self.discarded = 0
        self.due = self.context.now + LINGER_SECONDS
        self._become(LINGER)
        self._arm(self.context.watch_mask, force=True)

    def close(self) -> None:
        """Close the socket and wake whoever waits for the client."""
        if self.closed:
            return
        self.closed = True
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

    def watch(self) -> None:
        """Tell epoll of a connection that it has not heard of."""
        if self.stage == HEAD:
            self._become(HEAD)
        self._listen()

    def _listen(self) -> None:
        """Hear the client, from what it has said already on, and of room where something waits for it."""
        self.paused = False
        self._arm(self.context.watch_mask | (OUT if self.out else 0), force=True)

    def _become(self, stage: int) -> None:
        self.stage = stage
        handler = (self.on_head, self.on_body, self.on_busy, self.on_flush, self.on_linger, self.on_stream)[stage]
        self.context.loop.rehandle(self.fd, handler)

    def _arm(self, mask: int, force: bool = False) -> None:
        """Tell epoll. `force` asks again where the mask is the same: what is ready now is reported again."""
        if self.mask < 0:
            self.context.loop.admit(self.fd, mask)
        elif mask != self.mask or force or self.context.oneshot:
            self.context.loop.rewatch(self.fd, mask)
        self.mask = mask

    def _arm_busy(self, force: bool = False) -> None:
        mask = (0 if self.paused else IN) | (OUT if self.out else 0)
        if self.decoder is None and self.sink is not None:
            mask |= self.context.disconnect_mask
        self._arm(mask | self.context.flags if mask else 0, force)
