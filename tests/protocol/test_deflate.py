"""Compression of WebSocket messages: rows of negotiations, and zlib as the client. No socket, no server."""

import zlib

import pytest

from corpus import deflate
from epollard.protocol.deflate import Deflate

PMD = "permessage-deflate"
NEGOTIATED: list[tuple[list[str], str | None]] = [
    ([], None),
    ([""], None),
    (["x-webkit-deflate-frame"], None),
    ([PMD], "server_max_window_bits=12; client_no_context_takeover"),
    ([f"x; y=z, {PMD}"], "server_max_window_bits=12; client_no_context_takeover"),
    ([f"{PMD}; client_max_window_bits"], "server_max_window_bits=12; client_max_window_bits=12"),
    ([f"{PMD};client_max_window_bits=15"], "server_max_window_bits=12; client_max_window_bits=12"),
    ([f'{PMD} ; client_max_window_bits = "10"'], "server_max_window_bits=12; client_max_window_bits=10"),
    ([f"{PMD}; client_max_window_bits=8"], "server_max_window_bits=12; client_max_window_bits=8"),
    ([f"{PMD}; server_max_window_bits=8"], "server_max_window_bits=8; client_no_context_takeover"),
    ([f"{PMD}; server_max_window_bits=15"], "server_max_window_bits=12; client_no_context_takeover"),
    (
        [f"{PMD}; server_no_context_takeover; client_max_window_bits"],
        "server_max_window_bits=12; client_max_window_bits=12; server_no_context_takeover",
    ),
    (
        [f"{PMD}; client_max_window_bits; client_no_context_takeover"],
        "server_max_window_bits=12; client_max_window_bits=12; client_no_context_takeover",
    ),
    # declined, with or without another one behind
    ([f"{PMD}; server_max_window_bits"], None),
    ([f"{PMD}; server_max_window_bits=7"], None),
    ([f"{PMD}; server_max_window_bits=16"], None),
    ([f"{PMD}; server_max_window_bits=08"], None),
    ([f"{PMD}; server_max_window_bits=+9"], None),
    ([f"{PMD}; server_max_window_bits={'9' * 5000}"], None),
    ([f"{PMD}; client_max_window_bits=16"], None),
    ([f"{PMD}; server_no_context_takeover=1"], None),
    ([f"{PMD}; client_no_context_takeover=x"], None),
    ([f"{PMD}; client_max_window_bits; client_max_window_bits"], None),
    ([f"{PMD}; server_no_context_takeover; server_no_context_takeover"], None),
    ([f"{PMD}; unknown"], None),
    ([f"{PMD.upper()}"], None),
    ([f"{PMD}; unknown, {PMD}; server_max_window_bits=9"], "server_max_window_bits=9; client_no_context_takeover"),
    ([f"{PMD}; unknown", f"{PMD}; server_max_window_bits=9"], "server_max_window_bits=9; client_no_context_takeover"),
    ([f"{PMD}; server_max_window_bits=10, {PMD}"], "server_max_window_bits=10; client_no_context_takeover"),
]


@pytest.mark.parametrize(("values", "answer"), NEGOTIATED)
def test_compression_is_negotiated(values: list[str], answer: str | None):
    """The first acceptable offer is accepted, within our bounds; one that RFC 7692 7.1 forbids is declined."""
    negotiated = Deflate.negotiate(values)
    assert (negotiated and negotiated.header) == (answer and f"{PMD}; {answer}")


@pytest.mark.parametrize("bits", range(8, 16))
def test_the_window_is_as_small_as_the_client_asked(bits: int):
    """A client with the window that it asked for can decompress our messages, distant matches included."""
    server = deflate(f"{PMD}; server_max_window_bits={bits}")
    client = zlib.decompressobj(-bits)
    noise = bytes(at * at * 31 % 257 % 256 for at in range(200))
    for message in (noise * 3, noise[::-1] + noise[:70] + noise[::-1], b"a" * 999, (noise + b"xyz") * 40):
        data = server.compress(message) + b"\0\0\xff\xff"
        content = b""
        while data:  # byte by byte, so that zlib needs its window and not its last output
            content += client.decompress(data, 1)
            data = client.unconsumed_tail
        while more := client.decompress(b"", 1):
            content += more
        assert content == message


def test_contexts_are_kept_or_not():
    """Earlier messages make the next one shorter, unless the client asked for no context takeover."""
    kept, forgotten = deflate(), deflate(f"{PMD}; server_no_context_takeover")
    message = bytes(range(256))
    assert len(kept.compress(message)) > 256
    assert len(kept.compress(message)) < 20
    assert forgotten.compress(message) == forgotten.compress(message)


def test_an_empty_message_is_one_byte():
    """RFC 7692 7.2.3.6 holds for the second and later messages too."""
    server = deflate()
    assert [server.compress(b"") for _ in range(3)] == [b"\0"] * 3
