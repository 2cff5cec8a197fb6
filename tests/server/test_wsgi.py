"""PEP 3333 to the letter: the input of an application, everything that it may do, and the result of what it must not do.

Long: one page for one specification, in its order: environ, responses, files, violations.
"""

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
    """The worker's pid. If it is the same before and after, the worker survived."""
    (pid,) = server.workers()
    return pid


def settled(sample):
    """The value that `sample` returns, once that has not changed for a while."""
    seen = [sample()]
    since = time.monotonic()

    def same():
        nonlocal since
        found = sample()
        if found != seen[-1]:
            seen.append(found)
            since = time.monotonic()
        return time.monotonic() - since > 0.3 * SCALE

    wait_for(same, "it never settles")
    return seen[-1]


def failures(server, target):
    """How often the log reports that the application failed on that target."""
    return server.log.count(f"application failed on GET {target} of")


# --- environ


def test_environ(server, mode):
    """It has every variable that PEP 3333 requires, as strings of latin-1, and those that servers add by custom."""
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
    """CONTENT_LENGTH is there if the client sent one; a chunked body has none, and its input ends by itself."""
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
def test_names_that_could_pass_for_others_are_dropped(server, name):
    """CGI names do not distinguish `_` from `-`, so one header could pass for another. `Proxy` would be a setting (httpoxy)."""
    with server.connect() as client:
        client.send(f"GET /environment HTTP/1.1\r\nHost: a\r\nX-Kept: 1\r\n{name}: evil\r\n\r\n".encode())
        text = client.response().text
        assert "evil" not in text
        assert json.loads(text)["HTTP_X_KEPT"] == "1"


def test_an_environ_belongs_to_one_request(server):
    """A key that an application adds is not there in the next request."""
    with server.connect() as client:
        for _ in range(3):
            assert "marked" not in json.loads(client.get("/environment").text)


@pytest.mark.every_trigger
@pytest.mark.parametrize(
    "how", ["read", "read-none", "read-sized", "readline", "readline-sized", "readlines", "readlines-hint", "iter"]
)
@pytest.mark.parametrize("body", [b"", b"one line", b"two\nlines\n", b"\n\n\nx" * 100_000], ids=len)
def test_every_way_to_read(server, how, body):
    """read, readline, readlines and iteration work as those of a file, whether the body is in memory or not."""
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
    """`wsgiref.validate` raises no error and gives no warning, whatever an application does that it may do."""
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
                    response = client.response(method)
                    assert response.status == (503 if target == "/replaced" else 200), (method, one, server.log)
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


# --- Responses


def test_write(server):
    """Data given to `write()` is sent before the result (PEP 3333, "The write() callable")."""
    with server.connect() as client:
        for _ in range(2):
            response = client.get("/written")
            assert (response.body, response.header("transfer-encoding")) == (b"onetwothree", "chunked")


def test_pieces_of_a_list_have_one_length(server):
    """The length of a list is known, so it is not chunked."""
    with server.connect() as client:
        response = client.get("/pieces")
        assert (response.body, response.header("content-length")) == (b"onetwothree", "11")


def test_headers_may_come_from_an_iterator(server):
    """PEP 3333 asks for a list. An iterator works too, the first time and the third."""
    with server.connect() as client:
        for _ in range(3):
            assert client.get("/iterated").header("x-read") == "once"


def test_a_changed_list_of_headers_is_judged_again(serve):
    """An application that passes the same list with other content gets the head of that content, or a 500 if it is bad."""
    server = serve(APP, own=True)
    with server.connect() as client:
        for turn in range(1, 30):
            response = client.get("/changing")
            if turn % 5 == 0:
                assert response.status == 500
            else:
                assert (response.status, response.header("x-turn")) == (200 if turn % 3 else 203, str(turn))


def test_write_before_a_file(server, tmp_path):
    """One head, then the data that was written, then the file."""
    path = tmp_path / "file"
    path.write_bytes(os.urandom(100_000))
    with server.connect() as client:
        for _ in range(2):
            assert client.get(f"/written_then_file?path={path}").body == b"one" + path.read_bytes()


def test_exc_info_before_the_head_is_sent(server):
    """The new head replaces the old one, all of it."""
    with server.connect() as client:
        response = client.get("/replaced")
        assert (response.status, response.header("x-first"), response.body) == (503, None, b"replaced")


def test_exc_info_after_the_head_is_sent(server):
    """`start_response` raises it again; the client sees that the response is incomplete, and the log has the reason."""
    pid, before = worker(server), failures(server, "/too_late")
    with server.connect() as client:
        client.request("/too_late")
        received = client.rest()
        assert received.endswith(b"\r\n\r\n5\r\nbegun\r\n")
    wait_for(lambda: failures(server, "/too_late") == before + 1)
    assert "ValueError: noticed too late" in server.log
    assert worker(server) == pid


@pytest.mark.parametrize("length", ["", "&length=1"])
def test_code_after_the_last_piece_runs(server, log, length):
    """A generator is run to its end, not only until its Content-Length is reached."""
    with server.connect() as client:
        response = client.get(f"/stream?n=3{length}&log={log}")
        assert len(response.body) == 30
        assert client.get("/hello").status == 200
        assert log.wait(1) == ["after the last piece"]


@pytest.mark.parametrize("method", ["GET", "HEAD"])
@pytest.mark.parametrize("kind", ["whole", "empty", "fails", "bad", "endless"])
def test_close_is_always_called(server, log, method, kind):
    """It is called once, whether the response succeeds or not, and also if the client leaves in the middle."""
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
    """The client has its response, and the log has the traceback."""
    with server.connect() as client:
        assert client.get(f"/closing?kind=whole&close=1&log={log}").body == b"onetwo"
        assert client.get("/hello").status == 200
    assert "RuntimeError: raised by close()" in server.log


@pytest.mark.every_trigger
def test_a_slow_reader_holds_the_generator(server, log):
    """Back-pressure: while the client takes nothing, the application is asked for nothing, so memory does not fill."""
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


@pytest.mark.every_trigger
def test_a_slow_reader_that_leaves(server, log):
    """The generator is closed, and its thread is free again."""
    for _ in range(10):  # more than there are threads
        with Client(server.address, receive_buffer=4096) as client:
            client.request(f"/closing?kind=endless&log={log}")
            client.socket.recv(10)
    log.wait(10)
    assert server.get("/hello").status == 200


@pytest.mark.every_trigger
def test_write_to_a_client_that_left(server, log):
    """`write()` raises, because an application that writes without end would keep its thread. The log does not blame it."""
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
    """A file is sent from its current position to its end; twice over one connection."""
    content = path.read_bytes()[offset:]
    with server.connect() as client:
        for _ in range(2):
            response = client.get(f"/file?path={path}&offset={offset}&buffering={buffering}")
            assert response.body == content
            assert response.header("content-length") == str(len(content))


@pytest.mark.parametrize("length", [0, 1, 10, 65537, 2_999_994])
def test_a_file_is_cut_at_its_length(server, path, length):
    """PEP 3333: no more than the Content-Length is sent of a longer file."""
    with server.connect() as client:
        for _ in range(2):
            assert client.get(f"/file?path={path}&offset=5&length={length}").body == path.read_bytes()[5 : 5 + length]


def test_a_file_for_http_1_0_and_for_head(server, path, log):
    """The response to HEAD has the length of the file and no body. The file is closed all the same."""
    with server.connect() as client:
        response = client.request(f"/file?path={path}&log={log}", "HEAD").response("HEAD")
        assert response.header("content-length") == "3000000"
        client.send(f"GET /file?path={path}&log={log} HTTP/1.0\r\nConnection: keep-alive\r\n\r\n".encode())
        assert client.response().body == path.read_bytes()
        assert client.get(f"/file?path={path}&log={log}&status=304+Not+Modified").body == b""
        assert client.get("/hello").status == 200
    assert log.wait(3) == ["closed True"] * 3


def test_a_file_that_is_too_short(server, path):
    """A Content-Length that cannot be met ends the connection, so that the client does not wait for more."""
    with server.connect() as client:
        client.request(f"/file?path={path}&length=3000001")
        with pytest.raises(AssertionError, match="the connection ended after"):
            client.response()
    assert "1 bytes less than its Content-Length" in server.log


@pytest.mark.every_trigger
def test_a_file_in_a_pipeline(server, path):
    """The responses before and after it stay in order."""
    with server.connect() as client:
        for target in "/target?1", f"/file?path={path}", "/target?2", f"/file?path={path}&offset=2999990", "/target?3":
            client.request(target)
        assert client.response().text == "/target?1"
        assert client.response().body == path.read_bytes()
        assert client.response().text == "/target?2"
        assert client.response().body == path.read_bytes()[-10:]
        assert client.response().text == "/target?3"


@pytest.mark.every_trigger
def test_a_file_for_a_client_that_was_refused(server, path):
    """No byte of it follows the refusal, and the connection lingers as after any refusal."""
    with server.connect() as client:
        client.send(f"POST /read_then_file?path={path} HTTP/1.1\r\nHost: test\r\nExpect: 100-continue\r\n".encode())
        client.send(b"Transfer-Encoding: chunked\r\n\r\n")
        assert client.response().status == 100
        client.send(b"no size\r\n")
        assert client.response().status == 400
        assert server.get("/hello").status == 200  # by now the application has returned, too
        for _ in range(8):
            client.send(b"x" * 100_000)
        assert client.rest() == b""


def test_a_large_file_costs_no_memory(server, tmp_path):
    """sendfile(2): a gigabyte is sent without being read into the memory of the process."""
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


@pytest.mark.every_trigger
def test_a_file_is_closed_while_a_slow_client_reads(server, path, log):
    """The client gets all of it: the server sends from a descriptor of its own, and closes that at the end."""
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
def test_an_object_that_is_not_a_regular_file_is_read(server, tmp_path, kind):
    """If it has no descriptor, or one with other bytes than `read` gives, the wrapper is read like any iterable."""
    content = b"text " * 100_000
    path = tmp_path / "file"
    path.write_bytes(gzip.compress(content) if kind == "gzip" else content)
    assert server.get(f"/filelike?kind={kind}&path={path}").body == content


def test_a_file_without_a_size(server):
    """Files of proc(5) have size 0 and content all the same."""
    assert b"Name:" in server.get("/file?path=/proc/self/status").body


# --- Applications that break the rules


@pytest.mark.parametrize("error", ["error", "exit", "interrupt", "base", "stop"])
@pytest.mark.parametrize("when", ["before", "after"])
def test_every_exception_is_a_500(server, error, when):
    """The client gets no details, the log has the traceback, and worker and connection continue."""
    pid = worker(server)
    target = f"/raises?error={error}&when={when}"
    before = failures(server, target)
    with server.connect() as client:
        for turn in range(1, 3):
            response = client.get(target)
            assert (response.status, response.header("x-secret")) == (500, None)
            assert "raised" not in response.text
            wait_for(lambda turn=turn: failures(server, target) == before + turn)
        assert client.get("/pid").text == str(pid)
    assert "raised on purpose" in server.log
    assert worker(server) == pid


def test_a_generator_that_raises_at_once(server):
    """Nothing has been sent yet, so the response is a 500."""
    with server.connect() as client:
        assert client.get("/raises_later").status == 500
        assert client.get("/hello").status == 200


def test_a_generator_that_raises_in_the_middle(server):
    """The head has been sent: the connection ends without the last chunk, so the client knows that it failed."""
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
def test_a_response_that_the_pep_forbids_is_a_500(server, kind):
    """The log has a traceback; no byte of the bad response reaches the client."""
    target = "/bad?" + urlencode({"kind": kind}, quote_via=quote)
    before = failures(server, target)
    with server.connect() as client:
        response = client.get(target)
        assert response.status == 500
        assert response.header("x-leaked") is None
        wait_for(lambda: failures(server, target) == before + 1)
        assert client.get("/hello").status == 200


@pytest.mark.parametrize("codes", ["13,10", "10", "13", "0", "127", "7", "8364"])
@pytest.mark.parametrize("where", ["name", "value"])
def test_no_line_break_gets_into_a_head(server, codes, where):
    """Response splitting: CR, LF, NUL and all other control characters in a header are a 500."""
    with server.connect() as client:
        response = client.get(f"/bad_header?codes={codes}&{where}=1")
        assert response.status == 500
        assert b"leaked" not in response.body
        assert not [name for name, _ in response.headers if name.startswith("x-")]
        assert client.get("/hello").status == 200


@pytest.mark.parametrize("kind", ["", "&list=1"])
def test_a_body_longer_than_its_content_length_is_cut(server, kind):
    """The excess would be read as the next response."""
    with server.connect() as client:
        assert client.get(f"/length?length=3&bytes=5{kind}").body == b"xxx"
        assert client.get("/hello").body == b"Hello, world!"
    assert "more than its Content-Length" in server.log


@pytest.mark.parametrize("kind", ["", "&list=1"])
def test_a_body_shorter_than_its_content_length_ends_the_connection(server, kind):
    """The client does not wait for the rest."""
    with server.connect() as client:
        client.request(f"/length?length=5&bytes=3{kind}")
        assert client.rest().endswith(b"\r\n\r\nxxx")
    assert "2 bytes less than its Content-Length" in server.log


def test_no_name_of_a_temporary_file_is_left(serve, tmp_path):
    """A large body is kept in a file without a name, in the directory that TMPDIR names."""
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
