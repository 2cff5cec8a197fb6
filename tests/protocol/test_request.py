"""Heads of requests, with the bodies behind them: every row of `requests/`, in pieces of every size. No socket, no server."""

import ast
import itertools
import time
from collections.abc import Collection
from pathlib import Path
from typing import Any

import pytest

import corpus
from corpus import MORE, Found, Refused, Row
from epollard.protocol import body, request
from epollard.protocol.body import CHUNK_LINE, TRAILER_BYTES, ChunkedBody
from epollard.protocol.grammar import CACHED_BYTES, CACHED_ENTRIES, ProtocolError
from epollard.protocol.request import COMPILE_AFTER, SEEN_ENTRIES, HeadReader

VALID = corpus.rows("valid")
INVALID = corpus.rows("invalid")

BEHIND = (b"GET /next HTTP/1.1\r\nHost: b\r\n\r\n", b"\r\n\r\n", b"\n", b"5\r\nhello\r\n0\r\n\r\n")
SIZES = (0, 1, 3)
LONG = 2_000  # bytes: longer rows come in pieces of a packet's size, not byte by byte


@pytest.fixture(scope="module")
def warm() -> HeadReader:
    """A reader that has seen every row."""
    warm = corpus.reader()
    for row in VALID + INVALID:
        corpus.feed(warm, [row.data])
    return warm


def sizes(data: bytes) -> tuple[int, ...]:
    return SIZES if len(data) < LONG else (0, 1460)


def ways(row: Row) -> list[tuple[int, bytes]]:
    """The sizes of pieces in which a row is fed, and the bytes behind it."""
    alone = [(size, b"") for size in sizes(row.data)]
    return alone if row.outcome == MORE else alone + [(0, behind) for behind in BEHIND]


@pytest.mark.parametrize("row", VALID, ids=str)
def test_good_requests_are_understood(row: Row, warm: HeadReader):
    """A request means the same in one piece or many, whatever the reader has read before; bytes behind it are left alone."""
    for size, behind in ways(row):
        cold = corpus.reader()
        for reader in (warm, cold) if behind else (warm, cold, cold):
            found = corpus.feed(reader, corpus.pieces(row.data + behind, size))
            assert isinstance(found, Found), (found, size, behind)
            assert isinstance(row.outcome, dict)
            assert found.facts | row.outcome == found.facts, (size, behind)
            assert found.rest == behind, size


@pytest.mark.parametrize("row", INVALID, ids=str)
def test_bad_requests_are_refused(row: Row, warm: HeadReader):
    """A bad request has one status in one piece or many, whatever the reader has read before and whatever bytes follow."""
    for size, behind in ways(row):
        cold = corpus.reader()
        for reader in (warm, cold) if behind else (warm, cold, cold):
            found = corpus.feed(reader, corpus.pieces(row.data + behind, size))
            if row.outcome == MORE:
                assert found is None, size
            else:
                assert isinstance(found, Refused), (found, size, behind)
                assert found.status == row.outcome, (found, size, behind)


EARLY = [
    ("request line without an end", b"GET /" + b"a" * 8200, 414),
    ("method without an end", b"A" * 8200, 414),
    ("fields without an end", b"GET / HTTP/1.1\r\nX: " + b"a" * 65536, 431),
    ("first byte of TLS", b"\x16", 400),
    ("first byte of no method", b"<", 400),
    ("first byte behind an empty line", b"\r\n\x16", 400),
    ("byte behind a CR", b"\rG", 400),
    ("LF behind the request line", b"GET / HTTP/1.1\n", 400),
    ("LF behind a field, and no more", b"GET / HTTP/1.1\r\nHost: a\n\n", 400),
    ("bad method", b"G(T / HTTP/1.1\r\n", 400),
    ("bad target", b"GET a HTTP/1.1\r\n", 400),
    ("long bad method", b"M" * 33 + b" / HTTP/1.1\r\n", 501),
    ("method of a proxy", b"CONNECT a:1 HTTP/1.1\r\n", 501),
    ("no version", b"GET /\r\n", 400),
    ("version", b"GET / HTTP/2.0\r\n", 505),
    ("version of a request behind an empty line", b"\r\nGET / HTTP/2.0\r\n", 505),
    ("preface of HTTP/2", b"PRI * HTTP/2.0\r\n", 505),
    ("LF behind a chunk's size", b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n5\n", 400),
    ("LF behind a trailer", b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n0\r\nX: a\n", 400),
]


@pytest.mark.parametrize(("name", "data", "status"), EARLY, ids=[row[0] for row in EARLY])
def test_a_head_that_cannot_become_good_is_refused_at_once(name: str, data: bytes, status: int, warm: HeadReader):
    """A client need not wait for a deadline to learn that its head is bad, if the request line or the size shows it."""
    for size, reader in itertools.product((0, 1 if len(data) < LONG else 1460), (corpus.reader(), warm)):
        found = corpus.feed(reader, corpus.pieces(data, size))
        assert isinstance(found, Refused), size
        assert found.status == status, size


def test_rows_have_unique_names():
    """A row that fails is found by its name, and no row is there twice."""
    names = [row.name for row in VALID + INVALID]
    assert len(set(names)) == len(names)
    assert len({row.data for row in VALID + INVALID}) == len(names)


def test_a_request_is_found_where_the_last_one_ended():
    """Bytes before the start have no influence, good or bad."""
    reader = corpus.reader()
    for row, before in itertools.product(VALID, (b"GET /a HTTP/1.1\r\n\r\n", b"\n", b"\r", b"x\r\n")):
        found = corpus.reader().read(before + row.data, len(before))
        alone = reader.read(row.data)
        assert found is not None
        assert alone is not None
        assert (corpus.facts(found), found.size) == (corpus.facts(alone), alone.size), (row, before)


def test_every_refusal_has_a_row():
    """Each `raise ProtocolError` in request.py and body.py is reached by a row, and no reason quotes the client."""
    refusals = {
        (module.__file__, node.lineno)
        for module in (request, body)
        for node in ast.walk(ast.parse(Path(module.__file__).read_text("utf-8")))
        if isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call) and ast.unparse(node.exc.func) == "ProtocolError"
    }
    seen = set()
    for row in INVALID:
        for size in sizes(row.data)[:2]:
            for place, reason in _refusals(row, size):
                seen.add(place)
                assert reason.isascii()
                assert reason.isprintable()
                assert len(reason) < 50
    assert seen == refusals, f"lines that no row reaches: {sorted(refusals - seen)}"


def _refusals(row: Row, size: int):
    buffer = b""
    head = None
    decoder = None
    reader = corpus.reader()
    try:
        for piece in corpus.pieces(row.data, size):
            buffer += piece
            if head is None:
                head = reader.read(buffer)
                if head is not None and head.fields.chunked:
                    buffer = buffer[head.size :]
                    decoder = ChunkedBody(corpus.MAX_BODY)
            if decoder is not None:
                decoder.feed(buffer)
                buffer = b""
    except ProtocolError as error:
        trace = error.__traceback__
        while trace.tb_next is not None:
            trace = trace.tb_next
        yield (trace.tb_frame.f_code.co_filename, trace.tb_lineno), error.reason


# --- Limits ----------------------------------------------------------------------------------------------------------


def outcome(data: bytes, size: int, limits=(64, 4, 128), limit: int = 10, warmer: bytes = b"") -> int | None:
    """The status of the refusal, or 200 if the request is good, or None if more bytes are needed."""
    reader = HeadReader(*limits)
    if warmer:
        assert reader.read(warmer)
    found = corpus.feed(reader, corpus.pieces(data, size), limit)
    return found.status if isinstance(found, Refused) else found and 200


LINE = b"GET /%s HTTP/1.1\r\nHost: a\r\n\r\n"
BLOCK = b"GET / HTTP/1.1\r\nHost: a\r\nX: %s\r\n\r\n"
BODY = b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n"
BOUNDARIES = [
    ("request line", LINE % (b"a" * (64 - 14)), 200),
    ("request line and a byte", LINE % (b"a" * (64 - 13)), 414),
    ("request line and the length of a version", LINE % (b"a" * (64 - 5)), 414),
    ("request line behind an empty line", b"\r\n" + LINE % (b"a" * (64 - 14)), 200),
    ("request line and a byte behind an empty line", b"\r\n" + LINE % (b"a" * (64 - 13)), 414),
    ("request line and CR without an end", (LINE % (b"a" * (64 - 14)))[:65], None),
    ("request line and a byte without an end", b"GET /" + b"a" * 61, 414),
    ("fields", b"GET / HTTP/1.1\r\nHost: a\r\n" + b"X: a\r\n" * 3 + b"\r\n", 200),
    ("fields and one", b"GET / HTTP/1.1\r\nHost: a\r\n" + b"X: a\r\n" * 4 + b"\r\n", 431),
    ("bytes of fields", BLOCK % (b"a" * (128 - 14)), 200),
    ("bytes of fields and one", BLOCK % (b"a" * (128 - 13)), 431),
    ("bytes of fields and CR without an end", (BLOCK % (b"a" * (128 - 14)))[:-1], None),
    ("bytes of fields and two without an end", b"GET / HTTP/1.1\r\n" + b"a" * 130, 431),
    ("body", BODY + b"5\r\nhello\r\n5\r\nhello\r\n0\r\n\r\n", 200),
    ("body and a byte", BODY + b"5\r\nhello\r\n6\r\nhello!\r\n0\r\n\r\n", 413),
    ("size line", BODY + b"5;%s\r\nhello\r\n0\r\n\r\n" % (b"a" * (CHUNK_LINE - 2)), 200),
    ("size line and a byte", BODY + b"5;%s\r\nhello\r\n0\r\n\r\n" % (b"a" * (CHUNK_LINE - 1)), 400),
    ("size line and CR without an end", BODY + b"5;%s\r" % (b"a" * (CHUNK_LINE - 2)), None),
    ("trailer", BODY + b"0\r\nX:%s\r\n\r\n" % (b"a" * (TRAILER_BYTES - 4)), 200),
    ("trailer and a byte", BODY + b"0\r\nX:%s\r\n\r\n" % (b"a" * (TRAILER_BYTES - 1)), 431),
    ("trailers", BODY + b"0\r\n" + b"X:aaaa\r\n" * (TRAILER_BYTES // 8) + b"\r\n", 200),
    ("trailers and a byte", BODY + b"0\r\n" + b"X:aaaa\r\n" * (TRAILER_BYTES // 8) + b"Y\r\n\r\n", 431),
]


@pytest.mark.parametrize(("name", "data", "status"), BOUNDARIES, ids=[row[0] for row in BOUNDARIES])
def test_limits_are_exact(name: str, data: bytes, status: int | None):
    """A part of exactly its limit passes, and one more byte does not, in one piece or many, with cold or warm caches."""
    warmers = [b"", b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"]
    for size, warmer in itertools.product((0, 1) if len(data) < 4000 else (0, 251), warmers):
        assert outcome(data, size, warmer=warmer) == status, (size, warmer)


# --- Time ------------------------------------------------------------------------------------------------------------


def seconds(call) -> float:
    """CPU seconds of a call, the least of three runs."""
    times = []
    for _ in range(3):
        start = time.thread_time()
        call()
        times.append(time.thread_time() - start)
    return min(times)


SLOW = [
    ("a line that comes byte by byte", b"GET /" + b"a" * 2000, 1),
    ("a line that cannot be remembered, byte by byte", b"GET /" + b"a" * 4000 + b" HTTP/1.1\r\n" + b"X: a\r\n" * 300, 1),
    ("fields that come byte by byte", b"GET / HTTP/1.1\r\n" + b"X: a\r\n" * 500, 1),
    ("many one-byte chunks", BODY + b"1\r\na\r\n" * 3000, 0),
    ("many one-byte chunks, byte by byte", BODY + b"1\r\na\r\n" * 800, 1),
    ("trailers byte by byte", BODY + b"0\r\n" + b"X: a\r\n" * 500, 1),
    ("a host of escapes with a bad end", b"GET / HTTP/1.1\r\nHost: " + b"%41" * 20000 + b"@\r\n\r\n", 0),
    ("a host of colons", b"GET / HTTP/1.1\r\nHost: [%s]\r\n\r\n" % (b":" * 60000), 0),
]


@pytest.mark.no_cover
@pytest.mark.parametrize(("name", "data", "size"), SLOW, ids=[row[0] for row in SLOW])
def test_no_byte_is_expensive(name: str, data: bytes, size: int):
    """No byte takes more than a few microseconds to judge, so that no client can buy much CPU time with few bytes."""
    limit = 20e-6 if size else 2e-6
    assert seconds(lambda: corpus.feed(corpus.reader(), corpus.pieces(data, size))) < limit * len(data) + 2e-3


@pytest.mark.no_cover
def test_no_byte_of_a_long_head_is_expensive():
    """Nor does a byte behind 50,000 others, even if an expression that reads the whole head is known for its client."""
    reader = corpus.reader()
    for number in range(COMPILE_AFTER):
        last = reader.read(b"GET /%d HTTP/1.1\r\nHost: a\r\n\r\n" % number)
    assert last is not None
    begun, more = b"GET / HTTP/1.1\r\nHost: " + b"a" * 50_000, 10_000
    pieces = [begun, *[b"a"] * more]
    assert seconds(lambda: corpus.feed(reader, pieces, last=last.fields)) < 20e-6 * more + 2e-3


# --- Memory ----------------------------------------------------------------------------------------------------------


def test_repeated_parts_are_judged_once():
    """A repeated request line is one object, a repeated sequence of field names is one, and a repeated head is one."""
    reader = corpus.reader()
    first = reader.read(b"GET /a HTTP/1.1\r\nHost: a\r\n\r\n")
    second = reader.read(b"GET /a HTTP/1.1\r\nHost: b\r\n\r\n")
    third = reader.read(b"GET /b HTTP/1.1\r\nHost: a\r\n\r\n")
    assert first is not None
    assert second is not None
    assert third is not None
    assert first.line is second.line
    assert first.line is not third.line
    assert first.fields.shape is second.fields.shape is third.fields.shape
    again = [reader.read(b"GET /a HTTP/1.1\r\nHost: a\r\n\r\n") for _ in range(3)]
    assert again[0] is not first  # a head that has come once is not kept
    assert again[0] is again[1] is again[2]


def test_frequent_field_names_are_compiled():
    """The expression reads a client's next head, whatever the values; a head that it does not match is read without it."""
    reader = corpus.reader()
    last = None
    for number in range(COMPILE_AFTER):
        assert last is None or last.shape.match("GET / HTTP/1.1\r\nHost: a\r\nx: 1\r\n\r\n") is None
        found = reader.read(b"GET /%d HTTP/1.1\r\nHost: a\r\nx: %d\r\n\r\n" % (number, number), 0, last)
        assert found is not None
        last = found.fields
    assert last is not None
    shape = last.shape
    assert shape.match("GET / HTTP/1.1\r\nHost: a\r\nx: 1\r\n\r\n")
    for value in b"y", b" y ", b"\xe9", b"":
        found = reader.read(b"POST /?q HTTP/1.1\r\nHost:b:80\r\nx:%b\r\n\r\n" % value, 0, last)
        assert found is not None
        assert found.fields.shape is shape
        assert found.fields.items == [("host", "b:80"), ("x", value.decode("latin-1").strip(" "))]
    assert shape.match("GET / HTTP/1.1\r\nHost: a\r\nX: 1\r\n\r\n") is None


@pytest.mark.no_cover
def test_nothing_known_of_a_client_changes_a_judgement():
    """Every row has the same facts, or the same refusal, for a client whose last head was any of the good rows.

    The reader knows a client by its field names, so one client for each sequence of names is enough, and by whole fields, so
    clients that sent exactly the fields of the row are added.
    """
    known = [corpus.expert(row.data) for row in VALID if len(row.data) < LONG]
    of_names = {(expert.version, expert.shape.names): expert for expert in known}.values()
    texts = [row.data.decode("latin-1") for row in VALID]
    assert sum(expert.shape.match(text) is not None for expert in of_names for text in texts) > len(of_names)
    of_fields = 0
    for row in VALID + INVALID:
        plain = corpus.feed(corpus.reader(), [row.data])
        same = [expert for expert in known if row.data.endswith(expert.block)]
        of_fields += len(same)
        for expert in (*of_names, *same, *(expert.shape.bare for expert in of_names)):
            for before in b"", b"GET / HTTP/1.1\r\nHost: a\r\n\r\n":
                assert corpus.feed(corpus.reader(), [row.data], last=expert, before=before) == plain, (row, expert.shape.names)
    assert of_fields > len(known)


def test_long_fields_are_not_kept_for_the_next_head():
    """Fields without values take their place as soon as there is an expression, which they lead to."""
    reader = corpus.reader()
    for number in range(COMPILE_AFTER + 1):
        found = reader.read(b"GET / HTTP/1.1\r\nHost: a\r\nX: %d\r\n\r\n" % number)
        assert found is not None
        shape = found.fields.shape
        assert (shape.bare is not None) == (number >= COMPILE_AFTER - 1)
    assert shape.bare is not None
    assert shape.bare.shape is shape
    assert shape.bare.items == [("host", ""), ("x", "")]
    assert shape.bare.block == b""


def test_a_client_that_sends_its_fields_again_is_read_by_its_request_line():
    """The fields are the same object whatever the request line is, unless they are too long to be kept."""
    reader = corpus.reader()
    block = b" HTTP/1.1\r\nHost: a\r\nX: y\r\n\r\n"
    first = reader.read(b"GET /first" + block)
    assert first is not None
    assert not first.fields.again
    for line in b"GET /second", b"DELETE /third?x", b"GET /second":
        found = reader.read(line + block, 0, first.fields)
        assert found is not None
        assert found.fields is first.fields
        assert found.fields.again
        assert (found.line.method, found.line.target) == tuple(line.decode().split(" "))
        assert found.size == len(line + block)
    long = reader.read(b"GET / HTTP/1.1\r\nHost: a\r\nX: %b\r\n\r\n" % (b"y" * CACHED_BYTES))
    assert long is not None
    assert long.fields.block == b""


BEFORE_FIELDS = [
    b"GET /other",
    b"HEAD /other?q",
    b"OPTIONS *",
    b"GET http://b:1/x",
    b"CONNECT b:1",
    b"\r\nGET /",
    b"",
    b" ",
    b"GET",
    b"GET ",
    b" /",
    b"GET  /",
    b"GET / x",
    b"GET /#x",
    b"GET /\x01",
    b"GET /\xe9",
    b"G\xe9T /",
    b"G@T /",
    b"GET x",
    b"GET *",
    b"GET /\r\n",
    b"GET /\n",
    b"GET / HTTP/1.1\r\nEvil: yes\r\nX:",
    b"GET / HTTP/1.1\r\nEvil: yes\r\n",
    b"GET / HTTP/1.1\r\nHost: b\r\n\r\nGET /",
    b"GET / HTTP/1.0\r\n\r\nGET /",
    b"POST / HTTP/1.1\r\nHost: b\r\nContent-Length: 3\r\n\r\nabc",
    b"GET /" + b"x" * 8200,
    b"GET /" + b"x" * 8170,
    b"X" * 33 + b" /",
]


@pytest.mark.parametrize("before", BEFORE_FIELDS, ids=repr)
def test_bytes_before_known_fields_are_judged(before):
    """Bytes that end with the fields of the client's last head are not always a head with these fields."""
    for row in VALID:
        if len(row.data) < LONG:
            expert = corpus.expert(row.data)
            data = before + expert.block
            plain = corpus.feed(corpus.reader(), [data])
            reader = corpus.reader()
            assert corpus.feed(reader, [data], last=expert) == plain
            assert corpus.feed(reader, [data], last=expert) == plain  # its request line is known now


def test_absolute_form_leaves_the_remembered_fields_alone():
    """A target with an authority replaces Host in its own request only, not for later requests with the same fields."""
    reader = corpus.reader()
    fields = b" HTTP/1.1\r\nHost: a\r\nX: y\r\n\r\n"
    for target, host in (b"/", "a"), (b"http://b/", "b"), (b"/", "a"), (b"http://c/", "c"), (b"http://b/", "b"):
        found = reader.read(b"GET " + target + fields)
        assert found is not None
        assert found.fields.host == host
        assert found.fields.items == [("host", host), ("x", "y")]
        assert found.fields.shape.memo in (None, [name for name, _ in found.fields.items])
        found.fields.shape.memo = ["host", "x"]


def test_the_fast_path_is_for_plain_requests():
    """A request is marked for it if it has no body, is not about the server itself, and leaves the connection open."""
    reader = corpus.reader()
    fast = 0
    for row in VALID:
        assert reader.read(row.data)
        assert row.data not in reader.known  # a head that has come once is not remembered
        found = reader.read(row.data)
        assert found is not None
        head = row.data[: found.size]
        assert reader.known.get(head) is (found if len(head) <= CACHED_BYTES else None), row
        facts = corpus.facts(found)
        plain = facts["version"] == "1.1" and facts["method"] != "HEAD" and facts["target"] != "*"
        assert found.fast_path == (plain and facts["keep_alive"] and not facts["framed"]), row
        fast += found.fast_path
    assert 20 < fast < len(VALID) - 20


def test_no_client_can_fill_the_memory():
    """The caches have a bounded number of entries of bounded length, and none keeps a head that has come only once."""
    reader = corpus.reader()
    caches: tuple[Collection[Any], ...] = (reader.known, reader._lines, reader._hosts, reader._shapes)
    most = [0] * len(caches)
    for number in range(3 * CACHED_ENTRIES):
        for size in (1, CACHED_BYTES + 1) if number % 8 == 0 else (1,):
            name = b"x" * size
            head = b"GET /%d%s HTTP/1.1\r\nHost: h%d%s\r\nX%d%s: a\r\n\r\n" % (number, name, number, name, number, name)
            assert reader.read(head)
            assert head not in reader.known
            assert reader.read(head)
        most = [max(one, len(cache)) for one, cache in zip(most, caches, strict=True)]
    assert most == [CACHED_ENTRIES] * len(caches)
    assert all(max(map(len, cache)) <= CACHED_BYTES for cache in caches[:-1])
    assert max(sum(map(len, names)) for names in reader._shapes) <= CACHED_BYTES
    for number in range(2 * SEEN_ENTRIES):
        assert reader.read(b"GET /%d HTTP/1.1\r\nHost: a\r\n\r\n" % number)
        assert len(reader._seen) <= SEEN_ENTRIES


def test_a_part_of_a_head_empties_no_cache():
    """A client that sends its head in many pieces does not displace the entries of other clients."""
    reader = corpus.reader()
    for number in range(CACHED_ENTRIES):
        assert reader.read(b"GET /%d HTTP/1.1\r\nHost: a\r\n\r\n" % number)
    kept = dict(reader._lines)
    assert reader.read(b"GET /7 HTTP/1.1\r\nHost: a\r\n") is None
    assert reader._lines == kept
