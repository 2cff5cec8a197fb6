"""Responses as bytes: how a body is framed and counted, whatever the pieces in which it comes. No socket, no server."""

from collections.abc import Callable

import pytest

from epollard.protocol import response, response_body
from epollard.protocol.request import HeadReader, Request
from epollard.protocol.response import COPY_BELOW, Head
from epollard.protocol.response_body import BodyWriter, ChunkedWriter, CloseWriter, LengthWriter, NoBodyWriter

DATE = b"Date: today\r\n"


class Ends:
    """The ends of a head, as a worker has them."""

    date_end = DATE + b"\r\n"
    close_end = b"Connection: close\r\n" + DATE + b"\r\n"
    keep_end = b"Connection: keep-alive\r\n" + DATE + b"\r\n"


def request(method: str, version: str) -> Request:
    found = HeadReader(100, 10, 100).read(f"{method} /a?b HTTP/{version}\r\nHost: a\r\n\r\n".encode())
    assert found
    return found


REQUESTS = {
    "GET": request("GET", "1.1"),
    "POST": request("POST", "1.1"),
    "HEAD": request("HEAD", "1.1"),
    "GET 1.0": request("GET", "1.0"),
    "HEAD 1.0": request("HEAD", "1.0"),
}
OK = response.head("200 OK", [])
FIVE = response.head("200 OK", [("Content-Length", "5")])
ZERO = response.head("200 OK", [("Content-Length", "0")])
CLOSING = response.head("200 OK", [("Connection", "close")])
CLOSING_FIVE = response.head("200 OK", [("Connection", "close"), ("Content-Length", "5")])
DATED = response.head("200 OK", [("Date", "then")])
NO_CONTENT = response.head("204 No Content", [("Content-Length", "0")])
NOT_MODIFIED = response.head("304 Not Modified", [("Content-Length", "5")])

GIVEN = b""  # nothing is added: the application's own Content-Length is in the head
NEW_5 = b"Content-Length: 5\r\n"
NEW_0 = b"Content-Length: 0\r\n"
CHUNKED = b"Transfer-Encoding: chunked\r\n"
CLOSE = b"Connection: close\r\n"
KEEP = b"Connection: keep-alive\r\n"

# Head, request, size, closing; the framing line, the connection's line, the writer, whether the connection closes.
STARTS = [
    (OK, "GET", None, False, CHUNKED, b"", ChunkedWriter, False),
    (OK, "GET", None, True, CHUNKED, CLOSE, ChunkedWriter, True),
    (OK, "GET", 5, False, NEW_5, b"", LengthWriter, False),
    (OK, "GET", 5, True, NEW_5, CLOSE, LengthWriter, True),
    (OK, "GET", 0, False, NEW_0, b"", LengthWriter, False),
    (OK, "POST", None, False, CHUNKED, b"", ChunkedWriter, False),
    (FIVE, "GET", None, False, GIVEN, b"", LengthWriter, False),
    (FIVE, "GET", 4, False, GIVEN, b"", LengthWriter, False),
    (FIVE, "GET", None, True, GIVEN, CLOSE, LengthWriter, True),
    (CLOSING, "GET", None, False, CHUNKED, CLOSE, ChunkedWriter, True),
    (CLOSING_FIVE, "GET", None, False, GIVEN, CLOSE, LengthWriter, True),
    (OK, "HEAD", None, False, CHUNKED, b"", NoBodyWriter, False),
    (OK, "HEAD", 5, False, NEW_5, b"", NoBodyWriter, False),
    (FIVE, "HEAD", None, False, GIVEN, b"", NoBodyWriter, False),
    (FIVE, "HEAD", 0, True, GIVEN, CLOSE, NoBodyWriter, True),
    (OK, "GET 1.0", None, False, GIVEN, CLOSE, CloseWriter, True),
    (OK, "GET 1.0", 5, False, NEW_5, KEEP, LengthWriter, False),
    (OK, "GET 1.0", 5, True, NEW_5, CLOSE, LengthWriter, True),
    (FIVE, "GET 1.0", None, False, GIVEN, KEEP, LengthWriter, False),
    (OK, "HEAD 1.0", None, False, GIVEN, CLOSE, NoBodyWriter, True),
    (OK, "HEAD 1.0", 5, False, NEW_5, KEEP, NoBodyWriter, False),
    (NO_CONTENT, "GET", None, False, GIVEN, b"", NoBodyWriter, False),
    (NO_CONTENT, "GET", 5, False, GIVEN, b"", NoBodyWriter, False),
    (NO_CONTENT, "GET 1.0", None, False, GIVEN, KEEP, NoBodyWriter, False),
    (NOT_MODIFIED, "GET", None, False, GIVEN, b"", NoBodyWriter, False),
    (NOT_MODIFIED, "GET", 5, True, GIVEN, CLOSE, NoBodyWriter, True),
]


@pytest.mark.parametrize(("head", "to", "size", "closing", "framing", "connection", "writer", "closes"), STARTS)
def test_framing_follows_from_head_and_request(
    head: Head, to: str, size: int | None, closing: bool, framing: bytes, connection: bytes, writer: type, closes: bool
):
    """The head announces one way to find the end of the body (RFC 9112 6.3), and whether the connection closes."""
    opening = response_body.start(head, REQUESTS[to], Ends, size=size, closing=closing)
    assert opening.head == head.lines + framing + connection + DATE + b"\r\n"
    assert type(opening.writer) is writer
    assert opening.closing == closes


@pytest.mark.parametrize(
    ("to", "closing", "connection"),
    [("GET", False, b""), ("GET", True, CLOSE), ("GET 1.0", False, KEEP), ("GET 1.0", True, CLOSE)],
)
def test_the_applications_own_date_is_the_only_one(to: str, closing: bool, connection: bytes):
    """A head with a Date gets no second one, and still gets its Connection line."""
    opening = response_body.start(DATED, REQUESTS[to], Ends, size=5, closing=closing)
    assert opening.head == DATED.lines + NEW_5 + connection + b"\r\n"


FIVE_LEFT = "five bytes"
WRITERS: dict[str, Callable[[], BodyWriter]] = {
    FIVE_LEFT: lambda: LengthWriter(5),
    "no bytes": lambda: LengthWriter(0),
    "chunks": ChunkedWriter,
    "close": CloseWriter,
    "no body": NoBodyWriter,
}

# The application's pieces; the bytes sent; `sent`, `missing`, `excess` (of the last piece), `full`; the end.
PIECES = [
    (FIVE_LEFT, [], b"", 0, 5, 0, False, b""),
    (FIVE_LEFT, [b""], b"", 0, 5, 0, False, b""),
    (FIVE_LEFT, [b"abc"], b"abc", 3, 2, 0, False, b""),
    (FIVE_LEFT, [b"abcde"], b"abcde", 5, 0, 0, True, b""),
    (FIVE_LEFT, [b"abc", b"de"], b"abcde", 5, 0, 0, True, b""),
    (FIVE_LEFT, [b"abcdefg"], b"abcde", 5, 0, 2, True, b""),
    (FIVE_LEFT, [b"abc", b"defg"], b"abcde", 5, 0, 2, True, b""),
    (FIVE_LEFT, [b"abcdefg", b""], b"abcde", 5, 0, 0, True, b""),
    (FIVE_LEFT, [b"abcdefg", b"hij"], b"abcde", 5, 0, 3, True, b""),
    ("no bytes", [], b"", 0, 0, 0, True, b""),
    ("no bytes", [b"a"], b"", 0, 0, 1, True, b""),
    ("chunks", [], b"", 0, 0, 0, False, b"0\r\n\r\n"),
    ("chunks", [b""], b"", 0, 0, 0, False, b"0\r\n\r\n"),
    ("chunks", [b"abc", b"", b"d" * 26], b"3\r\nabc\r\n1a\r\n" + b"d" * 26 + b"\r\n", 29, 0, 0, False, b"0\r\n\r\n"),
    ("chunks", [b"x" * 255, b"\r\n"], b"ff\r\n" + b"x" * 255 + b"\r\n2\r\n\r\n\r\n", 257, 0, 0, False, b"0\r\n\r\n"),
    ("close", [], b"", 0, 0, 0, False, b""),
    ("close", [b"abc", b"", b"def"], b"abcdef", 6, 0, 0, False, b""),
    ("no body", [], b"", 0, 0, 0, True, b""),
    ("no body", [b"abc"], b"", 0, 0, 0, True, b""),
]


def state(writer: BodyWriter) -> tuple[int, int, int, bool]:
    return writer.sent, writer.missing, writer.excess, writer.full


@pytest.mark.parametrize(("kind", "pieces", "framed", "sent", "missing", "excess", "full", "end"), PIECES)
def test_pieces_are_framed_and_counted(
    kind: str, pieces: list[bytes], framed: bytes, sent: int, missing: int, excess: int, full: bool, end: bytes
):
    """No byte beyond the Content-Length is sent, no empty chunk before the end, and missing bytes are counted."""
    writer: BodyWriter = WRITERS[kind]()
    assert b"".join(map(writer.write, pieces)) == framed
    assert state(writer) == (sent, missing, excess, full)
    assert writer.end() == end


@pytest.mark.parametrize(("kind", "pieces", "framed", "sent", "missing", "excess", "full", "end"), PIECES)
def test_files_are_framed_and_counted_as_bytes_are(
    kind: str, pieces: list[bytes], framed: bytes, sent: int, missing: int, excess: int, full: bool, end: bytes
):
    """A piece that the kernel sends from a file is framed like one from memory."""
    writer: BodyWriter = WRITERS[kind]()
    out = []
    for piece in pieces:
        before, count, behind = writer.write_file(len(piece))
        out += [before, piece[:count], behind]
    assert b"".join(out) == framed
    assert state(writer) == (sent, missing, excess, full)
    assert writer.end() == end


def test_a_large_piece_is_not_copied():
    """A piece that need not be cut or framed is returned itself."""
    data = b"a" * 100
    assert LengthWriter(100).write(data) is data
    assert LengthWriter(200).write(data) is data
    assert CloseWriter().write(data) is data


@pytest.mark.parametrize("kind", WRITERS)
def test_trailers_come_behind_the_last_chunk(kind: str):
    """RFC 9112 7.1.2: only a chunked body has a place for trailers; with any other they are dropped."""
    writer: BodyWriter = WRITERS[kind]()
    assert writer.end(b"X-A: b\r\n") == (b"0\r\nX-A: b\r\n\r\n" if kind == "chunks" else b"")


BIG = b"a" * COPY_BELOW

WHOLE = [
    (OK, "GET", b"hello", False, NEW_5, b""),
    (OK, "GET", b"", False, NEW_0, b""),
    (OK, "POST", b"hello", True, NEW_5, CLOSE),
    (FIVE, "GET", b"hello", False, GIVEN, b""),
    (FIVE, "GET", b"hello", True, GIVEN, CLOSE),
    (OK, "GET 1.0", b"hello", False, NEW_5, KEEP),
    (OK, "GET 1.0", b"hello", True, NEW_5, CLOSE),
    (FIVE, "GET 1.0", b"hello", False, GIVEN, KEEP),
    (ZERO, "GET", b"", False, GIVEN, b""),
    (OK, "GET", BIG, False, b"Content-Length: 65536\r\n", b""),
]


@pytest.mark.parametrize(("head", "to", "body", "closing", "framing", "connection"), WHOLE)
def test_the_fast_path_sends_what_the_slow_path_sends(
    head: Head, to: str, body: bytes, closing: bool, framing: bytes, connection: bytes
):
    """`whole` returns the bytes that `start` and a writer would make."""
    expected = head.lines + framing + connection + DATE + b"\r\n" + body
    assert response_body.whole(head, REQUESTS[to], Ends, body, closing) == expected
    opening = response_body.start(head, REQUESTS[to], Ends, size=len(body), closing=closing)
    assert opening.head + opening.writer.write(body) + opening.writer.end() == expected
    assert opening.closing == closing


@pytest.mark.parametrize(
    ("head", "to", "body", "closing"),
    [
        (None, "GET", b"hello", False),
        (OK, "GET", "hello", False),
        (OK, "GET", bytearray(b"hello"), False),
        (OK, "GET", BIG + b"a", False),
        (OK, "HEAD", b"hello", False),
        (OK, "HEAD", b"hello", True),
        (OK, "HEAD 1.0", b"hello", False),
        (FIVE, "GET", b"hell", False),
        (FIVE, "GET", b"hello!", False),
        (ZERO, "GET", b"hello", False),
        (CLOSING, "GET", b"hello", False),
        (DATED, "GET", b"hello", False),
        (NO_CONTENT, "GET", b"", False),
        (NOT_MODIFIED, "GET", b"", False),
    ],
)
def test_an_unusual_response_takes_the_slow_path(head: Head | None, to: str, body: object, closing: bool):
    """`whole` leaves the other cases to `start`."""
    assert response_body.whole(head, REQUESTS[to], Ends, body, closing) is None


def test_the_log_names_the_request():
    """A developer finds the wrong Content-Length by the log line."""
    get = REQUESTS["GET"]
    assert response_body.excess_warning(get) == "application sent more than its Content-Length on GET /a?b: cut"
    assert response_body.missing_warning(get, 3) == "application sent 3 bytes less than its Content-Length on GET /a?b: closed"


def test_the_response_to_a_failure_does_not_describe_it():
    """The application's error is in the log only; the client gets a status."""
    sent = response_body.whole(response_body.INTERNAL_ERROR, REQUESTS["GET"], Ends, response_body.INTERNAL_ERROR_BODY, False)
    assert sent is not None
    assert sent.startswith(b"HTTP/1.1 500 Internal Server Error\r\nContent-Type: text/plain; charset=utf-8\r\n")
    assert sent.endswith(b"\r\n\r\nInternal Server Error\n")
