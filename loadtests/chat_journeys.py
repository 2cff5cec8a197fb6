"""Journeys for `examples/chat`, over WebSocket: join a room, talk, ping, leave. No message may come from another room.

    locust -f loadtests/chat_journeys.py --host http://localhost:8000

Timed is what a guest waits for: from sending a message to receiving it, and from a ping to its pong. A server that restarts
closes with 1012, and the guest comes back, as the page does. That is a row of its own ("restart"), and not a failure.
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

from locustfile import RESPONSE_TIMEOUT, Client, Journey, Steps

__all__ = ["Guest", "Steps", "Visitor"]  # Locust finds the shape Steps here

ROOMS = 8
NORMAL, RESTART = 1000, 1012  # close codes (RFC 6455 section 7.4.1, and the registry of its section 11.7)


class RestartError(Exception):
    """The server has closed the connection with 1012."""


class Visitor(Client):
    """Reads the page and the list of rooms."""

    weight = 1

    @task
    def read_page(self) -> None:
        self.ask("GET", "/", lambda body: b"<h1>" in body and body.rstrip().endswith(b"</html>"))

    @task
    def list_rooms(self) -> None:
        self.ask("GET", "/rooms", lambda body: all(room.startswith("room ") for room in json.loads(body)))


class Guest(Journey, User):
    """A guest in a room. Each message names its room and carries a token, so that a misdirected one is detected."""

    weight = 6
    socket: websocket.WebSocket | None = None

    @task(20)
    def talk(self) -> None:
        if socket := self.joined():
            text = f"{self.room}: {random.getrandbits(64):016x} " + "\N{DECIDUOUS TREE}" * int(1900 ** random.random())
            with self.timed("say"):
                socket.send(text)
                event = self.read_until(lambda event: event["type"] == "said" and event["name"] == self.name)
                if event["text"] != text:
                    raise ValueError("wrong content")

    @task(5)
    def ping(self) -> None:
        if socket := self.joined():
            payload = random.randbytes(random.randrange(126))
            with self.timed("ping"):
                socket.ping(payload)
                self.read_until(lambda event: event["type"] == "pong" and event["payload"] == payload)

    @task(1)
    def leave(self) -> None:
        if socket := self.joined():
            with self.timed("leave"):
                socket.send_close(NORMAL)
                if self.read_until(lambda event: event["type"] == "closed")["code"] not in (NORMAL, RESTART):
                    raise ValueError("closed with another code")
                self.drop()

    def on_stop(self) -> None:
        self.drop()

    def joined(self) -> websocket.WebSocket | None:
        """The socket of a client that has joined a room; joins one first if necessary. None if that fails."""
        if not self.socket:
            self.room, self.name = f"room {random.randrange(ROOMS)}", f"guest {random.getrandbits(64):016x}"
            address = (self.host or "").replace("http", "ws", 1) + "/chat?" + urlencode({"room": self.room, "name": self.name})
            with self.timed("join"):
                self.socket = websocket.create_connection(address, timeout=RESPONSE_TIMEOUT)
                event = self.read_until(lambda event: True)
                if event["type"] != "welcome" or event["you"] != self.name or self.name not in event["people"]:
                    raise ValueError("wrong content")
                for said in event["history"]:
                    self.check(said)
        return self.socket

    def drop(self) -> None:
        """Close the connection without a closing handshake."""
        if self.socket:
            self.socket.shutdown()  # type: ignore[no-untyped-call]
        self.socket = None

    def read_until(self, is_expected: Callable[[Any], bool]) -> Any:
        """Read until the expected event comes, and return it. An unexpected close is an error."""
        deadline = time.monotonic() + RESPONSE_TIMEOUT
        while not is_expected(event := self.receive()):
            if event["type"] == "closed":
                raise RestartError if event["code"] == RESTART else ConnectionError(f"closed with {event['code']}")
            if time.monotonic() > deadline:
                raise TimeoutError("received other events, but not the expected one")
        return event

    def receive(self) -> Any:
        """The next event of the room; control frames have the same form."""
        assert self.socket is not None
        code, data = self.socket.recv_data(control_frame=True)
        if code == ABNF.OPCODE_TEXT:
            event = json.loads(data)
            if event["type"] == "said":
                self.check(event)
            return event
        if code == ABNF.OPCODE_CLOSE:
            return {"type": "closed", "code": int.from_bytes(data[:2]) if data else None}
        return {"type": "pong" if code == ABNF.OPCODE_PONG else f"opcode {code}", "payload": data}

    def check(self, said: Any) -> None:
        if not said["text"].startswith(f"{self.room}: "):
            raise ValueError("wrong content: a message of another room")

    @contextmanager
    def timed(self, what: str) -> Iterator[None]:
        """Report the block's duration and outcome to Locust. An error ends the connection; the next task opens another."""
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
