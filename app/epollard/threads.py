"""Leader and followers: the threads of a WSGI worker. One of them turns the loop; which one changes; no request ever moves.

The leader calls the application inline: a quick request pays for no queue and no hand-over. While the application's code runs,
the exchange lies on the leader's token list. A watching thread that sees the same exchange lie there for a while takes it, and
the loop with it, and makes a follower the leader. When the slow code returns, its token is gone: that is how it learns that it
leads no more. List `append` and `pop` are atomic, so exactly one side gets it.

The watcher never runs application code. Where all other threads are busy it turns the loop itself: connections are accepted,
read, written and judged as ever, and requests wait for a thread. So `threads=1` is strictly one request at a time.
"""

import threading
import time
from collections import deque
from collections.abc import Callable
from queue import Empty, SimpleQueue
from typing import Any, Final

from .connection import Connection
from .environ import Environment
from .loop import Loop
from .request import Request
from .uploads import ExpectedInput, Upload
from .wsgi import App, Exchange

# A call that lasts this long (seconds; at most twice as long, for the watcher looks once in this time) loses the loop.
PATIENCE: Final = 0.004
# Looks without seeing anything run, after which the watcher sleeps until it is roused.
QUIET_LOOKS: Final = 25
# Paths whose last call was slow: they go to a follower at once.
SLOW_PATHS: Final = 1024

Access = Callable[[str, Request, int, int, float], object]
Job = tuple[Connection, Request, Any]


class LoopLostError(BaseException):
    """Unwinds a thread that lost the loop in the middle of a turn. Not an error, and not for applications to catch."""


class Seat:
    """One thread that may run application code."""

    __slots__ = ("token",)

    def __init__(self) -> None:
        self.token: list[Exchange] = []


class Crew:
    """The threads of a worker, and the `connection.Application` that they serve."""

    def __init__(self, loop: Loop, app: App, threads: int, processes: int, access: Access | None) -> None:
        self.loop = loop
        self.threads = threads
        self.answered = 0
        self.progress = time.monotonic()  # when a thread last became free or sent something
        self.fresh: deque[Job] = deque()  # requests that wait for a leader
        self._late: deque[Job] = deque()  # requests that are known to be slow, and wait for a follower
        self._app = app
        self._make_environ = Environment(threads=threads, processes=processes).make
        self._access = access
        self._slow: dict[str, None] = {}
        self._appointed = Seat()  # stands for a follower that has been told to lead and has not begun
        self._leader: Seat | None = self._appointed  # None: the watcher turns the loop
        self._free: list[None] = []  # one for each follower that waits; who pops one may put one job
        self._jobs: SimpleQueue[Job | bool | None] = SimpleQueue()  # True: lead; None: end
        self._alarm: SimpleQueue[None] = SimpleQueue()  # wakes the watcher
        self._asleep = False
        self._ended = False

    def run(self) -> None:
        """Serve on this thread and the others until the loop is stopped."""
        for number in range(1, self.threads):
            threading.Thread(target=self._work, args=(False,), name=f"app-{number}", daemon=True).start()
        threading.Thread(target=self._watch, name="watcher", daemon=True).start()
        self._work(True)

    def post(self, callback: Callable[..., object], *arguments: Any) -> None:
        """See `wsgi.Host`."""
        self.progress = time.monotonic()
        self.loop.post(callback, *arguments)

    @property
    def waiting(self) -> bool:
        """Requests wait because every thread is busy."""
        return self._leader is None and bool(self.fresh)

    # connection.Application, on the loop's thread.

    def answer(self, connection: Connection, request: Request, body: Any = None) -> bytes | None:
        """Answer a request, inline where that may be."""
        seat = self._leader
        if seat is None:
            connection.suspend()
            self.fresh.append((connection, request, body))
            return None
        if self._slow and request.line.path in self._slow and self.threads > 1:
            connection.suspend()
            self._delegate((connection, request, body))
            return None
        form = request.form
        environ = form.copy() if form else self._make_environ(request)
        environ["SERVER_NAME"], environ["SERVER_PORT"] = connection.local
        environ["REMOTE_ADDR"], environ["REMOTE_PORT"] = connection.peer
        token = seat.token
        exchange = Exchange(self, connection, request, token)
        if body is not None:
            exchange.give(environ, body)
        if self._access is not None:
            exchange.started = time.perf_counter()
        error = None
        token.append(exchange)
        if self._asleep:  # after the token: the watcher looks at them in the other order
            self._asleep = False
            self._alarm.put(None)
        try:
            result = self._app(environ, exchange.start_response)
        except BaseException as raised:
            error = raised
        # What `Exchange._back` does, written out.
        try:
            token.pop()
        except IndexError:
            exchange.leading = False
        else:
            if error is None and type(result) is list and len(result) == 1:
                answer = exchange.whole(result[0])
                if answer is not None:
                    if self._access is None:
                        self.answered += 1
                    else:
                        assert exchange.head is not None
                        self.finished(connection, request, exchange.head.code, exchange.sent, exchange.started)
                    return answer
        exchange.away = False
        if error is not None:
            exchange.fail(error)
        else:
            exchange.deliver(result)
        if not exchange.leading:
            raise LoopLostError
        return b""

    def upload(self, connection: Connection, request: Request) -> bytes | None:
        """Answer a request with a body: when the body is there, or at once where the client waits for "100 Continue"."""
        if request.fields.expect:
            body = ExpectedInput(connection, request)
            connection.sink = body
            return self.answer(connection, request, body)
        connection.sink = Upload(self.answer, connection, request)
        return connection.read_body(connection.closing, False)

    def finished(self, connection: Connection, request: Request, code: int, sent: int, started: float) -> None:
        """See `wsgi.Host`."""
        self.answered += 1
        seconds = time.perf_counter() - started
        if seconds < PATIENCE:  # before its client can ask again
            self._slow.pop(request.line.path, None)
        if self._access is not None:
            self._access(connection.peer[0], request, code, sent, seconds)

    # The loop changes hands.

    def vacate(self) -> None:
        """The leader, on whose thread this is called, has to wait: the loop goes to a follower, or to the watcher."""
        if self._claim():
            self._leader = self._appointed
            self._jobs.put(True)
        else:
            self._leader = None
            self._alarm.put(None)

    def _claim(self) -> bool:
        """Claim a waiting follower, who then must be given a job."""
        try:
            self._free.pop()
        except IndexError:
            return False
        return True

    def _delegate(self, job: Job) -> None:
        """A job for a follower. The leader itself never takes it: the last thread is kept for quick requests."""
        self._late.append(job)
        self._hand_out()

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
        while not self._ended:
            if leading:
                if self._lead(seat):
                    self._end()
                    return
                leading = False
            job = self._next_job()
            if job is True:
                leading = True
            elif job:
                self._serve(job)

    def _lead(self, seat: Seat) -> bool:
        """Turn the loop. True: it is stopped. False: somebody else turns it now."""
        self._leader = seat
        self._hand_out()  # to who became free while the watcher turned the loop
        try:
            while self.fresh:
                connection, request, body = self.fresh.popleft()
                if not connection.closed:
                    connection.closing = connection.closing or connection.server.draining
                    answer = self.answer(connection, request, body)
                    if answer is not None:
                        connection.deliver(answer)
            self.loop.finish_turn()
            self.loop.run()
        except LoopLostError:
            return False
        return True

    def _next_job(self) -> Job | bool | None:
        self.progress = time.monotonic()
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
        exchange = Exchange(self, connection, request, None)
        if body is not None:
            exchange.give(environ, body)
        exchange.started = time.perf_counter()
        try:
            result = self._app(environ, exchange.start_response)
        except BaseException as error:
            exchange.fail(error)
        else:
            exchange.deliver(result)

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
            try:
                running = seat.token[-1]
            except IndexError:
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
            try:
                running = seat.token.pop()
            except IndexError:
                continue
            # From here on this thread has the loop.
            seen = None
            running.connection.suspend()
            if len(self._slow) >= SLOW_PATHS:
                self._slow.clear()
            self._slow[running.request.line.path] = None
            self.vacate_to_follower()

    def _sleep(self, seat: Seat) -> None:
        """Wait until the leader rouses us. It looks at `_asleep` before each call: look once more after setting it."""
        self._asleep = True
        if self._leader is seat and not seat.token and not self._ended:
            self._alarm.get()
        self._asleep = False

    def vacate_to_follower(self) -> None:
        """The watcher has the loop: it goes to a follower, or stays."""
        if self._claim():
            self._leader = self._appointed
            self._jobs.put(True)
        else:
            self._leader = None
            self._caretake()

    def _caretake(self) -> None:
        """Turn the loop until a thread is free to lead."""
        loop = self.loop
        loop.finish_turn()
        while not self._claim():
            if loop.stopped:
                self._end()
                return
            loop.turn()
        self._leader = self._appointed
        self._jobs.put(True)
