"""Journeys for `examples/fastapi`, in addition to those of `locustfile.py`: models, files, events. Contents are checked.

locust -f loadtests/locustfile.py,loadtests/asgi_journeys.py --host http://localhost:8000
"""

import hashlib
import json
import random

from locust import task

from locustfile import NOISE, Client, holds


class Typed(Client):
    """Calls an API whose parameters have types, with valid and invalid values."""

    weight = 3

    @task(3)
    def greet(self) -> None:
        name, times = f"{random.getrandbits(64):016x}", random.randrange(1, 11)
        right = holds(greetings=[f"HELLO, {name.upper()}!"] * times)
        self.ask("GET", f"/greet/{name}?times={times}&loud=yes", right, name="/greet")

    @task(1)
    def mistake(self) -> None:
        """The status is 422, and the body names the parameter that is wrong."""
        self.ask("GET", "/greet/Ada?times=eleven", lambda body: b'"times"' in body, name="/greet (wrong)", status=422)

    @task(2)
    def note(self) -> None:
        """A model in both directions. A background task that runs after the response must not disturb the next one."""
        text, tag = f"\N{DECIDUOUS TREE} {random.getrandbits(64):016x}", random.choice("abc")
        right = holds(text=text, tags=[tag])
        self.ask("POST", "/notes", right, status=202, json={"text": text, "tags": [tag, tag]})


class Listener(Client):
    """Reads server-sent events to their end."""

    weight = 2

    @task
    def listen(self) -> None:
        count = random.randrange(1, 30)

        def right(body: bytes) -> bool:
            """Each event comes once, in order, and all are from one process (the server may put comments between them)."""
            events = [event.split("\n") for event in body.decode().split("\n\n")[:-1] if not event.startswith(":")]
            found = [{line.partition(": ")[0]: line.partition(": ")[2] for line in event} for event in events]
            contents = [json.loads(event["data"]) for event in found]
            return (
                [event["id"] for event in found] == [str(index) for index in range(count)]
                and all(event["event"] == "count" for event in found)
                and [data["index"] for data in contents] == list(range(count))
                and len({data["pid"] for data in contents}) == 1
            )

        self.ask("GET", f"/events?n={count}&pause=5", right, name="/events")


class Sender(Client):
    """Uploads files in forms, as browsers do."""

    weight = 1

    @task
    def send(self) -> None:
        size = int(len(NOISE) ** random.random())
        start = random.randrange(len(NOISE) - size)
        content = NOISE[start : start + size]
        boundary = f"{random.getrandbits(128):032x}"
        head = (
            f'--{boundary}\r\nContent-Disposition: form-data; name="file"; filename="{size}.bin"\r\n'
            "Content-Type: application/octet-stream\r\n\r\n"
        )
        self.ask(
            "POST",
            "/files",
            holds(name=f"{size}.bin", length=size, sha256=hashlib.sha256(content).hexdigest()),
            data=head.encode() + content + f"\r\n--{boundary}--\r\n".encode(),
            headers={"Content-Type": f"multipart/form-data; boundary={boundary}"},
        )
