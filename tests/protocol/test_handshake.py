"""Opening handshakes of WebSockets: rows of requests, and the response to each. No socket, no server."""

import pytest

from epollard.protocol.grammar import ProtocolError
from epollard.protocol.handshake import Offer, accept_head, read_offer, wants_upgrade
from epollard.protocol.request import HeadReader, Request

DATE_END = b"Date: Thu, 01 Jan 1970 00:00:00 GMT\r\n\r\n"
KEY = "dGhlIHNhbXBsZSBub25jZQ=="
USUAL = {
    "Host": "a",
    "Upgrade": "websocket",
    "Connection": "Upgrade",
    "Sec-WebSocket-Key": KEY,
    "Sec-WebSocket-Version": "13",
}


def asked(changed: dict[str, str | list[str] | None], first: str = "GET /chat HTTP/1.1") -> Request:
    """A handshake with some fields changed (None: left out; a list: more than once)."""
    lines = [first]
    for name, value in (USUAL | changed).items():
        values = value if isinstance(value, list) else [] if value is None else [value]
        lines += [f"{name}: {one}" for one in values]
    request = HeadReader(8192, 100, 65536).read("\r\n".join([*lines, "", ""]).encode("latin-1"))
    assert request
    return request


PROTOCOL = "Sec-WebSocket-Protocol"
EXTENSIONS = "Sec-WebSocket-Extensions"
TAKEN: list[tuple[dict[str, str | list[str] | None], list[str]]] = [
    ({}, []),
    ({"Upgrade": "WebSocket", "Connection": "keep-alive, Upgrade"}, []),
    ({"Upgrade": "foo/1, websocket", "Connection": ["keep-alive", "UPGRADE"]}, []),
    ({"Content-Length": "0"}, []),
    ({PROTOCOL: "chat"}, ["chat"]),
    ({PROTOCOL: "b, a,c"}, ["b", "a", "c"]),
    ({PROTOCOL: ["b", "a"]}, ["b", "a"]),
    ({PROTOCOL: "a,, ,b,"}, ["a", "b"]),
    ({PROTOCOL: ""}, []),
    ({PROTOCOL: "a, A"}, ["a", "A"]),
    ({EXTENSIONS: 'x-unknown; a=1; b="c", y'}, []),
]


@pytest.mark.parametrize(("changed", "subprotocols"), TAKEN)
def test_good_handshakes_are_offers(changed: dict[str, str | list[str] | None], subprotocols: list[str]):
    """A handshake that RFC 6455 4.2.1 allows is an offer, with the subprotocols in the client's order."""
    request = asked(changed)
    assert wants_upgrade(request.fields)
    assert read_offer(request, False) == Offer(KEY, subprotocols, None)
    assert read_offer(request, True) == Offer(KEY, subprotocols, None)


REFUSED: list[tuple[dict[str, str | list[str] | None], int]] = [
    ({"Connection": None}, 400),
    ({"Connection": "keep-alive"}, 400),
    ({"Connection": "Upgraded"}, 400),
    ({"Upgrade": None}, 400),
    ({"Upgrade": "h2c"}, 400),
    ({"Upgrade": "websocket/13"}, 400),
    ({"Sec-WebSocket-Version": None}, 426),
    ({"Sec-WebSocket-Version": "8"}, 426),
    ({"Sec-WebSocket-Version": "013"}, 426),
    ({"Sec-WebSocket-Version": "\xb9\xb3"}, 426),
    ({"Sec-WebSocket-Version": "13, 8"}, 426),
    ({"Sec-WebSocket-Version": ["13", "13"]}, 426),
    ({"Sec-WebSocket-Key": None}, 400),
    ({"Sec-WebSocket-Key": ""}, 400),
    ({"Sec-WebSocket-Key": [KEY, KEY]}, 400),
    ({"Sec-WebSocket-Key": KEY[:-1]}, 400),
    ({"Sec-WebSocket-Key": "A" + KEY}, 400),
    ({"Sec-WebSocket-Key": "A" * 24}, 400),
    ({"Sec-WebSocket-Key": "A" * 23 + "="}, 400),
    ({"Sec-WebSocket-Key": KEY.replace("G", "-")}, 400),
    ({"Sec-WebSocket-Key": KEY.replace("G", "\xe9")}, 400),
    ({"Content-Length": "5"}, 400),
    ({"Transfer-Encoding": "chunked"}, 400),
    ({PROTOCOL: "a, a"}, 400),
    ({PROTOCOL: ["a", "a"]}, 400),
    ({PROTOCOL: "a b"}, 400),
    ({PROTOCOL: "a;b"}, 400),
    ({PROTOCOL: '"a"'}, 400),
    ({PROTOCOL: "caf\xe9"}, 400),
    ({PROTOCOL: "\xff"}, 400),
    ({EXTENSIONS: "\xff"}, 400),
    ({EXTENSIONS: "permessage-deflate; \xe9"}, 400),
    ({EXTENSIONS: "permessage-deflate;"}, 400),
    ({EXTENSIONS: "permessage-deflate, b c"}, 400),
    ({EXTENSIONS: "; a"}, 400),
    ({EXTENSIONS: "a; =b"}, 400),
    ({EXTENSIONS: "a; b="}, 400),
    ({EXTENSIONS: 'a; b=""'}, 400),
    ({EXTENSIONS: 'a; b="c'}, 400),
    ({EXTENSIONS: 'a; b="c,d"'}, 400),
    ({EXTENSIONS: "a; b=c=d"}, 400),
]


@pytest.mark.parametrize(("changed", "status"), REFUSED)
def test_bad_handshakes_are_refused(changed: dict[str, str | list[str] | None], status: int):
    """A handshake that RFC 6455 4.2.1 forbids has a status, with compression or without, and the reason does not quote it."""
    for enabled in (True, False):
        with pytest.raises(ProtocolError) as caught:
            read_offer(asked(changed), enabled)
        assert caught.value.status == status
        assert caught.value.reason.isascii()


@pytest.mark.parametrize("first", ["POST / HTTP/1.1", "HEAD / HTTP/1.1", "GET / HTTP/1.0"])
def test_other_requests_open_no_websocket(first: str):
    """Only a GET of HTTP/1.1 opens a WebSocket; in HTTP/1.0 Upgrade is ignored (RFC 9110 7.8)."""
    request = asked({}, first)
    assert wants_upgrade(request.fields) == first.endswith("1.1")
    with pytest.raises(ProtocolError) as caught:
        read_offer(request, True)
    assert caught.value.status == 400


def test_ordinary_requests_are_not_handshakes():
    """A request without Upgrade, or for another protocol, does not ask for a WebSocket."""
    assert not wants_upgrade(asked({"Upgrade": None}).fields)
    assert not wants_upgrade(asked({"Upgrade": "h2c"}).fields)


def test_a_head_that_opens():
    """The response of RFC 6455 1.3, with a subprotocol, the negotiated compression, and the application's headers."""
    offer = read_offer(asked({PROTOCOL: "a, b", EXTENSIONS: "permessage-deflate"}), True)
    headers = [(b"Set-Cookie", b"a=b"), (b"x-latin", b"caf\xe9"), (b"set-cookie", b"c")]
    assert accept_head(offer, "b", headers, DATE_END) == (
        b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        b"Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\nSec-WebSocket-Protocol: b\r\n"
        b"Sec-WebSocket-Extensions: permessage-deflate; server_max_window_bits=12; client_no_context_takeover\r\n"
        b"Set-Cookie: a=b\r\nx-latin: caf\xe9\r\nset-cookie: c\r\nServer: epollard\r\n" + DATE_END
    )


def test_the_shortest_head_that_opens():
    """Nothing that was not offered is in the head, and the application's fields about the connection are dropped."""
    headers = [
        *[(b"Connection", b"close"), (b"Upgrade", b"h2c"), (b"Content-Length", b"5"), (b"Transfer-Encoding", b"chunked")],
        *[(b"sec-websocket-accept", b"x"), (b"Sec-WebSocket-Protocol", b"x"), (b"Sec-WebSocket-Extensions", b"x")],
        *[(b"Date", b"x"), (b"Keep-Alive", b"x"), (b"server", b"mine")],
    ]
    assert accept_head(Offer(KEY, ["a"], None), None, headers, DATE_END) == (
        b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        b"Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\nserver: mine\r\n" + DATE_END
    )


@pytest.mark.parametrize("bad", [b"a\r\nb: c", b"a\nb", b"a\rb", b"a\0", b"\x7f", b"a\x0b"])
def test_headers_that_cannot_be_sent(bad: bytes):
    """A header with a line break is an error, even if the header would be dropped."""
    for name, value in ((b"x", bad), (bad, b"x"), (b"date", bad)):
        with pytest.raises(ValueError, match="bad"):
            accept_head(Offer(KEY, [], None), None, [(name, value)], DATE_END)


@pytest.mark.parametrize("bad", ["c", "", "A", "a, b", "a\r\nb: c"])
def test_subprotocols_that_were_not_offered(bad: str):
    """The application gets an error, since the client would fail the connection (RFC 6455 4.1)."""
    with pytest.raises(ValueError, match="subprotocol"):
        accept_head(Offer(KEY, ["a", "b"], None), bad, [], DATE_END)
