"""What applications do with asyncio besides answering: each path uses one of its facilities, and answers with the outcome."""

import asyncio
import contextlib
import os
import signal
import socket
import threading
import time

from apps.asgi_routes import Call, hello

ROUTES = {}


def route(function):
    ROUTES["/" + function.__name__] = function
    return function


async def app(scope, receive, send):
    """`/name` answers with what the function `name` returns."""
    if scope["type"] != "http":
        raise RuntimeError("no lifespan")
    call = Call(scope, receive, send)
    found = ROUTES.get(scope["path"])
    await (call.answer(str(await found(call)).encode()) if found else hello(call))


@route
async def reader(call):
    """Uses `add_reader` and `add_writer`."""
    loop = asyncio.get_running_loop()
    ours, other = socket.socketpair()
    with ours, other:
        done = loop.create_future()
        loop.add_reader(ours, lambda: done.set_result(ours.recv(100)))
        loop.add_writer(other, lambda: (other.send(b"through a reader"), loop.remove_writer(other)))
        received = await done
        assert loop.remove_reader(ours)
        assert not loop.remove_writer(other)
    return received.decode()


@route
async def streams(call):
    """Has a server and a client of its own."""

    async def serve(reader, writer):
        writer.write((await reader.readline()).upper())
        writer.close()
        await writer.wait_closed()

    async with await asyncio.start_server(serve, "127.0.0.1", 0) as server:
        reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
        writer.write(b"over a stream\n")
        answer = await reader.read()
        writer.close()
        await writer.wait_closed()
    return answer.decode().strip()


@route
async def datagrams(call):
    """Sends UDP over sockets of the loop."""
    loop = asyncio.get_running_loop()
    with socket.socket(type=socket.SOCK_DGRAM) as one, socket.socket(type=socket.SOCK_DGRAM) as other:
        for sock in one, other:
            sock.setblocking(False)
            sock.bind(("127.0.0.1", 0))
        await loop.sock_sendto(one, b"a datagram", other.getsockname())
        return (await loop.sock_recv(other, 100)).decode()


@route
async def processes(call):
    """Runs ten processes at once, with their output and exit status."""

    async def run(number):
        words = ("sh", "-c", f"read line; echo $line; exit {number}")
        process = await asyncio.create_subprocess_exec(*words, stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE)
        output, _ = await process.communicate(b"word\n")
        return output.decode().strip(), process.returncode

    found = await asyncio.gather(*map(run, range(10)))
    return found == [("word", number) for number in range(10)]


@route
async def executor(call):
    """Blocks in a thread, which does not block the loop."""

    def work():
        time.sleep(float(call.query["seconds"]))
        return threading.current_thread()

    return await asyncio.get_running_loop().run_in_executor(None, work) is not threading.current_thread()


@route
async def signals(call):
    """Handles a signal that the server does not use."""
    loop = asyncio.get_running_loop()
    heard = asyncio.Event()
    loop.add_signal_handler(signal.SIGWINCH, heard.set)
    os.kill(os.getpid(), signal.SIGWINCH)
    await heard.wait()
    return loop.remove_signal_handler(signal.SIGWINCH)


@route
async def runner(call):
    """Runs a loop of its own in a thread."""

    async def inner():
        await asyncio.sleep(0.001)
        return asyncio.get_running_loop()

    def run():
        with asyncio.Runner() as runner:
            return runner.run(inner()) is runner.get_loop() and asyncio.run(inner()) is not runner.get_loop()

    return await asyncio.to_thread(run)


@route
async def thread(call):
    """Wakes the loop with `call_soon_threadsafe`."""
    loop = asyncio.get_running_loop()
    done = loop.create_future()
    threading.Timer(0.05, lambda: loop.call_soon_threadsafe(done.set_result, "from a thread")).start()
    return await done


@route
async def timers(call):
    """Sets timers, which fire in their order and never early."""
    loop = asyncio.get_running_loop()
    order = []
    begun = loop.time()
    for ms in 30, 10, 20, 0:
        loop.call_later(ms / 1000, lambda ms=ms: order.append((ms, loop.time() - begun >= ms / 1000 - 0.002)))
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(0.06):
            await asyncio.Event().wait()
    return order == [(0, True), (10, True), (20, True), (30, True)]


@route
async def libraries(call):
    """Uses anyio: task groups, cancel scopes, worker threads and the way back from them."""
    import anyio
    import anyio.from_thread
    import anyio.to_thread

    found = []

    def blocking():
        found.append(anyio.from_thread.run(value, 2))
        return 1

    async def value(number):
        await anyio.sleep(0.001)
        return number

    async with anyio.create_task_group() as group:
        group.start_soon(anyio.sleep, 3600)
        found.append(await anyio.to_thread.run_sync(blocking))
        group.cancel_scope.cancel()
    with anyio.move_on_after(0.01) as scope:
        await anyio.sleep_forever()
    return f"{found} {scope.cancelled_caught}"


@route
async def sniffed(call):
    """Looks at the current task, as `sniffio` does, before the first wait and after it."""
    first = asyncio.current_task()
    await asyncio.sleep(0)
    return first is not None and first is asyncio.current_task() and first in asyncio.all_tasks()


@route
async def lost(call):
    """Starts a task that fails, and does not await it."""
    task = asyncio.create_task(fail())
    await asyncio.wait([task])
    del task
    return "lost"


async def fail():
    raise RuntimeError("not awaited")


@route
async def generator(call):
    """Leaves an asynchronous generator in the middle, which ends all the same."""
    ended = []

    async def numbers():
        try:
            yield 1
        finally:
            await asyncio.sleep(0)
            ended.append(True)

    async for _ in numbers():
        break
    while not ended:
        await asyncio.sleep(0.001)
    return "ended"


@route
async def epolls(call):
    """Counts the epolls of this process."""
    links = []
    for fd in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):
            links.append(os.readlink(f"/proc/self/fd/{fd}"))
    return links.count("anon_inode:[eventpoll]")


@route
async def debug(call):
    """Reports whether the loop is in debug mode."""
    return asyncio.get_running_loop().get_debug()


@route
async def block(call):
    """Blocks the loop for half a second."""
    hold(0.5)
    return "held"


def hold(seconds):
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        sum(range(1000))


@route
async def closing(call):
    """Runs a callback that raises, and belongs to no request."""
    asyncio.get_running_loop().call_soon(fall)
    await asyncio.sleep(0.01)
    return "went on"


def fall():
    raise RuntimeError("in a callback")


@route
async def forever(call):
    """Starts a thread of the executor that ends only when the server is stopped."""
    asyncio.get_running_loop().run_in_executor(None, time.sleep, 0.5)
    return "begun"
