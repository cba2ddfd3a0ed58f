"""The register file of QEMU's debug stub for x86-64: where what lies in a ``g`` answer.

Layout: QEMU gdb-xml/i386-64bit.xml; 608 bytes.
"""

import struct

from isthmus.translate._core import ffi

SIZE = 608
# The stub's order of the general registers, as numbers of the encoding (RAX RBX RCX RDX RSI RDI RBP
# RSP R8 …).
_ORDER = (0, 3, 1, 2, 6, 7, 5, 4, 8, 9, 10, 11, 12, 13, 14, 15)
_NAMES = ("rax", "rbx", "rcx", "rdx", "rsi", "rdi", "rbp", "rsp",
          "r8", "r9", "r10", "r11", "r12", "r13", "r14", "r15")  # fmt: skip
_BASES = 164  # FS and GS base, 8 bytes each
_CS = 140
_XMM = 348
RSP, RIP = 7, 16  # register numbers of the stub


class Registers:
    """One vCPU's registers as the stub gives them."""

    def __init__(self, data: bytes) -> None:
        self.data = data
        self.general = struct.unpack_from("<17Q", data)

    @property
    def rip(self) -> int:
        """The instruction pointer."""
        return int(self.general[RIP])

    @property
    def rsp(self) -> int:
        """The stack pointer."""
        return int(self.general[RSP])

    def load(self, cpu: "ffi.CData") -> None:
        """Fill the core's register file with all but RIP and RFLAGS, which are in the frame."""
        for value, number in zip(self.general, _ORDER, strict=False):
            cpu.gpr[number] = value
        cpu.fs_base, cpu.gs_base = struct.unpack_from("<2Q", self.data, _BASES)
        ffi.memmove(cpu.xmm, self.data[_XMM : _XMM + 256], 256)

    def changes(self, cpu: "ffi.CData", numbers: dict[str, int]) -> list[bytes]:
        """The ``P`` requests that bring the vCPU to the core's register file (not RSP and RIP)."""
        requests = []
        for value, number, name in zip(self.general, _ORDER, _NAMES, strict=False):
            if cpu.gpr[number] != value and name != "rsp":
                fresh = int(cpu.gpr[number]).to_bytes(8, "little").hex().encode()
                requests.append(b"P%x=%s" % (numbers[name], fresh))
        fresh_xmm = bytes(ffi.buffer(cpu.xmm, 256))
        old_xmm = self.data[_XMM : _XMM + 256]
        if fresh_xmm != old_xmm:
            for index in range(16):
                part = slice(16 * index, 16 * index + 16)
                if fresh_xmm[part] != old_xmm[part]:
                    number = numbers["xmm0"] + index
                    requests.append(b"P%x=%s" % (number, fresh_xmm[part].hex().encode()))
        return requests
