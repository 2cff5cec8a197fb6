"""The rules of HTTP that several modules need, each of them once and with its source; and the errors for breaking a rule.

If a rule stood in two modules, it would be tightened in one of them and stay loose in the other. A rule that only one module
needs stands in that module.
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

# RFC 9110 7.6.1: fields about the connection. Only the server may send them, so those of an application are dropped (PEP 3333).
HOP_BY_HOP: Final = frozenset(
    ("connection", "keep-alive", "proxy-authenticate", "proxy-connection", "te", "trailer", "transfer-encoding", "upgrade")
)
# RFC 9110 6.5.1: fields that decide framing, routing, authentication or the format of the content must not be trailers, neither
# of a request nor of a response.
FORBIDDEN_TRAILERS: Final = HOP_BY_HOP | {
    *("content-length", "host", "expect", "authorization", "cookie", "content-type", "content-encoding"),
}

# The bounds of each cache of judgements: entries, and bytes of one entry. A full cache is emptied, which costs one judgement
# for each entry that is still in use.
CACHED_ENTRIES: Final = 256
CACHED_BYTES: Final = 2048


class ProtocolError(Exception):
    """The client broke a rule of HTTP. `status` is for the response, `reason` for the log (without a byte of the client's)."""

    def __init__(self, status: int, reason: str) -> None:
        super().__init__(status, reason)
        self.status = status
        self.reason = reason


class FrameError(Exception):
    """The client broke a rule of WebSocket. `code` and `reason` are for the close frame."""

    def __init__(self, code: int, reason: str) -> None:
        super().__init__(code, reason)
        self.code = code
        self.reason = reason


def elements(values: Iterable[str]) -> list[str]:
    """The elements of a list, without empty ones (RFC 9110 5.6.1). `values`: those of all fields with its name (5.3)."""
    return [element for value in values for part in value.split(",") if (element := part.strip(" \t"))]
