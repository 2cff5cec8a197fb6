"""Heads of responses: rows of an application's status and headers, and the bytes of the head. No socket, no server."""

import enum
import time
from http import HTTPStatus
from typing import Any

import pytest

from epollard.protocol import grammar, response
from epollard.protocol.grammar import CACHED_BYTES, CACHED_ENTRIES
from epollard.protocol.response import Head, HeadError

SERVER = "Server: epollard\r\n"


def lines(head: Head) -> str:
    return head.lines.decode("latin-1")


GOOD = [
    ("200 OK", [], "HTTP/1.1 200 OK\r\n" + SERVER),
    ("200", [], "HTTP/1.1 200 \r\n" + SERVER),
    ("200 ", [], "HTTP/1.1 200 \r\n" + SERVER),
    ("599 Caf\xe9\t!", [], "HTTP/1.1 599 Caf\xe9\t!\r\n" + SERVER),
    ("999 Whatever", [], "HTTP/1.1 999 Whatever\r\n" + SERVER),
    ("200 OK", [("X-A", "b"), ("x-a", "")], "HTTP/1.1 200 OK\r\nX-A: b\r\nx-a: \r\n" + SERVER),
    (
        "200 OK",
        [("!#$%&'*+-.^_`|~09AZaz", "a\tb\x80\xff~ ")],
        "HTTP/1.1 200 OK\r\n!#$%&'*+-.^_`|~09AZaz: a\tb\x80\xff~ \r\n" + SERVER,
    ),
    ("200 OK", [("Set-Cookie", "a"), ("Set-Cookie", "b")], "HTTP/1.1 200 OK\r\nSet-Cookie: a\r\nSet-Cookie: b\r\n" + SERVER),
    ("200 OK", [("server", "mine")], "HTTP/1.1 200 OK\r\nserver: mine\r\n"),
    ("200 OK", [("Content-Length", "5")], "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n" + SERVER),
    ("200 OK", [("Content-Length", "5"), ("content-length", "5")], "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n" + SERVER),
    ("304 Not Modified", [("Content-Length", "5")], "HTTP/1.1 304 Not Modified\r\nContent-Length: 5\r\n" + SERVER),
    ("204 No Content", [("Content-Length", "0")], "HTTP/1.1 204 No Content\r\n" + SERVER),
    ("200 OK", [("Transfer-Encoding", "chunked"), ("Keep-Alive", "1"), ("TE", "a")], "HTTP/1.1 200 OK\r\n" + SERVER),
    ("200 OK", [("Trailer", "a"), ("Upgrade", "a"), ("Proxy-Connection", "a")], "HTTP/1.1 200 OK\r\n" + SERVER),
    ("407 Who", [("Proxy-Authenticate", "Basic")], "HTTP/1.1 407 Who\r\n" + SERVER),
]


@pytest.mark.parametrize(("status", "headers", "sent"), GOOD)
def test_heads_are_serialised(status: str, headers: list[tuple[str, str]], sent: str):
    """Status and headers are sent as the application gave them, in order, except the fields about the connection."""
    assert lines(response.head(status, headers)) == sent


FACTS = [
    ("200 OK", [], {"code": 200, "length": None, "close": False, "dated": False, "bodiless": False, "plain": True}),
    ("404 No", [("Content-Length", "12")], {"code": 404, "length": 12, "plain": True}),
    ("200 OK", [("content-length", "007")], {"length": 7}),
    ("200 OK", [("Content-Length", "9" * 18)], {"length": 10**18 - 1}),
    ("204 No Content", [], {"code": 204, "bodiless": True, "plain": False}),
    ("304 Not Modified", [("Content-Length", "5")], {"code": 304, "bodiless": True, "length": 5, "plain": False}),
    ("205 Reset", [], {"bodiless": False, "plain": True}),
    ("200 OK", [("Date", "yesterday")], {"dated": True, "plain": False}),
    ("200 OK", [("Connection", "Close")], {"close": True, "plain": False}),
    ("200 OK", [("connection", "upgrade, close")], {"close": True, "plain": False}),
    ("200 OK", [("connection", "close"), ("Connection", "x")], {"close": True, "plain": False}),
    ("200 OK", [("Connection", "keep-alive")], {"close": False, "plain": True}),
    ("200 OK", [("Connection", "clos")], {"close": False, "plain": True}),
    ("200 OK", [("X", "close"), ("Keep-Alive", "close")], {"close": False, "plain": True}),
]


@pytest.mark.parametrize(("status", "headers", "facts"), FACTS)
def test_heads_have_facts(status: str, headers: list[tuple[str, str]], facts: dict[str, object]):
    """The facts that decide framing and the end of the connection are read from the application's head."""
    head = response.head(status, headers)
    assert {name: getattr(head, name) for name in facts} == facts


BAD = [
    *[
        (status, [], "bad status")
        for status in (
            "",
            " ",
            "OK",
            "20 OK",
            "2000 OK",
            "200OK",
            " 200 OK",
            "0200 OK",
            "099 OK",
            "-200 OK",
            "2_0 OK",
            "200\tOK",
            "\u0662\u0660\u0660 OK",
        )
    ],
    *[(status, [], "not a final status") for status in ("100 Continue", "101 Switching Protocols", "103 Early Hints", "199 x")],
    *[
        ("200 OK", [(name, "a")], "bad header name")
        for name in ("", " ", "X Y", "X:", ":", "X\t", "caf\xe9", "(x)", "x/y", "x=y", '"x"', "[x]", "{x}", "x@y")
    ],
    *[
        ("200 OK", [("Content-Length", value)], "bad Content-Length")
        for value in ("", " 5", "5 ", "+5", "-5", "0x5", "5_0", "5,5", "5.0", "\xb2", "9" * 19)
    ],
    ("200 OK", [("Content-Length", "5"), ("Content-Length", "6")], "bad Content-Length"),
    ("204 No Content", [("Content-Length", "x")], "bad Content-Length"),
]


@pytest.mark.parametrize(("status", "headers", "reason"), BAD)
def test_bad_heads_are_refused(status: str, headers: list[tuple[str, str]], reason: str):
    """A bad status, name or length is an error each time, not only the first time."""
    for _ in range(2):
        with pytest.raises(HeadError, match=reason) as caught:
            response.head(status, headers)
        assert str(caught.value).isprintable()


BREAKS = [
    "\r\n",
    "\r\nX: y",
    "\r\n\r\n<html>",
    *map(chr, range(9)),
    *map(chr, range(10, 32)),
    "\x7f",
    "\u0100",
    "\u2028",
    "\u560a",
]
PLACES = [
    ("200 O{}K", "X", "a"),
    ("200 OK{}", "X", "a"),
    ("{}200 OK", "X", "a"),
    ("200 OK", "X{}", "a"),
    ("200 OK", "{}X", "a"),
    ("200 OK", "X", "a{}b"),
    ("200 OK", "X", "a{}"),
    ("200 OK", "X", "{}a"),
    ("200 OK", "Connection", "close{}"),
    ("200 OK", "Content-Length", "5{}"),
    ("{}", "X", "a"),
    ("200 OK", "{}", "a"),
    ("200 OK", "X", "{}"),
]


@pytest.mark.parametrize(("status", "name", "value"), PLACES)
def test_no_value_ends_its_line(status: str, name: str, value: str):
    """Line ends, NUL, other controls and characters beyond one byte are refused at every place in a head."""
    for text in BREAKS:
        with pytest.raises(HeadError) as caught:
            response.head(status.format(text), [("Good", "good"), (name.format(text), value.format(text))])
        assert str(caught.value).isprintable()


MISTYPED = [
    (b"200 OK", []),
    (200, []),
    (None, []),
    (["200 OK"], []),
    ("200 OK", [(b"X", "a")]),
    ("200 OK", [("X", b"a")]),
    ("200 OK", [("Content-Length", 5)]),
    ("200 OK", [("X", None)]),
    ("200 OK", [["X", "a"]]),
    ("200 OK", [("X", ["a"])]),
]


@pytest.mark.parametrize(("status", "headers"), MISTYPED)
def test_other_types_are_refused(status: Any, headers: Any):
    """PEP 3333: a status is a string, and headers are tuples of two strings."""
    with pytest.raises(TypeError):
        response.head(status, headers)


RAW = [
    (200, [], "HTTP/1.1 200 OK\r\n" + SERVER),
    (HTTPStatus.NOT_FOUND, [], "HTTP/1.1 404 Not Found\r\n" + SERVER),
    (599, [], "HTTP/1.1 599 \r\n" + SERVER),
    (200, [(b"x-a", b"caf\xe9"), [b"X-A", b""]], "HTTP/1.1 200 OK\r\nx-a: caf\xe9\r\nX-A: \r\n" + SERVER),
    (200, ((name, b"once") for name in (b"x",)), "HTTP/1.1 200 OK\r\nx: once\r\n" + SERVER),
    (200, [(b"content-length", b"5"), (b"connection", b"close")], "HTTP/1.1 200 OK\r\ncontent-length: 5\r\n" + SERVER),
]


@pytest.mark.parametrize(("status", "headers", "sent"), RAW)
def test_heads_of_numbers_and_bytes(status: int, headers: Any, sent: str):
    """ASGI: a status gets its registered phrase, and names and values are sent as they are."""
    assert lines(response.raw_head(status, headers)) == sent


RAW_BAD = [
    (99, [], HeadError),
    (103, [], HeadError),
    (1000, [], HeadError),
    (-200, [], HeadError),
    ("200", [], TypeError),
    (404.5, [], TypeError),
    (None, [], TypeError),
    (200, [("x", "y")], TypeError),
    (200, [(b"x", "y")], TypeError),
    (200, [(b"x", bytearray(b"y"))], TypeError),
    (200, [(b"x", b"y\r\nz: 1")], HeadError),
    (200, [(b"x y", b"z")], HeadError),
    (200, [(b"content-length", b"x")], HeadError),
]


@pytest.mark.parametrize(("status", "headers", "error"), RAW_BAD)
def test_heads_of_numbers_and_bytes_are_judged(status: Any, headers: Any, error: type[Exception]):
    """The same rules as for strings, each time."""
    for _ in range(2):
        with pytest.raises(error):
            response.raw_head(status, headers)


def test_repeated_heads_of_bytes_are_judged_once():
    """The same status and headers are the same object; the cache is bounded in entries and in their size."""
    first = response.raw_head(200, [(b"x", b"repeated")])
    assert response.raw_head(200, iter([[b"x", b"repeated"]])) is first
    assert response.raw_head(201, [(b"x", b"repeated")]) is not first
    for number in range(2 * CACHED_ENTRIES):
        response.raw_head(200, [(b"x", str(number).encode())])
        response.raw_head(200, [(b"x", str(number).encode() + b"x" * CACHED_BYTES)])
        assert len(response.KNOWN_RAW_HEADS) <= CACHED_ENTRIES
    assert max(len(head.lines) for head in response.KNOWN_RAW_HEADS.values()) <= CACHED_BYTES


def test_a_stream_of_events_is_recognised():
    """Server-sent events have no end of their own, so a server that stops has to end them."""
    streams = ["text/event-stream", "Text/Event-Stream; charset=utf-8"]
    assert all(response.head("200 OK", [("content-type", value)]).events for value in streams)
    assert not response.head("200 OK", [("Content-Type", "text/html")]).events
    assert not response.head("200 OK", []).events


@pytest.mark.parametrize("name", sorted(grammar.FORBIDDEN_TRAILERS))
def test_no_trailer_decides_where_a_message_ends(name: str):
    """RFC 9110 6.5.1: fields about framing, routing, authentication and content stand in heads only."""
    with pytest.raises(HeadError):
        response.field_lines([(name.title().encode(), b"5")])


def test_field_lines_are_sent_as_they_are():
    """Names and values of trailers and early hints, in order, judged as those of a head are."""
    fields = [(b"Link", b"</a.css>; rel=preload"), [b"x-digest", b"caf\xe9"]]
    assert response.field_lines(fields) == b"Link: </a.css>; rel=preload\r\nx-digest: caf\xe9\r\n"
    assert response.field_lines([]) == b""
    for bad in [(b"x", b"a\r\nb: c")], [(b"a b", b"c")], [(b"", b"")]:
        with pytest.raises(HeadError):
            response.field_lines(bad)
    mistyped: Any = [("x", "y")]
    with pytest.raises(TypeError):
        response.field_lines(mistyped)


class Word(str, enum.Enum):  # noqa: UP042 - a StrEnum formats as its value
    STATUS = "200 OK"
    SHORT = "200"
    NAME = "X-Name"
    VALUE = "value"


def test_the_judged_text_is_sent():
    """This holds for a subclass of `str` that formats as another text, too."""
    for status, sent in (Word.STATUS, "200 OK"), (Word.SHORT, "200 "):
        head = response.head(status, [(Word.NAME, Word.VALUE)])
        assert lines(head) == f"HTTP/1.1 {sent}\r\nX-Name: value\r\n" + SERVER


def test_headers_may_come_from_an_iterator():
    """Headers that can be read only once are complete, whether the head is cached or not."""
    for _ in range(2):
        head = response.head("200 OK", ((name, "once") for name in ("X-One", "X-Two")))
        assert lines(head) == "HTTP/1.1 200 OK\r\nX-One: once\r\nX-Two: once\r\n" + SERVER


def test_repeated_heads_are_judged_once():
    """The same status and headers lead to the same object; in another order or case they lead to another."""
    headers = [("X", "repeated"), ("Y", "z")]
    first = response.head("200 OK", headers)
    assert response.head("200 OK", list(headers)) is first
    assert response.head("200 OK", tuple(headers)) is first
    assert response.head("201 OK", headers) is not first
    assert response.head("200 OK", headers[::-1]) is not first
    assert response.head("200 OK", [("x", "repeated"), ("Y", "z")]) is not first


def test_heads_cannot_fill_the_memory():
    """A bounded number of heads is kept, and no long ones, whatever the application returns."""
    most = 0
    for number in range(3 * CACHED_ENTRIES):
        response.head("200 OK", [("X", str(number))])
        response.head("200 OK", [("X", str(number) + "x" * CACHED_BYTES)])
        most = max(most, len(response.KNOWN_HEADS))
    kept = response.KNOWN_HEADS
    assert most == CACHED_ENTRIES
    assert max(len(head.lines) for head in kept.values()) <= CACHED_BYTES


DATES = [
    (0, "Thu, 01 Jan 1970 00:00:00 GMT"),
    (784111777, "Sun, 06 Nov 1994 08:49:37 GMT"),  # the example in RFC 9110 5.6.7
    (951782399.9, "Mon, 28 Feb 2000 23:59:59 GMT"),
    (951782400, "Tue, 29 Feb 2000 00:00:00 GMT"),
    (1798761599, "Thu, 31 Dec 2026 23:59:59 GMT"),
]


@pytest.mark.parametrize(("now", "text"), DATES)
def test_date(now: float, text: str):
    """Date is an IMF-fixdate, in English and in GMT whatever the locale and the time zone are."""
    assert response.date_line(now) == f"Date: {text}\r\n".encode()


def test_date_of_every_day_and_month():
    """The names of days and months are those of strftime in the C locale."""
    for day in range(366):
        now = 1767225600 + day * 86400
        assert response.date_line(now).decode() == time.strftime("Date: %a, %d %b %Y %H:%M:%S GMT\r\n", time.gmtime(now))


DATE = b"Date: Sun, 06 Nov 1994 08:49:37 GMT\r\n"


@pytest.mark.parametrize("status", [400, 408, 413, 414, 417, 431, 501, 505, 507, 599])
def test_a_refusal_is_a_whole_response(status: int):
    """It has a status, a length, a date, and announces the end of the connection; to HEAD it is the same without the body."""
    head, end, body = response.refusal(status, DATE).partition(b"\r\n\r\n")
    first, *fields = head.decode("ascii").split("\r\n")
    assert first.startswith(f"HTTP/1.1 {status} ")
    assert fields == [
        "Server: epollard",
        "Content-Type: text/plain",
        f"Content-Length: {len(body)}",
        "Connection: close",
        DATE.decode().rstrip(),
    ]
    assert body.decode("ascii") == first.removeprefix("HTTP/1.1 ") + "\n"
    assert response.refusal(status, DATE, body=False) == head + end


def test_a_refused_version_of_websocket_names_the_right_one():
    """A client with another version learns which one to use (RFC 6455 4.4, RFC 9110 15.5.22)."""
    head = response.refusal(426, DATE).partition(b"\r\n\r\n")[0]
    assert {b"Upgrade: websocket", b"Connection: Upgrade", b"Sec-WebSocket-Version: 13"} <= set(head.split(b"\r\n"))


def test_parts_of_heads_are_whole_lines():
    """Each constant is a whole line, or a whole message part (RFC 9112 5, 7.1; RFC 9110 15.2)."""
    assert response.CONTINUE == b"HTTP/1.1 100 Continue\r\n\r\n"
    assert response.CLOSE == b"Connection: close\r\n"
    assert response.KEEP == b"Connection: keep-alive\r\n"
    assert response.CHUNKED == b"Transfer-Encoding: chunked\r\n"
    assert response.LAST_CHUNK == b"0\r\n\r\n"


def test_options():
    """The response to `OPTIONS *` has no body, and a Content-Length of 0."""
    for keep in b"", response.CLOSE, response.KEEP:
        assert (
            response.options(DATE, keep)
            == b"HTTP/1.1 200 OK\r\nServer: epollard\r\nContent-Length: 0\r\n" + keep + DATE + b"\r\n"
        )
