"""What an idle keep-alive connection costs one worker in memory. Never counts the kernel's socket buffers, only the process.

Ten thousand clients ask once and stay. The promise: they add less than 40 MiB; exit status 1 where it is more.
"""

import argparse
import resource
import socket
import sys
from contextlib import ExitStack
from pathlib import Path

import measure

REQUEST = b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\nUser-Agent: memory/1\r\nAccept: */*\r\n\r\n"


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


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--connections", type=int, default=10_000)
    parser.add_argument("--limit", type=float, default=40, help="MiB that they may add")
    parser.add_argument("--python", default=sys.executable)
    parser.add_argument("--option", action="append", default=[], help="for epollard, as in --option=--trigger=edge; repeatable")
    arguments = parser.parse_args()
    measure.need("taskset")
    raise_file_limit(arguments.connections + 1000)

    measure.own_network()
    about = measure.machine(arguments.python)
    print(", ".join(f"{key} {value}" for key, value in about.items()))
    port = measure.free_port()
    peers = Path(__file__).resolve().parent / "peers"
    options = ["--keep-alive", "600", *arguments.option]  # no connection may end while they are counted
    mebibyte = 1 << 20
    with measure.epollard(arguments.python, port, "hello:app", *options, app_directory=peers) as server:
        (worker,) = server.workers()
        for _ in range(100):
            with socket.create_connection(("127.0.0.1", port), timeout=10) as client:
                ask(client)
        before = measure.memory_bytes(worker)
        with ExitStack() as clients:
            for _ in range(arguments.connections):
                client = clients.enter_context(socket.create_connection(("127.0.0.1", port), timeout=10))
                ask(client)
            # The worker that is counted is the one that holds them all.
            held = sum(link.readlink().name.startswith("socket:") for link in Path(f"/proc/{worker}/fd").iterdir())
            if held < arguments.connections:
                raise RuntimeError(f"the worker holds {held} sockets, not {arguments.connections}")
            during = measure.memory_bytes(worker)
    rows = []
    for name in ("Rss", "Pss"):
        added = during[name] - before[name]
        figures = [f"{figure / mebibyte:.1f}" for figure in (before[name], during[name], added)]
        rows.append([name.upper(), *figures, f"{added / arguments.connections:.0f}"])
    print(f"\none worker, {arguments.connections} idle keep-alive connections\n")
    measure.print_table(["", "before MiB", "with them MiB", "added MiB", "bytes a connection"], rows)
    measure.save("memory", {"machine": about, "connections": arguments.connections, "before": before, "during": during})
    return 0 if during["Rss"] - before["Rss"] < arguments.limit * mebibyte else 1


if __name__ == "__main__":
    sys.exit(main())
