"""An ASGI worker within the test's process: the test turns its loop, and makes each step of its application.

Everything but the process is real: loop, runner, connections, and clients at the other end of a pair of sockets.
"""

import asyncio
import re
import socket
import time
from collections.abc import Awaitable, Callable
from typing import Any

from epollard.asgi import exchange as http
from epollard.asgi.exchange import App, HTTPExchange, Message, Receive, Send
from epollard.asgi.runner import AsgiRunner
from epollard.asgi.scope import Scope
from epollard.asgi.websocket import WebSocketExchange
from epollard.net.connection import Connection, accept
from epollard.net.context import Limits, Timeouts, WorkerContext
from epollard.net.contracts import AccessLogger
from epollard.net.loop import Loop

LOCAL = ("127.0.0.1", "80")
PEER = ("127.0.0.1", 1024)
TURNS = 8  # of the loop: whatever is ready comes to its end in fewer

# What a test lets happen, besides messages of the application, its exceptions and bytes of the client.
RECEIVE, RETURN, HALF_CLOSE, VANISH = "receive", "return", "half close", "vanish"
SILENCE, DISMISS, DRAIN = "silence", "dismiss", "drain"
Event = str | bytes | dict[str, Any] | BaseException

_CALL = ("FIRST_STEP", "LATE", "RETURNED")
_BODY = ("EXPECTED", "ARRIVING", "HELD", "WHOLE", "CONSUMED", "LOST")
_RESPONSE = ("AWAITED", "STARTED", "OPEN", "DONE")
_CLIENT = ("PRESENT", "LEFT", "GONE")
# Header fields that every response has, and the date.
_USUAL = re.compile(rb"Server: epollard\r\n|Date: [^\r]*\r\n")


class Call:
    """One call of the application. It returns, or raises, when the test says so."""

    def __init__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.scope = scope
        self.receive = receive
        self.send = send
        self.exchange: Any = getattr(receive, "__self__", None)  # the HTTPExchange or WebSocketExchange
        self.returned: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    @property
    def states(self) -> str:
        """The states of an HTTP exchange, each by its name."""
        exchange = self.exchange
        assert isinstance(exchange, HTTPExchange)
        names = _CALL[exchange.call], _BODY[exchange.body], _RESPONSE[exchange.response], _CLIENT[exchange.client]
        assert [getattr(http, name) for name in names] == [exchange.call, exchange.body, exchange.response, exchange.client]
        return " ".join(names)

    @property
    def state(self) -> str:
        """The state of a WebSocket, by its name."""
        exchange = self.exchange
        assert isinstance(exchange, WebSocketExchange)
        return ("CONNECTING", "OPEN", "CLOSING", "CLOSED")[exchange._state]


class Puppet:
    """The application. In its first step each call sends what is in `first`, and returns if `returns` is set."""

    def __init__(self) -> None:
        self.calls: list[Call] = []
        self.first: list[Message] = []
        self.returns = False

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            raise RuntimeError("no lifespan")
        call = Call(scope, receive, send)
        self.calls.append(call)
        for message in self.first:
            await send(message)
        if not self.returns:
            await call.returned


class Client:
    """One end of a pair of sockets, whose other end the worker has accepted. It never waits."""

    def __init__(self, worker: "Worker") -> None:
        self.worker = worker
        self.sock, other = socket.socketpair()
        self.sock.setblocking(False)
        accepted = socket.SocketType(other.family, other.type, 0, other.detach())
        before = set(worker.context.connections)
        worker.loop.post(accept, worker.context, accepted, PEER, LOCAL)
        worker.turn()
        (connection,) = set(worker.context.connections) - before
        assert isinstance(connection, Connection)
        self.connection = connection

    def send(self, data: bytes) -> "Client":
        self.sock.sendall(data)
        self.worker.turn()
        return self

    def raw(self) -> bytes:
        """All bytes that have come."""
        received = b""
        while True:
            try:
                data = self.sock.recv(1 << 20)
            except BlockingIOError:
                return received
            except ConnectionResetError:
                return received + b"<reset>"
            if not data:
                return received + b"<end>"
            received += data

    def received(self) -> bytes:
        """All bytes that have come, without the fields that every response has; `<end>` where the connection was closed."""
        return _USUAL.sub(b"", self.raw())

    def half_close(self) -> None:
        self.sock.shutdown(socket.SHUT_WR)
        self.worker.turn()

    def close(self) -> None:
        self.sock.close()
        self.worker.turn()


class Worker:
    """The loop of a worker with its runner, its application and its clients."""

    def __init__(self, app: App | None = None, *, access: AccessLogger | None = None, trigger: str = "level") -> None:
        self.puppet = Puppet()
        self.loop = Loop()
        self.runner = AsgiRunner(self.loop, app or self.puppet, max_message=1 << 20, deflate=True, access=access)
        self.aio = self.runner.aio
        timeouts = Timeouts(header=60, body=60, write=60, keep_alive=60, ping_interval=60, ping_timeout=60)
        limits = Limits(max_line=8192, max_headers=100, max_header_bytes=65536, max_body=1 << 30)
        self.context = WorkerContext(
            self.loop, self.runner, limits=limits, timeouts=timeouts, trigger=trigger, notify_disconnects=True
        )
        self.context.tick(time.monotonic(), 0.0)
        self.clients: list[Client] = []

    def __enter__(self) -> "Worker":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def call(self) -> Call:
        """The last call of the application."""
        return self.puppet.calls[-1]

    def client(self, data: bytes = b"") -> Client:
        """A new client, which sends `data`."""
        client = Client(self)
        self.clients.append(client)
        return client.send(data) if data else client

    def turn(self) -> None:
        """Turn the loop until nothing is ready."""
        for _ in range(TURNS):
            self.aio.run_until_complete(asyncio.sleep(0))

    def receive(self) -> Any:
        """Let the last call receive. Returns as `do`."""
        return self.do(self.call.receive())

    def send(self, message: Message) -> Any:
        """Let the last call send. Returns as `do`."""
        return self.do(self.call.send(message))

    def do(self, step: Awaitable[Any]) -> Any:
        """Let the application make a step. Returns its result or exception; the task where it waits for something."""
        task = asyncio.ensure_future(step, loop=self.aio)
        self.turn()
        return outcome(task)

    def later(self, callback: Callable[..., object], *arguments: Any) -> None:
        """Call back on the loop."""
        self.loop.post(callback, *arguments)
        self.turn()

    def end(self, error: BaseException | None = None) -> None:
        """Let the last call return, or raise."""
        if error is None:
            self.call.returned.set_result(None)
        else:
            self.call.returned.set_exception(error)
        self.turn()

    def close(self) -> None:
        """Cancel what still runs, and close all sockets."""
        tasks = asyncio.all_tasks(self.aio)
        for task in tasks:
            task.cancel()
        if tasks:
            self.aio.run_until_complete(asyncio.gather(*tasks, return_exceptions=True))
        for client in self.clients:
            client.close()
        self.turn()
        for connection in tuple(self.context.connections):
            connection.close()
        self.aio.run_until_complete(self.aio.shutdown_asyncgens())
        self.aio.close()
        self.loop.close()


def happen(worker: Worker, client: Client, event: Event) -> Any:
    """Let one thing happen: a message or an exception of the application, bytes of the client, or one of the words above."""
    if event == RECEIVE:
        return worker.receive()
    if isinstance(event, dict):
        return worker.send(event)
    if isinstance(event, bytes):
        client.send(event)
    elif isinstance(event, BaseException):
        worker.end(event)
    else:
        actions: dict[str, Callable[[], object]] = {
            RETURN: worker.end,
            HALF_CLOSE: client.half_close,
            VANISH: client.connection.close,
            SILENCE: client.connection.on_deadline,
            DISMISS: worker.runner.dismiss,
            DRAIN: worker.context.drain,
        }
        actions[event]()
    return None


def outcome(task: "asyncio.Future[Any]") -> Any:
    """The result or exception of a task; the task where it is not done."""
    if not task.done():
        return task
    if task.cancelled():
        return asyncio.CancelledError()
    return task.exception() or task.result()
