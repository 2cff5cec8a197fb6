"""The article's six servers, small and written anew. They never look at the request: they send one response, then close.

The article is Scott Doyle's "How To Use Linux epoll with Python". Its servers differ in one thing at a time, so they are worth
measuring next to a whole server: how they wait for sockets, and which TCP option they set. As in the article, each has one
thread, a request ends with the first empty line, and the response is the same 13-byte text. Unlike in the article, none prints
the request, which would be most of the work.

    python servers.py NAME PORT BACKLOG
"""

import select
import socket
import sys
from collections.abc import Callable

RESPONSE = (
    b"HTTP/1.0 200 OK\r\n"
    b"Date: Mon, 01 Jan 1996 01:01:01 GMT\r\n"
    b"Content-Type: text/plain\r\n"
    b"Content-Length: 13\r\n"
    b"\r\n"
    b"Hello, world!"
)
# An empty line ends a request's head, with or without carriage returns.
ENDS = (b"\n\r\n", b"\n\n")


def complete(request: bytes | bytearray) -> bool:
    return any(end in request for end in ENDS)


def serve_one(listener: socket.socket) -> None:
    """Accept one client, read until its head is complete or it leaves, respond, close. All other clients wait."""
    connection, _ = listener.accept()
    with connection:
        request = bytearray()
        while not complete(request):
            chunk = connection.recv(1024)
            if not chunk:
                return
            request += chunk
        connection.sendall(RESPONSE)


def blocking_once(listener: socket.socket) -> None:
    """Example 1: serve one client, then exit."""
    serve_one(listener)


def blocking_loop(listener: socket.socket) -> None:
    """Example 2: one client after another."""
    while True:
        try:
            serve_one(listener)
        except ConnectionError:
            pass  # that client has left; the next one is waiting already


class Client:
    """A connection, the bytes received from it, and the bytes still to be sent to it."""

    def __init__(self, connection: socket.socket) -> None:
        connection.setblocking(False)
        self.socket = connection
        self.request = bytearray()
        self.response = memoryview(RESPONSE)


def level_triggered(listener: socket.socket, option: int | None = None) -> None:
    """Example 3: one step for each event; epoll reports again whatever is left undone.

    `option` is set on every connection before its response and, as it is meant for corks, cleared after it.

    Long: it has the form of the article's loop, so that the two can be compared.
    """
    listener.setblocking(False)
    clients: dict[int, Client] = {}
    with select.epoll() as poll:
        poll.register(listener, select.EPOLLIN)
        while True:
            for number, event in poll.poll():
                if number == listener.fileno():
                    try:
                        connection, _ = listener.accept()
                    except BlockingIOError:
                        continue
                    clients[connection.fileno()] = Client(connection)
                    poll.register(connection, select.EPOLLIN)
                    continue
                client = clients[number]
                try:
                    if event & select.EPOLLHUP:
                        close(poll, clients.pop(number))
                    elif event & select.EPOLLIN:
                        chunk = client.socket.recv(1024)
                        client.request += chunk
                        if not chunk:
                            close(poll, clients.pop(number))
                        elif complete(client.request):
                            poll.modify(number, select.EPOLLOUT)
                            if option is not None:
                                client.socket.setsockopt(socket.IPPROTO_TCP, option, 1)
                    elif event & select.EPOLLOUT:
                        client.response = client.response[client.socket.send(client.response) :]
                        if not client.response:
                            if option is not None:
                                client.socket.setsockopt(socket.IPPROTO_TCP, option, 0)
                            # Both directions are shut down; close on the hang-up event that follows.
                            poll.modify(number, 0)
                            client.socket.shutdown(socket.SHUT_RDWR)
                except OSError:
                    close(poll, clients.pop(number))


def edge_triggered(listener: socket.socket) -> None:
    """Example 4: each event is reported once, so each is handled until the kernel would block."""
    listener.setblocking(False)
    clients: dict[int, Client] = {}
    with select.epoll() as poll:
        poll.register(listener, select.EPOLLIN | select.EPOLLET)
        while True:
            for number, event in poll.poll():
                try:
                    if number == listener.fileno():
                        while True:
                            connection, _ = listener.accept()
                            clients[connection.fileno()] = Client(connection)
                            poll.register(connection, select.EPOLLIN | select.EPOLLET)
                    client = clients[number]
                    if event & select.EPOLLHUP:
                        close(poll, clients.pop(number))
                    elif event & select.EPOLLIN:
                        while chunk := client.socket.recv(1024):
                            client.request += chunk
                            if complete(client.request):
                                # Arming for output causes an edge of its own, because the socket is writable already.
                                poll.modify(number, select.EPOLLOUT | select.EPOLLET)
                                break
                        else:
                            close(poll, clients.pop(number))
                    elif event & select.EPOLLOUT:
                        while client.response:
                            client.response = client.response[client.socket.send(client.response) :]
                        poll.modify(number, select.EPOLLET)
                        client.socket.shutdown(socket.SHUT_RDWR)
                except BlockingIOError:
                    pass  # nothing more can be done now; another edge will come
                except OSError:
                    if number != listener.fileno():
                        close(poll, clients.pop(number))


def close(poll: select.epoll, client: Client) -> None:
    poll.unregister(client.socket)
    client.socket.close()


def corked(listener: socket.socket) -> None:
    """Example 5: level-triggered. The response is held back until the cork is removed, then sent as full segments."""
    level_triggered(listener, socket.TCP_CORK)


def without_delay(listener: socket.socket) -> None:
    """Example 6: level-triggered. Nagle's algorithm is off for the listener, and so for the connections it accepts."""
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    level_triggered(listener)


SERVERS: dict[str, Callable[[socket.socket], None]] = {
    "blocking-once": blocking_once,
    "blocking-loop": blocking_loop,
    "level": level_triggered,
    "edge": edge_triggered,
    "cork": corked,
    "nodelay": without_delay,
}


def main() -> None:
    name, port, backlog = sys.argv[1:]
    with socket.socket() as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(("127.0.0.1", int(port)))
        listener.listen(int(backlog))
        SERVERS[name](listener)


if __name__ == "__main__":
    main()
