"""Failure 2: an instruction masked in CPUID runs at home all the same, and is missing abroad.

On silicon a masked CPUID bit masks no instruction (Linux Documentation/virt/kvm/x86/errata.rst).  A
program that ignores CPUID lives as long as its guest stays, and dies after the move.
"""

from isthmus.divergence.evidence import GuestEvidence
from isthmus.migration.preflight import preflight
from isthmus.qualification.kvm.cases.bench import Bench
from isthmus.qualification.kvm.cases.case import Case, Part, last_lines, part

HOME, ABROAD = "kvm:phenom", "kvm:opteron2"
DEATH = "invalid opcode"


async def run(bench: Bench) -> list[Part]:
    """A careless guest, levelled without SSE4a, that uses SSE4a."""
    careless: dict[str, object] = {"test": "sse4a", "blind": True}
    async with bench.guest(HOME, level_with=(ABROAD,), options=careless) as name:
        hidden = "sse4a" not in bench.read(name).shown.features
        lives = await bench.lives(name)
        runs = bench.verdict(name).instructions.get("extrq", 0)
        at_home = part(
            "levelled without SSE4a, used blindly, at home",
            "hidden in CPUID, and it runs",
            f"{'hidden' if hidden else 'shown'}, EXTRQ ran {runs} times",
            holds=hidden and lives and runs > 0,
        )
        predicted = _predicted(bench, name)
        moved = await bench.move(name, ABROAD, translate=False)
        word = await bench.says(name, DEATH)
        console = bench.consoles(name)
        abroad = part(
            "moved to a host without SSE4a",
            f"dead by {DEATH}, found by the watch or soon after it",
            f"{moved.outcome}; {word or 'no death on its console'}",
            holds=word is not None or DEATH in moved.why,
            console=last_lines(console, "Oops")
            if "Oops" in console
            else last_lines(console, DEATH),
        )
    return [at_home, predicted, abroad]


def _predicted(bench: Bench, name: str) -> Part:
    """What the check says, before and after somebody has looked what the programs use."""
    guest = bench.read(name)
    unseen = bench.hosts.check(guest, ABROAD, translate=False)
    scanned = preflight(
        name,
        GuestEvidence(shown=guest.shown, uses=frozenset({"sse4a"})),
        HOME,
        bench.hosts.offered(ABROAD),
        hypervisor="kvm",
        source=bench.hosts.offered(HOME),
    )
    warned = any(finding.rule == "hidden-still-runs" for finding in unseen.findings)
    refused = any(finding.rule == "hidden-and-used" for finding in scanned.blocking)
    return part(
        "checked before the move",
        "warned of by hidden-still-runs; refused by hidden-and-used where a scan found SSE4a",
        f"{'warned of' if warned else 'no warning'}; {'refused' if refused else 'not refused'}",
        holds=warned and refused and not unseen.blocking,
    )


CASE = Case(2, "masked instructions that still run", ("phenom", "opteron2"), run)
