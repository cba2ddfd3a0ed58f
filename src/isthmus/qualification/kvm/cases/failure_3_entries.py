"""Failure 3: 32-bit programs of a 64-bit guest enter its kernel by INT 80h, SYSENTER, SYSCALL.

Which of them a CPU has in compatibility mode, and what KVM does about it (Linux arch/x86/kvm/):

- SYSENTER is #UD on AMD's (APM vol. 3).  KVM emulates it where the guest is shown Intel (emulate.c,
  em_sysenter), and keeps the upper halves of the two addresses that AMD's VMCB has no room for
  (svm/svm.c, svm_set_msr) in that case only.  So a guest that was shown AMD comes to Intel, where
  SYSENTER is legal and not intercepted, with both addresses cut short.
- SYSCALL is #UD on Intel's (SDM vol. 2B).  KVM emulates it where the guest is not shown Intel
  (em_syscall).  A Linux that was shown Intel leaves CSTAR 0 (arch/x86/kernel/cpu/common.c,
  wrmsrl_cstar), and on AMD SYSCALL is legal and not intercepted: it enters at 0.
- INT 80h is the same everywhere, and the vDSO has what the kernel chose by the maker it was shown.

The emulators that the hosts are made of know no makers here.  In compatibility mode QEMU 7.2 and
Bochs 3.0 execute both on every model (target/i386/tcg/translate.c; cpu/proc_ctrl.cc), so neither
emulation of KVM's is reached, and what would be #UD on silicon goes where the host's registers
lead.  What can be shown is what is legal on silicon as well: each maker's own entry on its own
hosts, INT 80h through all moves, and the two holes.

The programs are ``guests/entries.S``.
"""

import collections
import functools
import re
from collections.abc import Mapping, Sequence

from isthmus.baseline.level import level
from isthmus.cpu.model import CpuModel
from isthmus.errors import IsthmusError
from isthmus.places import cache_folder
from isthmus.qualification.kvm.cases.bench import Bench
from isthmus.qualification.kvm.cases.case import Case, Part, explained, last_lines, part
from isthmus.qualification.kvm.guests import entry_program
from isthmus.qualification.lab.image import GuestImage, build_image
from isthmus.qualification.lab.initramfs import file, folder
from isthmus.values import Value

AMD, INTEL = "kvm:epyc", "kvm:haswell"

# What `check` predicts of these guests, and what this case is there to see.
ACCEPTED = ("compat-entry-at-zero", "sysenter-cut-short")

SYSRET_RULE = "sysret-stack-segment"

LINES = 3
"""How many lines of each program are waited for on each host."""

DEATHS = ("Oops:", "Kernel panic", "double fault", "BUG: unable to handle", "BUG: kernel NULL")

_FACTOR = 1664525
_STEPS = (1, 1, 1 - 22)
"""As in entries.S: a round adds 1 and what each of its three calls returns; 22 is EINVAL."""

_LINE = re.compile(r"entry (\w+) +([0-9a-f]{8}) ([0-9a-f]{8}) ([0-9a-f]{8})\r?\n")
_CAUSE = re.compile(r"fault (\w+) +([0-9a-f]{8}) [0-9a-f]{8} [0-9a-f]{8} ([0-9a-f]{8}) .*")
_PAGE_FAULT, _STACK_FAULT = 14, 12

MOST = 1_000_000
"""Sums beyond this are not compared: so many ways there are for a program's rounds to have gone."""


class Told(Value, frozen=True):
    """What a program said so far: how many lines, its rounds and the faults among them.

    ``cut``: how many of the faults came of a stack pointer of which 16 bits counted.
    """

    lines: int = 0
    rounds: int = 0
    faults: int = 0
    cut: int = 0
    wrong: str = ""


def read_programs(console: str) -> dict[str, Told]:
    """What each program has said, by the name of its entry.

    The kernel prints between their lines and sometimes into one, which is then not counted.
    """
    told: dict[str, Told] = {}
    for match in _LINE.finditer(console):
        rounds, total, faults = (int(match[n], 16) for n in range(2, 5))
        before = told.get(match[1], Told())
        wrong = before.wrong
        if rounds <= before.rounds or faults < before.faults:
            wrong = wrong or f"counted {rounds} after {before.rounds}"
        comparable = rounds * (len(_STEPS) * rounds) ** faults <= MOST
        if comparable and total not in _sums(rounds, faults):
            wrong = wrong or f"summed {total:08x} in {rounds} rounds with {faults} faults"
        told[match[1]] = Told(lines=before.lines + 1, rounds=rounds, faults=faults, wrong=wrong)
    cut = collections.Counter(
        match[1] for match in _CAUSE.finditer(console) if _of_16_bits(int(match[2], 16), match[3])
    )
    return {name: one.replace(cut=cut[name]) for name, one in told.items()}


def _of_16_bits(trap: int, address: str) -> bool:
    return trap == _STACK_FAULT or (trap == _PAGE_FAULT and int(address, 16) < 1 << 16)


@functools.lru_cache(maxsize=1024)
def _sums(rounds: int, faults: int) -> frozenset[int]:
    """What so many rounds can sum up to: any of them may have ended at any of its calls."""
    reached: list[set[int]] = [{1}, *(set() for _ in range(faults))]
    for _ in range(rounds):
        after: list[set[int]] = [set() for _ in reached]
        for number, totals in enumerate(reached):
            for total in totals:
                now = total
                for step in _STEPS:
                    if number < faults:
                        after[number + 1].add(now)
                    now = (now * _FACTOR + step) & 0xFFFFFFFF
                after[number].add(now)
        reached = after
    return frozenset(reached[faults])


def image_with(entries: Sequence[str], *, abroad: bool = False) -> GuestImage:
    """The guest's image with these programs in it."""
    cache = cache_folder()
    programs = [
        file(f"beside/{entry}", entry_program(cache, entry, abroad=abroad), executable=True)
        for entry in entries
    ]
    return build_image(cache=cache, more=[folder("beside"), *programs])


def of_maker(bench: Bench, host: str) -> CpuModel:
    """The level of both hosts under the identity of ``host``."""
    offers = [bench.hosts.offered(each) for each in (AMD, INTEL)]
    own = bench.hosts.offered(host)
    return level(offers).model.replace(
        vendor=own.vendor, family=own.family, model=own.model, stepping=own.stepping,
        brand=own.brand,
    )  # fmt: skip


async def served(
    bench: Bench,
    about: str,
    shown: CpuModel,
    journey: Sequence[str],
    entries: Sequence[str],
    words: str = "",
    cut: bool = False,
) -> Part:
    """A guest whose programs' entries all work on each host of ``journey``.

    :param words: for its kernel's command line.
    :param cut: a stack may be cut to 16 bits there.
    """
    seen: list[str] = []
    wrong = ""
    image = image_with(entries)
    async with bench.guest(journey[0], shown=shown, image=image, words=words) as name:
        for hop, host in enumerate(journey):
            if hop:
                moved = await bench.move(name, host, accepted=ACCEPTED)
                if not moved.committed:
                    wrong = f"{moved.outcome} at {_plain(host)}: {moved.why}"
                    break
            told = await _further(bench, name, entries)
            counts = ", ".join(f"{entry} {_counted(told[entry])}" for entry in entries)
            seen.append(f"{_plain(host)}: {counts}")
            bad = [
                f"{entry}: {told[entry].wrong or 'faults'}"
                for entry in entries
                if told[entry].wrong or told[entry].faults > (told[entry].cut if cut else 0)
            ]
            if bad:
                wrong = f"on {_plain(host)} {', '.join(bad)}"
                break
        text = bench.consoles(name)
        said = [match[0].strip() for match in _LINE.finditer(text)]
        causes = [match[0].strip() for match in _CAUSE.finditer(text)]
        console = "\n".join(causes[:3] + said[-6:])
    return part(
        f"{about}, {' to '.join(_plain(host) for host in journey)}: {', '.join(entries)}",
        "all serve on each host, no call lost"
        + (f", but for POPs at 16 bits of the stack pointer ({SYSRET_RULE})" if cut else ""),
        wrong or f"rounds so far: {'; '.join(seen)}; no {'other ' if cut else ''}fault",
        holds=not wrong,
        console=console,
    )


def _counted(told: Told) -> str:
    return f"{told.rounds}{f' ({told.cut} at 16 bits)' if told.cut else ''}"


async def attacked(
    bench: Bench, about: str, shown: CpuModel, journey: tuple[str, str], entry: str, rule: str
) -> Part:
    """A guest one program of which takes, abroad, an entry that its kernel set up for no one.

    :param rule: the one that must foretell it.
    """
    home, abroad = journey
    image = image_with((entry,), abroad=True)
    async with bench.guest(home, shown=shown, image=image) as name:
        told = (await _further(bench, name, (entry,)))[entry]
        lived = not told.wrong and not told.faults
        verdict = bench.hosts.check(bench.read(name), abroad)
        foretold = rule in {finding.rule for finding in verdict.blocking}
        moved = await bench.move(name, abroad, accepted=ACCEPTED)
        word = await bench.says(name, *DEATHS)
        console = bench.consoles(name)
    return part(
        f"{about}, {_plain(home)} to {_plain(abroad)}: {entry.upper()} by hand, once abroad",
        f"refused by {rule}; the risk taken, any program kills its kernel",
        f"{'refused' if foretold else 'not foretold'}; {told.wrong or 'lives at home'}; "
        f"{moved.outcome}, {word or 'no death'}",
        holds=lived and foretold and word is not None,
        console=last_lines(console, word or ""),
    )


async def _further(bench: Bench, name: str, entries: Sequence[str]) -> Mapping[str, Told]:
    """Wait until each program has said so many lines more."""
    before = {entry: told.lines for entry, told in read_programs(bench.consoles(name)).items()}

    def far() -> bool:
        told = read_programs(bench.consoles(name))
        return all(
            entry in told and told[entry].lines >= before.get(entry, 0) + LINES for entry in entries
        )

    try:
        await bench.until(far, "the 32-bit programs go on", alive=bench.read(name))
    except IsthmusError as error:
        told = read_programs(bench.consoles(name))
        stopped = Told(wrong=error.message)
        return {entry: told.get(entry, stopped).replace(wrong=error.message) for entry in entries}
    return read_programs(bench.consoles(name))


def _plain(host: str) -> str:
    return host.removeprefix("kvm:")


async def run(bench: Bench) -> list[Part]:
    """What is the same everywhere, each maker's own at home, the cure, and the two holes."""
    amd, intel = of_maker(bench, AMD), of_maker(bench, INTEL)
    back = (AMD, INTEL, AMD)
    return [
        await served(bench, "shown Intel", intel, back, ("int80",)),
        await served(
            bench, "shown Intel", intel, (INTEL,), ("int80", "vdso", "sysenter"), cut=True
        ),
        await served(bench, "shown AMD", amd, (AMD,), ("int80", "vdso", "syscall")),
        await served(bench, "shown AMD, vdso32=0", amd, back, ("int80", "vdso"), "vdso32=0"),
        explained(
            "the other maker's entry through the vDSO",
            "#UD, and KVM emulates it (em_sysenter, em_syscall)",
            "both emulators execute it instead, on every model: the guest dies of a double fault",
        ),
        await attacked(bench, "shown AMD", amd, (AMD, INTEL), "sysenter", "sysenter-cut-short"),
        await attacked(
            bench, "shown Intel", intel, (INTEL, AMD), "syscall", "compat-entry-at-zero"
        ),
    ]


CASE = Case(3, "32-bit programs by INT 80h, SYSENTER, SYSCALL", ("epyc", "haswell"), run)
