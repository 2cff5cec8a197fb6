"""A FastAPI application: the routes that the load tests use, and more. It needs nothing of the server that serves it."""

import asyncio
import hashlib
import os
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from typing import Annotated, TypedDict

from fastapi import BackgroundTasks, FastAPI, Path, Query, Request, UploadFile
from fastapi.responses import HTMLResponse, PlainTextResponse, Response, StreamingResponse
from fastapi.sse import EventSourceResponse, ServerSentEvent
from pydantic import BaseModel, Field

ALPHABET = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/"
PAGE = """\
<!doctype html>
<html lang="en">
<meta charset="utf-8">
<title>FastAPI on epollard</title>
<h1>FastAPI on epollard</h1>
<p>Worker {worker}, process {pid}, serving since {since:%H:%M:%S}.</p>
<p><a href="/docs">/docs</a> <a href="/hello">/hello</a> <a href="/json">/json</a> <a href="/greet/Ada?times=2">/greet</a>
<a href="/sleep?ms=500">/sleep</a> <a href="/bytes?n=4096">/bytes</a> <a href="/stream?n=20">/stream</a>
<a href="/events">/events</a> <a href="/notes">/notes</a></p>
</html>
"""


class Note(BaseModel):
    """A note to keep."""

    text: str = Field(min_length=1, max_length=1000)
    tags: set[str] = Field(default_factory=set, max_length=10)


class State(TypedDict):
    """The state that the lifespan makes in each worker; requests find it in `request.state`."""

    since: datetime
    notes: deque[Note]


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[State]:
    """The part before `yield` runs before the first request, the part after it when the last response has been sent."""
    yield {"since": datetime.now(UTC), "notes": deque(maxlen=100)}


app = FastAPI(title="FastAPI on epollard", lifespan=lifespan)


def who() -> dict[str, object]:
    return {"pid": os.getpid(), "worker": os.environ.get("EPOLLARD_WORKER_ID")}


@app.get("/", response_class=HTMLResponse)
async def index(request: Request) -> str:
    return PAGE.format(since=request.state.since, **who())


@app.api_route("/hello", methods=["GET", "HEAD"], response_class=PlainTextResponse)
async def hello() -> str:
    return "Hello, World!"


@app.get("/json")
async def greeting() -> dict[str, object]:
    return {"message": "Hello, World!", **who()}


@app.api_route("/echo", methods=["GET", "POST"])
async def echo(request: Request) -> dict[str, object]:
    return {
        "method": request.method,
        "path": request.url.path,
        "query": request.url.query,
        "headers": dict(request.headers),
        "body": (await request.body()).decode("utf-8", "replace"),
    }


@app.get("/sleep", response_class=PlainTextResponse)
async def sleep(ms: Annotated[int, Query(ge=0, le=60_000)] = 100) -> str:
    await asyncio.sleep(ms / 1000)
    return f"slept {ms} ms\n"


@app.get("/bytes")
async def some_bytes(n: Annotated[int, Query(ge=0, le=1024 * 1024)] = 1024) -> Response:
    return Response((ALPHABET * (n // 64 + 1))[:n], media_type="application/octet-stream")


@app.get("/stream")
async def stream(n: Annotated[int, Query(ge=0, le=100_000)] = 10) -> StreamingResponse:
    async def chunks() -> AsyncIterator[str]:
        for index in range(n):
            yield f"chunk {index}\n"

    return StreamingResponse(chunks(), media_type="text/plain")


@app.post("/upload")
async def upload(request: Request) -> dict[str, object]:
    length, digest = 0, hashlib.sha256()
    async for piece in request.stream():
        length += len(piece)
        digest.update(piece)
    return {"length": length, "sha256": digest.hexdigest()}


@app.post("/files")
def files(file: UploadFile) -> dict[str, object]:
    """A plain function: FastAPI calls it in a thread, so the digest of a large file does not delay other requests."""
    return {"name": file.filename, "length": file.size, "sha256": hashlib.file_digest(file.file, "sha256").hexdigest()}


@app.get("/greet/{name}")
async def greet(
    name: Annotated[str, Path(max_length=50)], times: Annotated[int, Query(ge=1, le=10)] = 1, loud: bool = False
) -> dict[str, list[str]]:
    text = f"Hello, {name}!"
    return {"greetings": [text.upper() if loud else text] * times}


@app.post("/notes", status_code=202)
async def keep(note: Note, request: Request, background: BackgroundTasks) -> Note:
    """The note is kept only after the response has been sent."""
    background.add_task(request.state.notes.append, note)
    return note


@app.get("/notes")
async def notes(request: Request, tag: str = "") -> list[Note]:
    return [note for note in request.state.notes if not tag or tag in note.tags]


@app.get("/events", response_class=EventSourceResponse)
async def events(
    n: Annotated[int, Query(ge=0, le=100_000)] = 5, pause: Annotated[int, Query(ge=0, le=60_000)] = 1000
) -> AsyncIterator[ServerSentEvent]:
    """`n` events, `pause` milliseconds apart. If the client disconnects, the wait is cancelled."""
    for index in range(n):
        yield ServerSentEvent(data={"index": index, **who()}, event="count", id=str(index))
        await asyncio.sleep(pause / 1000)
