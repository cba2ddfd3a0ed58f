"""The CPU model: what a processor, real or shown to a guest, can do.

A model ties its features to its vendor, because CPUID's extended leaves mean nothing without it.
Feature names are canonical names of :mod:`isthmus.cpu.features` (the spelling of QEMU).
"""

from typing import Annotated, Literal

import msgspec

from isthmus.values import Value

SCHEMA_VERSION = 1

NO_LEAVES = "highest CPUID leaves"
"""In ``unknown``: a ``level`` or ``xlevel`` of 0 means that the source cannot tell."""


Word = Annotated[int, msgspec.Meta(ge=0, le=0xFFFFFFFF)]
"""A register of 32 bits."""


class CpuidLeaf(Value, frozen=True, order=True):
    """One answer of the CPUID instruction (Intel SDM vol. 2A, CPUID; AMD APM vol. 3, CPUID)."""

    leaf: Word
    subleaf: Word
    eax: Word
    ebx: Word
    ecx: Word
    edx: Word


class XsaveComponent(Value, frozen=True, order=True):
    """One XSAVE state component: where it lies in the standard format, in bytes.

    Source: CPUID leaf 0xD sub-leaf n, EAX = size, EBX = offset (Intel SDM vol. 1, 13.2).
    """

    number: int
    size: int
    offset: int


class CpuModel(Value, frozen=True):
    """What one processor can do.

    ``features`` holds canonical names.  ``level`` and ``xlevel`` are the highest basic and extended
    CPUID leaves.  ``phys_bits`` and ``linear_bits`` are address widths, None where the source
    cannot tell.  ``leaves`` and ``xsave`` are empty where the source has no raw CPUID.
    ``unknown`` says in words what the source could not tell.
    """

    name: str
    source: str
    vendor: str
    family: int
    model: int
    stepping: int
    brand: str = ""
    features: frozenset[str] = frozenset()
    level: int = 0
    xlevel: int = 0
    phys_bits: int | None = None
    linear_bits: int | None = None
    tsc_khz: int | None = None
    microcode: int | None = None
    xcr0: int | None = None
    xsave: tuple[XsaveComponent, ...] = ()
    leaves: tuple[CpuidLeaf, ...] = ()
    msrs: dict[int, int] = msgspec.field(default_factory=dict)
    unknown: tuple[str, ...] = ()
    schema: int = SCHEMA_VERSION

    def highest(self, leaves: Literal["level", "xlevel"]) -> int | None:
        """The highest basic or extended leaf; None where the source cannot tell."""
        value = self.level if leaves == "level" else self.xlevel
        return None if not value and NO_LEAVES in self.unknown else value
