"""An ASGI application with the lifespan that the variable `LIFESPAN` names; it notes what happens in the file `NOTES`."""

import asyncio
import json
import os

from apps.routes import wait

served = 0


def note(text):
    fd = os.open(os.environ["NOTES"], os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    os.write(fd, text.encode() + b"\n")
    os.close(fd)


async def app(scope, receive, send):
    if scope["type"] == "lifespan":
        await LIFESPANS[os.environ["LIFESPAN"]](scope, receive, send)
        return
    global served
    served += 1
    if scope["path"] == "/slow":
        note("asked")
        await asyncio.sleep(0.5)
        note("answered")
    if scope["path"] == "/never":
        note("asked")
        try:
            await asyncio.Event().wait()
        finally:
            note("cancelled")
    state = scope.get("state")
    body = json.dumps({"state": state, "pid": os.getpid()}).encode()
    if state is not None:
        state["of one request"] = True
        state["shared"].append(served)
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": body})


async def failing(scope, receive, send):
    """Another application, which never starts."""
    await fails_and_raises(scope, receive, send)


async def startup(scope, receive, send):
    assert await receive() == {"type": "lifespan.startup"}
    note("startup")
    scope["state"] |= {"word": "kept", "shared": []}
    await send({"type": "lifespan.startup.complete"})


async def usual(scope, receive, send):
    await startup(scope, receive, send)
    assert await receive() == {"type": "lifespan.shutdown"}
    note("shutdown")
    await send({"type": "lifespan.shutdown.complete"})


async def gated(scope, receive, send):
    """Is not ready before the test wants it."""
    await asyncio.to_thread(wait, os.environ["GATE"])
    await usual(scope, receive, send)


async def none(scope, receive, send):
    raise NotImplementedError(scope["type"])


async def silent(scope, receive, send):
    """Returns without a message: it has no lifespan."""


async def fails(scope, receive, send):
    await receive()
    await send({"type": "lifespan.startup.failed", "message": "no database\nat db:5432"})


async def fails_and_raises(scope, receive, send):
    """Reports the failure, then raises the error, as frameworks do."""
    await fails(scope, receive, send)
    raise RuntimeError("no database")


async def fails_and_waits(scope, receive, send):
    await fails(scope, receive, send)
    await receive()


async def dies(scope, receive, send):
    """Raises once it is ready."""
    await startup(scope, receive, send)
    raise RuntimeError("the lifespan died")


async def fails_at_the_end(scope, receive, send):
    await startup(scope, receive, send)
    await receive()
    await send({"type": "lifespan.shutdown.failed", "message": "not\nflushed"})


async def raises_at_the_end(scope, receive, send):
    await startup(scope, receive, send)
    await receive()
    raise RuntimeError("the end failed")


async def hangs_at_the_end(scope, receive, send):
    await startup(scope, receive, send)
    await receive()
    note("hanging")
    await asyncio.sleep(3600)


async def goes_on(scope, receive, send):
    """Continues after it has reported its end."""
    await usual(scope, receive, send)
    await asyncio.sleep(0.3)
    note("closed")


async def background(scope, receive, send):
    """Starts a task that lasts as long as the worker, and does not end it."""

    async def work():
        try:
            await asyncio.sleep(3600)
        finally:
            note("cancelled")

    task = asyncio.create_task(work())
    await usual(scope, receive, send)
    assert not task.done()


async def nonsense(scope, receive, send):
    try:
        await send({"type": "lifespan.nonsense"})
    except Exception as error:
        note(type(error).__name__)
    await usual(scope, receive, send)


LIFESPANS = {
    function.__name__: function
    for function in (
        *(usual, gated, none, silent, fails, fails_and_raises, fails_and_waits, dies),
        *(fails_at_the_end, raises_at_the_end, hangs_at_the_end, goes_on, background, nonsense),
    )
}
