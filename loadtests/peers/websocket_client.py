"""Many WebSockets with little CPU time for the client: each sends again as soon as the whole echo is back. Run by run.py.

    python websocket_client.py PORT SECONDS CONNECTIONS DEPTH

Each connection has DEPTH text messages of 64 bytes in flight. Frames are made once, and every byte of an echo is compared:
the client takes a few microseconds for a message, the server tens. Prints a summary as JSON, as report.lua does for wrk.
"""

import json
import select
import socket
import sys
import time

SIZE = 64
KEY = b"\x37\xfa\x21\x3d"
HANDSHAKE = (
    b"GET /echo HTTP/1.1\r\nHost: 127.0.0.1\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n"
)
RESPONSE_TIMEOUT = 10  # seconds


def connect(port: int) -> socket.socket:
    """An open WebSocket without extensions."""
    sock = socket.create_connection(("127.0.0.1", port), timeout=RESPONSE_TIMEOUT)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    sock.sendall(HANDSHAKE)
    response = b""
    while not response.endswith(b"\r\n\r\n"):
        piece = sock.recv(4096)
        if not piece:
            break
        response += piece
    if not response.startswith(b"HTTP/1.1 101 ") or b"sec-websocket-extensions" in response.lower():
        raise SystemExit(f"no WebSocket: {response!r}")
    return sock


def exchange(socks: dict[int, socket.socket], batch: bytes, expected: bytes, seconds: int) -> tuple[list[float], int]:
    """Send `batch` on each socket and read `expected`, again and again. How long each took, and the number of errors."""
    whole = len(expected)
    parts = dict.fromkeys(socks, b"")
    began = dict.fromkeys(socks, 0.0)
    taken: list[float] = []
    errors = 0
    poll = select.epoll()
    clock = time.perf_counter
    end = clock() + seconds
    for fd, sock in socks.items():
        poll.register(fd, select.EPOLLIN)
        began[fd] = clock()
        sock.sendall(batch)
    while socks:
        events = poll.poll(RESPONSE_TIMEOUT)
        now = clock()
        if not events:
            errors += len(socks)
            break
        for fd, _ in events:
            sock = socks[fd]
            data = sock.recv(65536)
            if parts[fd]:
                data = parts[fd] + data
            if len(data) < whole and data and expected.startswith(data):
                parts[fd] = data
                continue
            parts[fd] = b""
            if data != expected:
                errors += 1
            else:
                taken.append(now - began[fd])
            if data != expected or now >= end:
                poll.unregister(fd)
                socks.pop(fd).close()
                continue
            began[fd] = now
            sock.send(batch)
    return taken, errors


def main() -> None:
    port, seconds, connections, depth = map(int, sys.argv[1:])
    payload = (b"0123456789abcdef" * (SIZE // 16))[:SIZE]
    masked = bytes(byte ^ KEY[at % 4] for at, byte in enumerate(payload))
    batch = (bytes([0x81, 0x80 | SIZE]) + KEY + masked) * depth
    expected = (bytes([0x81, SIZE]) + payload) * depth
    socks = {sock.fileno(): sock for sock in (connect(port) for _ in range(connections))}
    start = time.perf_counter()
    taken, errors = exchange(socks, batch, expected, seconds)
    duration = time.perf_counter() - start
    taken.sort()
    summary = {
        "requests": len(taken) * depth,
        "errors": errors,
        "duration_us": duration * 1e6,
        "p50_us": taken[len(taken) // 2] * 1e6 if taken else 0,
        "p99_us": taken[len(taken) * 99 // 100] * 1e6 if taken else 0,
        "max_us": taken[-1] * 1e6 if taken else 0,
    }
    print("summary", json.dumps(summary))


if __name__ == "__main__":
    main()
