"""Failure 8: a destination that refuses the guest's state, and one that wrongly accepts it.

Nothing is played: QEMU refuses a CPU that the host cannot show (``enforce``) and a stream that is
not for its machine; KVM refuses control registers, and QEMU goes on as if it had
not (see :mod:`isthmus.migration.arrival`).  Each time the guest has to go on at its source, and the
record has to say why.
"""

from collections.abc import Callable, Collection

from isthmus.hypervisor.qemu.process import LaunchSpec
from isthmus.qualification.kvm.cases.bench import Bench
from isthmus.qualification.kvm.cases.case import Case, Part, part

NEWER, OLDER, OLDEST = "kvm:epyc", "kvm:opteron3", "kvm:opteron2"
SILENCE_S = 60.0
QUIET: dict[str, object] = {"test": "none", "memory_mib": 8, "rewrite_kib": 64}


async def run(bench: Bench) -> list[Part]:
    """Each way in which a destination does not take what it is sent, or only seems to."""
    return [
        await _back(bench, OLDER, "QEMU refuses the CPU that the guest is to be shown",
                    ("support requested feature",), alter=_as_at_home),
        await _back(bench, OLDER, "QEMU refuses a stream of another machine",
                    ("Length mismatch", "load of migration failed", "failed"), alter=_smaller),
        await _back(bench, NEWER, "KVM refuses CR4, and QEMU goes on",
                    ("did not take the guest's registers",)),
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
) -> Part:
    """A move that cannot succeed, whose every risk is taken.

    :param alter: how the destination is launched, from how it should be and the CPU at home.
    """
    change = alter or _same
    async with bench.guest(home, options=QUIET) as name:
        cpu = bench.read(name).spec.cpu

        moved = await bench.move(
            name,
            OLDEST,
            translate=False,
            accepted="*",
            verify_s=SILENCE_S,
            alter=lambda spec: change(spec, cpu),
        )
        goes_on = await bench.lives(name)
        at_home = bench.read(name).host == home
        verdict = bench.verdict(name)
    told = moved.record.error if moved.record is not None else ""
    return part(
        f"{tried}; {home.removeprefix('kvm:')} to {OLDEST.removeprefix('kvm:')}",
        "rolled back, the guest goes on at its source, the record says why",
        f"{moved.outcome}; {'goes on' if goes_on and at_home else 'does not go on'}",
        holds=moved.outcome == "rolled back"
        and goes_on
        and at_home
        and verdict.ok
        and any(word in told for word in words),
        console=told,
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
