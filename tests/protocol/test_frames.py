"""WebSocket frames: rows of bytes and their events, and the `websockets` library as the client. No socket, no server."""

import itertools
import tracemalloc
import zlib
from collections.abc import Iterable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from websockets.client import ClientProtocol
from websockets.extensions.permessage_deflate import ClientPerMessageDeflateFactory
from websockets.frames import Opcode
from websockets.typing import Subprotocol
from websockets.uri import parse_uri

from corpus import deflate, held
from epollard.protocol.frames import BINARY, CLOSE, FAIL, PING, PONG, TEXT, Receiver, close_frame, frame, is_valid_close
from epollard.protocol.handshake import Offer, accept_head, read_offer
from epollard.protocol.request import HeadReader

DATE_END = b"Date: Thu, 01 Jan 1970 00:00:00 GMT\r\n\r\n"
LIMIT = 1000


def sent(first: int, payload: bytes = b"", mask: bytes = b"\x37\xfa\x21\x3d", width: int | None = None) -> bytes:
    """A frame as a client sends it. `width`: bytes of its extended length; without it, as few as possible."""
    size = len(payload)
    if width is None:
        width = 0 if size < 126 else 2 if size < 1 << 16 else 8
    head = bytes((first, 128 + {0: size, 2: 126, 8: 127}[width])) + size.to_bytes(8)[8 - width :]
    return head + mask + bytes(byte ^ mask[at % 4] for at, byte in enumerate(payload))


def fed(receiver: Receiver, pieces: Iterable[bytes]) -> list[tuple[int, Any]]:
    return [event for piece in pieces for event in receiver.feed(piece)]


def single(data: bytes) -> list[bytes]:
    return [data[at : at + 1] for at in range(len(data))]


def brief(events: list[tuple[int, Any]]) -> list[tuple[int, Any]]:
    """Events without the reasons of violations."""
    return [(kind, what[0] if kind == FAIL else what) for kind, what in events]


# --- What a client sends -------------------------------------------------------------------------------------------

LONG = "\u00e9" * 300
FRAMES = [
    # RFC 6455 5.7, and similar frames
    ("text", sent(0x81, b"Hello"), [(TEXT, "Hello")]),
    ("unmasked zeros", sent(0x81, b"Hello", b"\0\0\0\0"), [(TEXT, "Hello")]),
    ("empty text", sent(0x81), [(TEXT, "")]),
    ("empty binary", sent(0x82), [(BINARY, b"")]),
    ("binary", sent(0x82, b"\xff\0"), [(BINARY, b"\xff\0")]),
    ("125", sent(0x82, b"a" * 125), [(BINARY, b"a" * 125)]),
    ("126", sent(0x82, b"a" * 126), [(BINARY, b"a" * 126)]),
    ("two bytes of length", sent(0x81, LONG.encode()), [(TEXT, LONG)]),
    ("ping", sent(0x89, b"Hello"), [(PING, b"Hello")]),
    ("empty ping", sent(0x89), [(PING, b"")]),
    ("ping of 125", sent(0x89, b"a" * 125), [(PING, b"a" * 125)]),
    ("pong", sent(0x8A, b"\xff"), [(PONG, b"\xff")]),
    ("two", sent(0x81, b"a") + sent(0x82, b"b"), [(TEXT, "a"), (BINARY, b"b")]),
    ("fragments", sent(0x01, b"Hel") + sent(0x80, b"lo"), [(TEXT, "Hello")]),
    ("binary fragments", sent(0x02, b"\xff") + sent(0x00) + sent(0x80, b"b"), [(BINARY, b"\xffb")]),
    ("empty fragments", sent(0x01) + sent(0x00) + sent(0x80), [(TEXT, "")]),
    ("last fragment empty", sent(0x01, b"a") + sent(0x80), [(TEXT, "a")]),
    ("ping within", sent(0x01, b"Hel") + sent(0x89, b"p") + sent(0x80, b"lo"), [(PING, b"p"), (TEXT, "Hello")]),
    ("a character cut", sent(0x01, b"\xf0\x9f") + sent(0x89) + sent(0x80, b"\x98\x80!"), [(PING, b""), (TEXT, "\U0001f600!")]),
    ("after fragments", sent(0x01, b"a") + sent(0x80, b"b") + sent(0x81, b"c"), [(TEXT, "ab"), (TEXT, "c")]),
    ("the limit", sent(0x82, b"a" * LIMIT), [(BINARY, b"a" * LIMIT)]),
    ("the limit in fragments", sent(0x02, b"a" * (LIMIT - 1)) + sent(0x80, b"b"), [(BINARY, b"a" * (LIMIT - 1) + b"b")]),
    ("the limit again and again", sent(0x82, b"a" * LIMIT) * 3, [(BINARY, b"a" * LIMIT)] * 3),
    ("the limit again, in fragments", (sent(0x02, b"a" * 600) + sent(0x80, b"a" * 400)) * 2, [(BINARY, b"a" * LIMIT)] * 2),
    # violations
    ("no mask", b"\x81\x05Hello", [(FAIL, 1002)]),
    ("no mask, ping", b"\x89\x00", [(FAIL, 1002)]),
    ("RSV1", sent(0xC1, b"a"), [(FAIL, 1002)]),
    ("RSV2", sent(0xA1, b"a"), [(FAIL, 1002)]),
    ("RSV3", sent(0x92, b"a"), [(FAIL, 1002)]),
    ("RSV1 in a continuation", sent(0x01, b"a") + sent(0xC0, b"b"), [(FAIL, 1002)]),
    *[(f"RSV in a ping: {bit}", sent(0x89 | bit), [(FAIL, 1002)]) for bit in (0x40, 0x20, 0x10)],
    *[(f"opcode {code}", sent(0x80 | code, b"a"), [(FAIL, 1002)]) for code in (3, 4, 5, 6, 7, 11, 12, 13, 14, 15)],
    ("good, then bad", sent(0x81, b"a") + sent(0x83), [(TEXT, "a"), (FAIL, 1002)]),
    ("fragmented ping", sent(0x09, b"a"), [(FAIL, 1002)]),
    ("fragmented close", sent(0x08), [(FAIL, 1002)]),
    ("ping of 126", sent(0x89, b"a" * 126), [(FAIL, 1002)]),
    ("ping, long length", sent(0x89, b"a", width=8), [(FAIL, 1002)]),
    ("continuation of nothing", sent(0x80, b"a"), [(FAIL, 1002)]),
    ("fragment of nothing", sent(0x00, b"a"), [(FAIL, 1002)]),
    ("continuation of what is whole", sent(0x81, b"a") + sent(0x80, b"b"), [(TEXT, "a"), (FAIL, 1002)]),
    ("message within a message", sent(0x01, b"a") + sent(0x81, b"b"), [(FAIL, 1002)]),
    ("binary within text", sent(0x01, b"a") + sent(0x02, b"b"), [(FAIL, 1002)]),
    ("within an empty beginning", sent(0x01) + sent(0x81, b"b"), [(FAIL, 1002)]),
    ("125 in two bytes", sent(0x82, b"a" * 125, width=2), [(FAIL, 1002)]),
    ("126 in eight bytes", sent(0x82, b"a" * 126, width=8), [(FAIL, 1002)]),
    ("65535 in eight bytes", b"\x82\xff" + (65535).to_bytes(8) + b"mask", [(FAIL, 1002)]),
    ("length with the top bit", b"\x82\xff\x80" + bytes(7) + b"mask", [(FAIL, 1002)]),
    ("all of the length", b"\x82\xff" + b"\xff" * 8 + b"mask", [(FAIL, 1002)]),
    ("too big", sent(0x82, b"a" * (LIMIT + 1)), [(FAIL, 1009)]),
    ("far too big", b"\x82\xff\x7f" + b"\xff" * 7 + b"mask", [(FAIL, 1009)]),
    ("too big together", sent(0x02, b"a" * LIMIT) + sent(0x00) + sent(0x80, b"a"), [(FAIL, 1009)]),
    ("latin-1", sent(0x81, b"caf\xe9"), [(FAIL, 1007)]),
    ("surrogate", sent(0x81, b"\xed\xa0\x80"), [(FAIL, 1007)]),
    ("cut at the end", sent(0x81, b"a\xf0\x9f\x98"), [(FAIL, 1007)]),
    ("cut at the end of fragments", sent(0x01, b"a\xf0\x9f") + sent(0x80, b"\x98"), [(FAIL, 1007)]),
    ("cut, then nothing", sent(0x01, b"\xf0") + sent(0x80), [(FAIL, 1007)]),
    ("bad in the second fragment", sent(0x01, b"a\xc3") + sent(0x00, b"(") + sent(0x80), [(FAIL, 1007)]),
    (
        "a tail is not kept",
        sent(0x01, b"\xc3") + sent(0x80, b"\xa9") + sent(0x01, b"a") + sent(0x80),
        [(TEXT, "é"), (TEXT, "a")],
    ),
    # closing
    ("close", sent(0x88, b"\x03\xe8bye"), [(CLOSE, (1000, "bye"))]),
    ("close without a reason", sent(0x88, b"\x03\xe8"), [(CLOSE, (1000, ""))]),
    ("close without a code", sent(0x88), [(CLOSE, (1005, ""))]),
    ("close of 125", sent(0x88, b"\x03\xe9" + b"a" * 123), [(CLOSE, (1001, "a" * 123))]),
    ("close within a message", sent(0x01, b"a") + sent(0x88), [(CLOSE, (1005, ""))]),
    ("nothing is read after close", sent(0x88) + sent(0x81, b"a") + b"\xff\xff", [(CLOSE, (1005, ""))]),
    ("close of 126", sent(0x88, b"\x03\xe8" + b"a" * 124), [(FAIL, 1002)]),
    ("close of one byte", sent(0x88, b"\x03"), [(FAIL, 1002)]),
    ("bad UTF-8 in a reason", sent(0x88, b"\x03\xe8\xce\xba\xe1"), [(FAIL, 1007)]),
    *[(f"close {code}", sent(0x88, code.to_bytes(2)), [(FAIL, 1002)]) for code in (0, 999, 1004, 1005, 1006, 1015, 1016, 1100)],
    *[(f"close {code}", sent(0x88, code.to_bytes(2)), [(FAIL, 1002)]) for code in (2000, 2999, 5000, 65535)],
    *[(f"close {code}", sent(0x88, code.to_bytes(2)), [(CLOSE, (code, ""))]) for code in (1003, 1007, 1014, 3000, 4999)],
]

# The examples of RFC 7692 7.2.3 and similar frames, masked.
PACKED = [
    ("one block", sent(0xC1, b"\xf2\x48\xcd\xc9\xc9\x07\x00"), [(TEXT, "Hello")]),
    ("fragments", sent(0x41, b"\xf2\x48\xcd") + sent(0x80, b"\xc9\xc9\x07\x00"), [(TEXT, "Hello")]),
    (
        "the window is kept",
        sent(0xC1, b"\xf2\x48\xcd\xc9\xc9\x07\x00") + sent(0xC2, b"\xf2\x00\x11\x00\x00"),
        [(TEXT, "Hello"), (BINARY, b"Hello")],
    ),
    ("a stored block", sent(0xC1, b"\x00\x05\x00\xfa\xff\x48\x65\x6c\x6c\x6f\x00"), [(TEXT, "Hello")]),
    ("a final block", sent(0xC1, b"\xf3\x48\xcd\xc9\xc9\x07\x00\x00") * 2, [(TEXT, "Hello"), (TEXT, "Hello")]),
    ("two blocks", sent(0xC1, b"\xf2\x48\x05\x00\x00\x00\xff\xff\xca\xc9\xc9\x07\x00"), [(TEXT, "Hello")]),
    ("empty", sent(0xC1, b"\x00"), [(TEXT, "")]),
    ("ping within", sent(0x41, b"\xf2\x48\xcd") + sent(0x89) + sent(0x80, b"\xc9\xc9\x07\x00"), [(PING, b""), (TEXT, "Hello")]),
    ("not compressed, which is allowed", sent(0x81, b"Hello"), [(TEXT, "Hello")]),
    ("plain fragments", sent(0x01, b"Hel") + sent(0x80, b"lo"), [(TEXT, "Hello")]),
    ("RSV1 in a continuation", sent(0x41, b"\xf2\x48\xcd") + sent(0xC0, b"\xc9\xc9\x07\x00"), [(FAIL, 1002)]),
    ("RSV1 in a ping", sent(0xC9), [(FAIL, 1002)]),
    ("RSV2", sent(0xE1, b"\x00"), [(FAIL, 1002)]),
    ("no deflate data", sent(0xC1, b"\xff\xff\xff"), [(FAIL, 1007)]),
    ("behind a final block", sent(0xC1, b"\xf3\x48\xcd\xc9\xc9\x07\x00\x01"), [(FAIL, 1007)]),
    ("far behind a final block", sent(0x41, b"\x03\x00") + sent(0x80, bytes(9)), [(FAIL, 1007)]),
    ("not text", sent(0xC1, zlib.compress(b"caf\xe9", wbits=-12)), [(FAIL, 1007)]),
    ("the limit", sent(0xC2, zlib.compress(b"a" * LIMIT, wbits=-12)), [(BINARY, b"a" * LIMIT)]),
    ("too big", sent(0xC2, zlib.compress(b"a" * (LIMIT + 1), wbits=-12)), [(FAIL, 1009)]),
    (
        "too big together",
        sent(0x42, b"\xf2\x48\xcd\xc9\xc9\x07\x00" + b"\0\0\xff\xff") + sent(0x80, b"\x4b" * 1999),
        [(FAIL, 1009)],
    ),
    ("empty blocks without end", sent(0x42, b"\0\0\0\xff\xff" * 300) + sent(0x00, b"\0\0\0\xff\xff" * 300), [(FAIL, 1009)]),
]
ROWS = [(f"{name}", False, data, events) for name, data, events in FRAMES]
ROWS += [(f"compressed: {name}", True, data, events) for name, data, events in PACKED]


@pytest.mark.parametrize(("packed", "data", "events"), [row[1:] for row in ROWS], ids=[row[0] for row in ROWS])
def test_frames_become_events(packed: bool, data: bytes, events: list[tuple[int, Any]]):
    """The events are the same in one piece, byte by byte, and with bytes behind; after CLOSE or FAIL there are none."""
    ended = events[-1][0] in (CLOSE, FAIL)
    behind = sent(0x8A, b"behind")
    after = events if ended else [*events, (PONG, b"behind")]
    for pieces, expected in (
        ([data], events),
        (single(data), events),
        ([data + behind], after),
        ([data, behind], after),
        (single(data + behind), after),
        ([data[:3], data[3:] + behind], after),
    ):
        receiver = Receiver(LIMIT, deflate() if packed else None)
        assert brief(fed(receiver, pieces)) == expected
        assert held(receiver) == 0
        assert brief(receiver.feed(sent(0x8A))) == ([] if ended else [(PONG, b"")])


# Each of them is bad with its last byte (RFC 3629 4). A surrogate is bad with its second byte, but Python waits for the third.
BAD_UTF8 = [
    *(b"\x80", b"\xbf", b"\xc0", b"\xc1", b"\xf5", b"\xf8", b"\xfe", b"\xff", b"\xc3(", b"\xe0\x80", b"\xe0\x9f", b"\xe2("),
    *(b"\xe2\x82(", b"\xed\xa0\x80", b"\xed\xbf\xbf", b"\xf0\x80", b"\xf0\x8f", b"\xf0\x9f(", b"\xf0\x9f\x98(", b"\xf4\x90"),
    "κόσμε".encode() + b"\xed\xa0\x80",
]


@pytest.mark.parametrize("cut", [None, 0, 1, 2])
@pytest.mark.parametrize("bad", BAD_UTF8)
def test_bad_text_is_found_at_once(bad: bytes, cut: int | None):
    """Bad UTF-8 fails with the byte that makes it bad, in any frame, before the rest of the message has come."""
    text = b"good" + bad
    stream = sent(0x01, text + b"behind")
    at = 6 + len(text)
    if cut is not None:
        place = len(text) - min(cut, len(bad) - 1)
        stream = sent(0x01, text[:place]) + sent(0x89) + sent(0x00, text[place:] + b"behind")
        at += 12 if place < len(text) else 0
    receiver = Receiver(LIMIT, None)
    before = fed(receiver, single(stream[: at - 1]))
    assert [event for event in before if event[0] != PING] == []
    assert brief(receiver.feed(stream[at - 1 : at])) == [(FAIL, 1007)]


@pytest.mark.parametrize("size", [4096, 4097, 4099, 65535, 65536, 100_001])
def test_big_frames(size: int):
    """Both ways to unmask and all widths of the length are right, in one piece and in pieces of any size."""
    payload = bytes(at * 7 % 251 for at in range(size))
    data = sent(0x82, payload)
    for step in (len(data), 1 << 14, 4099, 777):
        pieces = [data[at : at + step] for at in range(0, len(data), step)]
        assert fed(Receiver(size, None), pieces) == [(BINARY, payload)]


LIKE_A_FRAME = [
    (sent(0x82, b"a", b"\x80\0\0\0"), 1),
    (sent(0x82, b"abc", b"\x81\x81\0\0"), 2),
    (sent(0x82, sent(0x81, b"abc"), bytes(4)), 6),
    (sent(0x82, b"a" + sent(0x82, b"abc"), bytes(4)), 7),
    (sent(0x01, b"a") + sent(0x81, b"abc"), 7),
]


@pytest.mark.parametrize(("data", "at"), LIKE_A_FRAME)
def test_a_rest_that_looks_like_a_frame(data: bytes, at: int):
    """Bytes that would be a whole frame on their own are read as the rest of the frame or message that came before."""
    assert Receiver(LIMIT, None).feed(data[at:])[0][0] in (TEXT, BINARY)
    assert fed(Receiver(LIMIT, None), [data[:at], data[at:]]) == Receiver(LIMIT, None).feed(data)


def test_floods_come_in_portions():
    """One `feed` of very small or compressed frames returns a bounded number of bytes; further calls return the rest."""
    zeros = deflate("permessage-deflate; server_no_context_takeover").compress(bytes(1 << 18))
    floods = [
        (sent(0x81), (TEXT, ""), 20_000),
        (sent(0x89), (PING, b""), 20_000),
        (sent(0xC2, zeros), (BINARY, bytes(1 << 18)), 40),
    ]
    for flood, event, count in floods:
        receiver = Receiver(1 << 18, deflate())
        found = receiver.feed(flood * count + sent(0x81, b"last")[:5])
        while receiver.more:
            portion = receiver.feed(b"")
            assert sum(256 + len(payload) for _, payload in portion) < 1 << 20
            found += portion
        assert found == [event] * count
        assert receiver.feed(sent(0x81, b"last")[5:]) == [(TEXT, "last")]
        assert not receiver.more


@pytest.mark.parametrize("limit", [0, 1, 5, 124, 125, 126])
def test_small_limits(limit: int):
    """The limit holds for small messages, which have a fast path."""
    for size in range(limit + 1):
        assert Receiver(limit, None).feed(sent(0x82, b"a" * size)) == [(BINARY, b"a" * size)]
    assert brief(Receiver(limit, None).feed(sent(0x82, b"a" * (limit + 1)))) == [(FAIL, 1009)]


def peak(receiver: Receiver, pieces: Iterable[bytes]) -> tuple[int, list[tuple[int, Any]]]:
    """The peak of the memory that was allocated while a receiver was fed, in bytes, and the events."""
    tracemalloc.start()
    try:
        events = fed(receiver, pieces)
        return tracemalloc.get_traced_memory()[1], events
    finally:
        tracemalloc.stop()


@pytest.mark.no_cover
def test_a_decompression_bomb_is_stopped():
    """Of 64 MiB that are compressed to 64 KiB, little more than the limit is decompressed."""
    packer = zlib.compressobj(9, wbits=-15)
    bomb = b"".join([*(packer.compress(bytes(1 << 20)) for _ in range(64)), packer.flush(zlib.Z_SYNC_FLUSH)])[:-4]
    data = sent(0xC2, bomb)
    for pieces in ([data], [data[:1000], data[1000:]]):
        taken, events = peak(Receiver(1 << 18, deflate()), pieces)
        assert brief(events) == [(FAIL, 1009)]
        assert taken < 1 << 20


@pytest.mark.no_cover
def test_fragments_take_no_more_than_their_bytes():
    """The memory for a message follows from its bytes, not from the number of its fragments."""
    fragments = sent(0x02, b"a") + (sent(0x00, b"b") + sent(0x00) * 3) * 10_000
    receiver = Receiver(1 << 20, None)
    taken, events = peak(receiver, (fragments[at : at + 4096] for at in range(0, len(fragments), 4096)))
    assert events == []
    assert held(receiver) == 10_001
    assert taken < 60_000


@pytest.mark.no_cover
def test_a_big_frame_is_not_copied_for_each_piece():
    """A frame of 16 MiB in pieces of 64 KiB takes at most about twice its size, when it is whole."""
    piece = bytes(1 << 16)
    pieces = [sent(0x82, b"")[:1] + b"\xff" + (1 << 24).to_bytes(8) + bytes(4), *[piece] * 256]
    taken, events = peak(Receiver(1 << 24, None), pieces)
    assert events == [(BINARY, bytes(1 << 24))]
    assert taken < 2.5 * (1 << 24)


@pytest.mark.no_cover
def test_compression_takes_no_memory_before_it_is_used():
    """A connection that has negotiated compression allocates its contexts with the first compressed message."""
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        receivers = [Receiver(LIMIT, deflate()) for _ in range(100)]
        assert (tracemalloc.get_traced_memory()[0] - before) / len(receivers) < 1024
    finally:
        tracemalloc.stop()


@settings(deadline=None)  # a busy machine is not a failure
@given(
    st.binary(max_size=300), st.binary(min_size=4, max_size=4), st.lists(st.integers(0, 300)), st.lists(st.integers(0, 1 << 20))
)
def test_fragments_and_packets_do_not_matter(payload: bytes, mask: bytes, frames: list[int], packets: list[int]):
    """A message arrives unchanged, whatever its frames, and whatever the packets of these."""
    edges = sorted({0, len(payload), *(place % (len(payload) + 1) for place in frames)})
    parts = [payload[start:end] for start, end in itertools.pairwise(edges)] or [b""]
    data = b"".join(
        sent((BINARY if not at else 0) | (128 if at == len(parts) - 1 else 0), part, mask) for at, part in enumerate(parts)
    )
    edges = sorted({0, len(data), *(place % len(data) for place in packets)})
    assert fed(Receiver(300, None), [data[start:end] for start, end in itertools.pairwise(edges)]) == [(BINARY, payload)]


# --- Frames of the server --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("made", "expected"),
    [
        (frame(TEXT, b"Hello"), b"\x81\x05Hello"),
        (frame(BINARY, b""), b"\x82\x00"),
        (frame(TEXT, b"Hel", fin=False), b"\x01\x03Hel"),
        (frame(0, b"lo"), b"\x80\x02lo"),
        (frame(TEXT, b"\x00", rsv1=True), b"\xc1\x01\x00"),
        (frame(PING, b"a" * 125), b"\x89\x7d" + b"a" * 125),
        (frame(BINARY, b"a" * 126), b"\x82\x7e\x00\x7e" + b"a" * 126),
        (frame(BINARY, b"a" * 65535), b"\x82\x7e\xff\xff" + b"a" * 65535),
        (frame(BINARY, b"a" * 65536), b"\x82\x7f\0\0\0\0\0\1\0\0" + b"a" * 65536),
        (close_frame(None, ""), b"\x88\x00"),
        (close_frame(None, "lost"), b"\x88\x00"),
        (close_frame(1000, ""), b"\x88\x02\x03\xe8"),
        (close_frame(4000, "bye"), b"\x88\x05\x0f\xa0bye"),
        (close_frame(1000, "a" * 124), b"\x88\x7d\x03\xe8" + b"a" * 123),
        (close_frame(1000, "a" * 122 + "\u00e9"), b"\x88\x7c\x03\xe8" + b"a" * 122),
        (close_frame(1000, "\U0001f600" * 40), b"\x88\x7a\x03\xe8" + "\U0001f600".encode() * 30),
        (close_frame(1000, "\ud800"), b"\x88\x03\x03\xe8?"),
    ],
)
def test_frames_of_the_server(made: bytes, expected: bytes):
    """Frames have the shortest length and no mask; a reason is cut between two characters."""
    assert made == expected


@pytest.mark.parametrize("code", [-1, 0, 999, 1004, 1005, 1006, 1015, 2999, 5000, 1 << 16])
def test_codes_that_are_not_sent(code: int):
    """A code that a client has to refuse is an error in the server already."""
    assert not is_valid_close(code)
    with pytest.raises(ValueError, match=str(code)):
        close_frame(code, "")


@pytest.mark.parametrize("code", [1000, 1001, 1002, 1003, *range(1007, 1015), 3000, 4999])
def test_codes_that_are_sent(code: int):
    """All codes that RFC 6455 7.4 and its registry allow on the wire are accepted."""
    assert is_valid_close(code)


# --- The library at the other end ------------------------------------------------------------------------------------

SETTINGS: list[dict[str, Any] | None] = [
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


def met(setting: dict[str, Any] | None) -> tuple[ClientProtocol, Offer]:
    """The library's client after the handshake, and our offer. `setting`: of compression, if it has any."""
    extensions = [] if setting is None else [ClientPerMessageDeflateFactory(**setting)]
    client = ClientProtocol(parse_uri("ws://a/chat"), extensions=extensions, subprotocols=[Subprotocol("b"), Subprotocol("c")])
    client.send_request(client.connect())
    request = HeadReader(8192, 100, 65536).read(b"".join(client.data_to_send()))
    assert request
    offer = read_offer(request, True)
    assert (offer.deflate is None) == (setting is None)
    client.receive_data(accept_head(offer, "c", [(b"x", b"y")], DATE_END))
    assert client.handshake_exc is None
    assert client.subprotocol == "c"
    client.events_received()
    return client, offer


MESSAGES = st.lists(
    st.tuples(st.text(max_size=40) | st.binary(max_size=40) | st.sampled_from(["é" * 400, b"a" * 800]), st.integers(1, 3))
)
PACKETS = st.sampled_from([1, 2, 7, 64, 10_000])


@pytest.mark.parametrize("setting", SETTINGS)
@settings(deadline=None)  # a busy machine is not a failure
@given(messages=MESSAGES, step=PACKETS)
def test_the_library_is_understood(setting: dict[str, Any] | None, messages: list[tuple[str | bytes, int]], step: int):
    """Messages of the `websockets` client, in fragments with pings between them, arrive unchanged."""
    client, offer = met(setting)
    expected: list[tuple[int, Any]] = []
    for message, parts in messages:
        payload = message.encode() if isinstance(message, str) else message
        size = len(payload) // parts + 1
        pieces = [payload[at : at + size] for at in range(0, len(payload), size)] or [b""]
        for at, piece in enumerate(pieces):
            fin = at == len(pieces) - 1
            if at:
                client.send_ping(b"between")
                expected.append((PING, b"between"))
                client.send_continuation(piece, fin)
            elif isinstance(message, str):
                client.send_text(piece, fin)
            else:
                client.send_binary(piece, fin)
        expected.append((TEXT if isinstance(message, str) else BINARY, message))
    client.send_close(1001, "là")
    expected.append((CLOSE, (1001, "là")))
    data = b"".join(client.data_to_send())
    receiver = Receiver(LIMIT, offer.deflate)
    assert fed(receiver, (data[at : at + step] for at in range(0, len(data), step))) == expected


@pytest.mark.parametrize("setting", SETTINGS)
@settings(deadline=None)  # a busy machine is not a failure
@given(messages=MESSAGES)
def test_the_library_understands_us(setting: dict[str, Any] | None, messages: list[tuple[str | bytes, int]]):
    """The `websockets` client reads our messages, compressed or not, whole or in fragments."""
    client, offer = met(setting)
    data, expected = b"", []
    for at, (message, parts) in enumerate(messages):
        payload = message.encode() if isinstance(message, str) else message
        expected.append(payload)
        opcode = TEXT if isinstance(message, str) else BINARY
        packed = offer.deflate is not None and at % 3 != 2
        if offer.deflate and packed:
            payload = offer.deflate.compress(payload)
        cut = len(payload) if offer.deflate else len(payload) // parts
        data += frame(opcode, payload[:cut], fin=cut == len(payload), rsv1=packed)
        if cut < len(payload):
            data += frame(0, payload[cut:])
    client.receive_data(data + frame(PING, b"p") + close_frame(1012, "à bientôt"))
    received = client.events_received()
    whole: list[bytes] = []
    assert client.parser_exc is None
    for event in received[:-2]:
        if event.opcode is Opcode.CONT:
            whole[-1] += bytes(event.data)
        else:
            whole.append(bytes(event.data))
    assert whole == expected
    assert [(event.opcode, bytes(event.data)) for event in received[-2:-1]] == [(Opcode.PING, b"p")]
    assert client.close_rcvd
    assert (client.close_rcvd.code, client.close_rcvd.reason) == (1012, "à bientôt")
