"""Says hello, and names its process. It has no state that a test could disturb."""

import os
import time


def app(environ, start_response):
    """`/pid` and `/env` identify the worker, `/sleep?SECONDS` takes that long, every other path says hello."""
    path = environ["PATH_INFO"]
    if path == "/pid":
        body = str(os.getpid())
    elif path == "/env":
        body = f"{os.environ['EPOLLARD_WORKER_ID']} {os.environ['EPOLLARD_GENERATION']}"
    elif path == "/sleep":
        time.sleep(float(environ["QUERY_STRING"]))
        body = "slept"
    else:
        body = "Hello, world!"
    start_response("200 OK", [("Content-Type", "text/plain"), ("Content-Length", str(len(body)))])
    return [body.encode()]
