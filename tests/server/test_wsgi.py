"""PEP 3333 to the letter: what applications are given, what they may do, and what becomes of those that do something else."""

import gzip
import json
import os
import time
from pathlib import Path
from urllib.parse import quote, urlencode

import pytest

from gates import Notes
from harness import SCALE, Client, wait_for

APP = "apps.routes:app"
pytestmark = pytest.mark.one_thread


@pytest.fixture
def server(serve):
    return serve(APP)


@pytest.fixture
def log(tmp_path):
    return Notes(tmp_path / "log")


def worker(server):
    """The worker's pid: asked before and after, it says that nobody died of it."""
    (pid,) = server.workers()
    return pid


def settled(look):
    """What `look` returns as soon as it has returned the same for a while."""
    seen = [look()]
    since = time.monotonic()

    def same():
        nonlocal since
        found = look()
        if found != seen[-1]:
            seen.append(found)
            since = time.monotonic()
        return time.monotonic() - since > 0.3 * SCALE

    wait_for(same, "it never settles")
    return seen[-1]


def failures(server, target):
    """How often the log says that the application failed there, each with a traceback."""
    return server.log.count(f"application failed on GET {target} of")


# --- environ


def test_environ(server, mode):
    """Every variable that PEP 3333 requires, as strings of latin-1, and what servers add by custom."""
    with server.connect() as client:
        port = client.socket.getsockname()[1]
        client.send(
            b"GET /environment?a=%20b HTTP/1.1\r\nHost: example.org:81\r\nCONTENT-type: text/x\r\nX-One: \t1 \r\nx-one: 2\r\n"
            b"Cookie: a=b\r\nCookie: c=d\r\nX-Bytes: \xc3\xa9\r\nX-Empty:\r\n\r\n"
        )
        environ = json.loads(client.response().text)
    expected = {
        "REQUEST_METHOD": "GET",
        "SCRIPT_NAME": "",
        "PATH_INFO": "/environment",
        "QUERY_STRING": "a=%20b",
        "REQUEST_URI": "/environment?a=%20b",
        "SERVER_NAME": "127.0.0.1",
        "SERVER_PORT": str(server.port),
        "SERVER_PROTOCOL": "HTTP/1.1",
        "REMOTE_ADDR": "127.0.0.1",
        "REMOTE_PORT": str(port),
        "CONTENT_TYPE": "text/x",
        "HTTP_HOST": "example.org:81",
        "HTTP_X_ONE": "1,2",
        "HTTP_COOKIE": "a=b; c=d",
        "HTTP_X_BYTES": "\xc3\xa9",
        "HTTP_X_EMPTY": "",
        "wsgi.version": [1, 0],
        "wsgi.url_scheme": "http",
        "wsgi.multithread": mode.threads > 1,
        "wsgi.multiprocess": False,
        "wsgi.run_once": False,
        "wsgi.input_terminated": True,
    }
    assert {name: environ.get(name) for name in expected} == expected
    assert "CONTENT_LENGTH" not in environ


def test_environ_of_a_body(server):
    """CONTENT_LENGTH where the client said one; a chunked body has none and ends by itself."""
    with server.connect() as client:
        environ = json.loads(client.post("/environment", b"abc").text)
        assert environ["CONTENT_LENGTH"] == "3"
        client.send(b"POST /environment HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n")
        environ = json.loads(client.response().text)
        assert "CONTENT_LENGTH" not in environ
        assert environ["wsgi.input_terminated"] is True


@pytest.mark.parametrize(
    ("target", "path"),
    [("/environment/%C3%A9%2f%2525", "/environment/\xc3\xa9/%25"), ("/environment//b/../c", None), ("/environment/%zz%", None)],
)
def test_path_info_is_decoded_once(server, target, path):
    """Percent-escapes become bytes, and bytes latin-1 (PEP 3333, "Unicode issues"); nothing else is changed."""
    with server.connect() as client:
        environ = json.loads(client.get(target).text)
        assert environ["PATH_INFO"] == (path or target)
        assert environ["REQUEST_URI"] == target


@pytest.mark.parametrize("name", ["X_Forwarded_For", "Content_Length", "x_One", "_", "Proxy", "PROXY"])
def test_names_that_would_pass_for_others_are_dropped(server, name):
    """CGI names cannot tell `_` from `-`: a header with one would pass for another; `Proxy` would be a setting (httpoxy)."""
    with server.connect() as client:
        client.send(f"GET /environment HTTP/1.1\r\nHost: a\r\nX-Kept: 1\r\n{name}: evil\r\n\r\n".encode())
        text = client.response().text
        assert "evil" not in text
        assert json.loads(text)["HTTP_X_KEPT"] == "1"


def test_an_environ_belongs_to_one_request(server):
    """What an application writes into it is gone with it."""
    with server.connect() as client:
        for _ in range(3):
            assert "marked" not in json.loads(client.get("/environment").text)


@pytest.mark.parametrize(
    "how", ["read", "read-none", "read-sized", "readline", "readline-sized", "readlines", "readlines-hint", "iter"]
)
@pytest.mark.parametrize("body", [b"", b"one line", b"two\nlines\n", b"\n\n\nx" * 100_000], ids=len)
def test_every_way_to_read(server, how, body):
    """read, readline, readlines and iteration are those of a file, in memory or not."""
    if how == "readline-sized" and len(body) > 1000:
        body = body[:270_000]
    with server.connect() as client:
        found = [piece.encode() for piece in json.loads(client.post("/read?how=" + how, body).text)]
        assert b"".join(found) == body
        if how in ("readline", "readlines", "iter"):
            assert found == body.splitlines(keepends=True)
        if how == "read-sized":
            assert all(len(piece) == 7 for piece in found[:-1])
        assert client.get("/hello").status == 200


VALID = [
    *(f"/read?how={how}" for how in ("read-sized", "readline", "readline-sized", "readlines", "readlines-hint", "iter", "not")),
    *("/hello", "/pieces", "/stream?n=5", "/stream?n=5&length=1", "/written", "/replaced", "/size?n=0", "/size?n=100000"),
    *("/closing?kind=whole&log=%s", "/closing?kind=empty&log=%s", "/one_thread?log=%s", "/environment", "/target"),
    *("/file?path=%s", "/file?path=%s&offset=5", "/file?path=%s&length=10"),
]


def test_wsgiref_finds_nothing(serve, tmp_path):
    """`wsgiref.validate` around everything that an application may do is silent: no error, no warning."""
    server = serve("apps.validated:app")
    path = tmp_path / "file"
    path.write_bytes(b"x" * 100_000)
    for version in b"HTTP/1.1", b"HTTP/1.0":
        for method in "GET", "POST", "HEAD":
            for target in VALID:
                one = target % path if "%s" in target else target
                body = b"a\nb\n" if method == "POST" else b""
                with server.connect() as client:
                    length = b"Content-Length: %d\r\n" % len(body) if body else b""
                    head = b"%b %b %b\r\nHost: a\r\nContent-Type: text/plain\r\n%b\r\n"
                    client.send(head % (method.encode(), one.encode(), version, length), body)
                    answer = client.response(method)
                    assert answer.status == (503 if target == "/replaced" else 200), (method, one, server.log)
    with server.connect() as client:
        client.send(b"POST /read?how=readlines HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n3\r\na\nb\r\n0\r\n\r\n")
        assert client.response().status == 200
        client.send(b"POST /read?how=iter HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\nContent-Length: 3\r\n\r\n")
        assert client.response().status == 100
        assert client.send(b"a\nb").response().status == 200
    assert "Traceback" not in server.log
    assert "Warning" not in server.log
    assert "Assertion" not in server.log
    assert server.log.count("errors.write\n") == server.log.count("errors.writelines\n") == 2 * 3 * len(VALID) + 2


# --- Answers


def test_write(server):
    """What `write()` is given comes before the result (PEP 3333, "The write() callable")."""
    with server.connect() as client:
        for _ in range(2):
            answer = client.get("/written")
            assert (answer.body, answer.header("transfer-encoding")) == (b"onetwothree", "chunked")


def test_pieces_of_a_list_have_one_length(server):
    """A list is whole: it needs no chunks."""
    with server.connect() as client:
        answer = client.get("/pieces")
        assert (answer.body, answer.header("content-length")) == (b"onetwothree", "11")


def test_headers_may_come_from_an_iterator(server):
    """PEP 3333 asks for a list. Of what is none nothing is lost either, the first time and the third."""
    with server.connect() as client:
        for _ in range(3):
            assert client.get("/iterated").header("x-read") == "once"


def test_what_was_answered_before_is_not_answered_again(serve):
    """The same request, and an application that gives the same list with other content: what it says now is judged and sent."""
    server = serve(APP, own=True)
    with server.connect() as client:
        for turn in range(1, 30):
            answer = client.get("/changing")
            if turn % 5 == 0:
                assert answer.status == 500
            else:
                assert (answer.status, answer.header("x-turn")) == (200 if turn % 3 else 203, str(turn))


def test_write_before_a_file(server, tmp_path):
    """One head, then what was written, then the file."""
    path = tmp_path / "file"
    path.write_bytes(os.urandom(100_000))
    with server.connect() as client:
        for _ in range(2):
            assert client.get(f"/written_then_file?path={path}").body == b"one" + path.read_bytes()


def test_exc_info_before_the_head_is_sent(server):
    """The new head replaces the old one, all of it."""
    with server.connect() as client:
        answer = client.get("/replaced")
        assert (answer.status, answer.header("x-first"), answer.body) == (503, None, b"replaced")


def test_exc_info_after_the_head_is_sent(server):
    """`start_response` raises it again; the client sees that the answer is not whole, the log says why."""
    pid, before = worker(server), failures(server, "/too_late")
    with server.connect() as client:
        client.request("/too_late")
        received = client.rest()
        assert received.endswith(b"\r\n\r\n5\r\nbegun\r\n")
    wait_for(lambda: failures(server, "/too_late") == before + 1)
    assert "ValueError: noticed too late" in server.log
    assert worker(server) == pid


@pytest.mark.parametrize("length", ["", "&length=1"])
def test_code_behind_the_last_piece_runs(server, log, length):
    """A generator is asked until it ends, not until its length is reached."""
    with server.connect() as client:
        answer = client.get(f"/stream?n=3{length}&log={log}")
        assert len(answer.body) == 30
        assert client.get("/hello").status == 200
        assert log.wait(1) == ["after the last piece"]


@pytest.mark.parametrize("method", ["GET", "HEAD"])
@pytest.mark.parametrize("kind", ["whole", "empty", "fails", "bad", "endless"])
def test_close_is_always_called(server, log, method, kind):
    """Once, whatever has become of the answer; here also when the client leaves in the middle."""
    target = f"/closing?kind={kind}&log={log}"
    with server.connect() as client:
        client.request(target, method)
        if kind == "endless" and method == "GET":
            assert client.socket.recv(100_000)
        elif kind == "fails" and method == "GET":
            assert client.rest().endswith(b"begun\r\n")
        else:
            assert client.response(method).status == (500 if kind == "bad" else 200)
    assert log.wait(1) == ["closed"]
    assert server.get("/hello").status == 200


def test_close_that_raises(server, log):
    """The client has its answer, and the log the reason."""
    with server.connect() as client:
        assert client.get(f"/closing?kind=whole&close=1&log={log}").body == b"onetwo"
        assert client.get("/hello").status == 200
    assert "RuntimeError: raised by close()" in server.log


def test_a_slow_reader_holds_the_generator(server, log):
    """Back-pressure: the application is not asked for what the client does not take, and no memory fills with it."""
    count = 400  # of 64 KiB: 25 MiB
    before = int(server.get("/memory").text)
    with Client(server.address, receive_buffer=4096) as client:
        client.request(f"/paced?n={count}&log={log}")
        client.socket.recv(10)
        held = len(settled(lambda: log.lines))
        assert 0 < held < count // 2
        received = 0
        while received < count * 65536:
            received += len(client.socket.recv(1 << 20))
    assert int(server.get("/memory").text) - before < 8 * 1024
    assert log.lines == [str(number) for number in range(count)]


def test_a_slow_reader_that_leaves(server, log):
    """The generator is let go, and its thread with it."""
    for _ in range(10):  # more than there are threads
        with Client(server.address, receive_buffer=4096) as client:
            client.request(f"/closing?kind=endless&log={log}")
            client.socket.recv(10)
    log.wait(10)
    assert server.get("/hello").status == 200


def test_a_client_that_leaves_who_is_written_to(server, log):
    """`write()` raises, or an application that goes on for ever would keep its thread. That is no fault of the application."""
    for count in range(1, 11):  # more than there are threads
        with server.connect() as client:
            client.request(f"/written_without_end?log={log}")
            client.socket.recv(10)
        log.wait(count)
    assert server.get("/hello").status == 200
    assert log.lines == ["ClientGoneError"] * 10
    assert "application failed on GET /written_without_end" not in server.log


# --- Files


@pytest.fixture
def path(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(os.urandom(3_000_000))
    return path


@pytest.mark.parametrize("offset", [0, 1, 65536, 2_999_999, 3_000_000, 3_000_001])
@pytest.mark.parametrize("buffering", [-1, 0])
def test_a_file_from_its_position(server, path, offset, buffering):
    """From where the application left it, to its end; twice over one connection."""
    content = path.read_bytes()[offset:]
    with server.connect() as client:
        for _ in range(2):
            answer = client.get(f"/file?path={path}&offset={offset}&buffering={buffering}")
            assert answer.body == content
            assert answer.header("content-length") == str(len(content))


@pytest.mark.parametrize("length", [0, 1, 10, 65537, 2_999_994])
def test_a_file_is_cut_at_its_length(server, path, length):
    """PEP 3333: a Content-Length that is shorter than the file wins."""
    with server.connect() as client:
        for _ in range(2):
            assert client.get(f"/file?path={path}&offset=5&length={length}").body == path.read_bytes()[5 : 5 + length]


def test_a_file_for_http_1_0_and_for_head(server, path, log):
    """HEAD has the file's length and none of it; the file is closed all the same."""
    with server.connect() as client:
        answer = client.request(f"/file?path={path}&log={log}", "HEAD").response("HEAD")
        assert answer.header("content-length") == "3000000"
        client.send(f"GET /file?path={path}&log={log} HTTP/1.0\r\nConnection: keep-alive\r\n\r\n".encode())
        assert client.response().body == path.read_bytes()
        assert client.get(f"/file?path={path}&log={log}&status=304+Not+Modified").body == b""
        assert client.get("/hello").status == 200
    assert log.wait(3) == ["closed True"] * 3


def test_a_file_that_is_too_short(server, path):
    """A length that cannot be kept ends with the connection, not with silence."""
    with server.connect() as client:
        client.request(f"/file?path={path}&length=3000001")
        with pytest.raises(AssertionError, match="the end came after"):
            client.response()
    assert "1 bytes less than its Content-Length" in server.log


def test_a_file_in_a_pipeline(server, path):
    """Answers before and behind it keep their places."""
    with server.connect() as client:
        for target in "/target?1", f"/file?path={path}", "/target?2", f"/file?path={path}&offset=2999990", "/target?3":
            client.request(target)
        assert client.response().text == "/target?1"
        assert client.response().body == path.read_bytes()
        assert client.response().text == "/target?2"
        assert client.response().body == path.read_bytes()[-10:]
        assert client.response().text == "/target?3"


def test_a_file_for_a_client_that_was_refused(server, path):
    """Nothing of it follows the refusal, nor hurries its end."""
    with server.connect() as client:
        client.send(f"POST /read_then_file?path={path} HTTP/1.1\r\nHost: test\r\nExpect: 100-continue\r\n".encode())
        client.send(b"Transfer-Encoding: chunked\r\n\r\n")
        assert client.response().status == 100
        client.send(b"no size\r\n")
        assert client.response().status == 400
        assert server.get("/hello").status == 200  # by now the application has answered, too
        for _ in range(8):
            client.send(b"x" * 100_000)
        assert client.rest() == b""


def test_a_large_file_costs_no_memory(server, tmp_path):
    """sendfile(2): a gigabyte goes through a process that never holds it."""
    path = tmp_path / "sparse"
    with path.open("wb") as file:
        file.truncate(1 << 30)
    before = int(server.get("/memory").text)
    with server.connect() as client:
        client.request(f"/file?path={path}")
        total = 0
        buffer = bytearray(1 << 20)
        while total < 1 << 30:
            received = client.socket.recv_into(buffer)
            assert received
            total += received
            if total > 200_000_000:
                assert server.get("/hello").status == 200  # others go on meanwhile
                break
    assert int(server.get("/memory").text) - before < 4 * 1024


def test_a_file_is_closed_while_a_slow_client_reads(server, path, log):
    """The client gets all of it: the server has a descriptor of its own, and gives it back."""
    with server.connect() as watcher:
        before = int(watcher.get("/fds").text)
        with Client(server.address, receive_buffer=4096) as client:
            client.request(f"/file?path={path}&log={log}")
            assert log.wait(1) == ["closed True"]
            assert client.response().body == path.read_bytes()
        with Client(server.address, receive_buffer=4096) as client:
            client.request(f"/file?path={path}&log={log}")
            log.wait(2)  # ... and leaves
        wait_for(lambda: int(watcher.get("/fds").text) <= before)


@pytest.mark.parametrize("kind", ["memory", "gzip"])
def test_what_is_not_a_plain_file_is_read(server, tmp_path, kind):
    """No descriptor, or one with other bytes than `read` gives: the wrapper is read like any iterable."""
    content = b"text " * 100_000
    path = tmp_path / "file"
    path.write_bytes(gzip.compress(content) if kind == "gzip" else content)
    assert server.get(f"/filelike?kind={kind}&path={path}").body == content


def test_a_file_without_a_size(server):
    """Files of proc(5) say they are empty and are not."""
    assert b"Name:" in server.get("/file?path=/proc/self/status").body


# --- Applications that do what they must not


@pytest.mark.parametrize("error", ["error", "exit", "interrupt", "base", "stop"])
@pytest.mark.parametrize("when", ["before", "after"])
def test_whatever_is_raised_is_a_500(server, error, when):
    """The client hears that it failed and nothing more, the log has the traceback, worker and connection go on."""
    pid = worker(server)
    target = f"/raises?error={error}&when={when}"
    before = failures(server, target)
    with server.connect() as client:
        for turn in range(1, 3):
            answer = client.get(target)
            assert (answer.status, answer.header("x-secret")) == (500, None)
            assert "raised" not in answer.text
            wait_for(lambda turn=turn: failures(server, target) == before + turn)
        assert client.get("/pid").text == str(pid)
    assert "raised on purpose" in server.log
    assert worker(server) == pid


def test_a_generator_that_raises_at_once(server):
    """Nothing is sent yet: a 500 as from any application."""
    with server.connect() as client:
        assert client.get("/raises_later").status == 500
        assert client.get("/hello").status == 200


def test_a_generator_that_raises_in_the_middle(server):
    """The head is gone: the connection ends without the last chunk, so the client knows."""
    pid = worker(server)
    with server.connect() as client:
        client.request("/raises_later?begun=1")
        received = client.rest()
        assert received.endswith(b"5\r\nbegun\r\n")
    assert server.get("/pid").text == str(pid)


BAD = [
    *(
        "no start",
        "no start, generator",
        "start twice",
        "status bytes",
        "status 99",
        "status 1xx",
        "status break",
        "header bytes",
    ),
    *("length text", "lengths", "unicode header", "str", "str, generator", "write str", "none", "number"),
]


@pytest.mark.parametrize("kind", BAD)
def test_what_the_pep_forbids_is_a_500(server, kind):
    """Said in the log with a traceback; not a byte of it reaches the client."""
    target = "/bad?" + urlencode({"kind": kind}, quote_via=quote)
    before = failures(server, target)
    with server.connect() as client:
        answer = client.get(target)
        assert answer.status == 500
        assert answer.header("x-leaked") is None
        wait_for(lambda: failures(server, target) == before + 1)
        assert client.get("/hello").status == 200


@pytest.mark.parametrize("codes", ["13,10", "10", "13", "0", "127", "7", "8364"])
@pytest.mark.parametrize("where", ["name", "value"])
def test_no_line_break_gets_into_an_answer(server, codes, where):
    """Response splitting: CR, LF, NUL and all other control characters in a header are a 500."""
    with server.connect() as client:
        answer = client.get(f"/bad_header?codes={codes}&{where}=1")
        assert answer.status == 500
        assert b"leaked" not in answer.body
        assert not [name for name, _ in answer.headers if name.startswith("x-")]
        assert client.get("/hello").status == 200


@pytest.mark.parametrize("kind", ["", "&list=1"])
def test_more_than_was_promised_is_cut(server, kind):
    """Content-Length holds: what is over it would be read as the next answer."""
    with server.connect() as client:
        assert client.get(f"/length?length=3&bytes=5{kind}").body == b"xxx"
        assert client.get("/hello").body == b"Hello, world!"
    assert "more than its Content-Length" in server.log


@pytest.mark.parametrize("kind", ["", "&list=1"])
def test_less_than_was_promised_ends_the_connection(server, kind):
    """The client is not left to wait for the rest."""
    with server.connect() as client:
        client.request(f"/length?length=5&bytes=3{kind}")
        assert client.rest().endswith(b"\r\n\r\nxxx")
    assert "2 bytes less than its Content-Length" in server.log


def test_no_name_of_a_temporary_file_is_left(serve, tmp_path):
    """A large body lives in a file that has no name, in the directory that TMPDIR names."""
    directory = tmp_path / "temporary"
    directory.mkdir()
    server = serve(APP, own=True, env={"TMPDIR": str(directory)})
    with server.connect() as client:
        client.send(b"POST /digest HTTP/1.1\r\nHost: a\r\nContent-Length: 2000000\r\n\r\n", b"x" * 1_999_999)
        pid = worker(server)

        def deleted():
            links = [os.readlink(one) for one in Path(f"/proc/{pid}/fd").iterdir() if one.is_symlink()]
            return [link for link in links if link.startswith(str(directory)) and link.endswith("(deleted)")]

        assert len(wait_for(deleted, "no unnamed file")) == 1
        assert list(directory.iterdir()) == []
        assert json.loads(client.send(b"x").response().text)["length"] == 2_000_000
        assert client.get("/hello").status == 200
        wait_for(lambda: not deleted(), "the file is still held")
