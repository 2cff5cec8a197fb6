"""The application interface ASGI 3: calls on asyncio, which is a guest on our loop."""
