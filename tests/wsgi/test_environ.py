"""From the bytes of a head to an `environ`, checked against PEP 3333 and with the standard library's own checker. No socket."""

import io
import sys
import tempfile
from pathlib import Path
from typing import Any
from wsgiref.util import request_uri
from wsgiref.validate import validator

import pytest

import corpus
from epollard.protocol.request import Fields, Request
from epollard.wsgi.environ import Environment, FileWrapper

LOCAL = ("server", "80")
PEER = ("client", "1024")


def read(data: bytes) -> Request:
    found = corpus.reader().read(data)
    assert found is not None
    return found


def make(*fields: bytes, line: bytes = b"GET / HTTP/1.1", **options: Any) -> dict[str, Any]:
    """The `environ` of a request. It is made three times, because the second and the third come from memory."""
    environment = Environment(**{"threads": 1, "processes": 1, **options})
    request = read(b"\r\n".join((line, b"Host: example.com", *fields, b"", b"")))
    first, second, third = (environment.make(request, LOCAL, PEER) for _ in range(3))
    assert first == second == third
    assert len({id(first), id(second), id(third)}) == 3
    return third


ROWS: list[tuple[bytes, dict[str, str | None]]] = [
    (b"X-Some-Thing: a", {"HTTP_X_SOME_THING": "a"}),
    (b"content-type: text/plain", {"CONTENT_TYPE": "text/plain", "HTTP_CONTENT_TYPE": None}),
    (b"Content-Length: 05", {"CONTENT_LENGTH": "05", "HTTP_CONTENT_LENGTH": None}),
    (b"Transfer-Encoding: chunked", {"HTTP_TRANSFER_ENCODING": "chunked", "CONTENT_LENGTH": None}),
    (b"X: \xc3\xa9", {"HTTP_X": "\xc3\xa9"}),
    (b"X:", {"HTTP_X": ""}),
    (b"X: a\r\nY: b\r\nx: c", {"HTTP_X": "a,c", "HTTP_Y": "b"}),
    (b"Cookie: a=b\r\nCookie: c=d", {"HTTP_COOKIE": "a=b; c=d"}),
    # An underscore is never taken for a dash.
    (b"X_Forwarded_For: evil", {"HTTP_X_FORWARDED_FOR": None}),
    (b"X-Forwarded-For: good\r\nX_Forwarded-For: evil", {"HTTP_X_FORWARDED_FOR": "good"}),
    (b"X_Forwarded-For: evil\r\nX-Forwarded-For: good", {"HTTP_X_FORWARDED_FOR": "good"}),
    (b"Content_Length: 5", {"CONTENT_LENGTH": None, "HTTP_CONTENT_LENGTH": None}),
    (b"Content_Type: a", {"CONTENT_TYPE": None, "HTTP_CONTENT_TYPE": None}),
    # httpoxy
    (b"Proxy: http://evil", {"HTTP_PROXY": None}),
    (b"Proxy-Connection: a", {"HTTP_PROXY_CONNECTION": "a"}),
    # Names that look like variables of the server are fields like others.
    (b"Remote-Addr: evil", {"HTTP_REMOTE_ADDR": "evil", "REMOTE_ADDR": "client"}),
    (b"wsgi.input: evil", {"HTTP_WSGI.INPUT": "evil"}),
    (b"Script-Name: /evil\r\nPath-Info: /evil", {"SCRIPT_NAME": "", "PATH_INFO": "/"}),
    (b"Http-Host: evil", {"HTTP_HOST": "example.com", "HTTP_HTTP_HOST": "evil"}),
]


@pytest.mark.parametrize(("fields", "expected"), ROWS)
def test_fields(fields: bytes, expected: dict[str, str | None]):
    """Fields become variables by the rules of CGI (RFC 3875 4.1.18), and no field can set a variable of the server."""
    environ = make(fields)
    assert {name: environ.get(name) for name in expected} == expected


LINES: list[tuple[bytes, dict[str, str]]] = [
    (b"GET /a/b?c=d HTTP/1.1", {"PATH_INFO": "/a/b", "QUERY_STRING": "c=d", "REQUEST_URI": "/a/b?c=d", "RAW_URI": "/a/b?c=d"}),
    (b"GET /%C3%A9%2F HTTP/1.1", {"PATH_INFO": "/\xc3\xa9/", "REQUEST_URI": "/%C3%A9%2F"}),
    (b"PURGE / HTTP/1.0", {"REQUEST_METHOD": "PURGE", "SERVER_PROTOCOL": "HTTP/1.0", "SCRIPT_NAME": ""}),
    (b"GET / HTTP/1.2", {"SERVER_PROTOCOL": "HTTP/1.1"}),
    (
        b"GET http://b:81/c?d HTTP/1.1",
        {"HTTP_HOST": "b:81", "PATH_INFO": "/c", "QUERY_STRING": "d", "REQUEST_URI": "http://b:81/c?d"},
    ),
]


@pytest.mark.parametrize(("line", "expected"), LINES)
def test_lines(line: bytes, expected: dict[str, str]):
    """The variables that come from the request line; the target as it was sent is one of them."""
    environ = make(line=line)
    assert {name: environ[name] for name in expected} == expected


@pytest.mark.parametrize(
    ("options", "expected"),
    [({"threads": 1}, (False, False)), ({"threads": 2}, (True, False)), ({"processes": 2}, (False, True))],
)
def test_flags(options: dict[str, Any], expected: tuple[bool, bool]):
    """The flags show whether other threads and processes run the same application."""
    environ = make(**options)
    assert (environ["wsgi.multithread"], environ["wsgi.multiprocess"]) == expected
    assert environ["wsgi.version"] == (1, 0)
    assert environ["wsgi.run_once"] is False
    assert environ["wsgi.input_terminated"] is True


def test_an_environ_is_the_applications_own():
    """PEP 3333: an application may change it in any way. The `environ` of the next request is not affected."""
    environment = Environment(threads=1, processes=1)
    request = read(b"GET / HTTP/1.1\r\nHost: a\r\nX: y\r\n\r\n")
    fresh = dict(environment.make(request, LOCAL, PEER))
    for _ in range(4):
        environ = environment.make(request, LOCAL, PEER)
        assert type(environ) is dict
        assert environ == fresh
        environ.clear()
        environ["HTTP_X"] = "changed"


@pytest.mark.parametrize("clients", [0, 1, 2])
def test_requests_share_nothing_but_what_is_the_same(clients):
    """The same fields with another line, and the same line with other fields, in any order: each `environ` is its own.

    Each comes from a new client, all from one, or from two in turn.
    """
    environment = Environment(threads=1, processes=1)
    reader = corpus.reader()
    last: list[Fields | None] = [None] * clients
    for target, host in [("/a", "x"), ("/b", "x"), ("/a", "y"), ("http://z/b", "x"), ("/b", "y"), ("http://w/b", "x")] * 3:
        request = reader.read(f"GET {target} HTTP/1.1\r\nHost: {host}\r\n\r\n".encode(), 0, last.pop(0) if last else None)
        assert request is not None
        if clients:
            last.append(request.fields)
        for _ in range(2):
            environ = environment.make(request, LOCAL, PEER)
            assert environ["REQUEST_URI"] == target
            assert environ["HTTP_HOST"] == (target[7] if target.startswith("http") else host)
            environ.clear()


@pytest.mark.parametrize("row", corpus.rows("valid"), ids=str)
def test_the_standard_checker_accepts_it(row: corpus.Row):
    """`wsgiref.validate` has no complaint about any request of the corpus."""
    request = read(row.data)
    environ = Environment(threads=8, processes=2).make(request, ("a", "80"), ("::1", "1"))
    assert all(type(value) is str for name, value in environ.items() if not name.startswith("wsgi."))
    if request.line.path == "*" or request.line.method in ("get", "PURGE") or len(request.line.method) > 9:
        return  # the checker warns about methods that it does not know

    def app(environ: dict[str, Any], start_response: Any) -> list[bytes]:
        assert environ["wsgi.input"].read(1) == b""
        environ["wsgi.errors"].write("")
        environ["wsgi.errors"].flush()
        start_response("200 OK", [("Content-Type", "text/plain")])
        return [b""]

    result = validator(app)(environ, lambda status, headers, exc_info=None: lambda data: None)
    assert b"".join(result) == b""
    result.close()  # type: ignore[attr-defined]  # the validator's has one
    assert request_uri(environ).startswith("http://")


def test_errors_go_to_the_current_standard_error(monkeypatch: pytest.MonkeyPatch):
    """An application that redirects standard error redirects `wsgi.errors`, at any time."""
    errors = make()["wsgi.errors"]
    stream = io.StringIO()
    monkeypatch.setattr(sys, "stderr", stream)
    assert errors.write("a\n") == 2
    errors.writelines(["b", "c"])
    errors.flush()
    print("d", file=errors)
    assert stream.getvalue() == "a\nbcd\n"


def test_a_file_in_blocks():
    """The wrapper reads any object block by block to its end, and has `close` if the object has it."""
    wrapper = FileWrapper(io.BytesIO(b"abcde"), 2)
    assert list(wrapper) == [b"ab", b"cd", b"e"]
    wrapper.close()
    assert wrapper.filelike.closed

    class Bare:
        blocks = iter([b"x" * 65536, b"y", b""])

        def read(self, size: int) -> bytes:
            assert size == 65536
            return next(self.blocks)

    bare = FileWrapper(Bare())
    assert not hasattr(bare, "close")
    assert b"".join(bare) == b"x" * 65536 + b"y"


def test_a_file_is_read_from_its_position(tmp_path: Path):
    """The wrapper does not rewind it."""
    with tempfile.TemporaryFile(dir=tmp_path) as file:
        file.write(b"hello world")
        file.seek(6)
        assert b"".join(FileWrapper(file)) == b"world"
