"""Failure 7: a guest's clock source through the move, with kernels of two series.

- kvm-clock and Hyper-V's reference TSC page: the host writes scale and offset into the guest's
  memory, and writes them anew where the guest arrives (Linux arch/x86/kvm/x86.c,
  kvm_guest_time_update and hyperv.c, kvm_hv_setup_tsc_page): hosts' TSCs may differ in speed.
- The TSC itself: the guest has measured its rate at boot.  A host without TSC scaling cannot give
  it that rate; QEMU warns and goes on (target/i386/kvm/kvm.c, kvm_arch_set_tsc_khz), and the
  guest's seconds become longer or shorter.

The AMD hosts' TSC runs at the emulator's 1 GHz or so, the Intel host's at 50 MHz.
"""

import asyncio
import re
import time
from collections.abc import Sequence

from isthmus.qualification.kvm.cases.bench import PATIENCE_S, Bench
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

PACE_S = 8.0
"""Over how long by the host's clock the guest's pace is taken."""

RIGHT_PACE = (0.67, 1.5)
"""Reports that come late make it look a little wrong; a wrong rate makes it wrong by 50 here."""

GAP_LIMIT_MS = 60_000.0
"""Beyond the downtime, what a loaded machine may take from an emulated host between two beats."""

_MONOTONIC = re.compile(rb" mono=(\d+)")
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
    paces: list[float] = []
    release = (await bench.image(kernel)).release
    async with bench.guest(
        first,
        level_with=sorted(set(others) - {first}),
        kernel=kernel,
        clock=clock.name,
        paravirtual=clock.paravirtual,
    ) as name:
        lives = await bench.lives(name, reports=REPORTS)
        for host in journey:
            if host is not first or paces:
                moved = await bench.move(name, host, accepted=ACCEPTED)
                if not moved.committed:
                    outcomes.append(f"{moved.outcome} at {_plain(host)}: {moved.why}")
                    break
                lives = await bench.lives(name, reports=REPORTS)
            paces.append(await _pace(bench, name, host))
        verdict = bench.verdict(name)
        said = "\n".join(_OF_CLOCKS.findall(bench.consoles(name)))
    wrong = [*outcomes, *(f"{fault.kind}: {fault.detail}" for fault in verdict.faults[:2])]
    if not lives:
        wrong.append("it reports no more")
    if verdict.clocksource != clock.name:
        wrong.append(f"Linux took {verdict.clocksource or 'none'}")
    if (gap := _gap(verdict)) > GAP_LIMIT_MS:
        wrong.append(f"a gap of {gap:.0f} ms")
    told = ", ".join(f"{pace:.2f}" for pace in paces)
    if not all(RIGHT_PACE[0] < pace < RIGHT_PACE[1] for pace in paces):
        wrong.append(f"its seconds to the host's: {told}")
    return part(
        f"{clock.name}, Linux {release}, {' to '.join(_plain(host) for host in journey)}",
        "never back, no leap, the source kept, its second the host's",
        "; ".join(wrong)
        or f"largest step across a move {gap:.0f} ms, {verdict.ticks} ticks right, pace {told}",
        holds=not wrong,
        console=last_lines(said, lines=8),
    )


async def _pace(bench: Bench, name: str, host: str) -> float:
    """How many seconds go by in the guest for one of its host's."""
    stream = bench.read(name).process.payload
    channel = bench.hosts.hosts[host].channel()

    async def clocks() -> tuple[float, float]:
        up = float((await channel.run("/bin/cat", "/proc/uptime")).split()[0])
        return up, int(_MONOTONIC.findall(stream.read_bytes())[-1]) / 1e9

    host_began, guest_began = await clocks()
    deadline = time.monotonic() + PATIENCE_S
    while True:
        await asyncio.sleep(1)
        host_now, guest_now = await clocks()
        if host_now - host_began >= PACE_S or time.monotonic() > deadline:
            return (guest_now - guest_began) / max(host_now - host_began, 0.01)


async def foretold(bench: Bench) -> Part:
    """The TSC as clock on a host of another rate: refused, and wrong where the risk is taken."""
    async with bench.guest(AMD, level_with=(INTEL,), clock=TSC.name) as name:
        refused = await bench.move(name, INTEL, accepted=ACCEPTED)
        moved = await bench.move(name, INTEL, accepted=(*ACCEPTED, "tsc-rate-clock"))
        pace = await _pace(bench, name, INTEL) if moved.committed else 0.0
        verdict = bench.verdict(name)
    back = [fault for fault in verdict.faults if fault.kind == "backwards"]
    return part(
        "tsc, epyc to haswell, whose TSC has another rate",
        "refused by tsc-rate-clock; with the risk taken never back, but at another pace",
        f"{refused.outcome}; then {moved.outcome} {moved.why}, {len(back)} times back, "
        f"its second {pace:.3f} of the host's",
        holds=refused.outcome == "refused" and moved.committed and not back and pace < 0.5,
        console=refused.why,
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
        await foretold(bench),
    ]


CASE = Case(7, "clock sources and kernels 6.1 and 6.12", ("epyc", "opteron3", "haswell"), run)
