"""Bodies of requests on their own; `test_request` has those behind their heads. No socket, no server."""

import pytest

from epollard.protocol.body import EXTENSION_BYTES, ChunkedBody, LengthBody
from epollard.protocol.grammar import ProtocolError


def test_extensions_may_not_outweigh_the_body():
    """Chunk extensions may have as many bytes as the body and some more, but not without end (RFC 9112 7.1.1)."""
    fair = ChunkedBody(10**6)
    assert fair.feed(b"40;%s\r\n%s\r\n" % (b"a" * 60, b"b" * 64) * 1000) == b"b" * 64000
    line = b"1;%s\r\nb\r\n" % (b"a" * 63)  # 63 bytes more than the body, each time
    times, last = divmod(EXTENSION_BYTES, 63)
    body = ChunkedBody(10**6)
    assert body.feed(line * times) == b"b" * times
    assert body.feed(b"1;%s\r\nb\r\n" % (b"a" * last)) == b"b"
    with pytest.raises(ProtocolError, match="400, 'chunk extensions"):
        body.feed(b"1;a\r\n")


def test_a_body_of_known_length_is_not_copied():
    """A piece within the body is returned itself; behind the end of the body, the rest belongs to the next request."""
    body = LengthBody(10)
    data = b"hello"
    assert body.feed(data) is data
    assert not body.done
    assert body.feed(b"worldGET") == b"world"
    assert body.done
    assert body.rest == b"GET"
    exact = LengthBody(5)
    assert exact.feed(data) is data
    assert (exact.done, exact.rest) == (True, b"")


def test_a_body_of_length_zero_is_done():
    """It is not waited for."""
    assert LengthBody(0).done
    assert not LengthBody(1).done


def test_a_part_of_a_chunk_is_returned_at_once():
    """A large chunk is not kept in memory until it is whole."""
    body = ChunkedBody(10**9)
    assert body.feed(b"3b9aca00\r\nhello") == b"hello"
    assert body.feed(b"world") == b"world"
    assert not body.done
