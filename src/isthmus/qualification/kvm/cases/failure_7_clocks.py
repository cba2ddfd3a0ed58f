"""Failure 7: a guest's clock source through the move, with kernels of two series.

- kvm-clock and Hyper-V's reference TSC page: the host writes scale and offset into the guest's
  memory, and writes them anew where the guest arrives (Linux arch/x86/kvm/x86.c,
  kvm_guest_time_update and hyperv.c, kvm_hv_setup_tsc_page): hosts' TSCs may differ in speed.
- The TSC itself: the guest has measured its rate at boot.  A host without TSC scaling cannot give
  it that rate; QEMU warns and goes on (target/i386/kvm/kvm.c, kvm_arch_set_tsc_khz), and the
  guest's seconds become longer or shorter.

The AMD hosts' TSC runs at the emulator's 1 GHz or so, the Intel host's at 50 MHz.
"""

import re
from collections.abc import Sequence

from isthmus.qualification.kvm.cases.bench import Bench
from isthmus.qualification.kvm.cases.case import Case, Part, last_lines, part
from isthmus.qualification.payload.verdict import Verdict
from isthmus.values import Value

AMD, OTHER_AMD, INTEL = "kvm:epyc", "kvm:opteron3", "kvm:haswell"
ACCEPTED = ("compat-entry-at-zero",)
REPORTS = 40

HYPERV = ("kvm=off", "hv-relaxed=on", "hv-vapic=on", "hv-vpindex=on", "hv-time=on")
"""Linux takes Hyper-V for its hypervisor only where KVM does not show itself, too, and only with a
virtual processor index (arch/x86/kernel/cpu/hypervisor.c, detect_hypervisor_vendor; mshyperv.c,
ms_hyperv_platform)."""

GAP_LIMIT_MS = 60_000.0
"""Beyond the downtime, what a loaded machine may take from an emulated host between two beats."""

_OF_CLOCKS = re.compile(r".*(?:clocksource|[Tt][Ss][Cc]|kvm-clock|Hyper-V).*")


class Clock(Value, frozen=True):
    """A clock source by Linux's name, and what the hypervisor must offer for it."""

    name: str
    paravirtual: tuple[str, ...] = ()


KVM_CLOCK = Clock(name="kvm-clock")
TSC = Clock(name="tsc")
REFERENCE_TSC = Clock(name="hyperv_clocksource_tsc_page", paravirtual=HYPERV)


async def kept(bench: Bench, clock: Clock, kernel: str | None, journey: Sequence[str]) -> Part:
    """A guest with that clock source, moved along ``journey``; its clock must not go back."""
    first, *others = journey
    said = ""
    outcomes: list[str] = []
    release = (await bench.image(kernel)).release
    async with bench.guest(
        first,
        level_with=sorted(set(others) - {first}),
        kernel=kernel,
        clock=clock.name,
        paravirtual=clock.paravirtual,
    ) as name:
        lives = await bench.lives(name, reports=REPORTS)
        for host in others:
            moved = await bench.move(name, host, accepted=ACCEPTED)
            if not moved.committed:
                outcomes.append(f"{moved.outcome} at {_plain(host)}: {moved.why}")
                break
            lives = await bench.lives(name, reports=REPORTS)
        verdict = bench.verdict(name)
        said = "\n".join(_OF_CLOCKS.findall(bench.consoles(name)))
    wrong = [*outcomes, *(f"{fault.kind}: {fault.detail}" for fault in verdict.faults[:2])]
    if not lives:
        wrong.append("it reports no more")
    if verdict.clocksource != clock.name:
        wrong.append(f"Linux took {verdict.clocksource or 'none'}")
    if (gap := _gap(verdict)) > GAP_LIMIT_MS:
        wrong.append(f"a gap of {gap:.0f} ms")
    return part(
        f"{clock.name}, Linux {release}, {' to '.join(_plain(host) for host in journey)}",
        "never back, no leap, the source kept",
        "; ".join(wrong) or f"largest step across a move {gap:.0f} ms, {verdict.ticks} ticks right",
        holds=not wrong,
        console=last_lines(said, lines=8),
    )


def _gap(verdict: Verdict) -> float:
    return max((hop.guest_gap_ms or 0.0 for hop in verdict.hops), default=0.0)


def _plain(host: str) -> str:
    return host.removeprefix("kvm:")


async def run(bench: Bench) -> list[Part]:
    """What follows the host, between makers; the TSC itself, between hosts of one rate."""
    back = (AMD, INTEL, AMD)
    return [
        await kept(bench, KVM_CLOCK, None, back),
        await kept(bench, KVM_CLOCK, "6.12", back),
        await kept(bench, REFERENCE_TSC, None, back),
        await kept(bench, REFERENCE_TSC, "6.12", back),
        await kept(bench, TSC, None, (AMD, OTHER_AMD, AMD)),
        await kept(bench, TSC, "6.12", (AMD, OTHER_AMD, AMD)),
    ]


CASE = Case(7, "clock sources and kernels 6.1 and 6.12", ("epyc", "opteron3", "haswell"), run)
