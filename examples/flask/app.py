"""A Flask application with the routes that the load tests use. It needs nothing of the server that serves it."""

import hashlib
import os
import time
from collections.abc import Iterator

from flask import Flask, Response, abort, jsonify, render_template, request
from flask.typing import ResponseReturnValue

app = Flask(__name__)

ALPHABET = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/"
PIECE = 64 * 1024


def number(name: str, default: int, most: int) -> int:
    """A number in the query; any other value gets a 400 response."""
    text = request.args.get(name, str(default))
    if not (text.isascii() and text.isdigit() and len(text) <= 9 and int(text) <= most):
        abort(400, f"{name} must be a whole number from 0 to {most}")
    return int(text)


@app.get("/")
def index() -> str:
    return render_template("index.html", pid=os.getpid(), worker=os.environ.get("EPOLLARD_WORKER_ID"))


@app.get("/hello")
def hello() -> ResponseReturnValue:
    return Response("Hello, World!", mimetype="text/plain")


@app.get("/json")
def greeting() -> ResponseReturnValue:
    return jsonify(message="Hello, World!", pid=os.getpid(), worker=os.environ.get("EPOLLARD_WORKER_ID"))


@app.route("/echo", methods=["GET", "POST"])
def echo() -> ResponseReturnValue:
    return jsonify(
        method=request.method,
        path=request.path,
        query=request.query_string.decode("latin-1"),
        headers=dict(request.headers),
        body=request.get_data(as_text=True),
    )


@app.get("/sleep")
def sleep() -> ResponseReturnValue:
    milliseconds = number("ms", 100, 60_000)
    time.sleep(milliseconds / 1000)
    return Response(f"slept {milliseconds} ms\n", mimetype="text/plain")


@app.get("/bytes")
def some_bytes() -> ResponseReturnValue:
    size = number("n", 1024, 1024 * 1024)
    return Response((ALPHABET * (size // 64 + 1))[:size], mimetype="application/octet-stream")


@app.get("/stream")
def stream() -> ResponseReturnValue:
    count = number("n", 10, 100_000)

    def chunks() -> Iterator[str]:
        for index in range(count):
            yield f"chunk {index}\n"

    return Response(chunks(), mimetype="text/plain")


@app.post("/upload")
def upload() -> ResponseReturnValue:
    length, digest = 0, hashlib.sha256()
    while piece := request.stream.read(PIECE):
        length += len(piece)
        digest.update(piece)
    return jsonify(length=length, sha256=digest.hexdigest())
