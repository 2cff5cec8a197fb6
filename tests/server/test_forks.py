"""Promises to applications that fork processes of their own."""

import signal
from pathlib import Path

import pytest

from harness import wait_for

APP = "apps.forks:app"
pytestmark = pytest.mark.one_thread


def test_a_child_of_the_application_holds_no_client(serve, tmp_path):
    """A client whose connection the worker closes notices it, though a child that was forked meanwhile lives on."""
    server = serve(APP)
    here = tmp_path / "here"
    with server.connect() as client, server.connect() as other:
        assert other.get("/").text == "hello"
        child = int(client.get(f"/fork?{here}").text)
        wait_for(here.exists)
        assert client.get("/", close=True).text == "hello"
        assert client.closed()
        assert other.get("/").text == "hello"
        assert server.get(f"/end?{child}").text == "-15"


def test_a_signal_to_a_child_is_not_one_to_its_worker(serve, tmp_path):
    """`terminate()` of multiprocessing ends the child, by SIGTERM's default; the worker carries on."""
    server = serve(APP)
    before = server.workers()
    here = tmp_path / "here"
    child = int(server.get(f"/fork?{here}").text)
    wait_for(here.exists)
    assert server.get(f"/end?{child}").text == "-15"
    assert server.workers() == before
    assert server.get("/").text == "hello"


def test_a_child_of_the_import_holds_no_address(start, tmp_path):
    """If it outlives the server, another server can have the address."""
    (tmp_path / "app").mkdir()
    (tmp_path / "app" / "daemon.py").write_text(
        "import os, time\n"
        "from apps.hello import app\n"
        "if not os.fork():\n"
        f"    while not os.path.exists({str(tmp_path / 'end')!r}):\n"
        "        time.sleep(0.01)\n"
        "    os._exit(0)\n"
    )
    server = start("daemon:app", chdir=tmp_path / "app")
    server.signal(signal.SIGTERM)
    assert server.ended() == 0
    start("apps.hello:app", bind=f"127.0.0.1:{server.port}")
    (tmp_path / "end").touch()


def test_a_child_does_not_keep_the_loop_busy(serve, tmp_path):
    """epoll reports open files, not descriptors: a child must not keep what the worker closes, or there are events for ever."""
    server = serve(APP)
    here = tmp_path / "here"
    with server.connect() as client:
        child = int(client.get(f"/fork?{here}").text)
        wait_for(here.exists)
    before = float(server.get("/cpu").text)
    [worker] = [pid for pid in server.workers() if pid != child]
    turns = _switches(worker)
    wait_for(lambda: _switches(worker) > turns + 3)  # it ticks: some seconds have passed
    assert float(server.get("/cpu").text) - before < 0.5
    assert server.get(f"/end?{child}").text == "-15"


def _switches(pid: int) -> int:
    """How often the threads of a process have waited."""
    lines = [line for path in Path(f"/proc/{pid}/task").glob("*/status") for line in path.read_text().splitlines()]
    return sum(int(line.split()[1]) for line in lines if line.startswith("voluntary_ctxt_switches"))
