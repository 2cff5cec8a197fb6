"""Measures how much memory an idle connection takes in one worker. Counts the process only, never the kernel's socket buffers.

Ten thousand clients send one request each and stay connected. The promise is that they add less than 40 MiB. With --websockets,
five thousand clients open a WebSocket, send a message, receive the echo and stay: less than 100 MiB. The exit status is 1 if it
is more.
"""

import argparse
import resource
import socket
import sys
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path

import measure

REQUEST = b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\nUser-Agent: memory/1\r\nAccept: */*\r\n\r\n"
HANDSHAKE = (
    b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n"
)


def raise_file_limit(wanted: int) -> None:
    """Raise it for this process and, as limits are inherited, for the server that it starts."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < wanted:
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, max(hard, wanted)))
        except (OSError, ValueError):
            sys.exit(f"{wanted} open files are required, {hard} are allowed: raise the limit or reduce --connections")


def ask(client: socket.socket) -> None:
    """Send one request and read its whole response."""
    client.sendall(REQUEST)
    response = b""
    while b"\r\n\r\n" not in response:
        chunk = client.recv(65536)
        if not chunk:
            raise RuntimeError("closed before the response was complete")
        response += chunk
    if not response.startswith(b"HTTP/1.1 200 ") or b"connection: close" in response.lower():
        raise RuntimeError(f"not a response that keeps the connection open: {response[:200]!r}")
    while not response.endswith(b"Hello, world!"):
        response += client.recv(65536)


def talk(client: socket.socket) -> None:
    """Open a WebSocket, send a message and read its echo."""
    client.sendall(HANDSHAKE)
    response = b""
    while not response.endswith(b"\r\n\r\n"):
        chunk = client.recv(65536)
        if not chunk:
            raise RuntimeError("closed before the WebSocket was open")
        response += chunk
    if not response.startswith(b"HTTP/1.1 101 "):
        raise RuntimeError(f"not a WebSocket: {response[:200]!r}")
    client.sendall(b"\x81\x85\0\0\0\0hello")
    echo = b""
    while len(echo) < 7:
        echo += client.recv(65536)
    if echo != b"\x81\x05hello":
        raise RuntimeError(f"not an echo: {echo!r}")


# By the value of --websockets: the application, and what each client does once.
APPS: dict[bool, tuple[str, Callable[[socket.socket], None]]] = {False: ("hello:app", ask), True: ("asgi:echo", talk)}


def measure_memory(
    python: str, options: Sequence[str], app: str, count: int, meet: Callable[[socket.socket], None]
) -> tuple[dict[str, int], dict[str, int]]:
    """The memory of a worker in bytes, before and while `count` clients are connected that have called `meet`."""
    port = measure.free_port()
    peers = Path(__file__).resolve().parent / "peers"
    # No connection may end, and none may be pinged, while they are counted.
    options = ["--keep-alive", "600", "--ws-ping-interval", "600", *options]
    with measure.epollard(python, port, app, *options, app_directory=peers) as server:
        (worker,) = server.workers()
        for _ in range(100):
            with socket.create_connection(("127.0.0.1", port), timeout=10) as client:
                meet(client)
        before = measure.memory_bytes(worker)
        with ExitStack() as clients:
            for _ in range(count):
                client = clients.enter_context(socket.create_connection(("127.0.0.1", port), timeout=10))
                meet(client)
            # The worker whose memory is measured must hold them all.
            held = sum(link.readlink().name.startswith("socket:") for link in Path(f"/proc/{worker}/fd").iterdir())
            if held < count:
                raise RuntimeError(f"the worker holds {held} sockets, not {count}")
            return before, measure.memory_bytes(worker)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--websockets", action="store_true", help="open WebSockets, without compression")
    parser.add_argument("--connections", type=int, help="how many connections to open (default: 10000, or 5000 WebSockets)")
    parser.add_argument("--limit", type=float, help="how many MiB they may add (default: 40, or 100 for WebSockets)")
    parser.add_argument("--python", default=sys.executable, help="the interpreter that runs the server")
    parser.add_argument(
        "--option", action="append", default=[], help="an option for epollard, as in --option=--trigger=edge; repeatable"
    )
    arguments = parser.parse_args()
    count: int = arguments.connections or (5_000 if arguments.websockets else 10_000)
    limit: float = arguments.limit or (100 if arguments.websockets else 40)
    app, meet = APPS[arguments.websockets]
    measure.need("taskset")
    raise_file_limit(count + 1000)

    measure.own_network()
    about = measure.machine(arguments.python)
    print(", ".join(f"{key} {value}" for key, value in about.items()))
    before, during = measure_memory(arguments.python, arguments.option, app, count, meet)
    mebibyte = 1 << 20
    rows = []
    for name in ("Rss", "Pss"):
        added = during[name] - before[name]
        figures = [f"{figure / mebibyte:.1f}" for figure in (before[name], during[name], added)]
        rows.append([name.upper(), *figures, f"{added / count:.0f}"])
    kind = "open WebSockets" if arguments.websockets else "idle keep-alive connections"
    print(f"\none worker, {count} {kind}\n")
    measure.print_table(["", "before MiB", "with them MiB", "added MiB", "bytes a connection"], rows)
    measure.save("memory", {"machine": about, "connections": count, "kind": kind, "before": before, "during": during})
    return 0 if during["Rss"] - before["Rss"] < limit * mebibyte else 1


if __name__ == "__main__":
    sys.exit(main())
