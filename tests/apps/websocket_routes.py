"""WebSocket applications by path, in raw ASGI: no framework stands between the server and a test."""

import asyncio
import json
import os
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]

ends: dict[str, Any] = {}  # how each WebSocket ended, by a name that its client chose


async def app(scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
    """The WebSocket, or the HTTP response, of the path."""
    if scope["type"] == "websocket":
        await WEBSOCKETS[scope["path"]](scope, receive, send)
    elif scope["type"] == "http":
        await http(scope, receive, send)
    else:
        while True:
            message = await receive()
            await send({"type": f"{message['type']}.complete"})
            if message["type"] == "lifespan.shutdown":
                return


async def http(scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
    """`/ends/NAME` reports how that WebSocket ended, as JSON; every other path says hello."""
    name = scope["path"].removeprefix("/ends/")
    body = json.dumps(ends.get(name)).encode() if name != scope["path"] else b"Hello, world!"
    length = str(len(body)).encode()
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", length)]})
    await send({"type": "http.response.body", "body": body})


async def accept(receive: Receive, send: Send, **more: Any) -> None:
    message = await receive()
    assert message == {"type": "websocket.connect"}, message
    await send({"type": "websocket.accept", **more})


def note(scope: MutableMapping[str, Any], message: Any) -> None:
    """Notes what the client, named in the query, can request at /ends/NAME."""
    ends[scope["query_string"].decode()] = message


async def echo(scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
    await accept(receive, send)
    while (message := await receive())["type"] == "websocket.receive":
        text = message.get("text")
        if text is not None:
            await send({"type": "websocket.send", "text": text})
        else:
            await send({"type": "websocket.send", "bytes": message["bytes"]})
    note(scope, message)


async def describe(scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
    """Sends its scope, then the process that serves."""
    await accept(receive, send)
    found = json.dumps({**scope, "state": None}, default=lambda data: data.decode("latin-1"))
    await send({"type": "websocket.send", "text": found})
    await send({"type": "websocket.send", "text": str(os.getpid())})
    await receive()


async def choose(scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
    """Takes the last subprotocol that is offered, or the one in the query, and adds headers."""
    wanted = scope["query_string"].decode() or (scope["subprotocols"][-1] if scope["subprotocols"] else None)
    headers = [(b"X-Route", b"choose"), (b"Set-Cookie", b"a=1"), (b"Set-Cookie", b"b=2"), (b"Upgrade", b"nonsense")]
    await accept(receive, send, subprotocol=wanted, headers=headers)
    note(scope, await receive())


async def bad_header(scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
    await accept(receive, send, headers=[(b"X-Split", b"a\r\nX-Evil: b")])


async def refuse(scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
    await receive()
    await send({"type": "websocket.close", "code": 4000})
    note(scope, await receive())


async def deny(scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
    await receive()
    assert "websocket.http.response" in scope["extensions"]
    headers = [(b"content-length", b"11"), (b"www-authenticate", b"Bearer")]
    await send({"type": "websocket.http.response.start", "status": 401, "headers": headers})
    await send({"type": "websocket.http.response.body", "body": b"who are you"})
    note(scope, await receive())


async def deny_streamed(scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
    """Sends a denial in pieces, more than a client that does not read can be sent."""
    await receive()
    await send({"type": "websocket.http.response.start", "status": 503, "headers": [(b"retry-after", b"5")]})
    for _ in range(64):
        await send({"type": "websocket.http.response.body", "body": b"x" * 65536, "more_body": True})
        await asyncio.sleep(0)
    await send({"type": "websocket.http.response.body", "body": b"end"})


async def deny_listening(scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
    """Sends a denial without end, until `receive` reports that the client has left."""
    await receive()
    leaving = asyncio.ensure_future(receive())
    await send({"type": "websocket.http.response.start", "status": 401, "headers": []})
    while not leaving.done():
        await send({"type": "websocket.http.response.body", "body": b"no ", "more_body": True})
        await asyncio.wait([leaving], timeout=0.05)
    note(scope, leaving.result())


async def deny_and_close(scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
    """Sends other messages in the middle of a denial, which has their outcome."""
    await receive()
    outcomes = []
    await send({"type": "websocket.http.response.start", "status": 401, "headers": []})
    for body in b"one ", b"two ":
        try:
            await send({"type": "websocket.close"})
        except RuntimeError:
            outcomes.append("RuntimeError")
        await send({"type": "websocket.http.response.body", "body": body, "more_body": True})
    await send({"type": "websocket.http.response.body", "body": " ".join(outcomes).encode()})


async def deny_and_raise(scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
    await receive()
    await send({"type": "websocket.http.response.start", "status": 401, "headers": []})
    await send({"type": "websocket.http.response.body", "body": b"begun", "more_body": True})
    raise RuntimeError("within a denial")


async def deny_half(scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
    """Begins a denial, and never ends it."""
    await receive()
    await send({"type": "websocket.http.response.start", "status": 401, "headers": []})


async def raise_before(scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
    await receive()
    raise RuntimeError("before accept")


async def raise_after(scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
    await accept(receive, send)
    await receive()
    raise RuntimeError("after accept")


async def return_before(scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
    await receive()


async def return_after(scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
    await accept(receive, send)
    await send({"type": "websocket.send", "text": "that is all"})


async def close(scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
    """Closes with the code and reason of the client's first message, as JSON."""
    await accept(receive, send)
    message = await receive()
    code, reason = json.loads(message["text"])
    await send({"type": "websocket.close", "code": code, "reason": reason})
    note(scope, await receive())


async def send_after_close(scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
    """Notes the exception that `send` raises after either side has closed."""
    await accept(receive, send)
    while (await receive())["type"] != "websocket.disconnect":
        pass
    try:
        await send({"type": "websocket.send", "text": "too late"})
    except Exception as error:
        note(scope, [type(error).__name__, isinstance(error, OSError)])


async def mistakes(scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
    """Sends wrong messages, and sends the client the exceptions that they raise."""
    raised = []

    async def attempt(message: Message) -> None:
        try:
            await send(message)
        except Exception as error:
            raised.append(type(error).__name__)
        else:
            raised.append("nothing")

    await receive()
    await attempt({"type": "websocket.send", "text": "before accept"})
    await attempt({"type": "websocket.accept", "subprotocol": "not offered"})
    await attempt({"type": "http.response.start", "status": 200})
    await send({"type": "websocket.accept"})
    await attempt({"type": "websocket.accept"})
    await attempt({"type": "websocket.send"})
    await attempt({"type": "websocket.send", "bytes": "text"})
    await attempt({"type": "websocket.close", "code": 1006})
    await attempt({"type": "websocket.close", "code": 99999})
    await attempt({"type": "websocket.http.response.start", "status": 401, "headers": []})
    await attempt({"type": "websocket.send", "text": None, "bytes": bytearray(b"fine")})
    await send({"type": "websocket.send", "text": json.dumps(raised)})
    await receive()


async def deaf(scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
    """Receives nothing before the first request for /ends/ears; then counts the bytes that it receives."""
    await accept(receive, send)
    await open_ears.wait()
    count = 0
    while (message := await receive())["type"] == "websocket.receive":
        count += len(message.get("bytes") or message["text"])
        if message.get("text") == "count":
            await send({"type": "websocket.send", "text": str(count)})
    note(scope, count)


async def ears(scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
    """Lets /deaf receive."""
    await accept(receive, send)
    open_ears.set()
    await send({"type": "websocket.close"})


async def flood(scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
    """Sends 64 MiB, and notes how much of it was taken."""
    await accept(receive, send)
    piece = b"x" * 65536
    try:
        for count in range(1024):
            note(scope, count)
            await send({"type": "websocket.send", "bytes": piece})
    except OSError:
        note(scope, "the client left")
        return
    note(scope, "all")
    await receive()


async def crowd(scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
    """Eight tasks receive and send at once, each with its name, until one receives the word to stop."""
    await accept(receive, send)

    async def work(name: int) -> None:
        while (message := await receive())["type"] == "websocket.receive":
            await send({"type": "websocket.send", "text": f"{name} {message['text']}"})

    async with asyncio.TaskGroup() as group:
        for name in range(8):
            group.create_task(work(name))
    note(scope, "all tasks ended")


async def choir(scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
    """Eight tasks send 64 messages of 64 KiB each at once, followed by a last word."""
    await accept(receive, send)

    async def sing(name: int) -> None:
        for _ in range(64):
            await send({"type": "websocket.send", "bytes": bytes([name]) * 65536})

    async with asyncio.TaskGroup() as group:
        for name in range(8):
            group.create_task(sing(name))
    await send({"type": "websocket.send", "text": "amen"})
    note(scope, await receive())


async def deserted(scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
    """Three tasks receive; the first to wait is cancelled. The others echo with their names."""
    await accept(receive, send)

    async def work(name: int) -> None:
        while (message := await receive())["type"] == "websocket.receive":
            await send({"type": "websocket.send", "text": f"{name} {message['text']}"})

    tasks = [asyncio.create_task(work(name)) for name in range(3)]
    await asyncio.sleep(0)
    tasks[0].cancel()
    results = await asyncio.gather(*tasks, return_exceptions=True)
    note(scope, [type(result).__name__ for result in results])


async def impatient(scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
    """Cancels `receive` again and again, a moment after it has begun, and echoes what it receives."""
    await accept(receive, send)
    for turn in range(10**6):
        try:
            message = await asyncio.wait_for(receive(), 0.0005 * (turn % 3))
        except TimeoutError:
            continue
        if message["type"] == "websocket.disconnect":
            return
        await send({"type": "websocket.send", "text": message["text"]})


async def stubborn(scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
    """Works on after its client has been dismissed."""
    await accept(receive, send)
    try:
        await asyncio.sleep(3600)
    except asyncio.CancelledError:
        note(scope, "cancelled")
        raise


async def slow_accept(scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
    """Accepts a moment after the handshake."""
    await receive()
    await asyncio.sleep(0.05)
    await send({"type": "websocket.accept"})
    message = await receive()
    note(scope, message)
    if message["type"] == "websocket.receive":
        await send({"type": "websocket.send", "text": message["text"]})


async def never_accept(scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
    """Waits for the client to leave."""
    await receive()
    note(scope, await receive())


open_ears = asyncio.Event()

WEBSOCKETS = {
    "/" + function.__name__.replace("_", "-"): function
    for function in (
        *(echo, describe, choose, bad_header, refuse, deny, deny_streamed, deny_half, raise_before, raise_after),
        *(return_before, return_after, close, send_after_close, mistakes, deaf, ears, flood, crowd, choir, deserted),
        *(impatient, stubborn, slow_accept, never_accept, deny_listening, deny_and_close, deny_and_raise),
    )
}
