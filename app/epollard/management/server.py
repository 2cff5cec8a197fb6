"""The management listener: a small HTTP server on the supervisor's own loop. Never blocks, and runs no application code.

One request per connection. Every client that reaches the address may read pages; commands are taken from this machine only, and
never from a browser: any web page can make a browser send a POST to 127.0.0.1, but not without headers that show its origin.
"""

import contextlib
import ipaddress
import json
import socket
import time
from collections.abc import Callable, Mapping
from http import HTTPStatus
from typing import Any, Final, NamedTuple
from urllib.parse import parse_qsl

from .. import log
from ..net import sockets
from ..net.acceptor import Acceptor
from ..net.loop import IN, OUT, Loop
from ..protocol import response
from ..protocol.grammar import ProtocolError
from ..protocol.request import HeadReader, Request

# Seconds for a client, from the accept to the end of its response. One that works needs a few ms.
CLIENT_TIMEOUT: Final = 5.0
# Clients at the same time. One more, and the oldest is closed: a client that only occupies a place loses it to one that asks.
MAX_CLIENTS: Final = 64
BACKLOG: Final = 64
RECEIVE: Final = 16384
# Bytes of a request line, number of fields, bytes of all fields; probes and scrapers need a tenth of it.
LIMITS: Final = (2048, 64, 16384)
MAX_PARAMETERS: Final = 8  # of a query

_JSON: Final = "application/json"
_INTERNAL_ERROR: Final = "internal error, please report it"


class Page(NamedTuple):
    """A response."""

    status: int
    text: str
    content_type: str = _JSON


class Refused(Exception):  # noqa: N818  (a response, not a fault)
    """A command that is not carried out: the status of the response, and why in one line."""

    def __init__(self, status: int, why: str) -> None:
        super().__init__(status, why)
        self.status = status
        self.why = why


# From the parameters of the query to a line that says what happens now. Raises `Refused`.
Command = Callable[[dict[str, str]], str]


def json_text(value: object) -> str:
    """One line of JSON: for programs, and for people with curl."""
    return json.dumps(value) + "\n"


class Server:
    """The listener and its clients. `pages` are for GET, `commands` for POST, by path."""

    def __init__(self, loop: Loop, pages: Mapping[str, Callable[[], Page]], commands: Mapping[str, Command]) -> None:
        self.loop = loop
        self.pages = pages
        self.commands = commands
        self.reader = HeadReader(*LIMITS)
        self.clients: dict[Client, None] = {}  # oldest first
        self.groups: list[sockets.Group] = []
        self._listeners: list[socket.socket] = []
        self._acceptor = Acceptor(loop, self._accept, self.clients)
        self._started = False

    def listen(self, address: str, inheritances: list[sockets.Inheritance]) -> None:
        """Listen on `HOST:PORT`, `[IPV6]:PORT` or `unix:PATH`, which a predecessor may have left us. `sockets.BindError`."""
        self.groups, (self._listeners,) = sockets.bind((address,), 1, BACKLOG, "nodelay", inheritances)
        for group in self.groups:
            log.info(f"management on {group.url}")

    def start(self) -> None:
        """Accept clients. Not before a predecessor has stopped doing so."""
        self._started = True
        for listener in self._listeners:
            self._acceptor.add(listener)

    def inheritances(self) -> list[sockets.Inheritance]:
        """What a successor needs to serve in our place."""
        return [group.inheritance([listener]) for group, listener in zip(self.groups, self._listeners, strict=True)]

    def leave(self) -> list[sockets.Group]:
        """Stop listening; clients that were accepted still get their response. Returns the groups."""
        for listener in self._listeners if self._started else ():
            self._acceptor.remove(listener)
        sockets.close(self.groups, [self._listeners])
        left, self.groups, self._listeners = self.groups, [], []
        return left

    def tick(self) -> None:
        """Once a second: close clients whose time is over, and resume accepting."""
        now = time.monotonic()
        self._acceptor.resume()
        for client in [client for client in self.clients if client.deadline <= now]:
            client.close()

    def close(self) -> None:
        """The end: close all clients and the listener."""
        for client in tuple(self.clients):
            client.close()
        sockets.unlink(self.leave())

    def disown(self) -> None:
        """In a forked worker: close its copies, and do nothing else."""
        for client in self.clients:
            client.sock.close()
        sockets.close(self.groups, [self._listeners])

    def _accept(self, sock: "socket.SocketType", peer: object, name: tuple[str, str]) -> None:
        if len(self.clients) >= MAX_CLIENTS:
            next(iter(self.clients)).close()
        Client(self, sock)


class Client:
    """One connection: a request, its response, the end."""

    def __init__(self, server: Server, sock: "socket.SocketType") -> None:
        self.server = server
        self.sock = sock
        self.deadline = time.monotonic() + CLIENT_TIMEOUT
        self._buffer = b""
        self._out = memoryview(b"")
        sock.setblocking(False)
        server.clients[self] = None
        server.loop.watch(sock.fileno(), IN, self._on_request)

    def close(self) -> None:
        """Close it. Unwatched first, because a worker that is being forked may hold a copy (see `Loop.unwatch`)."""
        if self in self.server.clients:
            del self.server.clients[self]
            self.server.loop.unwatch(self.sock.fileno())
            self.sock.close()

    # Its stages: what the loop calls for it.

    def _on_request(self, events: int) -> None:
        data = self._receive()
        if not data:
            return
        self._buffer += data
        try:
            request = self.server.reader.read(self._buffer)
            if request is not None:
                self._send(_respond(self.server, request, self.sock), request.line.method != "HEAD")
        except ProtocolError as error:
            self._send(_error(error.status, error.reason))

    def _send(self, page: Page, body: bool = True) -> None:
        text = page.text.encode()
        fields = [("Content-Type", page.content_type), ("Content-Length", str(len(text))), ("Cache-Control", "no-store")]
        if page.status == HTTPStatus.METHOD_NOT_ALLOWED:
            fields.append(("Allow", "GET, HEAD, POST"))
        head = response.head(f"{page.status} {HTTPStatus(page.status).phrase}", fields)
        lines = (head.lines, response.CLOSE, response.date_line(time.time()), b"\r\n", text if body else b"")
        self._out = memoryview(b"".join(lines))
        self.server.loop.rehandle(self.sock.fileno(), self._on_writable)
        self._on_writable(OUT)

    def _on_writable(self, events: int) -> None:
        try:
            self._out = self._out[self.sock.send(self._out) :]
        except BlockingIOError:
            pass
        except OSError:
            self.close()
            return
        if self._out:
            self.server.loop.rewatch(self.sock.fileno(), OUT)
            return
        # Closing now would reset a client that has sent more than we read, and it would lose the response (RFC 9112 9.6).
        with contextlib.suppress(OSError):
            self.sock.shutdown(socket.SHUT_WR)
        self.server.loop.rehandle(self.sock.fileno(), self._on_rest)
        self.server.loop.rewatch(self.sock.fileno(), IN)

    def _on_rest(self, events: int) -> None:
        self._receive()

    def _receive(self) -> bytes:
        """What the client has sent. Closes the client if it has left."""
        try:
            data = self.sock.recv(RECEIVE)
        except BlockingIOError:
            return b""
        except OSError:
            data = b""
        if not data:
            self.close()
        return data


def _respond(server: Server, request: Request, sock: "socket.SocketType") -> Page:
    method, path = request.line.method, request.line.path
    try:
        here, there = sock.getsockname(), sock.getpeername()
    except OSError:  # gone already
        here, there = ("", 0), ("", 0)
    try:
        if not _is_known_host(request.fields.host or "", here):
            raise Refused(421, "unknown Host: use localhost or an IP address")
        if path in server.pages and method in ("GET", "HEAD"):
            return server.pages[path]()
        if path in server.commands and method == "POST":
            _check_command(request, here, there)
            return Page(202, json_text({"done": server.commands[path](_parameters(request.line.query))}))
    except Refused as refused:
        return _error(refused.status, refused.why)
    except Exception as error:  # a fault of ours must not end the supervisor
        log.exception(_INTERNAL_ERROR, error)
        return _error(500, f"{_INTERNAL_ERROR}: the log has the traceback")
    if path in server.pages or path in server.commands:
        return _error(405, f"{path} is for {'GET' if path in server.pages else 'POST'}")
    return _error(404, f"not found; there are {', '.join((*server.pages, *server.commands))}")


def _error(status: int, why: str) -> Page:
    return Page(status, json_text({"error": why}))


def _is_known_host(host: str, here: Any) -> bool:
    """On loopback only localhost and addresses: a web page may make a name of its own resolve to 127.0.0.1 (DNS rebinding)."""
    if not _is_loopback(here):
        return True
    name = host.rpartition(":")[0] if host.rpartition(":")[2].isdigit() else host
    if name.startswith("["):
        return True  # `HeadReader` has checked it
    return name.lower() in ("localhost", "") or not name.strip("0123456789.")


def _check_command(request: Request, here: Any, there: Any) -> None:
    names = {name for name, _ in request.fields.items}
    if "origin" in names or "sec-fetch-site" in names:
        raise Refused(403, "commands are not accepted from browsers")
    # Access to a Unix socket is governed by its file's owner and mode.
    if isinstance(here, tuple) and not _is_loopback(there) and here[0] != there[0]:
        raise Refused(403, "commands are accepted from this machine only; in a container: docker exec NAME epollardctl ...")
    if request.fields.framed:
        raise Refused(413, "a command has no body: its parameters belong in the query")


def _is_loopback(address: Any) -> bool:
    if not isinstance(address, tuple):
        return False
    try:
        ip = ipaddress.ip_address(address[0].partition("%")[0])
    except ValueError:
        return False
    mapped = getattr(ip, "ipv4_mapped", None)
    return (mapped or ip).is_loopback


def _parameters(query: str) -> dict[str, str]:
    if not query:
        return {}
    try:
        return dict(parse_qsl(query, keep_blank_values=True, strict_parsing=True, max_num_fields=MAX_PARAMETERS))
    except ValueError:
        raise Refused(400, "bad query") from None
