"""What to write for a destination: the kernel's own choice among its own forms, made again.

A site has several forms: the original, and the replacement of each of its entries, of which the
kernel wrote the last whose feature it saw at boot.  On a CPU that lacks that feature the kernel
would have written another of them; that one is written now.  What stands in the guest tells which
form was chosen at home; it is compared, never assumed, and a site that has none of its forms is
left alone.  Nothing is ever upgraded: a feature that the guest did not use stays unused.

**When a site may change under code that is interrupted in it.**  The guest stands still, but a
context that was interrupted earlier (a vCPU, a preempted task, an interrupt in an interrupt, a
program in the vDSO) may go on at any instruction boundary of the *old* form.  Its first byte is
harmless: the new form is executed whole.  For each boundary behind it the rest of the new form has
to do what the rest of the old one would have done (:func:`resumable`):

- the same bytes do;
- if only NOPs were left, the work is done, and only NOPs may follow;
- NOPs behind RDTSCP may also become RDTSC: the counter is read again, later, into the same
  registers.

So RDTSCP; NOP becomes LFENCE; RDTSC at any time.  The way back does not: whoever was interrupted
behind LFENCE would go on at NOP and never read the counter.  There, and wherever
:func:`resumable` says no, the site is written only if no saved context lies in it, which is
looked up in the guest's memory (:mod:`.contexts`).  A site that cannot be written keeps a form
that works on both CPUs, or traps.
"""

from collections.abc import Iterable, Mapping

import iced_x86 as iced

from isthmus.cpu.features import by_cpuid
from isthmus.translate.rewrite.image import Alternative, Elf
from isthmus.translate.rewrite.knowledge import knowledge
from isthmus.values import Value

RDTSC, RDTSCP = bytes.fromhex("0f31"), bytes.fromhex("0f01f9")

# arch/x86/include/asm/nops.h: the NOPs of 1 to 8 bytes.
_NOPS = tuple(
    bytes.fromhex(text)
    for text in ("", "90", "6690", "0f1f00", "0f1f4000", "0f1f440000", "660f1f440000",
                 "0f1f8000000000", "0f1f840000000000")
)  # fmt: skip

# Linux' words that copy a CPUID register (arch/x86/include/asm/cpufeature.h, enum cpuid_leafs);
# the others are of Linux' own making.
_WORDS = {
    0: (0x1, 0, "edx"),
    1: (0x8000_0001, 0, "edx"),
    4: (0x1, 0, "ecx"),
    6: (0x8000_0001, 0, "ecx"),
    9: (0x7, 0, "ebx"),
    10: (0xD, 1, "eax"),
    13: (0x8000_0008, 0, "ebx"),
    16: (0x7, 0, "ecx"),
    18: (0x7, 0, "edx"),
}


class Site(Value, frozen=True):
    """One patch site: linear address in the image, its original bytes, its entries in order."""

    address: int
    original: bytes
    entries: tuple[Alternative, ...]
    vdso: bool = False

    def form(self, index: int) -> bytes:
        """Form 0 is the original, form n the n-th entry's replacement; without padding."""
        if index == 0:
            return self.original
        entry = self.entries[index - 1]
        code = entry.replacement
        # A call or jump that comes first is relative to where it stands
        # (arch/x86/kernel/alternative.c, apply_alternatives).
        if len(code) == 5 and code[0] in {0xE8, 0xE9}:
            target = int.from_bytes(code[1:5], "little", signed=True) + entry.home
            code = code[:1] + (target - self.address & 0xFFFF_FFFF).to_bytes(4, "little")
        return code

    def chosen(self, live: bytes) -> int | None:
        """Which form stands there; None if none of them does."""
        for index in range(len(self.entries), -1, -1):
            if equal(live, self.form(index)):
                return index
        return None


class Host(Value, frozen=True):
    """What decides: the features that the guest is shown there, and the host's maker."""

    features: frozenset[str]
    maker: str


class Change(Value, frozen=True):
    """One site to be written.  ``address`` is linear, in the image; ``why`` a feature's name."""

    address: int
    before: bytes
    after: bytes
    why: str
    vdso: bool = False


def sites(alternatives: Iterable[Alternative], elf: Elf, *, base: int = 0) -> tuple[Site, ...]:
    """The sites that the table of rewrites concerns; entries on one address are one site.

    :param base: where ``elf`` lies in the kernel, if it is a vDSO.
    """
    table = knowledge()
    wanted = {one.feature for one in table.features} | {one.feature for one in table.makers}
    groups: dict[int, list[Alternative]] = {}
    text = elf.section(".text")
    for entry in alternatives:
        # Other code (.init.text) has been thrown away, and its memory is somebody else's.
        if text is not None and text.address <= entry.address < text.address + text.size:
            groups.setdefault(entry.address, []).append(entry)
    return tuple(
        Site(
            address=base + address,
            original=elf.read(address, entries[0].length),
            entries=tuple(entries),
            vdso=base > 0,
        )
        for address, entries in groups.items()
        if any(entry.feature in wanted for entry in entries)
        and len({entry.length for entry in entries}) == 1
        and elf.read(address, entries[0].length)
    )


def plan(found: Iterable[Site], live: Mapping[int, bytes], home: Host, host: Host) -> list[Change]:
    """The changes that make the guest's sites those of ``host``.

    :param live: what stands at each site's address, as it was at home.
    :param home: where the guest was born; its maker decides nothing, what stands there does.
    """
    changes = []
    for site in found:
        before = live.get(site.address, b"")
        standing = site.chosen(before) if len(before) == len(site.original) else None
        if standing is None:
            continue
        wanted, why = _choice(site, standing, home, host)
        if wanted == standing or not why:
            continue
        after = padded(site.form(wanted), len(before))
        changes.append(
            Change(address=site.address, before=before, after=after, why=why, vdso=site.vdso)
        )
    return changes


def _choice(site: Site, standing: int, home: Host, host: Host) -> tuple[int, str]:
    """The form for ``host``, and the feature that decides; no name if nothing is to be done."""
    names = {one.feature: one.name for one in knowledge().features}
    makers = {one.feature: one for one in knowledge().makers}
    for index, entry in enumerate(site.entries, 1):
        rule = makers.get(entry.feature)
        if rule is not None and len(site.entries) == 1:
            return (index if host.maker in rule.makers else 0), rule.name
    if standing == 0:
        return 0, ""
    lost = site.entries[standing - 1]
    name = names.get(lost.feature, "")
    if not name or lost.negated or name in host.features or name not in home.features:
        return standing, ""
    for index in range(standing - 1, 0, -1):
        there = _there(site.entries[index - 1], host)
        if there is None:
            return standing, ""  # nobody knows what the kernel would have chosen
        if there:
            return index, name
    return 0, name


def _there(entry: Alternative, host: Host) -> bool | None:
    """Whether the kernel would see the entry's condition fulfilled on ``host``."""
    for implied in knowledge().implied:
        if implied.feature == entry.feature:
            return (implied.by in host.features) != entry.negated
    word, bit = divmod(entry.feature, 32)
    if word not in _WORDS:
        return None
    leaf, subleaf, register = _WORDS[word]
    name = next(
        (
            name
            for (a, b, c, d), name in by_cpuid().items()
            if (a, b, c, d) == (leaf, subleaf, register, bit)
        ),
        None,
    )
    return None if name is None else (name in host.features) != entry.negated


def padded(code: bytes, length: int) -> bytes:
    """The code with NOPs behind it instead of the kernel's single ones."""
    code = code[: length - nops_at_end(code)]
    rest = length - len(code)
    while rest > 0:
        code += _NOPS[min(rest, 8)]
        rest -= min(rest, 8)
    return code


def nops_at_end(code: bytes) -> int:
    """How many bytes of single NOPs stand at the end."""
    return len(code) - len(code.rstrip(b"\x90"))


def equal(live: bytes, form: bytes) -> bool:
    """Whether the live bytes are this form, whatever NOPs it was padded with."""
    core = form[: len(form) - nops_at_end(form)]
    return live.startswith(core) and only_nops(live[len(core) :])


def boundaries(code: bytes) -> list[int]:
    """Where instructions begin, without the first byte's."""
    found = []
    for instruction in iced.Decoder(64, code, ip=0):
        if instruction.code == iced.Code.INVALID:
            break
        found.append(instruction.ip)
    return found[1:]


def only_nops(code: bytes) -> bool:
    """Whether the code does nothing."""
    decoded = list(iced.Decoder(64, code, ip=0))
    return all(one.mnemonic == iced.Mnemonic.NOP for one in decoded)


def resumable(before: bytes, after: bytes) -> bool:
    """Whether a context may stand at any boundary of ``before`` and go on in ``after``."""
    for at in boundaries(before):
        old, new = before[at:], after[at:]
        if old == new:
            continue
        if only_nops(old) and only_nops(new):
            continue
        if only_nops(old) and before[:at] == RDTSCP and new == RDTSC:
            continue
        return False
    return True


def inside(change: Change, address: int, slide: int) -> bool:
    """Whether a context at ``address`` stands within the site, not at its beginning.

    A vDSO lies in each program at another page, so only the place in the page can be compared.
    """
    offset = address - (change.address + slide)
    if change.vdso:
        offset &= 0xFFF
    return 0 < offset < len(change.before)
