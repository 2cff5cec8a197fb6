"""A FastAPI application: dependencies that clean up, models, uploads, background tasks, threads, errors."""

import os
from typing import Annotated, Any

from fastapi import BackgroundTasks, Depends, FastAPI, Form, HTTPException, Request, UploadFile
from fastapi.responses import StreamingResponse
from pydantic import BaseModel

app = FastAPI()


def write(log, text):
    fd = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    os.write(fd, text.encode() + b"\n")
    os.close(fd)


class Item(BaseModel):
    name: str
    price: float = 1.0


async def session(log: str):
    """A dependency as for a database: opened before the view, closed after it, however it ends."""
    write(log, "open")
    try:
        yield lambda text: write(log, text)
    except ValueError:
        write(log, "rolled back")
        raise
    finally:
        write(log, "closed")


def threaded(log: str):
    """The same in a thread."""
    write(log, "thread open")
    yield
    write(log, "thread closed")


Session = Annotated[Any, Depends(session)]


@app.get("/")
def index():
    return {"hello": "FastAPI"}


@app.post("/items")
async def items(item: Item) -> Item:
    return item


@app.get("/session")
async def with_session(session: Session, _: Annotated[None, Depends(threaded)]):
    session("in the view")
    return {"done": True}


@app.get("/failing")
async def failing(session: Session):
    raise ValueError("in the view")


@app.get("/refusing")
async def refusing(session: Session):
    raise HTTPException(403, "not you")


@app.get("/stream")
async def streaming(session: Session):
    async def pieces():
        for number in range(3):
            session(str(number))
            yield f"{number}\n"

    return StreamingResponse(pieces())


@app.get("/background")
async def background(log: str, tasks: BackgroundTasks):
    tasks.add_task(write, log, "first")
    tasks.add_task(write, log, "second")
    return {"done": True}


@app.post("/files")
async def files(files: list[UploadFile], word: Annotated[str, Form()]):
    return {"sizes": [len(await file.read()) for file in files], "word": word}


@app.get("/client")
async def client(request: Request):
    return {"host": request.client.host, "url": str(request.url)}
