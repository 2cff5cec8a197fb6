"""The lifespan of an ASGI application (lifespan 2.0): ready when it says so, told of the end, and heard when it fails."""

import json
import os
import signal
import time

import pytest

from gates import Gate, Notes
from harness import SCALE, wait_for

APP = "apps.lifespans:app"


@pytest.fixture
def notes(tmp_path):
    return Notes(tmp_path / "notes")


@pytest.fixture
def served(start, notes):
    """`served("usual", workers=2)`: a server of an application with such a lifespan."""

    def served(kind, env=(), app=APP, **options):
        return start(app, env={"LIFESPAN": kind, "NOTES": str(notes), **dict(env)}, **options)

    return served


def test_startup_and_shutdown(served, notes):
    """Once each in every worker, whatever is asked in between."""
    server = served("usual", workers=2)
    assert notes.wait(2) == ["startup"] * 2
    for _ in range(5):
        assert server.get("/").status == 200
    server.signal(signal.SIGTERM)
    assert server.ended() == 0
    assert notes.lines == ["startup"] * 2 + ["shutdown"] * 2


def test_nobody_is_served_before_the_application_is_ready(served, notes, tmp_path):
    """A client waits until `lifespan.startup.complete`, and the log says "ready" not before."""
    with Gate(tmp_path / "gate") as gate:
        server = served("gated", env={"GATE": str(gate.path)}, wait=False)
        server.wait_log("listening on")
        gate.wait()
        with server.connect() as client:
            client.request("/")
            assert client.quiet(0.3)
            assert "ready" not in server.log
            gate.open()
            assert client.response().status == 200
    server.started()


def test_state(served):
    """Each request has a copy of its own of what the lifespan left, one level deep (spec, "Lifespan State")."""
    server = served("usual")
    states = [json.loads(server.get("/").text)["state"] for _ in range(3)]
    assert states == [{"word": "kept", "shared": list(range(1, number + 1))} for number in range(3)]


@pytest.mark.parametrize("kind", ["none", "silent"])
def test_applications_without_one(served, kind):
    """Raising, or returning, before anything was said means that there is no lifespan: no error, no state."""
    server = served(kind)
    assert json.loads(server.get("/").text)["state"] is None
    server.signal(signal.SIGTERM)
    assert server.ended() == 0
    assert "rror" not in server.log


@pytest.mark.parametrize("kind", ["fails", "fails_and_raises", "fails_and_waits"])
def test_an_application_that_cannot_start(served, kind):
    """Its own words end the server: status 3, as if it could not be imported."""
    server = served(kind, wait=False, workers=2)
    assert server.ended() == 3
    assert "the application could not start: no database\nat db:5432" in server.log
    assert "ready" not in server.log
    assert "destroyed" not in server.log


def test_a_reload(served, notes):
    """New workers start up before old ones shut down."""
    server = served("usual", workers=2)
    server.signal(signal.SIGHUP)
    server.wait_log("2 workers of generation 2 ready")
    wait_for(lambda: len(notes.lines) == 6)
    assert notes.lines[2] == "startup"
    assert sorted(notes.lines[2:]) == ["shutdown"] * 2 + ["startup"] * 2


def test_a_reload_to_what_cannot_start(served, notes, tmp_path):
    """The old workers stay, as with code that cannot be imported."""
    file = tmp_path / "it.toml"
    file.write_text(f"app = '{APP}'")
    server = served("usual", app=None, config=file)
    file.write_text("app = 'apps.lifespans:failing'")
    server.signal(signal.SIGHUP)
    server.wait_log("the application could not start: no database")
    assert json.loads(server.get("/").text)["pid"] == server.workers()[0]


def test_an_application_whose_lifespan_dies(served):
    """Its traceback, and the worker serves on."""
    server = served("dies")
    server.wait_log(r"application failed in its lifespan\n    Traceback")
    assert server.get("/").status == 200
    server.signal(signal.SIGTERM)
    assert server.ended() == 0


@pytest.mark.parametrize(
    ("kind", "told"),
    [
        ("fails_at_the_end", r"application failed to shut down: not\\x0aflushed"),
        ("raises_at_the_end", r"application failed in its lifespan\n(.*\n)+    RuntimeError: the end failed"),
    ],
)
def test_an_application_that_cannot_shut_down(served, kind, told):
    """It says why, in the log, and the server ends as it was asked to."""
    server = served(kind)
    server.signal(signal.SIGTERM)
    assert server.ended(5 * SCALE) == 0
    server.wait_log(told)


def test_shutdown_comes_after_the_last_answer(served, notes):
    """What a request needs is there as long as it runs."""
    server = served("usual")
    with server.connect() as client:
        client.request("/slow")
        wait_for(lambda: "asked" in notes.lines)
        server.signal(signal.SIGTERM)
        assert client.response().status == 200
    assert server.ended() == 0
    assert notes.lines == ["startup", "asked", "answered", "shutdown"]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGQUIT])
def test_a_quick_stop_shuts_down_too(served, notes, number):
    """There is little time, but the application is told."""
    server = served("usual", graceful_timeout=60)
    server.signal(number)
    assert server.ended(5 * SCALE) == 0
    assert notes.lines == ["startup", "shutdown"]


def test_a_call_that_never_ends_costs_nobody_the_shutdown(served, notes):
    """At the graceful deadline it is cancelled, and the application is told."""
    server = served("usual", graceful_timeout=1)
    with server.connect() as client:
        client.request("/never")
        wait_for(lambda: "asked" in notes.lines)
        server.signal(signal.SIGTERM)
        assert server.ended() == 0
    assert notes.lines == ["startup", "asked", "cancelled", "shutdown"]
    server.wait_log("was ended by the supervisor because it was still busy 1 s after it was asked to exit")


def test_a_shutdown_that_hangs_is_cut_at_the_deadline(served, notes):
    """The graceful deadline is one for all that a worker has to end."""
    server = served("hangs_at_the_end", graceful_timeout=1)
    asked = time.monotonic()
    server.signal(signal.SIGTERM)
    assert server.ended() == 0
    assert time.monotonic() - asked >= 1
    assert notes.lines == ["startup", "hanging"]
    assert "was killed by the supervisor because it was still busy 1 s after it was asked to exit" in server.log


def test_what_follows_the_last_message_runs(served, notes):
    """`async with` and generators end behind `lifespan.shutdown.complete`."""
    server = served("goes_on")
    server.signal(signal.SIGTERM)
    assert server.ended() == 0
    assert notes.lines == ["startup", "shutdown", "closed"]


def test_tasks_of_the_lifespan(served, notes):
    """What the application has left running is cancelled after its shutdown."""
    server = served("background")
    server.signal(signal.SIGTERM)
    assert server.ended() == 0
    assert notes.lines == ["startup", "shutdown", "cancelled"]
    assert "destroyed" not in server.log


def test_what_may_not_be_sent(served, notes):
    """An error for the application, which may go on."""
    server = served("nonsense")
    assert server.get("/").status == 200
    assert notes.lines[:2] == ["RuntimeError", "startup"]


def test_a_worker_that_dies_has_a_successor_with_a_lifespan_of_its_own(served, notes):
    """Nobody shuts down what is dead; its replacement starts up."""
    server = served("usual")
    os.kill(server.workers()[0], signal.SIGKILL)
    wait_for(lambda: notes.lines == ["startup"] * 2)
    assert server.get("/").status == 200
