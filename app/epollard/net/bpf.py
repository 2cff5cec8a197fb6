"""Classic BPF: a few instructions, and giving the kernel a program made of them. Knows nothing of what a program is for.

Names are those of linux/bpf_common.h and linux/filter.h; bpf(4) of FreeBSD describes the machine. No privilege is needed.
"""

import array
import socket
import struct
from typing import Final

LOAD: Final = 0x20  # BPF_LD | BPF_W | BPF_ABS
LOAD_BYTE: Final = 0x30  # BPF_LD | BPF_B | BPF_ABS
AND: Final = 0x54  # BPF_ALU | BPF_AND | BPF_K
JUMP_IF_EQUAL: Final = 0x15  # BPF_JMP | BPF_JEQ | BPF_K
JUMP_IF_LESS_ELSE: Final = 0x35  # BPF_JMP | BPF_JGE | BPF_K, whose "greater or equal" is our "else"
RETURN: Final = 0x06  # BPF_RET | BPF_K
RANDOM: Final = 0xFFFFF000 + 56  # SKF_AD_OFF + SKF_AD_RANDOM: loading this "offset" loads a random number


def assemble(*instructions: tuple[int, int, int, int]) -> bytes:
    """The bytes of a program; an instruction is its code, how far it jumps if true and if false, and its operand."""
    return b"".join(struct.pack("=HBBI", *instruction) for instruction in instructions)


def attach(sock: socket.socket, option: int, code: bytes) -> None:
    """Give the kernel a program by this option of SOL_SOCKET. `OSError` on a kernel that refuses it."""
    instructions = array.array("Q", code)  # must live until the kernel has read it
    address, size = instructions.buffer_info()
    sock.setsockopt(socket.SOL_SOCKET, option, struct.pack("@HP", size, address))
