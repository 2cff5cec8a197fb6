"""Addresses: TCP over IPv4 and IPv6, Unix sockets, several of them; and never one that another server has."""

import re
import socket

import pytest

from harness import HAS_V6, Client

needs_v6 = pytest.mark.skipif(not HAS_V6, reason="this machine has no IPv6 loopback")


def target(url):
    """The address that a client connects to."""
    if url.startswith("unix:"):
        return url.removeprefix("unix:")
    host, _, port = url.removeprefix("http://").rpartition(":")
    return host.strip("[]").replace("0.0.0.0", "127.0.0.1"), int(port)


@pytest.mark.parametrize(
    "binds",
    [
        ["127.0.0.1:0"],
        ["0.0.0.0:0"],
        ["localhost:0"],
        ["unix:it.sock"],
        pytest.param(["[::1]:0"], marks=needs_v6),
        pytest.param(["[::]:0"], marks=needs_v6),
        ["127.0.0.1:0", "127.0.0.1:0", "unix:it.sock"],
        pytest.param(["127.0.0.1:0", "[::1]:0", "unix:one.sock", "unix:two.sock"], marks=needs_v6),
    ],
    ids=" ".join,
)
@pytest.mark.parametrize("workers", [1, 3])
def test_every_address_is_served(start, tmp_path, monkeypatch, binds, workers):
    """Each address is logged at the start, and served by all workers."""
    server = start("apps.hello:app", bind=binds, workers=workers)
    assert len(server.urls) >= len(binds)
    monkeypatch.chdir(tmp_path / "server-1")
    for url in server.urls:
        for _ in range(workers * 3):
            with Client(target(url)) as client:
                assert client.get("/").text == "Hello, world!"


def test_a_unix_socket_is_served_by_all_workers(start, tmp_path):
    """They share one queue: while one worker is busy the other one takes its connections."""
    path = f"{tmp_path}/it.sock"
    server = start("apps.hello:app", bind=f"unix:{path}", workers=2, threads=1)
    # While one worker sleeps the other has to take the next connections.
    with Client(path) as sleeper:
        sleeper.request("/sleep?0.5")
        pids = set()
        for _ in range(10):
            with Client(path) as client:
                pids.add(int(client.get("/pid").text))
        assert sleeper.response().text == "slept"
    assert len(pids) <= 2
    assert pids <= set(server.workers())


def test_a_stale_unix_socket_is_replaced(start, tmp_path):
    """A killed server has left its file behind."""
    path = f"{tmp_path}/it.sock"
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(path)
        dead.listen()
    start("apps.hello:app", bind=f"unix:{path}")
    with Client(path) as client:
        assert client.get("/").text == "Hello, world!"


def test_an_address_in_use_is_an_error_of_one_line(start):
    """Two servers never share a port, although the kernel would allow it: the second exits with 1, the first keeps serving."""
    first = start("apps.hello:app", workers=2)
    second = start("apps.hello:app", bind=f"127.0.0.1:{first.port}", workers=2, wait=False)
    assert second.ended() == 1
    lines = second.log.splitlines()
    assert len(lines) == 2  # the number of workers, and this:
    assert lines[1].endswith(f"cannot listen on 127.0.0.1:{first.port}: another server listens there")
    assert {first.get("/").text for _ in range(10)} == {"Hello, world!"}


@pytest.mark.parametrize(
    ("bind", "why"),
    [
        ("192.0.2.1:0", "Cannot assign requested address"),  # no machine has it: RFC 5737
        ("unix:/nowhere/it.sock", "No such file or directory"),
        ("nowhere.invalid:80", r"(Name or service|Temporary failure|No address).*"),  # never resolves: RFC 6761
    ],
)
def test_an_address_that_is_not_available_is_an_error_of_one_line(start, bind, why):
    """The server exits with 1, without a traceback and without starting a worker."""
    server = start("apps.hello:app", bind=bind, wait=False)
    assert server.ended() == 1
    assert re.fullmatch(rf".*cannot listen on {re.escape(bind)}: {why}", server.log.splitlines()[-1])
    assert len(server.log.splitlines()) == 2
