"""Frames and handshakes that no row has. Properties that hold for all bytes; the `websockets` library as witness."""

import itertools
import re
import tracemalloc
import zlib
from typing import Any

from hypothesis import given
from hypothesis import strategies as st
from websockets.frames import Frame, Opcode
from websockets.protocol import OPEN
from websockets.server import ServerProtocol

from corpus import deflate, held
from epollard.protocol.frames import BINARY, CLOSE, FAIL, PING, PONG, TEXT, Receiver, is_valid_close
from epollard.protocol.grammar import ProtocolError
from epollard.protocol.handshake import Offer, accept_head, read_offer
from epollard.protocol.request import HeadReader, Request

LIMIT = 200
CONTROL_FRAME = 131  # bytes at most
PLACES = st.lists(st.integers(0, 10**4), max_size=6)


def cut(data: bytes, places: list[int]) -> list[bytes]:
    """`data` in pieces."""
    edges = [0, *sorted(place % (len(data) + 1) for place in places), len(data)]
    return [data[start:end] for start, end in itertools.pairwise(edges)]


# --- Bytes that are almost frames ------------------------------------------------------------------------------------

PAYLOADS = st.sampled_from(
    [
        *(b"", b"a", "é€😀".encode(), "é€😀".encode()[:6], b"\x98\x80", b"\xff", b"a" * 125, b"a" * 126, b"a" * LIMIT),
        *(b"a" * (LIMIT + 1), b"\x03\xe8", b"\x03\xe8bye", b"\x03\xed", b"\x03\xe8\xff", b"\xf2\x48\xcd\xc9\xc9\x07\x00"),
        *(b"\x00", b"\0\0\0\xff\xff", b"\x03\x00", b"\xf3\x48\xcd\xc9\xc9\x07\x00\x00", zlib.compress(bytes(5000), wbits=-12)),
        zlib.compress("é".encode() * 90, wbits=-12),
    ]
)
FIRSTS = st.sampled_from(
    [0x81, 0x82, 0x01, 0x02, 0x00, 0x80, 0xC1, 0x41, 0xC2, 0x89] * 8 + [0x8A, 0x88, 0x09, 0xC9, 0xC0, 0xA1, 0x83]
)


@st.composite
def frames(draw) -> bytes:
    """Frames that are good, or bad in one place."""
    payload = draw(PAYLOADS | st.binary(max_size=12))
    mask = draw(st.sampled_from([b"\0\0\0\0", b"\x37\xfa\x21\x3d"]))
    size = len(payload)
    head = bytes((draw(FIRSTS), 128 | size)) if size < 126 else bytes((draw(FIRSTS), 254)) + size.to_bytes(2)
    return head + mask + bytes(byte ^ mask[at % 4] for at, byte in enumerate(payload))


STREAMS = st.lists(frames(), max_size=8).map(b"".join)


@st.composite
def mangled(draw) -> bytes:
    """Frames with a few bytes inserted, replaced or removed."""
    data = draw(STREAMS)
    for _ in range(draw(st.integers(1, 2))):
        at = draw(st.integers(0, len(data)))
        data = data[:at] + draw(st.binary(max_size=2)) + data[at + draw(st.integers(0, 2)) :]
    return data


BYTES = STREAMS | mangled() | st.binary(max_size=60)


def said(data: bytes, places: list[int], packed: bool) -> list[tuple[int, Any]]:
    """A receiver's events. Each has the promised types, and no more bytes are held than allowed."""
    receiver = Receiver(LIMIT, deflate() if packed else None)
    events = []
    for piece in cut(data, places):
        events += receiver.feed(piece)
        assert held(receiver) <= LIMIT + CONTROL_FRAME
    for at, (kind, what) in enumerate(events):
        if kind in (CLOSE, FAIL):
            assert at == len(events) - 1
            assert held(receiver) == 0
            assert isinstance(what[1], str)
            assert what[0] in (1002, 1007, 1009) if kind == FAIL else what[0] == 1005 or is_valid_close(what[0])
        elif kind == TEXT:
            assert len(what.encode()) <= LIMIT
        else:
            assert isinstance(what, bytes)
            assert len(what) <= (LIMIT if kind == BINARY else 125)
            assert kind in (BINARY, PING, PONG)
    return events


@given(BYTES, PLACES, st.booleans())
def test_packets_do_not_change_the_events(data: bytes, places: list[int], packed: bool):
    """No bytes raise, and the events are the same in one piece, in pieces and byte by byte."""
    whole = said(data, [], packed)
    for pieces in (places, list(range(len(data)))):
        events = said(data, pieces, packed)
        assert [event for event in events if event[0] != FAIL] == [event for event in whole if event[0] != FAIL]
        codes, other = ({what[0] for kind, what in found if kind == FAIL} for found in (events, whole))
        # Compressed text that is both bad and too big fails for one reason or the other, depending on the pieces.
        assert codes == other or (packed and codes | other == {1007, 1009})


@given(BYTES)
def test_no_part_contradicts_the_whole(data: bytes):
    """Events of the first bytes stay, whatever bytes follow."""
    whole = said(data, [], False)
    for end in range(len(data)):
        events = said(data[:end], [], False)
        assert events == whole[: len(events)]


# --- The witness -----------------------------------------------------------------------------------------------------


def witnessed(data: bytes) -> list[tuple[int, Any]]:
    """The library's events for whole frames. It leaves joining fragments and judging text to its caller."""
    server = ServerProtocol(state=OPEN, max_size=None)  # its limit is one for control frames within a message too
    server.receive_data(data)
    events: list[tuple[int, Any]] = []
    opcode, message = 0, b""
    for event in server.events_received():
        assert isinstance(event, Frame)
        content = bytes(event.data)
        if event.opcode in (Opcode.PING, Opcode.PONG):
            events.append((int(event.opcode), content))
        elif event.opcode is Opcode.CLOSE:
            assert server.close_rcvd
            events.append((CLOSE, (server.close_rcvd.code, server.close_rcvd.reason)))
        else:
            opcode, message = int(event.opcode) or opcode, message + content if event.opcode is Opcode.CONT else content
            if opcode == TEXT:
                try:
                    text = message.decode()
                except UnicodeDecodeError as error:
                    if event.fin or error.reason != "unexpected end of data":
                        return [*events, (FAIL, None)]
            if event.fin:
                events.append((TEXT, text) if opcode == TEXT else (BINARY, message))
    if server.parser_exc:
        events.append((FAIL, None))
    return events


@given(STREAMS)
def test_a_witness_agrees(data: bytes):
    """Another implementation finds the same events in whole frames, or fails at the same place."""
    heard, other = Receiver(10**6, None).feed(data), witnessed(data)
    assert [event for event in heard if event[0] != FAIL] == [event for event in other if event[0] != FAIL]
    assert len(heard) == len(other)


# --- Memory ----------------------------------------------------------------------------------------------------------


@given(st.lists(frames(), max_size=4).map(b"".join), st.sampled_from([0, 9, 100, 10**5]), st.booleans())
def test_nothing_takes_more_memory_than_its_bound(data: bytes, times: int, packed: bool):
    """Repeated frames, or any number of zeros compressed to few bytes, take no more memory than one message may."""
    bomb = zlib.compress(bytes(times), wbits=-12)
    size = len(bomb)
    bomb = bytes((0x42, 128 | size) if size < 126 else (0x42, 254, *size.to_bytes(2))) + bytes(4) + bomb
    receiver = Receiver(LIMIT, deflate() if packed else None)
    tracemalloc.start()
    try:
        for piece in [*[data] * 20, bomb]:
            receiver.feed(piece)
        assert tracemalloc.get_traced_memory()[1] < 64 * 1024
    finally:
        tracemalloc.stop()


# --- Handshakes ------------------------------------------------------------------------------------------------------

NAMES = [
    "Upgrade",
    "Connection",
    "Sec-WebSocket-Key",
    "Sec-WebSocket-Version",
    "Sec-WebSocket-Protocol",
    "Sec-WebSocket-Extensions",
]
KEY = "dGhlIHNhbXBsZSBub25jZQ=="
PIECES = [
    *(
        "websocket",
        "Upgrade",
        KEY,
        "13",
        "8",
        "chat",
        "a",
        ",",
        ", ",
        ";",
        "=",
        '"',
        " ",
        "\t",
        "\xe9",
        "\xff",
        "permessage-deflate",
    ),
    *("server_max_window_bits", "client_max_window_bits=9", "server_no_context_takeover", "=15", "=8", "0", "=999999999999"),
]
VALUES = st.lists(st.sampled_from(PIECES), max_size=6).map("".join) | st.text(
    st.characters(min_codepoint=32, max_codepoint=255, exclude_characters="\x7f"), max_size=20
)
USUAL = [("Upgrade", "websocket"), ("Connection", "upgrade"), ("Sec-WebSocket-Key", KEY), ("Sec-WebSocket-Version", "13")]
HEADERS = st.tuples(
    st.sampled_from([USUAL] * 5 + [USUAL[1:], USUAL[:-1], []]),
    st.lists(st.tuples(st.sampled_from(NAMES[4:] * 3 + NAMES), VALUES), max_size=3),
).map(lambda both: both[0] + both[1])
TOKEN = r"[!#$%&'*+.^_`|~0-9A-Za-z-]+"


def judged(request: Request, enabled: bool) -> Offer | ProtocolError:
    """An offer, or the error."""
    try:
        return read_offer(request, enabled)
    except ProtocolError as error:
        return error


@given(HEADERS, st.booleans())
def test_a_handshake_is_refused_or_accepted(headers: list[tuple[str, str]], enabled: bool):
    """Any handshake is refused with 400 or 426, or accepted with a head that RFC 6455 and RFC 7692 allow."""
    lines = "".join(f"{name}: {value}\r\n" for name, value in headers)
    request = HeadReader(8192, 100, 65536).read(f"GET / HTTP/1.1\r\nHost: a\r\n{lines}\r\n".encode("latin-1"))
    assert request
    offer = judged(request, enabled)
    if isinstance(offer, ProtocolError):
        assert offer.status in (400, 426)
        assert offer.reason.isascii()
        assert offer.reason.isprintable()
        return
    assert re.fullmatch(r"[A-Za-z0-9+/]{22}==", offer.key)
    assert all(re.fullmatch(TOKEN, name) for name in offer.subprotocols)
    assert len(set(offer.subprotocols)) == len(offer.subprotocols)
    assert enabled or offer.deflate is None
    for subprotocol in (None, *offer.subprotocols):
        head = accept_head(offer, subprotocol, [], b"Date: x\r\n\r\n").decode("ascii")
        match = re.fullmatch(
            r"HTTP/1\.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            r"Sec-WebSocket-Accept: [A-Za-z0-9+/]{27}=\r\n(?:Sec-WebSocket-Protocol: (.*)\r\n)?"
            r"(Sec-WebSocket-Extensions: permessage-deflate; server_max_window_bits=(?:8|9|1[0-2])"
            r"(?:; client_max_window_bits=(?:8|9|1[0-2]))?"
            r"(?:; server_no_context_takeover)?(?:; client_no_context_takeover)?\r\n)?"
            r"Server: epollard\r\nDate: x\r\n\r\n",
            head,
        )
        assert match
        assert match[1] == subprotocol
        assert bool(match[2]) == bool(offer.deflate)
