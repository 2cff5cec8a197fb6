"""An application of both interfaces, by the number of its arguments: only `--interface` can say what it shall be."""

import asyncio


def app(*arguments):
    return asgi(*arguments) if len(arguments) == 3 else wsgi(*arguments)


def wsgi(environ, start_response):
    """WSGI, with a loop of its own for a moment."""
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
