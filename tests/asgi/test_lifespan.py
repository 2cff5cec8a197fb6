"""The lifespan of an ASGI application (lifespan 2.0), within the test's process: which messages lead to which end."""

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

import pytest

from epollard.asgi import lifespan as module
from epollard.asgi.lifespan import Lifespan, StartupError

App = Callable[[Any, Any, Any], Coroutine[Any, Any, None]]
STARTED = {"type": "lifespan.startup.complete"}
STOPPED = {"type": "lifespan.shutdown.complete"}


def app(*steps: Any) -> App:
    """An application that receives (`receive`), sends a message, raises an exception, or awaits what a function returns."""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        for step in steps:
            if step == "receive":
                scope["state"].setdefault("seen", []).append((await receive())["type"])
            elif isinstance(step, dict):
                await send(step)
            elif isinstance(step, BaseException):
                raise step
            else:
                await step(scope)

    return app


async def live(app: App) -> Lifespan:
    """Startup and shutdown."""
    lifespan = Lifespan(app)
    await lifespan.startup()
    await lifespan.shutdown()
    return lifespan


async def hang(scope: Any) -> None:
    await asyncio.Event().wait()


USUAL = ("receive", STARTED, "receive", STOPPED)


def test_startup_and_shutdown() -> None:
    """One message for each, in this order, and a `state` for the requests."""
    lifespan = asyncio.run(live(app(*USUAL)))
    assert lifespan.supported
    assert lifespan.state == {"seen": ["lifespan.startup", "lifespan.shutdown"]}


def test_the_scope() -> None:
    """The type, the versions and the state, as in the specification."""
    scopes = []

    async def keep(scope: Any) -> None:
        scopes.append(scope)

    lifespan = asyncio.run(live(app(keep, *USUAL)))
    assert scopes == [{"type": "lifespan", "asgi": {"version": "3.0", "spec_version": "2.0"}, "state": lifespan.state}]


@pytest.mark.parametrize("steps", [(), ("receive",), (RuntimeError("http only"),), ("receive", SystemExit(1))])
def test_an_application_without_a_lifespan(capfd: pytest.CaptureFixture[str], steps: tuple[Any, ...]) -> None:
    """It returns, or raises, before it has sent a message: that is no error."""
    assert not asyncio.run(live(app(*steps))).supported
    assert capfd.readouterr().err == ""


FAILED = {"type": "lifespan.startup.failed", "message": "no database"}


@pytest.mark.parametrize(
    ("steps", "reason"),
    [
        (("receive", FAILED), "no database"),
        (("receive", FAILED, RuntimeError("and raises")), "no database"),
        (("receive", FAILED, hang), "no database"),
        (("receive", {"type": "lifespan.startup.failed"}), ""),
    ],
)
def test_an_application_that_cannot_start(capfd: pytest.CaptureFixture[str], steps: tuple[Any, ...], reason: str) -> None:
    """`StartupError` with the application's reason, whatever it does after that; no traceback."""

    async def start() -> None:
        lifespan = Lifespan(app(*steps))
        try:
            await lifespan.startup()
        finally:
            assert lifespan._task is not None
            lifespan._task.cancel()

    with pytest.raises(StartupError) as caught:
        asyncio.run(start())
    assert str(caught.value) == f"the application could not start: {reason}"
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize(
    ("steps", "logged"),
    [
        (("receive", STARTED, "receive", {"type": "lifespan.shutdown.failed", "message": "not\nflushed"}),
         r"application failed to shut down: not\x0aflushed"),
        (("receive", STARTED, "receive", RuntimeError("on purpose")), "application failed in its lifespan\n    Traceback"),
        (("receive", STARTED, RuntimeError("on purpose")), "application failed in its lifespan\n    Traceback"),
        (("receive", STARTED), ""),
        (USUAL, ""),
    ],
)  # fmt: skip
def test_how_a_lifespan_ends(capfd: pytest.CaptureFixture[str], steps: tuple[Any, ...], logged: str) -> None:
    """A failure goes to the log, and shutdown returns."""
    asyncio.run(live(app(*steps)))
    written = capfd.readouterr().err
    assert logged in written
    assert bool(written) == bool(logged)


def test_what_follows_the_last_message(monkeypatch: pytest.MonkeyPatch) -> None:
    """It may come to its end; what does not end in time is cancelled."""
    ends = []

    async def end(scope: Any) -> None:
        await asyncio.sleep(0)
        ends.append("end")

    async def never(scope: Any) -> None:
        try:
            await asyncio.Event().wait()
        finally:
            ends.append("cancelled")

    asyncio.run(live(app(*USUAL, end)))
    monkeypatch.setattr(module, "EXIT_SECONDS", 0.01)
    asyncio.run(live(app(*USUAL, never)))
    assert ends == ["end", "cancelled"]


@pytest.mark.parametrize(
    "message",
    [{"type": "lifespan.nonsense"}, {"type": "http.response.start"}, STARTED, FAILED],
    ids=lambda message: message["type"],
)
def test_what_may_not_be_sent(message: dict[str, Any]) -> None:
    """An unknown message, or a second answer to startup, is an error of the application, which may go on."""
    found = []

    async def wrong(scope: Any, receive: Any, send: Any) -> None:
        await receive()
        await send(STARTED)
        try:
            await send(message)
        except RuntimeError as error:
            found.append(str(error))
        await receive()
        await send(STOPPED)

    assert asyncio.run(live(wrong)).supported
    assert found == [f"unexpected in a lifespan: {message['type']!r}"]
