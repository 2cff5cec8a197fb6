"""Which connections a process has accepted, and how many bytes of each it has not read: exactly what a kill may cost."""

import os
import signal
import socket
import struct
import time
from pathlib import Path
from typing import NamedTuple

_SOCK_DIAG_BY_FAMILY, _REQUEST_DUMP, _DONE, _ERROR = 20, 0x301, 3, 2  # linux/sock_diag.h, linux/netlink.h
_NETLINK_SOCK_DIAG = 4
_HEADER = struct.Struct("=IHHII")  # nlmsghdr
_QUESTION = struct.Struct("=BBBxI")  # inet_diag_req_v2, up to its inet_diag_sockid
_NAME = struct.Struct("!HH44x")  # inet_diag_sockid: our port, their port
_ANSWER = struct.Struct("=4x4x44xIIIII")  # inet_diag_msg: expires, unread, unsent, user, inode
# The states in which a process may hold a connection: all except SYN_RECV, TIME_WAIT, CLOSE, LISTEN (net/tcp_states.h).
_STATES = sum(1 << state for state in (1, 2, 4, 5, 8, 9, 11))


class Held(NamedTuple):
    """A connection."""

    port: int  # of the client
    unread: int  # bytes


def connections(port: int) -> dict[int, Held]:
    """The connections to this IPv4 port, by the inode of the server's socket. Those not accepted yet have no inode: left out.

    From `sock_diag(7)`, because /proc/net/tcp also lists those in TIME_WAIT, tens of thousands of them, which takes too long.
    """
    found: dict[int, Held] = {}
    question = _QUESTION.pack(socket.AF_INET, socket.IPPROTO_TCP, 0, _STATES) + _NAME.pack(port, 0)
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, _NETLINK_SOCK_DIAG) as kernel:
        kernel.send(_HEADER.pack(_HEADER.size + len(question), _SOCK_DIAG_BY_FAMILY, _REQUEST_DUMP, 0, 0) + question)
        while True:
            answers = kernel.recv(1 << 16)
            while answers:
                length, kind = _HEADER.unpack_from(answers)[:2]
                if kind == _DONE:
                    return found
                if kind == _ERROR:
                    raise OSError(-struct.unpack_from("=i", answers, _HEADER.size)[0], "sock_diag")
                ours, theirs = _NAME.unpack_from(answers, _HEADER.size + 4)
                _, unread, _, _, inode = _ANSWER.unpack_from(answers, _HEADER.size)
                if ours == port and inode:
                    found[inode] = Held(theirs, unread)
                answers = answers[length:]


def stop(pid: int) -> None:
    """Stop a process and wait until none of its threads is running."""
    os.kill(pid, signal.SIGSTOP)
    deadline = time.monotonic() + 2
    while any(task.read_text().rpartition(")")[2].split()[0] != "T" for task in Path(f"/proc/{pid}/task").glob("*/stat")):
        if time.monotonic() > deadline:
            raise TimeoutError(f"process {pid} does not stop")


def in_hands(pid: int, port: int) -> list[Held]:
    """The connections to this port that a (stopped) process has accepted."""
    # Twice: the kernel walks its table in pieces, and skips entries when others disappear meanwhile. These here stay.
    every = connections(port) | connections(port)
    held = []
    for descriptor in Path(f"/proc/{pid}/fd").iterdir():
        try:
            target = os.readlink(descriptor)
        except FileNotFoundError:  # in our own process: the descriptor by which the directory was read
            continue
        if target.startswith("socket:["):
            connection = every.get(int(target[8:-1]))
            if connection:
                held.append(connection)
    return held
