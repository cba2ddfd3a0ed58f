"""Whether the registers that a guest had at its source are those that it has at its destination.

QEMU hands the state that it has received to KVM, and goes on where KVM refuses it: QEMU 7.2 does
not look at the result (accel/kvm/kvm-all.c, do_kvm_cpu_synchronize_post_init; newer ones end with
"Failed to put registers after init").  KVM refuses all
segment and control registers if one bit of CR4 is not for the CPU shown there (Linux
arch/x86/kvm/x86.c, kvm_is_valid_sregs), and the whole XSAVE image if MXCSR has a bit that the host
lacks (arch/x86/kernel/fpu/xstate.c, copy_uabi_to_xstate).  The vCPU then has what it had after its
reset, and a guest that was booted by its QEMU boots anew, as if nothing had happened.

So both sides are asked while both stand still, and what KVM truly has is compared, before the
destination may run.
"""

import re

COMMAND = "info registers -a"
"""Of QEMU's human monitor (target/i386/cpu-dump.c, x86_cpu_dump_state)."""

# Not compared: what the two makers' KVM keep otherwise (segments' attributes, whether a NULL
# segment is unusable), what changes by itself, and TCG's own notes of the flags (CCS, CCD, CCO).
_COMPARED = re.compile(
    r"\b(R(?:[ABCD]X|[SD]I|[BS]P|\d\d?|IP)|E(?:[ABCD]X|[SD]I|[BS]P|IP)|CR[034]|EFER|MXCSR)"
    r"\s*=\s*([0-9a-f]{8,16})\b"
)
_TABLE = re.compile(r"\b([GI]DT)=\s+([0-9a-f]{8,16} [0-9a-f]{8})")
_FLAGS = re.compile(r"\b(RFL|EFL)=([0-9a-f]{8})")
_RESUME_FLAG = 1 << 16
_VCPU = re.compile(r"^\s*CPU#(\d+)\s*$", re.MULTILINE)
_SHOWN = 4
_FIRST = ("CR4", "CR0", "EFER", "MXCSR")


def lost(source: str, destination: str) -> str:
    """Which registers did not arrive, in words for the record; empty if all did.

    :param source: what QEMU says to :data:`COMMAND` where the guest stands.
    :param destination: what it says where the guest is to go on.
    """
    here, there = _registers(source), _registers(destination)
    if not there:
        return ""  # nothing was said that could be compared
    differing = [
        f"vCPU {number} {name} is {there.get((number, name), 'missing')} instead of {value}"
        for (number, name), value in sorted(here.items(), key=_telling)
        if there.get((number, name)) != value
    ]
    more = f" and {len(differing) - _SHOWN} more" if len(differing) > _SHOWN else ""
    return ", ".join(differing[:_SHOWN]) + more


def _telling(register: tuple[tuple[int, str], str]) -> tuple[int, int]:
    """What tells most comes first: the registers that a hypervisor refuses, vCPU by vCPU."""
    (number, name), _ = register
    return number, _FIRST.index(name) if name in _FIRST else len(_FIRST)


def _registers(text: str) -> dict[tuple[int, str], str]:
    """The compared registers by vCPU and name."""
    heads = list(_VCPU.finditer(text))
    ends = [head.start() for head in heads[1:]] + [len(text)]
    found: dict[tuple[int, str], str] = {}
    for head, end in zip(heads, ends, strict=False):
        part = text[head.end() : end]
        number = int(head[1])
        for match in (*_COMPARED.finditer(part), *_TABLE.finditer(part)):
            found[number, match[1]] = match[2]
        for match in _FLAGS.finditer(part):
            found[number, match[1]] = f"{int(match[2], 16) & ~_RESUME_FLAG:08x}"
    return found
