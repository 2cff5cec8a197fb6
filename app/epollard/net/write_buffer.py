"""The bytes and files that wait for one client because the kernel did not take them, in order. Knows a socket, and no HTTP.

A connection has a write buffer only while something waits. The kernel takes most responses whole, and they never come here.
"""

import fcntl
import os
import socket
import sys
import termios
from collections import deque
from collections.abc import Callable
from typing import Final

# Bytes that wait for one side. Above HIGH the other side pauses; at LOW it resumes.
HIGH: Final = 256 * 1024
LOW: Final = 64 * 1024
# Bytes that one client may take in a turn: a file of gigabytes, sent to a client as fast as we are, leaves room for others.
FLUSH_TURN: Final = 4 * 1024 * 1024
SENDFILE: Final = 1024 * 1024  # bytes of one sendfile(2)
DONTWAIT: Final = int(socket.MSG_DONTWAIT)


class File:
    """A piece of an open file. Owns its descriptor, and closes it when the whole piece is sent."""

    __slots__ = ("count", "fd", "offset")

    def __init__(self, fd: int, offset: int, count: int) -> None:
        self.fd = fd
        self.offset = offset
        self.count = count

    def __len__(self) -> int:
        return self.count

    def send(self, sock: "socket.SocketType") -> int:
        """Send as much as the kernel takes. Returns the number of bytes. Raises `OSError`."""
        sent = os.sendfile(sock.fileno(), self.fd, self.offset, min(self.count, SENDFILE))
        if sent == 0:  # the file has shrunk, so the promised bytes cannot be sent
            raise OSError("file is shorter than it was")
        self.offset += sent
        self.count -= sent
        if self.count == 0:
            os.close(self.fd)
        return sent


class WriteBuffer:
    """The queue of one connection, which drops it when `pending` is 0."""

    __slots__ = ("_pieces", "_sock", "_unsent", "_waiting", "pending")

    def __init__(self, sock: "socket.SocketType", piece: memoryview | File) -> None:
        self._sock = sock
        self._pieces: deque[memoryview | File] = deque()
        self._waiting: list[Callable[[], object]] = []
        self._unsent = self._ask_unsent()
        self.pending = 0  # bytes
        self.add(piece)

    @property
    def full(self) -> bool:
        """Too many bytes wait: an application that has more should wait first."""
        return self.pending > HIGH

    def add(self, piece: memoryview | File) -> None:
        """Append a piece. It is not empty."""
        if isinstance(piece, File):
            self._sock.setblocking(False)  # sendfile has no MSG_DONTWAIT
        self._pieces.append(piece)
        self.pending += len(piece)

    def flush(self) -> int:
        """Send until the kernel takes no more or `FLUSH_TURN` is reached. Returns the number of bytes.

        If that is `FLUSH_TURN` or more, the kernel may take more now. Raises `OSError` (client gone, or a file has shrunk).
        """
        pieces = self._pieces
        moved = 0
        while pieces and moved < FLUSH_TURN:
            piece = pieces[0]
            try:
                if isinstance(piece, File):
                    sent = piece.send(self._sock)
                else:
                    sent = self._sock.send(piece, DONTWAIT)
                    pieces[0] = piece = piece[sent:]
            except BlockingIOError:
                break
            moved += sent
            self.pending -= sent
            if not piece:
                pieces.popleft()
        if moved:
            self._unsent = self._ask_unsent()
        if self.pending <= LOW:
            self._wake()
        return moved

    def moves(self) -> bool:
        """Whether the client has taken some bytes since the last call, or since bytes were last sent.

        The kernel knows (SIOCOUTQ, tcp(7)), while epoll reports room only when a third of the socket's buffer is free.
        """
        before = self._unsent
        self._unsent = self._ask_unsent()
        return self._unsent < before

    def call_when_drained(self, callback: Callable[[], object]) -> None:
        """Call back once: when at most `LOW` bytes wait, or `close` is called. The callback raises nothing."""
        if self.pending <= LOW:
            callback()
        else:
            self._waiting.append(callback)

    def close(self) -> None:
        """Nothing more is sent: close the files, and call the callbacks."""
        for piece in self._pieces:
            if isinstance(piece, File):
                os.close(piece.fd)
        self._wake()

    def _wake(self) -> None:
        waiting, self._waiting = self._waiting, []
        for callback in waiting:
            callback()

    def _ask_unsent(self) -> int:
        return int.from_bytes(fcntl.ioctl(self._sock, termios.TIOCOUTQ, b"\0\0\0\0"), sys.byteorder)
