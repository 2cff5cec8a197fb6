"""Clients that ask all the time while a test disturbs the server, and count exactly what went wrong."""

import contextlib
import socket
import threading
import time
from collections import Counter
from types import TracebackType
from typing import Self

from harness import WAIT, Client


class Load:
    """Half of the clients keep their connection, half make a new one for each request. `with Load(address) as load: ...`"""

    def __init__(self, address: tuple[str, int], clients: int = 20, target: str = "/", pause: float = 0.005) -> None:
        self.failures: list[str] = []
        self.answers: Counter[str] = Counter()  # by body
        self.slowest = 0.0  # seconds that a one-shot client has waited
        self._address = address
        self._target = target
        self._pause = pause  # seconds between two requests of a client: the clients must not be the machine's whole load
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
        """How many requests have been answered."""
        return self.answers.total()

    def _one_shot(self) -> None:
        while not self._stopped.wait(self._pause):
            begun = time.monotonic()
            try:
                with Client(self._address) as client:
                    self._note(client.get(self._target, close=True).text)
            except (OSError, AssertionError) as error:
                self.failures.append(f"one-shot: {error!r}")
            self.slowest = max(self.slowest, time.monotonic() - begun)

    def _keep_alive(self) -> None:
        client: Client | None = None
        while not self._stopped.wait(self._pause):
            reused = client is not None
            try:
                client = client or Client(self._address)
                answer = client.get(self._target)
                self._note(answer.text)
                if answer.header("connection") == "close":
                    client.close()
                    client = None
            except (OSError, AssertionError) as error:
                # RFC 9112 9.3.1: a server may close an idle connection at any time; who reused it asks again, once.
                before_a_byte = not client or not client._buffer
                if client:
                    client.close()
                client = None
                if not (reused and before_a_byte):
                    self.failures.append(f"keep-alive: {error!r}")
        if client:
            client.close()

    def _note(self, text: str) -> None:
        with self._lock:
            self.answers[text] += 1


def hold(address: tuple[str, int], count: int, stack: contextlib.ExitStack, request: bytes) -> list[socket.socket]:
    """Open so many connections at once, each with a request, and keep them open."""
    held = []
    for _ in range(count):
        client = stack.enter_context(socket.create_connection(address, timeout=WAIT))
        client.sendall(request)
        held.append(client)
    return held
