"""An application for both interfaces, by the number of its arguments: only `--interface` can decide between them."""

import asyncio


def app(*arguments):
    return asgi(*arguments) if len(arguments) == 3 else wsgi(*arguments)


def wsgi(environ, start_response):
    """Answer by WSGI, and run an event loop briefly."""
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [b"wsgi " + asyncio.run(said())]


async def asgi(scope, receive, send):
    if scope["type"] != "http":
        raise RuntimeError("no lifespan")
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b"asgi " + await said()})


async def said():
    await asyncio.sleep(0.001)
    return b"in a loop"
