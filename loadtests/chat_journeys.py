"""Journeys for `examples/chat`, over WebSocket: come in, talk, hear oneself and nobody of another room, ping, leave.

    locust -f loadtests/chat_journeys.py --host http://localhost:8000

What somebody waits for is what is timed: from a message to hearing it oneself, from a ping to its pong. A server that restarts
says so with 1012, and the guest comes back, as the page does: that is a row of its own ("restart"), and no failure.
"""

import json
import random
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from urllib.parse import urlencode

import websocket
from locust import User, task
from websocket import ABNF

from locustfile import PATIENCE, Client, Journey, Steps

__all__ = ["Guest", "Steps", "Visitor"]  # Steps is here for Locust to find

ROOMS = 8
NORMAL, RESTART = 1000, 1012  # close codes (RFC 6455 section 7.4.1, and the registry of its section 11.7)


class RestartError(Exception):
    """The server has closed with 1012."""


class Visitor(Client):
    """Looks at the page, and which rooms there are."""

    weight = 1

    @task
    def look(self) -> None:
        self.ask("GET", "/", lambda body: b"<h1>" in body and body.rstrip().endswith(b"</html>"))

    @task
    def choose(self) -> None:
        self.ask("GET", "/rooms", lambda body: all(room.startswith("room ") for room in json.loads(body)))


class Guest(Journey, User):
    """Somebody in a room. Each message names its room and has a token, so that one which is somebody else's is seen."""

    weight = 6
    socket: websocket.WebSocket | None = None

    @task(20)
    def talk(self) -> None:
        if socket := self.joined():
            text = f"{self.room}: {random.getrandbits(64):016x} " + "\N{DECIDUOUS TREE}" * int(1900 ** random.random())
            with self.timed("say"):
                socket.send(text)
                news = self.wait_for(lambda news: news["type"] == "said" and news["name"] == self.name)
                if news["text"] != text:
                    raise ValueError("wrong content")

    @task(5)
    def ping(self) -> None:
        if socket := self.joined():
            payload = random.randbytes(random.randrange(126))
            with self.timed("ping"):
                socket.ping(payload)
                self.wait_for(lambda news: news["type"] == "pong" and news["payload"] == payload)

    @task(1)
    def leave(self) -> None:
        if socket := self.joined():
            with self.timed("leave"):
                socket.send_close(NORMAL)
                if self.wait_for(lambda news: news["type"] == "closed")["code"] not in (NORMAL, RESTART):
                    raise ValueError("closed with another code")
                self.drop()

    def on_stop(self) -> None:
        self.drop()

    def joined(self) -> websocket.WebSocket | None:
        """The socket of a client that has joined its room, which it does first where it has not; None where that failed."""
        if not self.socket:
            self.room, self.name = f"room {random.randrange(ROOMS)}", f"guest {random.getrandbits(64):016x}"
            address = (self.host or "").replace("http", "ws", 1) + "/chat?" + urlencode({"room": self.room, "name": self.name})
            with self.timed("join"):
                self.socket = websocket.create_connection(address, timeout=PATIENCE)
                news = self.wait_for(lambda news: True)
                if news["type"] != "welcome" or news["you"] != self.name or self.name not in news["people"]:
                    raise ValueError("wrong content")
                for said in news["history"]:
                    self.check(said)
        return self.socket

    def drop(self) -> None:
        """Be somewhere else, without a word."""
        if self.socket:
            self.socket.shutdown()  # type: ignore[no-untyped-call]
        self.socket = None

    def wait_for(self, is_it: Callable[[Any], bool]) -> Any:
        """Read what the server sends until it is what was waited for. A close that was not is an error."""
        deadline = time.monotonic() + PATIENCE
        while not is_it(news := self.hear()):
            if news["type"] == "closed":
                raise RestartError if news["code"] == RESTART else ConnectionError(f"closed with {news['code']}")
            if time.monotonic() > deadline:
                raise TimeoutError("heard others, but not what was waited for")
        return news

    def hear(self) -> Any:
        """The next news, and control frames in the same form."""
        assert self.socket is not None
        code, data = self.socket.recv_data(control_frame=True)
        if code == ABNF.OPCODE_TEXT:
            news = json.loads(data)
            if news["type"] == "said":
                self.check(news)
            return news
        if code == ABNF.OPCODE_CLOSE:
            return {"type": "closed", "code": int.from_bytes(data[:2]) if data else None}
        return {"type": "pong" if code == ABNF.OPCODE_PONG else f"opcode {code}", "payload": data}

    def check(self, said: Any) -> None:
        if not said["text"].startswith(f"{self.room}: "):
            raise ValueError("wrong content: of another room")

    @contextmanager
    def timed(self, what: str) -> Iterator[None]:
        """Report to Locust what happens in here. What breaks ends the connection; the next task begins another."""
        started, start = time.time(), time.perf_counter()
        error: Exception | None = None
        try:
            yield
        except RestartError:
            what = "restart"
            self.drop()
        except (OSError, ValueError, websocket.WebSocketException) as caught:
            error = caught
            self.drop()
        self.environment.events.request.fire(
            request_type="WS",
            name=what,
            response_time=(time.perf_counter() - start) * 1000,
            response_length=0,
            response=None,
            context={},
            exception=error,
            start_time=started,
            url=f"{self.host}/chat",
        )
