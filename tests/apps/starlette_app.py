"""A Starlette application that uses what its documentation promises: streams, files, uploads, background tasks, middleware."""

import asyncio
import contextlib
import hashlib
import os
from pathlib import Path

from starlette.applications import Starlette
from starlette.background import BackgroundTask
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.base import BaseHTTPMiddleware
from starlette.middleware.gzip import GZipMiddleware
from starlette.middleware.sessions import SessionMiddleware
from starlette.responses import FileResponse, JSONResponse, PlainTextResponse, RedirectResponse, StreamingResponse
from starlette.routing import Mount, Route


def note(request, text):
    fd = os.open(request.query_params["log"], os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    os.write(fd, text.encode() + b"\n")
    os.close(fd)


@contextlib.asynccontextmanager
async def lifespan(app):
    yield {"greeting": "Hello from the lifespan"}


async def index(request):
    return PlainTextResponse("Hello from Starlette")


async def state(request):
    return PlainTextResponse(request.state.greeting)


def in_a_thread(request):
    """A view that is not asynchronous runs in one of anyio's threads."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return PlainTextResponse("no loop here")
    return PlainTextResponse("a loop", 500)


async def error(request):
    raise ValueError("as asked for")


async def teapot(request):
    raise HTTPException(418, "short and stout")


async def form(request):
    async with request.form() as form:
        file = form["file"]
        found = {"name": file.filename, "sha256": hashlib.sha256(await file.read()).hexdigest(), "word": form["word"]}
    return JSONResponse(found)


async def raw(request):
    """The body, piece by piece."""
    length = 0
    async for piece in request.stream():
        length += len(piece)
    return JSONResponse({"length": length})


async def count(request):
    request.session["count"] = request.session.get("count", 0) + 1
    return PlainTextResponse(str(request.session["count"]))


async def stream(request):
    async def lines():
        for number in range(50):
            if number % 10 == 0:
                await asyncio.sleep(0.001)
            yield f"{request.query_params['word']} {number}\n"

    return StreamingResponse(lines(), media_type="text/plain")


def threaded_stream(request):
    """A plain generator runs in threads, step by step."""
    return StreamingResponse((f"{number}\n" for number in range(50)), media_type="text/plain")


async def events(request):
    async def source():
        try:
            for number in range(10_000):
                yield f"data: {number}\n\n"
                await asyncio.sleep(0.01)
        finally:
            note(request, "the stream ended")

    return StreamingResponse(source(), media_type="text/event-stream")


async def waiting(request):
    """A stream that sends one piece, then waits."""

    async def source():
        try:
            yield "once\n"
            await asyncio.Event().wait()
        finally:
            note(request, "the stream ended")

    return StreamingResponse(source(), media_type="text/plain")


async def background(request):
    async def work():
        while not Path(request.query_params["gate"]).exists():
            await asyncio.sleep(0.005)
        note(request, "background")

    return PlainTextResponse("answered", background=BackgroundTask(work))


async def disconnected(request):
    """Polls `is_disconnected`, as long polls do."""
    note(request, "polling")
    while not await request.is_disconnected():
        await asyncio.sleep(0.005)
    note(request, "disconnected")
    return PlainTextResponse("too late")


async def file(request):
    return FileResponse(request.query_params["path"], filename="name.bin", background=BackgroundTask(lambda: None))


class Header(BaseHTTPMiddleware):
    """The middleware that everyone writes first."""

    async def dispatch(self, request, call_next):
        body = await request.body() if request.url.path.endswith("/raw") else b""
        response = await call_next(request)
        response.headers["x-middleware"] = str(len(body))
        return response


ROUTES = [
    Route("/" + view.__name__, view, methods=["GET", "POST"])
    for view in (
        *(state, in_a_thread, error, teapot, form, raw, count, stream, threaded_stream, events, background),
        *(waiting, disconnected, file),
    )
]
ROUTES.append(Route("/", index))
ROUTES.append(Route("/away", lambda request: RedirectResponse("/")))
MIDDLEWARE = [Middleware(Header), Middleware(SessionMiddleware, secret_key="not a secret"), Middleware(GZipMiddleware)]

app = Starlette(
    routes=[*ROUTES, Mount("/wrapped", Starlette(routes=ROUTES, middleware=MIDDLEWARE))],
    middleware=[Middleware(SessionMiddleware, secret_key="not a secret")],
    lifespan=lifespan,
)
