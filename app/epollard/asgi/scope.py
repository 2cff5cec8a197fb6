"""Makes a request's ASGI `scope` (ASGI 3). Whatever depends on the bytes of a head alone is remembered with that head.

A scope belongs to the application, which may change it: two requests share nothing in it but immutable values and the empty
dictionaries that stand for extensions.
"""

from typing import Any, Final

from ..net.connection import Connection
from ..protocol.handshake import wants_upgrade
from ..protocol.request import Fields, Line, Request, Shape

Scope = dict[str, Any]
Peers = tuple[tuple[str, int] | None, tuple[str, int | None]]

# We do what 2.5 requires. But from 2.4 on, where `send` raises, Starlette no longer listens for `http.disconnect`, so a stream
# that has nothing to send would outlive its client. No other server announces more than 2.3 for HTTP.
_SPEC: Final = {"version": "3.0", "spec_version": "2.3"}
_WEBSOCKET_SPEC: Final = {"version": "3.0", "spec_version": "2.5"}

_HTTP_10: Final[dict[str, Any]] = {"http.response.pathsend": {}, "http.response.zerocopysend": {}}
_HTTP_11: Final[dict[str, Any]] = {**_HTTP_10, "http.response.early_hint": {}}
_TRAILERS: Final[dict[str, Any]] = {**_HTTP_11, "http.response.trailers": {}}
_WEBSOCKET: Final[dict[str, Any]] = {"websocket.http.response": {}}


def takes_trailers(fields: Fields) -> bool:
    """Whether the client says that it takes trailers (RFC 9110 10.1.4)."""
    accepted = ",".join([value for name, value in fields.items if name == "te"])
    return "trailers" in [coding.strip(" \t").lower() for coding in accepted.split(",")]


class Scopes:
    """Makes the scope of each request. `state` is the one of the lifespan; None: the application does not support that."""

    def __init__(self) -> None:
        self.state: dict[str, Any] | None = None

    def make(self, connection: Connection, request: Request) -> Scope:
        """The scope of a request, which the application may change."""
        memo = request.memo or self._memo(request)
        scope: Scope = memo.copy()
        scope["headers"] = memo["headers"].copy()
        scope["extensions"] = memo["extensions"].copy()
        scope["asgi"] = memo["asgi"].copy()
        scope["client"], scope["server"] = connection.memo or self._peers(connection)
        if self.state is not None:
            scope["state"] = self.state.copy()
        return scope

    def _memo(self, request: Request) -> Scope:
        line, fields = request.line, request.fields
        names, te, upgrade = fields.shape.memo or self._of_shape(fields.shape)
        headers = fields.memo
        if headers is None:
            headers = list(zip(names, [value.encode("latin-1") for value in fields.values], strict=True))
            if fields.again:
                fields.memo = headers
        extensions = _HTTP_10 if fields.version == "1.0" else _HTTP_11
        if te and fields.version == "1.1" and line.method != "HEAD" and takes_trailers(fields):
            extensions = _TRAILERS
        memo: Scope = {
            "type": "http",
            "asgi": _SPEC,
            "http_version": fields.version,
            "scheme": "http",
            "root_path": "",
            "headers": headers,
            "client": None,
            "server": None,
            "extensions": extensions,
        }
        memo.update(line.memo or self._of_line(line))
        if upgrade and line.method == "GET" and wants_upgrade(fields):
            memo |= {"type": "websocket", "asgi": _WEBSOCKET_SPEC, "scheme": "ws", "extensions": _WEBSOCKET, "subprotocols": []}
            del memo["method"]
        request.memo = memo
        return memo

    def _of_shape(self, shape: Shape) -> tuple[list[bytes], bool, bool]:
        """Its names as the application receives them, and whether TE and Upgrade are among them."""
        names = [name.encode("ascii") for name in shape.names]
        memo = shape.memo = names, b"te" in names, b"upgrade" in names
        return memo

    def _of_line(self, line: Line) -> Scope:
        target = line.target
        if line.authority is not None:  # absolute form: the part after "http://authority"
            target = "/" + target.partition("://")[2].removeprefix(line.authority).removeprefix("/")
        memo = line.memo = {
            "method": line.method,
            # Bytes that are not UTF-8 are whole in `raw_path`; here they must not break code that prints or encodes the path.
            "path": line.path.encode("latin-1").decode("utf-8", "replace"),
            "raw_path": target.partition("?")[0].encode("ascii"),
            "query_string": line.query.encode("ascii"),
        }
        return memo

    def _peers(self, connection: Connection) -> Peers:
        host, port = connection.peer
        if host:
            peers: Peers = ((host, int(port)), (connection.local[0], int(connection.local[1])))
        else:
            peers = (None, (connection.sock.getsockname(), None))  # a Unix socket's path
        connection.remember(peers)
        return peers
