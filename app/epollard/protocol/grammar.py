"""The rules that several readers and writers of HTTP share, each once, with its source; and what breaking one raises.

A rule that stood in two modules would be tightened in one of them and stay loose in the other. Rules that only one module
needs stand there.
"""

import re
from collections.abc import Iterable
from typing import Final

# RFC 9110 5.6.2: a method, a field name, a parameter.
TOKEN: Final = re.compile(r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+")
# RFC 9110 5.5: a field value holds HTAB, SP, visible ASCII and obs-text. So do a reason phrase (RFC 9112 4) and an
# extension of a chunk. CONTROLS are all other bytes: the same rule for a whole head at once, by bytes.translate.
VALUE_CHARACTER: Final = r"[\t -~\x80-\xff]"
VALUE: Final = re.compile(rf"{VALUE_CHARACTER}*")
CONTROLS: Final = bytes([*range(9), *range(10, 32), 127])
# RFC 9110 8.6: Content-Length. More digits than any file needs would make int() slow.
DIGITS: Final = re.compile(r"[0-9]+")
LENGTH_DIGITS: Final = 18

# RFC 9110 7.6.1: fields about the connection. They are the server's to send, so an application's are dropped (PEP 3333).
HOP_BY_HOP: Final = frozenset(
    ("connection", "keep-alive", "proxy-authenticate", "proxy-connection", "te", "trailer", "transfer-encoding", "upgrade")
)
# RFC 9110 6.5.1: fields that decide framing, routing, authentication or the meaning of the content have no place in a trailer,
# neither in one that is received nor in one that is sent.
FORBIDDEN_TRAILERS: Final = HOP_BY_HOP | {
    *("content-length", "host", "expect", "authorization", "cookie", "content-type", "content-encoding"),
}

# How much each memory of judged bytes holds: entries, and bytes of each. One that is full is emptied, which costs
# one judgement for each entry that is still in use.
CACHED_ENTRIES: Final = 256
CACHED_BYTES: Final = 2048


class ProtocolError(Exception):
    """The peer broke a rule of HTTP. `status` is for the response, `reason` for the log (no byte of the peer's is in it)."""

    def __init__(self, status: int, reason: str) -> None:
        super().__init__(status, reason)
        self.status = status
        self.reason = reason


class FrameError(Exception):
    """The peer broke a rule of WebSocket: the close code and the reason, both to be sent to it."""

    def __init__(self, code: int, reason: str) -> None:
        super().__init__(code, reason)
        self.code = code
        self.reason = reason


def elements(values: Iterable[str]) -> list[str]:
    """The elements of a list, without empty ones (RFC 9110 5.6.1). `values`: of all fields that have its name (5.3)."""
    return [element for value in values for part in value.split(",") if (element := part.strip(" \t"))]
