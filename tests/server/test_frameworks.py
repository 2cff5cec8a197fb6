"""Flask and Django as they are really used: what their own test clients promise also holds over the wire."""

import hashlib
import os
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest

from harness import WAIT

APPS = {"Flask": "apps.flask_app:app", "Django": "apps.django_app:app"}


@pytest.fixture(params=APPS)
def framework(request):
    pytest.importorskip(request.param.lower())
    return request.param


@pytest.fixture
def client(serve, framework, tmp_path_factory):
    server = serve(APPS[framework], env={"PYTHONWARNINGS": ""})
    with httpx.Client(base_url=server.url, timeout=WAIT, trust_env=False) as client:
        client.server = server  # type: ignore[attr-defined]
        yield client


def test_pages_and_errors(client, framework):
    """The pages for 200, 404 and 500 are the framework's own; after an error the server keeps serving."""
    for _ in range(2):
        assert client.get("/").text == f"Hello from {framework}"
        assert client.get("/missing").status_code == 404
        assert client.get("/error").status_code == 500
        assert client.head("/").status_code == 200
    assert "application failed" not in client.server.log


def test_forms(client):
    """URL-encoded forms, with several values for a name and characters of every kind."""
    data = {"name": "caf\u00e9 \u20ac & =", "all": ["1", "2", "3"]}
    assert client.post("/form", data=data).json() == data


@pytest.mark.parametrize("size", [0, 1000, 3_000_000])
def test_uploads(client, size):
    """Multipart bodies, kept in memory or in a file."""
    content = os.urandom(size)
    found = client.post("/upload", files={"file": ("name.bin", content)}).json()
    assert found == {"name": "name.bin", "sha256": hashlib.sha256(content).hexdigest()}


def test_a_body_without_a_length(client):
    """A chunked body reaches the framework."""
    pieces = [b"x" * 1000] * 100
    length = client.post("/raw", content=iter(pieces)).json()["length"]
    # Django reads Content-Length bytes. Without that field it sees an empty body, with any server.
    assert length == (0 if client.get("/").text.endswith("Django") else 100_000)


def test_sessions(client):
    """Cookies are set, and sent back by the client."""
    assert [client.get("/count").text for _ in range(3)] == ["1", "2", "3"]


def test_streams(client):
    """Many generators that use thread-locals and a database run at the same time."""

    def ask(word):
        with httpx.Client(base_url=client.base_url, timeout=WAIT, trust_env=False) as own:
            return own.get("/stream", params={"word": word}).text

    with ThreadPoolExecutor(6) as pool:
        words = [f"word{number}" for number in range(12)]
        for word, text in zip(words, pool.map(ask, words), strict=True):
            assert text == "".join(f"{word} {number}\n" for number in range(50))


@pytest.mark.parametrize("size", [0, 10, 1_000_000])
def test_files(client, tmp_path, size):
    """Files that the framework sends in its own way arrive complete."""
    path = tmp_path / "file.bin"
    path.write_bytes(os.urandom(size))
    for _ in range(2):
        response = client.get("/file", params={"path": str(path)}, headers={"accept-encoding": "identity"})
        assert response.status_code == 200
        assert response.content == path.read_bytes()
