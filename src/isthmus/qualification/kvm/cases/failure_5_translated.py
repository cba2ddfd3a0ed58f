"""Failure 5: an unlevelled guest uses what the destination lacks: SSE4a, 3DNow!, RDTSCP.

Dead without translation; alive with it outside the guest, which works by KVM's guest debugging
(KVM_GUESTDBG_USE_HW_BP), and alive with it inside, by the module in the guest's kernel.
"""

import asyncio

from isthmus.places import cache_folder
from isthmus.qualification.kvm.cases.bench import Bench
from isthmus.qualification.kvm.cases.case import Case, Part, last_lines, part
from isthmus.qualification.lab.image import build_image

HOME, INTEL, OLD = "kvm:phenom", "kvm:haswell", "kvm:opteron2"
DEATH = "invalid opcode"
# One vCPU kicks no other, and there are no 32-bit programs.
BESIDES = ("sysenter-cut-short", "compat-entry-at-zero", "hypercall-instruction")
LACKING: dict[str, object] = {"test": "sse4a,3dnow,3dnowext"}
MORE = 20
SILENT = "reported nothing"
SILENCE_S = 60.0


async def run(bench: Bench) -> list[Part]:
    """Dead or silent without, then translated by each placement."""
    return [
        await _dies(bench),
        await _silent(bench),
        await _outside(bench),
        await _inside(bench),
    ]


async def _dies(bench: Bench) -> Part:
    async with bench.guest(HOME, options=LACKING) as name:
        refused = await bench.move(name, INTEL, translate=False, accepted=BESIDES)
        told = bench.hosts.check(bench.read(name), INTEL, translate=False).findings
        warned = "3dnow" in {finding.subject for finding in told}
        moved = await bench.move(name, INTEL, translate=False, accepted=(*BESIDES, "*"))
        death = DEATH if DEATH in moved.why else await bench.says(name, DEATH)
        console = bench.consoles(name)
    return part(
        "SSE4a and 3DNow!, phenom to haswell, without translation",
        f"refused by sse4a, warned of 3dnow; the risk taken, dead by {DEATH}",
        f"{refused.outcome}: {refused.why}; 3dnow {'warned of' if warned else 'not told'};"
        f" {moved.outcome}; {death or 'no death'}",
        holds="sse4a" in refused.why and warned and death is not None,
        console=last_lines(console, DEATH),
    )


async def _silent(bench: Bench) -> Part:
    """The kernel itself reads its clock by RDTSCP, also in what handles the exception."""
    async with bench.guest(HOME, options={"test": "none"}) as name:
        refused = await bench.move(name, OLD, translate=False, accepted=BESIDES)
        moved = await bench.move(
            name, OLD, translate=False, accepted=(*BESIDES, "*"), verify_s=SILENCE_S
        )
        goes_on = await bench.lives(name)
    return part(
        "RDTSCP in the kernel's own clock, phenom to opteron2, without translation",
        "refused by rdtscp; the risk taken, silent, rolled back by the watch: the source goes on",
        f"{refused.outcome}: {refused.why}; {moved.outcome}: {moved.why};"
        f" {'goes on' if goes_on else 'dead'}",
        holds="rdtscp" in refused.why
        and moved.outcome == "rolled back"
        and (SILENT in moved.why or DEATH in moved.why)
        and goes_on,
    )


async def _outside(bench: Bench) -> Part:
    async with bench.guest(HOME, options=LACKING) as name:
        moved = await bench.move(name, INTEL, accepted=BESIDES)
        runs = moved.committed and await _goes_on(bench, name)
        faults = {fault.kind for fault in bench.verdict(name).faults}
        ran = bench.verdict(name).instructions.get("extrq", 0)
    return part(
        "phenom to haswell, translated outside the guest",
        "alive, EXTRQ goes on, and nothing else is wrong than the CPU shown",
        f"{moved.outcome}{moved.why and ': ' + moved.why}; EXTRQ ran {ran} times;"
        f" faults: {', '.join(sorted(faults)) or 'none'}",
        holds=runs and faults <= {"cpuid"},
    )


async def _inside(bench: Bench) -> Part:
    image = await asyncio.to_thread(build_image, cache=cache_folder(), inside=True)
    async with bench.guest(HOME, options=LACKING, image=image, module=True) as name:
        moved = await bench.move(name, INTEL, accepted=BESIDES)
        runs = moved.committed and await _goes_on(bench, name)
        faults = {fault.kind for fault in bench.verdict(name).faults}
        ran = bench.verdict(name).instructions.get("extrq", 0)
        console = bench.consoles(name)
    return part(
        "phenom to haswell, translated inside, by the kernel's module",
        "alive, EXTRQ goes on, and nothing else is wrong than the CPU shown",
        f"{moved.outcome}{moved.why and ': ' + moved.why}; EXTRQ ran {ran} times;"
        f" faults: {', '.join(sorted(faults)) or 'none'}",
        holds=runs and faults <= {"cpuid"},
        console=last_lines(console, "isthmus"),
    )


async def _goes_on(bench: Bench, name: str) -> bool:
    """Whether EXTRQ, which the CPU lacks, goes on being done."""
    before = bench.verdict(name).instructions.get("extrq", 0)
    await bench.until(
        lambda: bench.verdict(name).instructions.get("extrq", 0) >= before + MORE,
        "EXTRQ goes on",
        alive=bench.read(name),
    )
    return True


CASE = Case(5, "unlevelled SSE4a, 3DNow! and RDTSCP", ("phenom", "opteron2", "haswell"), run)
