"""An application that does to its worker what a test asks for: it dies, hangs, waits, or leaves orphans."""

import asyncio
import ctypes
import os
import signal
import time


def app(environ, start_response):
    """The path names an action, the query is its argument."""
    act = ACTS.get(environ["PATH_INFO"], hello)
    body = str(act(environ["QUERY_STRING"])).encode()
    start_response("200 OK", [("Content-Type", "text/plain"), ("Content-Length", str(len(body)))])
    return [body]


async def asgi(scope, receive, send):
    """The same as an ASGI application. `/until` waits without holding the loop."""
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
    """Wait until this file exists. Another file, PATH.running, shows the test that the wait has begun."""
    open(path + ".running", "w").close()
    while not os.path.exists(path):
        time.sleep(0.005)
    return "done"


def hang(_):
    """Hold the interpreter's lock for ever without using the CPU, so that nothing else in this process runs."""
    ctypes.PyDLL(None).read(os.pipe()[0], ctypes.create_string_buffer(1), 1)


def orphan(path):
    """Orphan a grandchild, which ends as soon as this file exists."""
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
    """The signals that a child process of the application ignores: SigIgn of proc_pid_status(5)."""
    found = os.popen("cat /proc/self/status")
    with found:
        mask = next(int(line.split()[1], 16) for line in found if line.startswith("SigIgn"))
    return [number.name for number in signal.Signals if mask >> number - 1 & 1]


def sleep(seconds):
    """Occupy a thread for this many seconds without using the CPU."""
    time.sleep(float(seconds))


def compute(seconds):
    """Use the CPU for this many seconds."""
    end = time.monotonic() + float(seconds)
    while time.monotonic() < end:
        pass


def grow(megabytes):
    """Occupy this many MiB of memory from now on. Returns the pid."""
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
