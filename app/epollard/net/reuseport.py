"""A BPF program decides which listener of an SO_REUSEPORT group gets the next connection, by the weights it is made from.

Without one the kernel picks a listener by a hash of the addresses, whether its worker can take the connection or not. A program
attached to the group (`SO_ATTACH_REUSEPORT_CBPF`, socket(7)) draws a random number instead, compares it with thresholds, and
returns an index into the group. For an index that does not exist the kernel falls back to its hash.
"""

import itertools
import socket
from collections.abc import Sequence
from typing import Final

from .. import log
from . import bpf
from .sockets import TcpGroup

_SO_ATTACH_REUSEPORT_CBPF: Final = 51  # which `socket` does not define (asm-generic/socket.h)
_BITS: Final = 31  # of the random number: a comparison with bit 31 set is two instructions more inside the kernel


def program(weights: Sequence[int]) -> bytes:
    """Classic BPF that returns index i with a probability of weights[i] / sum(weights). At least one weight is above 0."""
    whole = sum(weights)
    last = max(index for index, weight in enumerate(weights) if weight)
    code = [(bpf.LOAD, 0, 0, bpf.RANDOM), (bpf.AND, 0, 0, (1 << _BITS) - 1)]
    for index, upto in enumerate(itertools.accumulate(weights[:last])):
        if weights[index]:
            code += [(bpf.JUMP_IF_LESS_ELSE, 1, 0, (upto << _BITS) // whole), (bpf.RETURN, 0, 0, index)]
    code.append((bpf.RETURN, 0, 0, last))
    return bpf.assemble(*code)


class Steering:
    """The programs of all groups, as they were last attached."""

    def __init__(self, groups: Sequence[TcpGroup]) -> None:
        self.groups = groups  # none where the kernel refuses programs, or there is nothing to steer
        self._attached: dict[TcpGroup, bytes] = {}

    def steer(self, weights: dict[socket.socket, int]) -> None:
        """Pick listeners by these weights; one that is not named is not picked. If the kernel refuses, log that, once."""
        for group in self.groups:
            own = [weights.get(member, 0) for member in group.members]
            if len(own) < 2 or not any(own):
                continue
            code = program(own)
            if code == self._attached.get(group):
                continue
            try:
                bpf.attach(group.members[0], _SO_ATTACH_REUSEPORT_CBPF, code)
            except OSError as error:
                log.warning(f"new connections cannot be steered ({error.strerror}): the kernel's hash spreads them")
                self.groups = ()
                return
            self._attached[group] = code
