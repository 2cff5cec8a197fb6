"""A Quart application: what users of Flask expect, with asynchronous views."""

import asyncio
import hashlib

from quart import Quart, request, session, stream_with_context

app = Quart(__name__)
app.secret_key = "not a secret"
served = {}


@app.before_serving
async def begin():
    served["begun"] = True


@app.get("/")
async def index():
    return "Hello from Quart" if served["begun"] else ("before_serving did not run", 500)


@app.get("/error")
async def error():
    raise ValueError("as asked for")


@app.post("/form")
async def form():
    form = await request.form
    return {"name": form["name"], "all": form.getlist("all")}


@app.post("/upload")
async def upload():
    file = (await request.files)["file"]
    return {"name": file.filename, "sha256": hashlib.sha256(file.read()).hexdigest()}


@app.post("/raw")
async def raw():
    length = 0
    async for piece in request.body:
        length += len(piece)
    return {"length": length}


@app.get("/count")
async def count():
    session["count"] = session.get("count", 0) + 1
    return str(session["count"])


@app.get("/stream")
async def stream():
    @stream_with_context
    async def lines():
        for number in range(50):
            if number % 10 == 0:
                await asyncio.sleep(0.001)
            yield f"{request.args['word']} {number}\n".encode()

    return lines(), {"content-type": "text/plain"}


@app.get("/sync")
def sync():
    """A view that is not asynchronous runs in a thread."""
    return "from a thread"
