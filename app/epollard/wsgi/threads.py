"""Leader and followers: the threads of a WSGI worker. One of them turns the loop; which one changes; no request ever moves.

The leader calls the application inline: a quick request pays for no queue and no hand-over. While the application's code runs,
its exchange is in the leader's hold of the loop (`wsgi.Hold`). A watching thread that sees the same exchange there for a while
takes the loop, and makes a follower the leader. When the slow code returns, its thread finds its hold taken: that is how it
learns that it leads no more.

The watcher never runs application code. Where all other threads are busy it turns the loop itself: connections are accepted,
read, written and judged as ever, and requests wait for a thread. So `threads=1` is strictly one request at a time.
"""

import io
import threading
import time
from collections import deque
from collections.abc import Callable
from queue import Empty, SimpleQueue
from typing import Any, Final

from ..net.connection import Connection
from ..net.loop import Loop
from ..protocol.request import Request
from .environ import Environment
from .exchange import App, Exchange, Hold
from .input import ExpectedInput, Upload

# A call that lasts this long (seconds; at most twice as long, for the watcher looks once in this time) loses the loop.
PATIENCE: Final = 0.004
# Seconds after which a request that keeps its thread counts as a long one: a stream, a poll. Where long ones hold all threads
# but the leader's, nothing is gained by keeping that one for quick requests: what was slow once would never be served.
HELD: Final = 0.15
# Looks without seeing anything run, after which the watcher sleeps until it is roused.
QUIET_LOOKS: Final = 25
# Paths whose last call was slow: they go to a follower at once.
SLOW_PATHS: Final = 1024

Access = Callable[[str, Request, int, int, float], object]
Job = tuple[Connection, Request, Any]


class LoopLostError(BaseException):
    """Unwinds a thread that lost the loop in the middle of a turn. Not an error, and not for applications to catch."""


class Seat(Hold):
    """One thread that may run application code."""

    __slots__ = ("since", "spent")

    def __init__(self) -> None:
        super().__init__()
        self.spent = 0.0  # seconds with such requests, in all
        self.since = 0.0  # time.monotonic() when it began to run a request without the loop; 0: it does not


class LeaderFollowers:
    """The threads of a worker, and the `connection.Application` that they serve."""

    def __init__(
        self, loop: Loop, app: App, threads: int, processes: int, access: Access | None, local: tuple[str, str]
    ) -> None:
        self.loop = loop
        self.threads = threads
        self.answered = 0
        self.reply: tuple[str, Any, Any] = ("", None, None)  # see `wsgi.Host`
        self.progress = time.monotonic()  # when a thread last became free or sent something
        self.fresh: deque[Job] = deque()  # requests that wait for a leader
        self._late: deque[Job] = deque()  # requests that are known to be slow, and wait for a follower
        self._app = app
        self._local = local  # of most connections
        self._make_environ = Environment(threads=threads, processes=processes, local=local).make
        self._access = access
        self._slow: dict[str, None] = {}
        self._appointed = Seat()  # stands for a follower that has been told to lead and has not begun
        self._leader: Seat | None = self._appointed  # None: the watcher turns the loop
        self._seats: list[Seat] = []
        self._free: list[None] = []  # one for each follower that waits; who pops one may put one job
        self._jobs: SimpleQueue[Job | bool | None] = SimpleQueue()  # True: lead; None: end
        self._alarm: SimpleQueue[None] = SimpleQueue()  # wakes the watcher
        self._asleep = False
        self._ended = False

    def run(self, ready: Callable[[], object]) -> None:
        """Call `ready`, then serve on this thread and the others until `stop`. `RuntimeError` where they cannot be had."""
        for number in range(1, self.threads):
            threading.Thread(target=self._work, args=(False,), name=f"app-{number}", daemon=True).start()
        threading.Thread(target=self._watch, name="watcher", daemon=True).start()
        ready()
        self._work(True)

    def post(self, callback: Callable[..., object], *arguments: Any) -> None:
        """See `wsgi.Host`."""
        self.progress = time.monotonic()
        self.loop.post(callback, *arguments)

    def stop(self) -> None:
        """End `run`."""
        self.loop.stopped = True

    @property
    def idle(self) -> bool:
        """No application code runs that does not belong to an open connection."""
        return True

    def alive(self, now: float) -> float:
        """When the worker was last seen to live: it turns its loop, unless requests wait and no thread has moved."""
        return self.progress if self._leader is None and self.fresh else now

    def spent(self, now: float) -> float:
        """Seconds that threads have spent with requests beside the loop, on an average of those that slow requests get."""
        running = [now - since for seat in self._seats if (since := seat.since)]
        return (sum(seat.spent for seat in self._seats) + sum(running)) / max(self.threads - 1, 1)

    def dismiss(self) -> None:
        """The server is going. A call of WSGI ends by itself."""

    # connection.Application, on the loop's thread.

    def answer(self, connection: Connection, request: Request, body: Any = None) -> bytes | None:
        """Answer a request, inline where that may be."""
        seat = self._leader
        if seat is None:
            connection.defer()
            self.fresh.append((connection, request, body))
            return None
        if self._slow and request.line.path in self._slow and self.threads > 1 and not self._held():
            connection.defer()
            self._delegate((connection, request, body))
            return None
        memo = request.memo
        environ = memo.copy() if memo else self._make_environ(request)
        if connection.local is not self._local:
            environ["SERVER_NAME"], environ["SERVER_PORT"] = connection.local
        environ["REMOTE_ADDR"], environ["REMOTE_PORT"] = connection.peer
        exchange = Exchange()  # and no method of it called that can be written out here: 50 ns each
        exchange.host = self
        exchange.connection = connection
        exchange.request = request
        exchange.hold = seat
        exchange.head = None
        exchange.opened = False
        if body is not None:
            exchange.give(environ, body)
        if self._access is not None:
            exchange.started = time.perf_counter()
        error = None
        seat.running = exchange
        if self._asleep:  # after `running`: the watcher writes and looks in the other order
            self._asleep = False
            self._alarm.put(None)
        try:
            app = self._app  # `self._app(...)` looks for a method first
            result = app(environ, exchange.start_response)
        except BaseException as raised:
            error = raised
        seat.running = None
        if seat.claimed is not None and seat.lost():
            exchange.leading = False
        elif error is None and type(result) is list and len(result) == 1:
            [content] = result
            head = exchange.head
            if (
                type(content) is bytes
                and head is not None
                and head.usual == len(content)
                and not exchange.opened
                and (request.plain or (connection.closing and request.line.method != "HEAD"))
            ):
                context = connection.context
                answer = head.lines + (context.close_end if connection.closing else context.date_end) + content
            else:
                answer = exchange.whole(content)
            if answer is not None:
                if self._access is None:
                    self.answered += 1
                else:
                    assert head is not None
                    self.finished(connection, request, head.code, len(content), exchange.started)
                return answer
        exchange.away = False
        if error is not None:
            exchange.fail(error)
        else:
            exchange.deliver(result)
        if not exchange.leading:
            raise LoopLostError
        return b""

    def answer_with_body(self, connection: Connection, request: Request, body: bytes) -> bytes | None:
        """Answer a request whose body is there."""
        return self.answer(connection, request, io.BytesIO(body))

    def answer_streaming(self, connection: Connection, request: Request) -> bytes | None:
        """Answer a request with a body: when the body is there, or at once where the client waits for "100 Continue"."""
        if request.fields.expect:
            body = ExpectedInput(connection, request)
            connection.attach(body)
            return self.answer(connection, request, body)
        connection.attach(Upload(self.answer, connection, request))
        return connection.read_body(connection.closing, False)

    def finished(self, connection: Connection, request: Request, code: int, sent: int, started: float) -> None:
        """See `wsgi.Host`."""
        self.answered += 1
        if self._access is not None:
            self._access(connection.peer[0], request, code, sent, time.perf_counter() - started)

    # The loop changes hands.

    def vacate(self) -> None:
        """The leader, on whose thread this is called, has to wait: the loop goes to a follower, or to the watcher."""
        if self._leader is not None:
            self._leader.since = time.monotonic()
        if not self._appoint():
            self._leader = None
            self._alarm.put(None)

    def _appoint(self) -> bool:
        """Make a waiting follower the leader, if there is one."""
        if not self._claim():
            return False
        self._leader = self._appointed
        self._jobs.put(True)
        return True

    def _claim(self) -> bool:
        """Claim a waiting follower, who then must be given a job."""
        try:
            self._free.pop()
        except IndexError:
            return False
        return True

    def _delegate(self, job: Job) -> None:
        """A job for a follower. The leader leaves it alone, for the last thread is kept for quick requests."""
        self._late.append(job)
        self._hand_out()
        if self._asleep:
            self._asleep = False
            self._alarm.put(None)

    def _held(self) -> bool:
        """Long requests hold every thread but the leader's."""
        if self._free:
            return False
        begun = time.monotonic() - HELD
        return all(0 < seat.since < begun for seat in self._seats if seat is not self._leader)

    def _take_late(self) -> None:
        """On the loop's thread: the leader runs what waits for a follower, where none will come."""
        if self._late and self._leader is not None and self._held():
            self._run_waiting(self._late)

    def _run_waiting(self, jobs: deque[Job]) -> None:
        try:
            connection, request, body = jobs.popleft()
        except IndexError:  # a thread became free and was faster
            return
        if connection.closed:
            if body is not None:
                body.close()
            return
        connection.close_if_draining()
        answer = self.answer(connection, request, body)
        if answer is not None:
            connection.complete(answer)

    def _hand_out(self) -> None:
        """Late requests to free threads. To be called whenever there may be both."""
        while self._late and self._claim():
            try:
                self._jobs.put(self._late.popleft())
            except IndexError:  # another thread was faster
                self._free.append(None)

    # The life of a thread that runs application code.

    def _work(self, leading: bool) -> None:
        seat = Seat()
        self._seats.append(seat)
        while not self._ended:
            if leading:
                if self._lead(seat):
                    self._end()
                    return
                leading = False
            job = self._next_job(seat)
            if job is True:
                leading = True
            elif job:
                seat.since = time.monotonic()
                self._serve(job)

    def _lead(self, seat: Seat) -> bool:
        """Turn the loop. True: it is stopped. False: somebody else turns it now."""
        seat.claimed = None
        self._leader = seat
        self._hand_out()  # to who became free while the watcher turned the loop
        try:
            while self.fresh:
                self._run_waiting(self.fresh)
            self.loop.finish_turn()
            self.loop.run()
        except LoopLostError:
            return False
        return True

    def _next_job(self, seat: Seat) -> Job | bool | None:
        self.progress = now = time.monotonic()
        if seat.since:
            seat.spent += now - seat.since
            seat.since = 0.0
        self._free.append(None)
        if self._leader is None:
            self.loop.wake()  # the watcher turns it, and is glad to give it away
        else:
            self._hand_out()
        return self._jobs.get()

    def _serve(self, job: Job) -> None:
        """Run one request without the loop."""
        connection, request, body = job
        if connection.closed:
            if body is not None:
                body.close()
            return
        environ = self._make_environ(request)
        environ["SERVER_NAME"], environ["SERVER_PORT"] = connection.local
        environ["REMOTE_ADDR"], environ["REMOTE_PORT"] = connection.peer
        exchange = Exchange.beside(self, connection, request)
        if body is not None:
            exchange.give(environ, body)
        exchange.started = time.perf_counter()
        try:
            result = self._app(environ, exchange.start_response)
        except BaseException as error:
            exchange.fail(error)
        else:
            if type(result) is list:  # else its work may be to come
                self._judge(exchange)  # before its client has the answer, and can ask again
            exchange.deliver(result)
        self._judge(exchange)

    def _judge(self, exchange: Exchange) -> None:
        """A quick call makes its path forgotten as a slow one."""
        if time.perf_counter() - exchange.started < PATIENCE:
            self._slow.pop(exchange.request.line.path, None)

    def _end(self) -> None:
        """The loop is stopped: let every thread go."""
        self._ended = True
        for _ in range(self.threads):
            self._jobs.put(None)
        self._alarm.put(None)

    # The watcher.

    def _watch(self) -> None:
        seen: Exchange | None = None
        quiet = 0
        while not self._ended:
            try:
                self._alarm.get(timeout=PATIENCE)
            except Empty:
                pass
            seat = self._leader
            if seat is None:
                self._caretake()
                continue
            if self._late and self._held():
                self.loop.post(self._take_late)
            running = seat.running
            if running is None:
                seen = None
                quiet += 1
                if quiet >= QUIET_LOOKS:
                    quiet = 0
                    self._sleep(seat)
                continue
            quiet = 0
            if running is not seen:
                seen = running
                continue
            seat.since = time.monotonic()  # before the loop is taken: who misses it may be free in a moment, and say so
            if not seat.take(running):
                seat.since = 0.0
                continue
            # From here on this thread has the loop.
            seen = None
            running.connection.defer()
            if len(self._slow) >= SLOW_PATHS:
                self._slow.clear()
            self._slow[running.request.line.path] = None
            if not self._appoint():
                self._leader = None
                self._caretake()

    def _sleep(self, seat: Seat) -> None:
        """Wait until the leader rouses us. It looks at `_asleep` before each call: look once more after setting it."""
        self._asleep = True
        if self._leader is seat and seat.running is None and not self._late and not self._ended:
            self._alarm.get()
        self._asleep = False

    def _caretake(self) -> None:
        """Turn the loop until a thread is free to lead."""
        loop = self.loop
        loop.finish_turn()
        while not self._appoint():
            if loop.stopped:
                self._end()
                return
            loop.turn()
