"""The twin of `routes` in ASGI: the same paths with the same responses, so that the promises of HTTP are tested with both."""

import asyncio
import contextlib
import hashlib
import io
import json
import os
import resource
from collections.abc import Iterable
from http import HTTPStatus
from itertools import chain
from typing import Any
from urllib.parse import parse_qsl

from apps.routes import wait

TEXT = (b"content-type", b"text/plain")
JSON = (b"content-type", b"application/json")
ROUTES: dict[str, Any] = {}


class Call:
    """The arguments of an application's call, and what applications usually do with them."""

    def __init__(self, scope, receive, send):
        self.scope = scope
        self.receive = receive
        self.send = send
        self.query = dict(parse_qsl(scope["query_string"].decode()))

    async def body(self) -> bytes:
        """The whole body of the request. Raises `ConnectionResetError` if it does not arrive whole."""
        pieces = []
        more = True
        while more:
            message = await self.receive()
            if message["type"] == "http.disconnect":
                raise ConnectionResetError
            pieces.append(message["body"])
            more = message["more_body"]
        return b"".join(pieces)

    async def start(self, *headers: tuple[bytes, bytes], status: int = 200) -> None:
        await self.send({"type": "http.response.start", "status": status, "headers": headers})

    async def give(self, body: bytes, more: bool = False) -> None:
        await self.send({"type": "http.response.body", "body": body, "more_body": more})

    async def answer(self, body: bytes, *headers: tuple[bytes, bytes], status: int = 200) -> None:
        await self.start(*(headers or (TEXT,)), status=status)
        await self.give(body)

    async def stream(self, pieces: Iterable[bytes], *headers: tuple[bytes, bytes]) -> None:
        await self.start(TEXT, *headers)
        for piece in pieces:
            await self.give(piece, True)
        await self.give(b"")

    def note(self, text: str) -> None:
        """Tell the test, at once and in order (`gates.Notes`)."""
        fd = os.open(self.query["log"], os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        os.write(fd, text.encode() + b"\n")
        os.close(fd)

    async def gate(self) -> None:
        """Wait until the test opens the gate (`gates.Gate`)."""
        await asyncio.to_thread(wait, self.query["fifo"])


def route(function):
    ROUTES["/" + function.__name__] = function
    return function


async def app(scope, receive, send):
    """`/name?key=value` calls the function `name`."""
    if scope["type"] != "http":
        raise RuntimeError("no lifespan")
    await ROUTES.get("/" + scope["path"].split("/")[1], hello)(Call(scope, receive, send))


@route
async def hello(call):
    await call.answer(b"Hello, world!", TEXT, (b"content-length", b"13"))


@route
async def pid(call):
    await call.answer(str(os.getpid()).encode())


@route
async def target(call):
    query = call.scope["query_string"]
    await call.answer(call.scope["raw_path"] + (b"?" + query if query else b""))


@route
async def environment(call):
    """The part of the scope that has a name in WSGI."""
    found = {"PATH_INFO": call.scope["path"], "QUERY_STRING": call.scope["query_string"].decode()}
    found |= {"HTTP_" + name.decode().upper(): value.decode() for name, value in call.scope["headers"]}
    await call.answer(json.dumps(found).encode(), JSON)


@route
async def status(call):
    names = [name for name in ("Content-Length", "Connection", "Date", "Server", "X") if name in call.query]
    await call.start(
        *((name.encode(), call.query[name].encode()) for name in names),
        status=HTTPStatus(int(call.query["status"].split()[0])),
    )
    await call.give(call.query.get("body", "").encode())


@route
async def size(call):
    await call.answer(b"x" * int(call.query["n"]))


@route
async def pieces(call):
    await call.stream([b"one", b"", b"two", b"three"])


@route
async def written(call):
    await pieces(call)


@route
async def stream(call):
    n = int(call.query["n"])
    lengths = [(b"content-length", b"%d" % (10 * n))] if "length" in call.query else []
    await call.stream((b"%09d\n" % i for i in range(n)), *lengths)


@route
async def closing(call):
    """Streams without end, and notes that it was notified of the client's end."""
    await call.start(TEXT)
    try:
        while True:
            await call.give(b"x" * 65536, True)
    finally:
        call.note("closed")


@route
async def file(call):
    """Sends a file by `http.response.pathsend`, or by `zerocopysend` if its end is to be noted."""
    await call.start((b"content-type", b"application/octet-stream"))
    if "log" not in call.query:
        await call.send({"type": "http.response.pathsend", "path": call.query["path"]})
        return
    with open(call.query["path"], "rb") as opened, contextlib.suppress(OSError):
        await call.send({"type": "http.response.zerocopysend", "file": opened, "more_body": True})
    call.note("closed True")


@route
async def digest(call):
    try:
        body = await call.body()
    except ConnectionResetError:
        return
    found = {"length": len(body), "sha256": hashlib.sha256(body).hexdigest(), "files": [], "input": str(b"")}
    await call.answer(json.dumps(found).encode(), JSON)


@route
async def read(call):
    """The body, cut as a file's method would cut it."""
    how = call.query["how"]
    body = io.BytesIO(await call.body() if how != "not" else b"")
    ways = {
        "read": lambda: [body.read()],
        "read-sized": lambda: list(iter(lambda: body.read(7), b"")),
        "readline": lambda: list(iter(body.readline, b"")),
        "readlines": body.readlines,
        "readlines-hint": lambda: list(chain.from_iterable(iter(lambda: body.readlines(1), []))),
        "iter": lambda: list(body),
        "not": list,
    }
    await call.answer(json.dumps([piece.decode("latin-1") for piece in ways[how]()]).encode(), JSON)


@route
async def read_late(call):
    await call.start(TEXT)
    await call.give(b"begun ", True)
    try:
        await call.give(await call.body())
    except OSError as error:
        await call.give(type(error).__name__.encode())


@route
async def read_twice(call):
    outcomes = []
    for _ in range(2):
        try:
            outcomes.append(str(len(await call.body())))
        except OSError as error:
            outcomes.append(type(error).__name__)
    call.note(" ".join(outcomes))
    await call.answer(b"done")


@route
async def raises(call):
    raise RuntimeError("raised on purpose")


@route
async def length(call):
    """Sends `bytes` bytes, one by one, with a Content-Length of `length`."""
    await call.stream([b"x"] * int(call.query["bytes"]), (b"content-length", call.query["length"].encode()))


@route
async def bad(call):
    """Returns without a response."""


@route
async def gate(call):
    await call.gate()
    await call.answer(b"through")


@route
async def pause(call):
    await asyncio.sleep(int(call.query["ms"]) / 1000)
    await target(call)


@route
async def gated_stream(call):
    await call.start(TEXT)
    await call.give(b"before ", True)
    await call.gate()
    await call.give(b"after", True)
    await call.give(b"")


@route
async def fds(call):
    await call.answer(str(len(os.listdir("/proc/self/fd"))).encode())


@route
async def files(call):
    """The open files, without sockets: other clients come and go."""
    links = []
    for fd in os.listdir("/proc/self/fd"):
        with contextlib.suppress(FileNotFoundError):  # the listing's own descriptor
            links.append(os.readlink(f"/proc/self/fd/{fd}"))
    await call.answer("\n".join(sorted(link for link in links if not link.startswith("socket:"))).encode())


@route
async def memory(call):
    await call.answer(str(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss).encode())
