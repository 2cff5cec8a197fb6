"""Journeys of real clients. Each checks the content of its responses: a response that is fast and wrong is a failure.

They need an application with the routes of `epollard.demo`; all examples but the chat have the same ones. They run from the web
page, headless, or distributed:

    locust -f loadtests/locustfile.py --host http://localhost:8000 [--headless --users 50 --spawn-rate 25 --run-time 60s]

With `LOCUST_STEPS=20,40,80` in the environment the number of users climbs these steps, each of which lasts `LOCUST_STEP_TIME`
seconds (default: 30). With `LOCUST_CHAOS=80` it jumps to a random number from 10 to 80 every `LOCUST_STEP_TIME` seconds
(default: 5), for `LOCUST_CHAOS_TIME` seconds (default: 60). Users that leave do so in the middle of a request.

`FastHttpUser` repeats a GET, as browsers do (RFC 9110, 9.2.2), if a kept connection is closed before any byte of the response.
A POST is never repeated, nor is anything that `OneShot` sends: requests that a server loses show there.
"""

import hashlib
import json
import os
import random
import socket
import time
from collections.abc import Callable
from typing import Any
from urllib.parse import urlsplit

from locust import FastHttpUser, LoadTestShape, User, events, task

ALPHABET = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/"  # what /bytes repeats
NOISE = random.randbytes(2 * 1024 * 1024)  # uploads are slices of it
LARGEST = 1024 * 1024  # bytes of an upload
RESPONSE_TIMEOUT = 20  # seconds that a client with a socket of its own waits for its whole response


@events.init_command_line_parser.add_listener  # type: ignore[untyped-decorator]  # Locust has no types
def add_arguments(parser: Any) -> None:
    parser.add_argument(
        "--think", type=float, default=0.02, env_var="LOCUST_THINK", help="Mean seconds between two requests of a user"
    )


class Journey:
    """The think time that all clients have in common."""

    environment: Any

    def wait_time(self) -> float:
        mean: float = self.environment.parsed_options.think
        return random.uniform(0, 2 * mean)


class Client(Journey, FastHttpUser):
    """A client that keeps its connection, and compares each response with the expected one."""

    abstract = True

    def ask(
        self, method: str, path: str, is_right: Callable[[bytes], bool], *, name: str = "", status: int = 200, **more: Any
    ) -> None:
        """One request. It fails if the connection breaks, the status is another, or `is_right` rejects the body."""
        with self.client.request(method, path, name=name or path, catch_response=True, **more) as response:
            broken = response.request_meta["exception"]
            if response.status_code == 0:
                return  # no response at all: Locust reports the error
            if response.status_code != status:
                response.failure(f"status {response.status_code}")
            elif broken and status < 400:
                response.failure(broken)
            elif not is_right(response.content or b""):
                response.failure("wrong content")
            else:
                response.success()


def holds(**right: Any) -> Callable[[bytes], bool]:
    """A check that a body is a JSON object with the items of `right` in it."""

    def judge(body: bytes) -> bool:
        try:
            found = json.loads(body)
        except ValueError:
            return False
        return isinstance(found, dict) and right.items() <= found.items()

    return judge


class Browser(Client):
    """Opens the page, then the files that belong to it, on one connection; sometimes follows a dead link."""

    weight = 4

    @task(4)
    def visit(self) -> None:
        self.ask("GET", "/", lambda body: b"<h1>" in body and body.rstrip().endswith(b"</html>"))
        for size in (random.randrange(512, 4096), random.randrange(8_000, 40_000)):
            right = (ALPHABET * (size // 64 + 1))[:size]
            self.ask("GET", f"/bytes?n={size}", right.__eq__, name="/bytes")

    @task(4)
    def hello(self) -> None:
        self.ask("GET", "/hello", b"Hello, World!".__eq__)

    @task(1)
    def head_first(self) -> None:
        """A response to HEAD has no body; if one came, it would be taken for the start of the next response."""
        self.ask("HEAD", "/hello", b"".__eq__)
        self.ask("GET", "/hello", b"Hello, World!".__eq__)

    @task(1)
    def dead_link(self) -> None:
        self.ask("GET", "/nothing-here", lambda body: True, status=404)


class Api(Client):
    """Calls an API. Every call has a token of its own, so a response that belongs to another call is detected."""

    weight = 4

    @task(3)
    def read(self) -> None:
        self.ask("GET", "/json", holds(message="Hello, World!"))

    @task(2)
    def search(self) -> None:
        token = f"{random.getrandbits(64):016x}"
        right = holds(method="GET", path="/echo", query=f"token={token}", body="")
        self.ask("GET", f"/echo?token={token}", right, name="/echo", headers={"X-Token": token})

    @task(2)
    def write(self) -> None:
        body = json.dumps({"token": f"{random.getrandbits(64):016x}", "text": "\N{DECIDUOUS TREE} " * random.randrange(100)})
        right = holds(method="POST", path="/echo", query="", body=body)
        self.ask("POST", "/echo", right, data=body, headers={"Content-Type": "application/json"})


class Uploader(Client):
    """Uploads files of very different sizes. The response must have the right length and digest."""

    weight = 1

    @task
    def upload(self) -> None:
        size = int(LARGEST ** random.random())  # as often 10 to 100 bytes as 10,000 to 100,000
        start = random.randrange(len(NOISE) - size)
        body = NOISE[start : start + size]
        self.ask("POST", "/upload", holds(length=size, sha256=hashlib.sha256(body).hexdigest()), data=body)


class Patient(Client):
    """Asks for a slow response, and for one that comes in pieces."""

    weight = 1

    @task
    def slow(self) -> None:
        milliseconds = random.randrange(10, 200)
        self.ask("GET", f"/sleep?ms={milliseconds}", (b"slept %d ms\n" % milliseconds).__eq__, name="/sleep")

    @task
    def listen(self) -> None:
        count = random.randrange(1, 200)
        right = b"".join(b"chunk %d\n" % number for number in range(count))
        self.ask("GET", f"/stream?n={count}", right.__eq__, name="/stream")


class OneShot(Journey, User):
    """Opens a connection for each request, as HTTP/1.0 clients, health checks and many scripts do."""

    weight = 2

    @task(2)
    def old(self) -> None:
        self.ask("1.0", "/hello", "")

    @task(1)
    def closing(self) -> None:
        self.ask("1.1", "/hello", "Connection: close\r\n")

    def ask(self, version: str, path: str, headers: str) -> None:
        """One request on a new connection. The response ends when the server closes it."""
        url = urlsplit(self.host or "")
        started, start = time.time(), time.perf_counter()
        received = bytearray()
        error: Exception | None = None
        try:
            with socket.create_connection((url.hostname, url.port or 80), timeout=RESPONSE_TIMEOUT) as client:
                client.sendall(f"GET {path} HTTP/{version}\r\nHost: {url.netloc}\r\n{headers}\r\n".encode())
                while piece := client.recv(65536):
                    received += piece
            head, _, body = received.partition(b"\r\n\r\n")
            if not received:
                error = ConnectionError("closed without a response")
            elif head.split(b" ", 2)[1:2] != [b"200"] or body != b"Hello, World!":
                error = ValueError("wrong content")
        except OSError as caught:
            error = caught
        self.environment.events.request.fire(
            request_type="GET",
            name=f"{path} (HTTP/{version}, one connection each)",
            response_time=(time.perf_counter() - start) * 1000,
            response_length=len(received),
            response=None,
            context={},
            exception=error,
            start_time=started,
            url=f"{self.host}{path}",
        )


class Steps(LoadTestShape):
    """The number of users climbs step by step; ends after the last step."""

    abstract = not os.environ.get("LOCUST_STEPS")  # Locust uses any shape that is not abstract
    users = tuple(int(step) for step in os.environ.get("LOCUST_STEPS", "").split(",") if step)
    step_time = float(os.environ.get("LOCUST_STEP_TIME") or 30)

    def tick(self) -> tuple[int, float] | None:
        step = int(self.get_run_time() // self.step_time)  # type: ignore[no-untyped-call]
        return (self.users[step], max(self.users) / 2) if step < len(self.users) else None


class Chaos(LoadTestShape):
    """Users come and go in crowds, at random but in the same way in each run; ends after its time."""

    abstract = not os.environ.get("LOCUST_CHAOS") or not Steps.abstract
    most = int(os.environ.get("LOCUST_CHAOS") or 10)
    step_time = float(os.environ.get("LOCUST_STEP_TIME") or 5)
    time_limit = float(os.environ.get("LOCUST_CHAOS_TIME") or 60)

    def tick(self) -> tuple[int, float] | None:
        time = self.get_run_time()  # type: ignore[no-untyped-call]
        if time >= self.time_limit:
            return None
        step = int(time // self.step_time)
        return random.Random(step).randint(min(10, self.most), self.most), self.most
