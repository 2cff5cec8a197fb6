"""The management listener: a small HTTP server on the supervisor's own loop. Waits for nobody, and runs no application's code.

One request a connection. Pages are read by anybody who reaches the address; commands are taken from this machine only, and
never from a browser: any web page can make one send a POST to 127.0.0.1, but not without saying where it came from.
"""

import contextlib
import errno
import ipaddress
import socket
import time
from collections.abc import Callable, Mapping
from functools import partial
from http import HTTPStatus
from typing import Any, Final, NamedTuple
from urllib.parse import parse_qsl

from .. import log
from ..net import sockets
from ..net.loop import IN, OUT, Loop
from ..protocol import response
from ..protocol.request import HeadReader, ProtocolError, Request
from ..supervision.status import as_json

# Seconds for a client, from its first byte to its last: who is well needs some ms.
PATIENCE: Final = 5.0
# Clients at once; one more, and the oldest of them goes: whoever only wants to hold a place loses it to who asks.
MAX_CLIENTS: Final = 64
BACKLOG: Final = 64
ACCEPTS: Final = 16  # in one go
RECEIVE: Final = 16384
# Bytes of a request line, fields, bytes of all fields; probes and scrapers need a tenth of it.
LIMITS: Final = (2048, 64, 16384)
PARAMETERS: Final = 8  # of a query

_JSON: Final = "application/json"


class Page(NamedTuple):
    """An answer."""

    status: int
    text: str
    kind: str = _JSON


class Refused(Exception):  # noqa: N818  (an answer, no fault)
    """A command that is not carried out: the status to answer, and why in one line."""

    def __init__(self, status: int, why: str) -> None:
        super().__init__(status, why)
        self.status = status
        self.why = why


Command = Callable[[dict[str, str]], str]  # from the parameters of the query to what is now wanted; raises `Refused`


class Admin:
    """The listener and its clients. `pages` are for GET, `commands` for POST, by path."""

    def __init__(self, loop: Loop, pages: Mapping[str, Callable[[], Page]], commands: Mapping[str, Command]) -> None:
        self.loop = loop
        self.pages = pages
        self.commands = commands
        self.reader = HeadReader(*LIMITS)
        self.clients: dict[Client, None] = {}  # the oldest first
        self.groups: list[sockets.Group] = []
        self._listeners: list[socket.socket] = []
        self._paused: list[socket.socket] = []  # that wait for a free descriptor
        self._started = False

    def listen(self, address: str, wills: list[sockets.Will]) -> None:
        """Listen at `HOST:PORT`, `[IPV6]:PORT` or `unix:PATH`, with what a predecessor left of it. `sockets.BindError`."""
        self.groups, (self._listeners,) = sockets.bind((address,), 1, BACKLOG, "nodelay", wills)
        for group in self.groups:
            log.info(f"management on {group.url}")

    def start(self) -> None:
        """Answer. Not before a predecessor does no more."""
        self._started = True
        for listener in self._listeners:
            self.loop.watch(listener.fileno(), IN, partial(self._on_listener, listener))

    def wills(self) -> list[sockets.Will]:
        """What a successor needs to answer in our place."""
        return [group.will([listener]) for group, listener in zip(self.groups, self._listeners, strict=True)]

    def leave(self) -> list[sockets.Group]:
        """Listen no more; whoever has come is answered yet. Returns where that was."""
        for listener in self._listeners if self._started else ():
            self.loop.unwatch(listener.fileno())
        sockets.close(self.groups, [self._listeners])
        left, self.groups, self._listeners, self._paused = self.groups, [], [], []
        return left

    def tick(self) -> None:
        """Once a second: let go of those whose time is over, and hear again of who comes."""
        now = time.monotonic()
        for listener in self._paused:
            self.loop.rewatch(listener.fileno(), IN)
        self._paused.clear()
        for client in [client for client in self.clients if client.deadline <= now]:
            client.close()

    def close(self) -> None:
        """The end: nobody is answered any more."""
        for client in tuple(self.clients):
            client.close()
        sockets.unlink(self.leave())

    def disown(self) -> None:
        """In a child: close its copies, and nothing else."""
        for client in self.clients:
            client.sock.close()
        sockets.close(self.groups, [self._listeners])

    def _on_listener(self, listener: socket.socket, events: int) -> None:
        for _ in range(ACCEPTS):
            try:
                sock, _ = listener.accept()
            except BlockingIOError:
                return
            except OSError as error:
                if error.errno in (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM):
                    self.loop.rewatch(listener.fileno(), 0)  # until the next tick, instead of being woken in vain
                    self._paused.append(listener)
                    return
                continue  # the client left while it waited
            if len(self.clients) >= MAX_CLIENTS:
                next(iter(self.clients)).close()
            Client(self, sock)


class Client:
    """One connection: a request, its answer, the end."""

    def __init__(self, admin: Admin, sock: socket.socket) -> None:
        self.admin = admin
        self.sock = sock
        self.deadline = time.monotonic() + PATIENCE
        self._buffer = b""
        self._out = memoryview(b"")
        sock.setblocking(False)
        admin.clients[self] = None
        admin.loop.watch(sock.fileno(), IN, self._on_request)

    def close(self) -> None:
        """Forget it first: a child that is being forked may hold a copy."""
        if self in self.admin.clients:
            del self.admin.clients[self]
            self.admin.loop.unwatch(self.sock.fileno())
            self.sock.close()

    # Its stages, as the loop calls them.

    def _on_request(self, events: int) -> None:
        data = self._receive()
        if not data:
            return
        self._buffer += data
        try:
            request = self.admin.reader.read(self._buffer)
            if request is not None:
                self._answer(_respond(self.admin, request, self.sock), request.line.method != "HEAD")
        except ProtocolError as error:
            self._answer(_error(error.status, error.reason))

    def _answer(self, page: Page, body: bool = True) -> None:
        text = page.text.encode()
        fields = [("Content-Type", page.kind), ("Content-Length", str(len(text))), ("Cache-Control", "no-store")]
        if page.status == HTTPStatus.METHOD_NOT_ALLOWED:
            fields.append(("Allow", "GET, HEAD, POST"))
        head = response.head(f"{page.status} {HTTPStatus(page.status).phrase}", fields)
        lines = (head.lines, response.CLOSE, response.date_line(time.time()), b"\r\n", text if body else b"")
        self._out = memoryview(b"".join(lines))
        self.admin.loop.rehandle(self.sock.fileno(), self._on_writable)
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
            self.admin.loop.rewatch(self.sock.fileno(), OUT)
            return
        # Who has sent more than we read would lose the answer to a reset if we closed now (RFC 9112 9.6).
        with contextlib.suppress(OSError):
            self.sock.shutdown(socket.SHUT_WR)
        self.admin.loop.rehandle(self.sock.fileno(), self._on_rest)
        self.admin.loop.rewatch(self.sock.fileno(), IN)

    def _on_rest(self, events: int) -> None:
        self._receive()

    def _receive(self) -> bytes:
        """What has come; at its end the client is closed."""
        try:
            data = self.sock.recv(RECEIVE)
        except BlockingIOError:
            return b""
        except OSError:
            data = b""
        if not data:
            self.close()
        return data


def _respond(admin: Admin, request: Request, sock: socket.socket) -> Page:
    method, path = request.line.method, request.line.path
    try:
        here, there = sock.getsockname(), sock.getpeername()
    except OSError:  # gone already
        here, there = ("", 0), ("", 0)
    try:
        if not _is_ours(request.fields.host or "", here):
            raise Refused(421, "this Host is not known here: use localhost or an address")
        if path in admin.pages and method in ("GET", "HEAD"):
            return admin.pages[path]()
        if path in admin.commands and method == "POST":
            _judge_command(request, here, there)
            return Page(202, as_json({"done": admin.commands[path](_parameters(request.line.query))}))
    except Refused as refused:
        return _error(refused.status, refused.why)
    except Exception as error:  # ours, and no reason to end a server
        log.exception("a fault of epollard itself", error)
        return _error(500, "a fault of epollard itself; its log has the traceback")
    if path in admin.pages or path in admin.commands:
        return _error(405, f"{path} is for {'GET' if path in admin.pages else 'POST'}")
    return _error(404, f"there are {', '.join((*admin.pages, *admin.commands))}")


def _error(status: int, why: str) -> Page:
    return Page(status, as_json({"error": why}))


def _is_ours(host: str, here: Any) -> bool:
    """A page in a browser of this machine can let a name of its own stand for 127.0.0.1 (DNS rebinding): so no such name."""
    if not _is_loopback(here):
        return True
    name = host.rpartition(":")[0] if host.rpartition(":")[2].isdigit() else host
    if name.startswith("["):
        return True  # `HeadReader` has judged it
    return name.lower() in ("localhost", "") or not name.strip("0123456789.")


def _judge_command(request: Request, here: Any, there: Any) -> None:
    names = {name for name, _ in request.fields.items}
    if "origin" in names or "sec-fetch-site" in names:
        raise Refused(403, "no command is taken from a browser")
    # A Unix socket's file has an owner and a mode.
    if isinstance(here, tuple) and not _is_loopback(there) and here[0] != there[0]:
        raise Refused(403, "commands are taken from this machine only; in a container: docker exec NAME epollardctl ...")
    if request.fields.framed:
        raise Refused(413, "a command has no body: its parameters stand in the query")


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
    try:
        return dict(parse_qsl(query, keep_blank_values=True, strict_parsing=True, max_num_fields=PARAMETERS)) if query else {}
    except ValueError:
        raise Refused(400, "bad query") from None
