"""Whatever an application returns, exactly one head is sent. Properties that hold for all strings."""

from hypothesis import given
from hypothesis import strategies as st

from epollard.protocol import response
from epollard.protocol.body import ChunkedBody
from epollard.protocol.response import HeadError
from epollard.protocol.response_body import ChunkedWriter

TEXT = st.text(st.characters(max_codepoint=0x2100), max_size=8) | st.text("ab\r\n\0:\t \xe9", max_size=6)
STATUS = st.sampled_from(["200 OK", "204 No Content", "304 Not", "404"]) | TEXT | TEXT.map("200 {}".format)
NAMES = st.sampled_from(["X-A", "Content-Length", "Connection", "Date", "Server", "Set-Cookie", "Transfer-Encoding"]) | TEXT
VALUES = st.sampled_from(["5", "0", "close", "", "a b"]) | TEXT
DROPPED = {
    "content-length",
    "connection",
    "keep-alive",
    "proxy-authenticate",
    "proxy-connection",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
}
HEADERS = st.lists(st.tuples(NAMES, VALUES), max_size=4)


def said(status: str, headers: list[tuple[str, str]]) -> response.Head | str:
    """A head, or the reason why it is refused."""
    try:
        return response.head(status, headers)
    except HeadError as error:
        return str(error)


@given(STATUS, HEADERS)
def test_a_head_is_refused_or_whole(status: str, headers: list[tuple[str, str]]):
    """A head is an error, the same each time, or lines from which a strict reader gets the application's headers."""
    first, again = said(status, headers), said(status, headers)
    if isinstance(first, str):
        assert first.isprintable()
        assert first == again
        return
    head = first
    assert again is head
    assert head.lines.endswith(b"\r\n")
    top, *lines = head.lines.decode("latin-1")[:-2].split("\r\n")
    assert not any(set(line) & set("\r\n\0") for line in (top, *lines))
    assert top == f"HTTP/1.1 {status}" + (" " if len(status) == 3 else "")
    sent = [tuple(line.split(": ", 1)) for line in lines]
    expected = [*headers, ("Server", "epollard")]
    assert all(pair in expected for pair in sent)
    kept = [pair for pair in headers if pair[0].lower() not in DROPPED]
    assert [pair for pair in sent if pair in kept][: len(kept)] == kept
    assert sum(pair[0].lower() == "content-length" for pair in sent) <= 1
    assert (head.length is None) == all(pair[0].lower() != "content-length" for pair in headers)


@given(st.binary(min_size=1, max_size=300))
def test_our_own_reader_understands_chunks(data: bytes):
    """The reader of bodies understands the writer of bodies."""
    decoder, writer = ChunkedBody(1000), ChunkedWriter()
    assert decoder.feed(writer.write(data) + writer.end()) == data
    assert decoder.done
    assert decoder.rest == b""
