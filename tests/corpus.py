"""Reads `requests/`, and feeds bytes to the readers as a connection does. It judges nothing itself."""

import ast
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from epollard.protocol.body import ChunkedBody, LengthBody
from epollard.protocol.deflate import Deflate
from epollard.protocol.frames import Receiver
from epollard.protocol.grammar import ProtocolError
from epollard.protocol.request import Fields, HeadReader, Request

DIRECTORY = Path(__file__).parent / "requests"
LIMITS = (8192, 100, 65536)  # the defaults: bytes a request line, fields, bytes of all fields
MAX_BODY = 100 * 1024 * 1024
MORE = "more"

DEFAULTS = {
    "method": "GET",
    "target": "/",
    "path": "/",
    "query": "",
    "authority": None,
    "version": "1.1",
    "host": "a",
    "keep_alive": True,
    "length": 0,
    "chunked": False,
    "expect": False,
    "body": b"",
}


class Row(NamedTuple):
    """Some bytes and the expected outcome: a status, `MORE`, or facts."""

    name: str
    data: bytes
    outcome: int | str | dict[str, Any]

    def __str__(self) -> str:
        return self.name


class Refused(NamedTuple):
    """The error that a reader raised."""

    status: int
    reason: str


class Found(NamedTuple):
    """The facts that readers found in a whole request, and the bytes behind it."""

    facts: dict[str, Any]
    rest: bytes


Outcome = Refused | Found | None  # None: not whole


def rows(kind: str) -> list[Row]:
    """The rows of `valid` or `invalid`."""
    return [row for path in sorted((DIRECTORY / kind).glob("*.txt")) for row in _read(path)]


def _read(path: Path) -> Iterator[Row]:
    common, *sections = re.split(r"^=== (.*)\n", path.read_text("utf-8"), flags=re.MULTILINE)
    valid = path.parent.name == "valid"
    common_facts = DEFAULTS | _facts(common)
    for title, text in zip(sections[::2], sections[1::2], strict=True):
        wire = [line for line in text.splitlines() if not line.startswith(("#", "->"))]
        data = _expand("".join(wire)).encode("latin-1")
        status, _, name = ("", "", title) if valid else title.partition(" ")
        outcome = common_facts | _facts(text) if valid else status if status == MORE else int(status)
        yield Row(f"{path.stem}: {name}", data, outcome)


def _facts(text: str) -> dict[str, Any]:
    found = re.findall(r"^-> (\w+) (.*)$", text, re.MULTILINE)
    return {name: ast.literal_eval(re.sub(r"\{\{(.)\*(\d+)\}\}", _repeat, value)) for name, value in found}


def _repeat(match: re.Match[str]) -> str:
    return match[1] * int(match[2])


def _expand(text: str) -> str:
    named = {"r": "\r", "n": "\n", "t": "\t", "0": "\0", "\\": "\\"}
    text = re.sub(r"\{\{(.+?)\*(\d+)\}\}", _repeat, text)
    return re.sub(r"\\(?:x([0-9a-f]{2})|(.))", lambda match: chr(int(match[1], 16)) if match[1] else named[match[2]], text)


def reader() -> HeadReader:
    """A reader with empty caches."""
    return HeadReader(*LIMITS)


def expert(head: bytes) -> Fields:
    """The fields that are kept for a head's client, with an expression, as if many such heads had come."""
    block = head[head.index(b" HTTP/") : head.index(b"\r\n\r\n") + 4]
    found = reader().read(b"GET /" + block)
    assert found is not None
    names = [line.partition(":")[0] for line in block[6:-4].decode("latin-1").split("\r\n")]
    found.fields.shape.compile(names)
    return found.fields


def pieces(data: bytes, size: int) -> Iterator[bytes]:
    """`data` in pieces of `size` bytes; 0: in one piece."""
    for start in range(0, len(data), size or len(data) or 1):
        yield data[start : start + size] if size else data


def feed(
    reader: HeadReader, received: Iterable[bytes], limit: int = MAX_BODY, last: Fields | None = None, before: bytes = b""
) -> Outcome:
    """Read one request from pieces, as a connection does, until it is whole or refused. `before`: bytes already used."""
    buffer = body = b""
    request: Request | None = None
    decoder: LengthBody | ChunkedBody | None = None
    try:
        for piece in received:
            searched = len(buffer)
            buffer += piece
            if request is None:
                if searched and reader.unfinished(buffer, searched):
                    continue
                request = reader.read(before + buffer, len(before), last)
                if request is None:
                    continue
                buffer = buffer[request.size :]
                if request.fields.framed:
                    decoder = ChunkedBody(limit) if request.fields.chunked else LengthBody(request.fields.length)
            if decoder is not None and not decoder.done:
                body += decoder.feed(buffer)
                buffer = decoder.rest
    except ProtocolError as error:
        return Refused(error.status, error.reason)
    if request is None or (decoder is not None and not decoder.done):
        return None
    return Found(facts(request) | {"body": body}, buffer)


def facts(request: Request) -> dict[str, Any]:
    """All facts of a head that any code depends on."""
    line, fields = request.line, request.fields
    return {name: getattr(line, name) for name in ("method", "target", "path", "query", "authority")} | {
        name: getattr(fields, name)
        for name in ("version", "host", "items", "keep_alive", "length", "chunked", "expect", "framed", "simple", "fast_path")
    }


def deflate(offer: str = "permessage-deflate; client_max_window_bits") -> Deflate:
    """The compression that is negotiated with a client that sends this offer."""
    negotiated = Deflate.negotiate([offer])
    assert negotiated
    return negotiated


def held(receiver: Receiver) -> int:
    """How many bytes a receiver holds of messages and frames that are not whole."""
    return len(receiver._held) + len(receiver._message)
