"""Forks a process without exec, as multiprocessing does. The child lives until it is terminated or loses its parent."""

import multiprocessing
import os
import time

CHILDREN = {}


def app(environ, start_response):
    """/fork starts a child and returns its pid; /end?PID terminates it as multiprocessing does and returns its exit status;
    /cpu returns the CPU seconds of this process; any other path says hello."""
    path = environ["PATH_INFO"]
    text = "hello"
    if path == "/fork":
        child = multiprocessing.get_context("fork").Process(target=_stay, args=(environ["QUERY_STRING"],), daemon=True)
        child.start()
        CHILDREN[child.pid] = child
        text = str(child.pid)
    elif path == "/end":
        child = CHILDREN.pop(int(environ["QUERY_STRING"]))
        child.terminate()
        child.join(20)
        text = str(child.exitcode)
    elif path == "/cpu":
        text = str(time.process_time())
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [text.encode()]


def _stay(path):
    open(path, "w").close()
    while os.getppid() != 1:
        time.sleep(0.05)
