"""Raw CPUID dumps as text: one line for each answer of the instruction.

Three formats, told apart line by line, since tools mix them:

* ``cpuid -r`` (Todd Allen's cpuid): ``0x00000007 0x00: eax=0x… ebx=0x… ecx=0x… edx=0x…`` under
  ``CPU 0:`` or ``CPU:``;
* InstLatx64 and AIDA64: ``CPUID 00000007: EAX-EBX-ECX-EDX [SL 00]`` under
  ``------[ Logical CPU #0 ]------`` and other headings with a CPU's number;
* libcpuid (``cpuid_serialize_raw_data`` in libcpuid/cpuid_main.c): ``basic_cpuid[7]=EAX EBX ECX
  EDX``, with ``ext_cpuid`` counting from 0x80000000 and ``intel_fn4`` … counting sub-leaves.
  Several sub-leaves of leaf 7 are not in it.

Lines that are none of these are passed over: dumps carry comments, and libcpuid's tests carry
their expected answers.
"""

import re
from collections.abc import Iterator

from isthmus.cpu.model import CpuidLeaf
from isthmus.errors import InputError
from isthmus.values import Value

MAX_LINES = 2_000_000
MAX_CPUS = 8192

_HEX8 = r"([0-9A-Fa-f]{8})"
_INSTLAT = re.compile(
    rf"(?:CPUID\s+)?{_HEX8}(?::\s*|\s+){_HEX8}-{_HEX8}-{_HEX8}-{_HEX8}(?:\s+\[SL\s+([0-9A-Fa-f]{{1,8}})\])?"
)
_CPUID_R = re.compile(
    r"0x([0-9A-F]{1,8})(?:[ /.]0x([0-9A-F]{1,8}))?: ?eax=0x([0-9A-F]{1,8}),? "
    r"ebx=0x([0-9A-F]{1,8}),? ecx=0x([0-9A-F]{1,8}),? edx=0x([0-9A-F]{1,8})",
    re.IGNORECASE,
)
_LIBCPUID = re.compile(
    r"(basic_cpuid|ext_cpuid|intel_fn\w{1,4}|amd_fn\w{1,9})\[(\d{1,3})\]="
    r"([0-9A-Fa-f]{1,8}) ([0-9A-Fa-f]{1,8}) ([0-9A-Fa-f]{1,8}) ([0-9A-Fa-f]{1,8})"
)
_HEADING = re.compile(r"[-_\s]*\[?[^#:]{0,40}\bCPU ?(?:#? ?(\d{1,5}))?\b[^=]*\Z")
_HEADING_STARTS = ("---", "___", "CPU")
_TABLES = {  # name: (leaf of entry 0, entries count sub-leaves)
    "basic_cpuid": (0, False),
    "ext_cpuid": (0x80000000, False),
    "intel_fn4": (4, True),
    "intel_fn11": (0xB, True),
    "intel_fn12h": (0x12, True),
    "intel_fn14h": (0x14, True),
    "amd_fn8000001dh": (0x8000001D, True),
}


class RawCpu(Value, frozen=True):
    """The answers of one logical CPU; ``number`` as the dump counts, or from 0."""

    number: int
    leaves: tuple[CpuidLeaf, ...]


def is_raw(text: str) -> bool:
    """Whether the text has lines of one of the three formats near its start."""
    return any(_line(line.strip()) for line in text[:65536].splitlines()[:500])


def read_raw(text: str, *, where: str) -> tuple[RawCpu, ...]:
    """The logical CPUs of a dump, in its order; headings without answers count for nothing.

    :raises InputError: no line is an answer of CPUID, or there are absurdly many.
    """
    cpus: list[RawCpu] = []
    seen: dict[tuple[int, int], CpuidLeaf] = {}
    number = 0

    def finish() -> None:
        if seen:
            cpus.append(RawCpu(number=number, leaves=tuple(seen.values())))
            seen.clear()
        if len(cpus) > MAX_CPUS:
            raise InputError(f"{where}: more than {MAX_CPUS} CPUs", remedy="name a CPUID dump")

    for line in _lines(text, where):
        if answer := _line(line):
            if (answer.leaf, answer.subleaf) == (0, 0) and (0, 0) in seen:
                finish()  # the next CPU of a dump without headings
                number += 1
            seen.setdefault((answer.leaf, answer.subleaf), answer)
        elif (heading := _HEADING.match(line)) and line[:3] in _HEADING_STARTS:
            finish()
            number = int(heading[1] or len(cpus))
    finish()
    if not cpus:
        raise InputError(f"{where}: no CPUID leaf in it", remedy="name a CPUID dump")
    return tuple(cpus)


def _lines(text: str, where: str) -> Iterator[str]:
    for count, line in enumerate(text.splitlines()):
        if count >= MAX_LINES:
            raise InputError(f"{where}: more than {MAX_LINES} lines", remedy="name a CPUID dump")
        yield line[:200].strip()


def _line(line: str) -> CpuidLeaf | None:
    if match := _INSTLAT.match(line):
        leaf, *words, subleaf = match.groups()
        return _leaf(leaf, subleaf or "0", words)
    if match := _CPUID_R.match(line):
        leaf, subleaf, *words = match.groups()
        return _leaf(leaf, subleaf or "0", words)  # its first versions named no sub-leaf
    if (match := _LIBCPUID.match(line)) and match[1] in _TABLES:
        start, subleaves = _TABLES[match[1]]
        index = int(match[2])
        place = (start, index) if subleaves else (start + index, 0)
        return _leaf(f"{place[0]:x}", f"{place[1]:x}", list(match.groups()[2:]))
    return None


def _leaf(leaf: str, subleaf: str, words: list[str]) -> CpuidLeaf:
    eax, ebx, ecx, edx = (int(word, 16) for word in words)
    return CpuidLeaf(
        leaf=int(leaf, 16), subleaf=int(subleaf, 16), eax=eax, ebx=ebx, ecx=ecx, edx=edx
    )
