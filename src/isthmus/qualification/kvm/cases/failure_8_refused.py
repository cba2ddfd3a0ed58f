"""Failure 8: a destination that refuses the guest's state, and one that wrongly accepts it.

Nothing is played: QEMU refuses a CPU that the host cannot show (``enforce``) and a stream that is
not for its machine; KVM refuses control registers, or an XSAVE image, and QEMU goes on as if it had
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

NEWER, OLDER, OLDEST = "kvm:epyc", "kvm:opteron3", "kvm:opteron2"
SILENCE_S = 60.0
QUIET: dict[str, object] = {"test": "none", "memory_mib": 8, "rewrite_kib": 64}


async def run(bench: Bench) -> list[Part]:
    """Each way in which a destination does not take what it is sent, or only seems to."""
    return [
        await _back(bench, OLDER, "QEMU refuses the CPU that the guest is to be shown",
                    ("support requested feature",), alter=_as_at_home),
        await _back(bench, OLDER, "QEMU refuses a stream of another machine",
                    ("mismatch: pc.ram",), alter=_smaller),
        await _back(bench, NEWER, "KVM refuses CR4, and QEMU goes on",
                    ("did not take the guest's registers",)),
        await _image_refused(bench),
        await _back(bench, OLDER, "without enforce QEMU shows less, and the guest falls silent",
                    ("reported nothing", "invalid opcode"), alter=_without_enforce),
    ]  # fmt: skip


async def _back(
    bench: Bench,
    home: str,
    tried: str,
    words: Collection[str],
    *,
    alter: Callable[[LaunchSpec, str], LaunchSpec] | None = None,
    image: GuestImage | None = None,
    says: str = "",
    moves: int = 1,
) -> Part:
    """A move that cannot succeed, whose every risk is taken.

    :param alter: how the destination is launched, from how it should be and the CPU at home.
    :param image: what the guest boots, if not the usual image; ``says``: what it has to print
        before the move, and once more after it.
    :param moves: how often it is moved at most, until it is for one of ``words`` that it is back:
        the guest may be stopped while another program has the vCPU.
    """
    change = alter or _same
    async with bench.guest(home, options=QUIET, image=image) as name:
        cpu = bench.read(name).spec.cpu

        def said() -> int:
            return bench.console(name).count(says)

        if says:
            await bench.until(lambda: said() > 0, says, alive=bench.read(name))
        made, meant = 0, False
        while made < moves and not meant:
            made += 1
            moved = await bench.move(
                name,
                OLDEST,
                translate=False,
                accepted="*",
                verify_s=SILENCE_S,
                alter=lambda spec: change(spec, cpu),
            )
            told = moved.record.error if moved.record is not None else ""
            meant = any(word in told for word in words)
            if moved.committed:
                break
        goes_on = await bench.lives(name)
        if says and goes_on:
            before = said()
            await bench.until(lambda: said() > before, says, alive=bench.read(name))
        at_home = bench.read(name).host == home
        verdict = bench.verdict(name)
    return part(
        f"{tried}; {home.removeprefix('kvm:')} to {OLDEST.removeprefix('kvm:')}",
        "rolled back, the guest goes on at its source, the record says why",
        f"{moved.outcome}; {'goes on' if goes_on and at_home else 'does not go on'}"
        f"{f'; by move {made}' if moves > 1 else ''}",
        holds=moved.outcome == "rolled back" and goes_on and at_home and verdict.ok and meant,
        console=told,
    )


async def _image_refused(bench: Bench) -> Part:
    """MXCSR.MM is on, which the host that it goes to lacks: KVM refuses all of the XSAVE image."""
    image = await asyncio.to_thread(image_with, "misaligned", cache_folder(), bench.note)
    return await _back(
        bench,
        OLDER,
        "KVM refuses the XSAVE image (MXCSR.MM), and QEMU goes on",
        ("MXCSR is 00001f80",),
        image=image,
        says="misaligned: on",
        moves=3,
    )


def _as_at_home(spec: LaunchSpec, cpu: str) -> LaunchSpec:
    return spec.replace(cpu=cpu)


def _without_enforce(spec: LaunchSpec, cpu: str) -> LaunchSpec:
    return spec.replace(cpu=cpu.removesuffix(",enforce"))


def _smaller(spec: LaunchSpec, _: str) -> LaunchSpec:
    return spec.replace(memory_mib=spec.memory_mib // 2)


def _same(spec: LaunchSpec, _: str) -> LaunchSpec:
    return spec


CASE = Case(
    8,
    "a destination that refuses state, or wrongly accepts it",
    ("epyc", "opteron3", "opteron2"),
    run,
)
