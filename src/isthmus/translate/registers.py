"""The register file of QEMU's debug stub for x86-64: where what lies in a ``g`` answer.

Layout: QEMU gdb-xml/i386-64bit.xml; 608 bytes.  The stub numbers x87 registers physically, so
``st3`` is where MM3 lies whatever the stack's top is (target/i386/gdbstub.c).
"""

import struct
from operator import itemgetter
from typing import Any

from isthmus.translate._core import ffi, lib
from isthmus.translate.paging import Space
from isthmus.translate.rsp import write_register

SIZE = 608
# The stub's order of the general registers, as numbers of the encoding (RAX RBX RCX RDX RSI RDI RBP
# RSP R8 …).
_ORDER = (0, 3, 1, 2, 6, 7, 5, 4, 8, 9, 10, 11, 12, 13, 14, 15)
_NUMBER = {encoding: number for number, encoding in enumerate(_ORDER)}
_ENCODED_RSP = 4
_FLAGS = 136
_BASES, _CR0, _CR3, _CR4 = 164, 188, 204, 212
_X87, _X87_CONTROL = 236, 316
_XMM = 348
_MXCSR = 604
RSP, RIP = 7, 16  # register numbers of the stub
_QUAD = struct.Struct("<Q")
_GENERAL = struct.Struct("<17Q")
_FS_GS = struct.Struct("<2Q")
_SIGNIFICANDS = struct.Struct("<" + "8s2x" * 8)  # of 80-bit registers
_SIGNS = struct.Struct("<" + "8xH" * 8)  # with their exponents
_CONTROL_STATUS = struct.Struct("<2I")
_ENCODED = itemgetter(*(_NUMBER[encoding] for encoding in range(16)))


class Registers:
    """One vCPU's registers as the stub gives them."""

    def __init__(self, data: bytes) -> None:
        self.data = data
        self.general = _GENERAL.unpack_from(data)

    @property
    def rip(self) -> int:
        """The instruction pointer."""
        return int(self.general[RIP])

    @property
    def rsp(self) -> int:
        """The stack pointer."""
        return int(self.general[RSP])

    @property
    def x87_status(self) -> int:
        """The status word of the x87, with the top of its stack."""
        return int(_CONTROL_STATUS.unpack_from(self.data, _X87_CONTROL)[1]) & 0xFFFF

    @property
    def flags(self) -> int:
        """EFLAGS."""
        return int.from_bytes(self.data[_FLAGS : _FLAGS + 4], "little")

    def control(self, number: int) -> int:
        """CR0, CR3 or CR4."""
        offset = {0: _CR0, 3: _CR3, 4: _CR4}[number]
        return int(_QUAD.unpack_from(self.data, offset)[0])

    def space(self, *, user: bool) -> Space:
        """The address space in force, as a program or the kernel sees it."""
        return Space(cr0=self.control(0), cr3=self.control(3), cr4=self.control(4), user=user)

    def load(self, state: Any) -> None:
        """Fill ``struct isthmus_machine`` but for RIP, RFLAGS, RSP, mode and CPL, see the frame."""
        general = self.general
        state.gpr = _ENCODED(general)
        state.segment_base[4], state.segment_base[5] = _FS_GS.unpack_from(self.data, _BASES)
        state.cr0, state.cr4 = self.control(0), self.control(4)
        ffi.memmove(state.xmm, self.data[_XMM : _XMM + 256], 256)
        state.mxcsr = int.from_bytes(self.data[_MXCSR : _MXCSR + 4], "little")
        state.has_ymm = 0  # no stub shows the upper halves
        significands = b"".join(_SIGNIFICANDS.unpack_from(self.data, _X87))
        ffi.memmove(state.mmx, significands, 64)
        state.x87_control = _CONTROL_STATUS.unpack_from(self.data, _X87_CONTROL)[0] & 0xFFFF
        state.x87_status = self.x87_status
        state.has_x87 = 0  # the stub's tags are always zero (target/i386/gdbstub.c)

    def lend_x87(self, state: Any, *, empty: bool) -> None:
        """Fill in the rest of the x87; FISTTP asks for ST(0), and whether that is ``empty``."""
        state.x87_high = _SIGNS.unpack_from(self.data, _X87)
        state.x87_tags = 0 if empty else 1 << (self.x87_status >> 11 & 7)
        state.has_x87 = 1


def changes(state: Any, outcome: Any, numbers: dict[str, int], *, clock: bool) -> list[bytes]:
    """The ``P`` requests that bring the vCPU to what the core wrote.

    RSP is not among them: the guest's own lies in the exception frame.

    :param clock: the guest's CPU will read its TSC itself, so RAX and RDX are not written.
    """
    requests = []
    skipped = {0, 2, _ENCODED_RSP} if clock else {_ENCODED_RSP}
    for encoding in _bits(outcome.gpr_written):
        if encoding not in skipped:
            value = _QUAD.pack(state.gpr[encoding])
            requests.append(write_register(_NUMBER[encoding], value))
    for index in _bits(outcome.xmm_written):
        value = bytes(ffi.buffer(state.xmm[index], 16))
        requests.append(write_register(numbers["xmm0"] + index, value))
    for index in _bits(outcome.mmx_written):
        # A write to an MMX register sets the exponent's bits (Intel SDM vol. 1, 9.5.1).
        value = bytes(ffi.buffer(state.mmx[index], 8)) + b"\xff\xff"
        requests.append(write_register(numbers["st0"] + index, value))
    if outcome.touched & lib.ISTHMUS_WROTE_X87:
        requests.append(
            write_register(numbers["fstat"], int(state.x87_status).to_bytes(4, "little"))
        )
    requests += control_changes(state, outcome, numbers)
    return requests


def control_changes(state: Any, outcome: Any, numbers: dict[str, int]) -> list[bytes]:
    """The requests for what a fault leaves behind as well: the flags in MXCSR."""
    if not outcome.touched & lib.ISTHMUS_WROTE_MXCSR:
        return []
    return [write_register(numbers["mxcsr"], int(state.mxcsr).to_bytes(4, "little"))]


def _bits(mask: int) -> list[int]:
    return [bit for bit in range(16) if mask >> bit & 1] if mask else []
