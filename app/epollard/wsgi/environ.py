"""A request to a WSGI `environ` (PEP 3333).

What depends on the bytes of a head alone is kept with what the parser keeps of that head.
"""

import sys
from collections.abc import Iterable, Iterator
from typing import Any

from ..protocol.request import Fields, Request, Shape
from .input import NoInput

Environ = dict[str, Any]


class Environment:
    """Makes the `environ` of each request.

    `local`: SERVER_NAME and SERVER_PORT of most requests, so that the fast path need not set them.
    """

    def __init__(self, *, threads: int, processes: int, local: tuple[str, str] = ("", "")) -> None:
        self._base: Environ = {
            "REQUEST_METHOD": "",
            "SCRIPT_NAME": "",
            "PATH_INFO": "",
            "QUERY_STRING": "",
            "REQUEST_URI": "",
            "RAW_URI": "",
            "SERVER_NAME": local[0],
            "SERVER_PORT": local[1],
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

    def make(self, request: Request, local: tuple[str, str], peer: tuple[str, str]) -> Environ:
        """The `environ` of a request without a body, on a connection between these two addresses (host, port).

        `LeaderFollowers.answer`, the fast path, has a copy of this for requests that have a `memo`.
        """
        environ: Environ
        if request.memo:
            environ = request.memo.copy()
        else:
            line = request.line
            fields = request.fields
            if fields.memo:
                environ = fields.memo.copy()
            else:
                environ = self._of_fields(fields)
                if fields.again:
                    fields.memo = environ.copy()
            environ["REQUEST_METHOD"] = line.method
            environ["PATH_INFO"] = line.path
            environ["QUERY_STRING"] = line.query
            environ["REQUEST_URI"] = environ["RAW_URI"] = line.target
            if request.kept:
                request.memo = environ.copy()
        environ["SERVER_NAME"], environ["SERVER_PORT"] = local
        environ["REMOTE_ADDR"], environ["REMOTE_PORT"] = peer
        return environ

    def _of_fields(self, fields: Fields) -> Environ:
        shape = fields.shape
        template, keys = shape.memo or self._of_shape(shape)
        environ: Environ = template.copy()
        if keys is not None:
            environ.update(zip(keys, fields.values))  # noqa: B905 - strict costs 80 ns, and they are of one length
            return environ
        for name, value in fields.items:
            key = _key(name)
            if key is None:
                continue
            if environ[key]:
                environ[key] += ("; " if key == "HTTP_COOKIE" else ",") + value  # RFC 9110 5.3, RFC 6265 5.4
            else:
                environ[key] = value
        return environ

    def _of_shape(self, shape: Shape) -> tuple[Environ, list[str] | None]:
        """An `environ` in which the values of the fields are still empty; and the fields' keys, if no two share one."""
        keys = [key for key in map(_key, shape.names) if key is not None]
        template = self._base | {"SERVER_PROTOCOL": "HTTP/" + shape.version} | dict.fromkeys(keys, "")
        plain = len(set(keys)) == len(shape.names)
        memo = shape.memo = template, keys if plain else None
        return memo


def _key(name: str) -> str | None:
    """A field's key in the `environ`. None: it is not passed on.

    "X_Forwarded_For" would become the same key as "X-Forwarded-For", and a proxy that strips the one from strangers' requests
    does not strip the other. Nor is Proxy passed on, which CGI libraries take for a setting (httpoxy).
    """
    if "_" in name or name == "proxy":
        return None
    key = name.upper().replace("-", "_")
    return key if name in ("content-type", "content-length") else "HTTP_" + key


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
    """`wsgi.file_wrapper`: a file to be sent, by sendfile(2) if it is a regular one, else piece by piece."""

    def __init__(self, filelike: Any, blksize: int = 65536) -> None:
        self.filelike = filelike
        self.blksize = blksize
        if hasattr(filelike, "close"):
            self.close = filelike.close

    def __iter__(self) -> Iterator[bytes]:
        return iter(lambda: self.filelike.read(self.blksize), b"")
