"""The examples as their READMEs say that they are: FastAPI, asynchronous Django, and the chat, each from its own directory."""

import hashlib
import json
import os
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import httpx
import pytest
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import connect

from harness import WAIT, wait_for

EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.fixture
def fastapi(start):
    pytest.importorskip("fastapi")
    server = start("app:app", chdir=EXAMPLES / "fastapi")
    with httpx.Client(base_url=server.url, timeout=WAIT, trust_env=False) as client:
        yield client


def test_fastapi_judges_types(fastapi):
    """Parameters of path and query are converted and checked; the schema tells of them."""
    assert fastapi.get("/greet/Ada", params={"times": 2, "loud": True}).json() == {"greetings": ["HELLO, ADA!"] * 2}
    wrong = fastapi.get("/greet/Ada", params={"times": 11})
    assert (wrong.status_code, wrong.json()["detail"][0]["loc"]) == (422, ["query", "times"])
    assert "/greet/{name}" in fastapi.get("/openapi.json").json()["paths"]


def test_fastapi_keeps_notes(fastapi):
    """A model there and back, kept by a background task in the state that the lifespan has made."""
    note = {"text": "caf\u00e9 \u20ac", "tags": ["a"]}
    assert fastapi.get("/notes").json() == []
    for one in note, {"text": "another"}:
        assert fastapi.post("/notes", json=one).status_code == 202
    wait_for(lambda: len(fastapi.get("/notes").json()) == 2, "both notes")
    assert fastapi.get("/notes", params={"tag": "a"}).json() == [note]
    assert fastapi.post("/notes", json={"text": ""}).status_code == 422


def test_fastapi_sends_events(fastapi):
    """Server-sent events arrive when they are made, not when the last one is."""
    pause = 0.2
    arrived, told = [], []
    with fastapi.stream("GET", "/events", params={"n": 3, "pause": int(pause * 1000)}) as answer:
        assert answer.headers["content-type"].startswith("text/event-stream")
        for line in answer.iter_lines():
            if line.startswith("data: "):
                arrived.append(time.monotonic())
                told.append(json.loads(line.removeprefix("data: "))["index"])
    assert told == [0, 1, 2]
    assert arrived[2] - arrived[0] > pause


@pytest.mark.parametrize("size", [0, 1000, 3_000_000])
def test_fastapi_takes_files(fastapi, size):
    """In a form or as the body itself, of any size."""
    content = os.urandom(size)
    right = {"length": size, "sha256": hashlib.sha256(content).hexdigest()}
    assert fastapi.post("/files", files={"file": ("name.bin", content)}).json() == {"name": "name.bin", **right}
    assert fastapi.post("/upload", content=content).json() == right


def test_django_waits_for_many_at_once(start):
    """Thirty asynchronous views wait at once in one worker, and a plain one answers meanwhile."""
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
    """Somebody in the chat."""

    def __init__(self, stack, server, room, name):
        address = f"ws://127.0.0.1:{server.port}/chat?" + urlencode({"room": room, "name": name})
        self.welcome: Any = None
        self.socket = stack.enter_context(connect(address, proxy=None, open_timeout=WAIT))

    def hears(self, kind):
        """The next news; it must be of this kind."""
        news = json.loads(self.socket.recv(WAIT))
        assert news.pop("type") == kind, news
        return news


@pytest.fixture
def chat(start):
    """`chat(room, name)`: a guest who has been welcomed."""
    server = start("chat:app", chdir=EXAMPLES / "chat")
    with ExitStack() as stack:

        def chat(room, name):
            guest = Guest(stack, server, room, name)
            guest.welcome = guest.hears("welcome")
            return guest

        chat.guest = lambda room, name: Guest(stack, server, room, name)  # type: ignore[attr-defined]
        chat.server = server  # type: ignore[attr-defined]
        yield chat


def test_rooms_have_walls(chat):
    """What is said in one room is heard there by all, in order, and nowhere else; who comes later finds it in the history."""
    ada, bob, eve = chat("one", "Ada"), chat("one", "Bob"), chat("two", "Eve")
    assert ada.hears("joined") == {"name": "Bob"}
    for text in "first", "caf\u00e9 \N{DECIDUOUS TREE}":
        ada.socket.send(text)
    heard = [[guest.hears("said") for _ in range(2)] for guest in (ada, bob)]
    assert heard[0] == heard[1]
    assert [(news["name"], news["text"]) for news in heard[0]] == [("Ada", "first"), ("Ada", "caf\u00e9 \N{DECIDUOUS TREE}")]
    late = chat("one", "Zoe")
    assert [news["text"] for news in late.welcome["history"]] == ["first", "caf\u00e9 \N{DECIDUOUS TREE}"]
    assert late.welcome["people"] == ["Ada", "Bob", "Zoe"]
    assert json.loads(chat.server.get("/rooms").body) == {"one": 3, "two": 1}
    eve.socket.send("mine")
    assert eve.hears("said")["text"] == "mine"


def test_a_name_is_one_persons(chat):
    """Who takes a name that is taken gets a number; the name is free again when its owner leaves."""
    first, second = chat("room", "Ada"), chat("room", " Ada ")
    assert [first.welcome["you"], second.welcome["you"]] == ["Ada", "Ada 2"]
    first.socket.close()
    assert second.hears("left") == {"name": "Ada"}
    assert chat("room", "Ada").welcome["you"] == "Ada"


@pytest.mark.parametrize(("room", "name"), [("", "Ada"), ("room", ""), ("room", "A" * 41), ("r\u202e", "Ada"), ("r", "a\0b")])
def test_bad_names_stay_outside(chat, room, name):
    """No name, a very long one, or one with characters that are not to be seen: 1008, and the reason."""
    with pytest.raises(ConnectionClosed) as closed:
        chat.guest(room, name).hears("welcome")
    assert closed.value.rcvd.code == 1008
    assert "40 printable characters" in closed.value.rcvd.reason


def test_messages_have_bounds(chat):
    """An empty message, a long one, or bytes, nobody hears; whoever sent it is told, and may go on."""
    ada, bob = chat("room", "Ada"), chat("room", "Bob")
    ada.hears("joined")
    for message in "", " \n", "x" * 2001, b"bytes":
        ada.socket.send(message)
        assert "2000" in ada.hears("refused")["why"]
    ada.socket.send("x" * 2000)
    assert ada.hears("said") == bob.hears("said")


def test_other_paths(chat):
    """The page is the only one; other methods and a WebSocket elsewhere are refused."""
    assert [chat.server.get(path).status for path in ("/", "/rooms", "/nothing")] == [200, 200, 404]
    with chat.server.connect() as client:
        assert client.post("/", b"x").status == 405
    with pytest.raises(Exception, match="403"), connect(f"ws://127.0.0.1:{chat.server.port}/other", proxy=None):
        pass
