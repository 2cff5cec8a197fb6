"""Runs ASGI applications on the worker's loop, with asyncio in guest mode: the `Interface` of an ASGI worker.

*Guest mode* is trio's term for an event loop that runs inside another one, the host. Here asyncio is the guest: its loop takes
ours for its selector (`Loop` is a `selectors.BaseSelector`), so a worker has one epoll, and while asyncio waits in `select`
connections are served by the same handlers as in a WSGI worker. A task that a request starts runs its first step at once, in a
context of its own, without waiting for asyncio's next turn.
"""

import asyncio
import faulthandler
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Collection, Coroutine
from contextvars import Context
from typing import Any, Final

from .. import log
from ..net.connection import Connection
from ..net.contracts import AccessLogger, Runner
from ..net.loop import Loop
from ..protocol import handshake
from ..protocol.grammar import ProtocolError
from ..protocol.request import Request
from .exchange import App, HTTPExchange
from .lifespan import Lifespan
from .scope import Scope, Scopes
from .websocket import WebSocketExchange

Exchange = HTTPExchange | WebSocketExchange

# Seconds that one step may block the loop, and with it every client, before the log names it; and how often that is checked.
BLOCKED_SECONDS: Final = 0.25
WATCH_SECONDS: Final = 0.1
# Seconds that the application has to end a call for a client that the server has dismissed, and all calls at the very end.
DISMISS_SECONDS: Final = 1.0
CANCEL_SECONDS: Final = 1.0
REPORTED_CALLS: Final = 100  # whose places go to the log, as faulthandler limits threads


class AsgiRunner(Runner):
    """The asyncio loop of a worker, and the calls that run on it."""

    def __init__(self, loop: Loop, app: App, *, max_message: int, deflate: bool, access: AccessLogger | None) -> None:
        self.loop = loop
        self.aio: asyncio.AbstractEventLoop = asyncio.SelectorEventLoop(loop)
        self.answered = 0
        self.timed = access is not None
        self.stopping = False
        self._app = app
        self._max_message = max_message  # bytes of a WebSocket's message
        self._deflate = deflate
        self._access = access
        self._scopes = Scopes()
        self._make_scope = self._scopes.make
        self._calls: set[Exchange] = set()  # those that did not return in their first step
        self.begun = self._calls.add
        self.ended = self._calls.discard
        self._stop = asyncio.Event()
        self._caught: tuple[Callable[[], object], Context] | None = None

    def run(self, ready: Callable[[], object]) -> None:
        """Start the application, call `ready`, serve until `stop`, end the application. Raises `lifespan.StartupError`."""
        asyncio.set_event_loop(self.aio)
        try:
            self.aio.run_until_complete(self._serve(ready))
        finally:
            asyncio.set_event_loop(None)
            self.unwatch_signals()  # `close` closes the other end first, and a signal may come in between
            self.aio.close()

    # contracts.Interface

    def watch_signals(self, numbers: Collection[int], on_signal: Callable[[int], object]) -> None:
        """See `contracts.Interface`. asyncio has a pair of sockets of its own for it. SIGUSR1 shows where calls wait."""
        for number in numbers:
            self.aio.add_signal_handler(number, on_signal, number)
        self.aio.add_signal_handler(signal.SIGUSR1, self.log_calls)
        faulthandler.unregister(signal.SIGUSR1)  # asyncio has replaced its handler: let it come first again
        faulthandler.register(signal.SIGUSR1, file=2, all_threads=True, chain=True)

    def unwatch_signals(self) -> None:
        """See `contracts.Interface`. In a child asyncio's sockets are the worker's as well: a signal would be sent to it."""
        signal.set_wakeup_fd(-1)

    def stop(self) -> None:
        """See `contracts.Interface`. Calls that still run are cancelled."""
        self.stopping = True
        self._stop.set()
        self.loop.wake()  # the loop may be about to wait

    def stop_if_idle(self) -> bool:
        """See `contracts.Interface`. A call may still run after its client has left."""
        if self._calls:
            return False
        self.stop()
        return True

    def alive(self, now: float) -> float:
        """See `contracts.Interface`. It can serve as long as its one thread turns the loop, which calls this."""
        return now

    def busy_seconds(self, now: float) -> tuple[float]:
        """See `contracts.Interface`. There are no other threads."""
        return (now - self.loop.waited,)

    def dismiss(self) -> None:
        """The server is shutting down: end what has no end of its own. To be called again as long as there may be new calls."""
        for call in tuple(self._calls):
            if call.dismiss() and call.task is not None:
                self.aio.call_later(DISMISS_SECONDS, call.task.cancel)

    def log_calls(self) -> None:
        """Log where each call waits: no thread's stack shows it."""
        for call in [*self._calls][:REPORTED_CALLS]:
            if call.task is not None:
                line = call.request.line
                places = "".join(_places(call.task.get_coro()))
                log.block(f"{line.method} {line.target} of {call.connection.name()} waits (most recent call first)", places)
        if len(self._calls) > REPORTED_CALLS:
            log.info(f"and {len(self._calls) - REPORTED_CALLS} more calls")

    async def _serve(self, ready: Callable[[], object]) -> None:
        lifespan = Lifespan(self._app)
        stopped = threading.Event()
        try:
            await lifespan.startup()
            if lifespan.supported:
                self._scopes.state = lifespan.state
            threading.Thread(target=self._watch, args=(threading.get_ident(), stopped), name="watcher", daemon=True).start()
            ready()
            await self._stop.wait()
            await _cancel([call.task for call in self._calls if call.task is not None])
            await lifespan.shutdown()
        finally:
            stopped.set()
            await _cancel([task for task in asyncio.all_tasks() if task is not asyncio.current_task()])
            await self.aio.shutdown_asyncgens()

    # Application

    def answer(self, connection: Connection, request: Request) -> bytes | None:
        """Answer a request that has no body."""
        scope = self._make_scope(connection, request)
        if scope["type"] == "websocket":
            self._begin_websocket(connection, request, scope)
            return None
        return HTTPExchange(self, connection, request).begin(self._app, scope)

    def answer_with_body(self, connection: Connection, request: Request, body: bytes) -> bytes | None:
        """Answer a request whose body is there."""
        scope = self._make_scope_of_body(connection, request)
        exchange = HTTPExchange(self, connection, request)
        exchange.feed(body)
        return exchange.begin(self._app, scope)

    def answer_streaming(self, connection: Connection, request: Request) -> bytes | None:
        """Answer a request whose body is to come: the application is called at once, and receives the body as it arrives."""
        scope = self._make_scope_of_body(connection, request)
        exchange = HTTPExchange(self, connection, request)
        return exchange.begin(self._app, scope) if exchange.read_body() else None

    def _make_scope_of_body(self, connection: Connection, request: Request) -> Scope:
        scope = self._make_scope(connection, request)
        if scope["type"] == "websocket":
            raise ProtocolError(400, "a WebSocket's handshake with a body")
        return scope

    def _begin_websocket(self, connection: Connection, request: Request, scope: Scope) -> None:
        try:
            offer = handshake.read_offer(request, self._deflate)
        except ProtocolError as error:
            connection.reject(error)
            return
        scope["subprotocols"] = offer.subprotocols
        WebSocketExchange(self, connection, request, offer, max_message=self._max_message).begin(self._app, scope)

    # exchange.Runner

    if sys.version_info >= (3, 12):

        def start(self, coroutine: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
            """See `exchange.Runner`."""
            return asyncio.Task(coroutine, loop=self.aio, eager_start=True)

    else:

        def start(self, coroutine: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
            """See `exchange.Runner`. The first step is caught on its way into asyncio's queue."""
            aio: Any = self.aio
            aio.call_soon = self._catch
            try:
                task = asyncio.Task(coroutine, loop=aio)
            finally:
                del aio.call_soon
            assert self._caught is not None
            step, context = self._caught
            context.run(step)
            return task

        def _catch(self, step: Callable[[], object], *, context: Context) -> None:
            self._caught = step, context

    def post(self, callback: Callable[..., object], *arguments: Any) -> None:
        """See `contracts.Runner`."""
        self.loop.post(callback, *arguments)

    # The watcher, a thread of its own.

    def _watch(self, thread: int, stopped: threading.Event) -> None:
        """Log which code blocks the loop, once for each time that it does."""
        reported = 0.0
        while not stopped.wait(WATCH_SECONDS):
            since = self.loop.busy_since
            if not since or since == reported or time.monotonic() - since < BLOCKED_SECONDS:
                continue
            reported = since
            stack = sys._current_frames().get(thread)
            places = traceback.extract_stack(stack)[:-4:-1] if stack else []
            where = ", called by ".join(f"{os.path.basename(f.filename)}:{f.lineno} ({f.name})" for f in places)
            log.warning(f"event loop blocked for more than {BLOCKED_SECONDS * 1000:.0f} ms at {log.escape(where)}")


def _places(awaited: Any) -> list[str]:
    """The frames of a coroutine and of those that it awaits, the innermost first, as faulthandler writes those of threads."""
    places: list[str] = []
    while awaited is not None:
        frame = _first(awaited, "cr_frame", "gi_frame", "ag_frame")
        if frame is not None:
            places.insert(0, f'  File "{frame.f_code.co_filename}", line {frame.f_lineno} in {frame.f_code.co_name}\n')
        awaited = _first(awaited, "cr_await", "gi_yieldfrom", "ag_await")
    return places


def _first(found: Any, *names: str) -> Any:
    return next((getattr(found, name) for name in names if hasattr(found, name)), None)


async def _cancel(tasks: list[asyncio.Task[Any]]) -> None:
    """Cancel the tasks, and give them a moment to end."""
    for task in tasks:
        task.cancel()
    if tasks:
        await asyncio.wait(tasks, timeout=CANCEL_SECONDS)
