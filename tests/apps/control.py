"""Does to its worker what a test asks for: dies, hangs, waits, leaves orphans."""

import asyncio
import ctypes
import os
import signal
import time


def app(environ, start_response):
    """The path says what is to be done, the query with what."""
    act = ACTS.get(environ["PATH_INFO"], hello)
    body = str(act(environ["QUERY_STRING"])).encode()
    start_response("200 OK", [("Content-Type", "text/plain"), ("Content-Length", str(len(body)))])
    return [body]


async def asgi(scope, receive, send):
    """The same as ASGI. There are no threads: what waits lets the others go on."""
    if scope["type"] != "http":
        raise RuntimeError("no lifespan")
    query = scope["query_string"].decode()
    if scope["path"] == "/until":
        body = await until_asgi(query)
    else:
        body = str(ACTS.get(scope["path"], hello)(query)).encode()
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": body})


async def until_asgi(path):
    open(path + ".running", "w").close()
    while not os.path.exists(path):
        await asyncio.sleep(0.005)
    return b"done"


def hello(_):
    return "hello"


def pid(_):
    return os.getpid()


def env(_):
    return os.environ["EPOLLARD_WORKER_ID"] + " " + os.environ["EPOLLARD_GENERATION"]


def leave(status):
    os._exit(int(status))


def kill(number):
    os.kill(os.getpid(), int(number))
    time.sleep(60)


def until(path):
    """Wait until there is such a file; say so in another, which tells the test that this is running."""
    open(path + ".running", "w").close()
    while not os.path.exists(path):
        time.sleep(0.005)
    return "done"


def hang(_):
    """Hold the interpreter's lock for ever without using the processor: nothing else in this process runs any more."""
    ctypes.PyDLL(None).read(os.pipe()[0], ctypes.create_string_buffer(1), 1)


def orphan(path):
    """Leave a grandchild to whoever takes orphans. It ends as soon as there is such a file."""
    reader, writer = os.pipe()
    child = os.fork()
    if not child:
        grandchild = os.fork()
        if grandchild:
            os.write(writer, str(grandchild).encode())
            os._exit(0)
        while not os.path.exists(path):
            time.sleep(0.005)
        os._exit(7)
    os.waitpid(child, 0)
    found = os.read(reader, 20).decode()
    os.close(reader)
    os.close(writer)
    return found


def subprocess_signals(_):
    """What a program that the application runs ignores: SigIgn of proc_pid_status(5)."""
    found = os.popen("cat /proc/self/status")
    with found:
        mask = next(int(line.split()[1], 16) for line in found if line.startswith("SigIgn"))
    return [number.name for number in signal.Signals if mask >> number - 1 & 1]


def sleep(seconds):
    """Keep a thread for so long, and no processor."""
    time.sleep(float(seconds))


def compute(seconds):
    """Keep the processor for so long."""
    end = time.monotonic() + float(seconds)
    while time.monotonic() < end:
        pass


def grow(megabytes):
    """Keep so much memory from now on; say which process does."""
    kept.append(b"x" * (int(megabytes) << 20))
    return os.getpid()


kept = []
ACTS = {
    "/pid": pid,
    "/env": env,
    "/exit": leave,
    "/kill": kill,
    "/until": until,
    "/hang": hang,
    "/orphan": orphan,
    "/sleep": sleep,
    "/compute": compute,
    "/grow": grow,
    "/ignored": subprocess_signals,
}
