"""Failure 8: a destination that refuses the guest's state, and one that wrongly accepts it.

Nothing is played: QEMU refuses a CPU that the host cannot show (``enforce``) and a stream that is
not for its machine; KVM refuses control registers and an XSAVE image, and QEMU goes on as if it had
not (see :mod:`isthmus.migration.arrival`).  Each time the guest has to go on at its source, and the
record has to say why.
"""

import asyncio
from collections.abc import Callable, Collection

from isthmus.hypervisor.qemu.process import LaunchSpec
from isthmus.places import cache_folder
from isthmus.qualification.kvm.cases.bench import Bench
from isthmus.qualification.kvm.cases.beside import image_with
from isthmus.qualification.kvm.cases.case import Case, Part, part
from isthmus.qualification.lab.image import GuestImage

NEWER, OLDER, OLDEST, INTEL = "kvm:epyc", "kvm:opteron3", "kvm:opteron2", "kvm:haswell"
QUIET: dict[str, object] = {"test": "none", "memory_mib": 8, "rewrite_kib": 64}


async def run(bench: Bench) -> list[Part]:
    """Each way in which a destination does not take what it is sent."""
    mxcsr = await asyncio.to_thread(image_with, "mxcsr", cache_folder(), bench.note)
    return [
        await _back(bench, OLDER, OLDEST, "QEMU refuses the CPU that the guest is to be shown",
                    ("doesn't support requested feature",), alter=_as_at_home),
        await _back(bench, OLDER, OLDEST, "QEMU refuses a stream of another machine",
                    ("Length mismatch", "load of migration failed", "failed"), alter=_smaller),
        await _back(bench, NEWER, OLDEST, "KVM refuses CR4, and QEMU goes on",
                    ("did not take the guest's registers", "CR4")),
        await _back(bench, OLDER, INTEL, "KVM refuses the XSAVE image (MXCSR.MM), and QEMU goes on",
                    ("did not take the guest's registers", "MXCSR"), image=mxcsr, vcpus=2),
        await _wrongly_accepts(bench),
    ]  # fmt: skip


async def _back(
    bench: Bench,
    home: str,
    to: str,
    tried: str,
    words: Collection[str],
    *,
    alter: Callable[[LaunchSpec], LaunchSpec] | None = None,
    image: GuestImage | None = None,
    vcpus: int = 1,
) -> Part:
    """A move that cannot succeed, whose every risk is taken."""
    async with bench.guest(home, options=QUIET, image=image, vcpus=vcpus) as name:
        if image is not None:
            await bench.says(name, "mxcsr: ")
        guest = bench.read(name)
        cpu = guest.spec.cpu

        def launched(spec: LaunchSpec) -> LaunchSpec:
            if alter is _as_at_home:
                return spec.replace(cpu=cpu)
            return alter(spec) if alter is not None else spec

        moved = await bench.move(
            name,
            to,
            translate=False,
            accepted="*",
            alter=launched,
        )
        goes_on = await bench.lives(name)
        at_home = bench.read(name).host == home
        verdict = bench.verdict(name)
    told = moved.record.error if moved.record is not None else ""
    return part(
        f"{tried}; {home.removeprefix('kvm:')} to {to.removeprefix('kvm:')}",
        "rolled back, the guest goes on at its source, the record says why",
        f"{moved.outcome}; {'goes on' if goes_on and at_home else 'does not go on'}",
        holds=moved.outcome == "rolled back"
        and goes_on
        and at_home
        and verdict.ok
        and any(word in told for word in words),
        console=told,
    )


async def _wrongly_accepts(bench: Bench) -> Part:
    """Without ``enforce`` QEMU shows another CPU and says nothing but a warning."""
    async with bench.guest(OLDER, options=QUIET) as name:
        cpu = bench.read(name).spec.cpu.removesuffix(",enforce")
        moved = await bench.move(
            name,
            OLDEST,
            translate=False,
            accepted="*",
            alter=lambda spec: spec.replace(cpu=cpu),
        )
        kinds = {fault.kind for fault in bench.verdict(name).faults}
        for _ in range(10):
            if kinds or not moved.committed or not await bench.lives(name):
                break
            kinds = {fault.kind for fault in bench.verdict(name).faults}
    return part(
        "without enforce QEMU drops what the host lacks; opteron3 to opteron2",
        "it goes on, and the payload sees its CPUID change: so Isthmus always states enforce",
        f"{moved.outcome}; the payload's faults: {', '.join(sorted(kinds)) or 'none'}",
        holds=moved.committed and kinds == {"cpuid"},
    )


def _as_at_home(spec: LaunchSpec) -> LaunchSpec:
    """Marks that the destination is to show the CPU that the guest was shown at home."""
    return spec


def _smaller(spec: LaunchSpec) -> LaunchSpec:
    return spec.replace(memory_mib=spec.memory_mib // 2)


CASE = Case(
    8,
    "a destination that refuses state, or wrongly accepts it",
    ("epyc", "opteron3", "opteron2", "haswell"),
    run,
)
