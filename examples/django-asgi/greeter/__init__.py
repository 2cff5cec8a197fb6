"""A Django project with the routes that the load tests use, for ASGI. It needs nothing of the server that serves it."""
