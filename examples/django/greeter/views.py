"""The views."""

import hashlib
import os
import time

from django.core.exceptions import BadRequest
from django.http import HttpRequest, HttpResponse, JsonResponse, StreamingHttpResponse
from django.shortcuts import render
from django.views.decorators.http import require_POST, require_safe

ALPHABET = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/"
PIECE = 64 * 1024


def number(request: HttpRequest, name: str, default: int, most: int) -> int:
    """A number in the query; any other value gets a 400 response."""
    text = request.GET.get(name, str(default))
    if not (text.isascii() and text.isdigit() and len(text) <= 9 and int(text) <= most):
        raise BadRequest(f"{name} must be a whole number from 0 to {most}")
    return int(text)


@require_safe
def index(request: HttpRequest) -> HttpResponse:
    return render(request, "index.html", {"pid": os.getpid(), "worker": os.environ.get("EPOLLARD_WORKER_ID")})


@require_safe
def hello(request: HttpRequest) -> HttpResponse:
    return HttpResponse("Hello, World!", content_type="text/plain")


@require_safe
def greeting(request: HttpRequest) -> HttpResponse:
    return JsonResponse({"message": "Hello, World!", "pid": os.getpid(), "worker": os.environ.get("EPOLLARD_WORKER_ID")})


def echo(request: HttpRequest) -> HttpResponse:
    return JsonResponse(
        {
            "method": request.method,
            "path": request.path,
            "query": request.META.get("QUERY_STRING", ""),
            "headers": dict(request.headers),
            "body": request.body.decode("utf-8", "replace"),
        }
    )


@require_safe
def sleep(request: HttpRequest) -> HttpResponse:
    milliseconds = number(request, "ms", 100, 60_000)
    time.sleep(milliseconds / 1000)
    return HttpResponse(f"slept {milliseconds} ms\n", content_type="text/plain")


@require_safe
def some_bytes(request: HttpRequest) -> HttpResponse:
    size = number(request, "n", 1024, 1024 * 1024)
    return HttpResponse((ALPHABET * (size // 64 + 1))[:size], content_type="application/octet-stream")


@require_safe
def stream(request: HttpRequest) -> StreamingHttpResponse:
    count = number(request, "n", 10, 100_000)
    return StreamingHttpResponse((f"chunk {index}\n" for index in range(count)), content_type="text/plain")


@require_POST
def upload(request: HttpRequest) -> HttpResponse:
    length, digest = 0, hashlib.sha256()
    while piece := request.read(PIECE):
        length += len(piece)
        digest.update(piece)
    return JsonResponse({"length": length, "sha256": digest.hexdigest()})
