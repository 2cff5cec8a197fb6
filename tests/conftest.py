"""Fixtures that start the real server. A test names what it needs; the fixtures start it, wait for it and clean up."""

import contextlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from epollard.net.loop import Loop
from harness import TRIGGERS, TWINS, Mode, Server

Start = Callable[..., Server]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """`start("apps.hello:app", workers=2)` starts a server for this test alone, with the default trigger and threads.

    At the end it is stopped, and what holds for every server is checked (`Server.stop`).
    """
    with _servers() as launch:
        count = 0

        def start(app: str | None = "apps.hello:app", *, wait: bool = True, **options: Any) -> Server:
            nonlocal count
            count += 1
            directory = tmp_path / f"server-{count}"
            directory.mkdir()
            server = launch(app, directory, **options)
            return server.started() if wait else server

        yield start


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Choose the modes of a test that uses the fixture `mode`: WSGI, level-triggered, eight threads, unless it is marked.

    `interfaces("wsgi", "asgi")` names the interfaces; for ASGI the application's twin is served (`harness.TWINS`).
    `every_trigger` adds edge-triggered and one-shot, `one_thread` adds `--threads 1`. Differences between the triggers
    below HTTP are tested as rows in tests/net/test_connection.py, so only promises that depend on the trigger are marked.
    """
    if "mode" in metafunc.fixturenames:
        definition = metafunc.definition
        mark = definition.get_closest_marker("interfaces")
        triggers = TRIGGERS if definition.get_closest_marker("every_trigger") else TRIGGERS[:1]
        threads = (8, 1) if definition.get_closest_marker("one_thread") else (8,)
        modes = [
            Mode(trigger, count, interface)
            for interface in (mark.args if mark else ("wsgi",))
            for trigger in triggers
            for count in (threads if interface == "wsgi" else threads[:1])  # ASGI has no use for threads
        ]
        metafunc.parametrize("mode", modes, ids=str, scope="module", indirect=True)


@pytest.fixture
def loop() -> Iterator[Loop]:
    """A loop that is turned by hand."""
    loop = Loop()
    yield loop
    loop.close()


@pytest.fixture
def sent(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """The signals that the code sends, as (pid, number). None is really sent."""
    found: list[tuple[int, int]] = []
    monkeypatch.setattr(os, "kill", lambda pid, number: found.append((pid, number)))
    return found


@pytest.fixture
def boots(tmp_path: Path) -> Path:
    """The directory from which `apps.boots` reads how to boot and what to answer."""
    found = tmp_path / "boots"
    found.mkdir()
    return found


@pytest.fixture
def served(start: Start, boots: Path) -> Start:
    """`served(workers=2)` starts a server of that application."""
    return lambda **options: start("apps.boots:app", env={"BOOTS": str(boots)}, **options)


@pytest.fixture(scope="module")
def mode(request: pytest.FixtureRequest) -> Mode:
    """See `pytest_generate_tests`."""
    found: Mode = request.param
    return found


@pytest.fixture(scope="module")
def serve(mode: Mode, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Start]:
    """`serve("apps.hello:app", **options)` is a server in each mode. Tests of a module that ask for the same server share it.

    So a test must leave it as it found it. A test that cannot do so passes `own=True`.
    """
    with _servers() as launch:
        shared: dict[str, Server] = {}

        def serve(app: str | None = "apps.hello:app", *, own: bool = False, **options: object) -> Server:
            options = {"trigger": mode.trigger, "threads": mode.threads, **options}
            if mode.interface == "asgi":
                app = TWINS.get(app or "", app)
            key = repr((app, sorted(options.items())))
            if own or key not in shared or shared[key].process.poll() is not None:
                server = launch(app, tmp_path_factory.mktemp("server"), **options).started()
                if own:
                    return server
                shared[key] = server
            return shared[key]

        yield serve


@contextlib.contextmanager
def _servers() -> Iterator[Start]:
    """Start servers. At the end, stop all of them and check that they stop properly."""
    with contextlib.ExitStack() as stack:

        def launch(app: str | None, directory: Path, **options: Any) -> Server:
            server = Server(app, directory, **options)
            stack.callback(server.kill)
            stopping.append(server)
            return server

        stopping: list[Server] = []
        yield launch
        for server in stopping:
            server.stop()
