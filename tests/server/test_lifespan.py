"""The lifespan of an ASGI application (lifespan 2.0) in a real server: startup, shutdown, and what a failure leads to."""

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
    """`served("usual", workers=2)` starts a server of an application with such a lifespan."""

    def served(kind, env=(), app=APP, **options):
        return start(app, env={"LIFESPAN": kind, "NOTES": str(notes), **dict(env)}, **options)

    return served


def test_startup_and_shutdown(served, notes):
    """Each happens once in every worker, whatever is requested in between."""
    server = served("usual", workers=2)
    assert notes.wait(2) == ["startup"] * 2
    for _ in range(5):
        assert server.get("/").status == 200
    server.signal(signal.SIGTERM)
    assert server.ended() == 0
    assert notes.lines == ["startup"] * 2 + ["shutdown"] * 2


def test_no_client_is_served_before_the_application_is_ready(served, notes, tmp_path):
    """A client waits until `lifespan.startup.complete`, and only then does the log report that the worker is ready."""
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
    """Each request has its own copy of the lifespan's state, one level deep (spec, "Lifespan State")."""
    server = served("usual")
    states = [json.loads(server.get("/").text)["state"] for _ in range(3)]
    assert states == [{"word": "kept", "shared": list(range(1, number + 1))} for number in range(3)]


@pytest.mark.parametrize("kind", ["none", "silent"])
def test_applications_without_a_lifespan(served, kind):
    """An application that raises, or returns, before it sends a message has no lifespan: no error, no state."""
    server = served(kind)
    assert json.loads(server.get("/").text)["state"] is None
    server.signal(signal.SIGTERM)
    assert server.ended() == 0
    assert "rror" not in server.log


@pytest.mark.parametrize("kind", ["fails", "fails_and_raises", "fails_and_waits"])
def test_an_application_that_cannot_start(served, kind):
    """The server exits with status 3, as if the application could not be imported, and logs the application's reason."""
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


def test_a_reload_to_an_application_that_cannot_start(served, notes, tmp_path):
    """The old workers stay, as with code that cannot be imported."""
    file = tmp_path / "it.toml"
    file.write_text(f"app = '{APP}'")
    server = served("usual", app=None, config=file)
    file.write_text("app = 'apps.lifespans:failing'")
    server.signal(signal.SIGHUP)
    server.wait_log("the application could not start: no database")
    assert json.loads(server.get("/").text)["pid"] == server.workers()[0]


def test_an_application_whose_lifespan_dies(served):
    """The log has its traceback, and the worker continues to serve."""
    server = served("dies")
    server.wait_log(r"application failed in its lifespan\n    Traceback")
    assert server.get("/").status == 200
    server.signal(signal.SIGTERM)
    assert server.ended() == 0


@pytest.mark.parametrize(
    ("kind", "logged"),
    [
        ("fails_at_the_end", r"application failed to shut down: not\\x0aflushed"),
        ("raises_at_the_end", r"application failed in its lifespan\n(.*\n)+    RuntimeError: the end failed"),
    ],
)
def test_an_application_that_cannot_shut_down(served, kind, logged):
    """The log has its reason, and the server exits as usual."""
    server = served(kind)
    server.signal(signal.SIGTERM)
    assert server.ended(5 * SCALE) == 0
    server.wait_log(logged)


def test_shutdown_comes_after_the_last_response(served, notes):
    """Whatever a request needs is there as long as it runs."""
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
    """There is little time, but the application is notified."""
    server = served("usual", graceful_timeout=60)
    server.signal(number)
    assert server.ended(5 * SCALE) == 0
    assert notes.lines == ["startup", "shutdown"]


def test_a_call_that_never_ends_does_not_prevent_the_shutdown(served, notes):
    """At the graceful deadline it is cancelled, and then the application shuts down."""
    server = served("usual", graceful_timeout=1)
    with server.connect() as client:
        client.request("/never")
        wait_for(lambda: "asked" in notes.lines)
        server.signal(signal.SIGTERM)
        assert server.ended() == 0
    assert notes.lines == ["startup", "asked", "cancelled", "shutdown"]
    server.wait_log("was ended by the supervisor because it was still busy 1 s after it was asked to exit")


def test_a_shutdown_that_hangs_is_cut_at_the_deadline(served, notes):
    """There is one graceful deadline for everything that a worker has to end."""
    server = served("hangs_at_the_end", graceful_timeout=1)
    asked = time.monotonic()
    server.signal(signal.SIGTERM)
    assert server.ended() == 0
    assert time.monotonic() - asked >= 1
    assert notes.lines == ["startup", "hanging"]
    assert "was killed by the supervisor because it was still busy 1 s after it was asked to exit" in server.log


def test_code_after_the_last_message_runs(served, notes):
    """`async with` and generators end after `lifespan.shutdown.complete`."""
    server = served("goes_on")
    server.signal(signal.SIGTERM)
    assert server.ended() == 0
    assert notes.lines == ["startup", "shutdown", "closed"]


def test_tasks_of_the_lifespan_are_cancelled(served, notes):
    """Tasks that the application has left running are cancelled after its shutdown."""
    server = served("background")
    server.signal(signal.SIGTERM)
    assert server.ended() == 0
    assert notes.lines == ["startup", "shutdown", "cancelled"]
    assert "destroyed" not in server.log


def test_messages_that_may_not_be_sent(served, notes):
    """They raise an exception in the application, which may continue."""
    server = served("nonsense")
    assert server.get("/").status == 200
    assert notes.lines[:2] == ["RuntimeError", "startup"]


def test_a_worker_that_dies_is_replaced_by_one_with_its_own_lifespan(served, notes):
    """The dead worker's application is not shut down; its replacement's starts up."""
    server = served("usual")
    os.kill(server.workers()[0], signal.SIGKILL)
    wait_for(lambda: notes.lines == ["startup"] * 2)
    assert server.get("/").status == 200
