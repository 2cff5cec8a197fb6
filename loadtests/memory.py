"""What an idle connection costs one worker in memory. Never counts the kernel's socket buffers, only the process.

Ten thousand clients ask once and stay: they add less than 40 MiB, that is the promise. With --websockets five thousand open a
WebSocket, say something, hear it and stay: less than 100 MiB. Exit status 1 where it is more.
"""

import argparse
import resource
import socket
import sys
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import measure

REQUEST = b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\nUser-Agent: memory/1\r\nAccept: */*\r\n\r\n"


HANDSHAKE = (
    b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n"
)


def raise_file_limit(wanted: int) -> None:
    """For this process and, as limits are inherited, for the server that it starts."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < wanted:
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, max(hard, wanted)))
        except (OSError, ValueError):
            sys.exit(f"{wanted} open files are needed, {hard} are allowed: raise the limit or ask for fewer --connections")


def ask(client: socket.socket) -> None:
    """One request and its whole answer, whose length is known from its head."""
    client.sendall(REQUEST)
    answer = b""
    while b"\r\n\r\n" not in answer:
        chunk = client.recv(65536)
        if not chunk:
            raise RuntimeError("closed before the answer was complete")
        answer += chunk
    if not answer.startswith(b"HTTP/1.1 200 ") or b"connection: close" in answer.lower():
        raise RuntimeError(f"not an answer that keeps the connection: {answer[:200]!r}")
    while not answer.endswith(b"Hello, world!"):
        answer += client.recv(65536)


def talk(client: socket.socket) -> None:
    """The handshake of a WebSocket, a message and its echo."""
    client.sendall(HANDSHAKE)
    answer = b""
    while not answer.endswith(b"\r\n\r\n"):
        chunk = client.recv(65536)
        if not chunk:
            raise RuntimeError("closed before the WebSocket was open")
        answer += chunk
    if not answer.startswith(b"HTTP/1.1 101 "):
        raise RuntimeError(f"not a WebSocket: {answer[:200]!r}")
    client.sendall(b"\x81\x85\0\0\0\0hello")
    answer = b""
    while len(answer) < 7:
        answer += client.recv(65536)
    if answer != b"\x81\x05hello":
        raise RuntimeError(f"not an echo: {answer!r}")


# By --websockets: the application, and what each client does first.
APPS: dict[bool, tuple[str, Callable[[socket.socket], None]]] = {False: ("hello:app", ask), True: ("asgi:echo", talk)}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--websockets", action="store_true", help="open WebSockets, without compression")
    parser.add_argument("--connections", type=int, help="default: 10000, or 5000 WebSockets")
    parser.add_argument("--limit", type=float, help="MiB that they may add; default: 40, or 100 for WebSockets")
    parser.add_argument("--python", default=sys.executable)
    parser.add_argument("--option", action="append", default=[], help="for epollard, as in --option=--trigger=edge; repeatable")
    arguments = parser.parse_args()
    count: int = arguments.connections or (5_000 if arguments.websockets else 10_000)
    limit: float = arguments.limit or (100 if arguments.websockets else 40)
    app, meet = APPS[arguments.websockets]
    measure.need("taskset")
    raise_file_limit(count + 1000)

    measure.own_network()
    about = measure.machine(arguments.python)
    print(", ".join(f"{key} {value}" for key, value in about.items()))
    port = measure.free_port()
    peers = Path(__file__).resolve().parent / "peers"
    # No connection may end, and none be pinged, while they are counted.
    options = ["--keep-alive", "600", "--ws-ping-interval", "600", *arguments.option]
    mebibyte = 1 << 20
    with measure.epollard(arguments.python, port, app, *options, app_directory=peers) as server:
        (worker,) = server.workers()
        for _ in range(100):
            with socket.create_connection(("127.0.0.1", port), timeout=10) as client:
                meet(client)
        before = measure.memory_bytes(worker)
        with ExitStack() as clients:
            for _ in range(count):
                client = clients.enter_context(socket.create_connection(("127.0.0.1", port), timeout=10))
                meet(client)
            # The worker that is counted is the one that holds them all.
            held = sum(link.readlink().name.startswith("socket:") for link in Path(f"/proc/{worker}/fd").iterdir())
            if held < count:
                raise RuntimeError(f"the worker holds {held} sockets, not {count}")
            during = measure.memory_bytes(worker)
    rows = []
    for name in ("Rss", "Pss"):
        added = during[name] - before[name]
        figures = [f"{figure / mebibyte:.1f}" for figure in (before[name], during[name], added)]
        rows.append([name.upper(), *figures, f"{added / count:.0f}"])
    what = "open WebSockets" if arguments.websockets else "idle keep-alive connections"
    print(f"\none worker, {count} {what}\n")
    measure.print_table(["", "before MiB", "with them MiB", "added MiB", "bytes a connection"], rows)
    measure.save("memory", {"machine": about, "connections": count, "what": what, "before": before, "during": during})
    return 0 if during["Rss"] - before["Rss"] < limit * mebibyte else 1


if __name__ == "__main__":
    sys.exit(main())
