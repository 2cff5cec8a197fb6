"""HTTP/1.1 as clients see it: where messages end, which response belongs to which request, when a connection persists.

Long: the promises of one protocol, all tested with the same applications.
"""

import gc
import hashlib
import http.client
import json
import shutil
import socket
import subprocess
from concurrent.futures import ThreadPoolExecutor
from urllib.parse import quote

import httpx
import pytest

from epollard.net.context import RECEIVE, RECEIVE_FIRST
from gates import Gate
from harness import WAIT, Client, wait_for

APP = "apps.routes:app"
pytestmark = [pytest.mark.interfaces("wsgi", "asgi"), pytest.mark.every_trigger]
GET = b"GET %b HTTP/1.1\r\nHost: test\r\n\r\n"
RESET_TARGETS = ["/hello", "/size?n=3000000", "/stream?n=200000", "/closing?kind=endless&log=%s"]


@pytest.fixture
def server(serve):
    return serve(APP)


def test_a_connection_persists(server):
    """HTTP/1.1 keeps a connection by default (RFC 9112 9.3); Date and Server are sent once."""
    with server.connect() as client:
        for _ in range(3):
            response = client.get("/hello")
            assert (response.version, response.status, response.body) == ("HTTP/1.1", 200, b"Hello, world!")
            assert response.header("connection") is None
            assert response.header("date")
            assert response.header("server")


@pytest.mark.parametrize(
    ("request_head", "connection", "persists"),
    [
        (b"GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n", "close", False),
        (b"GET / HTTP/1.1\r\nHost: a\r\nConnection: x, CLOSE\r\n", "close", False),
        (b"GET / HTTP/1.1\r\nHost: a\r\nConnection: keep-alive\r\n", None, True),
        (b"GET / HTTP/1.0\r\n", "close", False),
        (b"GET / HTTP/1.0\r\nConnection: keep-alive\r\n", "keep-alive", True),
        (b"GET / HTTP/1.0\r\nConnection: Keep-Alive\r\nHost: a\r\n", "keep-alive", True),
        (b"GET / HTTP/1.9\r\nHost: a\r\n", None, True),
        (b"OPTIONS * HTTP/1.1\r\nHost: a\r\n", None, True),
        (b"OPTIONS * HTTP/1.0\r\n", "close", False),
        (b"GET /stream?n=3&length=1 HTTP/1.0\r\nConnection: keep-alive\r\n", "keep-alive", True),
        (b"GET /stream?n=3 HTTP/1.0\r\nConnection: keep-alive\r\n", "close", False),
        (b"GET /size?n=70000 HTTP/1.0\r\nConnection: keep-alive\r\n", "keep-alive", True),
        (b"GET /status?status=200+OK&Connection=close HTTP/1.1\r\nHost: a\r\n", "close", False),
        (b"GET /status?status=204+No HTTP/1.0\r\nConnection: keep-alive\r\n", "keep-alive", True),
    ],
)
def test_connection_field_announces_the_close(server, request_head, connection, persists):
    """The `Connection` field of a response tells whether the connection persists."""
    with server.connect() as client:
        response = client.send(request_head, b"\r\n").response()
        assert response.status in (200, 204)
        assert response.header("connection") == connection
        if persists:
            assert client.get("/hello").status == 200
        else:
            assert client.closed()


@pytest.mark.parametrize("first", [b"", GET % b"/hello"], ids=["new", "known"])
@pytest.mark.parametrize(
    "request_line",
    [
        b"GET /hello HTTP/1.1",
        b"GET /hello HTTP/1.0",
        b"HEAD /hello HTTP/1.1",
        b"HEAD /hello HTTP/1.0",
        b"GET /size?n=65000 HTTP/1.1",
        b"GET /size?n=3000000 HTTP/1.0",
        b"GET /stream?n=30000 HTTP/1.1",
        b"GET /stream?n=3&length=1 HTTP/1.0",
        b"GET /written HTTP/1.1",
        b"GET /raises HTTP/1.1",
        b"GET /status?status=204+No HTTP/1.1",
        b"GET /status?status=200+OK&Connection=close HTTP/1.1",
    ],
)
@pytest.mark.parametrize("closing", [b"", b"Connection: close\r\n"], ids=["stays", "closes"])
def test_a_memo_of_a_request_changes_nothing(server, request_line, closing, first):
    """The same bytes sent five times get the same response each time, on a new connection and on one that epoll knows."""
    method, _, version = request_line.split(b" ")
    again = request_line + b"\r\nHost: test\r\n" + closing + b"\r\n"
    responses = []
    for _ in range(5):
        with Client(server.address, receive_buffer=65536) as client:
            if first:
                client.send(first).response()
            response = client.send(again).response(method.decode())
            assert response.header("date")
            lines = [field for field in response.headers if field[0].lower() != "date"]
            persists = not closing and version == b"HTTP/1.1" and b"close" not in request_line
            assert response.header("connection") == (None if persists else "close")
            assert client.get("/hello").status == 200 if persists else client.closed()
            responses.append((response.version, response.status, lines, response.body))
    assert responses == responses[:1] * 5
    assert (responses[0][3] == b"") == (method == b"HEAD" or b"/status" in request_line)


@pytest.mark.parametrize("closing", [b"", b"Connection: close\r\n"], ids=["stays", "closes"])
@pytest.mark.parametrize("filled", [RECEIVE_FIRST, RECEIVE, RECEIVE_FIRST + RECEIVE])
def test_a_head_that_just_fills_the_receive_buffer(server, filled, closing):
    """With a few bytes less, exactly as many, or a few more than a read takes, the head is answered without a wait."""
    for size in range(filled - 2, filled + 3):
        empty = b"GET /hello HTTP/1.1\r\nHost: test\r\n" + closing + b"X: \r\n\r\n"
        head = empty[:-4] + b"x" * (size - len(empty)) + b"\r\n\r\n"
        assert len(head) == size
        for first in b"", GET % b"/hello":
            with server.connect() as client:
                if first:
                    client.send(first).response()
                for _ in range(1 if closing else 3):
                    assert client.send(head).response().body == b"Hello, world!"
                if not closing:
                    client.send(head + GET % b"/target").response()
                    assert client.response().text == "/target"
                else:
                    assert client.closed()


def test_pipelined_requests_are_answered_in_order_in_one_send(server):
    """Requests that arrive in one packet are answered in one: a single `recv` by the client returns every response."""
    targets = [f"/target?{number}" for number in range(12)]
    with server.connect() as client:
        client.get("/hello")  # from here on epoll knows the connection
        client.send(*(GET % target.encode() for target in targets))
        received = client.socket.recv(65536)
        assert received.count(b"HTTP/1.1 200 OK\r\n") == len(targets)
        positions = [received.index(f"\r\n\r\n/target?{number}".encode()) for number in range(12)]
        assert positions == sorted(positions)


def test_a_long_pipeline_is_answered_completely(server):
    """Many more requests than one turn serves, of every kind, split anywhere: answered in order, none lost, none repeated."""
    kinds = [
        "/target?%d",
        "/stream?n=3&i=%d",
        "/status?status=204+No&i=%d",
        "/target?b%d",
        "/size?n=70000&i=%d",
        "/raises?i=%d",
    ]
    targets = [kinds[number % len(kinds)] % number for number in range(600)]
    with server.connect() as client, ThreadPoolExecutor(1) as pool:
        sent = pool.submit(client.socket.sendall, b"".join(GET % target.encode() for target in targets))
        for target in targets:
            response = client.response()
            if target.startswith("/target"):
                assert response.text == target
            else:
                kind = target.partition("?")[0]
                expected = {"/stream": (200, 30), "/status": (204, 0), "/size": (200, 70000), "/raises": (500, 22)}
                assert (response.status, len(response.body)) == expected[kind]
        sent.result()
        assert client.get("/hello").body == b"Hello, world!"


def test_bodies_in_a_pipeline(server):
    """Each request has its own body, with a length or chunked, and the next request begins where it ends."""
    pieces, expected = [], []
    for number in range(40):
        body = b"%d " % number * number * 100
        head = b"POST /digest HTTP/1.1\r\nHost: test\r\n"
        if number % 2:
            pieces += [head, b"Content-Length: %d\r\n\r\n" % len(body), body]
        else:
            chunk = b"%x\r\n%b\r\n" % (len(body), body) if body else b""
            pieces += [head, b"Transfer-Encoding: chunked\r\n\r\n", chunk, b"0\r\n\r\n"]
        pieces.append(GET % b"/target?%d" % number)
        expected.append(len(body))
    with server.connect() as client, ThreadPoolExecutor(1) as pool:
        sent = pool.submit(client.socket.sendall, b"".join(pieces))
        for number, length in enumerate(expected):
            assert json.loads(client.response().text)["length"] == length
            assert client.response().text == f"/target?{number}"
        sent.result()


def test_a_body_may_be_split_anywhere(server):
    """All, some or none of the body arrives with the head, and the next request arrives with the end of the body."""
    body = b"GET / HTTP/1.1\r\n\r\n"
    request = b"POST /digest HTTP/1.1\r\nHost: test\r\nContent-Length: %d\r\n\r\n" % len(body)
    expected = hashlib.sha256(body).hexdigest()
    with server.connect() as client:
        client.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)  # or the kernel holds the second piece back
        for after in range(-2, len(body) + 3):
            data = request + body + GET % b"/target?%d" % after
            cut = len(request) + after
            client.send(data[:cut])
            server.get("/hello")  # when this is answered, the piece has been read
            client.send(data[cut:])
            assert json.loads(client.response().text)["sha256"] == expected
            assert client.response().text == f"/target?{after}"


def test_a_request_may_arrive_byte_by_byte(server):
    """HTTP does not depend on packet boundaries."""
    first = b"POST /digest HTTP/1.1\r\nHost: test\r\nContent-Length: 3\r\n\r\nabc"
    with server.connect() as client:
        client.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)  # or the kernel collects bytes
        for byte in first + GET % b"/hello":
            client.send(bytes((byte,)))
        assert json.loads(client.response().text)["length"] == 3
        assert client.response().body == b"Hello, world!"


def test_a_long_head_may_arrive_in_pieces_of_any_size(server):
    """The end of the head is found wherever it is split, and the bytes after it belong to the next request."""
    fields = b"X: " + b"a" * 60_000
    pieces = [b"GET", b" ", b"/hello HTTP/1.1\r\nHost: test\r\n", fields[:20_000], fields[20_000:50_000], fields[50_000:]]
    with server.connect() as client:
        client.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)  # or the kernel holds small pieces back
        for end in ([b"\r\n\r\n"], [b"\r\n\r", b"\n"], [b"\r\n", b"\r\n"], [b"\r", b"\n\r\n"], [b"\r\n\r\n" + GET % b"/hello"]):
            for piece in pieces + end:
                client.send(piece)
                server.get("/hello")  # when this is answered, the piece has been read
            assert client.response().body == b"Hello, world!"
        assert client.response().body == b"Hello, world!"
        assert client.quiet(0.1)


@pytest.mark.parametrize(
    "target", ["/hello", "/size?n=100000", "/stream?n=3", "/stream?n=3&length=1", "/written", "/target", "/pieces", "/raises"]
)
def test_head_is_get_without_its_body(server, target):
    """RFC 9110 9.3.2: the response to HEAD has no body, and the Content-Length of GET, if any."""
    with server.connect() as client:
        whole = client.get(target)
        head = client.request(target, "HEAD").response("HEAD")
        assert head.status == whole.status
        if head.header("content-length") is not None:
            assert head.header("content-length") == whole.header("content-length") == str(len(whole.body))
        assert client.get("/hello").body == b"Hello, world!"  # no byte of a body came before


@pytest.mark.parametrize("status", ["204 No Content", "304 Not Modified"])
@pytest.mark.parametrize("body", ["", "text"])
@pytest.mark.parametrize("length", ["", "&Content-Length=4"])
def test_responses_that_have_no_body(server, status, body, length):
    """RFC 9112 6.3: 204 and 304 end with their head, whatever the application returns; only 304 may have a length."""
    with server.connect() as client:
        response = client.get(f"/status?status={quote(status)}&body={body}{length}")
        assert f"{response.status} {response.reason}" == status
        assert response.header("transfer-encoding") is None
        assert response.header("content-length") == ("4" if length and response.status == 304 else None)
        assert client.get("/hello").body == b"Hello, world!"


@pytest.mark.interfaces("wsgi")  # in ASGI a status is a number
@pytest.mark.parametrize("status", ["200", "200 ", "299 Never heard of", "404 Nicht gefunden \u00e4", "599 x"])
def test_a_status_may_have_any_reason_phrase(server, status):
    """RFC 9112 4: a status is three digits and a reason phrase, which may be empty."""
    with server.connect() as client:
        response = client.get(f"/status?status={quote(status)}")
        assert f"{response.status} {response.reason}".strip() == status.strip()


def test_the_application_may_set_date_and_server(server):
    """A Date or Server field that the application sets is not sent a second time."""
    with server.connect() as client:
        response = client.get("/status?status=200+OK&Date=then&Server=me")
        assert (response.header("date"), response.header("server")) == ("then", "me")


def test_a_stream_is_chunked_and_sent_piece_by_piece(server, tmp_path):
    """A piece is sent before the next one is produced (PEP 3333)."""
    with Gate(tmp_path / "gate") as gate, server.connect() as client:
        client.request(f"/gated_stream?fifo={gate.path}")
        received = b""
        while b"before " not in received:
            received += client.socket.recv(65536)
        assert b"Transfer-Encoding: chunked\r\n" in received
        gate.wait().open()
        while not received.endswith(b"0\r\n\r\n"):
            received += client.socket.recv(65536)
        assert received.endswith(b"\r\n\r\n7\r\nbefore \r\n5\r\nafter\r\n0\r\n\r\n")


# --- Expect: 100-continue


def expecting(target, body, more=""):
    return f"POST {target} HTTP/1.1\r\nHost: test\r\nExpect: 100-Continue\r\nContent-Length: {len(body)}\r\n{more}\r\n".encode()


@pytest.mark.parametrize("how", ["read", "read-sized", "readline", "readlines", "iter"])
@pytest.mark.parametrize("size", [10, 1_000_000])
def test_continue_is_sent_when_the_application_reads(server, how, size):
    """RFC 9110 10.1.1: first 100, then the body, then the response; and the connection persists."""
    body = b"line of 11\n" * (size // 11) + b"end"
    with server.connect() as client:
        for _ in range(2):
            assert client.send(expecting("/read?how=" + how, body)).response().status == 100
            response = client.send(body).response()
            assert "".join(json.loads(response.text)).encode() == body
        assert client.get("/hello", close=True).header("connection") == "close"


def test_continue_is_not_sent_when_the_application_does_not_read(server):
    """The final response comes at once. The body may follow or not, so the connection is closed."""
    with server.connect() as client:
        response = client.send(expecting("/read?how=not", b"x" * 10)).response()
        assert (response.status, response.header("connection")) == (200, "close")
        assert client.closed()


def test_a_body_that_is_sent_at_once_needs_no_continue(server):
    """A client may send its body without waiting for 100 (RFC 9110 10.1.1); then 100 would be late, and is not sent."""
    with server.connect() as client:
        response = client.send(expecting("/read?how=read", b"abc"), b"abc", GET % b"/target?next").response()
        assert response.status == 200
        assert json.loads(response.text) == ["abc"]
        assert client.response().text == "/target?next"


def test_continue_after_requests_in_the_same_packet(server):
    """The responses to a pipeline stay in order, and so does the 100."""
    with server.connect() as client:
        client.send(GET % b"/target?1", GET % b"/target?2", expecting("/read?how=read", b"abc"))
        assert [client.response().text for _ in range(2)] == ["/target?1", "/target?2"]
        assert client.response().status == 100
        assert json.loads(client.send(b"abc").response().text) == ["abc"]


def test_no_continue_for_http_1_0(server):
    """RFC 9110 10.1.1: an HTTP/1.0 client does not know 100."""
    with server.connect() as client:
        head = b"POST /read?how=read HTTP/1.0\r\nExpect: 100-continue\r\nContent-Length: 3\r\n\r\n"
        assert json.loads(client.send(head, b"abc").response().text) == ["abc"]


def test_no_continue_once_the_response_has_begun(server):
    """100 comes before the final status or never. The application's read fails at once, without waiting for a body."""
    with server.connect() as client:
        response = client.send(expecting("/read_late", b"abc")).response()
        assert (response.status, response.body) == (200, b"begun ConnectionResetError")
        assert client.closed()


def test_a_client_that_leaves_instead_of_continuing(server, tmp_path):
    """The application's reads fail, the first at once and the second too, and the worker keeps serving."""
    log = tmp_path / "log"
    with server.connect() as client:
        assert client.send(expecting(f"/read_twice?log={log}", b"abc")).response().status == 100
    wait_for(log.exists, "the application's read did not fail")
    assert wait_for(log.read_text).split() == ["ConnectionResetError"] * 2
    assert server.get("/hello").status == 200


# --- Targets


def test_absolute_form(server):
    """RFC 9112 3.2.2: the authority of the target takes the place of Host."""
    with server.connect() as client:
        client.send(b"GET http://Example.org:81/environment?a=b HTTP/1.1\r\nHost: other\r\n\r\n")
        environ = json.loads(client.response().text)
        assert (environ["PATH_INFO"], environ["QUERY_STRING"]) == ("/environment", "a=b")
        assert environ["HTTP_HOST"] == "Example.org:81"
        client.send(b"GET http://example.org HTTP/1.1\r\nHost: other\r\n\r\n")
        assert client.response().body == b"Hello, world!"


@pytest.mark.parametrize("body", [b"", b"Content-Length: 5\r\n\r\nabcde"])
def test_options_of_the_server(server, body):
    """RFC 9110 9.3.7: `OPTIONS *` is for the server; the application (which would say hello) is not called."""
    with server.connect() as client:
        response = client.send(b"OPTIONS * HTTP/1.1\r\nHost: test\r\n", body or b"\r\n").response()
        assert (response.status, response.body, response.header("content-length")) == (200, b"", "0")
        if not body:
            assert client.get("/hello").status == 200


def test_an_empty_line_before_a_request(server):
    """RFC 9112 2.2: old clients send an empty line after a body; it is ignored."""
    with server.connect() as client:
        for _ in range(2):
            response = client.send(b"POST /digest HTTP/1.1\r\nHost: test\r\nContent-Length: 3\r\n\r\nabc\r\n").response()
            assert json.loads(response.text)["length"] == 3


# --- Bodies


@pytest.mark.parametrize("size", [0, 1, 65535, 65536, 65537, 256 * 1024 - 1, 256 * 1024, 256 * 1024 + 1, 5 << 20])
@pytest.mark.parametrize("chunked", [False, True], ids=["length", "chunked"])
def test_bodies_of_every_size(server, size, chunked):
    """A body arrives as it was sent. A large one is kept in a file without a name."""
    body = (b"0123456789abcdef" * (size // 16 + 1))[:size]
    content = iter([body[: size // 3], body[size // 3 : size // 3 + 1], body[size // 3 + 1 :]]) if chunked else body
    with httpx.Client(base_url=server.url, timeout=WAIT, trust_env=False) as client:
        for _ in range(2):
            response = client.post("/digest", content=content)
            found = response.json()
            assert found["length"] == size
            assert found["sha256"] == hashlib.sha256(body).hexdigest()
            assert found["files"] == []
            assert found["input"] == "b''"
            content = body


def test_chunks_with_extensions_and_trailers(server):
    """RFC 9112 7.1: both are read, and the application sees neither."""
    with server.connect() as client:
        client.send(b"POST /read?how=read HTTP/1.1\r\nHost: test\r\nTransfer-Encoding: Chunked\r\nTrailer: X-Sum\r\n\r\n")
        client.send(b"3;name=value\r\nabc\r\n", b'0A ; q="x"\r\n0123456789\r\n', b"0\r\nX-Sum: 1\r\nX-Other: 2\r\n\r\n")
        assert json.loads(client.response().text) == ["abc0123456789"]
        assert client.get("/hello").status == 200


def test_a_slow_sender_occupies_no_thread(server):
    """The application is called when the body is complete: sixteen unfinished bodies do not delay other requests."""
    slow = [server.connect() for _ in range(16)]
    for client in slow:
        client.send(b"POST /digest HTTP/1.1\r\nHost: test\r\nContent-Length: 10\r\n\r\nabc")
    for client in slow:
        assert server.get("/hello").status == 200
        client.send(b"defghij")
        assert json.loads(client.response().text)["length"] == 10
        client.close()


# --- Ends


@pytest.mark.parametrize("target", ["/hello", "/stream?n=3", "/size?n=1000000"])
def test_a_half_closed_client_is_answered_and_closed(server, target):
    """A client that closes its sending side gets its responses, and then the close at once, not after an idle deadline."""
    with server.connect() as client:
        client.send(GET % target.encode(), GET % target.encode()).half_close()
        assert [client.response().status for _ in range(2)] == [200, 200]
        assert client.closed()


def test_a_half_closed_client_in_the_middle_of_a_body(server):
    """The rest of the body cannot arrive, so the connection is closed at once, not at the body's deadline."""
    with server.connect() as client:
        client.send(b"POST /digest HTTP/1.1\r\nHost: test\r\nContent-Length: 10\r\n\r\nabc").half_close()
        assert client.closed()


@pytest.mark.parametrize("target", ["/hello", "/stream?n=3", "/size?n=1000000"])
def test_the_last_request_and_the_end_in_one_packet(server, target):
    """One epoll event reports both. An edge-triggered connection gets no second event for the end."""
    with server.connect() as client:
        client.get("/hello")  # now epoll knows the connection, and it is idle
        client.socket.send(GET % target.encode(), socket.MSG_MORE)
        client.half_close()
        assert client.response().status == 200
        assert client.closed()


def test_more_of_a_head_and_the_end_in_one_packet(server):
    """The server does not wait for a head that can no longer become complete."""
    with server.connect() as client:
        client.send(b"GET /hello HT")
        server.get("/hello")  # when this is answered, the piece has been read
        client.socket.send(b"TP/1.1\r\n", socket.MSG_MORE)
        client.half_close()
        assert client.closed()


def test_the_last_of_a_body_and_the_end_in_one_packet(server):
    """The server does not wait for a body that can no longer become complete."""
    with server.connect() as client:
        client.send(b"POST /digest HTTP/1.1\r\nHost: test\r\nContent-Length: 10\r\n\r\n")
        server.get("/hello")  # when this is answered, the head has been read and the server waits for the body
        client.socket.send(b"abc", socket.MSG_MORE)
        client.half_close()
        assert client.closed()


@pytest.mark.parametrize("data", [b"", b"GET / HT"])
def test_a_half_closed_client_without_a_request(server, data):
    """Without a complete request there is no response."""
    with server.connect() as client:
        client.send(data).half_close()
        assert client.closed()


@pytest.mark.parametrize("after", [b"", b"\r\n", b"x" * 100_000], ids=["nothing", "a line", "much"])
def test_the_last_response_is_never_lost_to_a_reset(server, after):
    """RFC 9112 9.6: closing with unread bytes would reset the connection, and the client might lose the response."""
    for _ in range(5):
        with server.connect() as client:
            client.send(b"GET /size?n=300000 HTTP/1.1\r\nHost: test\r\nConnection: close\r\n\r\n", after)
            assert len(client.response().body) == 300_000
            assert client.rest() == b""


def test_an_early_response_while_the_body_is_being_sent(serve):
    """413 while the client still sends: it can continue (within a limit), and then read why it was refused."""
    server = serve(APP, max_body=1000)
    for _ in range(5):
        with server.connect() as client:
            client.send(b"POST /digest HTTP/1.1\r\nHost: test\r\nContent-Length: 800000\r\n\r\n")
            for _ in range(8):
                client.send(b"x" * 100_000)
            assert client.response().status == 413
            assert client.rest() == b""


@pytest.mark.parametrize("framing", ["Content-Length: 3000000", "Transfer-Encoding: chunked"])
def test_a_connection_persists_after_a_body_that_is_not_read(server, framing):
    """However long the body is: the response, which may come before its end, has not announced a close."""
    body = b"x" * 3_000_000 if "Length" in framing else b"186a0\r\n%b\r\n" % (b"x" * 100_000) * 30 + b"0\r\n\r\n"
    with server.connect() as client:
        for _ in range(3):
            client.send(f"POST /size?n=10 HTTP/1.1\r\nHost: test\r\n{framing}\r\n\r\n".encode(), body)
            response = client.response("POST")
            assert (response.status, response.header("Connection")) == (200, None)
        assert client.get("/hello").status == 200


def test_a_refusal_in_the_middle_of_a_body(serve):
    """It is like a refusal before the body, though the application has the request already and has to give up."""
    server = serve(APP, max_body=1000)
    for _ in range(2):
        with server.connect() as client:
            client.send(expecting("/digest", b"").replace(b"Content-Length: 0", b"Transfer-Encoding: chunked"))
            assert client.response().status == 100
            client.send(b"c3500\r\n")
            assert client.response().status == 413
            assert server.get("/hello").status == 200  # when this is answered, the application has given up
            for _ in range(8):
                client.send(b"x" * 100_000)
            assert client.rest() == b""


def test_a_client_that_sends_without_end_is_cut_off(serve):
    """The limit: a client that keeps sending megabytes after a refusal is cut off."""
    server = serve(APP, max_body=1000)
    with server.connect() as client:
        client.send(b"POST /digest HTTP/1.1\r\nHost: test\r\nContent-Length: 800000000\r\n\r\n")
        with pytest.raises(OSError, match=r"reset|[Bb]roken"):
            client.send(b"x" * 200_000_000)


def stages(target):
    """A request, cut off at every stage."""
    yield b""
    yield b"GET"
    yield b"GET / HTTP/1.1\r\nHost: test\r\nX: y"
    yield b"POST /digest HTTP/1.1\r\nHost: test\r\nContent-Length: 10\r\n\r\n"
    yield b"POST /digest HTTP/1.1\r\nHost: test\r\nContent-Length: 10\r\n\r\nabc"
    yield b"POST /digest HTTP/1.1\r\nHost: test\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nab"
    yield expecting("/read?how=read", b"abc")
    for one in RESET_TARGETS:
        one = one % target if "%s" in one else one
        yield GET % one.encode()
        yield GET % one.encode() * 3


@pytest.mark.parametrize("how", ["close", "reset"])
def test_clients_that_leave_at_every_stage(server, tmp_path, how):
    """Such a client costs no descriptor, no thread, and no other client's response."""
    gc.collect()
    with server.connect() as watcher:
        before = int(watcher.get("/fds").text)
        for data in [*stages(tmp_path / "log")] * 3:
            clients = [server.connect(), server.connect()]
            for client in clients:
                client.send(data)
            if data:  # the first client leaves after the first byte of a response, the second one before
                clients[0].socket.settimeout(0.02)
                try:
                    clients[0].socket.recv(1000)
                except TimeoutError:
                    pass
            for client in clients:
                getattr(client, how)()
        wait_for(
            lambda: int(watcher.get("/fds").text) <= before, lambda: f"{watcher.get('/fds').text} descriptors, not {before}"
        )
        assert watcher.get("/hello").status == 200
    assert "internal error, please report it" not in server.log


# --- Real clients


def test_httpx_keeps_its_connections(server):
    """With a connection pool used by threads, every response is the right one."""
    limits = httpx.Limits(max_connections=16, max_keepalive_connections=16)
    with (
        httpx.Client(base_url=server.url, limits=limits, timeout=WAIT, trust_env=False) as client,
        ThreadPoolExecutor(8) as pool,
    ):

        def ask(number):
            kind = number % 4
            if kind == 0:
                return client.get(f"/target?{number}").text == f"/target?{number}"
            if kind == 1:
                return client.post("/read?how=read", content=str(number)).json() == [str(number)]
            if kind == 2:
                return len(client.get(f"/stream?n={number}").content) == 10 * number
            return len(client.get(f"/size?n={number * 1000}").content) == number * 1000

        assert all(pool.map(ask, range(200)))


def test_two_hundred_clients_at_once(server):
    """Requests of every kind, some sent slowly: each client gets its own responses in order."""
    clients = [server.connect() for _ in range(200)]
    for turn in range(3):
        for number, client in enumerate(clients):
            kind = (number + turn) % 5
            if kind == 0:
                client.send(GET % b"/target?%d" % number, GET % b"/target?%d" % -number)
            elif kind == 1:
                client.request("/read?how=read", "POST", b"%d" % number)
            elif kind == 2:
                client.send(b"POST /read?how=iter HTTP/1.1\r\nHost: test\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nab")
            elif kind == 3:
                client.request(f"/stream?n={number}")
            else:
                client.send(b"GET /target?%d HTT" % number)
        for number, client in enumerate(clients):
            kind = (number + turn) % 5
            if kind == 2:
                client.send(b"\r\n1\r\nc\r\n0\r\n\r\n")
            elif kind == 4:
                client.send(b"P/1.1\r\nHost: test\r\n\r\n")
        for number, client in enumerate(clients):
            kind = (number + turn) % 5
            text = client.response().text
            expected = {0: f"/target?{number}", 1: f'["{number}"]', 2: '["abc"]', 4: f"/target?{number}"}
            assert text == expected[kind] if kind in expected else len(text) == 10 * number
            if kind == 0:
                assert client.response().text == f"/target?{-number}"
    for client in clients:
        client.close()


def test_curl(server, tmp_path):
    """curl waits for 100 before it uploads, and fetches two URLs over one connection."""
    if not shutil.which("curl"):
        pytest.skip("no curl")
    body = tmp_path / "body"
    body.write_bytes(b"x" * 2_000_000)
    words = ["curl", "-sS", "--noproxy", "*", "--max-time", str(WAIT), "-w", "%{num_connects} %{http_code}\n"]
    upload = ["-H", "Expect: 100-continue", "--data-binary", f"@{body}", f"{server.url}/read?how=readline"]
    done = subprocess.run([*words, *upload, f"{server.url}/read?how=readline"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    responses = ['["' + "x" * 2_000_000 + '"]']
    assert done.stdout == f"{responses[0]}1 200\n{responses[0]}0 200\n"


def test_the_client_of_the_standard_library(server):
    """http.client understands lengths, chunks and the ends of messages."""
    connection = http.client.HTTPConnection(*server.address, timeout=WAIT)
    for target, length in ("/hello", 13), ("/stream?n=1000", 10_000), ("/size?n=100000", 100_000), ("/status?status=204+No", 0):
        connection.request("GET", target)
        assert len(connection.getresponse().read()) == length
    connection.request(
        "POST", "/read?how=read", body=iter([b"a", b"b"]), encode_chunked=True, headers={"Transfer-Encoding": "chunked"}
    )
    assert json.loads(connection.getresponse().read()) == ["ab"]
    connection.close()


def test_a_large_file_on_a_new_connection(server, tmp_path):
    """A file larger than one turn sends, to a client that reads it at once, before the connection is registered with epoll."""
    path = tmp_path / "file"
    path.write_bytes(b"x" * 12_000_000)
    for _ in range(3):
        with Client(server.address, receive_buffer=8 << 20) as client:
            assert len(client.get(f"/file?path={path}").body) == 12_000_000


def test_a_client_with_a_small_window(server):
    """A client that receives one packet at a time gets the same responses."""
    with Client(server.address, receive_buffer=2048) as client:
        for _ in range(2):
            assert client.get("/size?n=2000000").body == b"x" * 2_000_000
            assert len(client.get("/stream?n=100000").body) == 1_000_000
