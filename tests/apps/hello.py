"""Says hello, and which process says so. Nothing that a test could disturb."""

import os
import time


def app(environ, start_response):
    """`/pid` and `/env` tell of the worker, `/sleep?SECONDS` takes its time, everything else is hello."""
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
