"""A WebSocket chat as a plain ASGI application: nothing to install. It needs nothing of the server that serves it.

    GET  /                            the page
    GET  /rooms                       the number of people in each room, as JSON
    WS   /chat?room=ROOM&name=NAME    a client is in the room as long as it is connected

A client sends text messages, which are posted as they are. It receives JSON:

    {"type": "welcome", "you": ..., "people": [...], "history": [...]}    first; `you` is NAME, with a number if it is taken
    {"type": "said", "id": ..., "name": ..., "text": ..., "time": ...}    by anyone, also itself; seconds since 1970
    {"type": "joined", "name": ...}, {"type": "left", "name": ...}        another client
    {"type": "refused", "why": ...}                                       its message was too long or empty

The connection is closed with 1008 if the client cannot join (the reason explains why), with 1013 if it reads too slowly.
"""

import asyncio
import json
import re
import time
from base64 import b64encode
from collections import deque
from collections.abc import Awaitable, Callable, MutableMapping
from hashlib import sha256
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs
from uuid import uuid4

Event = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Event]]
Send = Callable[[Event], Awaitable[None]]

MAX_NAME = 40  # characters, of people and of rooms
MAX_TEXT = 2000  # characters of one message
MAX_PEOPLE = 500  # in a room
MAX_ROOMS = 100
HISTORY = 50  # messages of a room that are kept for clients that join later
MAX_OUTBOX = 500  # messages that may wait for a client that reads slowly
PAUSE = 0.02  # seconds between two messages of a client: back-pressure slows down a client that floods

PAGE = Path(__file__).with_name("page.html").read_text("utf-8")


def _digest(tag: str) -> str:
    """The source expression that allows the content of this tag of the page (Content Security Policy 3, section 2.3.1)."""
    [content] = re.findall(f"<{tag}>(.*?)</{tag}>", PAGE, re.DOTALL)
    return f"'sha256-{b64encode(sha256(content.encode()).digest()).decode()}'"


POLICY = (
    f"default-src 'none'; script-src {_digest('script')}; style-src {_digest('style')}; connect-src 'self'; img-src data:; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)


class Guest:
    """A client in a room, and the messages that are still to be sent to it."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.outbox: asyncio.Queue[str] = asyncio.Queue(MAX_OUTBOX)
        self.too_slow = False

    def enqueue(self, text: str) -> None:
        try:
            self.outbox.put_nowait(text)
        except asyncio.QueueFull:
            self.too_slow = True

    async def write(self, send: Send) -> None:
        """Send the messages as long as the client keeps up."""
        while not self.too_slow:
            await send({"type": "websocket.send", "text": await self.outbox.get()})
        await send({"type": "websocket.close", "code": 1013, "reason": "You read too slowly."})


class Room:
    """The clients that are present, and the latest messages."""

    def __init__(self) -> None:
        self.guests: dict[str, Guest] = {}
        self.history: deque[Event] = deque(maxlen=HISTORY)

    def enter(self, name: str) -> Guest:
        wanted, count = name, 1
        while name in self.guests:
            count += 1
            name = f"{wanted} {count}"
        self.publish({"type": "joined", "name": name})
        guest = self.guests[name] = Guest(name)
        welcome = {"type": "welcome", "you": name, "people": list(self.guests), "history": list(self.history)}
        guest.enqueue(json.dumps(welcome, ensure_ascii=False))
        return guest

    def leave(self, guest: Guest) -> None:
        del self.guests[guest.name]
        self.publish({"type": "left", "name": guest.name})

    def post(self, guest: Guest, text: str) -> None:
        news = {"type": "said", "id": uuid4().hex, "name": guest.name, "text": text, "time": round(time.time(), 3)}
        self.history.append(news)
        self.publish(news)

    def publish(self, news: Event) -> None:
        """Send to all clients in the room. They share one string, so that many slow ones do not take much memory."""
        text = json.dumps(news, ensure_ascii=False)
        for guest in self.guests.values():
            guest.enqueue(text)


ROOMS: dict[str, Room] = {}


def find_room(name: str) -> Room | None:
    """The room of this name, made if necessary. An empty room is dropped to make space; None if all are in use."""
    if name not in ROOMS and len(ROOMS) >= MAX_ROOMS:
        empty = next((other for other, room in ROOMS.items() if not room.guests), None)
        if empty is None:
            return None
        del ROOMS[empty]
    return ROOMS.setdefault(name, Room())


async def chat(scope: Event, receive: Receive, send: Send) -> None:
    """One client, from joining to leaving."""
    await receive()  # websocket.connect
    await send({"type": "websocket.accept"})
    query = parse_qs(scope["query_string"].decode("latin-1"))
    name, room_name = (" ".join(query.get(key, [""])[0].split()) for key in ("name", "room"))
    refusal = ""
    if not all(0 < len(one) <= MAX_NAME and one.isprintable() for one in (name, room_name)):
        refusal = f"A name and a room have 1 to {MAX_NAME} printable characters."
    elif (room := find_room(room_name)) is None or len(room.guests) >= MAX_PEOPLE:
        refusal = "This room is full."
    if refusal:
        await send({"type": "websocket.close", "code": 1008, "reason": refusal})
        return
    assert room
    guest = room.enter(name)
    try:
        async with asyncio.TaskGroup() as group:
            writer = group.create_task(guest.write(send))
            while (event := await receive())["type"] == "websocket.receive":
                text = (event.get("text") or "").strip()
                if 0 < len(text) <= MAX_TEXT:
                    room.post(guest, text)
                else:
                    guest.enqueue(json.dumps({"type": "refused", "why": f"A message has 1 to {MAX_TEXT} characters."}))
                await asyncio.sleep(PAUSE)
            writer.cancel()
    finally:
        room.leave(guest)


async def http(scope: Event, send: Send) -> None:
    """The page and the list of rooms."""
    status, kind, more = 200, "text/plain; charset=utf-8", []
    if scope["method"] not in ("GET", "HEAD"):
        status, text, more = 405, "Only GET and HEAD here.\n", [(b"allow", b"GET, HEAD")]
    elif scope["path"] == "/":
        kind, text, more = "text/html; charset=utf-8", PAGE, [(b"content-security-policy", POLICY.encode())]
    elif scope["path"] == "/rooms":
        kind, text = "application/json", json.dumps({name: len(room.guests) for name, room in ROOMS.items() if room.guests})
    else:
        status, text = 404, "There is no such page.\n"
    body = text.encode()
    headers = [(b"content-type", kind.encode()), (b"content-length", b"%d" % len(body)), (b"cache-control", b"no-store"), *more]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


async def lifespan(receive: Receive, send: Send) -> None:
    """There is nothing to start or stop; the server learns this here and need not find out by an error."""
    while (await receive())["type"] == "lifespan.startup":
        await send({"type": "lifespan.startup.complete"})
    await send({"type": "lifespan.shutdown.complete"})


async def app(scope: Event, receive: Receive, send: Send) -> None:
    """The ASGI application (ASGI 3.0)."""
    if scope["type"] == "http":
        await http(scope, send)
    elif scope["type"] == "lifespan":
        await lifespan(receive, send)
    elif scope["path"] == "/chat":
        try:
            await chat(scope, receive, send)
        except* OSError:  # from `send`: the client has gone
            pass
    else:
        await receive()
        await send({"type": "websocket.close"})  # before it was accepted: 403
