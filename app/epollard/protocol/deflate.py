"""Compression of WebSocket messages: permessage-deflate (RFC 7692). No socket, no clock, no config."""

import zlib
from collections.abc import Iterator
from typing import Final

from .grammar import TOKEN, FrameError, ProtocolError, elements

# A compressor of zlib takes 2 ** (bits + 2) + 2 ** (memLevel + 9) bytes: 32 KiB with these, 256 KiB with its defaults.
WINDOW_BITS: Final = 12
MEMORY_LEVEL: Final = 5

_BITS: Final[dict[str | None, int]] = {str(bits): bits for bits in range(8, 16)}
_PARAMETERS: Final = frozenset(
    ("server_no_context_takeover", "client_no_context_takeover", "server_max_window_bits", "client_max_window_bits")
)
_BLOCK_END: Final = b"\0\0\xff\xff"  # RFC 7692 7.2.1: cut off by the sender, put back by the receiver


class Deflate:
    """permessage-deflate (RFC 7692 7) as negotiated with one client, and the contexts of both directions.

    A context takes memory from its first compressed message on: at most 32 KiB to compress, 11 KiB to decompress.
    """

    __slots__ = ("_client_bits", "_client_forgets", "_deflater", "_inflater", "_server_bits", "_server_forgets", "header")

    def __init__(self, server_bits: int, server_forgets: bool, client_bits: int | None, client_forgets: bool) -> None:
        self._server_bits = server_bits
        self._server_forgets = server_forgets
        self._client_bits = 15 if client_bits is None else client_bits
        # A client whose window we may not bound must not keep it from message to message (7.1.1.2 lets us demand that).
        self._client_forgets = client_forgets or client_bits is None
        self._deflater: zlib._Compress | None = None
        self._inflater: zlib._Decompress | None = None
        header = f"permessage-deflate; server_max_window_bits={server_bits}"
        if client_bits is not None:
            header += f"; client_max_window_bits={client_bits}"
        if server_forgets:
            header += "; server_no_context_takeover"
        if self._client_forgets:
            header += "; client_no_context_takeover"
        self.header = header  # the value of Sec-WebSocket-Extensions for the client

    @classmethod
    def negotiate(cls, values: list[str]) -> "Deflate | None":
        """The first acceptable offer in the values of Sec-WebSocket-Extensions.

        Raises `ProtocolError` 400 for a value that is not a list of extensions (RFC 6455 9.1).
        """
        accepted = None
        for name, parameters in list(_extensions(values)):
            if name == "permessage-deflate" and accepted is None:
                accepted = cls._accept(parameters)
        return accepted

    @classmethod
    def _accept(cls, parameters: list[tuple[str, str | None]]) -> "Deflate | None":
        """None: the offer is declined, for one of the reasons in RFC 7692 7.1."""
        found = dict(parameters)
        if len(found) != len(parameters) or not found.keys() <= _PARAMETERS:
            return None
        if found.get("server_no_context_takeover") or found.get("client_no_context_takeover"):
            return None
        bounded = "client_max_window_bits" in found
        server_bits = _BITS.get(found.get("server_max_window_bits", "15"))
        client_bits = _BITS.get(found.get("client_max_window_bits") or "15")  # without a value: the choice is ours
        if server_bits is None or client_bits is None:
            return None
        return cls(
            min(server_bits, WINDOW_BITS),
            "server_no_context_takeover" in found,
            min(client_bits, WINDOW_BITS) if bounded else None,
            "client_no_context_takeover" in found,
        )

    def compress(self, payload: bytes) -> bytes:
        """Compress a message to the payload of a frame with `rsv1` (RFC 7692 7.2.1)."""
        deflater = self._deflater
        if deflater is None:
            # zlib has no window of 8 bits. With 9 it looks back 512 - 262 bytes at most, so a client with 8 can follow.
            deflater = zlib.compressobj(wbits=-max(self._server_bits, 9), memLevel=MEMORY_LEVEL)
            if not self._server_forgets:
                self._deflater = deflater
        return (deflater.compress(payload) + deflater.flush(zlib.Z_SYNC_FLUSH))[: -len(_BLOCK_END)]

    def decompress(self, data: bytes | bytearray, last: bool, room: int) -> bytes:
        """Decompress a part of a message (RFC 7692 7.2.2), to at most `room` bytes. `last`: its end. Raises `FrameError`."""
        inflater = self._inflater
        if inflater is None:
            inflater = self._inflater = zlib.decompressobj(-self._client_bits)
        try:
            content = inflater.decompress(data, room + 1)
            if last and not inflater.eof and len(content) <= room:
                content += inflater.decompress(_BLOCK_END, room + 1 - len(content))
        except zlib.error:
            raise FrameError(1007, "bad compressed data") from None
        if len(content) > room:
            raise FrameError(1009, "message too big")
        # RFC 7692 7.2.3.4: a final block ends the stream; one zero byte, the beginning of an empty block, may follow.
        if inflater.eof and inflater.unused_data not in (b"", b"\0"):
            raise FrameError(1007, "bad compressed data")
        if last and (self._client_forgets or inflater.eof):
            self._inflater = None
        return content


def _extensions(values: list[str]) -> Iterator[tuple[str, list[tuple[str, str | None]]]]:
    """Name and parameters of each extension (RFC 6455 9.1). A quoted value is a token too, so it hides no separator."""
    for element in elements(values):
        name, *parts = (part.strip(" \t") for part in element.split(";"))
        tokens = [name]
        parameters: list[tuple[str, str | None]] = []
        for part in parts:
            key, equals, value = part.partition("=")
            key, value = key.strip(" \t"), value.strip(" \t")
            if len(value) > 2 and value[0] == value[-1] == '"':
                value = value[1:-1]
            tokens += (key, value) if equals else (key,)
            parameters.append((key, value if equals else None))
        if not all(map(TOKEN.fullmatch, tokens)):
            raise ProtocolError(400, "bad Sec-WebSocket-Extensions")
        yield name, parameters
