"""The applications that every ASGI server serves: two without a framework, and one of FastAPI if that is installed."""

import contextlib
from collections.abc import Awaitable, Callable
from typing import Any

_HELLO = b"Hello, world!"
_HELLO_HEADERS = ((b"content-type", b"text/plain"), (b"content-length", b"13"))


async def app(scope: dict[str, Any], receive: Callable[[], Awaitable[Any]], send: Callable[[Any], Awaitable[None]]) -> None:
    """Returns 13 bytes."""
    if scope["type"] == "lifespan":
        for event in "startup", "shutdown":
            await receive()
            await send({"type": f"lifespan.{event}.complete"})
        return
    await send({"type": "http.response.start", "status": 200, "headers": list(_HELLO_HEADERS)})
    await send({"type": "http.response.body", "body": _HELLO})


async def echo(scope: dict[str, Any], receive: Callable[[], Awaitable[Any]], send: Callable[[Any], Awaitable[None]]) -> None:
    """A WebSocket that echoes every text message."""
    if scope["type"] != "websocket":
        await app(scope, receive, send)
        return
    await receive()
    await send({"type": "websocket.accept"})
    while (message := await receive())["type"] == "websocket.receive":
        await send({"type": "websocket.send", "text": message["text"]})


with contextlib.suppress(ImportError):
    from fastapi import FastAPI

    fast = FastAPI()

    @fast.get("/")
    async def hello() -> dict[str, str]:
        """A small JSON response."""
        return {"hello": "world"}
