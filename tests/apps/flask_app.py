"""A Flask application with the features of a real one: forms, uploads, sessions, streams, files, errors."""

import hashlib
import os
import time

from flask import Flask, Response, abort, request, send_file, session, stream_with_context

app = Flask(__name__)
app.secret_key = "not a secret"


@app.get("/")
def index():
    return "Hello from Flask"


@app.post("/form")
def form():
    return {"name": request.form["name"], "all": request.form.getlist("all")}


@app.post("/json")
def json():
    return request.get_json()


@app.post("/upload")
def upload():
    file = request.files["file"]
    return {"name": file.filename, "sha256": hashlib.sha256(file.read()).hexdigest()}


@app.post("/raw")
def raw():
    return {"length": len(request.stream.read())}


@app.get("/count")
def count():
    session["count"] = session.get("count", 0) + 1
    return str(session["count"])


@app.get("/stream")
def stream():
    def lines():
        for number in range(50):
            if number % 10 == 0:
                time.sleep(0.01)  # long enough for the thread to lose the loop
            yield f"{request.args['word']} {number}\n"

    return Response(stream_with_context(lines()), mimetype="text/plain")


@app.get("/file")
def file():
    return send_file(os.path.abspath(request.args["path"]), conditional=True)


@app.get("/missing")
def missing():
    abort(404, "not here")


@app.get("/error")
def error():
    raise RuntimeError("raised in a view")
