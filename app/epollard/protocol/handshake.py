"""The opening handshake of a WebSocket (RFC 6455 4), on the side of the server. No socket, no clock, no config.

`read_offer` judges the request, `accept_head` makes the head that opens. A refusal is an ordinary response.
"""

import binascii
import hashlib
import re
from collections.abc import Iterable
from typing import Final, NamedTuple

from .deflate import Deflate
from .grammar import HOP_BY_HOP, TOKEN, ProtocolError, elements
from .request import Fields, Request
from .response import decode_fields, judge_field

_KEY: Final = re.compile(r"[A-Za-z0-9+/]{22}==")  # 16 bytes as base64
_GUID: Final = "258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
# The fields of a 101 that are the server's: about the connection, and the time. It has no body (RFC 9110 8.6).
_OURS: Final = HOP_BY_HOP | {"content-length", "date"}


class Offer(NamedTuple):
    """What a client offers, judged, and the compression that was negotiated."""

    key: str
    subprotocols: list[str]  # in the client's order of preference
    deflate: Deflate | None


def wants_upgrade(fields: Fields) -> bool:
    """Whether a request asks for a WebSocket. In HTTP/1.0 Upgrade is ignored (RFC 9110 7.8)."""
    return fields.version == "1.1" and "websocket" in _options(fields, "upgrade")


def read_offer(request: Request, deflate: bool) -> Offer:
    """Judge an opening handshake (RFC 6455 4.2.1). `deflate`: compression may be negotiated.

    Raises `ProtocolError` 400, or 426 for a version other than 13 (the response names ours: 4.4).
    """
    fields = request.fields
    if request.line.method != "GET":
        raise ProtocolError(400, "WebSocket handshake without GET")
    if fields.framed:
        raise ProtocolError(400, "WebSocket handshake with a body")
    if not wants_upgrade(fields) or "upgrade" not in _options(fields, "connection"):
        raise ProtocolError(400, "WebSocket handshake without Upgrade")
    if _values(fields, "sec-websocket-version") != ["13"]:
        raise ProtocolError(426, "WebSocket version other than 13")
    keys = _values(fields, "sec-websocket-key")
    if len(keys) != 1 or not _KEY.fullmatch(keys[0]):
        raise ProtocolError(400, "bad Sec-WebSocket-Key")
    subprotocols = elements(_values(fields, "sec-websocket-protocol"))
    if len(set(subprotocols)) != len(subprotocols) or not all(map(TOKEN.fullmatch, subprotocols)):
        raise ProtocolError(400, "bad Sec-WebSocket-Protocol")
    negotiated = Deflate.negotiate(_values(fields, "sec-websocket-extensions"))
    return Offer(keys[0], subprotocols, negotiated if deflate else None)


def accept_head(offer: Offer, subprotocol: str | None, headers: Iterable[Iterable[bytes]], date_end: bytes) -> bytes:
    """The head that opens (RFC 6455 4.2.2), with the application's headers except those that are the server's.

    `date_end` is a whole Date line and the empty line. Raises `HeadError` for a header that cannot be sent, ValueError for a
    subprotocol that was not offered, since the client would fail the connection.
    """
    digest = hashlib.sha1((offer.key + _GUID).encode(), usedforsecurity=False).digest()
    parts = [
        b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: ",
        binascii.b2a_base64(digest, newline=False),
        b"\r\n",
    ]
    if subprotocol is not None:
        if subprotocol not in offer.subprotocols:
            raise ValueError(f"the client did not offer subprotocol {subprotocol!r}")
        parts.append(f"Sec-WebSocket-Protocol: {subprotocol}\r\n".encode())
    if offer.deflate:
        parts.append(f"Sec-WebSocket-Extensions: {offer.deflate.header}\r\n".encode())
    served = False
    for name, value in decode_fields(headers):
        lower = judge_field(name, value)
        if lower in _OURS or lower.startswith("sec-websocket-"):
            continue
        served = served or lower == "server"
        parts.append(f"{name}: {value}\r\n".encode("latin-1"))
    if not served:
        parts.append(b"Server: epollard\r\n")
    parts.append(date_end)
    return b"".join(parts)


def _values(fields: Fields, name: str) -> list[str]:
    return [value for key, value in fields.items if key == name]


def _options(fields: Fields, name: str) -> list[str]:
    return [element.lower() for element in elements(_values(fields, name))]
