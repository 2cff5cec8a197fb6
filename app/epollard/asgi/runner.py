"""asyncio as a guest on the worker's epoll, and ASGI applications on it: the `connection.Application` of an ASGI worker.

asyncio's loop takes ours for its selector: one epoll, and connections are served while asyncio waits in `select`. What a
request starts there runs its first step at once, in a context of its own.
"""

import asyncio
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Coroutine
from contextvars import Context
from typing import Any, Final

from .. import log
from ..net.connection import BODY, Connection
from ..net.loop import Loop
from ..protocol import frames
from ..protocol.request import ProtocolError, Request
from .exchange import App, HTTPExchange
from .lifespan import Lifespan
from .scope import Scope, Scopes
from .websocket import WebSocketExchange

Access = Callable[[str, Request, int, int, float], object]

# Seconds that one step may keep the loop, and with it everybody else, before it is named in the log; and how often we look.
HELD: Final = 0.25
LOOK: Final = 0.1
# Seconds that an application has to end what it does for a client that the server has sent away.
DISMISSED: Final = 1.0
TOLD: Final = 100  # calls whose place is told, as faulthandler does with threads
CANCELLED: Final = 1.0  # ... and what is left at the very end


class AsgiRunner:
    """The asyncio loop of a worker, and the calls that run on it."""

    def __init__(self, loop: Loop, app: App, max_size: int, deflate: bool, access: Access | None) -> None:
        self.loop = loop
        self.aio: asyncio.AbstractEventLoop = asyncio.SelectorEventLoop(loop)
        self.answered = 0
        self.stopping = False
        self.post = loop.post
        self._app = app
        self._max_size = max_size  # bytes of a WebSocket's message
        self._deflate = deflate
        self._access = access
        self._scopes = Scopes()
        self._make_scope = self._scopes.make
        self._calls: set[HTTPExchange | WebSocketExchange] = set()  # those that did not end in their first step
        self._stop = asyncio.Event()
        self._caught: tuple[Callable[[], object], Context] | None = None

    def run(self, ready: Callable[[], object]) -> None:
        """Start the application, call `ready`, serve until `stop`, end the application. Raises `lifespan.StartupError`."""
        asyncio.set_event_loop(self.aio)
        try:
            self.aio.run_until_complete(self._serve(ready))
        finally:
            asyncio.set_event_loop(None)
            signal.set_wakeup_fd(-1)  # `close` closes its other end first, and a signal may come in between
            self.aio.close()

    def stop(self) -> None:
        """End `run`: what still runs is cancelled."""
        self.stopping = True
        self._stop.set()
        self.loop.wake()  # who asks may do so just before the loop waits

    @property
    def idle(self) -> bool:
        """No application code runs for a client, or after one."""
        return not self._calls

    def alive(self, now: float) -> float:
        """When the worker was last seen to live: it turns its loop."""
        return now

    def spent(self, now: float) -> float:
        """Seconds that threads of ours have spent beside the loop: there are none."""
        return 0.0

    def dismiss(self) -> None:
        """The server is going: who has no end of their own are told. To be called again while there may be new ones."""
        for call in tuple(self._calls):
            if type(call) is WebSocketExchange:
                if not call.dismiss():
                    continue
            elif type(call) is HTTPExchange and call.opened and not call.done and call.head is not None and call.head.events:
                call.finish_stream()
            else:
                continue
            if call.task is not None:
                self.aio.call_later(DISMISSED, call.task.cancel)

    def tell(self) -> None:
        """Where each call waits goes to the log: no thread's stack shows it."""
        for call in [*self._calls][:TOLD]:
            if call.task is not None:
                line = call.request.line
                places = "".join(_places(call.task.get_coro()))
                log.block(f"{line.method} {line.target} of {call.connection.name()} waits (most recent call first)", places)
        if len(self._calls) > TOLD:
            log.info(f"and {len(self._calls) - TOLD} more calls")

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

    # connection.Application

    def answer(self, connection: Connection, request: Request) -> bytes | None:
        """Answer a request that has no body."""
        scope = self._make_scope(connection, request)
        if scope["type"] == "websocket":
            self._open_session(connection, request, scope)
            return None
        return self._begin(HTTPExchange(self, connection, request), scope)

    def answer_with_body(self, connection: Connection, request: Request, body: bytes) -> bytes | None:
        """Answer a request whose body is there."""
        scope = self._make_scope_of_body(connection, request)
        call = HTTPExchange(self, connection, request)
        call.feed(body)
        return self._begin(call, scope)

    def answer_streaming(self, connection: Connection, request: Request) -> bytes | None:
        """Answer a request that has a body: the application is called at once, and gets it as it comes."""
        scope = self._make_scope_of_body(connection, request)
        call = HTTPExchange(self, connection, request)
        call.whole = False
        if request.fields.expect:
            call.asked = False
        else:
            connection.attach(call)
            connection.read_body(connection.closing, False)
            if call.dead:
                return None
        return self._begin(call, scope)

    def _make_scope_of_body(self, connection: Connection, request: Request) -> Scope:
        scope = self._make_scope(connection, request)
        if scope["type"] == "websocket":
            raise ProtocolError(400, "a WebSocket's handshake with a body")
        return scope

    def _begin(self, call: HTTPExchange, scope: Scope) -> bytes | None:
        if self._access is not None:
            call.started = time.perf_counter()
        task = self._start(call.run(self._app, scope))
        if not call.ended:
            call.task = task
            self._calls.add(call)
        call.late = True
        answer = call.answer
        if answer is None:
            connection = call.connection
            if not connection.closed and not call.dead:
                connection.attach(call)
                if connection.stage != BODY:
                    connection.defer()
        return answer

    def _open_session(self, connection: Connection, request: Request, scope: Scope) -> None:
        try:
            offer = frames.read_offer(request, self._deflate)
        except ProtocolError as error:
            connection.reject(error)
            return
        scope["subprotocols"] = offer.subprotocols
        session = WebSocketExchange(self, connection, request, offer, self._max_size)
        session.started = time.perf_counter()
        connection.attach(session)
        connection.defer()
        task = self._start(session.run(self._app, scope))
        if not session.ended:
            session.task = task
            self._calls.add(session)
        session.late = True

    if sys.version_info >= (3, 12):

        def _start(self, coroutine: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
            """A task whose first step runs now."""
            return asyncio.Task(coroutine, loop=self.aio, eager_start=True)

    else:

        def _start(self, coroutine: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
            """A task whose first step runs now: it is caught on its way into the queue."""
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

    # asgi.Host

    def finished(self, connection: Connection, request: Request, code: int, sent: int, started: float) -> None:
        """See `asgi.Host`."""
        self.answered += 1
        if self._access is not None:
            self._access(connection.peer[0], request, code, sent, time.perf_counter() - started)

    def ended(self, call: HTTPExchange | WebSocketExchange) -> None:
        """See `asgi.Host`."""
        self._calls.discard(call)

    # The watcher, a thread of its own.

    def _watch(self, thread: int, stopped: threading.Event) -> None:
        """Name what holds the loop."""
        told = 0.0
        while not stopped.wait(LOOK):
            since = self.loop.busy_since
            if not since or since == told or time.monotonic() - since < HELD:
                continue
            told = since
            stack = sys._current_frames().get(thread)
            places = traceback.extract_stack(stack)[:-4:-1] if stack else []
            where = ", called by ".join(f"{os.path.basename(f.filename)}:{f.lineno} ({f.name})" for f in places)
            log.warning(f"the event loop is held for over {HELD * 1000:.0f} ms, and everybody waits: {log.escape(where)}")


def _places(awaited: Any) -> list[str]:
    """The frames of a coroutine and of what it awaits, the last first, as faulthandler writes those of threads."""
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
    """Cancel, and give them a moment to end."""
    for task in tasks:
        task.cancel()
    if tasks:
        await asyncio.wait(tasks, timeout=CANCELLED)
