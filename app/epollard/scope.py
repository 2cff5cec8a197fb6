"""A request to an ASGI `scope` (ASGI 3, spec 2.5). What depends on the bytes of a head alone is kept with the head's facts."""

from typing import Any, Final, cast

from .connection import Connection
from .request import Fields, Line, Request
from .websocket import wants_upgrade

Scope = dict[str, Any]
Peers = tuple[tuple[str, int] | None, tuple[str, int | None]]

SPEC: Final = {"version": "3.0", "spec_version": "2.5"}

_HTTP_10: Final[dict[str, Any]] = {"http.response.pathsend": {}, "http.response.zerocopysend": {}}
_HTTP_11: Final[dict[str, Any]] = {**_HTTP_10, "http.response.early_hint": {}}
_TRAILERS: Final[dict[str, Any]] = {**_HTTP_11, "http.response.trailers": {}}
_WEBSOCKET: Final[dict[str, Any]] = {"websocket.http.response": {}}


class Scopes:
    """Makes the scope of each request. `state` is what the lifespan left there; None: it is not supported."""

    def __init__(self) -> None:
        self.state: dict[str, Any] | None = None

    def make(self, connection: Connection, request: Request) -> Scope:
        """The scope of a request, which is the application's to change."""
        form = request.form or self._form(request)
        scope = cast(Scope, form.copy())
        scope["headers"] = form["headers"].copy()
        scope["extensions"] = form["extensions"].copy()
        scope["asgi"] = SPEC.copy()
        scope["client"], scope["server"] = connection.form or self._peers(connection)
        if self.state is not None:
            scope["state"] = self.state.copy()
        return scope

    def _form(self, request: Request) -> Scope:
        line, fields = request.line, request.fields
        of_fields = fields.form or self._of_fields(fields)
        form: Scope = {**of_fields, **(line.form or self._of_line(line))}
        if "http.response.trailers" in of_fields["extensions"] and line.method == "HEAD":
            form["extensions"] = _HTTP_11
        if line.method == "GET" and wants_upgrade(fields):
            form |= {"type": "websocket", "scheme": "ws", "extensions": _WEBSOCKET, "subprotocols": []}
            del form["method"]
        request.form = form
        return form

    def _of_fields(self, fields: Fields) -> Scope:
        extensions = _HTTP_10 if fields.version == "1.0" else _HTTP_11
        if fields.version == "1.1":
            for name, value in fields.items:
                if name == "te" and "trailers" in [coding.strip(" \t").lower() for coding in value.split(",")]:
                    extensions = _TRAILERS
        form = fields.form = {
            "type": "http",
            "asgi": None,
            "http_version": fields.version,
            "scheme": "http",
            "root_path": "",
            "headers": [(name.encode("latin-1"), value.encode("latin-1")) for name, value in fields.items],
            "client": None,
            "server": None,
            "extensions": extensions,
        }
        return form

    def _of_line(self, line: Line) -> Scope:
        target = line.target
        if line.authority is not None:  # absolute form: what follows "http://authority"
            target = "/" + target.partition("://")[2].removeprefix(line.authority).removeprefix("/")
        form = line.form = {
            "method": line.method,
            # Bytes that are no UTF-8 are in `raw_path`, whole; here they must not break who prints or encodes the path.
            "path": line.path.encode("latin-1").decode("utf-8", "replace"),
            "raw_path": target.partition("?")[0].encode("ascii"),
            "query_string": line.query.encode("ascii"),
        }
        return form

    def _peers(self, connection: Connection) -> Peers:
        host, port = connection.peer
        if host:
            form: Peers = ((host, int(port)), (connection.local[0], int(connection.local[1])))
        else:
            form = (None, (connection.sock.getsockname(), None))  # a Unix socket's path
        connection.form = form
        return form
