"""Failure 2: an instruction masked in CPUID runs at home all the same, and is missing abroad.

On silicon a masked CPUID bit masks no instruction (Linux Documentation/virt/kvm/x86/errata.rst).  A
program that ignores CPUID lives as long as its guest stays, and dies after the move.
"""

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
    return [at_home, abroad]


CASE = Case(2, "masked instructions that still run", ("phenom", "opteron2"), run)
