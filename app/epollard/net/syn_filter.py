"""A socket filter drops SYNs before a listener is closed, so that closing it resets no client.

The kernel completes a handshake before we hear of it: a client may send as soon as it has the SYN-ACK, and if the listener is
closed then, the kernel resets its connection. So new SYNs are dropped first, by a filter that a listener may have as any socket
may (socket(7)), and handshakes in progress complete. A client whose SYN was dropped sends it again after a second, as after any
lost packet, and then is refused or reaches another listener of the group.
"""

import re
import socket
from collections.abc import Iterable
from typing import Final

from . import bpf

# Seconds between attaching the filter and closing the listener, at most. Longer than any round trip; shorter than the second
# after which a client repeats its SYN, so that the filter does not drop it twice.
SYN_DROP_TIME: Final = 0.9

_SO_ATTACH_FILTER: Final = 26  # which `socket` does not define (asm-generic/socket.h)
_SO_DETACH_FILTER: Final = 27
_FLAGS: Final = 13  # the offset of a TCP header's flags (RFC 9293 3.1)
_SYN: Final = 0x02
_SYN_ACK: Final = 0x12
_FILTER: Final = bpf.assemble(
    (bpf.LOAD_BYTE, 0, 0, _FLAGS),
    (bpf.AND, 0, 0, _SYN_ACK),
    (bpf.JUMP_IF_EQUAL, 0, 1, _SYN),
    (bpf.RETURN, 0, 0, 0),  # no byte of the packet is let in
    (bpf.RETURN, 0, 0, 0xFFFFFFFF),  # all of it
)

_TABLES: Final = ("/proc/net/tcp", "/proc/net/tcp6")  # proc_net_tcp(5); state 03 is a handshake in progress


def attach(listener: socket.socket) -> None:
    """Refuse new connections. Handshakes in progress complete; queued connections stay queued."""
    try:
        if listener.family == socket.AF_UNIX:
            listener.shutdown(socket.SHUT_RD)  # there is no handshake: a client that connects now is refused
        else:
            bpf.attach(listener, _SO_ATTACH_FILTER, _FILTER)
    except OSError:
        pass  # a kernel without filters: clients in the middle of a handshake are reset, as with any other server


def detach(listener: socket.socket) -> None:
    """Undo `attach`, except for a Unix socket, where that is not possible."""
    try:
        listener.setsockopt(socket.SOL_SOCKET, _SO_DETACH_FILTER, 0)
    except OSError:
        pass  # there was none


def handshakes_in_progress(ports: Iterable[int]) -> bool:
    """Whether a client is in the middle of a handshake with one of these TCP ports."""
    numbers = b"|".join(b"%04X" % port for port in ports)
    pending = re.compile(rb"^ *\d+: [0-9A-F]+:(?:%b) [0-9A-F]+:[0-9A-F]{4} 03 " % numbers, re.MULTILINE)
    for table in _TABLES:
        try:
            with open(table, "rb") as file:
                if numbers and pending.search(file.read()):
                    return True
        except OSError:
            pass  # no IPv6, or no /proc
    return False
