"""Requests that no row has. Properties that hold for all bytes; a second, slow and simple reader as witness."""

import itertools
import re

from hypothesis import given
from hypothesis import strategies as st

import corpus
from corpus import Found, Refused
from epollard.protocol.body import ChunkedBody
from epollard.protocol.grammar import ProtocolError
from epollard.protocol.request import Fields, HeadReader

LIMITS = (64, 6, 160)

# --- Bytes that are almost requests ----------------------------------------------------------------------------------

NASTY = [
    b"\r",
    b"\n",
    b"\r\n",
    b"\0",
    b" ",
    b"\t",
    b"\x0b",
    b"\x7f",
    b"\x80",
    b"\xa0",
    b"\xff",
    b":",
    b",",
    b";",
    b"%",
    b"#",
    b"HTTP/",
    b"\r\n\r\n",
]
METHODS = [b"GET", b"POST", b"OPTIONS", b"get", b"CONNECT", b"PRI", b"G(T", b"", b"M" * 32, b"M" * 33]
TARGETS = [
    b"/",
    b"/a?b=c",
    b"*",
    b"/%41%",
    b"http://b/c",
    b"http://b",
    b"http://[::1]:80?x",
    b"http://:80/",
    b"http://a@b/",
    b"ftp://b/",
    b"a",
    b"/" + b"x" * 49,
]
VERSIONS = [b"HTTP/1.1", b"HTTP/1.0", b"HTTP/1.2", b"HTTP/2.0", b"HTTP/1.", b"HTTP/1.11", b"http/1.1", b"HTTP/0.9"]
FIELDS = [
    *[b"Host: " + host for host in (b"a", b"b:80", b"[::1]", b"[::1", b"a\\b", b"", b":1", b"a:80:80", b"1.2.3.4:65535")],
    *[b"Content-Length: " + length for length in (b"5", b"\t007 ", b"+5", b"5, 5", b"0", b"\xb2")],
    *[b"transfer-encoding: " + coding for coding in (b"chunked", b"CHUNKED", b"gzip, chunked", b"chunked, gzip")],
    *[b"CONNECTION: " + option for option in (b"close", b"keep-alive", b"x, Close")],
    *[
        b"Expect: 100-continue",
        b"Expect: x",
        b"X-Y: \xe9 a",
        b"X-Y:",
        b"Content_Length: 5",
        b"Content-Type: a",
        b"Content-Type: b",
    ],
    *[b"X Y: a", b" folded", b"no colon", b": a", b"A" * 40 + b": " + b"b" * 40],
]


@st.composite
def heads(draw) -> bytes:
    """Heads that are good, or bad in one place."""
    method = draw(st.sampled_from(METHODS[:3] * 6 + METHODS))
    target = draw(st.sampled_from(TARGETS[:3] * 6 + TARGETS))
    version = draw(st.sampled_from(VERSIONS[:2] * 12 + VERSIONS))
    fields = draw(st.lists(st.sampled_from(FIELDS), max_size=4))
    if draw(st.integers(0, 4)):
        fields = [b"Host: a", *(field for field in fields if not field.lower().startswith(b"host"))]
    head = b"\r\n" * draw(st.sampled_from((0, 0, 0, 0, 1, 2))) + method + b" " + target + b" " + version + b"\r\n"
    head += b"".join(field + b"\r\n" for field in fields) + b"\r\n"
    return draw(mangled(head)) if draw(st.integers(0, 2)) == 0 else head


@st.composite
def mangled(draw, data: bytes) -> bytes:
    """`data` with a few bytes inserted, replaced or removed."""
    for _ in range(draw(st.integers(1, 2))):
        at = draw(st.integers(0, len(data)))
        data = data[:at] + draw(st.sampled_from(NASTY) | st.binary(max_size=2)) + data[at + draw(st.integers(0, 2)) :]
    return data


def cut(data: bytes, places: list[int]) -> list[bytes]:
    """`data` in pieces."""
    edges = [0, *sorted(place % (len(data) + 1) for place in places), len(data)]
    return [data[start:end] for start, end in itertools.pairwise(edges)]


# --- The witness -----------------------------------------------------------------------------------------------------

TOKEN = rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]+"
HEAD = re.compile(rb"(?:\r\n)?(%b) ([!-~]+) HTTP/([0-9])\.([0-9])\r\n((?:%b:[\t -~\x80-\xff]*\r\n)*)\r\n" % (TOKEN, TOKEN))
NAME = rb"(?:[A-Za-z0-9\-._~!$&'()*+,;=]|%[0-9A-Fa-f][0-9A-Fa-f])+"
HOST = re.compile(rb"(?:(?:%b|\[[0-9a-f:]*:[0-9a-f:]*\])(?::[0-9]{0,5})?)?" % NAME)  # good enough for the addresses above


def witness(head: bytes) -> bool:
    """Whether a head is good: RFC 9112 in one pass, without caches or fast paths."""
    match = HEAD.fullmatch(head)
    if not match:
        return False
    method, target, major, minor, block = match.groups()
    lines = block.split(b"\r\n")[:-1]
    if major != b"1" or method == b"CONNECT" or len(method) > 32 or b"#" in target:
        return False
    if len(method) + len(target) + 10 > LIMITS[0] or len(lines) > LIMITS[1] or len(block) > LIMITS[2]:
        return False
    absolute = re.fullmatch(rb"(?i:https?)://([^/?]+)([/?].*)?", target)
    if absolute:
        if not HOST.fullmatch(absolute[1]):
            return False
    elif not target.startswith(b"/") and (method, target) != (b"OPTIONS", b"*"):
        return False
    fields: dict[bytes, list[bytes]] = {}
    for line in lines:
        name, _, value = line.partition(b":")
        fields.setdefault(name.lower(), []).append(value.strip(b" \t"))
    for name in b"host", b"content-length", b"transfer-encoding", b"content-type", b"expect":
        if len(fields.get(name, [])) > 1:
            return False
    hosts = fields.get(b"host", [])
    if not all(map(HOST.fullmatch, hosts)) or (minor != b"0" and not hosts):
        return False
    codings, lengths = fields.get(b"transfer-encoding"), fields.get(b"content-length")
    if codings is not None and (lengths is not None or minor == b"0" or codings[0].lower() != b"chunked"):
        return False
    if lengths is not None and not re.fullmatch(rb"[0-9]{1,18}", lengths[0]):
        return False
    expected = fields.get(b"expect")
    return expected is None or minor == b"0" or expected[0].lower() == b"100-continue"


# --- Heads -----------------------------------------------------------------------------------------------------------


def judge(reader: HeadReader, data: bytes, start: int = 0, last: Fields | None = None) -> object:
    """A reader's judgement of some bytes: a request, None or a `ProtocolError`, and nothing else."""
    try:
        request = reader.read(data, start, last)
    except ProtocolError as error:
        return Refused(error.status, error.reason)
    return request and Found(corpus.facts(request), data[start + request.size :])


def is_proper(said: object) -> bool:
    """Whether a judgement has the promised form: a refusal has a documented status and a printable reason."""
    return not isinstance(said, Refused) or (said.status in (400, 413, 414, 417, 431, 501, 505) and said.reason.isprintable())


@given(heads() | st.binary(max_size=40) | st.text("GETHOSa/:*1. \r\n\t\0", max_size=30).map(str.encode))
def test_a_witness_agrees(data: bytes):
    """Both readers accept the same heads, and find the same end of each."""
    said = judge(HeadReader(*LIMITS), data)
    assert is_proper(said)
    end = data.find(b"\r\n\r\n") + 4
    if end < 4:
        assert said is None or isinstance(said, Refused)
    elif witness(data[:end]):
        assert isinstance(said, Found)
        assert said.rest == data[end:]
    else:
        assert isinstance(said, Refused)


@given(heads() | st.builds(bytes.__add__, heads(), st.binary(max_size=3)))
def test_no_part_contradicts_the_whole(data: bytes):
    """A head that is refused or accepted stays so, whatever bytes follow; None leaves both possible."""
    reader = HeadReader(*LIMITS)
    before = [judge(reader, data[:end]) for end in range(len(data))]
    whole = judge(reader, data)
    if any(isinstance(said, Refused) for said in before):
        assert not any(isinstance(said, Found) for said in (*before, whole))
    for said in before:
        assert not isinstance(said, Found) or (isinstance(whole, Found) and said.facts == whole.facts)


@given(st.lists(heads(), min_size=2, max_size=4), st.lists(st.integers(0, 400), max_size=3))
def test_no_memory_changes_a_judgement(requests: list[bytes], places: list[int]):
    """A reader's judgement does not depend on what it has read before, nor on the bytes before the head."""
    warm = HeadReader(*LIMITS)
    good = [data[:end] for data in requests if (end := data.find(b"\r\n\r\n") + 4) > 3 and witness(data[:end])]
    experts = [corpus.expert(head) for head in good]
    for data in requests:
        for expert in experts:
            assert judge(HeadReader(*LIMITS), data, last=expert) == judge(HeadReader(*LIMITS), data)
    for data in requests + requests:
        for piece in (cut(data, places)[0], data):
            assert judge(warm, piece) == judge(HeadReader(*LIMITS), piece)
    behind = b"".join(requests)
    for data in requests:
        assert judge(warm, behind + data, len(behind)) == judge(HeadReader(*LIMITS), data)


# --- Bodies ----------------------------------------------------------------------------------------------------------

EXTENSIONS = [b"", b";a", b" ;a=b", b'\t; a="b c"', b";\xe9"]
TRAILERS = [b"X: a", b"Y:", b"Z: \xe9\t "]
FORBIDDEN = {"transfer-encoding", "content-length", "host", "connection", "expect", "te", "trailer", "upgrade"}
FORBIDDEN |= {"authorization", "cookie", "content-type", "content-encoding"}
CHUNKS = st.tuples(st.binary(min_size=1, max_size=20), st.sampled_from(EXTENSIONS), st.sampled_from(["%x", "%X", "%04x"]))


@st.composite
def bodies(draw) -> tuple[bytes, bytes]:
    """A chunked body, and its content."""
    chunks = draw(st.lists(CHUNKS, max_size=4))
    sent = [(style % len(data)).encode() + extension + b"\r\n" + data + b"\r\n" for data, extension, style in chunks]
    trailers = draw(st.lists(st.sampled_from(TRAILERS), max_size=2))
    end = [b"0", draw(st.sampled_from(EXTENSIONS)), b"\r\n", *(trailer + b"\r\n" for trailer in trailers), b"\r\n"]
    return b"".join((*sent, *end)), b"".join(data for data, _, _ in chunks)


HEAD_OF_CHUNKS = b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n"
PLACES = st.lists(st.integers(0, 10**4), max_size=6)


@given(bodies(), PLACES, st.binary(max_size=5))
def test_chunks_are_put_together(body: tuple[bytes, bytes], places: list[int], behind: bytes):
    """Content that is cut into chunks, and these into packets, comes out unchanged; bytes behind it are left alone."""
    sent, content = body
    found = corpus.feed(corpus.reader(), cut(HEAD_OF_CHUNKS + sent + behind, places))
    assert isinstance(found, Found)
    assert (found.facts["body"], found.rest) == (content, behind)


@given(bodies().flatmap(lambda body: mangled(body[0])), PLACES)
def test_packets_do_not_change_a_body(sent: bytes, places: list[int]):
    """In one piece or many, good or bad, a body has the same content and rest, or the same refusal."""
    whole = corpus.feed(corpus.reader(), [HEAD_OF_CHUNKS + sent], 40)
    for pieces in cut(HEAD_OF_CHUNKS + sent, places), corpus.pieces(HEAD_OF_CHUNKS + sent, 1):
        found = corpus.feed(corpus.reader(), pieces, 40)
        assert type(found) is type(whole)
        assert isinstance(found, Refused) or found == whole


@given(bodies().flatmap(lambda body: mangled(body[0])))
def test_a_witness_agrees_on_chunks(sent: bytes):
    """Both readers find the same end of a chunked body, and the same content."""
    decoder = ChunkedBody(10**6)
    try:
        content = decoder.feed(sent)
    except ProtocolError:
        assert not isinstance(chunks_of(sent), tuple)
        return
    if decoder.done:
        assert chunks_of(sent) == (content, decoder.rest)
    else:
        assert chunks_of(sent) is None


def chunks_of(sent: bytes) -> tuple[bytes, bytes] | bool | None:
    """Content and rest; None if the body is not whole; False if it is bad."""
    content = b""
    while True:
        size = re.match(rb"([0-9A-Fa-f]{1,15})(?:[\t ]*;[\t -~\x80-\xff]*)?\r\n", sent)
        if not size:
            return None if b"\r\n" not in sent and b"\n" not in sent else False
        sent = sent[size.end() :]
        count = int(size[1], 16)
        if not count:
            break
        if len(sent) < count + 2:
            return None if b"\r\n".startswith(sent[count:]) else False
        if sent[count : count + 2] != b"\r\n":
            return False
        content += sent[:count]
        sent = sent[count + 2 :]
    trailers = re.match(rb"(?:%b:[\t -~\x80-\xff]*\r\n)*" % TOKEN, sent)
    assert trailers
    names = {line.partition(b":")[0].decode().lower() for line in trailers[0].split(b"\r\n")}
    if names & FORBIDDEN:
        return False
    rest = sent[trailers.end() :]
    if rest.startswith(b"\r\n"):
        return content, rest[2:]
    return None if b"\r\n" not in rest and b"\n" not in rest else False
