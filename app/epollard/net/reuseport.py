"""Which listener of a group gets the next connection: a program for the kernel, made from how full each worker is.

Left alone the kernel picks a listener by a hash of the addresses, whether its worker can take it or not. A classic BPF program
that is attached to the group (`SO_ATTACH_REUSEPORT_CBPF`, socket(7); no privilege is needed) draws a random number instead,
compares it with thresholds, and returns an index into the group. One that does not exist lets the kernel fall back to its hash.
"""

import array
import itertools
import math
import socket
import struct
from collections.abc import Sequence
from typing import Final

from .. import log
from .sockets import TcpGroup

_ATTACH: Final = 51  # SO_ATTACH_REUSEPORT_CBPF, which `socket` does not know (asm-generic/socket.h)

# What programs are made of: linux/bpf_common.h, linux/filter.h.
LOAD: Final = 0x20  # BPF_LD | BPF_W | BPF_ABS
LOAD_BYTE: Final = 0x30  # BPF_LD | BPF_B | BPF_ABS
AND: Final = 0x54  # BPF_ALU | BPF_AND | BPF_K
JUMP_IF_EQUAL: Final = 0x15  # BPF_JMP | BPF_JEQ | BPF_K
JUMP_IF_LESS_ELSE: Final = 0x35  # BPF_JMP | BPF_JGE | BPF_K, whose "greater or equal" is our "else"
RETURN: Final = 0x06  # BPF_RET | BPF_K
_RANDOM: Final = 0xFFFFF000 + 56  # SKF_AD_OFF + SKF_AD_RANDOM
_BITS: Final = 31  # of the random number: a comparison with bit 31 set is two instructions more inside of the kernel

# A queue's length in what TCP_INFO says of a listener: tcpi_unacked of struct tcp_info (linux/tcp.h).
_INFO_BYTES: Final = 28
_UNACKED: Final = 24

# A difference of less than 1/FINENESS of the biggest share is not worth another program.
FINENESS: Final = 64
# The least number of connections that we expect until we look again, for each worker, and as a part of those that are open.
# The bigger, the more evenly they are spread, whatever is open already; the smaller, the harder we steer, and a burst that
# comes unexpected finds a program which sends it all to one worker.
LEAST_EXPECTED: Final = 4
PART_EXPECTED: Final = 0.5


def waiting(listener: socket.socket) -> int:
    """How many connections wait to be accepted. Unix sockets do not say: 0."""
    if listener.family == socket.AF_UNIX:
        return 0
    count: int = struct.unpack_from("I", listener.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _INFO_BYTES), _UNACKED)[0]
    return count


def shares(loads: Sequence[int | None], expected: float) -> list[int]:
    """How likely each is to be picked, 0 to FINENESS, so that after `expected` connections more all loads would be even.

    As water fills a vessel with an uneven floor: who stands above the level gets nothing. None is one that shall get nothing.
    """
    floors = sorted(load for load in loads if load is not None)
    if not floors:
        return [FINENESS] * len(loads)  # nobody can; so let them wait everywhere
    expected = max(expected, LEAST_EXPECTED * len(floors), PART_EXPECTED * sum(floors))
    level = 0.0
    for count, total in enumerate(itertools.accumulate(floors), 1):
        level = (expected + total) / count
        if count == len(floors) or level <= floors[count]:
            break
    deepest = level - floors[0]
    return [0 if load is None else math.ceil(FINENESS * max(level - load, 0) / deepest) for load in loads]


def program(weights: Sequence[int]) -> bytes:
    """Classic BPF that returns index i with a probability of weights[i] / sum(weights). At least one is above 0."""
    whole = sum(weights)
    last = max(index for index, weight in enumerate(weights) if weight)
    code = [(LOAD, 0, 0, _RANDOM), (AND, 0, 0, (1 << _BITS) - 1)]
    for index, upto in enumerate(itertools.accumulate(weights[:last])):
        if weights[index]:
            code += [(JUMP_IF_LESS_ELSE, 1, 0, (upto << _BITS) // whole), (RETURN, 0, 0, index)]
    code.append((RETURN, 0, 0, last))
    return assemble(*code)


def assemble(*instructions: tuple[int, int, int, int]) -> bytes:
    """The bytes of classic BPF: of each instruction its code, where it jumps if true and if false, its operand."""
    return b"".join(struct.pack("=HBBI", *instruction) for instruction in instructions)


def attach(listener: socket.socket, option: int, code: bytes) -> None:
    """Make it the program of the listener, or of its whole group. `OSError`, on a kernel that will not."""
    instructions = array.array("Q", code)  # lives until the kernel has read it
    address, size = instructions.buffer_info()
    listener.setsockopt(socket.SOL_SOCKET, option, struct.pack("@HP", size, address))


class Steering:
    """The programs of all groups, as they were last attached."""

    def __init__(self, groups: Sequence[TcpGroup]) -> None:
        self.groups = groups
        self._attached: dict[TcpGroup, bytes] = {}

    def steer(self, weights: dict[socket.socket, int]) -> None:
        """Pick listeners by these weights, and none that is not named. Where the kernel refuses, its hash does it: say so."""
        for group in self.groups:
            own = [weights.get(member, 0) for member in group.members]
            if len(own) < 2 or not any(own):
                continue
            code = program(own)
            if code == self._attached.get(group):
                continue
            try:
                attach(group.members[0], _ATTACH, code)
            except OSError as error:
                log.warning(f"new connections cannot be steered ({error.strerror}): the kernel's hash spreads them")
                self.groups = ()
                return
            self._attached[group] = code
