"""The examples do what their READMEs describe: FastAPI, asynchronous Django, and the chat, each in its own directory."""

import hashlib
import json
import os
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import httpx
import pytest
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import connect

from harness import WAIT, Server, wait_for

EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.fixture
def fastapi(start: Callable[..., Server]) -> Iterator[httpx.Client]:
    pytest.importorskip("fastapi")
    server = start("app:app", chdir=EXAMPLES / "fastapi")
    with httpx.Client(base_url=server.url, timeout=WAIT, trust_env=False) as client:
        yield client


def test_fastapi_checks_types(fastapi: httpx.Client):
    """Parameters in path and query are converted and checked, and the schema lists the route."""
    assert fastapi.get("/greet/Ada", params={"times": 2, "loud": True}).json() == {"greetings": ["HELLO, ADA!"] * 2}
    wrong = fastapi.get("/greet/Ada", params={"times": 11})
    assert (wrong.status_code, wrong.json()["detail"][0]["loc"]) == (422, ["query", "times"])
    assert "/greet/{name}" in fastapi.get("/openapi.json").json()["paths"]


def test_fastapi_keeps_notes(fastapi: httpx.Client):
    """A model is received, kept by a background task in the state that the lifespan has made, and sent back."""
    note = {"text": "caf\u00e9 \u20ac", "tags": ["a"]}
    assert fastapi.get("/notes").json() == []
    for one in note, {"text": "another"}:
        assert fastapi.post("/notes", json=one).status_code == 202
    wait_for(lambda: len(fastapi.get("/notes").json()) == 2, "both notes")
    assert fastapi.get("/notes", params={"tag": "a"}).json() == [note]
    assert fastapi.post("/notes", json={"text": ""}).status_code == 422


def test_fastapi_sends_events(fastapi: httpx.Client):
    """Server-sent events arrive when they are made, not all together at the end."""
    pause = 0.2
    times, indexes = [], []
    with fastapi.stream("GET", "/events", params={"n": 3, "pause": int(pause * 1000)}) as response:
        assert response.headers["content-type"].startswith("text/event-stream")
        for line in response.iter_lines():
            if line.startswith("data: "):
                times.append(time.monotonic())
                indexes.append(json.loads(line.removeprefix("data: "))["index"])
    assert indexes == [0, 1, 2]
    assert times[2] - times[0] > pause


@pytest.mark.parametrize("size", [0, 1000, 3_000_000])
def test_fastapi_accepts_files(fastapi: httpx.Client, size: int):
    """Files of any size are accepted, in a form or as the body itself."""
    content = os.urandom(size)
    expected = {"length": size, "sha256": hashlib.sha256(content).hexdigest()}
    assert fastapi.post("/files", files={"file": ("name.bin", content)}).json() == {"name": "name.bin", **expected}
    assert fastapi.post("/upload", content=content).json() == expected


def test_django_waits_in_many_views_at_once(start: Callable[..., Server]):
    """Thirty asynchronous views wait at the same time in one worker, while a plain view responds."""
    pytest.importorskip("django")
    server = start("greeter.asgi:application", chdir=EXAMPLES / "django-asgi")
    with httpx.Client(base_url=server.url, timeout=WAIT, trust_env=False) as client, ThreadPoolExecutor(30) as pool:
        assert "asynchronous" in client.get("/").text
        begin = time.monotonic()
        slow = [pool.submit(client.get, "/sleep?ms=1000") for _ in range(30)]
        assert len(client.get("/bytes?n=100").content) == 100
        assert {one.result().text for one in slow} == {"slept 1000 ms\n"}
        assert time.monotonic() - begin < 15  # one after another: 30
        assert client.get("/stream?n=3").text == "chunk 0\nchunk 1\nchunk 2\n"
        assert client.get("/sleep?ms=x").status_code == 400


class Guest:
    """A client of the chat."""

    def __init__(self, stack: ExitStack, server: Server, room: str, name: str) -> None:
        address = f"ws://127.0.0.1:{server.port}/chat?" + urlencode({"room": room, "name": name})
        self.welcome: Any = None
        self.socket = stack.enter_context(connect(address, proxy=None, open_timeout=WAIT))

    def receives(self, kind: str) -> Any:
        """The next message, which must be of this type."""
        news = json.loads(self.socket.recv(WAIT))
        assert news.pop("type") == kind, news
        return news


@pytest.fixture
def chat(start: Callable[..., Server]) -> Iterator[Any]:
    """`chat(room, name)`: a client that has joined the room."""
    server = start("chat:app", chdir=EXAMPLES / "chat")
    with ExitStack() as stack:

        def chat(room, name):
            guest = Guest(stack, server, room, name)
            guest.welcome = guest.receives("welcome")
            return guest

        chat.guest = lambda room, name: Guest(stack, server, room, name)  # type: ignore[attr-defined]
        chat.server = server  # type: ignore[attr-defined]
        yield chat


def test_a_message_stays_in_its_room(chat):
    """All clients of a room receive its messages in order, no other client does, and one that joins later gets the history."""
    ada, bob, eve = chat("one", "Ada"), chat("one", "Bob"), chat("two", "Eve")
    assert ada.receives("joined") == {"name": "Bob"}
    for text in "first", "caf\u00e9 \N{DECIDUOUS TREE}":
        ada.socket.send(text)
    received = [[guest.receives("said") for _ in range(2)] for guest in (ada, bob)]
    assert received[0] == received[1]
    assert [(news["name"], news["text"]) for news in received[0]] == [("Ada", "first"), ("Ada", "caf\u00e9 \N{DECIDUOUS TREE}")]
    late = chat("one", "Zoe")
    assert [news["text"] for news in late.welcome["history"]] == ["first", "caf\u00e9 \N{DECIDUOUS TREE}"]
    assert late.welcome["people"] == ["Ada", "Bob", "Zoe"]
    assert json.loads(chat.server.get("/rooms").body) == {"one": 3, "two": 1}
    eve.socket.send("mine")
    assert eve.receives("said")["text"] == "mine"


def test_a_name_is_unique_in_its_room(chat):
    """A client whose name is taken gets a number; the name is free again when its owner leaves."""
    first, second = chat("room", "Ada"), chat("room", " Ada ")
    assert [first.welcome["you"], second.welcome["you"]] == ["Ada", "Ada 2"]
    first.socket.close()
    assert second.receives("left") == {"name": "Ada"}
    assert chat("room", "Ada").welcome["you"] == "Ada"


@pytest.mark.parametrize(("room", "name"), [("", "Ada"), ("room", ""), ("room", "A" * 41), ("r\u202e", "Ada"), ("r", "a\0b")])
def test_bad_names_are_refused(chat, room: str, name: str):
    """An empty name, a very long one, or one with unprintable characters closes with 1008 and the reason."""
    with pytest.raises(ConnectionClosed) as closed:
        chat.guest(room, name).receives("welcome")
    assert closed.value.rcvd.code == 1008
    assert "40 printable characters" in closed.value.rcvd.reason


def test_bad_messages_are_refused(chat):
    """An empty message, a long one, or bytes are not published; their sender is notified and stays connected."""
    ada, bob = chat("room", "Ada"), chat("room", "Bob")
    ada.receives("joined")
    for message in "", " \n", "x" * 2001, b"bytes":
        ada.socket.send(message)
        assert "2000" in ada.receives("refused")["why"]
    ada.socket.send("x" * 2000)
    assert ada.receives("said") == bob.receives("said")


def test_other_paths(chat):
    """There are only the page and the list of rooms; other methods, and a WebSocket elsewhere, are refused."""
    assert [chat.server.get(path).status for path in ("/", "/rooms", "/nothing")] == [200, 200, 404]
    with chat.server.connect() as client:
        assert client.post("/", b"x").status == 405
    with pytest.raises(Exception, match="403"), connect(f"ws://127.0.0.1:{chat.server.port}/other", proxy=None):
        pass
