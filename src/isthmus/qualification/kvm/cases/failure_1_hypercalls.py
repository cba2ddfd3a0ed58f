"""Failure 1: a guest of several vCPUs calls its hypervisor by the other maker's instruction.

A Linux guest of KVM that is shown paravirtual features kicks halted vCPUs and sends interrupts by
hypercall, and chose VMMCALL or VMCALL at boot (arch/x86/include/asm/kvm_para.h, KVM_HYPERCALL).  On
the other maker's host that instruction is #UD; KVM then writes its own over it
(arch/x86/kvm/x86.c, emulator_fix_hypercall), and the guest's text is read-only: page fault, panic.
"""

import asyncio
import re

from isthmus.errors import IsthmusError
from isthmus.places import cache_folder
from isthmus.qualification.kvm.cases.bench import Bench, Moved
from isthmus.qualification.kvm.cases.beside import image_with
from isthmus.qualification.kvm.cases.case import Case, Part, last_lines, part
from isthmus.translate.rewrite.record import HYPERCALLS, read_record

HOME, ABROAD = "kvm:opteron3", "kvm:haswell"
SAYS = "contend: "
VCPUS = 3  # an interrupt for one other CPU alone is sent without a hypercall
RULE = "hypercall-instruction"
DEATH = "BUG: unable to handle page fault"
DEATH_TOLD = ("Kernel panic", "end trace")
_FAULT = re.compile(f"{DEATH} for address: ([0-9a-f]{{16}})")
_CALLER = re.compile(r"contend has (\w+) at ([0-9a-f]{16})")
FUNCTION_BYTES = 1024
"""More than any of those functions has."""
# What speaks against the pair besides, and concerns no guest without 32-bit programs and SSE4a.
BESIDES = ("sysenter-cut-short", "compat-entry-at-zero", "sse4a")
QUIET: dict[str, object] = {"test": "none", "memory_mib": 8, "rewrite_kib": 64}


async def run(bench: Bench) -> list[Part]:
    """Dead without, alive levelled, alive unlevelled with its hypercalls rewritten."""
    return [
        await _dies(bench, "lock", "a spinlock contended"),
        await _dies(bench, "ipi", "interrupts sent to several vCPUs"),
        await _levelled(bench),
        await _rewritten(bench),
    ]


def caller_that_died(console: str) -> str:
    """In which function that calls the hypervisor a kernel died, empty if in none.

    Known by the address of the fault, which lies in the text: of a guest that the watch ended at
    once nothing more has been told.
    """
    fault = _FAULT.search(console)
    if fault is None:
        return ""
    callers = {int(match[2], 16): match[1] for match in _CALLER.finditer(console)}
    before = [address for address in callers if address <= int(fault[1], 16)]
    nearest = max(before, default=None)
    if nearest is None or int(fault[1], 16) - nearest >= FUNCTION_BYTES:
        return ""
    return callers[nearest]


async def _dies(bench: Bench, how: str, what: str) -> Part:
    image = await asyncio.to_thread(image_with, "contend", cache_folder(), bench.note)
    words = f"contend={how}"
    async with bench.guest(HOME, vcpus=VCPUS, options=QUIET, image=image, words=words) as name:
        await _contends(bench, name)
        refused = await bench.move(name, ABROAD, translate=False, accepted=BESIDES)
        moved = await bench.move(name, ABROAD, translate=False, accepted=(*BESIDES, RULE))
        # A death within the move's own watch is rolled back; its console is kept all the same.
        death = await bench.says(name, DEATH)
        if death is not None:
            # The kernel tells its last words at the pace of a serial line, if it can at all.
            await bench.says(name, *DEATH_TOLD, patience_s=40)
        console = bench.consoles(name)
    where = caller_that_died(console)
    return part(
        f"{what} by {VCPUS} vCPUs, unlevelled, opteron3 to haswell, the risk taken",
        f"refused by {RULE}; taken, dead by a page fault where its kernel calls the hypervisor",
        f"{refused.outcome}; {moved.outcome}; {f'dead in {where}' if where else 'no such death'}",
        holds="kvm-pv-unhalt" in refused.why and bool(where),
        console=last_lines(console, DEATH),
    )


async def _levelled(bench: Bench) -> Part:
    image = await asyncio.to_thread(image_with, "contend", cache_folder(), bench.note)
    async with bench.guest(
        HOME, level_with=(ABROAD,), vcpus=VCPUS, options=QUIET, image=image
    ) as name:
        await _contends(bench, name)
        moved = await bench.move(name, ABROAD, accepted=BESIDES)
        contends = moved.committed and await _contends(bench, name)
    return part(
        "levelled",
        "alive, and contending",
        _told(moved, contends=contends),
        holds=contends,
    )


async def _rewritten(bench: Bench) -> Part:
    image = await asyncio.to_thread(image_with, "contend", cache_folder(), bench.note)
    async with bench.guest(HOME, vcpus=VCPUS, options=QUIET, image=image) as name:
        await _contends(bench, name)
        moved = await bench.move(name, ABROAD, accepted=BESIDES)
        contends = moved.committed and await _contends(bench, name)
        sites = read_record(bench.read(name).rewritten).written
        calls = sum(site.why == HYPERCALLS for site in sites)
        back = await bench.move(name, HOME, accepted=BESIDES) if moved.committed else moved
        at_home = back.committed and await _contends(bench, name)
        left = read_record(bench.read(name).rewritten).written
    return part(
        "unlevelled, hypercalls rewritten, there and back",
        "alive and contending in both places",
        f"{_told(moved, contends=contends)}, {calls} hypercalls rewritten;"
        f" back: {_told(back, contends=at_home)}, {sum(s.why == HYPERCALLS for s in left)} left",
        holds=contends and at_home and calls > 0,
    )


async def _contends(bench: Bench, name: str) -> bool:
    """Whether the program goes on where the guest is, for some rounds."""
    seen = bench.console(name).count(SAYS)
    try:
        await bench.until(
            lambda: bench.console(name).count(SAYS) >= seen + 4, f"{name} goes on contending"
        )
    except IsthmusError:
        return False
    return True


def _told(moved: Moved, *, contends: bool) -> str:
    if not moved.committed:
        return f"{moved.outcome}: {moved.why}"
    return f"{moved.outcome}, {'contending' if contends else 'silent'}"


CASE = Case(1, "hypercalls of the other maker (kvm_kick_cpu)", ("opteron3", "haswell"), run)
