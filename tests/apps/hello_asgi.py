"""Says hello, as an ASGI application. Nothing that a test could disturb."""


async def app(scope, receive, send):
    """Everything is hello."""
    if scope["type"] == "http":
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"13")]})
        await send({"type": "http.response.body", "body": b"Hello, world!"})
