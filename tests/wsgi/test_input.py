"""Bodies as files: what a body is kept in, how it is read, and that nothing is left of it. No socket, no server."""

import io
import os
import tempfile
import threading
from typing import Any

import pytest

from epollard.wsgi import input as wsgi_input
from epollard.wsgi.input import SPOOL_MEMORY, NoInput, Spool


def test_no_body_is_an_empty_file():
    """Every way of reading ends at once, with the types of a binary file, and always."""
    body = NoInput()
    empty = io.BytesIO()
    for _ in range(2):
        for arguments in (), (-1,), (None,), (0,), (10,):
            assert body.read(*arguments) == empty.read(*arguments)
            assert body.readline(*arguments) == empty.readline(*arguments)
            assert body.readlines(*arguments) == empty.readlines(*arguments)
        assert list(body) == []
        body.close()


SIZES = [0, 1, SPOOL_MEMORY - 1, SPOOL_MEMORY, SPOOL_MEMORY + 1, 5 * SPOOL_MEMORY]


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("piece", [1000, 65536, 10**9])
def test_a_body_comes_back_as_it_came(size: int, piece: int):
    """In memory up to the bound, in a file above it, and nobody sees the difference."""
    data = os.urandom(size)
    spool = Spool()
    for start in range(0, size, piece):
        spool.write(data[start : start + piece])
    file = spool.rewind()
    assert isinstance(file, io.BytesIO) == (size <= SPOOL_MEMORY)
    assert file.read() == data
    assert file.read() == b""
    assert spool.rewind().read(10) == data[:10]
    spool.close()
    assert file.closed


READINGS = [
    ("read()", lambda file: [file.read()]),
    ("read(-1)", lambda file: [file.read(-1)]),
    ("read(None)", lambda file: [file.read(None)]),
    ("read(n)", lambda file: list(iter(lambda: file.read(70_001), b""))),
    ("readline()", lambda file: list(iter(file.readline, b""))),
    ("readline(n)", lambda file: list(iter(lambda: file.readline(100), b""))),
    ("readlines()", lambda file: file.readlines()),
    ("readlines(n) and the rest", lambda file: file.readlines(100) + file.readlines()),
    ("iter()", list),
]


@pytest.mark.parametrize(("name", "reading"), READINGS, ids=[row[0] for row in READINGS])
@pytest.mark.parametrize("lines", [3, 10_000])
def test_a_body_is_read_as_any_file(name: str, reading: Any, lines: int):
    """`read`, `readline`, `readlines` and iteration give what they give of a file in memory, small bodies and large ones."""
    data = b"".join(b"%d %s\n" % (number, b"x" * (number % 150)) for number in range(lines)) + b"no end"
    spool = Spool()
    spool.write(data)
    pieces = reading(spool.rewind())
    assert pieces == reading(io.BytesIO(data))
    assert b"".join(pieces) == data
    spool.close()


def test_a_large_body_has_no_name(tmp_path, monkeypatch: pytest.MonkeyPatch):
    """Its file cannot be found by others, and is gone with its last descriptor whatever happens to us."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    before = set(os.listdir("/proc/self/fd"))
    spool = Spool()
    spool.write(b"x" * (SPOOL_MEMORY + 1))
    assert os.listdir(tmp_path) == []
    assert str(tmp_path) in os.readlink(f"/proc/self/fd/{spool.rewind().fileno()}")
    spool.close()
    assert set(os.listdir("/proc/self/fd")) == before


def test_where_no_directory_can_be_written(monkeypatch: pytest.MonkeyPatch):
    """A read-only root without /tmp: the body lives in memory, as a file."""

    def nowhere(**options: object) -> None:
        raise FileNotFoundError("No usable temporary directory found")

    monkeypatch.setattr(tempfile, "TemporaryFile", nowhere)
    spool = Spool()
    spool.write(b"x" * SPOOL_MEMORY)
    spool.write(b"yz")
    file = spool.rewind()
    assert "memfd:" in os.readlink(f"/proc/self/fd/{file.fileno()}")
    assert not os.get_inheritable(file.fileno())
    assert file.read() == b"x" * SPOOL_MEMORY + b"yz"
    spool.close()


def test_where_there_is_no_room(monkeypatch: pytest.MonkeyPatch):
    """A full disk is an `OSError` when the body comes, not when it is read or given up."""
    with open("/dev/full", "w+b", buffering=0) as full:
        monkeypatch.setattr(wsgi_input, "_unnamed_file", lambda: full)
        spool = Spool()
        with pytest.raises(OSError, match="No space"):
            spool.write(b"x" * (SPOOL_MEMORY + 1))
        with pytest.raises(OSError, match="No space"):
            spool.write(b"x")
        spool.close()
        assert full.closed


def test_spools_are_apart():
    """Bodies that arrive at the same time do not mix."""
    spools = [Spool() for _ in range(8)]

    def fill(number: int) -> None:
        for _ in range(100):
            spools[number].write(bytes([number]) * 5000)

    threads = [threading.Thread(target=fill, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for number, spool in enumerate(spools):
        assert spool.rewind().read() == bytes([number]) * 500_000
        spool.close()
