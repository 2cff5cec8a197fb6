"""Requests that the server refuses, each with its status, a closed connection, and one log line. No application is called."""

import json
import re

import pytest

from harness import wait_for

APP = "apps.routes:app"
pytestmark = pytest.mark.interfaces("wsgi", "asgi")
LIMITS = {"max_line": 200, "max_headers": 10, "max_header_bytes": 1000, "max_body": 1000}
OK = b"GET /hello HTTP/1.1\r\nHost: test\r\n"
POST = b"POST /digest HTTP/1.1\r\nHost: test\r\n"

REJECTED = {
    "not HTTP": (400, b"\x16\x03\x01\x02\x00"),
    "bare LF": (400, b"GET / HTTP/1.1\nHost: a\n\n"),
    "no Host": (400, b"GET / HTTP/1.1\r\n\r\n"),
    "two Hosts": (400, OK + b"Host: test\r\n\r\n"),
    "Host with a backslash": (400, b"GET / HTTP/1.1\r\nHost: a\\b\r\n\r\n"),
    "Host with two ports": (400, b"GET / HTTP/1.1\r\nHost: x:80:80\r\n\r\n"),
    "space before colon": (400, OK + b"X : y\r\n\r\n"),
    "folded line": (400, OK + b"X: y\r\n z\r\n\r\n"),
    "no colon": (400, OK + b"X\r\n\r\n"),
    "NUL": (400, OK + b"X: \0\r\n\r\n"),
    "lone CR": (400, OK + b"X: a\rb\r\n\r\n"),
    "fragment": (400, b"GET /#a HTTP/1.1\r\nHost: a\r\n\r\n"),
    "two spaces": (400, b"GET  / HTTP/1.1\r\nHost: a\r\n\r\n"),
    "bad length": (400, POST + b"Content-Length: +5\r\n\r\n"),
    "two lengths": (400, POST + b"Content-Length: 5\r\nContent-Length: 5\r\n\r\nabcde"),
    "list of lengths": (400, POST + b"Content-Length: 5, 5\r\n\r\nabcde"),
    "length and coding": (400, POST + b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"),
    "coding in 1.0": (400, b"POST / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"),
    "chunked twice": (400, POST + b"Transfer-Encoding: chunked, chunked\r\n\r\n0\r\n\r\n"),
    "bad chunk size": (400, POST + b"Transfer-Encoding: chunked\r\n\r\n0x1\r\na\r\n0\r\n\r\n"),
    "chunk without end": (400, POST + b"Transfer-Encoding: chunked\r\n\r\n1\r\nabc\r\n0\r\n\r\n"),
    "framing in a trailer": (400, POST + b"Transfer-Encoding: chunked\r\n\r\n0\r\nContent-Length: 5\r\n\r\n"),
    "long body": (413, POST + b"Content-Length: 1001\r\n\r\n"),
    "long body, all there": (413, POST + b"Content-Length: 1001\r\n\r\n" + b"x" * 1001),
    "endless length": (413, POST + b"Content-Length: " + b"9" * 300 + b"\r\n\r\n"),
    "long chunk": (413, POST + b"Transfer-Encoding: chunked\r\n\r\n3e9\r\n"),
    "long chunks": (413, POST + b"Transfer-Encoding: chunked\r\n\r\n1f4\r\n" + b"x" * 500 + b"\r\n1f5\r\n"),
    "long line": (414, b"GET /" + b"a" * 190 + b" HTTP/1.1\r\nHost: a\r\n\r\n"),
    "endless line": (414, b"GET /" + b"a" * 500),
    "expectation": (417, POST + b"Content-Length: 5\r\nExpect: miracles\r\n\r\n"),
    "many fields": (431, OK + b"X: y\r\n" * 10 + b"\r\n"),
    "long fields": (431, OK + b"X: " + b"y" * 1000 + b"\r\n\r\n"),
    "endless fields": (431, OK + b"X: " + b"y" * 1100),
    "CONNECT": (501, b"CONNECT a:443 HTTP/1.1\r\nHost: a\r\n\r\n"),
    "coding": (501, POST + b"Transfer-Encoding: gzip, chunked\r\n\r\n"),
    "not chunked": (400, POST + b"Transfer-Encoding: gzip\r\n\r\n"),  # RFC 9112 6.3: its end cannot be determined
    "HTTP/2": (505, b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"),
    "HTTP/3": (505, b"GET / HTTP/3.0\r\nHost: a\r\n\r\n"),
}


@pytest.fixture
def server(serve):
    return serve(APP, **LIMITS)


def rejections(server, client):
    """(status, reason) of each log line about this client."""
    port = client.socket.getsockname()[1]
    return re.findall(rf"rejected 127\.0\.0\.1:{port}: ([0-9]+) (.+)", server.log)


@pytest.mark.parametrize("before", [b"", OK + b"\r\n", OK + b"\r\n" + POST + b"Content-Length: 3\r\n\r\nabc"], ids=range(3))
@pytest.mark.parametrize(("status", "data"), REJECTED.values(), ids=REJECTED)
def test_refused(server, status, data, before):
    """Earlier requests are answered, the bad one is refused, later ones are not read; one log line has client and reason."""
    with server.connect() as client:
        client.send(before, data, OK, b"\r\n")
        for _ in range(before.count(b"HTTP/1.1")):
            assert client.response().status == 200
        response = client.response()
        assert response.status == status
        assert response.header("connection") == "close"
        assert response.header("date")
        assert client.rest() == b""
        ((logged, reason),) = wait_for(lambda: rejections(server, client))
        assert int(logged) == status
        assert reason.isprintable()
    assert "Traceback" not in server.log


@pytest.mark.parametrize(
    "data",
    [
        b"GET /" + b"a" * 177 + b" HTTP/1.1\r\nHost: a\r\n\r\n",
        OK + b"X: y\r\n" * 9 + b"\r\n",
        OK + b"X: " + b"y" * 900 + b"\r\n\r\n",
        POST + b"Content-Length: 1000\r\n\r\n" + b"x" * 1000,
        POST + b"Transfer-Encoding: chunked\r\n\r\n1f4\r\n" + b"x" * 500 + b"\r\n1f4\r\n" + b"x" * 500 + b"\r\n0\r\n\r\n",
    ],
    ids=["line", "fields", "bytes", "body", "chunks"],
)
def test_requests_up_to_the_limits_are_served(server, data):
    """A request that just reaches a limit is allowed."""
    with server.connect() as client:
        for _ in range(2):
            assert client.send(data).response().status == 200


@pytest.mark.interfaces("wsgi")  # in ASGI a body needs no file
def test_no_room_for_a_body(serve):
    """507 when the disk is full, and the worker keeps serving."""
    server = serve(APP, launcher=("prlimit", "--fsize=1000000"))
    with server.connect() as client:
        assert client.post("/digest", b"x" * 2_000_000).status == 507
        (line,) = wait_for(lambda: rejections(server, client))
        assert line[0] == "507"
    with server.connect() as client:
        assert json.loads(client.post("/digest", b"x" * 700_000).text)["length"] == 700_000
