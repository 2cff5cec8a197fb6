"""Every way in which a WSGI application may answer, well or badly: one for each path. Tests observe it through files only.

Long: one server has all routes, so that most tests can share it.
"""

import contextlib
import hashlib
import io
import json
import os
import resource
import socket
import sys
import threading
from itertools import chain
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl

TEXT = ("Content-Type", "text/plain")
ROUTES = {}


def route(function):
    ROUTES["/" + function.__name__] = function
    return function


def app(environ, start_response):
    """`/name?key=value` calls the function `name` with the pairs of its query in `environ["query"]`."""
    environ["query"] = dict(parse_qsl(environ["QUERY_STRING"]))
    return ROUTES.get("/" + environ["PATH_INFO"].split("/")[1], hello)(environ, start_response)


def note(environ, text):
    """Write a line to the file that the test reads."""
    fd = os.open(environ["query"]["log"], os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    os.write(fd, text.encode() + b"\n")
    os.close(fd)


def wait(fifo):
    """Wait until the test opens the gate (`gates.Gate`)."""
    with open(fifo, "rb") as file:
        file.read()


# --- Well-behaved responses


@route
def hello(environ, start_response):
    start_response("200 OK", [TEXT, ("Content-Length", "13")])
    return [b"Hello, world!"]


@route
def pid(environ, start_response):
    start_response("200 OK", [TEXT])
    return [str(os.getpid()).encode()]


SAME = [TEXT, ("X-Turn", "0")]


@route
def changing(environ, start_response):
    """Pass the same list of headers with other content each time: a bad one every fifth time, a new status every third."""
    turn = SAME.pop()[1]
    number = int(turn.split()[0]) + 1
    SAME.append(("X-Turn", f"{number}" if number % 5 else f"{number} \n"))
    start_response("203 So" if number % 3 == 0 else "200 OK", SAME)
    return [turn.split()[0].encode()]


@route
def target(environ, start_response):
    """The target of the request, so that a test can tell responses apart."""
    start_response("200 OK", [TEXT])
    return [environ["REQUEST_URI"].encode("latin-1")]


@route
def environment(environ, start_response):
    """The environ, as far as it can be written as JSON."""
    kept = {name: value for name, value in environ.items() if isinstance(value, str | bool | int | tuple)}
    environ["marked"] = "by an earlier request"
    start_response("200 OK", [("Content-Type", "application/json")])
    return [json.dumps(kept).encode()]


@route
def status(environ, start_response):
    """A response with the status and header fields of the query."""
    query = environ["query"]
    headers = [(name, query[name]) for name in ("Content-Length", "Connection", "Date", "Server", "X") if name in query]
    start_response(query["status"], headers)
    return [query.get("body", "").encode()]


@route
def size(environ, start_response):
    """`n` bytes as one piece, without a Content-Length."""
    start_response("200 OK", [TEXT])
    return [b"x" * int(environ["query"]["n"])]


@route
def pieces(environ, start_response):
    """A list of several pieces."""
    start_response("200 OK", [TEXT])
    return [b"one", b"", b"two", b"three"]


@route
def stream(environ, start_response):
    """`n` numbered lines by a generator, with a Content-Length if `length` is given."""
    n = int(environ["query"]["n"])
    lines = [b"%09d\n" % i for i in range(n)]
    headers = [("Content-Length", str(10 * n))] if "length" in environ["query"] else []
    start_response("200 OK", [TEXT, *headers])
    yield b""
    yield from lines
    if "log" in environ["query"]:
        note(environ, "after the last piece")


@route
def iterated(environ, start_response):
    """Headers that can be read only once."""
    start_response("200 OK", iter([TEXT, ("X-Read", "once")]))
    return [b""]


@route
def written(environ, start_response):
    """Part of the body by `write()`, the rest as the result."""
    write = start_response("200 OK", [TEXT])
    write(b"one")
    write(b"")
    write(b"two")
    return [b"three"]


@route
def written_without_end(environ, start_response):
    """Call `write()` until it raises."""
    write = start_response("200 OK", [TEXT])
    try:
        while True:
            write(b"more" * 1000)
    except OSError as error:
        note(environ, type(error).__name__)
        raise


@route
def written_then_file(environ, start_response):
    """Part of the body by `write()`, then a file that is long enough for sendfile."""
    write = start_response("200 OK", [TEXT])
    write(b"one")
    return environ["wsgi.file_wrapper"](open(environ["query"]["path"], "rb"))


@route
def replaced(environ, start_response):
    """Replace the head before it is sent."""
    start_response("200 OK", [TEXT, ("X-First", "1")])
    try:
        raise ValueError
    except ValueError:
        start_response("503 Service Unavailable", [TEXT], sys.exc_info())
    return [b"replaced"]


@route
def too_late(environ, start_response):
    """Replace the head after it is sent: `start_response` raises the exception, and the client sees a broken response."""
    write = start_response("200 OK", [TEXT])
    write(b"begun")
    try:
        raise ValueError("noticed too late")
    except ValueError:
        start_response("500 Oops", [TEXT], sys.exc_info())
    return [b"never"]


class Closing:
    """An iterable that notes when it is closed."""

    def __init__(self, environ, pieces):
        self.environ = environ
        self.pieces = iter(pieces)

    def __iter__(self):
        return self

    def __next__(self):
        return next(self.pieces)

    def close(self):
        note(self.environ, "closed")
        if "close" in self.environ["query"]:
            raise RuntimeError("raised by close()")


def failing():
    yield b"begun"
    raise RuntimeError("raised by the iterable")


def endless():
    while True:
        yield b"x" * 65536


@route
def closing(environ, start_response):
    """An iterable of the kind that is asked for, whose `close()` is noted."""
    start_response("200 OK", [TEXT])
    kinds = {
        "whole": lambda: [b"one", b"two"],
        "empty": list,
        "fails": failing,
        "bad": lambda: ["a string"],
        "endless": endless,
    }
    return Closing(environ, kinds[environ["query"]["kind"]]())


@route
def paced(environ, start_response):
    """Pieces of 64 KiB, each noted before it is yielded."""
    start_response("200 OK", [TEXT])
    for i in range(int(environ["query"]["n"])):
        note(environ, str(i))
        yield b"%05d" % i + b"x" * 65531


@route
def file(environ, start_response):
    """A file in `wsgi.file_wrapper`, from `offset`, with a Content-Length of `length`. Its closing is noted."""
    query = environ["query"]
    opened = open(query["path"], "rb", buffering=int(query.get("buffering", -1)))  # noqa: SIM115  # the server closes it
    opened.seek(int(query.get("offset", 0)))
    headers = [("Content-Length", query["length"])] if "length" in query else []
    start_response(query.get("status", "200 OK"), [("Content-Type", "application/octet-stream"), *headers])
    wrapper = environ["wsgi.file_wrapper"](opened, 8192)
    if "log" in query:
        close = wrapper.close

        def noted():
            close()
            note(environ, f"closed {opened.closed}")

        wrapper.close = noted
    return wrapper


@route
def filelike(environ, start_response):
    """`wsgi.file_wrapper` around an object that only looks like a file, or that decompresses one."""
    import gzip

    start_response("200 OK", [TEXT])
    kinds: dict[str, Any] = {"memory": lambda path: io.BytesIO(Path(path).read_bytes()), "gzip": gzip.open}
    return environ["wsgi.file_wrapper"](kinds[environ["query"]["kind"]](environ["query"]["path"]))


# --- Bodies


@route
def digest(environ, start_response):
    """Length and SHA-256 of the body, and the names of the files that this worker has open."""
    body = environ["wsgi.input"]
    named = []  # all except standard streams
    for fd in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):
            name = os.readlink(f"/proc/self/fd/{fd}")
            if int(fd) > 2 and os.path.isfile(name):
                named.append(name)
    total, hashed = 0, hashlib.sha256()
    while piece := body.read(10_000):
        total += len(piece)
        hashed.update(piece)
    start_response("200 OK", [("Content-Type", "application/json")])
    return [json.dumps({"length": total, "sha256": hashed.hexdigest(), "files": named, "input": str(body.read())}).encode()]


@route
def read(environ, start_response):
    """The body as read by one method of `wsgi.input`."""
    body = environ["wsgi.input"]
    ways = {
        "read": lambda: [body.read()],
        "read-none": lambda: [body.read(None)] if "none" in environ["query"] else [body.read(-1)],
        "read-sized": lambda: list(iter(lambda: body.read(7), b"")),
        "readline": lambda: list(iter(body.readline, b"")),
        "readline-sized": lambda: list(iter(lambda: body.readline(4), b"")),
        "readlines": body.readlines,
        "readlines-hint": lambda: list(chain.from_iterable(iter(lambda: body.readlines(1), []))),
        "iter": lambda: list(body),
        "not": list,
    }
    found = [piece.decode("latin-1") for piece in ways[environ["query"]["how"]]()]
    start_response("200 OK", [("Content-Type", "application/json")])
    return [json.dumps(found).encode()]


@route
def read_late(environ, start_response):
    """Begin the response, then read: a client that waits for "100 Continue" has its response already."""
    write = start_response("200 OK", [TEXT])
    write(b"begun ")
    try:
        return [environ["wsgi.input"].read()]
    except OSError as error:
        return [type(error).__name__.encode()]


@route
def read_twice(environ, start_response):
    """Read again after reading has failed."""
    outcomes = []
    for _ in range(2):
        try:
            outcomes.append(str(len(environ["wsgi.input"].read())))
        except OSError as error:
            outcomes.append(type(error).__name__)
    note(environ, " ".join(outcomes))
    start_response("200 OK", [TEXT])
    return [b"done"]


@route
def read_then_file(environ, start_response):
    """Respond with a file, whether the body arrived or not."""
    with contextlib.suppress(OSError):
        environ["wsgi.input"].read()
    return file(environ, start_response)


# --- Badly behaved ones


@route
def raises(environ, start_response):
    """Raise before `start_response`, or after it."""
    errors = {
        "error": RuntimeError,
        "exit": SystemExit,
        "interrupt": KeyboardInterrupt,
        "base": BaseException,
        "stop": StopIteration,
    }
    error = errors[environ["query"].get("error", "error")]("raised on purpose")
    if environ["query"].get("when") == "after":
        start_response("200 OK", [TEXT, ("X-Secret", "1")])
    raise error


@route
def raises_later(environ, start_response):
    start_response("200 OK", [TEXT])
    if "begun" in environ["query"]:
        yield b"begun"
    raise RuntimeError("raised on purpose")


@route
def length(environ, start_response):
    """`bytes` bytes with a Content-Length of `length`, as a list or an iterator."""
    query = environ["query"]
    start_response("200 OK", [TEXT, ("Content-Length", query["length"])])
    body = [b"x"] * int(query["bytes"])
    return body if "list" in query else iter(body)


@route
def bad(environ, start_response):
    """Break a rule of PEP 3333, one for each kind."""
    kind = environ["query"]["kind"]
    if kind == "no start":
        return [b"x"]
    if kind == "no start, generator":
        return iter([b"x"])
    if kind == "start twice":
        start_response("200 OK", [TEXT])
        start_response("200 OK", [TEXT])
    if kind == "status bytes":
        start_response(b"200 OK", [TEXT])
    if kind == "status 99":
        start_response("99 Low", [TEXT])
    if kind == "status 1xx":
        start_response("103 Early Hints", [TEXT])
    if kind == "status break":
        start_response("200 OK\r\nX-Leaked: 1", [TEXT])
    if kind == "header bytes":
        start_response("200 OK", [(b"X", b"x")])
    if kind == "header list":
        start_response("200 OK", [["X", "x"]])
    if kind == "length text":
        start_response("200 OK", [("Content-Length", "ten")])
    if kind == "lengths":
        start_response("200 OK", [("Content-Length", "1"), ("Content-Length", "2")])
    if kind == "unicode header":
        start_response("200 OK", [("X", "\u20ac")])
    if kind in ("str", "str, generator", "write str", "none", "number"):
        write = start_response("200 OK", [TEXT])
        if kind == "write str":
            write("text")
        return {"str": ["text"], "str, generator": iter(["text"]), "none": None, "number": 5}[kind]
    return [b"not reached"]


@route
def bad_header(environ, start_response):
    """A header that contains the characters whose codes are in the query."""
    text = "".join(map(chr, map(int, environ["query"]["codes"].split(","))))
    name, value = ("X-" + text, "x") if "name" in environ["query"] else ("X-Leaked", "before" + text + "X-Injected: after")
    start_response("200 OK", [TEXT, (name, value)])
    return [b"leaked"]


# --- Threads


running = []


@route
def gate(environ, start_response):
    """Wait for the test."""
    wait(environ["query"]["fifo"])
    start_response("200 OK", [TEXT])
    return [b"through"]


@route
def pause(environ, start_response):
    """Wait for `ms` milliseconds, then answer as `target`."""
    threading.Event().wait(int(environ["query"]["ms"]) / 1000)
    return target(environ, start_response)


@route
def gated_stream(environ, start_response):
    """A piece, a wait, another piece."""
    start_response("200 OK", [TEXT])
    yield b"before "
    wait(environ["query"]["fifo"])
    yield b"after"


@route
def gated_close(environ, start_response):
    """Wait in `close()`."""
    start_response("200 OK", [TEXT])

    class Result(list):
        def close(self):
            wait(environ["query"]["fifo"])

    return Result([b"whole"])


@route
def alone(environ, start_response):
    """Note how many of these calls ran at the same time, from the call to `close()`; step by step with `stream`."""
    running.append(None)
    overlaps = len(running)

    def steps():
        nonlocal overlaps
        try:
            for _ in range(3):
                threading.Event().wait(0.006)  # slow, so that the watcher takes the loop
                overlaps = max(overlaps, len(running))
                yield b"step\n"
        finally:
            running.pop()
            note(environ, str(overlaps))

    start_response("200 OK", [TEXT])
    if "stream" in environ["query"]:
        return steps()
    return [b"".join(steps())]


@route
def one_thread(environ, start_response):
    """Note on how many threads the call, the steps and `close()` run. A cursor of sqlite3 refuses to be used on another one."""
    import sqlite3

    local = threading.local()
    local.value = "kept"
    database = sqlite3.connect(":memory:")
    idents = [threading.get_ident()]

    class Steps:
        def __init__(self):
            self.rows = database.execute(
                "with recursive n(i) as (select 1 union all select i + 1 from n limit 20) select i from n"
            )

        def __iter__(self):
            return self

        def __next__(self):
            idents.append(threading.get_ident())
            (number,) = next(self.rows)
            if number % 5 == 0:
                threading.Event().wait(0.012)
            return f"{local.value} {number}\n".encode().ljust(int(environ["query"].get("size", 1)))

        def close(self):
            idents.append(threading.get_ident())
            self.rows.close()
            database.close()
            note(environ, f"{len(set(idents))} thread")

    start_response("200 OK", [TEXT])
    return Steps()


# --- The state of the process


@route
def fds(environ, start_response):
    """The number of open descriptors."""
    start_response("200 OK", [TEXT])
    return [str(len(os.listdir("/proc/self/fd"))).encode()]


@route
def memory(environ, start_response):
    """The peak resident memory of the process, KiB."""
    start_response("200 OK", [TEXT])
    return [str(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss).encode()]


@route
def options(environ, start_response):
    """The TCP options of the connection of this request."""
    me = (environ["REMOTE_ADDR"], int(environ["REMOTE_PORT"]))
    found = {}
    for name in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError), socket.socket(fileno=os.dup(int(name))) as sock:
            if sock.getpeername() == me:
                for option in "TCP_NODELAY", "TCP_CORK":
                    found[option] = sock.getsockopt(socket.IPPROTO_TCP, getattr(socket, option))
    start_response("200 OK", [("Content-Type", "application/json")])
    return [json.dumps(found).encode()]


@route
def own_fd(environ, start_response):
    """The descriptors of the connection of this request."""
    me = (environ["REMOTE_ADDR"], int(environ["REMOTE_PORT"]))
    found = []
    for name in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError), socket.socket(fileno=os.dup(int(name))) as sock:
            if sock.getpeername() == me:
                found.append(name)
    start_response("200 OK", [TEXT])
    return [",".join(found).encode()]
