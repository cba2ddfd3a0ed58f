"""Failure 4: images of PKRU and AVX-512 state in a guest's memory, of the other maker's layout.

A guest keeps XSAVE images in the standard format (signal frames, task buffers), laid out as CPUID
leaf 0Dh was at its boot.  AMD places AVX-512 at 832 and PKRU at 2432, Intel at 1088 and at 2688.

No emulator has both layouts: QEMU gives every CPU it plays Intel's (target/i386/cpu.h,
XSAVE_PKRU_OFFSET; tcg/tcg-cpu.c, tcg_cpu_xsave_init), and no AMD model of Bochs has AVX-512 or
protection keys.  So what is shown is that the move is refused by what real CPUs say of themselves.
"""

from isthmus.cpu.model import CpuModel, XsaveComponent
from isthmus.divergence.evidence import GuestEvidence
from isthmus.divergence.examples import reference_cpus
from isthmus.migration.preflight import preflight
from isthmus.qualification.kvm.cases.bench import Bench
from isthmus.qualification.kvm.cases.case import Case, Part, explained, part

RULE = "xsave-moves"
INTEL, AMD = "Ice-Lake-SP", "EPYC-Milan"
PKRU = {INTEL: 2688, AMD: 2432}  # Firecracker's fingerprints of both
AVX512 = {INTEL: 1088, AMD: 832}  # measured on Granite Rapids; AMD: Zen 4


async def run(_bench: Bench) -> list[Part]:
    """What is predicted, and why no more can be shown."""
    return [
        explained(
            "PKRU and AVX-512 images across makers on lab hosts",
            "read at the wrong place",
            "cannot be shown: QEMU plays every CPU with Intel's offsets (target/i386/tcg/tcg-cpu.c,"
            " tcg_cpu_xsave_init), and no AMD model of Bochs 3.0 has either state",
        ),
        _predicted(9, 8, "pku", PKRU),
        _predicted(5, 64, "avx512f", AVX512),
    ]


def _predicted(component: int, size: int, feature: str, offsets: dict[str, int]) -> Part:
    """What the check says of a guest between the two real layouts, both ways."""
    told = []
    for born, there in ((INTEL, AMD), (AMD, INTEL)):
        guest = _with(born, component, size, feature, offsets[born])
        verdict = preflight(
            "guest",
            GuestEvidence(shown=guest),
            born,
            _with(there, component, size, feature, offsets[there]),
            hypervisor="kvm",
        )
        told += [finding.evidence for finding in verdict.blocking if finding.rule == RULE]
    return part(
        f"{feature}, between the layouts that {INTEL} and {AMD} tell of themselves",
        f"refused by {RULE} in both directions",
        "; ".join(told) or "not refused",
        holds=len(told) == len(offsets),
    )


def _with(name: str, component: int, size: int, feature: str, offset: int) -> CpuModel:
    cpu = reference_cpus()[name]
    layout = (XsaveComponent(number=component, size=size, offset=offset),)
    return cpu.replace(features=cpu.features | {feature}, xsave=layout)


CASE = Case(4, "PKRU and AVX-512 images of the other maker's layout", ("epyc",), run)
