"""Closing a listener, and nobody's fingers in the door: first no new handshake begins, then those under way end.

The kernel accepts a connection for us before we hear of it: the client may send as soon as it has the SYN-ACK, and whoever is
on the way when the listener is closed is turned away with a reset. So SYNs are dropped first, by a socket filter (socket(7); no
privilege is needed). Their senders try again after a second, and then find nobody, or another listener of the group.
"""

import re
import socket
from collections.abc import Iterable
from typing import Final

from . import reuseport

# Seconds that a door is shut before it is gone, at most. Longer than any round trip; shorter than the second after which a SYN
# is sent again, so that it is not dropped twice.
SHUT: Final = 0.9

_ATTACH_FILTER: Final = 26  # SO_ATTACH_FILTER, SO_DETACH_FILTER (asm-generic/socket.h)
_DETACH_FILTER: Final = 27
_FLAGS: Final = 13  # the offset of a TCP header's flags, as RFC 9293 has them
_SYN: Final = 0x02
_SYN_ACK: Final = 0x12
_FILTER: Final = reuseport.assemble(
    (reuseport.LOAD_BYTE, 0, 0, _FLAGS),
    (reuseport.AND, 0, 0, _SYN_ACK),
    (reuseport.JUMP_IF_EQUAL, 0, 1, _SYN),
    (reuseport.RETURN, 0, 0, 0),  # no byte of the packet is let in
    (reuseport.RETURN, 0, 0, 0xFFFFFFFF),  # all of it
)

_TABLES: Final = ("/proc/net/tcp", "/proc/net/tcp6")  # proc_net_tcp(5); state 3 is a handshake under way


def shut(listener: socket.socket) -> None:
    """Let nobody begin to connect. Who has begun may finish, who waits to be accepted still waits."""
    try:
        if listener.family == socket.AF_UNIX:
            listener.shutdown(socket.SHUT_RD)  # connecting is one step: who comes now is refused
        else:
            reuseport.attach(listener, _ATTACH_FILTER, _FILTER)
    except OSError:
        pass  # a kernel that has no filters: it closes as roughly as ever


def reopen(listener: socket.socket) -> None:
    """Undo `shut`. A Unix socket cannot."""
    try:
        listener.setsockopt(socket.SOL_SOCKET, _DETACH_FILTER, 0)
    except OSError:
        pass  # there was none


def arriving(ports: Iterable[int]) -> bool:
    """Whether anybody is in the middle of a handshake with one of these TCP ports."""
    numbers = b"|".join(b"%04X" % port for port in ports)
    under_way = re.compile(rb"^ *\d+: [0-9A-F]+:(?:%b) [0-9A-F]+:[0-9A-F]{4} 03 " % numbers, re.MULTILINE)
    for table in _TABLES:
        try:
            with open(table, "rb") as file:
                if numbers and under_way.search(file.read()):
                    return True
        except OSError:
            pass  # no IPv6, or no /proc
    return False
