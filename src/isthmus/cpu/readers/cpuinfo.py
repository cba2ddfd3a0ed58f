"""Linux's ``/proc/cpuinfo``: what a kernel says of its CPUs, which is less than CPUID.

Flags are the kernel's names of what it *uses* (``arch/x86/kernel/cpu/proc.c``): a feature that it
was told to leave alone is missing, and what it has no name for is never there.  So the model says
in ``unknown`` what this source cannot tell.  Of several CPUs it is what all of them have.
"""

import functools
import re

from isthmus.cpu.features import FEATURES
from isthmus.cpu.model import NO_LEAVES, CpuModel
from isthmus.errors import InputError

MAX_CPUS = 8192

_UNKNOWN = (
    "raw CPUID leaves", "XSAVE layout", "features that the kernel has no name for or turned off",
    NO_LEAVES, "feature MSRs",
)  # fmt: skip
_SIZES = re.compile(r"(\d{1,3}) bits physical, (\d{1,3}) bits virtual")


def is_cpuinfo(text: str) -> bool:
    """Whether the text is an x86 ``/proc/cpuinfo``."""
    head = text[:8192]
    return "vendor_id" in head and re.search(r"^flags\s*:", text[:65536], re.MULTILINE) is not None


def read_cpuinfo(text: str, *, name: str, where: str) -> CpuModel:
    """The CPU of a machine whose ``/proc/cpuinfo`` this is.

    :raises InputError: a field is missing or no number, or there are absurdly many CPUs.
    """
    cpus = [_fields(block) for block in re.split(r"\n\s*\n", text.strip())]
    cpus = [cpu for cpu in cpus if "flags" in cpu]
    if not cpus or len(cpus) > MAX_CPUS:
        raise InputError(
            f"{where}: {len(cpus)} CPUs in it", remedy="name a whole /proc/cpuinfo of an x86"
        )
    first = cpus[0]
    flags = frozenset.intersection(*(frozenset(cpu["flags"].split()) for cpu in cpus))
    widths = _SIZES.search(first.get("address sizes", ""))
    return CpuModel(
        name=name,
        source=where,
        vendor=_vendor(first, where),
        family=_number(first, "cpu family", where),
        model=_number(first, "model", where),
        stepping=_number(first, "stepping", where) if first.get("stepping") != "unknown" else 0,
        brand=first.get("model name", "")[:48].strip(),
        features=frozenset(_names()[flag] for flag in flags if flag in _names()),
        level=_number(first, "cpuid level", where),
        phys_bits=int(widths[1]) if widths else None,
        linear_bits=int(widths[2]) if widths else None,
        microcode=_number(first, "microcode", where) if "microcode" in first else None,
        unknown=_UNKNOWN,
    )


@functools.cache
def _names() -> dict[str, str]:
    return {feature.linux: name for name, feature in FEATURES.items() if feature.linux}


def _fields(block: str) -> dict[str, str]:
    pairs = (line.partition(":") for line in block.splitlines())
    return {key.strip(): value.strip() for key, colon, value in pairs if colon}


def _vendor(fields: dict[str, str], where: str) -> str:
    vendor = fields.get("vendor_id", "")
    if vendor == "Shanghai":  # the blanks around it are lost in the file
        return "  Shanghai  "
    if len(vendor) != 12 or not vendor.isascii():
        raise InputError(f"{where}: vendor_id {vendor[:20]!r}", remedy="name a whole /proc/cpuinfo")
    return vendor


def _number(fields: dict[str, str], key: str, where: str) -> int:
    text = fields.get(key, "")
    try:
        number = int(text, 0) if len(text) <= 20 else -1
    except ValueError:
        number = -1
    if number < 0:
        raise InputError(
            f"{where}: field {key!r} is {text[:20]!r}, no number",
            remedy="name a whole /proc/cpuinfo of an x86",
        )
    return number
