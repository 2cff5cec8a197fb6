"""The Django application with ASGI: its synchronous views in threads, and some asynchronous ones."""

import asyncio
import os

from django.core.asgi import get_asgi_application
from django.http import HttpResponse, StreamingHttpResponse
from django.urls import path

from apps import django_app


async def hello(request):
    await asyncio.sleep(0)
    return HttpResponse(f"asynchronous, {request.scope['http_version']}")


async def listen(request):
    """Django cancels a view whose client has left."""
    fd = os.open(request.GET["log"], os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    os.write(fd, b"waiting\n")
    try:
        await asyncio.sleep(3600)
    except asyncio.CancelledError:
        os.write(fd, b"cancelled\n")
        raise
    finally:
        os.close(fd)


async def events(request):
    async def source():
        for number in range(5):
            yield f"data: {number}\n\n"
            await asyncio.sleep(0.001)

    return StreamingHttpResponse(source(), content_type="text/event-stream")


django_app.urlpatterns += [path("async/", hello), path("listen/", listen), path("events/", events)]
app = get_asgi_application()
