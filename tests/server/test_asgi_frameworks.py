"""Starlette, FastAPI, Django and Quart in common use: the promises of their documentation hold over the wire."""

import hashlib
import os
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import httpx
import pytest

from gates import Notes
from harness import WAIT, wait_for

APPS = {
    "Starlette": "apps.starlette_app:app",
    "FastAPI": "apps.fastapi_app:app",
    "Django": "apps.django_asgi:app",
    "Quart": "apps.quart_app:app",
}
pytestmark = pytest.mark.interfaces("asgi")


@pytest.fixture
def log(tmp_path):
    return Notes(tmp_path / "log")


@contextmanager
def client_of(serve, framework):
    pytest.importorskip(framework.lower())
    server = serve(APPS[framework], env={"PYTHONWARNINGS": ""})
    with httpx.Client(base_url=server.url, timeout=WAIT, trust_env=False) as client:
        client.server = server  # type: ignore[attr-defined]
        yield client


@pytest.fixture
def starlette(serve):
    with client_of(serve, "Starlette") as client:
        yield client


@pytest.fixture
def fastapi(serve):
    with client_of(serve, "FastAPI") as client:
        yield client


@pytest.fixture
def django(serve):
    with client_of(serve, "Django") as client:
        yield client


@pytest.fixture(params=["Starlette", "Django", "Quart"])
def client(serve, request):
    with client_of(serve, request.param) as client:
        client.framework = request.param
        yield client


def digest(content):
    return hashlib.sha256(content).hexdigest()


# --- What all of them have


def test_pages_and_errors(client):
    """200, 404 and 500 are the framework's own; after an error the server continues."""
    for _ in range(2):
        assert client.get("/").text == f"Hello from {client.framework}"
        assert client.get("/missing").status_code == 404
        assert client.get("/error").status_code == 500
        assert client.head("/").status_code == 200


@pytest.mark.parametrize("size", [0, 1000, 3_000_000])
def test_uploads(client, size):
    """Multipart bodies arrive, whether the framework keeps them in memory or in a file."""
    content = os.urandom(size)
    target = "/form" if client.framework == "Starlette" else "/upload"
    found = client.post(target, files={"file": ("name.bin", content)}, data={"word": "caf\u00e9"}).json()
    assert (found["name"], found["sha256"]) == ("name.bin", digest(content))
    assert found.get("word", "caf\u00e9") == "caf\u00e9"


def test_a_body_without_a_length(client):
    """A chunked body reaches the framework whole."""
    assert client.post("/raw", content=iter([b"x" * 1000] * 100)).json()["length"] == 100_000


def test_sessions(client):
    """Cookies are sent and come back."""
    assert [client.get("/count").text for _ in range(3)] == ["1", "2", "3"]


def test_streams(client):
    """Generators stream, many at the same time."""

    def ask(word):
        with httpx.Client(base_url=client.base_url, timeout=WAIT, trust_env=False) as own:
            return own.get("/stream", params={"word": word}).text

    with ThreadPoolExecutor(6) as pool:
        words = [f"word{number}" for number in range(12)]
        for word, text in zip(words, pool.map(ask, words), strict=True):
            assert text == "".join(f"{word} {number}\n" for number in range(50))


# --- Starlette


@pytest.mark.parametrize("path", ["/state", "/wrapped/state"])
def test_lifespan_state(starlette, path):
    """`request.state` has what the lifespan yielded, behind middleware too."""
    assert [starlette.get(path).text for _ in range(2)] == ["Hello from the lifespan"] * 2


def test_views_in_threads(starlette):
    """A view that is not asynchronous does not block the loop."""
    assert starlette.get("/in_a_thread").text == "no loop here"
    assert starlette.get("/threaded_stream").text == "".join(f"{number}\n" for number in range(50))


def test_exceptions(starlette):
    """Exceptions that stand for responses are not logged as errors."""
    answer = starlette.get("/teapot")
    assert (answer.status_code, answer.text) == (418, "short and stout")
    assert starlette.get("/away", follow_redirects=True).text == "Hello from Starlette"


@pytest.mark.parametrize("prefix", ["", "/wrapped"])
def test_background_tasks(starlette, log, tmp_path, prefix):
    """They run after the client has its response, and the connection continues meanwhile."""
    gate = tmp_path / "gate"
    answer = starlette.get(prefix + "/background", params={"log": str(log), "gate": str(gate)})
    assert answer.text == "answered"
    assert starlette.get("/").status_code == 200
    assert log.lines == []
    gate.touch()
    assert log.wait(1) == ["background"]


@pytest.mark.parametrize("prefix", ["", "/wrapped"])
@pytest.mark.parametrize("how", ["close", "reset"])
@pytest.mark.parametrize(("stream", "last"), [("events", b"data: 3"), ("waiting", b"once")])
def test_a_stream_ends_with_its_client(starlette, log, prefix, how, stream, last):
    """A client that leaves ends the generator soon, and the application is not blamed.

    This holds for a stream of events that come one by one, and for one that waits: there nothing is written
    that could fail, and the disconnect is the only sign.
    """
    before = starlette.server.log
    with starlette.server.connect() as client:
        client.request(f"{prefix}/{stream}?log={log}")
        received = b""
        while last not in received:
            received += client.socket.recv(65536)
        getattr(client, how)()
        assert log.wait(1) == ["the stream ended"]
    assert starlette.get("/").status_code == 200
    assert "Traceback" not in starlette.server.log[len(before) :]


@pytest.mark.parametrize("how", ["close", "reset", "half_close"])
def test_is_disconnected(starlette, log, how):
    """A long poll learns that its client has left. (Behind `BaseHTTPMiddleware` Starlette reports it with no server.)"""
    with starlette.server.connect() as client:
        client.request(f"/disconnected?log={log}")
        wait_for(lambda: log.lines)
        getattr(client, how)()
        assert log.wait(2) == ["polling", "disconnected"]


@pytest.mark.parametrize("size", [0, 10, 3_000_000])
@pytest.mark.parametrize("prefix", ["", "/wrapped"])
def test_files(starlette, tmp_path, size, prefix):
    """They are sent by `http.response.pathsend` if no middleware stands between; with validators, and for HEAD."""
    path = tmp_path / "file.bin"
    path.write_bytes(os.urandom(size))
    for _ in range(2):
        answer = starlette.get(prefix + "/file", params={"path": str(path)}, headers={"accept-encoding": "identity"})
        assert (answer.status_code, answer.content) == (200, path.read_bytes())
        assert answer.headers["accept-ranges"] == "bytes"
        assert answer.headers["content-disposition"] == 'attachment; filename="name.bin"'


@pytest.mark.parametrize(
    ("asked", "status", "expected"),
    [
        ("bytes=0-3", 206, slice(0, 4)),
        ("bytes=5-", 206, slice(5, None)),
        ("bytes=-7", 206, slice(-7, None)),
        ("bytes=100000-2000000", 206, slice(100_000, 2_000_001)),
        ("bytes=99999999-", 416, None),
    ],
)
def test_ranges(starlette, tmp_path, asked, status, expected):
    """Ranges of a file (RFC 9110 14) are sent as long as the file is the same."""
    path = tmp_path / "file.bin"
    path.write_bytes(os.urandom(3_000_000))
    answer = starlette.get("/file", params={"path": str(path)}, headers={"range": asked})
    assert answer.status_code == status
    if expected:
        assert answer.content == path.read_bytes()[expected]
        etag = answer.headers["etag"]
        again = starlette.get("/file", params={"path": str(path)}, headers={"range": asked, "if-range": etag})
        assert again.content == answer.content
        os.utime(path, (1, 1))
        changed = starlette.get("/file", params={"path": str(path)}, headers={"range": asked, "if-range": etag})
        assert (changed.status_code, len(changed.content)) == (200, 3_000_000)


def test_several_ranges(starlette, tmp_path):
    """The response is multipart/byteranges, with the length that was announced."""
    path = tmp_path / "file.bin"
    path.write_bytes(b"0123456789" * 1000)
    answer = starlette.get("/file", params={"path": str(path)}, headers={"range": "bytes=0-4,9000-9004"})
    assert answer.status_code == 206
    assert answer.content.count(b"\r\n01234\r\n") == 2
    assert int(answer.headers["content-length"]) == len(answer.content)


def test_middleware(starlette):
    """`BaseHTTPMiddleware` may read the body before the view does; responses may be compressed."""
    answer = starlette.post("/wrapped/raw", content=b"x" * 100_000)
    assert (answer.json(), answer.headers["x-middleware"]) == ({"length": 100_000}, "100000")
    answer = starlette.get("/wrapped/stream", params={"word": "a"})
    assert answer.headers["content-encoding"] == "gzip"
    assert answer.text.startswith("a 0\na 1\n")


def test_curl(starlette, tmp_path):
    """curl resumes a download, and its upload waits for "100 Continue"."""
    if not shutil.which("curl"):
        pytest.skip("no curl")
    path, out = tmp_path / "file.bin", tmp_path / "out"
    path.write_bytes(os.urandom(2_000_000))
    out.write_bytes(path.read_bytes()[:700_000])
    words = ["curl", "-sS", "--fail", "--noproxy", "*", "--max-time", str(WAIT)]
    subprocess.run([*words, "-C", "-", "-o", str(out), f"{starlette.server.url}/file?path={path}"], check=True)
    assert out.read_bytes() == path.read_bytes()
    upload = [*words, "-H", "Expect: 100-continue", "--data-binary", f"@{path}", f"{starlette.server.url}/raw"]
    assert subprocess.run(upload, capture_output=True, check=True).stdout == b'{"length":2000000}'


# --- FastAPI


def test_models(fastapi):
    """Bodies are validated, and the responses are right."""
    assert fastapi.post("/items", json={"name": "caf\u00e9"}).json() == {"name": "caf\u00e9", "price": 1.0}
    assert fastapi.post("/items", json={"price": "much"}).status_code == 422
    assert fastapi.get("/").json() == {"hello": "FastAPI"}
    assert fastapi.get("/client").json() == {"host": "127.0.0.1", "url": f"{fastapi.server.url}/client"}


@pytest.mark.parametrize(
    ("path", "status", "noted"),
    [
        ("/session", 200, ["open", "thread open", "in the view", "thread closed", "closed"]),
        ("/failing", 500, ["open", "rolled back", "closed"]),
        ("/refusing", 403, ["open", "closed"]),
        ("/stream", 200, ["open", "0", "1", "2", "closed"]),
    ],
)
def test_dependencies_with_yield(fastapi, log, path, status, noted):
    """They clean up after the view, however it ends, and after a stream that uses them."""
    assert fastapi.get(path, params={"log": str(log)}).status_code == status
    assert log.wait(len(noted)) == noted


def test_background_tasks_in_order(fastapi, log):
    """They run one after another, after the response."""
    assert fastapi.get("/background", params={"log": str(log)}).json() == {"done": True}
    assert log.wait(2) == ["first", "second"]


def test_several_files(fastapi):
    """A form with files and fields arrives whole."""
    sizes = [0, 10, 2_000_000]
    files = [("files", (f"{size}.bin", b"x" * size)) for size in sizes]
    assert fastapi.post("/files", files=files, data={"word": "a"}).json() == {"sizes": sizes, "word": "a"}


# --- Django


def test_asynchronous_views(django):
    """They work next to views that run in threads."""
    assert django.get("/async/").text == "asynchronous, 1.1"
    assert django.post("/form", data={"name": "a", "all": ["1", "2"]}).json() == {"name": "a", "all": ["1", "2"]}
    # Each event is a gzip member of its own, and httpx reads only the first.
    answer = django.get("/events/", headers={"accept-encoding": "identity"})
    assert answer.text == "".join(f"data: {number}\n\n" for number in range(5))


@pytest.mark.parametrize("how", ["close", "reset"])
def test_a_view_whose_client_has_left_is_cancelled(django, log, how):
    """Django listens while a view runs, and cancels it."""
    before = django.server.log
    with django.server.connect() as client:
        client.request(f"/listen/?log={log}")
        wait_for(lambda: log.lines)
        getattr(client, how)()
        assert log.wait(2) == ["waiting", "cancelled"]
    assert django.get("/").status_code == 200
    assert "Traceback" not in django.server.log[len(before) :]


@pytest.mark.parametrize("size", [0, 10, 1_000_000])
def test_files_of_django(django, tmp_path, size):
    """Django sends a file in pieces, in its own way."""
    path = tmp_path / "file.bin"
    path.write_bytes(os.urandom(size))
    answer = django.get("/file", params={"path": str(path)}, headers={"accept-encoding": "identity"})
    assert (answer.status_code, answer.content) == (200, path.read_bytes())
