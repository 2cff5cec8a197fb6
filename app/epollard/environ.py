"""A request to a WSGI `environ` (PEP 3333). What depends on the bytes of a head alone is kept with the head's cached facts."""

import sys
from collections.abc import Iterable, Iterator
from typing import Any, cast

from .request import Fields, Line, Request
from .uploads import NoInput

Environ = dict[str, Any]


class Environment:
    """Makes the `environ` of each request."""

    def __init__(self, *, threads: int, processes: int) -> None:
        self._base: Environ = {
            "REQUEST_METHOD": "",
            "SCRIPT_NAME": "",
            "PATH_INFO": "",
            "QUERY_STRING": "",
            "REQUEST_URI": "",
            "RAW_URI": "",
            "SERVER_NAME": "",
            "SERVER_PORT": "",
            "REMOTE_ADDR": "",
            "REMOTE_PORT": "",
            "SERVER_SOFTWARE": "epollard",
            "GATEWAY_INTERFACE": "CGI/1.1",
            "wsgi.version": (1, 0),
            "wsgi.url_scheme": "http",
            "wsgi.input": NoInput(),
            "wsgi.input_terminated": True,
            "wsgi.errors": Errors(),
            "wsgi.multithread": threads > 1,
            "wsgi.multiprocess": processes > 1,
            "wsgi.run_once": False,
            "wsgi.file_wrapper": FileWrapper,
        }
        self._keys: dict[str, str] = {}

    def make(self, request: Request) -> Environ:
        """The `environ` of a request, but for what the connection tells and the body.

        From the second time on, the head has a copy in `request.form` and there is no need to come here: a head that comes
        once does not pay for a copy.
        """
        if request.form:
            return cast(Environ, request.form.copy())
        fields = request.fields
        line = request.line
        environ: Environ = (fields.form or self._of_fields(fields)).copy()
        environ.update(line.form or self._of_line(line))
        request.form = False if request.form is None else environ.copy()
        return environ

    def _of_line(self, line: Line) -> dict[str, str]:
        form = line.form = {
            "REQUEST_METHOD": line.method,
            "PATH_INFO": line.path,
            "QUERY_STRING": line.query,
            "REQUEST_URI": line.target,
            "RAW_URI": line.target,
        }
        return form

    def _of_fields(self, fields: Fields) -> Environ:
        environ = self._base.copy()
        environ["SERVER_PROTOCOL"] = "HTTP/" + fields.version
        for name, value in fields.items:
            # "X_Forwarded_For" would become the same key as "X-Forwarded-For": whoever strips the one from strangers' requests
            # does not strip the other, so it is not passed on. Nor is Proxy, which CGI libraries take for a setting (httpoxy).
            if "_" in name or name == "proxy":
                continue
            key = self._keys.get(name) or self._new_key(name)
            if key in environ:
                environ[key] += ("; " if key == "HTTP_COOKIE" else ",") + value  # RFC 9110 5.3, RFC 6265 5.4
            else:
                environ[key] = value
        fields.form = environ
        return environ

    def _new_key(self, name: str) -> str:
        key = name.upper().replace("-", "_")
        if name not in ("content-type", "content-length"):
            key = "HTTP_" + key
        if len(name) <= 64:  # a bound for memory: names are a stranger's
            if len(self._keys) >= 256:
                self._keys.clear()
            self._keys[name] = key
        return key


class Errors:
    """`wsgi.errors`: standard error as it is at the time of writing, so that an application may redirect it."""

    def write(self, text: str) -> int:
        """As `io.TextIOBase.write`."""
        return sys.stderr.write(text)

    def writelines(self, lines: Iterable[str]) -> None:
        """As `io.IOBase.writelines`."""
        sys.stderr.writelines(lines)

    def flush(self) -> None:
        """As `io.IOBase.flush`."""
        sys.stderr.flush()


class FileWrapper:
    """`wsgi.file_wrapper`: a file to be sent, by sendfile(2) where it is a regular one, else piece by piece."""

    def __init__(self, filelike: Any, blksize: int = 65536) -> None:
        self.filelike = filelike
        self.blksize = blksize
        if hasattr(filelike, "close"):
            self.close = filelike.close

    def __iter__(self) -> Iterator[bytes]:
        return iter(lambda: self.filelike.read(self.blksize), b"")
