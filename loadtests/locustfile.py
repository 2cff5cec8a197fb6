"""Journeys of real clients. Each checks the content of its answers: an answer that is fast and wrong is a failure.

They need an application with the routes of `epollard.demo`; the examples have the same ones. From the web page, headless or
distributed:

    locust -f loadtests/locustfile.py --host http://localhost:8000 [--headless --users 50 --spawn-rate 25 --run-time 60s]

With `LOCUST_STEPS=20,40,80` in the environment the number of users climbs these steps, each `LOCUST_STEP_TIME` seconds
long (30). With `LOCUST_CHAOS=80` it jumps, each time so many seconds (5), to any number from ten to that, for
`LOCUST_CHAOS_TIME` seconds (60): those who go leave in the middle of whatever they were doing.

`FastHttpUser` repeats a GET, as browsers do (RFC 9110, 9.2.2), when a kept connection was closed before any byte of the
answer. A POST is never repeated, nor is anything that `OneShot` sends: what a server loses shows there.
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
NOISE = random.randbytes(2 * 1024 * 1024)  # uploads are cut from it
LARGEST = 1024 * 1024  # bytes of an upload
PATIENCE = 20  # seconds that a one-shot client waits for its whole answer


@events.init_command_line_parser.add_listener  # type: ignore[untyped-decorator]  # Locust has no types
def add_arguments(parser: Any) -> None:
    parser.add_argument(
        "--think", type=float, default=0.02, env_var="LOCUST_THINK", help="Mean seconds that a user thinks between two requests"
    )


class Journey:
    """What all clients have in common."""

    environment: Any

    def wait_time(self) -> float:
        mean: float = self.environment.parsed_options.think
        return random.uniform(0, 2 * mean)


class Client(Journey, FastHttpUser):
    """A client that keeps its connection, and compares what it gets with what it should get."""

    abstract = True

    def ask(
        self, method: str, path: str, is_right: Callable[[bytes], bool], *, name: str = "", status: int = 200, **more: Any
    ) -> None:
        """One request. It failed where the connection broke, the status is another, or the body `is_right` says no to."""
        with self.client.request(method, path, name=name or path, catch_response=True, **more) as answer:
            broken = answer.request_meta["exception"]
            if answer.status_code == 0:
                return  # no answer at all: Locust reports what broke
            if answer.status_code != status:
                answer.failure(f"status {answer.status_code}")
            elif broken and status < 400:
                answer.failure(broken)
            elif not is_right(answer.content or b""):
                answer.failure("wrong content")
            else:
                answer.success()


def holds(**right: Any) -> Callable[[bytes], bool]:
    """Whether a body is a JSON object that has `right` in it."""

    def judge(body: bytes) -> bool:
        try:
            found = json.loads(body)
        except ValueError:
            return False
        return isinstance(found, dict) and right.items() <= found.items()

    return judge


class Browser(Client):
    """Opens the page, then what belongs to it, on one connection; sometimes follows a dead link."""

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
    def look_before(self) -> None:
        """HEAD brings no body; one that came would be taken for the start of the next answer."""
        self.ask("HEAD", "/hello", b"".__eq__)
        self.ask("GET", "/hello", b"Hello, World!".__eq__)

    @task(1)
    def dead_link(self) -> None:
        self.ask("GET", "/nothing-here", lambda body: True, status=404)


class Api(Client):
    """Calls an API; every call has its own token, so an answer that belongs to somebody else is seen."""

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
    """Sends files of very different sizes; length and digest must be those of what was sent."""

    weight = 1

    @task
    def upload(self) -> None:
        size = int(LARGEST ** random.random())  # as often 10 to 100 bytes as 10,000 to 100,000
        start = random.randrange(len(NOISE) - size)
        body = NOISE[start : start + size]
        self.ask("POST", "/upload", holds(length=size, sha256=hashlib.sha256(body).hexdigest()), data=body)


class Patient(Client):
    """Asks for what takes time: a slow answer, and one that comes in pieces."""

    weight = 1

    @task
    def wait_for_it(self) -> None:
        milliseconds = random.randrange(10, 200)
        self.ask("GET", f"/sleep?ms={milliseconds}", (b"slept %d ms\n" % milliseconds).__eq__, name="/sleep")

    @task
    def listen(self) -> None:
        count = random.randrange(1, 200)
        right = b"".join(b"chunk %d\n" % number for number in range(count))
        self.ask("GET", f"/stream?n={count}", right.__eq__, name="/stream")


class OneShot(Journey, User):
    """A connection for each request, as HTTP/1.0 clients, health checks and many scripts have it."""

    weight = 2

    @task(2)
    def old(self) -> None:
        self.ask("1.0", "/hello", "")

    @task(1)
    def closing(self) -> None:
        self.ask("1.1", "/hello", "Connection: close\r\n")

    def ask(self, version: str, path: str, headers: str) -> None:
        """One request on a new connection. The answer is what comes before the server closes."""
        url = urlsplit(self.host or "")
        started, start = time.time(), time.perf_counter()
        received = bytearray()
        error: Exception | None = None
        try:
            with socket.create_connection((url.hostname, url.port or 80), timeout=PATIENCE) as client:
                client.sendall(f"GET {path} HTTP/{version}\r\nHost: {url.netloc}\r\n{headers}\r\n".encode())
                while piece := client.recv(65536):
                    received += piece
            head, _, body = received.partition(b"\r\n\r\n")
            if not received:
                error = ConnectionError("closed without an answer")
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
    """So many users, then so many more; ends after the last step."""

    abstract = not os.environ.get("LOCUST_STEPS")  # a shape that is there is used
    users = tuple(int(step) for step in os.environ.get("LOCUST_STEPS", "").split(",") if step)
    step_time = float(os.environ.get("LOCUST_STEP_TIME") or 30)

    def tick(self) -> tuple[int, float] | None:
        step = int(self.get_run_time() // self.step_time)  # type: ignore[no-untyped-call]
        return (self.users[step], max(self.users) / 2) if step < len(self.users) else None


class Chaos(LoadTestShape):
    """Users come and go in crowds, at random but the same each time; ends after its time."""

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
