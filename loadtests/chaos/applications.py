"""The application under disturbances, for WSGI and ASGI. `/?ms=2` takes 2 ms; every response is the process's number."""

import asyncio
import os
import time
from collections.abc import Awaitable, Callable
from typing import Any


def wsgi(environ: dict[str, Any], start_response: Callable[..., Any]) -> list[bytes]:
    """WSGI (PEP 3333)."""
    if environ["QUERY_STRING"].startswith("ms="):
        time.sleep(float(environ["QUERY_STRING"][3:]) / 1000)
    body = b"%d" % os.getpid()
    start_response("200 OK", [("Content-Type", "text/plain"), ("Content-Length", str(len(body)))])
    return [body]


async def asgi(scope: dict[str, Any], receive: Callable[[], Any], send: Callable[[dict[str, Any]], Awaitable[None]]) -> None:
    """ASGI 3."""
    if scope["type"] != "http":
        raise RuntimeError(f"no {scope['type']} here")
    if scope["query_string"].startswith(b"ms="):
        await asyncio.sleep(float(scope["query_string"][3:]) / 1000)
    body = b"%d" % os.getpid()
    headers = [(b"content-type", b"text/plain"), (b"content-length", b"%d" % len(body))]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": body})
