"""Leader and followers: the threads of a WSGI worker. They take turns at turning the loop; a request never changes its thread.

A thread that runs application code is in one of three states:

    leader          turns the loop and calls the application inline: a quick request pays for no queue and no hand-over
    follower        waits for a job: to lead, or to serve a request that is known to be slow
    off the loop    runs a request without the loop: it touches no socket, and posts to the loop what is to be sent

    follower  --- promoted -------------------------------------> leader
    leader    --- the watcher revokes its lease (lease.py) -----> off the loop
    leader    --- its request has to wait for the client -------> off the loop
    follower  --- given a request ------------------------------> off the loop
    off the loop  --- its request is over ----------------------> follower

The watcher is one more thread, which never runs application code. It looks at the leader's lease once in `SLOW_AFTER`. If it
sees the same call twice, it revokes the lease and makes a follower the leader. When the slow code returns, its thread finds the
lease revoked, and so learns that it no longer leads. If no follower waits, the watcher turns the loop itself: connections are
accepted, read, judged and written as always, and requests wait for a thread. So `threads=1` is strictly one request at a time.
"""

import io
import threading
import time
from collections import deque
from collections.abc import Callable, Collection, Iterable
from queue import Empty, SimpleQueue
from typing import Any, Final

from ..net.connection import Connection
from ..net.contracts import AccessLogger
from ..net.loop import Loop
from ..net.signals import Signals
from ..protocol.request import Request
from ..protocol.response_body import whole
from .environ import Environment
from .exchange import App, Exchange, Runner
from .input import ExpectedInput, Upload
from .lease import LoopLease

# Seconds after which a call counts as slow and loses the loop. The watcher looks once in this time, so a call may take twice as
# long.
SLOW_AFTER: Final = 0.004
# Seconds after which a request without the loop counts as long: a stream, a poll. While long requests have every thread but the
# leader's, the leader takes slow requests as well: a request whose path was slow once would otherwise never be served.
LONG_AFTER: Final = 0.15
# Times in a row that the watcher finds no call running before it sleeps until the leader wakes it.
QUIET_CHECKS: Final = 25
# Paths whose last call was slow; they go to a follower at once.
MAX_SLOW_PATHS: Final = 1024

Job = tuple[Connection, Request, Any]  # the last one is the body, which is here or still to come, or None


class LoopLostError(BaseException):
    """Unwinds a thread that lost the loop in the middle of a turn. Not an error, and not for applications to catch."""


class LeaderFollowers(Runner):
    """The threads of a worker: the `contracts.Interface` of WSGI."""

    def __init__(
        self, loop: Loop, app: App, *, threads: int, processes: int, access: AccessLogger | None, local: tuple[str, str]
    ) -> None:
        self.loop = loop
        self.threads = threads
        self.answered = 0
        self.last_head: tuple[str, Any, Any] = ("", None, None)  # see `exchange.Runner`
        self._app = app
        self._local = local  # of most connections
        self._make_environ = Environment(threads=threads, processes=processes, local=local).make
        self._access = access
        self._progress = time.monotonic()  # when a thread last ended a request or sent something
        self._slow_paths: dict[str, None] = {}
        self._pending: deque[Job] = deque()  # requests that wait for a leader
        self._pending_slow: deque[Job] = deque()  # requests that are known to be slow, and wait for a follower
        self._leases: list[LoopLease[Exchange]] = []  # one for each thread that runs application code
        self._promised: LoopLease[Exchange] = LoopLease()  # stands for a follower that is promoted and does not lead yet
        self._leader: LoopLease[Exchange] | None = self._promised  # None: the watcher turns the loop
        self._waiting: list[None] = []  # one for each follower that waits; to pop one is to reserve it: then give it a job
        self._jobs: SimpleQueue[Job | bool | None] = SimpleQueue()  # True: lead; None: end
        self._watcher_wakeup: SimpleQueue[None] = SimpleQueue()
        self._watcher_sleeps = False
        self._ended = False
        self._signals: Signals | None = None

    def run(self, ready: Callable[[], object]) -> None:
        """Call `ready`, then serve on this thread and the others until `stop`. `RuntimeError`: no thread can be started."""
        for number in range(1, self.threads):
            threading.Thread(target=self._work, args=(False,), name=f"app-{number}", daemon=True).start()
        threading.Thread(target=self._watch, name="watcher", daemon=True).start()
        ready()
        self._work(True)
        self.unwatch_signals()

    # contracts.Interface

    def watch_signals(self, numbers: Collection[int], on_signal: Callable[[int], object]) -> None:
        """See `contracts.Interface`."""
        self._signals = Signals(self.loop, numbers, on_signal)

    def unwatch_signals(self) -> None:
        """See `contracts.Interface`."""
        if self._signals is not None:
            self._signals.close()

    def stop(self) -> None:
        """See `contracts.Interface`."""
        self.loop.stopped = True

    def stop_if_idle(self) -> bool:
        """See `contracts.Interface`. A WSGI call keeps its connection until it ends: without connections there are no calls."""
        self.stop()
        return True

    def alive(self, now: float) -> float:
        """See `contracts.Interface`. A worker cannot serve while requests wait for a thread and all threads are busy."""
        return self._progress if self._leader is None and self._pending else now

    def busy_seconds(self, now: float) -> tuple[float, float]:
        """See `contracts.Interface`. The other threads: all but one, which slow requests may have."""
        off_loop = sum(lease.seconds(now) for lease in self._leases) / max(self.threads - 1, 1)
        return now - self.loop.waited, off_loop

    # contracts.Application, on the loop's thread.

    def answer(self, connection: Connection, request: Request, body: Any = None) -> bytes | None:
        """Answer a request. Long: this is the fast path, which contains what it could call (a call costs 50 ns)."""
        lease = self._leader
        if lease is None or (self._slow_paths and request.line.path in self._slow_paths and self._is_for_follower()):
            self._postpone((connection, request, body))
            return None
        memo = request.memo
        if memo:
            # As `Environment.make` does.
            environ = memo.copy()
            if connection.local is not self._local:
                environ["SERVER_NAME"], environ["SERVER_PORT"] = connection.local
            environ["REMOTE_ADDR"], environ["REMOTE_PORT"] = connection.peer
        else:
            environ = self._make_environ(request, connection.local, connection.peer)
        exchange = Exchange()
        exchange.runner = self
        exchange.connection = connection
        exchange.request = request
        exchange.lease = lease
        exchange.head = None
        exchange.opened = False
        if body is not None:
            exchange.set_input(environ, body)
        if self._access is not None:
            exchange.started = time.perf_counter()
        error = None
        lease.running = exchange
        if self._watcher_sleeps:  # after `running` was set: the watcher writes and reads in the other order
            self._wake_watcher()
        try:
            app = self._app  # `self._app(...)` looks for a method first
            result = app(environ, exchange.start_response)
        except BaseException as raised:
            error, result = raised, ()
        lease.running = None
        if lease.contested and lease.revoked():
            exchange.on_loop = False
        elif error is None and type(result) is list and len(result) == 1 and not exchange.opened:
            [content] = result
            head = exchange.head
            context = connection.context
            if (
                type(content) is bytes
                and head is not None
                and head.fast_length == len(content)
                and (request.plain or (connection.closing and request.line.method != "HEAD"))
            ):  # as `response_body.whole` does
                response = head.lines + (context.close_end if connection.closing else context.date_end) + content
            else:
                response = whole(head, request, context, content, connection.closing)
            if response is not None:
                if self._access is None:
                    self.answered += 1
                else:
                    assert head is not None
                    self.finished(connection, request, head.code, len(content), exchange.started)
                return response
        return self._send_by_exchange(exchange, result, error)

    def answer_with_body(self, connection: Connection, request: Request, body: bytes) -> bytes | None:
        """Answer a request whose body is here."""
        return self.answer(connection, request, io.BytesIO(body))

    def answer_streaming(self, connection: Connection, request: Request) -> bytes | None:
        """Answer a request whose body is to come: once the body is here, or at once if the client waits for "100 Continue"."""
        if request.fields.expect:
            body = ExpectedInput(connection, request)
            connection.attach(body)
            return self.answer(connection, request, body)
        connection.attach(Upload(self.answer, connection, request))
        return connection.read_body(connection.closing, False)

    def _send_by_exchange(self, exchange: Exchange, result: Iterable[bytes], error: BaseException | None) -> bytes:
        """The slow path of `answer`: the exchange sends what the application returned, or deals with what it raised."""
        exchange.in_application = False
        if error is not None:
            exchange.fail(error)
        else:
            exchange.send_result(result)
        if not exchange.on_loop:
            raise LoopLostError
        return b""

    # exchange.Runner

    def post(self, callback: Callable[..., object], *arguments: Any) -> None:
        """See `contracts.Runner`."""
        self._progress = time.monotonic()
        self.loop.post(callback, *arguments)

    def pass_loop_on(self) -> None:
        """See `exchange.Runner`."""
        if not self._promote_follower():
            self._leader = None
            self._watcher_wakeup.put(None)

    # Which thread leads, and which thread a request waits for. On the loop's thread, except where a method says otherwise.

    def _promote_follower(self) -> bool:
        """Make a waiting follower the leader, if there is one."""
        if not self._reserve_follower():
            return False
        self._leader = self._promised
        self._jobs.put(True)
        return True

    def _reserve_follower(self) -> bool:
        """Reserve a waiting follower, if there is one; it must then be given a job. On any thread."""
        try:
            self._waiting.pop()
        except IndexError:
            return False
        return True

    def _is_for_follower(self) -> bool:
        """Whether to leave a request that is known to be slow to the followers, so that the leader is free for quick ones."""
        return self.threads > 1 and not self._followers_are_taken()

    def _followers_are_taken(self) -> bool:
        """Whether long requests have every thread but the leader's. On any thread."""
        if self._waiting:
            return False
        since = time.monotonic() - LONG_AFTER
        return all(0 < lease.off_loop_since < since for lease in self._leases if lease is not self._leader)

    def _postpone(self, job: Job) -> None:
        """Let the request wait: for a follower or, if there is no leader, for a leader."""
        connection = job[0]
        connection.defer()
        if self._leader is None:
            self._pending.append(job)
            return
        self._pending_slow.append(job)
        self._dispatch_slow()
        if self._watcher_sleeps:
            self._wake_watcher()

    def _dispatch_slow(self) -> None:
        """Give slow requests to waiting followers. On any thread, whenever both may be waiting."""
        while self._pending_slow and self._reserve_follower():
            try:
                self._jobs.put(self._pending_slow.popleft())
            except IndexError:  # another thread was faster
                self._waiting.append(None)

    def _lead_slow(self) -> None:
        """The leader runs a request that waits for a follower, if none is going to be free soon."""
        if self._pending_slow and self._leader is not None and self._followers_are_taken():
            self._lead_pending(self._pending_slow)

    def _lead_pending(self, jobs: deque[Job]) -> None:
        """The leader runs the first of the requests that wait."""
        try:
            job = jobs.popleft()
        except IndexError:  # another thread became free and was faster
            return
        if not _still_wanted(job):
            return
        connection = job[0]
        connection.close_if_draining()
        response = self.answer(*job)
        if response is not None:
            connection.complete(response)

    # The life of a thread that runs application code.

    def _work(self, leading: bool) -> None:
        lease: LoopLease[Exchange] = LoopLease()
        self._leases.append(lease)
        while not self._ended:
            if leading:
                if self._lead(lease):
                    self._end_threads()
                    return
                leading = False
            job = self._next_job(lease)
            if job is True:
                leading = True
            elif job:
                lease.begin_request(time.monotonic())
                self._serve(job)

    def _lead(self, lease: LoopLease[Exchange]) -> bool:
        """Turn the loop. True: it is stopped. False: another thread turns it now."""
        lease.renew()
        self._leader = lease
        self._dispatch_slow()  # threads may have become free while the watcher turned the loop
        try:
            while self._pending:
                self._lead_pending(self._pending)
            self.loop.finish_turn()
            self.loop.run()
        except LoopLostError:
            return False
        return True

    def _next_job(self, lease: LoopLease[Exchange]) -> Job | bool | None:
        """Wait as a follower."""
        self._progress = now = time.monotonic()
        lease.end_request(now)
        self._waiting.append(None)
        if self._leader is None:
            self.loop.wake()  # the watcher turns the loop: it is to make this thread the leader
        else:
            self._dispatch_slow()
        return self._jobs.get()

    def _serve(self, job: Job) -> None:
        """Run one request without the loop."""
        if not _still_wanted(job):
            return
        connection, request, body = job
        environ = self._make_environ(request, connection.local, connection.peer)
        exchange = Exchange.off_loop(self, connection, request)
        if body is not None:
            exchange.set_input(environ, body)
        exchange.started = time.perf_counter()
        try:
            result = self._app(environ, exchange.start_response)
        except BaseException as error:
            exchange.fail(error)
        else:
            if type(result) is list:  # otherwise the work may only begin when the result is iterated
                self._forget_if_quick(exchange)  # before the client has the response and asks again
            exchange.send_result(result)
        self._forget_if_quick(exchange)

    def _forget_if_quick(self, exchange: Exchange) -> None:
        """After a quick call, its path no longer counts as slow."""
        if time.perf_counter() - exchange.started < SLOW_AFTER:
            self._slow_paths.pop(exchange.request.line.path, None)

    def _end_threads(self) -> None:
        """The loop is stopped: each thread ends once it has no request."""
        self._ended = True
        for _ in range(self.threads):
            self._jobs.put(None)
        self._watcher_wakeup.put(None)

    # The watcher.

    def _wake_watcher(self) -> None:
        self._watcher_sleeps = False
        self._watcher_wakeup.put(None)

    def _watch(self) -> None:
        seen: Exchange | None = None
        quiet = 0
        while not self._ended:
            try:
                self._watcher_wakeup.get(timeout=SLOW_AFTER)
            except Empty:
                pass
            lease = self._leader
            if lease is None:
                self._stand_in()
                continue
            if self._pending_slow and self._followers_are_taken():
                self.loop.post(self._lead_slow)
            running = lease.running
            if running is None:
                seen = None
                quiet += 1
                if quiet >= QUIET_CHECKS:
                    quiet = 0
                    self._sleep(lease)
                continue
            quiet = 0
            if running is not seen:
                seen = running
            elif lease.revoke(running, time.monotonic()):
                seen = None
                self._move_loop_on(running)

    def _sleep(self, lease: LoopLease[Exchange]) -> None:
        """Wait until the leader wakes this thread."""
        self._watcher_sleeps = True  # first: the leader sets `running`, then reads this
        if self._leader is lease and lease.running is None and not self._pending_slow and not self._ended:
            self._watcher_wakeup.get()
        self._watcher_sleeps = False

    def _move_loop_on(self, slow: Exchange) -> None:
        """The watcher has taken the loop from a slow call: it gives it to a follower, or turns it until one is free."""
        slow.connection.defer()
        if len(self._slow_paths) >= MAX_SLOW_PATHS:
            self._slow_paths.clear()
        self._slow_paths[slow.request.line.path] = None
        if not self._promote_follower():
            self._leader = None
            self._stand_in()

    def _stand_in(self) -> None:
        """Turn the loop until a thread is free to lead."""
        loop = self.loop
        loop.finish_turn()
        while not self._promote_follower():
            if loop.stopped:
                self._end_threads()
                return
            loop.turn()


def _still_wanted(job: Job) -> bool:
    """Whether the client of a request that had to wait is still there. If not, the request's body is closed."""
    connection, _, body = job
    if connection.closed and body is not None:
        body.close()
    return not connection.closed
