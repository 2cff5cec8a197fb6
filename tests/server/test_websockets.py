"""WebSockets over real sockets (RFC 6455, RFC 7692, ASGI 3), from the handshake to the server's end.

Long: one page for one protocol, in its order: opening, messages, closing, limits, pings, compression, shutdown, frameworks.
"""

import asyncio
import contextlib
import json
import re
import select
import signal
import socket
import time
from pathlib import Path
from typing import Any

import pytest
from websockets.asyncio.client import connect as connect_asyncio
from websockets.exceptions import ConnectionClosedError, ConnectionClosedOK, InvalidStatus
from websockets.extensions.permessage_deflate import ClientPerMessageDeflateFactory
from websockets.frames import Frame, Opcode
from websockets.sync.client import connect as connect_library

from harness import SCALE, WAIT, Client, Server, wait_for

APP = "apps.websocket_routes:app"
FAST = "apps.starlette_websockets:app"
KEY = "dGhlIHNhbXBsZSBub25jZQ=="  # of RFC 6455 1.3, and its answer
ACCEPT = "s3pPLMBiTxaQ9kYGzzhZRbK+xOo="
TEXT, BINARY, CLOSE, PING, PONG = 1, 2, 8, 9, 10
MEBIBYTE = 1 << 20


pytestmark = pytest.mark.interfaces("asgi")


def masked(opcode: int, payload: bytes = b"", fin: bool = True, rsv: int = 0, key: bytes = b"\x01\xfe\x35\xa7") -> bytes:
    """A frame of a client, written from RFC 6455 5.2."""
    size = len(payload)
    length = bytes([128 | size]) if size < 126 else b"\xfe" + size.to_bytes(2) if size < 65536 else b"\xff" + size.to_bytes(8)
    keys = key * (size // 4 + 1)
    return bytes([fin << 7 | rsv << 4 | opcode]) + length + key + bytes(a ^ b for a, b in zip(payload, keys, strict=False))


class Peer(Client):
    """A client that opens a WebSocket, and then sends whatever bytes the test wants."""

    def __init__(self, server: Server | str, target: str | None = "/echo", *, open: bool = True, **options) -> None:
        super().__init__(server if isinstance(server, str) else server.address, **options)
        if target is None:
            return
        self.ask(target)
        if open:
            answer = self.response()
            assert (answer.status, answer.header("sec-websocket-accept")) == (101, ACCEPT), answer

    def ask(self, target: str, method: str = "GET", **changed: str | None) -> "Peer":
        fields = {
            "connection": "Upgrade",
            "upgrade": "websocket",
            "sec-websocket-key": KEY,
            "sec-websocket-version": "13",
            **{name.replace("_", "-"): value for name, value in changed.items()},
        }
        headers: dict[str, Any] = {name: value for name, value in fields.items() if value is not None}
        self.request(target, method, **headers)
        return self

    def say(self, opcode: int, payload: bytes | str = b"", **more) -> "Peer":
        self.send(masked(opcode, payload.encode() if isinstance(payload, str) else payload, **more))
        return self

    def hear(self) -> tuple[int, bytes]:
        """Opcode and payload of the next frame, which must be a whole message of the shortest form, without a mask."""
        first, second = self._exactly(2)
        assert first & 0x70 == 0
        assert first & 0x80
        assert second < 128, "a server does not mask"
        size = second
        if second >= 126:
            size = int.from_bytes(self._exactly(2 if second == 126 else 8))
            assert size >= (126 if second == 126 else 65536)
        return first & 15, self._exactly(size)

    def hear_close(self) -> tuple[int, str]:
        """The close frame that comes next, with nothing after it but the end."""
        opcode, payload = self.hear()
        assert opcode == CLOSE, (opcode, payload[:100])
        if not payload:
            return 1005, ""
        return int.from_bytes(payload[:2]), payload[2:].decode()


_names = iter(range(10**9))


def named(path: str) -> tuple[str, str]:
    """A target, and the name under which the application notes how its call ends."""
    name = f"n{next(_names)}-{time.monotonic_ns()}"
    return f"{path}?{name}", name


def note(server: Server, name: str):
    """The application's note, as soon as there is one."""
    return wait_for(lambda: json.loads(server.get(f"/ends/{name}").body), lambda: f"a note of {name}\n{server.log}")


def noted(server: Server, name: str):
    return json.loads(server.get(f"/ends/{name}").body)


def resident(pid: int) -> int:
    """Bytes of resident memory (proc_pid_statm(5))."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * 4096


def stands_still(observe, seconds: float = 0.3):
    """The result of `observe`, once it has been the same for some time."""

    def same():
        nonlocal last, since
        now = observe()
        if now != last:
            last, since = now, time.monotonic()
        return time.monotonic() - since > seconds

    last, since = observe(), time.monotonic()
    wait_for(same, "no standstill", 4 * WAIT)
    return last


# --- Opening ---------------------------------------------------------------------------------------------------------


def test_the_handshake(serve):
    """101 as in RFC 6455 1.3, without a body; then both sides may send, the client even in the segment of its request."""
    with Peer(serve(APP), None) as client:
        head = f"GET /echo HTTP/1.1\r\nHost: a\r\nConnection: keep-alive, upgrade\r\nSec-WebSocket-Key: {KEY}\r\n"
        client.send(head.encode(), b"Upgrade: WebSocket\r\nSec-WebSocket-Version: 13\r\n\r\n", masked(TEXT, b"early"))
        answer = client.response()
        assert (answer.status, answer.reason) == (101, "Switching Protocols")
        assert answer.header("upgrade") == "websocket"
        assert answer.header("connection") == "Upgrade"
        assert answer.header("sec-websocket-accept") == ACCEPT
        assert answer.header("date")
        assert {name for name, _ in answer.headers} == {"upgrade", "connection", "sec-websocket-accept", "server", "date"}
        assert client._exactly(7) == b"\x81\x05early"


REFUSED = [
    ({"connection": "keep-alive"}, 400),
    ({"sec_websocket_key": None}, 400),
    ({"sec_websocket_key": "short"}, 400),
    ({"sec_websocket_key": "A" * 24}, 400),
    ({"sec_websocket_version": None}, 426),
    ({"sec_websocket_version": "8"}, 426),
    ({"sec_websocket_version": "9" * 5000}, 426),
    ({"sec_websocket_protocol": "a, a"}, 400),
    ({"sec_websocket_protocol": "a;b"}, 400),
    ({"sec_websocket_extensions": "permessage-deflate; ="}, 400),
    ({"content_length": "3"}, 400),
    ({"transfer_encoding": "chunked"}, 400),
]


@pytest.mark.parametrize(("changed", "status"), REFUSED)
def test_handshakes_that_are_refused(serve, changed, status):
    """Each required check (RFC 6455 4.2.1) has its status; the connection ends, and the application is not called."""
    server = serve(APP)
    before = len(server.log)
    with Peer(server, None) as client:
        client.ask("/raise-before", **changed)
        answer = client.response()
        assert answer.status == status
        options = {value for name, value in answer.headers if name == "connection"}
        assert "close" in options
        if status == 426:
            assert answer.header("sec-websocket-version") == "13"
            assert answer.header("upgrade") == "websocket"
            assert "Upgrade" in options
        assert client.closed()
    server.wait_log(rf"rejected 127\.0\.0\.1:\d+: {status} ")
    assert "before accept" not in server.log[before:]


def test_a_handshake_that_comes_with_a_body_is_refused(serve):
    """It is refused in the same way as a handshake whose body is still to come."""
    server = serve(APP)
    with Peer(server, None) as client:
        client.send(
            b"GET /raise-before HTTP/1.1\r\nHost: test\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
            b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: %b\r\nContent-Length: 3\r\n\r\nabc" % KEY.encode()
        )
        assert client.response().status == 400
        assert client.closed()


@pytest.mark.parametrize(("method", "changed"), [("HEAD", {}), ("GET", {"upgrade": "h2c"}), ("GET", {"upgrade": None})])
def test_a_request_for_something_else_than_a_websocket(serve, method, changed):
    """The HTTP application answers requests with another method or another upgrade."""
    with Peer(serve(APP), None) as client:
        client.ask("/echo", method, **changed)
        assert client.response(method).status == 200


def test_http_1_0_has_no_upgrade(serve):
    """RFC 9110 7.8: the server ignores it."""
    with Peer(serve(APP), None) as client:
        head = f"GET /echo HTTP/1.0\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Key: {KEY}\r\n"
        client.send(head.encode(), b"Sec-WebSocket-Version: 13\r\n\r\n")
        assert client.response().text == "Hello, world!"


@pytest.mark.every_trigger
def test_a_handshake_after_requests(serve):
    """A connection may become a WebSocket after other requests, even if all of them come in one segment."""
    with Peer(serve(APP), None) as client:
        for _ in range(3):
            assert client.get("/").text == "Hello, world!"
        client.send(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n" * 3)
        client.ask("/echo")
        assert [client.response().status for _ in range(4)] == [200, 200, 200, 101]
        client.send(masked(TEXT, b"x"))
        assert client._exactly(3) == b"\x81\x01x"


def test_the_scope(serve):
    """Its keys are those of the specification for a WebSocket, with every header, and the path as it was requested."""
    server = serve(APP)
    with Peer(server, None) as client:
        client.ask("/describe?a=%20b&c", x_one="caf\xe9", sec_websocket_protocol="b, a")
        assert client.response().status == 101
        found = json.loads(client.hear()[1])
        assert found["type"] == "websocket"
        assert found["asgi"] == {"version": "3.0", "spec_version": "2.5"}
        assert (found["http_version"], found["scheme"], found["root_path"]) == ("1.1", "ws", "")
        assert (found["path"], found["raw_path"], found["query_string"]) == ("/describe", "/describe", "a=%20b&c")
        assert found["subprotocols"] == ["b", "a"]
        assert found["client"] == list(client.socket.getsockname())
        assert found["server"] == list(server.address)
        assert found["extensions"] == {"websocket.http.response": {}}
        assert "method" not in found
        headers = [name for name, _ in found["headers"]]
        assert headers[0] == "host"
        assert {"connection", "upgrade", "x-one", "sec-websocket-key"} <= set(headers)


SUBPROTOCOLS = [("a, b", "", "b"), ("a, b", "a", "a"), ("c", "", "c"), (None, "", None)]


@pytest.mark.parametrize(("offered", "wanted", "chosen"), SUBPROTOCOLS)
def test_subprotocols(serve, offered, wanted, chosen):
    """The response names the subprotocol that the application chose, if it chose one, and has the application's headers."""
    with Peer(serve(APP), None) as client:
        client.ask(f"/choose?{wanted}", sec_websocket_protocol=offered)
        answer = client.response()
        assert answer.status == 101
        assert answer.header("sec-websocket-protocol") == chosen
        assert answer.header("x-route") == "choose"
        assert answer.header("upgrade") == "websocket"
        assert [value for name, value in answer.headers if name == "set-cookie"] == ["a=1", "b=2"]


@pytest.mark.parametrize(
    ("target", "error"),
    [
        ("/choose?c", "ValueError: the client has not offered the subprotocol"),
        ("/bad-header", "HeadError: bad value of header"),
    ],
)
def test_an_accept_that_cannot_be_sent(serve, target, error):
    """A subprotocol that was not offered, or a header that would split the response: 500, and only the log has the reason."""
    server = serve(APP)
    with Peer(server, None) as client:
        client.ask(target, sec_websocket_protocol="a, b")
        answer = client.response()
        assert answer.status == 500
        assert "evil" not in str(answer).lower()
        assert client.closed()
    server.wait_log(error)


def test_refusal(serve):
    """`websocket.close` before `websocket.accept` is a 403, and the application receives `websocket.disconnect`."""
    server = serve(APP)
    target, name = named("/refuse")
    with Peer(server, target, open=False) as peer:
        assert peer.response().status == 403
        assert peer.closed()
    assert note(server, name) == {"type": "websocket.disconnect", "code": 1006, "reason": ""}
    with pytest.raises(InvalidStatus) as caught, connect_library(f"{server.url.replace('http', 'ws')}/refuse", proxy=None):
        pass
    assert caught.value.response.status_code == 403


def test_denial(serve):
    """The extension websocket.http.response: any response of HTTP, after which the connection continues."""
    server = serve(APP)
    target, name = named("/deny")
    with Peer(server, target, open=False) as peer:
        answer = peer.response()
        assert (answer.status, answer.text, answer.header("www-authenticate")) == (401, "who are you", "Bearer")
        assert answer.header("upgrade") is None
        assert note(server, name)["type"] == "websocket.disconnect"
        assert peer.get("/").text == "Hello, world!"
        peer.ask("/echo")
        assert peer.response().status == 101


def test_denial_in_pieces(serve):
    """A denial is streamed with back-pressure as any response is: 4 MiB to a client that reads slowly."""
    with Peer(serve(APP), "/deny-streamed", open=False, receive_buffer=4096) as peer:
        answer = peer.response()
        assert (answer.status, answer.header("retry-after")) == (503, "5")
        assert answer.body == b"x" * 4 * MEBIBYTE + b"end"


def test_nothing_else_comes_within_a_denial(serve):
    """An application that has begun a denial cannot close, which would be a response within the response."""
    with Peer(serve(APP), "/deny-and-close", open=False) as peer:
        answer = peer.response()
        assert (answer.status, answer.text) == (401, "one two RuntimeError RuntimeError")
        assert peer.get("/").text == "Hello, world!"


def test_a_denial_whose_client_leaves(serve):
    """An application that waits in `receive` during its denial is notified."""
    server = serve(APP)
    target, name = named("/deny-listening")
    with Peer(server, target, open=False) as peer:
        assert peer._until(b"no ")
        peer.reset()
    assert note(server, name) == {"type": "websocket.disconnect", "code": 1006, "reason": ""}


def test_a_denial_that_is_not_finished(serve):
    """The client gets a 500 if nothing of the denial was sent."""
    server = serve(APP)
    with Peer(server, "/deny-half", open=False) as peer:
        assert peer.response().status == 500
    server.wait_log("application returned without a response on GET /deny-half")


def test_an_application_that_fails_within_a_denial(serve):
    """The response ends early; the log has the reason, and only that."""
    server = serve(APP)
    with Peer(server, "/deny-and-raise", open=False) as peer, pytest.raises(AssertionError, match="the connection ended after"):
        peer.response()
    server.wait_log("RuntimeError: within a denial")
    assert "on GET /deny-and-raise" not in server.log


@pytest.mark.parametrize(
    ("path", "said"), [("raise-before", "RuntimeError: before accept"), ("return-before", "without a response on WebSocket")]
)
def test_an_application_that_fails_before_it_accepts(serve, path, said):
    """The client gets a 500, and the log has the reason."""
    server = serve(APP)
    with Peer(server, f"/{path}", open=False) as peer:
        assert peer.response().status == 500
        assert peer.closed()
    server.wait_log(said)


def test_an_application_that_raises_after_it_accepted(serve):
    """The client gets 1011 (RFC 6455 7.4.1), the log the traceback; other WebSockets continue."""
    server = serve(APP)
    with Peer(server) as other, Peer(server, "/raise-after") as peer:
        peer.say(TEXT, "go")
        assert peer.hear_close() == (1011, "")
        peer.say(CLOSE, b"\x03\xf3")
        assert peer.closed()
        server.wait_log("RuntimeError: after accept")
        assert other.say(TEXT, "still here").hear() == (TEXT, b"still here")


def test_an_application_that_returns_after_it_accepted(serve):
    """The client gets what was sent, then 1000."""
    with Peer(serve(APP), "/return-after") as peer:
        assert peer.hear() == (TEXT, b"that is all")
        assert peer.hear_close() == (1000, "")
        peer.say(CLOSE, b"\x03\xe8")
        assert peer.closed()


def test_mistakes(serve):
    """A wrong message raises an exception where the application sends it, and the WebSocket continues."""
    with Peer(serve(APP), "/mistakes") as peer:
        assert peer.hear() == (BINARY, b"fine")
        found = json.loads(peer.hear()[1])
        assert found == [
            "RuntimeError",  # send before accept
            "ValueError",  # a subprotocol that was not offered
            "RuntimeError",  # a message of HTTP
            "RuntimeError",  # accept twice
            "TypeError",  # neither text nor bytes
            "TypeError",  # text as bytes
            "ValueError",  # 1006 may not be sent
            "ValueError",  # nor may 99999
            "RuntimeError",  # denial after accept
            "nothing",
        ]


# --- Talking ---------------------------------------------------------------------------------------------------------


@pytest.mark.every_trigger
@pytest.mark.parametrize("size", [0, 1, 125, 126, 127, 65535, 65536, 65537, 1_000_000])
def test_sizes(serve, size):
    """Text and binary messages of every size come back unchanged, whatever the form of their length."""
    content = b"0123456789abcdef" * (size // 16 + 1)
    content = content[:size]
    with Peer(serve(APP)) as peer:
        for opcode in TEXT, BINARY:
            assert peer.say(opcode, content).hear() == (opcode, content)


@pytest.mark.every_trigger
def test_byte_by_byte(serve):
    """A message whose bytes come in segments of their own arrives whole, with multibyte characters and a long head."""
    with Peer(serve(APP)) as peer:
        peer.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        payload = "é€\N{DECIDUOUS TREE}".encode() * 20
        for byte in masked(TEXT, payload):
            peer.send(bytes([byte]))
        assert peer.hear() == (TEXT, payload)


@pytest.mark.every_trigger
def test_many_in_one_segment(serve):
    """A thousand messages at once, some of them empty, come back in order, although the queue holds fewer."""
    with Peer(serve(APP)) as peer:
        words = [str(number) * (number % 3) for number in range(1000)]
        peer.send(*(masked(TEXT, word.encode()) for word in words))
        assert [peer.hear() for _ in words] == [(TEXT, word.encode()) for word in words]


def test_only_empty_messages(serve):
    """Empty messages fill the queue as others do, and it empties again."""
    with Peer(serve(APP)) as peer:
        for _ in range(3):
            peer.send(masked(TEXT) * 5000)
            assert {peer.hear() for _ in range(5000)} == {(TEXT, b"")}


def test_fragments_with_control_frames_between(serve):
    """Fragments make one message, even if split within a character; pings between them are answered first, in order."""
    with Peer(serve(APP)) as peer:
        text = "à la carte \N{DECIDUOUS TREE}".encode()
        peer.say(TEXT, text[:1], fin=False).say(PING, b"one").say(0, text[1:14], fin=False).say(PONG, b"unasked")
        peer.say(0, b"", fin=False).say(PING).say(0, text[14:])
        assert [peer.hear() for _ in range(3)] == [(PONG, b"one"), (PONG, b""), (TEXT, text)]


BROKEN = [
    ("without a mask", b"\x81\x01a", 1002),
    ("reserved bit 1, no compression", masked(TEXT, b"a", rsv=4), 1002),
    ("reserved bit 2", masked(TEXT, b"a", rsv=2), 1002),
    ("reserved bit 3", masked(BINARY, b"a", rsv=1), 1002),
    ("reserved opcode", masked(3, b"a"), 1002),
    ("reserved control opcode", masked(11), 1002),
    ("control frame in fragments", masked(PING, b"", fin=False), 1002),
    ("long control frame", masked(PING, b"x" * 126), 1002),
    ("continuation of nothing", masked(0, b"a"), 1002),
    ("message in a message", masked(TEXT, b"a", fin=False) + masked(TEXT, b"b"), 1002),
    ("length of 64 bits with the first set", b"\x82\xff\xff" + b"\xff" * 7 + b"\0\0\0\0", 1002),
    ("no UTF-8", masked(TEXT, b"\xff"), 1007),
    ("a character that is not whole", masked(TEXT, b"\xe2\x82"), 1007),
    ("no UTF-8 across fragments", masked(TEXT, b"\xe2", fin=False) + masked(0, b"\x28", fin=False), 1007),
    ("close code of one byte", masked(CLOSE, b"\x03"), 1002),
    ("close code 1005", masked(CLOSE, b"\x03\xed"), 1002),
    ("close code 999", masked(CLOSE, b"\x03\xe7"), 1002),
    ("close reason that is no UTF-8", masked(CLOSE, b"\x03\xe8\xff"), 1007),
    ("message too big", masked(BINARY, b"x" * 20001), 1009),
    ("message announced too big", b"\x82\xff" + (1 << 40).to_bytes(8) + b"\0\0\0\0", 1009),
    ("fragments too big together", masked(TEXT, b"x" * 20000, fin=False) + masked(0, b"x", fin=False), 1009),
]


@pytest.mark.parametrize(("data", "code"), [row[1:] for row in BROKEN], ids=[row[0] for row in BROKEN])
def test_a_client_that_breaks_the_rules(serve, data, code):
    """It gets the close code, not a reset; the application receives the same code; nothing that follows is read."""
    server = serve(APP, ws_max_size="20000")
    target, name = named("/echo")
    with Peer(server, target) as peer:
        peer.send(data, masked(TEXT, b"behind"))
        assert peer.hear_close()[0] == code
        peer.half_close()
        assert peer.closed()
    message = note(server, name)
    assert (message["type"], message["code"]) == ("websocket.disconnect", code)
    server.wait_log(rf"rejected WebSocket of 127\.0\.0\.1:\d+: {code} ")


def test_the_limit_is_exact(serve):
    """A message of exactly --ws-max-size is accepted, in one frame and in several."""
    server = serve(APP, ws_max_size="20000")
    with Peer(server) as peer:
        assert peer.say(BINARY, b"x" * 20000).hear() == (BINARY, b"x" * 20000)
        for _ in range(19):
            peer.say(0 if _ else TEXT, b"x" * 1000, fin=False)
        assert peer.say(0, b"x" * 1000).hear() == (TEXT, b"x" * 20000)


# --- Closing ---------------------------------------------------------------------------------------------------------


@pytest.mark.every_trigger
@pytest.mark.parametrize(
    ("payload", "code", "reason"),
    [
        (b"", 1005, ""),
        (b"\x03\xe8", 1000, ""),
        (b"\x03\xe9going", 1001, "going"),
        (b"\x0b\xb8\xc3\xa0", 3000, "à"),
        (b"\x13\x87" + b"x" * 123, 4999, "x" * 123),
    ],
)
def test_the_client_closes(serve, payload, code, reason):
    """The client gets its code back and the connection ends; the application receives code and reason."""
    server = serve(APP)
    target, name = named("/echo")
    with Peer(server, target) as peer:
        assert peer.say(TEXT, "last").hear() == (TEXT, b"last")
        assert peer.say(CLOSE, payload).hear() == (CLOSE, payload[:2])
        assert peer.closed()
    assert note(server, name) == {"type": "websocket.disconnect", "code": code, "reason": reason}


@pytest.mark.every_trigger
@pytest.mark.parametrize(("code", "reason"), [(1000, ""), (1001, "bye"), (3000, "à"), (4999, "é" * 100)])
def test_the_application_closes(serve, code, reason):
    """Code and reason reach the client, a long reason cut between characters; then `receive` returns the disconnect."""
    server = serve(APP)
    target, name = named("/close")
    with Peer(server, target) as peer:
        peer.say(TEXT, json.dumps([code, reason]))
        assert peer.hear_close() == (code, reason if len(reason) < 60 else "é" * 61)
        peer.say(TEXT, "no longer received").say(CLOSE, code.to_bytes(2))
        assert peer.closed()
    message = note(server, name)
    assert (message["type"], message["code"]) == ("websocket.disconnect", code)


def test_a_close_that_is_not_answered(serve):
    """A client that does not return the close frame, or goes on sending, has a few seconds and no more."""
    with Peer(serve(APP), "/return-after") as silent, Peer(serve(APP), "/return-after") as talker:
        for peer in silent, talker:
            assert peer.hear()[0] == TEXT
            assert peer.hear_close() == (1000, "")
        deadline = time.monotonic() + 6 * SCALE
        with contextlib.suppress(ConnectionError):
            while not select.select([talker.socket], [], [], 0.05)[0]:
                assert time.monotonic() < deadline, "the talker wins time"
                talker.say(TEXT, "and another thing")
        assert silent.closed()


MOMENTS = {"idle": b"", "in a frame": masked(TEXT, b"x" * 1000)[:500], "in a message": masked(TEXT, b"x", fin=False)}


@pytest.mark.every_trigger
@pytest.mark.parametrize("way", ["close", "reset", "half_close"])
@pytest.mark.parametrize("sent", MOMENTS.values(), ids=MOMENTS)
def test_a_client_that_vanishes(serve, way, sent):
    """The application receives 1006, whatever the client was about to send."""
    server = serve(APP)
    target, name = named("/echo")
    with Peer(server, target) as peer:
        peer.send(sent)
        getattr(peer, way)()
        assert note(server, name) == {"type": "websocket.disconnect", "code": 1006, "reason": ""}


@pytest.mark.every_trigger
@pytest.mark.parametrize("way", ["close", "reset", "half_close"])
@pytest.mark.parametrize("path", ["never-accept", "slow-accept"])
def test_a_client_that_vanishes_before_it_is_accepted(serve, way, path):
    """The application is notified, and what it sends after that raises no error in the log."""
    server = serve(APP)
    before = len(server.log)
    target, name = named(f"/{path}")
    with Peer(server, target, open=False) as peer:
        getattr(peer, way)()
        if path == "never-accept":
            assert note(server, name) == {"type": "websocket.disconnect", "code": 1006, "reason": ""}
    assert server.get("/").status == 200
    assert "Traceback" not in server.log[before:].replace("ClientDisconnected", "")


@pytest.mark.every_trigger
def test_slow_accept(serve):
    """Messages that a client sends before it is accepted wait."""
    server = serve(APP)
    target, _ = named("/slow-accept")
    with Peer(server, target, open=False) as peer:
        peer.say(TEXT, "hasty")
        assert peer.response().status == 101
        assert peer.hear() == (TEXT, b"hasty")


@pytest.mark.parametrize("way", ["a close frame", "an end"])
def test_send_after_the_end(serve, way):
    """`send` raises a subclass of OSError, as the specification requires."""
    server = serve(APP)
    target, name = named("/send-after-close")
    with Peer(server, target) as peer:
        if way == "a close frame":
            peer.say(CLOSE, b"\x03\xe8")
            assert peer.hear_close()[0] == 1000
        else:
            peer.reset()
        assert note(server, name) == ["ClientDisconnected", True]


@pytest.mark.every_trigger
def test_a_client_that_vanishes_in_a_flood(serve):
    """An application that keeps sending is notified by an OSError."""
    server = serve(APP)
    target, name = named("/flood")
    with Peer(server, target, receive_buffer=4096) as peer:
        peer.hear()
        peer.reset()
    wait_for(lambda: noted(server, name) == "the client left")


@pytest.mark.every_trigger
def test_a_client_that_vanishes_at_any_moment(serve):
    """A client that breaks off after any number of bytes of a conversation leaves nothing behind: no error, no connection."""
    server = serve(APP, own=True)
    [pid] = server.workers()
    before, idle = len(server.log), sockets(pid)
    head = f"GET /echo HTTP/1.1\r\nHost: a\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Key: {KEY}\r\n"
    said = (head + "Sec-WebSocket-Version: 13\r\n\r\n").encode()
    said += masked(TEXT, b"one") + masked(PING, b"p") + masked(BINARY, b"x" * 200, fin=False) + masked(0, b"y")
    said += masked(CLOSE, b"\x03\xe8")
    for number, cut in enumerate([*range(1, len(said), 7), *range(len(said) - 30, len(said) + 1)]):
        with Peer(server, None) as client:
            client.send(said[:cut])
            (client.reset if number % 2 else client.close)()
    wait_for(lambda: sockets(pid) == idle, lambda: f"{sockets(pid)} sockets, not {idle}")
    assert "Traceback" not in server.log[before:]


def sockets(pid: int) -> int:
    """The number of sockets that a process has open."""
    count = 0
    for link in Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(OSError):
            count += link.readlink().name.startswith("socket:")
    return count


# --- Pressure and limits ---------------------------------------------------------------------------------------------


@pytest.mark.every_trigger
def test_a_client_that_does_not_read(serve):
    """An application that sends to it waits, and little is in memory; a client that reads again receives everything."""
    server = serve(APP)
    [pid] = server.workers()
    target, name = named("/flood")
    with Peer(server, target, receive_buffer=65536) as peer:
        before = resident(pid)
        sent = stands_still(lambda: noted(server, name))
        assert 0 < sent < 512
        assert resident(pid) - before < 8 * MEBIBYTE
        for _ in range(1024):
            assert peer.hear() == (BINARY, b"x" * 65536)
        assert note(server, name) == "all"


def test_a_client_that_does_not_read_for_long(serve):
    """It is cut off after --write-timeout, and the application is notified."""
    server = serve(APP, write_timeout=1)
    target, name = named("/flood")
    with Peer(server, target, receive_buffer=4096):
        wait_for(lambda: noted(server, name) == "the client left", "the end", 6 * SCALE)
    server.wait_log("did not take its response")


def test_several_tasks_that_send(serve):
    """All of them wait for a client that does not read, and all continue when it does; messages stay whole."""
    server = serve(APP)
    target, _ = named("/choir")
    with Peer(server, target, receive_buffer=4096) as peer:
        counts = dict.fromkeys(range(8), 0)
        while (frame := peer.hear())[0] == BINARY:
            content = frame[1]
            assert content == bytes([content[0]]) * 65536
            counts[content[0]] += 1
        assert frame == (TEXT, b"amen")
        assert set(counts.values()) == {64}


def fill(peer: Peer, data: bytes, most: int = 64 * MEBIBYTE) -> int:
    """Send `data` again and again until the kernel takes no more. Returns the number of bytes."""
    peer.socket.setblocking(False)
    count, since = 0, time.monotonic()
    view = memoryview(data * (MEBIBYTE // len(data)))
    while time.monotonic() - since < 0.5:
        try:
            count += peer.socket.send(view[count % len(data) :])
            since = time.monotonic()
            assert count < most, "the server takes it all"
        except BlockingIOError:
            select.select([], [peer.socket], [], 0.1)
    return count


@pytest.mark.every_trigger
@pytest.mark.parametrize("size", [0, 1, 1000, 100_000])
def test_an_application_that_does_not_receive(serve, size):
    """Messages stay with the client, and little is in memory. Later all of them arrive, even from a client that left."""
    server = serve(APP, own=True)
    [pid] = server.workers()
    target, name = named("/deaf")
    one = masked(TEXT, b"x" * size)
    with Peer(server, "/deaf") as peer, Peer(server, target) as other:
        before = resident(pid)
        count = fill(peer, one)
        assert resident(pid) - before < 8 * MEBIBYTE
        few = 400 if size < 100_000 else 5
        other.send(one * few).half_close()
        assert server.get("/").status == 200
        with Peer(server, "/ears") as ears:
            assert ears.hear_close()[0] == 1000
        peer.socket.settimeout(WAIT)
        rest = -count % len(one)
        peer.send(one[len(one) - rest :] if rest else b"", masked(TEXT, b"count"))
        assert peer.hear() == (TEXT, str((count + rest) // len(one) * size + 5).encode())
        wait_for(lambda: noted(server, name) is not None)
        assert noted(server, name) == few * size


@pytest.mark.every_trigger
def test_a_client_that_pings_and_does_not_read(serve):
    """Pongs for it do not pile up."""
    server = serve(APP)
    [pid] = server.workers()
    with Peer(server, receive_buffer=4096) as peer:
        before = resident(pid)
        ping = masked(PING, b"p" * 125)
        for _ in range(16):
            peer.send(ping * 8192)
        assert resident(pid) - before < 8 * MEBIBYTE
        peer.say(TEXT, "last")
        while (frame := peer.hear())[0] == PONG:
            assert frame == (PONG, b"p" * 125)
        assert frame == (TEXT, b"last")


def test_fragments_without_end(serve):
    """--ws-max-size limits a message that never ends, however small its fragments."""
    server = serve(APP, ws_max_size="20000")
    with Peer(server) as peer, contextlib.suppress(ConnectionError):
        peer.say(BINARY, b"x", fin=False)
        peer.send(masked(0, b"x", fin=False) * 20000)
        assert peer.hear_close()[0] == 1009


def test_concurrent_receivers(serve):
    """Eight tasks receive and send at once: each message goes to exactly one, and each task receives the end."""
    server = serve(APP)
    target, name = named("/crowd")
    with Peer(server, target) as peer:
        for turn in range(50):
            peer.send(*(masked(TEXT, str(turn * 8 + number).encode()) for number in range(8)))
        heard = [peer.hear()[1].split()[1] for _ in range(400)]
        assert sorted(map(int, heard)) == list(range(400))
        peer.say(CLOSE, b"\x03\xe8")
        assert note(server, name) == "all tasks ended"


def test_a_receiver_that_is_cancelled(serve):
    """Other tasks that wait in `receive` continue."""
    server = serve(APP)
    target, name = named("/deserted")
    with Peer(server, target) as peer:
        for number in range(20):
            assert peer.say(TEXT, str(number)).hear()[1].split()[1] == str(number).encode()
        peer.say(CLOSE, b"\x03\xe8")
        assert note(server, name) == ["CancelledError", "NoneType", "NoneType"]


def test_an_impatient_application(serve):
    """`receive` may be cancelled at any moment, and no message is lost."""
    with Peer(serve(APP), "/impatient") as peer:
        for number in range(300):
            assert peer.say(TEXT, str(number)).hear() == (TEXT, str(number).encode())
        peer.send(*(masked(TEXT, str(number).encode()) for number in range(500)))
        assert [peer.hear() for _ in range(500)] == [(TEXT, str(number).encode()) for number in range(500)]


# --- Signs of life ---------------------------------------------------------------------------------------------------

PINGS = {"ws_ping_interval": 1, "ws_ping_timeout": 1}


def test_a_silent_client(serve):
    """It is pinged; if nothing comes back it gets 1011 and is gone, and the application receives 1006."""
    server = serve(APP, **PINGS)
    target, name = named("/echo")
    with Peer(server, target) as peer:
        assert peer.hear() == (PING, b"")
        assert peer.hear_close()[0] == 1011
        assert peer.closed()
    assert note(server, name)["code"] == 1006
    server.wait_log("it did not respond to a ping")


SIGNS = [masked(PONG), masked(PONG, b"another"), masked(TEXT, b"x"), masked(PING), b"\x82\xfe\xff\xff\0\0\0\0"]


@pytest.mark.parametrize("sign", SIGNS)
def test_any_bytes_are_a_sign_of_life(serve, sign):
    """After a pong, a message, a ping or a part of a frame the client is pinged again, and not disconnected."""
    with Peer(serve(APP, **PINGS)) as peer:
        for _ in range(3):
            while (frame := peer.hear())[0] != PING:
                assert frame[0] in (TEXT, PONG)
            peer.send(sign)
            sign = b"x" if sign[0] == 0x82 or len(sign) == 1 else sign


def test_a_client_that_sends_is_not_pinged(serve):
    """A client that sends something within each interval sees no ping."""
    with Peer(serve(APP, ws_ping_interval=2, ws_ping_timeout=1)) as peer:
        deadline = time.monotonic() + 3.5
        while time.monotonic() < deadline:
            assert peer.say(TEXT, "x").hear() == (TEXT, b"x")
            time.sleep(0.02)  # this test is about time that passes


def test_the_library_answers_pings(serve):
    """The library's client does that by itself, even if the program does not read."""
    server = serve(APP, **PINGS)
    with connect_library(f"{server.url.replace('http', 'ws')}/echo", proxy=None, ping_interval=None) as client:
        with pytest.raises(TimeoutError):
            client.recv(timeout=4)
        client.send("x")
        assert client.recv(timeout=WAIT) == "x"


# --- Compression, and the library's clients --------------------------------------------------------------------------

SETTINGS = [
    None,
    {},
    {"client_max_window_bits": None},
    {"client_max_window_bits": 9},
    {"client_max_window_bits": 15, "server_max_window_bits": 15},
    {"server_max_window_bits": 9},
    {"server_no_context_takeover": True},
    {"client_no_context_takeover": True},
    {"server_no_context_takeover": True, "client_no_context_takeover": True, "client_max_window_bits": 10},
]
MESSAGES: list[Any] = ["", "a", "é" * 500, b"", b"\0" * 100_000, bytes(range(256)) * 20, "the same again", "the same again"]


def extensions(setting):
    return [] if setting is None else [ClientPerMessageDeflateFactory(**setting)]


def pieces(message: Any, count: int) -> Any:
    size = len(message) // count + 1
    return [message[at : at + size] for at in range(0, len(message), size)] or [message]


@pytest.mark.every_trigger
@pytest.mark.parametrize("deflate", ["on", "off"])
@pytest.mark.parametrize("setting", SETTINGS, ids=str)
def test_the_library(serve, setting, deflate):
    """Messages of the `websockets` client come back unchanged in every setting: whole, in fragments, with pings between."""
    server = serve(APP, ws_deflate=deflate)
    options = {"compression": None, "extensions": extensions(setting), "proxy": None, "max_size": None}
    with connect_library(f"{server.url.replace('http', 'ws')}/echo", **options) as client:
        assert bool(client.protocol.extensions) == (deflate == "on" and setting is not None)
        for count in 1, 2, 7:
            for message in MESSAGES:
                client.send(message if count == 1 else iter(pieces(message, count)))
                assert client.ping().wait(WAIT)
                assert client.recv(timeout=WAIT) == message


@pytest.mark.parametrize("deflate", ["on", "off"])
@pytest.mark.parametrize("setting", SETTINGS, ids=str)
def test_the_library_with_asyncio(serve, setting, deflate):
    """The same holds for its asyncio client, with many messages at the same time."""
    server = serve(APP, ws_deflate=deflate)
    options = {"compression": None, "extensions": extensions(setting), "proxy": None, "max_size": None}

    async def talk():
        async with connect_asyncio(f"{server.url.replace('http', 'ws')}/echo", **options) as client:
            for message in MESSAGES * 5:
                await client.send(message)
                await client.send(pieces(message, 3))
            for message in MESSAGES * 5:
                assert await client.recv() == message
                assert await client.recv() == message
            await client.close(4000, "enough")

    asyncio.run(asyncio.wait_for(talk(), WAIT))


def test_a_compressed_message_too_big(serve):
    """A small message that would become a large one is refused before it does (1009)."""
    server = serve(APP, ws_deflate="on", ws_max_size="20000")
    with connect_library(f"{server.url.replace('http', 'ws')}/echo", proxy=None) as client:
        client.send("x" * 20000)
        assert client.recv(timeout=WAIT) == "x" * 20000
        client.send("x" * 20001)
        with pytest.raises(ConnectionClosedError) as caught:
            client.recv(timeout=WAIT)
        assert caught.value.rcvd
        assert caught.value.rcvd.code == 1009


def test_a_flood_of_compressed_messages(serve):
    """Messages that are small on the wire and large in memory are decompressed only as the application takes them."""
    server = serve(APP, ws_deflate="on", own=True)
    [pid] = server.workers()
    with Peer(server, None) as client:
        client.ask("/deaf", sec_websocket_extensions="permessage-deflate; client_no_context_takeover")
        assert "permessage-deflate" in str(client.response().header("sec-websocket-extensions"))
        before = resident(pid)
        packed = ClientPerMessageDeflateFactory().process_response_params([], [])
        data = bytes(packed.encode(Frame(Opcode.BINARY, b"\0" * MEBIBYTE)).data)
        assert len(data) < 2000
        fill(client, masked(BINARY, data, rsv=4), 16 * MEBIBYTE)
        assert resident(pid) - before < 16 * MEBIBYTE


def test_bad_compressed_data(serve):
    """The client gets 1007, and the application receives no message."""
    server = serve(APP, ws_deflate="on")
    with Peer(server, None) as client:
        client.ask("/echo", sec_websocket_extensions="permessage-deflate")
        assert client.response().status == 101
        client.send(masked(TEXT, b"\xff\xff\xff\xff", rsv=4))
        assert client.hear_close()[0] == 1007


# --- The server's end ------------------------------------------------------------------------------------------------


@pytest.mark.every_trigger
def test_a_stop_closes_every_websocket(serve):
    """Each client gets 1012 at once, even within a message; then the server exits, long before the deadline."""
    server = serve(APP, own=True, graceful_timeout=30)
    with contextlib.ExitStack() as stack:
        peers = [stack.enter_context(Peer(server)) for _ in range(100)]
        for peer in peers[::2]:
            peer.say(TEXT, b"half", fin=False)
        asked = time.monotonic()
        server.signal(signal.SIGTERM)
        for peer in peers:
            assert peer.hear_close() == (1012, "service restart")
            peer.say(CLOSE, (1012).to_bytes(2))
            assert peer.closed()
        assert server.ended() == 0
        assert time.monotonic() - asked < 5 * SCALE
        assert "cut short" not in server.log or " 0 cut short" in server.log


def test_a_stop_with_clients_that_do_not_respond(serve):
    """Clients that do not return the close frame or do not read, and a busy application, delay it by seconds only."""
    server = serve(APP, own=True, graceful_timeout=30)
    with contextlib.ExitStack() as stack:
        enter = stack.enter_context
        enter(Peer(server))
        enter(Peer(server, "/stubborn"))
        flooded, deaf = enter(Peer(server, "/flood", receive_buffer=4096)), enter(Peer(server, "/deaf"))
        flooded.hear()
        fill(deaf, masked(TEXT, b"x" * 1000))
        before = len(server.log)
        asked = time.monotonic()
        server.signal(signal.SIGTERM)
        assert server.ended(15 * SCALE) == 0
        assert time.monotonic() - asked < 12 * SCALE
        assert "Traceback" not in server.log[before:]


def test_a_stop_before_the_application_accepts(serve):
    """A client that asked before the stop is still accepted, and then gets 1012."""
    server = serve(APP, own=True)
    with Peer(server, "/slow-accept", open=False) as peer:
        server.signal(signal.SIGTERM)
        assert peer.response().status == 101
        assert peer.hear_close()[0] == 1012
        peer.say(CLOSE, (1012).to_bytes(2))
        assert server.ended() == 0


def test_a_stop_of_an_application_that_never_accepts(serve):
    """The client gets a 503 if the application waits without a decision; the application is notified, and nothing hangs."""
    server = serve(APP, own=True)
    with Peer(server, "/never-accept", open=False) as peer:
        server.get("/")
        server.signal(signal.SIGTERM)
        assert peer.response().status == 503
        assert server.ended() == 0
    assert "Traceback" not in server.log


def test_a_reload_closes_every_websocket(serve):
    """The old worker sends 1012; a client that comes back is served by the new one."""
    server = serve(APP, own=True)
    [old] = server.workers()
    with contextlib.ExitStack() as stack:
        peers = [stack.enter_context(Peer(server)) for _ in range(20)]
        server.signal(signal.SIGHUP)
        for peer in peers:
            assert peer.hear_close() == (1012, "service restart")
            peer.say(CLOSE, (1012).to_bytes(2))
            with Peer(server, "/describe") as again:
                again.hear()
                assert again.hear()[1].decode() != str(old)
        wait_for(lambda: old not in server.workers())


def test_the_access_log(serve):
    """Each WebSocket has one line at its end: 101, the bytes of the messages sent, and how long it lasted."""
    server = serve(APP)
    target, _ = named("/echo")
    with Peer(server, target) as peer:
        for _ in range(3):
            peer.say(TEXT, "12345").hear()
        assert target not in server.access
        peer.say(CLOSE, b"\x03\xe8").hear()
    refused, _ = named("/refuse")
    with Peer(server, refused, open=False) as peer:
        peer.response()
    wait_for(lambda: target in server.access and refused in server.access)
    assert re.search(rf'127\.0\.0\.1 - - \[.*\] "GET {re.escape(target)} HTTP/1\.1" 101 15 \d+\.\d+\n', server.access)
    assert re.search(rf'127\.0\.0\.1 - - \[.*\] "GET {re.escape(refused)} HTTP/1\.1" 403 0 \d+\.\d+\n', server.access)
    assert server.access.count(target) == 1


@pytest.mark.parametrize("tcp", ["cork", "nodelay", "default"])
def test_corked(start, tcp):
    """With TCP_CORK no message waits for 200 ms in the kernel: a hundred round trips are quick."""
    server = start(APP, tcp=tcp)
    with Peer(server) as peer:
        began = time.monotonic()
        for number in range(100):
            assert peer.say(TEXT, str(number)).hear() == (TEXT, str(number).encode())
            assert peer.say(PING).hear() == (PONG, b"")
        assert time.monotonic() - began < 10 * SCALE


def test_a_unix_socket(start, tmp_path):
    """WebSockets work on a Unix socket, as behind a proxy."""
    path = tmp_path / "socket"
    server = start(APP, bind=["127.0.0.1:0", f"unix:{path}"])
    assert server.get("/").status == 200
    with Peer(str(path), None) as client:
        client.ask("/echo")
        assert client.response().status == 101
        client.send(masked(TEXT, b"x"))
        assert client.hear() == (TEXT, b"x")


# --- Starlette and FastAPI -------------------------------------------------------------------------------------------


@pytest.fixture
def fast(serve):
    """A server of a Starlette application, and a way to connect to it."""
    server = serve(FAST, env={"PYTHONWARNINGS": ""})

    def connect(target, **options):
        return connect_library(f"{server.url.replace('http', 'ws')}{target}", proxy=None, compression=None, **options)

    connect.server = server  # type: ignore[attr-defined]
    return connect


@pytest.mark.parametrize("code", [1000, 1001, 4321])
def test_websocket_disconnect(fast, code):
    """`WebSocketDisconnect` has the client's code and reason."""
    target, name = named("/text")
    with fast(target) as client:
        client.send("hi")
        assert client.recv(timeout=WAIT) == "Message text was: hi"
        client.close(code, "why")
    assert note(fast.server, name) == [code, "why"]


def test_websocket_disconnect_without_a_code(fast):
    """The code is 1006 for a client that vanishes, 1005 for one that gives none."""
    for end, code in (b"", 1006), (masked(CLOSE), 1005):
        target, name = named("/text")
        with Peer(fast.server, target) as peer:
            peer.send(end)
            peer.half_close()
            assert note(fast.server, name)[0] == code


def test_iterators(fast):
    """`iter_text`, `iter_bytes` and `iter_json` yield each message, and end when the client closes."""
    for kind, sent, got in ("text", "abc", "ABC"), ("bytes", b"abc", b"cba"), ("json", '{"a": [1]}', '{"got":{"a":[1]}}'):
        target, name = named(f"/iterate/{kind}")
        with fast(target) as client:
            for _ in range(3):
                client.send(sent)
                assert client.recv(timeout=WAIT) == got
        assert note(fast.server, name) == "iterated"


def test_an_endpoint(fast):
    """`WebSocketEndpoint` works: subprotocol, headers, JSON, the close code; text that is not JSON closes with 1003."""
    target, name = named("/endpoint")
    with fast(target, subprotocols=["json"]) as client:
        assert client.subprotocol == "json"
        assert client.response.headers["x-endpoint"] == "yes"
        client.send("[1]")
        assert json.loads(client.recv(timeout=WAIT)) == [[1], [1]]
        client.close(4000)
    assert note(fast.server, name) == 4000
    with fast(target, subprotocols=["json"]) as client:
        client.send("no JSON")
        with pytest.raises(ConnectionClosedError) as caught:
            client.recv(timeout=WAIT)
        assert caught.value.rcvd
        assert caught.value.rcvd.code == 1003


def test_dependencies(fast):
    """FastAPI validates parameters and cookies; refusals are 403, an HTTPException's response, or an exception's close code."""
    with fast("/guarded/3?token=t", additional_headers={"Cookie": "c=d"}) as client:
        assert json.loads(client.recv(timeout=WAIT)) == {"item": 3, "token": "t", "cookie": "d"}
        with pytest.raises(ConnectionClosedError) as closed:
            client.recv(timeout=WAIT)
        assert closed.value.rcvd
        assert (closed.value.rcvd.code, closed.value.rcvd.reason) == (4001, "enough")
    for target, status in (
        ("/guarded/3", 403),
        ("/guarded/three?token=t", 403),
        ("/guarded/3?token=old", 401),
        ("/denied", 418),
        ("/nowhere", 403),
    ):
        with pytest.raises(InvalidStatus) as caught, fast(target):
            pass
        answer = caught.value.response
        assert answer.status_code == status, target
        if status == 401:
            assert answer.headers["www-authenticate"] == "Bearer"
        if status == 418:
            assert json.loads(answer.body) == {"why": "closed on Sundays"}


def test_sending_to_a_client_that_has_left(fast):
    """`send_bytes` raises `WebSocketDisconnect` with 1006."""
    target, name = named("/late")
    with Peer(fast.server, target, receive_buffer=4096) as peer:
        peer.hear()
        peer.reset()
    assert note(fast.server, name) == 1006


def test_ends_as_the_library_sees_them(fast):
    """A clean close is a clean close for the library's client too."""
    with fast("/text") as client:
        client.send("x")
        client.recv(timeout=WAIT)
        client.close()
        with pytest.raises(ConnectionClosedOK):
            client.recv(timeout=WAIT)
