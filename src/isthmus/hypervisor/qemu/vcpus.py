"""Where the vCPUs of a QEMU stand, from the text of its human monitor's ``info registers -a``.

QMP has no command for registers.  The form is that of ``target/i386/cpu-dump.c``: a line
``RIP=… RFL=… [flags] CPL=… … HLT=…`` for each vCPU, ``EIP`` and ``EFL`` outside long mode.
"""

import re

from isthmus.values import Value

_LINE = re.compile(
    r"[RE]IP=([0-9a-f]{1,16}) [RE]FL=([0-9a-f]{1,16}) \[[^\]\n]{0,16}\] CPL=([0-3])"
    r"[^\n]{0,40} HLT=([01])"
)
_INTERRUPTS = 1 << 9
"""EFLAGS.IF (Intel SDM vol. 1, 3.4.3.3)."""
MAX_TEXT = 4 << 20


class Registers(Value, frozen=True):
    """What decides whether a vCPU moves: its instruction pointer in hexadecimal, and its state."""

    number: int
    at: str
    ring: int
    interrupts: bool
    halted: bool


def positions(text: str) -> tuple[Registers, ...]:
    """Every vCPU of the text, in its order."""
    return tuple(
        Registers(
            number=number,
            at=f"0x{int(match[1], 16):x}",
            ring=int(match[3]),
            interrupts=bool(int(match[2], 16) & _INTERRUPTS),
            halted=match[4] == "1",
        )
        for number, match in enumerate(_LINE.finditer(text[:MAX_TEXT]))
    )
