"""The views: `async def` if a view waits or responds at once, a plain function if it computes."""

import asyncio
import hashlib
import os
from collections.abc import AsyncIterator

from django.core.exceptions import BadRequest
from django.http import HttpRequest, HttpResponse, JsonResponse, StreamingHttpResponse
from django.utils.html import format_html
from django.views.decorators.http import require_POST, require_safe

ALPHABET = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/"
PAGE = """\
<!doctype html>
<html lang="en">
<meta charset="utf-8">
<title>Django on epollard, asynchronous</title>
<h1>Django on epollard, asynchronous</h1>
<p>Worker {}, process {}.</p>
<p><a href="/hello">/hello</a> <a href="/json">/json</a> <a href="/echo?say=hello">/echo</a> <a href="/sleep?ms=500">/sleep</a>
<a href="/bytes?n=4096">/bytes</a> <a href="/stream?n=20">/stream</a></p>
</html>
"""


def number(request: HttpRequest, name: str, default: int, most: int) -> int:
    """A number in the query; any other value gets a 400 response."""
    text = request.GET.get(name, str(default))
    if not (text.isascii() and text.isdigit() and len(text) <= 9 and int(text) <= most):
        raise BadRequest(f"{name} must be a whole number from 0 to {most}")
    return int(text)


@require_safe
async def index(request: HttpRequest) -> HttpResponse:
    return HttpResponse(format_html(PAGE, os.environ.get("EPOLLARD_WORKER_ID"), os.getpid()))


@require_safe
async def hello(request: HttpRequest) -> HttpResponse:
    return HttpResponse("Hello, World!", content_type="text/plain")


@require_safe
async def greeting(request: HttpRequest) -> HttpResponse:
    return JsonResponse({"message": "Hello, World!", "pid": os.getpid(), "worker": os.environ.get("EPOLLARD_WORKER_ID")})


async def echo(request: HttpRequest) -> HttpResponse:
    return JsonResponse(
        {
            "method": request.method,
            "path": request.path,
            "query": request.META.get("QUERY_STRING", ""),
            "headers": dict(request.headers),
            "body": request.body.decode("utf-8", "replace"),  # Django has received all of it before it calls a view
        }
    )


@require_safe
async def sleep(request: HttpRequest) -> HttpResponse:
    milliseconds = number(request, "ms", 100, 60_000)
    await asyncio.sleep(milliseconds / 1000)
    return HttpResponse(f"slept {milliseconds} ms\n", content_type="text/plain")


@require_safe
def some_bytes(request: HttpRequest) -> HttpResponse:
    size = number(request, "n", 1024, 1024 * 1024)
    return HttpResponse((ALPHABET * (size // 64 + 1))[:size], content_type="application/octet-stream")


@require_safe
async def stream(request: HttpRequest) -> StreamingHttpResponse:
    count = number(request, "n", 10, 100_000)

    async def chunks() -> AsyncIterator[str]:
        for index in range(count):
            yield f"chunk {index}\n"

    return StreamingHttpResponse(chunks(), content_type="text/plain")


@require_POST
def upload(request: HttpRequest) -> HttpResponse:
    length, digest = 0, hashlib.sha256()
    while piece := request.read(64 * 1024):
        length += len(piece)
        digest.update(piece)
    return JsonResponse({"length": length, "sha256": digest.hexdigest()})
