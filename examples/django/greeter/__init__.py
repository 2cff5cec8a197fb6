"""A Django project with the routes that the load tests use. It needs nothing of the server that serves it."""
