"""What QEMU's monitor says of each vCPU: where its tables lie, and its control registers.

Source: ``info registers -a`` (QEMU target/i386/cpu-dump.c, x86_cpu_dump_state).
"""

import re

from isthmus.translate.paging import Space
from isthmus.values import Value

COMMAND = "info registers -a"
_CPU = re.compile(r"CPU#(\d{1,4})\s*\n(.*?)(?=\nCPU#|\Z)", re.DOTALL)
_TABLE = r"=\s*([0-9a-f]{8,16}) ([0-9a-f]{8})"
_GDT, _IDT = re.compile("GDT" + _TABLE), re.compile("IDT" + _TABLE)
_TASK = re.compile(r"\bTR =[0-9a-f]{4} ([0-9a-f]{8,16}) ")
_CONTROL = re.compile(r"CR(0|3|4)=([0-9a-f]{8,16})")
_EFER = re.compile(r"EFER=([0-9a-f]{16})")
_EFER_LMA = 1 << 10


class Tables(Value, frozen=True):
    """One vCPU in long mode: linear addresses and limits of IDT and GDT, its task segment."""

    number: int
    idt: int
    idt_limit: int
    gdt: int
    gdt_limit: int
    tss: int
    space: Space


def read_tables(text: str) -> tuple[Tables, ...]:
    """The vCPUs that are in long mode; the others have not been started, or run firmware."""
    found = []
    for match in _CPU.finditer(text):
        registers = match[2]
        idt, gdt, task, efer = (pattern.search(registers) for pattern in (_IDT, _GDT, _TASK, _EFER))
        if idt is None or gdt is None or efer is None or not int(efer[1], 16) & _EFER_LMA:
            continue
        control = {int(name): int(value, 16) for name, value in _CONTROL.findall(registers)}
        if not {0, 3, 4} <= control.keys():
            continue
        found.append(
            Tables(
                number=int(match[1]),
                idt=int(idt[1], 16),
                idt_limit=int(idt[2], 16),
                gdt=int(gdt[1], 16),
                gdt_limit=int(gdt[2], 16),
                tss=int(task[1], 16) if task is not None else 0,
                space=Space(cr0=control[0], cr3=control[3], cr4=control[4], user=False),
            )
        )
    return tuple(found)


def plugged(text: str) -> int:
    """How many vCPUs there are, started or not."""
    return sum(1 for _ in _CPU.finditer(text))
