"""From the bytes of a head to an ASGI `scope`, as the specification requires. Of the socket only the name is needed."""

import socket
from types import SimpleNamespace
from typing import Any, cast

import pytest

import corpus
from epollard.asgi.scope import Scope, Scopes
from epollard.net.connection import Connection
from epollard.protocol.request import Request

OFFERED: dict[str, dict[str, Any]] = {
    "http.response.pathsend": {},
    "http.response.zerocopysend": {},
    "http.response.early_hint": {},
}
UPGRADE = (b"Connection: Upgrade", b"Upgrade: websocket")


class FakeConnection(SimpleNamespace):
    """What a scope needs of a connection."""

    def __init__(self, peer: tuple[str, str] = ("192.0.2.1", "1024"), **more: Any) -> None:
        super().__init__(peer=peer, local=("192.0.2.2", "80"), memo=None, **more)

    def remember(self, memo: object) -> None:
        self.memo = memo


def read(*fields: bytes, line: bytes = b"GET / HTTP/1.1") -> Request:
    found = corpus.reader().read(b"\r\n".join((line, *(fields or (b"Host: test",)), b"", b"")))
    assert found is not None
    return found


def make(*fields: bytes, line: bytes = b"GET / HTTP/1.1", state: dict[str, Any] | None = None, **more: Any) -> Scope:
    """The scope of a request. It is made three times, since the second and the third time it is remembered."""
    scopes = Scopes()
    scopes.state = state
    connection = cast(Connection, FakeConnection(**more))
    request = read(*fields, line=line)
    first, second, third = (scopes.make(connection, request) for _ in range(3))
    assert first == second == third
    assert len({id(first), id(second), id(third)}) == 3
    return third


def test_scope() -> None:
    """Every key of the specification with its type; header names in lower case, values as they came, in their order."""
    fields = b"Host: example.org:81", b"X-One: \t1 ", b"x-one: \xff", b"X-Empty:"
    assert make(*fields, line=b"PUT /%C3%A9?a=%20b&c HTTP/1.1", state={"word": "of the lifespan"}) == {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.3"},
        "http_version": "1.1",
        "method": "PUT",
        "scheme": "http",
        "path": "/\u00e9",
        "raw_path": b"/%C3%A9",
        "query_string": b"a=%20b&c",
        "root_path": "",
        "headers": [(b"host", b"example.org:81"), (b"x-one", b"1"), (b"x-one", b"\xff"), (b"x-empty", b"")],
        "client": ("192.0.2.1", 1024),
        "server": ("192.0.2.2", 80),
        "state": {"word": "of the lifespan"},
        "extensions": OFFERED,
    }


def test_scope_of_a_websocket() -> None:
    """As for HTTP, except for what the specification has for a WebSocket, and without a method."""
    http = make(b"Host: test", *UPGRADE, line=b"GET /chat?x HTTP/1.0")
    assert http["type"] == "http"  # HTTP/1.0 has no upgrade
    found = make(b"Host: test", *UPGRADE, line=b"GET /chat?x HTTP/1.1")
    assert found == {
        "type": "websocket",
        "asgi": {"version": "3.0", "spec_version": "2.5"},
        "http_version": "1.1",
        "scheme": "ws",
        "path": "/chat",
        "raw_path": b"/chat",
        "query_string": b"x",
        "root_path": "",
        "headers": [(b"host", b"test"), (b"connection", b"Upgrade"), (b"upgrade", b"websocket")],
        "client": ("192.0.2.1", 1024),
        "server": ("192.0.2.2", 80),
        "subprotocols": [],
        "extensions": {"websocket.http.response": {}},
    }


@pytest.mark.parametrize(
    ("fields", "line"),
    [
        (UPGRADE, b"HEAD / HTTP/1.1"),
        (UPGRADE, b"POST / HTTP/1.1"),
        ((b"Connection: Upgrade", b"Upgrade: h2c"), b"GET / HTTP/1.1"),
        ((b"Connection: Upgrade",), b"GET / HTTP/1.1"),
    ],
)
def test_what_asks_for_no_websocket(fields: tuple[bytes, ...], line: bytes) -> None:
    """Another method and another upgrade are ordinary requests."""
    assert make(b"Host: test", *fields, line=line)["type"] == "http"


@pytest.mark.parametrize(
    ("target", "path", "raw_path", "query"),
    [
        (b"/scope", "/scope", b"/scope", b""),
        (b"/scope?", "/scope", b"/scope", b""),
        (b"/scope?a?b", "/scope", b"/scope", b"a?b"),
        (b"/scope/%2f%2525%20+", "/scope//%25 +", b"/scope/%2f%2525%20+", b""),
        (b"/scope/%E2%82%AC", "/scope/\u20ac", b"/scope/%E2%82%AC", b""),
        (b"/scope/%ff%41", "/scope/\ufffdA", b"/scope/%ff%41", b""),
        (b"/scope/%ED%A0%80", "/scope/\ufffd\ufffd\ufffd", b"/scope/%ED%A0%80", b""),
        (b"/scope/%zz%", "/scope/%zz%", b"/scope/%zz%", b""),
        (b"/scope//a/../b", "/scope//a/../b", b"/scope//a/../b", b""),
        (b"http://example.org/scope?a", "/scope", b"/scope", b"a"),
        (b"http://example.org/scope/%41?a=http://b/", "/scope/A", b"/scope/%41", b"a=http://b/"),
        (b"http://example.org?x", "/", b"/", b"x"),
        (b"http://example.org", "/", b"/", b""),
    ],
)
def test_paths(target: bytes, path: str, raw_path: bytes, query: bytes) -> None:
    """Decoded once and as UTF-8, which `path` always is; as it was sent in `raw_path`, without the query and an authority."""
    found = make(line=b"GET %b HTTP/1.1" % target)
    assert (found["path"], found["raw_path"], found["query_string"]) == (path, raw_path, query)
    found["path"].encode()
    assert found["headers"] == [(b"host", b"example.org" if target.startswith(b"http:") else b"test")]


@pytest.mark.parametrize(
    ("line", "fields", "offered"),
    [
        (b"GET / HTTP/1.0", (), {"http.response.pathsend", "http.response.zerocopysend"}),
        (b"GET / HTTP/1.0", (b"TE: trailers",), {"http.response.pathsend", "http.response.zerocopysend"}),
        (b"GET / HTTP/1.1", (), {*OFFERED}),
        (b"GET / HTTP/1.1", (b"TE: gzip",), {*OFFERED}),
        (b"GET / HTTP/1.1", (b"TE: trailers",), {*OFFERED, "http.response.trailers"}),
        (b"GET / HTTP/1.1", (b"TE: gzip, Trailers",), {*OFFERED, "http.response.trailers"}),
        (b"GET / HTTP/1.1", (b"TE: gzip", b"TE:\ttrailers"), {*OFFERED, "http.response.trailers"}),
        (b"GET / HTTP/1.1", (b"TE: trailers;q=0.5",), {*OFFERED}),
        (b"HEAD / HTTP/1.1", (b"TE: trailers",), {*OFFERED}),
    ],
)
def test_a_client_is_offered_what_it_can_take(line: bytes, fields: tuple[bytes, ...], offered: set[str]) -> None:
    """Trailers if it announces that it accepts them (RFC 9110 6.5.1), 103 unless it speaks HTTP/1.0 (15.2)."""
    found = make(b"Host: test", *fields, line=line)
    assert {*found["extensions"]} == offered
    assert found["http_version"] == line[-3:].decode()


def test_a_scope_belongs_to_the_application() -> None:
    """Whatever an application changes in it, the next request's is as it should be; `state` is copied one level deep."""
    scopes = Scopes()
    scopes.state = {"word": "of the lifespan", "list": []}
    connection = cast(Connection, FakeConnection())
    request = read()
    first = scopes.make(connection, request)
    expected = {name: value.copy() if isinstance(value, dict | list) else value for name, value in first.items()}
    for _ in range(3):
        found = scopes.make(connection, request)
        assert found == expected
        for value in found.values():
            if isinstance(value, list):
                value.append((b"x-vandal", b"1"))
            elif isinstance(value, dict):
                value["vandal"] = True
        found["path"] = "/vandal"
    scopes.make(connection, request)["state"]["list"].append("shared")
    assert scopes.make(connection, request)["state"]["list"] == ["shared"]


def test_an_application_without_a_lifespan_has_no_state() -> None:
    """The key is there only if the lifespan is supported (spec, "Lifespan State")."""
    assert "state" not in make()
    assert make(state={})["state"] == {}


def test_addresses_of_a_unix_socket(tmp_path: Any) -> None:
    """No client's address; the server's is the path (spec, "server")."""
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(str(tmp_path / "it.sock"))
        found = make(peer=("", ""), sock=sock)
    assert (found["client"], found["server"]) == (None, (str(tmp_path / "it.sock"), None))


def test_addresses_are_made_once_for_each_connection() -> None:
    """A connection remembers them, so its later requests share the two tuples."""
    connection = cast(Connection, FakeConnection())
    scopes = Scopes()
    first, second = scopes.make(connection, read()), scopes.make(connection, read(line=b"GET /other HTTP/1.1"))
    assert first["client"] is second["client"]
    assert first["server"] is second["server"]
