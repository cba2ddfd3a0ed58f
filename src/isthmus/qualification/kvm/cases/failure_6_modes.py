"""Failure 6: a guest in another mode than an ordinary kernel's at the moment of the move.

The processor keeps of each segment what its descriptor said when it was loaded: base, limit,
attributes.  AMD and Intel keep it in other forms (VMCB: AMD APM vol. 2, 15.5; VMCS: Intel SDM
vol. 3C, 24.4.1), and Intel refuses to enter a guest whose parts do not fit (26.3.1.2).  The guest
is ``guests/modes.S``: it stays in one mode, has wiped its descriptors, and checks itself.

Limits are enforced on the Intel host only: QEMU's emulation, which the AMD hosts are made of,
checks none.  So that they came through is seen there by what is forbidden, and after the return by
what QEMU reads from KVM.
"""

import collections
import re
from collections.abc import Iterator, Sequence

from isthmus.hypervisor.qemu.monitor import Monitor
from isthmus.places import cache_folder
from isthmus.qualification.kvm.cases.bench import Bench
from isthmus.qualification.kvm.cases.case import Case, Part, part
from isthmus.qualification.kvm.guests import modes_guest
from isthmus.values import Value

AMD, INTEL = "kvm:epyc", "kvm:haswell"
AMD_BY_BOCHS = "kvm:trinity"
"""For what QEMU's emulation cannot play: it ends with "invalid tss type" when a guest in a 32-bit
mode changes to an inner ring once KVM has set its task register.  KVM marks that as busy, as it is
(svm/svm.c, svm_get_segment), and QEMU takes only the other form for a task segment
(target/i386/tcg/seg_helper.c, get_ss_esp_from_tss)."""

# A kernel of its own, without programs that could attack it.
ACCEPTED = ("compat-entry-at-zero",)

LINES = 5
"""How many lines of the guest are waited for on each host."""

WATCH_S = 3.0
SAMPLES = 7
"""How often the segments are read: the guest may just be in its monitor, or in a system call."""


class Mode(Value, frozen=True):
    """A mode: its word on the command line, what it is, the accesses that are forbidden in it.

    ``forbidden``: FAULTS where limits are enforced.  ``steady``: it loads no segment meanwhile.
    ``home``: the AMD host that can play it.
    """

    word: str
    about: str
    forbidden: int
    steady: bool = True
    home: str = AMD


MODES = (
    Mode(word="real", about="real mode, IDT not at 0", forbidden=0b11),
    Mode(word="unreal", about="real mode, bases and limits of protected mode", forbidden=0b1),
    Mode(word="16", about="protected, 16 bits, expand-down, LDT", forbidden=0b1111),
    Mode(word="vm86", about="virtual-8086 under a monitor", forbidden=0b1, home=AMD_BY_BOCHS),
    Mode(
        word="32",
        about="protected, 32 bits, CPL 3, conforming, expand-down",
        forbidden=0b11111,
        home=AMD_BY_BOCHS,
    ),
    Mode(word="long", about="64 bits, null segments, SYSCALL", forbidden=0, steady=False),
)

# As in modes.S.
_FACTOR, _STEP, _ENTRIES, _ROUNDS = 1664525, 0x9E3779B1, 256, 256
_LINE = re.compile(r"(\w+) +" + " ".join(["([0-9a-f]{8})"] * 5))
_SEGMENT = re.compile(r"^(?:[CSDEFG]S|LDT|TR) ?=.*$", re.MULTILINE)


class Life(Value, frozen=True):
    """What the guest said so far: how many lines, the last one and its FAULTS, what was wrong."""

    lines: int = 0
    last: str = ""
    faults: int = 0
    wrong: str = ""


def read_life(text: str, word: str) -> Life:
    """Judge what a guest in the mode ``word`` has printed.

    What the firmware said before its first line is passed over; a last line without its end has
    not been said to the end yet.
    """
    said = text.splitlines()[: None if text.endswith("\n") else -1]
    begun = next((n for n, line in enumerate(said) if _LINE.fullmatch(line)), len(said))
    life = Life()
    for number, (line, total) in enumerate(zip(said[begun:], _sums(), strict=False), start=1):
        match = _LINE.fullmatch(line)
        if match is None or match[1] != word:
            return life.replace(wrong=f"said {line[:60]!r}")
        counter, seen, faults, bad, why = (int(match[n], 16) for n in range(2, 7))
        life = Life(lines=number, last=line, faults=faults)
        if counter != _ROUNDS * number:
            return life.replace(wrong=f"counted {counter}, not {_ROUNDS * number}")
        if seen != total:
            return life.replace(wrong=f"summed {seen:08x}, not {total:08x}")
        if bad:
            return life.replace(wrong=f"{bad} times not as it was loaded, last of kind {why}")
    return life


def _sums() -> Iterator[int]:
    """The sum of each line: every round goes twice over the table, and each step is affine."""
    factor, rest = 1, 0
    for entry in range(_ENTRIES):
        factor, rest = _then((factor, rest), (_FACTOR, entry * _STEP))
    line = (1, 0)
    for _ in range(2 * _ROUNDS):
        line = _then(line, (factor, rest))
    total = 1
    while True:
        total = (line[0] * total + line[1]) & 0xFFFFFFFF
        yield total


def _then(first: tuple[int, int], second: tuple[int, int]) -> tuple[int, int]:
    """Of x -> ax + b and x -> cx + d, modulo 2 to the 32: the one after the other."""
    factor, rest = second
    return factor * first[0] & 0xFFFFFFFF, (factor * first[1] + rest) & 0xFFFFFFFF


async def _segments(bench: Bench, name: str) -> list[str]:
    """The segment registers with their hidden parts, as QEMU has them from KVM: most often so."""
    found: collections.Counter[str] = collections.Counter()
    async with Monitor.session(bench.read(name).process.observe) as monitor:
        for _ in range(SAMPLES):
            text = (await monitor.human("info registers")).replace("\r", "")
            found["\n".join(_SEGMENT.findall(text))] += 1
    return found.most_common(1)[0][0].splitlines()


def _kept(segments: list[str]) -> list[str]:
    """Those that the guest never loads again; CS it does at each interrupt."""
    return [line for line in segments if not line.startswith("CS")]


async def crossed(bench: Bench, mode: Mode, journey: Sequence[str]) -> Part:
    """A guest in ``mode`` on the first host of ``journey``, moved along the others."""
    seen: list[str] = []
    evidence: list[str] = []
    home: list[str] = []
    wrong = ""
    boot = modes_guest(cache_folder())
    others = sorted(set(journey[1:]) - {journey[0]})
    async with bench.bare_guest(journey[0], boot, mode.word, level_with=others) as name:
        for hop, host in enumerate(journey):
            if hop:
                moved = await bench.move(name, host, accepted=ACCEPTED, verify_s=WATCH_S)
                if not moved.committed:
                    wrong = f"{moved.outcome} at {_plain(host)}: {moved.why}"
                    break
            life = await _further(bench, name, mode.word)
            segments = await _segments(bench, name)
            limits = bench.hosts.hosts[host].model.emulator == "bochs"
            seen.append(f"{_plain(host)} {life.lines} lines")
            evidence += [f"{_plain(host)}: {life.last}"]
            evidence += [f"  {line}" for line in segments if line not in home]
            home = home or segments
            if life.wrong or life.faults != (mode.forbidden if limits else 0):
                wrong = f"on {_plain(host)}: {life.wrong or f'forbidden: {life.faults:b}'}"
                break
            if hop and host == journey[0] and mode.steady and _kept(segments) != _kept(home):
                wrong = "the hidden parts are not as they were"
    return part(
        f"{mode.about}, {' to '.join(_plain(host) for host in journey)}",
        f"each line in its turn, sums right, beyond limits {mode.forbidden.bit_count()} forbidden",
        wrong or f"{', '.join(seen)}; all right",
        holds=not wrong,
        console="\n".join(evidence),
    )


async def _further(bench: Bench, name: str, word: str) -> Life:
    """Wait until the guest has said so many lines more, or something wrong."""
    before = read_life(bench.consoles(name), word).lines

    def far() -> bool:
        now = read_life(bench.consoles(name), word)
        return bool(now.wrong) or now.lines >= before + LINES

    await bench.until(far, f"a guest in mode {word} goes on", alive=bench.read(name))
    return read_life(bench.consoles(name), word)


def _plain(host: str) -> str:
    return host.removeprefix("kvm:")


async def run(bench: Bench) -> list[Part]:
    """Each mode from AMD to Intel and back."""
    return [await crossed(bench, mode, (mode.home, INTEL, mode.home)) for mode in MODES]


CASE = Case(
    6, "guests in real mode, 16 bits, VM86, 32 and 64 bits", ("epyc", "trinity", "haswell"), run
)
