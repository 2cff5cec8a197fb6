"""The knobs of the article, each observed from outside the process: by proc(5), by socket options, by what the kernel does."""

import json
import os
import re
import select
import shutil
import signal
import socket
import subprocess
import time
from pathlib import Path

import pytest

from gates import Gate
from harness import SCALE, Client, wait_for

APP = "apps.routes:app"
pytestmark = pytest.mark.every_trigger
EDGE, ONESHOT = 0x80000000, 0x40000000  # EPOLLET, EPOLLONESHOT (epoll.h)


def masks(pid):
    """The mask of each descriptor that an epoll of the process watches: proc_pid_fdinfo(5)."""
    found: dict[int, int] = {}
    for entry in Path(f"/proc/{pid}/fd").iterdir():
        try:
            if os.readlink(entry) == "anon_inode:[eventpoll]":
                text = Path(f"/proc/{pid}/fdinfo/{entry.name}").read_text()
                found |= {int(fd): int(mask, 16) for fd, mask in re.findall(r"tfd:\s+(\d+) events:\s+([0-9a-f]+)", text)}
        except FileNotFoundError:
            pass
    return found


def test_trigger(serve, mode):
    """Connections are registered as the option says; listeners are always level-triggered."""
    server = serve(APP)
    with server.connect() as client:
        for _ in range(2):
            fd = int(client.get("/own_fd").text)
        (pid,) = server.workers()
        watched = wait_for(lambda: masks(pid).get(fd), "the connection is not watched")
        expected = {"level": 0, "edge": EDGE, "oneshot": ONESHOT}[mode.trigger]
        assert watched & (EDGE | ONESHOT) == expected
        others = [mask for other, mask in masks(pid).items() if other != fd]
        assert others
        assert not any(mask & (EDGE | ONESHOT) for mask in others)


@pytest.mark.parametrize(("tcp", "nodelay", "cork"), [("nodelay", 1, 0), ("cork", 0, 1), ("default", 0, 0)])
def test_tcp_options(serve, tcp, nodelay, cork):
    """getsockopt(2) of an accepted connection shows the option."""
    found = json.loads(serve(APP, tcp=tcp).get("/options").text)
    assert {name: bool(value) for name, value in found.items()} == {"TCP_NODELAY": bool(nodelay), "TCP_CORK": bool(cork)}


@pytest.mark.parametrize("tcp", ["nodelay", "cork", "default"])
def test_no_response_waits_for_a_cork(serve, tcp):
    """Complete responses leave at once on persistent connections: only unfinished ones wait for the 200 ms of a cork."""
    server = serve(APP, tcp=tcp)
    with server.connect() as client:
        begun = time.monotonic()
        for _ in range(10):
            assert client.get("/hello").status == 200
            assert client.get("/stream?n=5").status == 200
            assert client.post("/read?how=read", b"abc").status == 200
        assert time.monotonic() - begun < 4 * SCALE  # 30 times 200 ms would be 6 s


def pushes(server, tmp_path):
    """Whether the first piece of a stream arrives before the application has made the second one."""
    with Gate(tmp_path / "gate") as gate, server.connect() as client:
        client.request(f"/gated_stream/{gate.path}?fifo={gate.path}")
        gate.wait()
        early = not client.quiet(0.08)
        gate.open()
        assert client.response().text == "before after"
        return early


@pytest.mark.parametrize(("tcp", "early"), [("nodelay", True), ("cork", False)])
def test_a_cork_holds_small_pieces_back(serve, tmp_path, tcp, early):
    """Pieces smaller than a segment wait for the next ones; nodelay sends each of them at once."""
    assert pushes(serve(APP, tcp=tcp), tmp_path) is early


def send_queue(server):
    """The listener's backlog, which `ss -ltn` shows as Send-Q."""
    if not shutil.which("ss"):
        pytest.skip("ss(8) is not installed")
    shown = subprocess.run(["ss", "-Hltn", f"sport = :{server.port}"], capture_output=True, text=True, check=True).stdout
    return int(shown.split()[2])


def connected(sock):
    """Whether the handshake is complete."""
    try:
        return bool(sock.getpeername())
    except OSError:
        return False


@pytest.mark.parametrize("backlog", [1, 20])
def test_backlog(start, backlog):
    """That many connections and one more (listen(2)) wait for a worker that does not accept; one more is not established."""
    server = start(APP, backlog=backlog)
    assert send_queue(server) == backlog
    (pid,) = server.workers()
    os.kill(pid, signal.SIGSTOP)
    waiting = []
    try:
        for number in range(backlog + 2):
            sock = socket.socket()
            waiting.append(sock)
            sock.setblocking(False)
            sock.connect_ex(server.address)
            if number <= backlog:
                wait_for(lambda sock=sock: connected(sock), f"connection {number}")
                sock.send(b"G")  # a silent client is not put into the queue
        # The handshake of the last one is repeated, and refused, after a second at the earliest.
        assert not select.select([], waiting[-1:], [], 0.3)[1]
    finally:
        os.kill(pid, signal.SIGCONT)
        for sock in waiting:
            sock.close()
    assert server.get("/hello").status == 200


def test_backlog_of_the_system(start):
    """The default is as many as the system allows."""
    assert send_queue(start(APP)) == int(Path("/proc/sys/net/core/somaxconn").read_text())


@pytest.mark.parametrize("threads", [1, 3, 8])
def test_threads(start, tmp_path, threads):
    """That many requests run at the same time, and not one more."""
    server = start(APP, threads=threads)
    gates = [Gate(tmp_path / f"gate-{number}") for number in range(threads + 1)]
    clients: list[Client] = []
    for gate in gates:
        clients.append(server.connect())
        clients[-1].request(f"/gate/{gate.path}?fifo={gate.path}")
        if gate is not gates[-1]:
            gate.wait()
    assert clients[-1].quiet(0.1)
    with pytest.raises(AssertionError, match="has not reached"):
        gates[-1].wait(0.1)
    for gate, client in zip(gates, clients, strict=True):
        gate.wait().open()
        assert client.response().text == "through"
        client.close()
