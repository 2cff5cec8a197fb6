"""The application that every server serves. It sets its own headers, so that no server does less work than another."""

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
