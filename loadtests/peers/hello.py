"""The WSGI application that every server serves. It sets its own headers, so that no server does less work than another."""

import time
from collections.abc import Callable
from typing import Any

_HELLO = b"Hello, world!"
_LARGE = b"0123456789abcdef" * 640  # 10 KiB

_HELLO_HEADERS = (("Content-Type", "text/plain"), ("Content-Length", "13"))
_LARGE_HEADERS = (("Content-Type", "text/plain"), ("Content-Length", "10240"))


def app(environ: dict[str, Any], start_response: Callable[..., Any]) -> list[bytes]:
    # A new list each time, as from a framework, so that a server gains nothing by remembering the list.
    start_response("200 OK", list(_HELLO_HEADERS))
    return [_HELLO]


def large(environ: dict[str, Any], start_response: Callable[..., Any]) -> list[bytes]:
    start_response("200 OK", list(_LARGE_HEADERS))
    return [_LARGE]


def posted(environ: dict[str, Any], start_response: Callable[..., Any]) -> list[bytes]:
    """Reads the body of the request first."""
    size = int(environ.get("CONTENT_LENGTH") or 0)  # the request that waits for the server's start has no body
    if len(environ["wsgi.input"].read(size)) != size:
        raise ValueError("the body is incomplete")
    return app(environ, start_response)


def mixed(environ: dict[str, Any], start_response: Callable[..., Any]) -> list[bytes]:
    """Responds at once, except to /sleep, which takes 100 ms as if it waited for a database."""
    if environ["PATH_INFO"] == "/sleep":
        time.sleep(0.1)
    return app(environ, start_response)
