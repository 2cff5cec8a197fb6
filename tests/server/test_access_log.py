"""The access log: one line on standard output for each response, with what was really sent; clients cannot forge lines."""

import json
import re
import time

import pytest

from gates import Notes
from harness import wait_for

APP = "apps.routes:app"
pytestmark = pytest.mark.interfaces("wsgi", "asgi")
TEXT = re.compile(
    r'(\S+) - - \[(\d\d/[A-Z][a-z]{2}/\d{4}:\d\d:\d\d:\d\d \+0000)\] "(\S+) (\S+) (HTTP/1\.[01])" (\d{3}) (\d+) (\d+\.\d{6})'
)


def lines(server, mark, count):
    """Wait until `count` lines have a target with `mark`, and return them."""
    wait_for(lambda: len(find(server, mark)) >= count, lambda: f"{count} of {mark}, not {server.access}")
    return find(server, mark)


def find(server, mark):
    return [line for line in server.access.splitlines() if mark in line]


@pytest.mark.parametrize(
    ("target", "status", "size"),
    [
        ("/hello", 200, 13),
        ("/size?n=100000", 200, 100_000),
        ("/stream?n=10", 200, 100),
        ("/written", 200, 11),
        ("/pieces", 200, 11),
        ("/status?status=204+No", 204, 0),
        ("/raises", 500, 22),
        ("/pause?ms=20", 200, None),
        ("/bad?kind=none", 500, 22),
        ("/length?length=3&bytes=5", 200, 3),
    ],
)
def test_text(serve, target, status, size):
    """One line for each request: client, time, request line, status, bytes of the body, seconds."""
    server = serve(APP)
    separator = "&" if "?" in target else "?"
    mark = f"mark={time.monotonic_ns()}"
    with server.connect() as client:
        for _ in range(3):
            client.get(f"{target}{separator}{mark}")
    found = lines(server, mark, 3)
    assert len(found) == 3
    for line in found:
        match = TEXT.fullmatch(line)
        assert match, line
        host, _, method, logged, protocol, code, sent, seconds = match.groups()
        assert (host, method, logged, protocol) == ("127.0.0.1", "GET", f"{target}{separator}{mark}", "HTTP/1.1")
        assert int(code) == status
        assert size is None or int(sent) == size
        assert 0 <= float(seconds) < 10
        if "pause" in target:
            assert float(seconds) >= 0.02


def test_json(serve):
    """The same as one JSON object per line, whatever the client puts into its fields."""
    server = serve(APP, access_log="json")
    with server.connect() as client:
        client.send(b'GET /size?n=5&json"\\ HTTP/1.1\r\nHost: test\r\nUser-Agent: a"\\b\xe9\xff\t\r\n\r\n')
        assert client.response().status == 200
    (line,) = lines(server, "json", 1)
    found = json.loads(line)
    assert found["target"] == '/size?n=5&json"\\'
    assert (found["client"], found["method"], found["status"], found["bytes"]) == ("127.0.0.1", "GET", 200, 5)
    assert found["agent"].startswith('a"\\b')
    assert found["worker"] == server.workers()[0]


def test_off(serve):
    """With `--access-log off` nothing is written to standard output."""
    server = serve(APP, access_log="off")
    for _ in range(3):
        assert server.get("/hello").status == 200
    assert server.access == ""


def test_a_client_cannot_forge_lines(serve):
    """Quotes and backslashes in a target are escaped, so a line stays one line and its fields stay separate."""
    server = serve(APP)
    with server.connect() as client:
        client.send(b'GET /target?"forged" HTTP/1.1\r\nHost: a\r\n\r\n').response()
        client.send(b'GET /target?\\"forged HTTP/1.1\r\nHost: a\r\n\r\n').response()
    found = lines(server, "forged", 2)
    assert [line.split(" ")[6] for line in found] == [r"/target?\"forged\"", r"/target?\\\"forged"]


def test_a_client_that_leaves_is_logged(serve, tmp_path):
    """The line has the number of bytes that were sent until the client left."""
    server = serve(APP)
    log = Notes(tmp_path / "log")
    mark = f"mark={time.monotonic_ns()}"
    with server.connect() as client:
        client.request(f"/closing?kind=endless&log={log}&{mark}")
        client.socket.recv(1000)
    log.wait(1)
    (line,) = lines(server, mark, 1)
    assert int(TEXT.fullmatch(line)[7]) >= 65536
