"""Clients that send requests all the time while a test disturbs the server, and count exactly what went wrong."""

import contextlib
import random
import socket
import threading
import time
from collections import Counter
from types import TracebackType
from typing import NamedTuple, Self

from harness import WAIT, Client


class Failure(NamedTuple):
    """A request that did not get the response it should have got."""

    when: float  # time.monotonic(), as everywhere here
    kind: str  # of its client: "one-shot" or "keep-alive"
    port: int  # of its client; 0 if there was no connection
    refused: bool  # the port had no listener, so the server knows nothing of it
    error: str


class Answer(NamedTuple):
    """A request that was answered."""

    when: float
    seconds: float  # since before the connection was made, or before the request if the connection was there already
    kind: str
    port: int


class Load:
    """Half of the clients keep their connection, half make a new one for each request. `with Load(address) as load: ...`

    `pause`: seconds between two requests of a client, so that the clients do not take up the whole machine.
    `distance`: a new connection is silent for up to this many seconds, as if its first packet came from far away.
    """

    def __init__(
        self, address: tuple[str, int], clients: int = 20, target: str = "/", pause: float = 0.005, distance: float = 0.0
    ) -> None:
        self.failures: list[Failure] = []
        self.log: list[Answer] = []
        self.answers: Counter[str] = Counter()  # by body
        self.retries = 0
        self._address = address
        self._target = target
        self._pause = pause
        self._distance = distance
        self._stopped = threading.Event()
        self._lock = threading.Lock()
        roles = [self._one_shot, self._keep_alive]
        self._threads = [threading.Thread(target=roles[number % 2]) for number in range(clients)]

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._stopped.set()
        for thread in self._threads:
            thread.join()

    @property
    def count(self) -> int:
        """The number of requests answered so far."""
        return self.answers.total()

    @property
    def slowest(self) -> float:
        """The longest time in seconds that a one-shot client has waited."""
        return max((answer.seconds for answer in tuple(self.log) if answer.kind == "one-shot"), default=0.0)

    def _one_shot(self) -> None:
        while not self._stopped.wait(self._pause):
            self._ask("one-shot", None)

    def _keep_alive(self) -> None:
        client: Client | None = None
        while not self._stopped.wait(self._pause):
            client = self._ask("keep-alive", client)
        if client:
            client.close()

    def _ask(self, kind: str, client: Client | None) -> Client | None:
        """Send one request, on `client` if there is one. Return the client if its connection can be used again."""
        begun = time.monotonic()
        while True:
            reused = client is not None
            try:
                if client is None:
                    client = Client(self._address)
                    if self._distance:
                        time.sleep(random.uniform(0, self._distance))
                answer = client.get(self._target, close=kind == "one-shot")
                assert answer.status == 200, answer.status
            except (OSError, AssertionError) as error:
                port = client.port if client else 0
                before_a_byte = client is not None and not client.received
                if client:
                    client.close()
                    client = None
                # RFC 9112 9.3.1: a server may close an idle connection at any time; a client that reused it retries once.
                if reused and before_a_byte and not isinstance(error, TimeoutError):
                    self.retries += 1
                    continue
                refused = not port and isinstance(error, ConnectionRefusedError)
                self.failures.append(Failure(time.monotonic(), kind, port, refused, repr(error)))
                return None
            break
        now = time.monotonic()
        self.log.append(Answer(now, now - begun, kind, client.port))
        with self._lock:
            self.answers[answer.text] += 1
        if kind == "one-shot" or answer.header("connection") == "close":
            client.close()
            return None
        return client


def hold(address: tuple[str, int], count: int, stack: contextlib.ExitStack, request: bytes) -> list[socket.socket]:
    """Open `count` connections at once, send a request on each, and keep them open."""
    held = []
    for _ in range(count):
        client = stack.enter_context(socket.create_connection(address, timeout=WAIT))
        client.sendall(request)
        held.append(client)
    return held
