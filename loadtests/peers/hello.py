"""The application that every server serves. It sets its own headers, so that no server does less work than another."""

import time
from collections.abc import Callable
from typing import Any

_HELLO = b"Hello, world!"
_LARGE = b"0123456789abcdef" * 640  # 10 KiB

_HELLO_HEADERS = (("Content-Type", "text/plain"), ("Content-Length", "13"))
_LARGE_HEADERS = (("Content-Type", "text/plain"), ("Content-Length", "10240"))


def app(environ: dict[str, Any], start_response: Callable[..., Any]) -> list[bytes]:
    # A new list each time, as frameworks make: a server that keeps one cannot be told from one that does not.
    start_response("200 OK", list(_HELLO_HEADERS))
    return [_HELLO]


def large(environ: dict[str, Any], start_response: Callable[..., Any]) -> list[bytes]:
    start_response("200 OK", list(_LARGE_HEADERS))
    return [_LARGE]


def posted(environ: dict[str, Any], start_response: Callable[..., Any]) -> list[bytes]:
    """Reads what was sent."""
    size = int(environ.get("CONTENT_LENGTH") or 0)  # none where the measurement looks whether the server is there
    if len(environ["wsgi.input"].read(size)) != size:
        raise ValueError("the body is not whole")
    return app(environ, start_response)


def mixed(environ: dict[str, Any], start_response: Callable[..., Any]) -> list[bytes]:
    """A quick answer, but for /sleep one that waits for 100 ms as for a database."""
    if environ["PATH_INFO"] == "/sleep":
        time.sleep(0.1)
    return app(environ, start_response)
