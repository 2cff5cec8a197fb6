"""The demo application, called like any WSGI application, under `wsgiref.validate`. No server, no socket."""

import hashlib
import io
import json
import os
import platform
import re
import time
from dataclasses import dataclass
from typing import Any
from wsgiref.util import setup_testing_defaults
from wsgiref.validate import validator
from xml.etree import ElementTree

import pytest

from epollard import demo

application = validator(demo.application)


@dataclass
class Answer:
    status: str
    headers: dict[str, str]
    body: bytes


def ask(target: str, method: str = "GET", body: bytes = b"", /, **environ: Any) -> Answer:
    """Call the application once, as PEP 3333 requires, and close the iterable that it returns."""
    path, _, query = target.partition("?")
    defaults = {
        "REQUEST_METHOD": method,
        "SCRIPT_NAME": "",
        "PATH_INFO": path,
        "QUERY_STRING": query,
        "wsgi.input": io.BytesIO(body),
    }
    if body:
        defaults["CONTENT_LENGTH"] = str(len(body))
    environ = defaults | environ
    setup_testing_defaults(environ)
    answer = Answer("", {}, b"")

    def start_response(status: str, headers: list[tuple[str, str]], exc_info: Any = None) -> Any:
        answer.status, answer.headers = status, dict(headers)
        assert len(answer.headers) == len(headers), "no header twice"
        return io.BytesIO().write

    pieces = application(environ, start_response)
    try:
        answer.body = b"".join(pieces)
    finally:
        pieces.close()  # type: ignore[attr-defined]
    return answer


def test_hello() -> None:
    """`/hello` is exactly 13 bytes of plain text, with a matching Content-Length."""
    answer = ask("/hello")
    assert answer == Answer("200 OK", {"Content-Type": "text/plain", "Content-Length": "13"}, b"Hello, World!")


def test_json_names_the_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """`/json` names worker, generation, pid and Python of the responding process."""
    monkeypatch.setenv("EPOLLARD_WORKER_ID", "3")
    monkeypatch.setenv("EPOLLARD_GENERATION", "7")
    answer = ask("/json")
    assert answer.headers["Content-Type"] == "application/json"
    assert json.loads(answer.body) == {
        "message": "Hello, World!",
        "worker": "3",
        "generation": "7",
        "pid": os.getpid(),
        "python": platform.python_version(),
    }


def test_welcome_page(monkeypatch: pytest.MonkeyPatch) -> None:
    """The page shows the responding process, escaped, loads nothing from elsewhere, and has no placeholder left."""
    monkeypatch.setenv("EPOLLARD_WORKER_ID", "<3>")
    monkeypatch.setenv("EPOLLARD_GENERATION", "7")
    answer = ask("/")
    page = answer.body.decode()
    assert answer.headers["Content-Type"] == "text/html; charset=utf-8"
    assert int(answer.headers["Content-Length"]) == len(answer.body)
    for shown in (
        "&lt;3&gt;",
        "<dd>7</dd>",
        f"<dd>{os.getpid()}</dd>",
        f"<dd>{platform.python_version()}</dd>",
        "epollard module:app",
    ):
        assert shown in page
    assert "[[" not in page
    assert "<script" not in page
    assert not re.search(r"""(src|href)=["']?(https?:)?//""", page)


def test_every_link_of_the_page_is_a_route() -> None:
    """Every link of the welcome page gets a 200 response."""
    links = re.findall(r'<a href="([^"]+)"', ask("/").body.decode())
    assert len(links) >= 6
    for link in links:
        assert ask(link).status == "200 OK", link


def test_the_icon() -> None:
    """Browsers request an icon with every page, even with plain text that names none; the demo has one."""
    answer = ask("/favicon.ico")
    assert (answer.status, answer.headers["Content-Type"]) == ("200 OK", "image/svg+xml")
    assert ElementTree.fromstring(answer.body).tag == "{http://www.w3.org/2000/svg}svg"
    assert 'href="/favicon.ico"' in ask("/").body.decode()


@pytest.mark.parametrize("method", ["GET", "POST", "PUT", "DELETE", "PATCH", "OPTIONS"])
def test_echo(method: str) -> None:
    """`/echo` returns the request as the application saw it, whatever the method."""
    answer = ask("/echo?a=1&b=%20", method, b"x=1", HTTP_X_TOKEN="t", CONTENT_TYPE="text/plain")
    seen = json.loads(answer.body)
    assert (seen["method"], seen["path"], seen["query"], seen["body"]) == (method, "/echo", "a=1&b=%20", "x=1")
    assert seen["headers"]["X-Token"] == "t"
    assert seen["headers"]["Content-Type"] == "text/plain"
    assert seen["headers"]["Content-Length"] == "3"


def test_echo_loses_no_byte() -> None:
    """A body that is not UTF-8 comes back complete."""
    body = bytes(range(256))
    assert json.loads(ask("/echo", "POST", body).body)["body"].encode("utf-8", "surrogateescape") == body


def test_echo_has_a_limit() -> None:
    """A body over the limit gets a 413 response, and at most one piece beyond the limit is read."""
    body = io.BytesIO(bytes(4 * demo.MAX_ECHO))
    answer = ask("/echo", "POST", CONTENT_LENGTH=str(4 * demo.MAX_ECHO), **{"wsgi.input": body})
    assert answer.status == "413 Content Too Large"
    assert body.tell() <= demo.MAX_ECHO + demo.PIECE
    assert ask("/echo", "POST", bytes(demo.MAX_ECHO)).status == "200 OK"


def test_sleep() -> None:
    """`/sleep?ms=` responds no sooner than requested."""
    start = time.monotonic()
    answer = ask("/sleep?ms=30")
    assert time.monotonic() - start >= 0.03
    assert answer.body == b"slept 30 ms\n"


@pytest.mark.parametrize("count", [0, 1, 65, demo.PIECE - 1, demo.PIECE, demo.PIECE + 1, 3 * demo.PIECE, 3 * demo.PIECE + 7])
def test_bytes(count: int) -> None:
    """`/bytes?n=` is exactly this many bytes of the pattern, also across the seams of its pieces."""
    answer = ask(f"/bytes?n={count}")
    pattern = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/"
    assert answer.headers["Content-Length"] == str(count)
    assert answer.body == (pattern * (count // 64 + 1))[:count]


@pytest.mark.parametrize("count", [0, 1, 1000])
def test_stream(count: int) -> None:
    """`/stream?n=` is this many numbered lines, without a Content-Length, so that the server has to frame them."""
    answer = ask(f"/stream?n={count}")
    assert "Content-Length" not in answer.headers
    assert answer.body == b"".join(b"chunk %d\n" % number for number in range(count))


@pytest.mark.parametrize("method", ["POST", "PUT"])
@pytest.mark.parametrize("size", [0, 1, demo.PIECE, 5 * demo.PIECE + 3])
def test_upload(method: str, size: int) -> None:
    """`/upload` returns length and SHA-256 of the body, whatever its size."""
    body = os.urandom(size)
    assert json.loads(ask("/upload", method, body).body) == {"length": size, "sha256": hashlib.sha256(body).hexdigest()}


def test_upload_reads_to_the_end_if_the_server_marks_it() -> None:
    """A body without Content-Length (chunked) is read to its end if `wsgi.input_terminated` is set."""
    answer = ask("/upload", "POST", **{"wsgi.input": io.BytesIO(b"abc"), "wsgi.input_terminated": True})
    assert json.loads(answer.body)["length"] == 3


def test_upload_reads_no_byte_beyond_content_length() -> None:
    """If the server does not end the input itself, the bytes after the body (the next request) are not read."""
    stream = io.BytesIO(b"abcGET / HTTP/1.1")
    answer = ask("/upload", "POST", CONTENT_LENGTH="3", **{"wsgi.input": stream})
    assert json.loads(answer.body)["length"] == 3
    assert stream.tell() == 3


@pytest.mark.parametrize(
    "target",
    [
        f"{route}={value}"
        for route, most in (("/sleep?ms", demo.MAX_SLEEP), ("/bytes?n", demo.MAX_BYTES), ("/stream?n", demo.MAX_CHUNKS))
        for value in ("", "-1", "+1", "1_0", "0x10", "1.5", "1e3", "%31", "x", "\xb2", "9" * 400, str(most + 1))
    ],
)
def test_bad_numbers(target: str) -> None:
    """A number that is not plain decimal or is out of range gets a 400 response that names the range."""
    answer = ask(target)
    assert answer.status == "400 Bad Request"
    assert b"must be a whole number from 0 to" in answer.body


@pytest.mark.parametrize("path", ["/nothing", "/hello/", "//hello", "/HELLO", "/\xc3\xa4", "/<script>", ""])
def test_unknown_path(path: str) -> None:
    """An unknown path gets a 404 response that does not repeat it."""
    answer = ask(path, SCRIPT_NAME="" if path else "/mounted")
    assert answer.status == "404 Not Found"
    assert b"script" not in answer.body


@pytest.mark.parametrize(
    ("method", "path", "allowed"),
    [("POST", path, "GET, HEAD") for path in ("/", "/hello", "/json", "/sleep", "/bytes", "/stream")]
    + [("GET", "/upload", "POST, PUT"), ("DELETE", "/hello", "GET, HEAD")],
)
def test_wrong_method(method: str, path: str, allowed: str) -> None:
    """A wrong method gets a 405 response that names the right ones."""
    answer = ask(path, method)
    assert answer.status == "405 Method Not Allowed"
    assert answer.headers["Allow"] == allowed
