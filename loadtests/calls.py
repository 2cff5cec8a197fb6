"""Counts the Python calls for each request, which are the same on any machine. Measures the real server, never a model of it.

epollard runs in a process of its own and serves profiled.py, whose profile function counts every call of a Python or C function
in the worker. One client sends one request after another on one connection, so each request has a turn of the loop to itself
and the figures are exact, except for the worker's tick once a second.
"""

import argparse
import json
import socket
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import closing

import measure

RESPONSE = b"Hello, world!"
PIPELINED = 16
BROWSER = (
    "GET /articles/{n} HTTP/1.1\r\nHost: shop.example\r\nConnection: keep-alive\r\nCache-Control: max-age={n}\r\n"
    "User-Agent: Mozilla/5.0 (X11; Linux x86_64) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/126.0.{n}.0 Safari/537.36\r\n"
    "Accept: text/html,application/xhtml+xml;q=0.9,image/avif,image/webp,*/*;q=0.8,text/x-{n}\r\n"
    "Accept-Encoding: gzip, deflate, br;q=0.{n}\r\nAccept-Language: en-GB,en;q=0.{n}\r\n"
    "Referer: http://shop.example/articles/{n}?page=2\r\nCookie: session={n}7f3a9c51b2; csrf={n}d41d8cd98f00b204; seen={n}\r\n"
    'If-None-Match: "{n}-5f1a"\r\n\r\n'
)
HELLO = b"GET / HTTP/1.1\r\nHost: 127.0.0.1:8000\r\n\r\n"
POST = b"POST / HTTP/1.1\r\nHost: 127.0.0.1:8000\r\nContent-Type: text/plain\r\nContent-Length: 1024\r\n\r\n" + b"x" * 1024

# For each case: the bytes to send as number n, and how many requests they are; 0: one request on a connection of its own.
CASES: dict[str, tuple[Callable[[int], bytes], int]] = {
    "hello": (lambda n: HELLO, 1),
    "browser, the same again": (lambda n: BROWSER.format(n=1).encode(), 1),
    "browser, only the path new": (lambda n: BROWSER.replace("{n}", str(n), 1).format(n=1).encode(), 1),
    "browser, every value new": (lambda n: BROWSER.format(n=n).encode(), 1),
    "16 pipelined": (lambda n: HELLO * PIPELINED, PIPELINED),
    "POST of 1 KiB": (lambda n: POST, 1),
    "a new connection each": (lambda n: b"GET / HTTP/1.0\r\nHost: 127.0.0.1:8000\r\n\r\n", 0),
}


def ask(client: socket.socket, text: bytes, responses: int) -> None:
    """Send `text` and read until all responses have arrived, or to the end of the stream if `responses` is 0."""
    client.sendall(text)
    received = b""
    while not responses or received.count(RESPONSE) < responses:
        chunk = client.recv(65536)
        if not chunk:
            break
        received += chunk
    if received.count(RESPONSE) != (responses or 1):
        raise RuntimeError(f"unexpected response: {received[:300]!r}")


def connect(port: int) -> socket.socket:
    return socket.create_connection(("127.0.0.1", port), timeout=10)


def counts(port: int) -> Counter[tuple[str, str]]:
    """All calls that the worker has made so far, by language and function."""
    found = json.loads(measure.get(port, "/counts").partition(b"\r\n\r\n")[2])
    return Counter({(language, name): count for language in found for name, count in found[language].items()})


def count(port: int, make: Callable[[int], bytes], size: int, requests: int) -> Counter[tuple[str, str]]:
    """The calls that `requests` requests of this kind cause, without those that reading the counts causes."""

    def run(numbers: Iterator[int] | range) -> None:
        if not size:
            for n in numbers:
                with closing(connect(port)) as client:
                    ask(client, make(n), 0)
            return
        with closing(connect(port)) as client:
            for n in numbers:
                ask(client, make(n), size)

    run(range(1, 101))  # fills the memos for clients that repeat themselves
    turns = requests // (size or 1)
    start = counts(port)
    run(range(0))  # the cost of reading the counts and of connecting
    middle = counts(port)
    run(range(1000, 1000 + turns))
    end = counts(port)
    return Counter({key: (end[key] - middle[key]) - (middle[key] - start[key]) for key in end})


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--requests", type=int, default=1600, help="how many requests to send of each kind (default: %(default)s)"
    )
    parser.add_argument("--python", default=sys.executable, help="the interpreter that runs the server")
    parser.add_argument(
        "--option", action="append", default=[], help="an option for epollard, as in --option=--threads=1; repeatable"
    )
    parser.add_argument("--functions", metavar="CASE", choices=CASES, help="measure this case only, and list its functions")
    arguments = parser.parse_args()

    measure.need("taskset")
    measure.own_network()
    port = measure.free_port()
    rows = []
    with measure.epollard(arguments.python, port, "profiled:app", *arguments.option, app_directory=measure.LOADTESTS) as server:
        for case, (make, size) in CASES.items():
            if arguments.functions not in (None, case):
                continue
            found = count(server.port, make, size, arguments.requests)
            done = arguments.requests // (size or 1) * (size or 1)
            totals: Counter[str] = Counter()
            for (language, _), number in found.items():
                totals[language] += number
            rows.append([case, *(f"{totals[language] / done:.1f}" for language in ("python", "c"))])
            if arguments.functions:
                often = [(key, number / done) for key, number in found.most_common() if number * 100 > done]
                table = ([name, language, f"{number:.2f}"] for (language, name), number in often)
                measure.print_table(["function", "language", "calls a request"], table)
                print()
    python = measure.machine(arguments.python)["python"]
    print(f"{python}; {arguments.requests} requests of each kind {' '.join(arguments.option)}\n")
    measure.print_table(["case", "Python calls", "C calls"], rows)
    print("\nOne of the Python calls is that of the application itself.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
