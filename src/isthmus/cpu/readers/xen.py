"""CPUs as Xen's tools print them.

* ``xen-cpuid -p`` prints policies, each with its CPUID leaves and MSRs: the host's is taken.
* ``xen-cpuid`` prints featuresets, colon-separated words; ``xl info`` prints the first eight as
  ``hw_caps``.  Both name features only, so vendor and numbers stay unknown.

Formats: Xen ``tools/misc/xen-cpuid.c`` and ``tools/xl/xl_info.c``.
"""

import re

from isthmus.cpu.decode import REPEATED, decode
from isthmus.cpu.features import by_cpuid
from isthmus.cpu.model import NO_LEAVES, CpuidLeaf, CpuModel
from isthmus.cpu.registers import FEATURESET
from isthmus.errors import InputError

_MAX_LINES = 100_000
_NO_SUBLEAF = 0xFFFFFFFF

_POLICY = re.compile(r"\s*(\w[\w ]{0,30}?) policy: \d{1,4} leaves, \d{1,4} MSRs")
_LEAF = re.compile(
    r"\s*([0-9a-f]{8}):([0-9a-f]{8}) -> ([0-9a-f]{8}):([0-9a-f]{8}):([0-9a-f]{8}):([0-9a-f]{8})"
)
_MSR = re.compile(r"\s*([0-9a-f]{8}) -> ([0-9a-f]{16})")
_WORDS = re.compile(r"(Host|Raw|hw_caps)\s*:?\s+((?:[0-9a-f]{8}:){4,31}[0-9a-f]{8})\s*")
_PREFERRED = ("Host", "Raw", "HVM Max", "HVM Default")


def is_xen(text: str) -> bool:
    """Whether the text is one of these."""
    head = text[:65536]
    return _first_policy(head) or re.search(rf"^{_WORDS.pattern}$", head, re.MULTILINE) is not None


def _first_policy(text: str) -> bool:
    return any(_POLICY.match(line) for line in text.splitlines()[:2000])


def read_xen(text: str, *, name: str, where: str) -> CpuModel:
    """The CPU of the host that printed the text.

    :raises InputError: a policy without leaf 0, or a text that is none of these.
    """
    lines = text.splitlines()[:_MAX_LINES]
    policies = _policies(lines)
    for wanted in _PREFERRED:
        if wanted in policies:
            leaves, msrs = policies[wanted]
            return decode(leaves, name=name, source=where, msrs=msrs)
    for wanted in ("Host", "hw_caps", "Raw"):
        for line in lines:
            match = _WORDS.fullmatch(line.strip())
            if match and match[1] == wanted:
                return _featureset(match[2], name, where)
    raise InputError(
        f"{where}: no policy of the host in it", remedy="name the output of xen-cpuid -p"
    )


def read_policies(text: str, *, name: str, where: str) -> dict[str, CpuModel]:
    """Every policy of ``xen-cpuid -p``, by its heading: ``PV Default``, ``HVM Max``, ``Domain 3``.

    :raises InputError: a policy without leaf 0.
    """
    found = _policies(text.splitlines()[:_MAX_LINES])
    return {
        heading: decode(leaves, name=name, source=f"{where}, {heading}", msrs=msrs)
        for heading, (leaves, msrs) in found.items()
        if leaves
    }


def _policies(lines: list[str]) -> dict[str, tuple[list[CpuidLeaf], dict[int, int]]]:
    found: dict[str, tuple[list[CpuidLeaf], dict[int, int]]] = {}
    current: tuple[list[CpuidLeaf], dict[int, int]] = ([], {})
    for line in lines:
        if heading := _POLICY.match(line):
            current = found.setdefault(heading[1].strip(), ([], {}))
        elif match := _LEAF.match(line):
            leaf, subleaf, eax, ebx, ecx, edx = (int(word, 16) for word in match.groups())
            subleaf = 0 if subleaf == _NO_SUBLEAF else subleaf
            current[0].append(
                CpuidLeaf(leaf=leaf, subleaf=subleaf, eax=eax, ebx=ebx, ecx=ecx, edx=edx)
            )
        elif match := _MSR.match(line):
            current[1][int(match[1], 16)] = int(match[2], 16)
    return found


def _featureset(words: str, name: str, where: str) -> CpuModel:
    places = by_cpuid()
    features = set()
    for (leaf, subleaf, register), text in zip(FEATURESET, words.split(":"), strict=False):
        value = int(text, 16)
        if (leaf, register) == (0x80000001, "edx"):
            value &= ~REPEATED
        for bit in range(32):
            if value >> bit & 1 and (found := places.get((leaf, subleaf, register, bit))):
                features.add(found)
    vendor = "AuthenticAMD" if "svm" in features else "GenuineIntel" if "vmx" in features else ""
    return CpuModel(
        name=name,
        source=where,
        vendor=vendor,
        family=0,
        model=0,
        stepping=0,
        features=frozenset(features),
        unknown=(
            "vendor (told by SVM or VMX)" if vendor else "vendor", "family, model and stepping",
            "raw CPUID leaves", "XSAVE layout", "address widths", NO_LEAVES,
        ),
    )  # fmt: skip
