"""Is the server in this container well? It must never ask the application: `OPTIONS *` is answered by the server itself.

Exit status 0 where every bound address answers 200, else 1 and one line that says which does not.
Where the server listens is read as the server reads it: from its own command line (it is PID 1), its variables, its file.
"""

import os
import socket
import sys

from epollard import config

PATIENCE = 3  # seconds for each address; the image gives us 5 for all


def command_line() -> list[str]:
    """The arguments of PID 1, or none where that is some other program (`docker run --init`)."""
    with open("/proc/1/cmdline", encoding="utf-8", errors="surrogateescape") as file:
        words = file.read().split("\0")[:-1]
    names = [os.path.basename(word) for word in words[:3]]  # python3 /usr/local/bin/epollard, or python3 -m epollard
    return words[names.index("epollard") + 1 :] if "epollard" in names else []


def ask(address: str) -> str:
    """The first line of the answer of one address. The wildcard addresses reach this host when connected to."""
    if address.startswith("unix:"):
        client = socket.socket(socket.AF_UNIX)
        client.settimeout(PATIENCE)
        client.connect(address.removeprefix("unix:"))
    else:
        host, _, port = address.rpartition(":")
        client = socket.create_connection((host.strip("[]"), int(port)), timeout=PATIENCE)
    with client:
        client.sendall(b"OPTIONS * HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
        with client.makefile("rb") as answer:  # all of it: who leaves early is counted as a client that was lost
            return answer.read(10_000).decode("latin-1").partition("\r\n")[0]


def main() -> int:
    try:
        addresses = config.load(config.parse_arguments(command_line()).given, os.environ).config.bind
    except config.ConfigError as error:
        print(error)
        return 1
    for address in addresses:
        try:
            status = ask(address)
        except OSError as error:
            status = str(error)
        if not status.startswith("HTTP/1.1 200 "):
            print(f"{address}: {status or 'closed without an answer'}")
            return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
