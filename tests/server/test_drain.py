"""TERM: readiness fails first, no client that has connected is lost, idle clients get a last chance."""

import contextlib
import json
import re
import signal
import socket
import time

import pytest

from harness import SCALE, Client, wait_for
from load import Load

CONTROL = "apps.control:app"
HELLO = "apps.hello:app"
ANY = "127.0.0.1:0"


def readiness(server):
    with Client(server.admin) as client:
        answer = client.get("/readyz", host="localhost")
    return answer.status, json.loads(answer.body)["reasons"]


def test_readiness_fails_first_while_the_server_keeps_serving(start):
    """During the delay /readyz fails, but new clients are served, old ones stay, and workers are replaced."""
    server = start(CONTROL, workers=2, admin=ANY, drain_delay="3s")
    with server.connect() as client:
        assert client.get("/").text == "hello"
        asked = time.monotonic()
        server.signal(signal.SIGTERM)
        assert wait_for(lambda: (found := readiness(server))[0] == 503 and found)[1] == ["the server is draining"]
        answer = client.get("/")
        assert answer.text == "hello"
        assert answer.header("connection") is None
        server.connect().request("/exit?1").close()
        server.wait_log("is ready")
        assert server.get("/").text == "hello"
        assert time.monotonic() - asked < 3  # or this test has not seen the delay
        assert server.ended() == 0
        assert time.monotonic() - asked >= 3
    assert "SIGTERM: /readyz fails from now on; draining begins in 3 s" in server.log


@pytest.mark.parametrize("second", [signal.SIGTERM, signal.SIGINT])
def test_a_second_signal_does_not_wait_for_the_delay(start, second):
    """The sender of a second signal wants no delay."""
    server = start(CONTROL, drain_delay="60s")
    server.signal(signal.SIGTERM)
    server.wait_log("draining begins in")
    server.signal(second)
    assert server.ended(5 * SCALE) == 0


def test_a_server_that_drains_takes_no_commands(start):
    """A server that is about to end is not reloaded or scaled, be it by signal or by command."""
    server = start(CONTROL, admin=ANY, drain_delay="1s")
    server.signal(signal.SIGTERM)
    server.wait_log("draining begins in")
    server.signal(signal.SIGHUP)
    server.signal(signal.SIGTTIN)
    with Client(server.admin) as client:
        assert client.post("/scale?workers=3", b"", host="localhost").status == 409
    assert server.ended() == 0
    assert "scaling" not in server.log
    assert "generation" not in server.log


@pytest.mark.parametrize("options", [{}, {"steer": "off"}, {"bind": "[::1]:0"}], ids=["steered", "hash", "v6"])
@pytest.mark.parametrize("workers", [1, 4])
def test_clients_that_have_connected_are_answered(start, options, workers):
    """Clients that have connected and sent nothing are not in our queues yet; TERM waits for them, and all are answered."""
    server = start(HELLO, workers=workers, **options)
    with contextlib.ExitStack() as stack:
        silent = [stack.enter_context(server.connect()) for _ in range(40)]
        server.signal(signal.SIGTERM)
        server.wait_log("SIGTERM: shutting down")
        for client in silent:
            answer = client.get("/")
            assert answer.text == "Hello, world!"
        assert server.ended() == 0
    assert "stopped: 40 connections accepted, 40 requests answered, 0 cut short" in server.log


def test_a_client_that_comes_too_late_is_refused_and_not_reset(start):
    """While earlier clients are waited for, a new one is not accepted and then dropped: its connection is refused."""
    server = start(HELLO)
    with server.connect() as silent:
        server.signal(signal.SIGTERM)
        server.wait_log("SIGTERM: shutting down")
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(server.address, 10 * SCALE)
        assert silent.socket.recv(1) == b""  # an orderly end
    assert server.ended() == 0


def test_idle_clients_have_a_last_chance(start):
    """A kept-alive connection may send one more request after TERM; the response says that it closes."""
    server = start(HELLO, workers=2, log_level="debug")
    with contextlib.ExitStack() as stack:
        clients = [stack.enter_context(server.connect()) for _ in range(20)]
        for client in clients:
            assert client.get("/").header("connection") is None
        server.signal(signal.SIGTERM)
        wait_for(lambda: server.log.count(" draining: ") == 2)  # and no later, because that time is short
        for client in clients:
            client.request("/")
        for client in clients:
            answer = client.response()
            assert answer.status == 200
            assert answer.header("connection") == "close"
            assert client.closed()
        assert server.ended() == 0
    assert "20 connections accepted, 40 requests answered, 0 cut short" in server.log


def test_idle_clients_see_an_orderly_end(start):
    """A client that sends nothing more sees the end of the stream, and no reset."""
    server = start(HELLO)
    with server.connect() as client:
        client.get("/")
        server.signal(signal.SIGTERM)
        assert client.socket.recv(1) == b""
        assert server.ended() == 0


def test_term_under_load_loses_nothing(start):
    """60 clients, half of them on kept connections: all that connect are answered, and the last log line counts them."""
    server = start(HELLO, workers=3)
    with Load(server.address, clients=60) as load:
        wait_for(lambda: load.count > 2000)
        server.signal(signal.SIGTERM)
        assert server.ended() == 0
    assert [failure for failure in load.failures if not failure.refused] == []
    found = re.search(r"stopped: (\d+) connections accepted, (\d+) requests answered, 0 cut short", server.log)
    assert found, server.log
    assert int(found[2]) == load.count
