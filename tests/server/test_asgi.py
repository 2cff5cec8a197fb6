"""ASGI 3, HTTP, spec 2.5, to the letter: what applications receive, what they may do, and what happens when they break a rule.

Long: one page for one specification, in its order: scope, receiving, sending, extensions, order, shutdown.
"""

import ast
import contextlib
import json
import os
import select
import signal
import time
from concurrent.futures import ThreadPoolExecutor
from urllib.parse import urlencode

import pytest

from gates import Gate, Notes
from harness import HAS_V6, SCALE, Client, wait_for

APP = "apps.asgi_calls:app"
pytestmark = pytest.mark.interfaces("asgi")
GET = b"GET %b HTTP/1.1\r\nHost: test\r\n\r\n"
OFFERED: dict[str, object] = {"http.response.pathsend": {}, "http.response.zerocopysend": {}, "http.response.early_hint": {}}
RECEIVED = {"type": "http.request", "body": "b''", "more_body": "False"}
GONE = {"type": "http.disconnect"}
PROMPTLY = 1 * SCALE  # seconds


@pytest.fixture
def server(serve):
    return serve(APP)


@pytest.fixture
def log(tmp_path):
    return Notes(tmp_path / "log")


def start(status=200, headers=(), **more):
    return {"type": "http.response.start", "status": status, "headers": [list(pair) for pair in headers], **more}


def body(content="", more=False):
    return {"type": "http.response.body", "body": content, "more_body": more}


def play(log, *steps, **query):
    """The target that makes the application take these steps."""
    return "/play?" + urlencode({"script": json.dumps(steps), "log": log, **query})


def outcomes(log):
    return json.loads(log.wait(1)[0])


def scope_of(answer):
    return ast.literal_eval(answer.text)


def worker(server):
    """The worker's pid: the same before and after a test shows that nothing has killed it."""
    (pid,) = server.workers()
    return pid


# --- The scope


def test_scope(server):
    """Every key of the specification with its type; header names in lower case, values as they came, in their order."""
    with server.connect() as client:
        port = client.socket.getsockname()[1]
        client.send(b"PUT /scope/%C3%A9?a=%20b&c HTTP/1.1\r\nHost: example.org:81\r\n")
        client.send(b"X-One: \t1 \r\nx-one: \xff\r\nX-Empty:\r\n\r\n")
        found = scope_of(client.response())
    assert found == {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.3"},
        "http_version": "1.1",
        "method": "PUT",
        "scheme": "http",
        "path": "/scope/\u00e9",
        "raw_path": b"/scope/%C3%A9",
        "query_string": b"a=%20b&c",
        "root_path": "",
        "headers": [(b"host", b"example.org:81"), (b"x-one", b"1"), (b"x-one", b"\xff"), (b"x-empty", b"")],
        "client": ("127.0.0.1", port),
        "server": ("127.0.0.1", server.port),
        "state": {"word": "of the lifespan", "list": []},
        "extensions": OFFERED,
    }


def test_a_scope_belongs_to_the_application(server):
    """Whatever an application changes in it, the next request's scope is correct; `state` is copied, one level deep."""
    with server.connect() as client:
        first = scope_of(client.get("/vandal"))
        for _ in range(3):
            assert scope_of(client.get("/vandal")) == first
        assert scope_of(client.get("/scope"))["state"] == {"word": "of the lifespan", "list": []}


def test_scope_on_a_unix_socket(serve, tmp_path):
    """There is no client address; the server's is the path (spec, "server")."""
    path = tmp_path / "it.sock"
    serve(APP, own=True, bind=f"unix:{path}")
    with Client(str(path)) as client:
        found = scope_of(client.get("/scope"))
        assert (found["client"], found["server"]) == (None, (str(path), None))


@pytest.mark.skipif(not HAS_V6, reason="no IPv6")
def test_scope_on_ipv6(serve):
    """Addresses have no brackets, and ports are numbers."""
    server = serve(APP, own=True, bind="[::1]:0")
    with server.connect() as client:
        found = scope_of(client.get("/scope"))
        assert (found["client"], found["server"]) == (("::1", client.socket.getsockname()[1]), ("::1", server.port))


# --- Receiving


def test_a_request_without_a_body(server, log):
    """The application receives one `http.request`, with an empty body and nothing to follow."""
    server.get(play(log, "receive", start(), body("x")))
    assert outcomes(log)[0] == RECEIVED


@pytest.mark.every_trigger
@pytest.mark.parametrize("chunked", [False, True], ids=["length", "chunked"])
def test_a_body_is_received_as_it_arrives(server, log, chunked):
    """The application has the first piece, and responds to it, before the client sends the second."""
    with server.connect() as client:
        framing = b"Transfer-Encoding: chunked\r\n\r\n" if chunked else b"Content-Length: 9\r\n\r\n"
        wrap = (lambda data: b"%x\r\n%b\r\n" % (len(data), data)) if chunked else bytes
        client.send(b"POST /echo HTTP/1.1\r\nHost: test\r\n", framing)
        received = b""
        for piece in b"abc", b"def", b"ghi":
            client.send(wrap(piece))
            while b"\r\n3\r\n" + piece + b"\r\n" not in received:
                received += client.socket.recv(65536)
        if chunked:
            client.send(b"0\r\n\r\n")
        while not received.endswith(b"0\r\n\r\n"):
            received += client.socket.recv(65536)
        assert client.get("/hello").status == 200


@pytest.mark.every_trigger
@pytest.mark.parametrize("chunked", [False, True], ids=["length", "chunked"])
def test_a_body_is_not_read_before_the_application_receives_it(serve, tmp_path, chunked):
    """Back-pressure: until then the client can send what the sockets hold, and no more; after that everything arrives."""
    server = serve(APP, max_body=1 << 30)
    before = int(server.get("/memory").text)
    size, chunk = 64 << 20, 1 << 20
    pieces = [b"%x\r\n" % chunk + b"x" * chunk + b"\r\n" if chunked else b"x" * chunk] * (size // chunk)
    data = memoryview(b"".join(pieces) + (b"0\r\n\r\n" if chunked else b""))
    with Gate(tmp_path / "gate") as gate, server.connect() as client:
        framing = "transfer-encoding: chunked" if chunked else f"content-length: {size}"
        client.send(f"POST /late_reader?fifo={gate.path} HTTP/1.1\r\nHost: a\r\n{framing}\r\n\r\n".encode())
        gate.wait()
        client.socket.setblocking(False)
        sent = 0
        while sent < size and select.select([], [client.socket], [], 0.3 * SCALE)[1]:
            sent += client.socket.send(data[sent : sent + 65536])
        assert sent < size // 2
        assert int(server.get("/memory").text) - before < 8 * 1024
        gate.open()
        client.socket.settimeout(30 * SCALE)
        client.socket.sendall(data[sent:])
        assert client.response().text == str(size)
        assert client.get("/hello").status == 200


def test_two_tasks_receive_at_once(server):
    """Each message goes to one task; the other one receives the end."""
    with server.connect() as client:
        client.send(b"POST /readers HTTP/1.1\r\nHost: test\r\nContent-Length: 3\r\n\r\n")
        server.get("/hello")  # both are waiting by now
        client.send(b"abc").half_close()
        assert json.loads(client.response().text) == ["http.disconnect ", "http.request abc"]


def test_receive_may_be_cancelled(server):
    """A `receive` that is cancelled takes no message with it."""
    with server.connect() as client:
        client.send(b"POST /impatient HTTP/1.1\r\nHost: test\r\nContent-Length: 300000\r\n\r\n")
        for _ in range(30):
            client.send(b"x" * 10_000)
            client.quiet(0.003)  # long enough for the application to give up
        assert client.response().text == "300000"


# --- The client leaves


@pytest.mark.every_trigger
@pytest.mark.parametrize("how", ["close", "reset", "half_close"])
@pytest.mark.parametrize("begun", ["", "&begun=1"], ids=["before", "within"])
@pytest.mark.parametrize("first", [b"", GET % b"/hello"], ids=["new", "known"])
@pytest.mark.parametrize("more", [b"", GET % b"/hello"], ids=["silent", "more"])
def test_disconnect_while_the_application_listens(server, log, how, begun, first, more):
    """`http.disconnect` comes promptly, before and during the response, even if the client sent more before it left."""
    with server.connect() as client:
        if first:
            assert client.send(first).response().status == 200
        client.send(GET % f"/listen?log={log}{begun}".encode(), more)
        wait_for(lambda: log.lines)
        left = time.monotonic()
        getattr(client, how)()
        assert log.wait(2) == ["listening", "http.disconnect"]
        assert time.monotonic() - left < PROMPTLY


@pytest.mark.every_trigger
@pytest.mark.parametrize("how", ["close", "reset"])
@pytest.mark.parametrize("begun", ["", "&begun=1"], ids=["before", "within"])
def test_sending_to_a_client_that_left(server, log, how, begun):
    """`send` raises an `OSError` as soon as the server knows (spec 2.4), and the log does not blame the application."""
    before = server.log.count("Traceback")
    with server.connect() as client:
        client.request(f"/listen?log={log}&send=1{begun}")
        wait_for(lambda: log.lines)
        getattr(client, how)()
    # A client that sends nothing more may still listen: only writing shows. One whole response may fit before that.
    lines = wait_for(lambda: len(log.lines) > 2 and log.lines)
    assert lines
    assert lines[2] == "ClientDisconnected True" or (lines[2] == "sent" and not begun)
    assert server.get("/hello").status == 200
    assert server.log.count("Traceback") == before


@pytest.mark.every_trigger
def test_a_half_closed_client_receives_its_response(server, log):
    """Such a client may still listen: a response that is sent after `http.disconnect` reaches it."""
    with server.connect() as client:
        client.request(f"/listen?log={log}&send=1").half_close()
        assert client.response().body == b"to whom"
        assert client.closed()
        assert log.wait(3)[2] == "sent"


@pytest.mark.every_trigger
def test_disconnect_in_the_middle_of_a_body(server, log):
    """The rest of the body will never come: `receive` returns `http.disconnect` at once."""
    with server.connect() as client:
        client.send(f"POST /echo?log={log} HTTP/1.1\r\nHost: test\r\nContent-Length: 10\r\n\r\nabc".encode())
        client.socket.recv(1000)
        client.half_close()
        assert log.wait(1) == ["http.disconnect"]


def test_an_application_may_return_when_the_client_has_left(serve, log):
    """A missing response is then no error: the access log has 499, or the status that was sent."""
    server = serve(APP, own=True)
    for target in f"/listen?log={log}", f"/listen?begun=1&log={log}2":
        with server.connect() as client:
            client.request(target)
            client.quiet(0.05)
        wait_for(lambda target=target: target in server.access)
    assert [line.split()[8] for line in server.access.splitlines()] == ["499", "200"]
    assert "error" not in server.log


@pytest.mark.every_trigger
def test_a_body_that_stalls_ends_for_both_sides_at_once(serve, log):
    """At the deadline the client gets a 408 and `receive` returns, even if nothing else happens on this server."""
    server = serve(APP, own=True, body_timeout=1)
    count = 0

    def stall():
        nonlocal count
        with server.connect() as client:
            client.send(f"POST /echo?log={log} HTTP/1.1\r\nHost: test\r\nContent-Length: 10\r\n\r\n".encode())
            assert client.response().status == 408
            noticed = time.monotonic()
            count += 1
            assert log.wait(count) == ["http.disconnect"] * count
            return time.monotonic() - noticed

    # The loop's next tick would be 1 s later. A busy machine only adds time.
    assert any(stall() < 0.3 * SCALE for _ in range(3))


@pytest.mark.every_trigger
def test_disconnect_after_the_response(server, log):
    """The response is complete, so `receive` returns `http.disconnect`; the connection continues."""
    with server.connect() as client:
        assert client.get(play(log, start(), body("x"), "receive", "receive")).text == "x"
        assert outcomes(log)[2:] == [GONE, GONE]
        assert client.get("/hello").status == 200


@pytest.mark.every_trigger
def test_a_body_may_be_received_after_the_response_or_not_at_all(server, log):
    """The part that came with the head is still there; a body that is never received does not disturb the next request."""
    with server.connect() as client:
        for number in range(3):
            assert client.post("/hello", b"x" * 100_000 * number).status == 200
        assert client.post(play(log, start(), body("x"), "receive"), b"abc").text == "x"
        assert client.get("/hello").status == 200
        assert outcomes(log)[2]["type"] in ("http.request", "http.disconnect")


# --- Sending


@pytest.mark.parametrize("when", [[], ["yield"], ["yield", "yield", "yield"]], ids=["at once", "later", "much later"])
@pytest.mark.parametrize("more", [False, True], ids=["whole", "streamed"])
def test_head_and_first_body_are_one_segment(server, log, when, more):
    """`http.response.start` is held back until the first piece of the body can go with it."""
    with server.connect() as client:
        client.get("/hello")
        client.send(GET % play(log, *when, start(), *when, body("first", more), "receive").encode())
        received = client.socket.recv(65536)
        assert received.endswith(b"\r\n\r\n5\r\nfirst\r\n" if more else b"\r\n\r\nfirst")


def test_a_body_in_one_message_has_its_length(server, log):
    """Content-Length if the server knows it and the application has not given it; chunks if neither knows it."""
    with server.connect() as client:
        answer = client.get(play(log, start(), body("four")))
        assert (answer.header("content-length"), answer.text) == ("4", "four")
        log.path.unlink()
        answer = client.get(play(log, start(), body("fo", True), body("", True), body("ur")))
        assert (answer.header("transfer-encoding"), answer.text) == ("chunked", "four")


def test_bodies_of_every_type(server):
    """Bytes and the types like them are sent; a message without a body has an empty one."""
    assert server.get("/kinds").text == "one two three"


@pytest.mark.every_trigger
@pytest.mark.parametrize("size", [1, 65535, 65537, 300_000, 3_000_000])
@pytest.mark.parametrize("when", [[], ["yield"]], ids=["at once", "later"])
def test_bodies_of_every_size(server, tmp_path, size, when):
    """Bodies arrive whether they are copied behind their head or not, and whether the kernel takes them at once or not."""
    path = tmp_path / "file"
    path.write_bytes(os.urandom(size))
    with server.connect() as client:
        for _ in range(2):
            log = Notes(tmp_path / f"log-{time.monotonic_ns()}")
            assert client.get(f"/size?n={size}").body == b"x" * size
            answer = client.get(play(log, *when, start(), {"type": "http.response.pathsend", "path": str(path)}))
            assert answer.body == path.read_bytes()


@pytest.mark.every_trigger
@pytest.mark.parametrize("tasks", [1, 4])
def test_send_waits_for_a_client_that_does_not_read(server, log, tasks):
    """`send` waits above the high-water mark and returns below the low one, whichever task waits; nothing is lost."""
    with Client(server.address, receive_buffer=4096) as client:
        client.request(f"/paced?n=400&tasks={tasks}&log={log}")
        wait_for(lambda: log.lines)
        count = 0
        while count != len(log.lines):
            count = len(log.lines)
            assert client.quiet(0.2 * SCALE) is False  # it has something to read, and does not read it
            time.sleep(0.2 * SCALE)  # nothing may happen in this time
        assert count < 150  # 9.4 MiB: the kernel takes no more
        assert len(client.response().body) == 400 * 65536
        assert client.get("/hello").status == 200


@pytest.mark.parametrize("when", [[], ["yield"]], ids=["at once", "later"])
def test_a_body_longer_than_its_content_length(server, log, when):
    """It is cut, with a warning in the log, and the next response begins where it should."""
    with server.connect() as client:
        for steps in ([body("abcdef")], [body("ab", True), body("cd", True), body("ef")]):
            log.path.unlink(missing_ok=True)
            answer = client.get(play(log, *when, start(headers=[("Content-Length", "3")]), *steps))
            assert answer.body == b"abc"
            assert client.get("/hello").body == b"Hello, world!"
    assert "application sent more than its Content-Length on GET /play" in server.log


@pytest.mark.parametrize("when", [[], ["yield"]], ids=["at once", "later"])
@pytest.mark.parametrize("steps", [[body("abc")], [body("ab", True), body("c")]], ids=["whole", "streamed"])
def test_a_body_shorter_than_its_content_length(server, log, when, steps):
    """The connection is closed: the client must not wait for the rest, nor take the next response for it."""
    with server.connect() as client:
        client.request(play(log, *when, start(headers=[("content-length", "9")]), *steps))
        assert client.rest().endswith(b"\r\n\r\nabc")
    server.wait_log("application sent 6 bytes less than its Content-Length on GET /play")


@pytest.mark.parametrize("when", [[], ["yield"]], ids=["at once", "later"])
@pytest.mark.parametrize("steps", [[], [start()], ["receive"]], ids=["nothing", "start", "receive"])
def test_returning_without_a_response(server, log, when, steps):
    """The client gets a 500, the log has the reason, and the connection continues."""
    target = play(log, *when, *steps)
    with server.connect() as client:
        assert client.get(target).status == 500
        server.wait_log("application returned without a response on GET /play")
        assert client.get("/hello").status == 200


def test_returning_in_the_middle_of_a_response(server, log):
    """The connection ends early, which is how the client learns that the response is not complete."""
    with server.connect() as client:
        client.request(play(log, start(), body("begun", True)))
        assert client.rest().endswith(b"5\r\nbegun\r\n")
    server.wait_log("application returned without the end of its response on GET /play")


ERRORS = ["RuntimeError", "SystemExit", "KeyboardInterrupt", "BaseException", "CancelledError", "StopAsyncIteration"]


@pytest.mark.parametrize("error", ERRORS)
@pytest.mark.parametrize("when", [[], ["yield"]], ids=["at once", "later"])
@pytest.mark.parametrize("steps", [[], [start(headers=[("x-secret", "1")])]], ids=["nothing", "start"])
def test_an_error_before_the_head_is_sent(server, log, error, when, steps):
    """500, and a traceback in the log, whatever is raised; the worker and the connection continue."""
    before = worker(server)
    target = play(log, *when, *steps, "raise", error=error)
    with server.connect() as client:
        answer = client.get(target)
        assert (answer.status, answer.header("x-secret"), answer.text) == (500, None, "Internal Server Error\n")
        assert client.get("/hello").status == 200
    server.wait_log(rf"application failed on GET .*error={error}.*\n    Traceback")
    assert worker(server) == before


@pytest.mark.parametrize("error", ERRORS)
@pytest.mark.parametrize("when", [[], ["yield"]], ids=["at once", "later"])
def test_an_error_within_the_response(server, log, error, when):
    """The connection ends early, so the client knows that there should be more."""
    before = worker(server)
    with server.connect() as client:
        client.request(play(log, *when, start(), body("begun", True), "raise", error=error))
        assert client.rest().endswith(b"5\r\nbegun\r\n")
    assert worker(server) == before


@pytest.mark.parametrize("when", [[], ["yield"]], ids=["at once", "later"])
def test_an_error_after_the_response(server, log, when):
    """The client has its response; the log has the traceback."""
    with server.connect() as client:
        answer = client.get(play(log, start(), body("whole"), *when, "raise", error="RuntimeError", mark="afterwards"))
        assert (answer.status, answer.text) == (200, "whole")
        assert client.get("/hello").status == 200
    server.wait_log(r"application failed on GET .*mark=afterwards.*\n    Traceback")


WRONG = {
    "name": (start(headers=[("x y", "z")]), "HeadError"),
    "empty name": (start(headers=[("", "z")]), "HeadError"),
    "pseudo": (start(headers=[(":status", "200")]), "HeadError"),
    "break in a name": (start(headers=[("x\r\nleaked", "z")]), "HeadError"),
    "break in a value": (start(headers=[("x", "y\r\nleaked: 1")]), "HeadError"),
    "NUL in a value": (start(headers=[("x", "y\0")]), "HeadError"),
    "length": (start(headers=[("content-length", "ten")]), "HeadError"),
    "two lengths": (start(headers=[("content-length", "1"), ("content-length", "2")]), "HeadError"),
    "headers of numbers": ({"type": "http.response.start", "status": 200, "headers": 5}, "TypeError"),
    "header of three": ({"type": "http.response.start", "status": 200, "headers": [["a", "b", "c"]]}, "ValueError"),
    "status in text": (start("200"), "TypeError"),
    "status missing": ({"type": "http.response.start"}, "KeyError"),
    "status 99": (start(99), "HeadError"),
    "status 100": (start(100), "HeadError"),
    "status 1000": (start(1000), "HeadError"),
    "status -200": (start(-200), "HeadError"),
    "body first": (body("x"), "RuntimeError"),
    "no type": ({}, "KeyError"),
    "unknown type": ({"type": "http.response.nonsense"}, "RuntimeError"),
    "websocket": ({"type": "websocket.accept"}, "RuntimeError"),
    "push": ({"type": "http.response.push"}, "RuntimeError"),
    "trailers first": ({"type": "http.response.trailers"}, "RuntimeError"),
    "hint without a link": ({"type": "http.response.early_hint", "links": ["a\r\nb"]}, "HeadError"),
    "path first": ({"type": "http.response.pathsend", "path": "/dev/null"}, "RuntimeError"),
}


@pytest.mark.parametrize(("wrong", "error"), WRONG.values(), ids=WRONG)
def test_messages_that_may_not_be_sent(server, log, wrong, error):
    """`send` raises, nothing of the message is sent, and the application may still send a correct one."""
    with server.connect() as client:
        answer = client.get(play(log, wrong, start(headers=[("x-right", "1")]), body("right")))
        assert (answer.status, answer.header("x-right"), answer.text) == (200, "1", "right")
        assert answer.header("leaked") is None
        assert outcomes(log) == [error, "sent", "sent"]
        assert client.get("/hello").status == 200


LATE = {
    "start again": (start(), "RuntimeError"),
    "body in text": ({**body("text", True), "text": True}, "TypeError"),
    "hint": ({"type": "http.response.early_hint", "links": []}, "RuntimeError"),
    "no file": ({"type": "http.response.pathsend", "path": "/nowhere/at/all"}, "FileNotFoundError"),
    "a directory": ({"type": "http.response.pathsend", "path": "/tmp"}, "RuntimeError"),
    "no descriptor": ({"type": "http.response.zerocopysend", "file": 10_000}, "OSError"),
    "trailers": ({"type": "http.response.trailers"}, "RuntimeError"),
}


@pytest.mark.parametrize(("wrong", "error"), LATE.values(), ids=LATE)
@pytest.mark.parametrize("begun", [[], [body("begun ", True)]], ids=["start", "body"])
def test_messages_that_may_not_be_sent_after_the_start(server, log, wrong, error, begun):
    """`send` raises, as it does before the start."""
    with server.connect() as client:
        assert client.get(play(log, start(), *begun, wrong, body("right"))).text.endswith("right")
        assert [outcome for outcome in outcomes(log) if outcome != "sent"] == [error]
        assert client.get("/hello").status == 200


def test_headers_may_come_from_an_iterator(server, log):
    """Headers may be any iterable: nothing is lost of one that can be read only once, on the first call or a later one."""
    with server.connect() as client:
        for _ in range(3):
            answer = client.get(play(log, start(headers=[("x-one", "once"), ("x-two", "again")], iterator=True), body("right")))
            assert (answer.header("x-one"), answer.header("x-two")) == ("once", "again")


def test_messages_that_may_not_be_sent_after_the_end(server, log):
    """No message may be sent then, and none disturbs the next response."""
    with server.connect() as client:
        assert client.get(play(log, start(), body("whole"), body("more"), start(), "yield", body("more"))).text == "whole"
        assert client.get("/hello").body == b"Hello, world!"
        assert outcomes(log)[2:] == ["RuntimeError"] * 3


# --- Extensions


@pytest.mark.parametrize("when", [[], ["yield"]], ids=["at once", "later"])
@pytest.mark.parametrize("pieces", [["whole"], ["in ", "two"]], ids=["whole", "streamed"])
def test_trailers(server, log, when, pieces):
    """They follow the last chunk, from as many messages as the application likes; the next response follows them."""
    trailers = [
        {"type": "http.response.trailers", "headers": [["X-Sum", "1"]], "more_trailers": True},
        {"type": "http.response.trailers", "headers": [["X-More", "2"]]},
    ]
    bodies = [body(piece, piece != pieces[-1]) for piece in pieces]
    with server.connect() as client:
        answer = client.get(play(log, *when, start(trailers=True), *bodies, *when, *trailers), te="trailers")
        assert (answer.text, answer.trailers) == ("".join(pieces), [("x-sum", "1"), ("x-more", "2")])
        assert client.get("/hello").status == 200


@pytest.mark.parametrize(("method", "length"), [("HEAD", ""), ("GET", "3")])
def test_trailers_without_chunks(server, log, method, length):
    """A response without chunks has no place for trailers: they are dropped, unless the scope did not offer them (HEAD)."""
    head = start(trailers=method != "HEAD", headers=[("content-length", "3")] if length else [])
    more = [{"type": "http.response.trailers", "headers": [["X-Sum", "1"]]}] if length else []
    with server.connect() as client:
        answer = client.request(play(log, head, body("abc"), *more), method, te="trailers").response(method)
        assert (answer.body, answer.trailers) == (b"abc" if length else b"", [])
        assert client.get("/hello").status == 200


@pytest.mark.parametrize("field", [("content-length", "1"), ("x", "a\r\nb"), ("transfer-encoding", "chunked")])
def test_trailers_that_are_refused(server, log, field):
    """Fields for framing, and line breaks, raise an exception (RFC 9110 6.5.1)."""
    wrong = {"type": "http.response.trailers", "headers": [list(field)]}
    with server.connect() as client:
        end = {"type": "http.response.trailers"}
        answer = client.get(play(log, start(trailers=True), body("x"), wrong, end), te="trailers")
        assert (answer.text, answer.trailers) == ("x", [])
        assert outcomes(log)[2] == "HeadError"


@pytest.mark.parametrize("when", [[], ["yield"]], ids=["at once", "later"])
def test_early_hints(server, log, when):
    """103 with its links, as often as the application likes, then the response (RFC 8297)."""
    hint = {"type": "http.response.early_hint", "links": ["</a.css>; rel=preload", "</b.js>; rel=preload"]}
    with server.connect() as client:
        client.request(play(log, *when, hint, *when, hint, start(), body("x")))
        for _ in range(2):
            answer = client.response()
            assert (answer.status, answer.headers[:2]) == (103, [("link", link) for link in hint["links"]])
        assert client.response().text == "x"
        assert client.get("/hello").status == 200


@pytest.mark.every_trigger
def test_early_hints_in_a_pipeline(server, log):
    """They come after the responses to earlier requests."""
    hint = {"type": "http.response.early_hint", "links": ["</a.css>"]}
    with server.connect() as client:
        client.send(GET % b"/target?1", GET % play(log, hint, start(), body("x")).encode(), GET % b"/target?2")
        assert [client.response().status for _ in range(4)] == [200, 103, 200, 200]


@pytest.mark.parametrize("method", ["GET", "HEAD"])
@pytest.mark.parametrize("length", [False, True], ids=["no length", "length"])
@pytest.mark.parametrize("size", [0, 10, 5_000_000])
def test_a_file_by_its_path(server, log, tmp_path, method, length, size):
    """The whole file is sent with its length, whether the application gives a Content-Length or not."""
    path = tmp_path / "file"
    path.write_bytes(os.urandom(size))
    head = start(headers=[("content-length", str(size))] if length else [])
    with server.connect() as client:
        client.request(play(log, head, {"type": "http.response.pathsend", "path": str(path)}), method)
        answer = client.response(method)
        assert answer.header("content-length") == str(size)
        assert answer.body == (b"" if method == "HEAD" else path.read_bytes())
        assert client.get("/hello").status == 200


def test_a_fifo_in_the_place_of_a_file(server, log, tmp_path):
    """It is an error, and does not block the loop."""
    os.mkfifo(tmp_path / "fifo")
    wrong = {"type": "http.response.pathsend", "path": str(tmp_path / "fifo")}
    assert server.get(play(log, start(), wrong, body("right"))).text == "right"


@pytest.mark.every_trigger
@pytest.mark.parametrize(
    ("steps", "expected"),
    [
        ([[None, None]], "0123456789"),
        ([[3, None]], "3456789"),
        ([[3, 4]], "3456"),
        ([[8, 100]], "89"),
        ([[100, None]], ""),
        ([[None, 0]], ""),
        ([[None, 4], [None, 4], [None, 4]], "0123456789"),
        ([[7, 2], [None, 3]], "78012"),
        (["a", [None, 3], "b", [5, 1], "c"], "a012b5c"),
    ],
)
@pytest.mark.parametrize("how", ["", "&fd=1", "&length"], ids=["file", "descriptor", "length"])
def test_pieces_of_an_open_file(server, tmp_path, steps, expected, how):
    """From an offset, which leaves the file's position alone, or from its position, which moves; between other pieces."""
    path = tmp_path / "file"
    path.write_text("0123456789")
    how = how.replace("length", f"length={len(expected)}")
    with server.connect() as client:
        before = client.get("/files").text
        for _ in range(2):
            target = "/zerocopy?" + urlencode({"path": path, "script": json.dumps(steps)}) + how
            assert client.get(target).text == expected
        assert client.get("/files").text == before


def test_an_offset_before_the_file(server, tmp_path):
    """It is an error of the application, and is not taken for the client's end."""
    (tmp_path / "file").write_text("0123456789")
    assert server.get("/zerocopy?" + urlencode({"path": tmp_path / "file", "script": "[[-1, null]]"})).status == 500
    server.wait_log("ValueError: offset -1")


def test_a_pipe_instead_of_a_file_leaves_no_descriptor_open(server, tmp_path):
    """A pipe has no offset: that is the application's error, and the server's copy of the descriptor is closed."""
    os.mkfifo(tmp_path / "fifo")
    holder = os.open(tmp_path / "fifo", os.O_RDWR)
    try:
        with server.connect() as client:
            before = client.get("/files").text
            target = "/zerocopy?" + urlencode({"path": tmp_path / "fifo", "script": "[[null, null]]"})
            assert client.get(target).status == 500
            assert client.get("/files").text == before
    finally:
        os.close(holder)


# --- Order, context, turns


@pytest.mark.every_trigger
def test_late_responses_of_a_pipeline_keep_its_order(server):
    """The application has one request of a connection at a time, and the responses come in the order of the requests."""
    targets = [f"/pause?ms={number % 3}&i={number}" if number % 2 else f"/target?{number}" for number in range(60)]
    with server.connect() as client:
        client.send(*(GET % target.encode() for target in targets))
        assert [client.response().text for _ in targets] == targets


def test_requests_do_not_wait_for_each_other(server):
    """A hundred requests wait at the same time, not one after another."""
    with contextlib.ExitStack() as stack:
        clients = [stack.enter_context(server.connect()) for _ in range(100)]
        begun = time.monotonic()
        for client in clients:
            client.request("/pause?ms=200")
        assert all(client.response().status == 200 for client in clients)
        assert time.monotonic() - begun < 10 * SCALE  # one after another they would take 20


@pytest.mark.parametrize("late", ["", "?late=1"], ids=["at once", "late"])
def test_every_request_has_a_fresh_context(server, late):
    """A request's own tasks see its context variables, other requests do not, even in a pipeline. Each is a task of its own."""
    with server.connect() as client:
        client.send(*[GET % f"/context{late}".encode()] * 20)
        assert [client.response().text for _ in range(20)] == ["clean dirty False"] * 20
        assert [client.get(f"/context{late}").text for _ in range(3)] == ["clean dirty False"] * 3


def test_the_first_step_runs_in_the_turn_that_read_the_request(serve):
    """Requests of one packet are all begun, and answered, before asyncio has its turn."""
    server = serve(APP, own=True)
    with server.connect() as client:
        client.send(*[GET % b"/turn"] * 3)
        assert [client.response().text for _ in range(3)] == ["step", "step step", "step step step"]
        wait_for(lambda: "soon" in client.get("/turn").text)


# --- The end


def test_the_end_of_server_sent_events(serve, tmp_path):
    """SIGTERM with a hundred clients on endless streams: all streams end soon, and the worker exits."""
    server = serve(APP, own=True, graceful_timeout=60)
    notes = [Notes(tmp_path / f"log-{number}") for number in range(100)]
    with contextlib.ExitStack() as stack:
        clients = [stack.enter_context(server.connect()) for _ in notes]
        for number, (client, log) in enumerate(zip(clients, notes, strict=True)):
            client.request(f"/events?log={log}" + "&deaf=1" * (number % 2))
        for client in clients:
            while b"data: one" not in client.socket.recv(65536):
                pass
        server.signal(signal.SIGTERM)
        asked = time.monotonic()
        with ThreadPoolExecutor(8) as pool:
            assert set(pool.map(Client.rest, clients)) == {b"0\r\n\r\n"}
        assert time.monotonic() - asked < 10 * SCALE
        assert server.ended(5 * SCALE) == 0
    assert [log.lines for log in notes] == [["http.request", "http.disconnect"], ["cancelled"]] * 50
    assert "0 cut short" in server.log
    assert "Traceback" not in server.log


def test_requests_in_progress_finish_after_sigterm(serve, log, tmp_path):
    """Their responses are complete, and announce that the connection closes."""
    server = serve(APP, own=True, graceful_timeout=60, log_level="debug")
    with Gate(tmp_path / "gate") as gate, server.connect() as waiting, server.connect() as streaming:
        waiting.request(f"/gate?fifo={gate.path}")
        gate.wait()
        streaming.request(f"/paced?n=400&log={log}")
        wait_for(lambda: log.lines)
        server.signal(signal.SIGTERM)
        server.wait_log("draining: SIGTERM")
        gate.open()
        answer = waiting.response()
        assert (answer.text, answer.header("connection")) == ("through", "close")
        assert len(streaming.response().body) == 400 * 65536
        assert server.ended() == 0


def test_a_graceful_stop_waits_for_background_tasks(serve, log):
    """A framework's background tasks run after the response, in the same call: a graceful stop lets them finish."""
    server = serve(APP, own=True, graceful_timeout=60)
    assert server.get(f"/after?seconds=0.5&log={log}").text == "done"
    server.signal(signal.SIGTERM)
    assert server.ended() == 0
    assert log.lines == ["after"]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGQUIT])
def test_a_quick_stop_cancels_calls(serve, log, number):
    """The application's `finally` runs, and no traceback blames it."""
    server = serve(APP, own=True, graceful_timeout=60)
    with server.connect() as client:
        client.request(f"/sleep?log={log}")
        wait_for(lambda: log.lines)
        server.signal(number)
        assert server.ended(5 * SCALE) == 0
    assert log.lines == ["asleep", "woken"]
    assert "Traceback" not in server.log


def test_a_call_that_never_ends_is_cancelled_at_the_deadline(serve, log):
    """It is not cancelled before, and the log reports it."""
    server = serve(APP, own=True, graceful_timeout=1)
    with server.connect() as client:
        client.request(f"/sleep?log={log}")
        wait_for(lambda: log.lines)
        asked = time.monotonic()
        server.signal(signal.SIGTERM)
        assert server.ended() == 0
        assert time.monotonic() - asked > 1
    assert "still busy 1 s after it was asked to exit" in server.log
