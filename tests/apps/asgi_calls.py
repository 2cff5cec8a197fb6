"""An ASGI application that does whatever a test wants, right or wrong: the steps of `/play` come from the test, one by one."""

import asyncio
import contextvars
import json
import threading
from typing import Any

from apps.asgi_routes import ROUTES as TWINS
from apps.asgi_routes import TEXT, Call, hello

ROUTES: dict[str, Any] = {}
mark = contextvars.ContextVar("mark", default="clean")
shared: dict[str, Any] = {"turns": []}


def route(function):
    ROUTES["/" + function.__name__] = function
    return function


async def app(scope, receive, send):
    """`/name?key=value` calls the function `name` of this module or of `asgi_routes`."""
    if scope["type"] == "lifespan":
        await lifespan(scope["state"], receive, send)
        return
    name = "/" + scope["path"].split("/")[1]
    await (ROUTES.get(name) or TWINS.get(name, hello))(Call(scope, receive, send))


async def lifespan(state, receive, send):
    state["word"] = "of the lifespan"
    state["list"] = []
    while True:
        message = await receive()
        await send({"type": message["type"] + ".complete"})
        if message["type"] == "lifespan.shutdown":
            return


def as_message(step):
    """A message in JSON as the specification defines it, with bytes where they belong."""
    message = dict(step)
    if isinstance(message.get("body"), str) and not message.pop("text", False):
        message["body"] = message["body"].encode("latin-1")
    for name in "headers", "trailers":
        if isinstance(message.get(name), list):
            message[name] = [[one.encode("latin-1") for one in pair] for pair in message[name]]
    if message.pop("iterator", False):
        message["headers"] = iter(message["headers"])
    if "links" in message:
        message["links"] = [link.encode("latin-1") for link in message["links"]]
    return message


@route
async def play(call):
    """Takes the steps of `script`: each is a message to send, or a word; the outcome of each goes to the test's notes.

    `receive`; `yield`: let other tasks run; `gate`: wait for the test; `raise`: an exception that is not caught here.
    """
    outcomes: list[object] = []
    step = None
    try:
        for step in json.loads(call.query["script"]):
            try:
                if step == "receive":
                    outcomes.append({name: str(value) for name, value in (await call.receive()).items()})
                elif step == "yield":
                    await asyncio.sleep(0)
                elif step == "gate":
                    await call.gate()
                elif step == "raise":
                    break
                else:
                    await call.send(as_message(step))
                    outcomes.append("sent")
            except Exception as error:
                outcomes.append(type(error).__name__)
    finally:
        call.note(json.dumps(outcomes))
    if step == "raise":
        errors = (RuntimeError, SystemExit, KeyboardInterrupt, BaseException, asyncio.CancelledError, StopAsyncIteration)
        raise {error.__name__: error for error in errors}[call.query["error"]]("on purpose")


@route
async def scope(call):
    """Answers with the scope."""
    await call.answer(repr(call.scope).encode())


@route
async def vandal(call):
    """Answers with the scope, then changes everything in it."""
    await scope(call)
    for value in call.scope.values():
        if isinstance(value, list):
            value.append((b"x-vandal", b"1"))
        elif isinstance(value, dict):
            value["vandal"] = True
    call.scope["path"] = "/vandal"
    call.scope["state"] = None


@route
async def echo(call):
    """Sends each piece of the body as soon as it is there."""
    await call.start(TEXT)  # which is sent with the first piece
    more = True
    while more:
        message = await call.receive()
        if message["type"] == "http.disconnect":
            call.note("http.disconnect")
            return
        more = message["more_body"]
        if message["body"]:
            await call.give(message["body"], True)
    await call.give(b"")


@route
async def late_reader(call):
    """Waits for the test, then counts the body."""
    await call.gate()
    await call.answer(str(len(await call.body())).encode())


@route
async def readers(call):
    """Two tasks receive at once; the answer has the first message of each, in alphabetical order."""
    found = await asyncio.gather(*(task_of(call) for _ in range(2)))
    await call.answer(json.dumps(sorted(found)).encode())


async def task_of(call):
    message = await call.receive()
    return message["type"] + " " + message.get("body", b"").decode()


@route
async def impatient(call):
    """Cancels `receive` again and again, and counts the body all the same."""
    count = 0
    more = True
    while more:
        try:
            message = await asyncio.wait_for(call.receive(), 0.0005)
        except TimeoutError:
            continue
        count += len(message["body"])
        more = message["more_body"]
    await call.answer(str(count).encode())


@route
async def listen(call):
    """Waits for the client to leave; with `begun`, in the middle of its response."""
    await call.receive()
    if "begun" in call.query:
        await call.start(TEXT)
        await call.give(b"begun", True)
    call.note("listening")
    message = await call.receive()
    call.note(message["type"])
    if "send" in call.query:
        for _ in range(100):
            try:
                if "begun" in call.query:
                    await call.give(b"to whom", True)
                else:
                    await call.answer(b"to whom")
                    break
            except Exception as error:
                call.note(f"{type(error).__name__} {isinstance(error, OSError)}")
                raise
            await asyncio.sleep(0.01)
        call.note("sent")


@route
async def paced(call):
    """Sends pieces of 64 KiB from as many tasks as requested, and notes each once `send` has returned."""
    await call.start(TEXT)

    async def give(count):
        for _ in range(count):
            await call.give(b"x" * 65536, True)
            call.note("sent")

    tasks = int(call.query.get("tasks", 1))
    await asyncio.gather(*(give(int(call.query["n"]) // tasks) for _ in range(tasks)))
    await call.give(b"")


@route
async def kinds(call):
    """Sends a body of every type that holds bytes, and a message without a body."""
    await call.start(TEXT)
    for body in bytearray(b"one "), memoryview(b"two "), b"three":
        await call.give(body, True)
    await call.send({"type": "http.response.body"})


@route
async def zerocopy(call):
    """`script` is a list of [offset, count], None where not given, or of text that is sent between them."""
    await call.start(TEXT, *([(b"content-length", call.query["length"].encode())] if "length" in call.query else []))
    with open(call.query["path"], "rb", buffering=0) as file:
        for step in json.loads(call.query["script"]):
            if isinstance(step, str):
                await call.give(step.encode(), True)
            else:
                given = {name: value for name, value in zip(("offset", "count"), step, strict=True) if value is not None}
                message = {"type": "http.response.zerocopysend", "file": file.fileno() if "fd" in call.query else file}
                await call.send({**message, **given, "more_body": True})
    await call.give(b"")


@route
async def context(call):
    """Answers with the variable as it was found, here and in a task of this request, and sets it for the next request."""
    found = mark.get()
    mark.set("dirty")
    if "late" in call.query:
        await asyncio.sleep(0.001)
    inner = await asyncio.create_task(value())
    await call.answer(f"{found} {inner} {asyncio.current_task() is shared.get('task')}".encode())
    shared["task"] = asyncio.current_task()


async def value():
    return mark.get()


@route
async def turn(call):
    """Notes its first step, and a callback of asyncio's next turn: the answer has their order."""
    turns = shared["turns"]
    turns.append("step")
    asyncio.get_running_loop().call_soon(turns.append, "soon")
    await call.answer(" ".join(turns).encode())


@route
async def events(call):
    """Sends one server-sent event, and never ends; notes the messages that it receives."""
    await call.start((b"content-type", b"text/event-stream"))
    await call.give(b"data: one\n\n", True)
    try:
        if "deaf" in call.query:
            await asyncio.sleep(3600)
        call.note((await call.receive())["type"])
        call.note((await call.receive())["type"])
    except asyncio.CancelledError:
        call.note("cancelled")
        raise


@route
async def sleep(call):
    """Sleeps for ever, and notes how it ended."""
    call.note("asleep")
    try:
        await asyncio.sleep(3600)
    finally:
        call.note("woken")


@route
async def after(call):
    """Continues after its response."""
    await call.answer(b"done")
    await asyncio.sleep(float(call.query["seconds"]))
    call.note("after")


@route
async def block(call):
    """Blocks the loop."""
    threading.Event().wait(float(call.query["seconds"]))
    await call.answer(b"done")
