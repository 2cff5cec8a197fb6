"""The demo, served if no application is named. Plain WSGI on the standard library, it needs nothing of this server.

The routes are deterministic, so that a load test can check every byte of a response:

    GET  /            the welcome page: which worker responded, and how to serve an application of your own
    GET  /hello       exactly the 13 bytes "Hello, World!"
    GET  /json        a greeting, and the responding process: worker, generation, pid, Python
    ANY  /echo        the request as JSON: method, path, query, headers, body (at most 1 MiB, else 413). The body is decoded
                      as UTF-8; a byte that is not UTF-8 becomes a lone surrogate (PEP 383), so no byte is lost
    GET  /sleep?ms=   responds after this many milliseconds (0 to 60,000; default 100)
    GET  /bytes?n=    this many bytes (0 to 100 MiB; default 1024): the 64 characters of base64, repeated
    GET  /stream?n=   this many chunks (0 to 100,000; default 10): the lines "chunk 0", "chunk 1", ...; no Content-Length
    POST /upload      length and SHA-256 of the body, which is read in pieces and dropped
    GET  /favicon.ico the icon, which browsers request with every page

A number that is not plain decimal or is out of range gets a 400 response, an unknown path 404, a wrong method 405 with `Allow`.
"""

import hashlib
import html
import json
import os
import platform
import time
from collections.abc import Callable, Iterable, Iterator
from itertools import chain, repeat
from typing import Any, Final
from wsgiref.types import StartResponse, WSGIEnvironment

PIECE: Final = 64 * 1024  # bytes read or sent at a time
MAX_SLEEP: Final = 60_000  # milliseconds
MAX_BYTES: Final = 100 * 1024 * 1024
MAX_CHUNKS: Final = 100_000
MAX_ECHO: Final = 1024 * 1024  # bytes of a request body in a response

_BLOCK: Final = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/" * (PIECE // 64)


class RequestError(Exception):
    """A request that gets an error response with this `status`; the message is the reason."""

    def __init__(self, status: str, why: str) -> None:
        super().__init__(why)
        self.status = status


def application(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
    """The WSGI callable (PEP 3333)."""
    try:
        methods, view = ROUTES[environ["PATH_INFO"]]
    except KeyError:
        return _text_response(start_response, "404 Not Found", "There is no such page. The routes are listed at /\n")
    if methods and environ["REQUEST_METHOD"] not in methods:
        allowed = ", ".join(methods)
        return _text_response(start_response, "405 Method Not Allowed", f"Only {allowed} here.\n", ("Allow", allowed))
    try:
        return view(environ, start_response)
    except RequestError as error:
        return _text_response(start_response, error.status, f"{error}\n")


def _hello(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
    start_response("200 OK", [("Content-Type", "text/plain"), ("Content-Length", "13")])
    return [b"Hello, World!"]


def _json(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
    return _json_response(start_response, {"message": "Hello, World!", **_process()})


def _icon(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
    headers = [("Content-Type", "image/svg+xml"), ("Content-Length", str(len(_ICON))), ("Cache-Control", "max-age=86400")]
    start_response("200 OK", headers)
    return [_ICON]


def _echo(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
    body = bytearray()
    for piece in _body_pieces(environ):
        body += piece
        if len(body) > MAX_ECHO:
            raise RequestError("413 Content Too Large", f"At most {MAX_ECHO} bytes are echoed. /upload accepts more.")
    headers = {
        name.removeprefix("HTTP_").replace("_", "-").title(): value
        for name, value in environ.items()
        if name.startswith("HTTP_") or (name in ("CONTENT_TYPE", "CONTENT_LENGTH") and value)
    }
    return _json_response(
        start_response,
        {
            "method": environ["REQUEST_METHOD"],
            "path": _decoded(environ["PATH_INFO"].encode("latin-1")),
            "query": environ.get("QUERY_STRING", ""),
            "headers": headers,
            "body": _decoded(body),
        },
    )


def _sleep(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
    milliseconds = _number(environ, "ms", 100, MAX_SLEEP)
    time.sleep(milliseconds / 1000)
    return _text_response(start_response, "200 OK", f"slept {milliseconds} ms\n")


def _bytes(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
    count = _number(environ, "n", 1024, MAX_BYTES)
    start_response("200 OK", [("Content-Type", "application/octet-stream"), ("Content-Length", str(count))])
    if count <= PIECE:
        return [_BLOCK[:count]]
    whole, rest = divmod(count, PIECE)
    return chain(repeat(_BLOCK, whole), [_BLOCK[:rest]])


def _stream(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
    count = _number(environ, "n", 10, MAX_CHUNKS)
    start_response("200 OK", [("Content-Type", "text/plain")])
    return (b"chunk %d\n" % number for number in range(count))


def _upload(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
    length = 0
    digest = hashlib.sha256()
    for piece in _body_pieces(environ):
        length += len(piece)
        digest.update(piece)
    return _json_response(start_response, {"length": length, "sha256": digest.hexdigest()})


def _welcome(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
    page = _PAGE
    for name, value in _process().items():
        page = page.replace(f"[[{name}]]", html.escape(str(value)))
    body = page.encode()
    headers = [
        ("Content-Type", "text/html; charset=utf-8"),
        ("Content-Length", str(len(body))),
        ("Cache-Control", "no-store"),
        ("Content-Security-Policy", "default-src 'none'; style-src 'unsafe-inline'; img-src 'self'"),
    ]
    start_response("200 OK", headers)
    return [body]


def _process() -> dict[str, str | int]:
    """The responding process. Not a constant, because an application may be imported before its worker is forked."""
    return {
        "worker": os.environ.get("EPOLLARD_WORKER_ID", "none"),
        "generation": os.environ.get("EPOLLARD_GENERATION", "none"),
        "pid": os.getpid(),
        "python": platform.python_version(),
    }


def _body_pieces(environ: WSGIEnvironment) -> Iterator[bytes]:
    """The request body in pieces. Unless the server ends the input itself, only Content-Length bytes are read (PEP 3333)."""
    read = environ["wsgi.input"].read
    if environ.get("wsgi.input_terminated"):
        while piece := read(PIECE):
            yield piece
        return
    left = _decimal(environ.get("CONTENT_LENGTH") or "0")
    if left is None:
        raise RequestError("400 Bad Request", "Content-Length must be a whole number.")
    while left and (piece := read(min(left, PIECE))):
        left -= len(piece)
        yield piece


def _number(environ: WSGIEnvironment, name: str, default: int, most: int) -> int:
    for field in environ.get("QUERY_STRING", "").split("&"):
        key, _, value = field.partition("=")
        if key == name:
            number = _decimal(value)
            if number is None or number > most:
                raise RequestError("400 Bad Request", f"{name} must be a whole number from 0 to {most}.")
            return number
    return default


def _decimal(text: str) -> int | None:
    """The number, if `text` is 1 to 15 ASCII digits; `int` alone also takes signs, spaces, underscores and other scripts."""
    return int(text) if text.isascii() and text.isdigit() and len(text) <= 15 else None


def _decoded(data: bytes | bytearray) -> str:
    return data.decode("utf-8", "surrogateescape")


def _json_response(start_response: StartResponse, content: dict[str, Any]) -> Iterable[bytes]:
    body = json.dumps(content).encode() + b"\n"
    start_response("200 OK", [("Content-Type", "application/json"), ("Content-Length", str(len(body)))])
    return [body]


def _text_response(start_response: StartResponse, status: str, text: str, *more: tuple[str, str]) -> Iterable[bytes]:
    body = text.encode()
    start_response(status, [("Content-Type", "text/plain; charset=utf-8"), ("Content-Length", str(len(body))), *more])
    return [body]


_GET: Final = ("GET", "HEAD")

# For each path, its methods (if empty, any) and its view.
ROUTES: Final[dict[str, tuple[tuple[str, ...], Callable[[WSGIEnvironment, StartResponse], Iterable[bytes]]]]] = {
    "/": (_GET, _welcome),
    "/hello": (_GET, _hello),
    "/json": (_GET, _json),
    "/echo": ((), _echo),
    "/sleep": (_GET, _sleep),
    "/bytes": (_GET, _bytes),
    "/stream": (_GET, _stream),
    "/upload": (("POST", "PUT"), _upload),
    "/favicon.ico": (_GET, _icon),
}

_ICON: Final = b"""\
<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 32 32" fill="none" stroke="#3f8f5b" stroke-width="3">
<path stroke-linecap="round" d="M16 30V16M16 17L6 6M16 17L12 3M16 17L20 3M16 17L26 6"/>
</svg>
"""

_PAGE: Final = """\
<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>epollard is serving</title>
<link rel="icon" type="image/svg+xml" href="/favicon.ico">
<style>
:root { --ground: #f6f7f4; --card: #fff; --ink: #1d2b24; --soft: #5d6b63; --line: #dfe4de; --leaf: #2f7d4c;
  color-scheme: light dark; }
@media (prefers-color-scheme: dark) {
  :root { --ground: #14181a; --card: #1c2225; --ink: #e4ebe6; --soft: #98a69e; --line: #2c3538; --leaf: #6fcf97; }
}
* { box-sizing: border-box; }
body { margin: 0; padding: clamp(1.5rem, 5vw, 4rem) 1.25rem; background: var(--ground); color: var(--ink);
  font: 1rem/1.6 system-ui, "Segoe UI", Roboto, sans-serif; }
main { max-width: 46rem; margin: auto; }
header { display: flex; gap: 1.25rem; align-items: center; }
header svg { width: 4.25rem; flex: none; fill: none; stroke: var(--leaf); stroke-width: 3; stroke-linecap: round; }
h1 { margin: 0; font-size: clamp(1.8rem, 6vw, 2.6rem); line-height: 1.15; letter-spacing: -.02em; }
header p { margin: .3rem 0 0; color: var(--soft); }
h2 { margin: 2.5rem 0 .75rem; font-size: 1.1rem; }
dl { display: grid; grid-template-columns: repeat(auto-fit, minmax(9rem, 1fr)); gap: .75rem; margin: 2rem 0 0; }
dl div, pre { border: 1px solid var(--line); border-radius: .75rem; background: var(--card); }
dl div { padding: .8rem 1rem; }
dt { color: var(--soft); font-size: .85rem; }
dd { margin: 0; font-size: 1.35rem; font-variant-numeric: tabular-nums; }
pre { margin: 0 0 .75rem; padding: .9rem 1.1rem; overflow-x: auto; }
pre, code { font: .92rem/1.55 ui-monospace, "Cascadia Code", Menlo, monospace; }
pre b { color: var(--leaf); font-weight: 600; }
ul { margin: 0; padding: 0; list-style: none; }
li { display: grid; grid-template-columns: 10.5rem 1fr; gap: 1rem; padding: .5rem 0; border-top: 1px solid var(--line); }
li:first-child { border-top: 0; }
li span { color: var(--soft); }
a { color: var(--leaf); text-underline-offset: .2em; }
footer { margin-top: 2.5rem; color: var(--soft); font-size: .9rem; }
@media (max-width: 34rem) { dl { grid-template-columns: 1fr 1fr; } li { grid-template-columns: 1fr; gap: 0; } }
</style>
</head>
<body>
<main>
<header>
<svg viewBox="0 0 32 32" aria-hidden="true"><path d="M16 30V16M16 17L6 6M16 17L12 3M16 17L20 3M16 17L26 6"/></svg>
<div>
<h1>epollard is serving</h1>
<p>One trunk, new shoots: this page came from the worker below.</p>
</div>
</header>
<dl>
<div><dt>Worker</dt><dd>[[worker]]</dd></div>
<div><dt>Generation</dt><dd>[[generation]]</dd></div>
<div><dt>Process</dt><dd>[[pid]]</dd></div>
<div><dt>Python</dt><dd>[[python]]</dd></div>
</dl>

<h2>Serve your own application</h2>
<p>Name a WSGI callable as <code>module:attribute</code>, or a factory as <code>module:factory()</code>:</p>
<pre><b>$</b> epollard module:app</pre>
<p>In a container, a Dockerfile of two lines next to your code:</p>
<pre><b>FROM</b> epollard
<b>COPY</b> . .</pre>
<pre><b>$</b> docker build -t mine .
<b>$</b> docker run -p 8000:8000 mine module:app</pre>

<h2>Try the routes of this demo</h2>
<ul>
<li><a href="/hello">/hello</a><span>thirteen bytes</span></li>
<li><a href="/json">/json</a><span>a greeting, and the process that responded</span></li>
<li><a href="/echo?say=hello">/echo?say=hello</a><span>your request, as the application saw it</span></li>
<li><a href="/sleep?ms=500">/sleep?ms=500</a><span>a slow response; other requests do not wait for it</span></li>
<li><a href="/bytes?n=4096">/bytes?n=4096</a><span>this many bytes</span></li>
<li><a href="/stream?n=20">/stream?n=20</a><span>this many chunks, each sent as it is made</span></li>
<li><code>POST /upload</code><span>length and SHA-256 of what you send</span></li>
</ul>
<footer>Reload this page over a new connection and another worker may respond.</footer>
</main>
</body>
</html>
"""
