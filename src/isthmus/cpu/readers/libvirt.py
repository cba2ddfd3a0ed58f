"""libvirt's raw CPUID documents: ``<cpudata arch='x86'>`` with ``<cpuid>`` and ``<msr>``.

Format: libvirt ``src/cpu/cpu_x86.c``, x86ParseCPUID and x86FormatCPUData; its tests keep real CPUs
so, and ``virHostCPU`` logs them.  Registers that are zero may be left out, and so may sub-leaf 0.
"""

from lxml import etree

from isthmus.cpu.decode import decode
from isthmus.cpu.model import CpuidLeaf, CpuModel
from isthmus.cpu.readers.xml import parse
from isthmus.errors import InputError

MAX_ENTRIES = 100_000


def is_cpudata(data: bytes) -> bool:
    """Whether the bytes look like such a document."""
    return b"<cpudata" in data[:4096]


def read_cpudata(data: bytes, *, name: str, where: str) -> CpuModel:
    """The CPU of one ``<cpudata>`` document.

    :raises InputError: no well-formed XML, another document, or an attribute that is no number.
    """
    root = parse(data, where=where)
    if root.tag != "cpudata" or root.get("arch") not in {"x86", "x86_64", "i686"}:
        raise InputError(f"{where}: not an x86 cpudata", remedy="name a libvirt cpudata file")
    if len(root) > MAX_ENTRIES:
        raise InputError(f"{where}: more than {MAX_ENTRIES} entries", remedy="name the right file")
    leaves = [
        CpuidLeaf(
            leaf=_number(entry, "eax_in", where),
            subleaf=_number(entry, "ecx_in", where),
            eax=_number(entry, "eax", where),
            ebx=_number(entry, "ebx", where),
            ecx=_number(entry, "ecx", where),
            edx=_number(entry, "edx", where),
        )
        for entry in root.iterchildren("cpuid")
    ]
    msrs = {
        _number(entry, "index", where): _number(entry, "edx", where) << 32
        | _number(entry, "eax", where)
        for entry in root.iterchildren("msr")
    }
    return decode(leaves, name=name, source=where, msrs=msrs)


def _number(entry: etree._Element, attribute: str, where: str) -> int:
    text = entry.get(attribute, "0")
    try:
        number = int(text, 0) if len(text) <= 20 else -1
    except ValueError:
        number = -1
    if not 0 <= number < 1 << 32:
        raise InputError(
            f"{where}: line {entry.sourceline}: {attribute} {text[:20]!r} is no 32-bit number",
            remedy="mend the file",
        )
    return number
