"""Promises of the stack under Locust: a master, two workers, headless, against four processes."""

import json
import re
import subprocess
import threading
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from container.engine import SCALE, Container, Stack, docker, stack, until
from container.test_compose import pids

ENOUGH = 20_000  # requests, over all journeys
LIMIT = 150  # seconds for them, on the slowest machine
CHAOS = 60  # seconds; while Locust has a shape, only the shape ends it
JOURNEYS = {
    *("GET /", "GET /bytes", "GET /echo", "POST /echo", "GET /hello", "HEAD /hello", "GET /json", "GET /nothing-here"),
    *("GET /sleep", "GET /stream", "POST /upload"),
    *("GET /hello (HTTP/1.0, one connection each)", "GET /hello (HTTP/1.1, one connection each)"),
}
TYPED = {"GET /greet", "GET /greet (wrong)", "POST /notes", "GET /events", "POST /files"}
CHAT = {"GET /", "GET /rooms", "WS join", "WS say", "WS ping", "WS leave"}

pytestmark = pytest.mark.timeout(300 * SCALE)


class Outcome(NamedTuple):
    """The final report of Locust's master."""

    status: int
    requests: dict[str, int]  # by journey
    failures: dict[str, int]
    errors: list[tuple[int, str]]  # how often, what

    @property
    def total(self) -> int:
        return sum(self.requests.values())

    @property
    def failed(self) -> int:
        return sum(self.failures.values())

    def is_flawless(self, journeys: set[str]) -> bool:
        """True if exactly these journeys were made and no request failed, else raises `AssertionError`."""
        assert self.failures == dict.fromkeys(self.requests, 0), self.errors
        assert self.status == 0
        assert self.requests.keys() == journeys
        return True


class Run:
    """A run of Locust."""

    def __init__(self, master: Container) -> None:
        self.master = master
        self.lines: list[str] = []
        self.count = self.failed = 0  # requests and failures so far, as Locust prints them every two seconds
        self._follower = subprocess.Popen(
            ["docker", "logs", "--follow", self.master.identity], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def _read(self) -> None:  # ends with the container
        assert self._follower.stdout
        with self._follower.stdout as output:
            for line in output:
                self.lines.append(line.rstrip())
                if match := re.match(r"\s+Aggregated\s+(\d+)\s+(\d+)\(", line):
                    self.failed, self.count = int(match[2]), int(match[1])

    def reach(self, count: int) -> None:
        """Wait until Locust has made `count` requests."""

        def reached() -> bool:
            assert self._follower.poll() is None, "Locust has ended"
            return self.count >= count

        until(f"{count} requests", LIMIT, reached)

    def end(self) -> Outcome:
        """Stop the master if it still runs (it then prints its summary), and read its report."""
        docker("kill", "--signal", "TERM", self.master.identity, status=None)
        self._follower.wait(60 * SCALE)
        self._reader.join()
        status = self.master.inspect()["State"]["ExitCode"]
        # Standard output has the summary; the log and the tables for people are on standard error.
        entries = json.loads(docker("logs", self.master.identity))
        report = "\n".join(self.lines).rpartition("Error report")[2]
        return Outcome(
            status,
            {f"{entry['method']} {entry['name']}": entry["num_requests"] for entry in entries},
            {f"{entry['method']} {entry['name']}": entry["num_failures"] for entry in entries},
            [(int(times), what) for times, what in re.findall(r"^(\d+) +(\S.*?) *$", report, re.MULTILINE)],
        )


def loaded(four: Stack) -> Run:
    """Start the whole stack, and Locust with two workers."""
    four.compose("--profile", "load", "up", "--detach", "--scale", "locust-worker=2")
    return Run(four.container("locust"))


@pytest.fixture(scope="session")
def images(image: str) -> None:
    """The examples' images, each from its own Dockerfile."""
    for name in ("flask", "django", "fastapi", "django-asgi", "chat"):
        docker("build", "--tag", f"epollard-{name}", f"examples/{name}")


def headless(**more: str) -> dict[str, str]:
    return {
        "WORKERS": "4",
        "LOCUST_HEADLESS": "true",
        "LOCUST_EXPECT_WORKERS": "2",
        "LOCUST_USERS": "80",
        "LOCUST_SPAWN_RATE": "80",
        "LOCUST_THINK": "0.01",
        "LOCUST_RUN_TIME": f"{LIMIT * SCALE:.0f}s",
    } | more


def files(app: str) -> tuple[str, ...]:
    """The Compose files that make the stack serve this application instead of the demo."""
    return () if app == "demo" else (f"examples/{app}/compose.yaml",)


RUNS = {  # by application: its journeys, and how many requests are enough
    "demo": (JOURNEYS, ENOUGH),
    "flask": (JOURNEYS, ENOUGH),
    "django": (JOURNEYS, ENOUGH),
    "fastapi": (JOURNEYS | TYPED, ENOUGH // 2),
    "django-asgi": (JOURNEYS, ENOUGH // 4),  # each request takes several of Django's threads: slow, on any server
}


@pytest.mark.parametrize("app", RUNS)
def test_no_request_fails(images: None, app: str) -> None:
    """No request fails out of thousands over all journeys, each response checked, whatever the framework."""
    journeys, enough = RUNS[app]
    with stack(*files(app), **headless()) as four:
        run = loaded(four)
        run.reach(enough)
        outcome = run.end()
        print(f"{app}: {outcome}")
        assert outcome.is_flawless(journeys)
        assert min(outcome.requests.values()) > enough // 400
        assert outcome.total >= enough
        assert len(pids(four.container("web"), 4)) == 4


def test_a_chat_through_a_reload(images: None) -> None:
    """Dozens of guests talk over WebSocket while HUP replaces the process. Each guest is disconnected with 1012 and comes
    back; none misses its own message, receives one of another room, or is refused."""
    with stack(*files("chat"), **headless()) as one:
        run = loaded(one)
        run.reach(ENOUGH // 10)
        docker("kill", "--signal", "HUP", one.container("web").identity)
        run.reach(run.count + ENOUGH // 10)
        outcome = run.end()
        print(f"chat: {outcome}")
        assert outcome.failures == dict.fromkeys(outcome.requests, 0), outcome.errors
        assert outcome.status == 0
        assert outcome.requests.keys() == CHAT | {"WS restart"}
        assert min(outcome.requests[journey] for journey in CHAT) > 20
        assert 0 < outcome.requests["WS restart"] <= 80


KILL = """
import json, os, signal, sys
# Stop it first: after that it accepts no more connections.
victim = int(open('/proc/1/task/1/children').read().split()[0])
os.kill(victim, signal.SIGSTOP)
while open(f'/proc/{victim}/stat').read().rpartition(')')[2].split()[0] != 'T':
    pass
connected = {row[9] for row in map(str.split, list(open('/proc/net/tcp'))[1:]) if row[3] != '0A'}
files = [os.readlink(f'/proc/{victim}/fd/{number}') for number in os.listdir(f'/proc/{victim}/fd')]
held = sum(name.removeprefix('socket:[').rstrip(']') in connected for name in files)
os.kill(victim, signal.SIGKILL)
print(json.dumps([victim, held]))
"""


def test_a_killed_worker_loses_only_its_own_requests(images: None) -> None:
    """SIGKILL to a worker under load: no more requests fail than it held connections (each carries one request at a time).
    They fail because the connection broke, not with a wrong response, and another worker replaces the killed one."""
    with stack(**headless()) as four:
        run = loaded(four)
        run.reach(ENOUGH // 8)
        web = four.container("web")
        victim, held = web.python(KILL)
        run.reach(run.count + ENOUGH // 4)
        outcome = run.end()
        print(f"worker {victim} held {held} connections: {outcome}")
        assert 0 < held <= 80
        assert outcome.failed <= held, outcome.errors
        assert not [error for _, error in outcome.errors if "wrong content" in error or "status" in error]
        assert victim not in pids(web, 4)
        assert re.search(rf"{victim}\b.*killed by signal (9|SIGKILL)", web.logs())


STOP = """
import json, os, signal, sys, time
victim = int(open('/proc/1/task/1/children').read().split()[0])
os.kill(victim, signal.SIGSTOP)
time.sleep(2)
os.kill(victim, signal.SIGCONT)
print(json.dumps(victim))
"""


def test_chaos(images: None) -> None:
    """Users come and go in crowds, workers are replaced, added, removed and stopped for a while: no request fails. Then some
    workers are killed, and no more requests fail than they held connections."""
    with stack(**headless(LOCUST_CHAOS="80", LOCUST_CHAOS_TIME=f"{CHAOS * SCALE:.0f}")) as four:
        run = loaded(four)
        run.reach(ENOUGH // 20)
        web = four.container("web")
        for number in "HUP", "TTIN", "STOP", "TTOU", "HUP", "TTOU", "TTIN":
            if number == "STOP":
                web.python(STOP)
            else:
                docker("kill", "--signal", number, web.identity)
            run.reach(run.count + ENOUGH // 40)
        assert run.failed == 0
        held = 0
        for _ in range(3):
            held += web.python(KILL)[1]
            run.reach(run.count + ENOUGH // 40)
        until("the end", CHAOS, lambda: not run.master.inspect()["State"]["Running"])
        outcome = run.end()
        print(f"killed workers held {held} connections: {outcome}")
        assert outcome.failed <= held, outcome.errors
        assert not [error for _, error in outcome.errors if "wrong content" in error or "status" in error]
        assert len(pids(web, 4)) == 4


LIAR = """
from epollard.demo import application

def app(environ, start_response):
    '''The demo, but the last byte of each body is changed, and the status is always 200.'''
    def start(status, headers, exc_info=None):
        return start_response('200 OK', headers)
    pieces = list(application(environ, start))
    pieces[-1:] = [piece[:-1] + b'?' for piece in pieces[-1:]]
    return pieces
"""


def test_wrong_responses_are_detected(images: None, tmp_path: Path) -> None:
    """If the responses are wrong, every journey that has a body fails: a load test that cannot fail proves nothing."""
    (tmp_path / "liar.py").write_text(LIAR)
    tmp_path.chmod(0o755)  # the image's user is another one
    override = tmp_path / "compose.yaml"
    override.write_text(f"services: {{web: {{volumes: ['{tmp_path}:/app:ro']}}}}")
    with stack(str(override), **headless(APP="liar:app", WORKERS="1")) as one:
        run = loaded(one)
        run.reach(1500)
        outcome = run.end()
        assert outcome.status == 1
        right = {journey for journey in JOURNEYS if outcome.failures[journey] == 0}
        assert right == {"HEAD /hello"}
        for journey in JOURNEYS - right:
            assert outcome.failures[journey] == outcome.requests[journey]


def test_steps_climb_and_end(images: None) -> None:
    """With LOCUST_STEPS the number of users climbs, and Locust ends by itself after the last step."""
    with stack(**headless(LOCUST_STEPS="4,9", LOCUST_STEP_TIME="3")) as stepped:
        run = loaded(stepped)
        until("the end", 60, lambda: not run.master.inspect()["State"]["Running"])
        outcome = run.end()
        assert outcome.status == 0
        assert outcome.failed == 0 < outcome.total
        users = [int(count) for count in re.findall(r"Shape test updating to (\d+) users", "\n".join(run.lines))]
        assert users == [4, 9]


def test_a_run_reports_its_result(images: None) -> None:
    """In the foreground, `up --exit-code-from locust` ends with the master's summary and exit status, not with a worker's."""
    with stack(**headless(LOCUST_RUN_TIME="2s", EPOLLARD_MAX_BODY="1")) as short:
        words = ("up", "--scale", "locust-worker=2", "--exit-code-from", "locust", "--no-color", "--no-log-prefix")
        output = short.compose("--profile", "load", *words, status=1)
        assert '"num_failures": ' in output


FORM = {"Content-Type": "application/x-www-form-urlencoded"}


@pytest.mark.parametrize(("app", "journeys"), [("demo", JOURNEYS), ("chat", CHAT)], ids=["demo", "chat"])
def test_the_web_page_runs_the_same_journeys(images: None, app: str, journeys: set[str]) -> None:
    """`--profile load up` serves Locust's page; a run that is started there loads the server through both workers."""
    with stack(*files(app), WORKERS="2") as plain:
        plain.compose("--profile", "load", "up", "--detach", "--scale", "locust-worker=2")
        page = plain.container("locust")

        def ask(path: str, method: str = "GET", body: bytes | None = None) -> Any:
            try:
                status, response = page.ask(path, method, body, FORM, inside=8089)
            except OSError:
                return None
            return response.decode() if status == 200 else None

        assert "Locust" in until("the page", 30, lambda: ask("/"))
        until("both workers", 30, lambda: len(json.loads(ask("/stats/requests") or "{}").get("workers", [])) == 2)
        assert json.loads(ask("/swarm", "POST", b"user_count=20&spawn_rate=20&think=0.02"))["success"]

        def stats() -> Any:
            found = json.loads(ask("/stats/requests"))
            names = {f"{entry['method']} {entry['name']}" for entry in found["stats"]}
            return found if names >= journeys else None

        found = until("every journey", 60, stats)
        assert found["errors"] == []
        assert all(worker["user_count"] == 10 for worker in found["workers"])
