"""The article's six servers, small and written anew. They never look at what is asked: one answer, then the end.

The article is Scott Doyle's "How To Use Linux epoll with Python". Its servers differ in one thing at a time, which is what
makes them worth measuring beside a whole server: how they wait for sockets, and which TCP option they set. Like there, each has
one thread, a request ends with the first empty line, and the answer is the same 13-byte text. Unlike there, none prints the
request, which would be most of the work.

    python servers.py NAME PORT BACKLOG
"""

import select
import socket
import sys
from collections.abc import Callable

ANSWER = (
    b"HTTP/1.0 200 OK\r\n"
    b"Date: Mon, 01 Jan 1996 01:01:01 GMT\r\n"
    b"Content-Type: text/plain\r\n"
    b"Content-Length: 13\r\n"
    b"\r\n"
    b"Hello, world!"
)
# What ends a request's head: an empty line, with or without carriage returns.
ENDS = (b"\n\r\n", b"\n\n")


def complete(request: bytes | bytearray) -> bool:
    return any(end in request for end in ENDS)


def answer_one(listener: socket.socket) -> None:
    """Accept one client, read until its head is complete or it leaves, answer, close. Everybody else waits."""
    connection, _ = listener.accept()
    with connection:
        request = bytearray()
        while not complete(request):
            chunk = connection.recv(1024)
            if not chunk:
                return
            request += chunk
        connection.sendall(ANSWER)


def blocking_once(listener: socket.socket) -> None:
    """Example 1: one client, then the end."""
    answer_one(listener)


def blocking_loop(listener: socket.socket) -> None:
    """Example 2: one client after another."""
    while True:
        try:
            answer_one(listener)
        except ConnectionError:
            pass  # that client has left; the next one waits already


class Client:
    """A connection, what came from it, and what has not been sent to it yet."""

    def __init__(self, connection: socket.socket) -> None:
        connection.setblocking(False)
        self.socket = connection
        self.request = bytearray()
        self.answer = memoryview(ANSWER)


def level_triggered(listener: socket.socket, option: int | None = None) -> None:
    """Example 3: one step for each event; what is left undone is reported again.

    `option` is set on every connection before its answer and, as it is meant for corks, cleared after it.
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
                        leave(poll, clients.pop(number))
                    elif event & select.EPOLLIN:
                        chunk = client.socket.recv(1024)
                        client.request += chunk
                        if not chunk:
                            leave(poll, clients.pop(number))
                        elif complete(client.request):
                            poll.modify(number, select.EPOLLOUT)
                            if option is not None:
                                client.socket.setsockopt(socket.IPPROTO_TCP, option, 1)
                    elif event & select.EPOLLOUT:
                        client.answer = client.answer[client.socket.send(client.answer) :]
                        if not client.answer:
                            if option is not None:
                                client.socket.setsockopt(socket.IPPROTO_TCP, option, 0)
                            # Both ends of the conversation are over; the hang-up event that follows says when to close.
                            poll.modify(number, 0)
                            client.socket.shutdown(socket.SHUT_RDWR)
                except OSError:
                    leave(poll, clients.pop(number))


def edge_triggered(listener: socket.socket) -> None:
    """Example 4: each event is reported once, so everything is done until the kernel would block."""
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
                        leave(poll, clients.pop(number))
                    elif event & select.EPOLLIN:
                        while chunk := client.socket.recv(1024):
                            client.request += chunk
                            if complete(client.request):
                                # Arming for output makes an edge of its own: the socket is writable already.
                                poll.modify(number, select.EPOLLOUT | select.EPOLLET)
                                break
                        else:
                            leave(poll, clients.pop(number))
                    elif event & select.EPOLLOUT:
                        while client.answer:
                            client.answer = client.answer[client.socket.send(client.answer) :]
                        poll.modify(number, select.EPOLLET)
                        client.socket.shutdown(socket.SHUT_RDWR)
                except BlockingIOError:
                    pass  # all done that could be done; the next edge brings us back
                except OSError:
                    if number != listener.fileno():
                        leave(poll, clients.pop(number))


def leave(poll: select.epoll, client: Client) -> None:
    poll.unregister(client.socket)
    client.socket.close()


def corked(listener: socket.socket) -> None:
    """Example 5: level-triggered; the answer is held back until the cork is drawn, then sent as full segments."""
    level_triggered(listener, socket.TCP_CORK)


def without_delay(listener: socket.socket) -> None:
    """Example 6: level-triggered; Nagle's algorithm is off for the listener, and so for what it accepts."""
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
