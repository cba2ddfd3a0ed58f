"""QEMU's ``query-cpu-model-expansion`` (type full): a model's every property, as JSON.

A saved answer may stand alone, as ``{"return": {"model": …}}`` of QMP, or be the first of several
documents in a file, as in libvirt's tests of CPUs.  It is what QEMU would show a guest under the
accelerator that it was asked under; sub-leaves, XSAVE layout and TSC are not in it.
"""

import json
from typing import Any

import msgspec

from isthmus.cpu.model import CpuModel
from isthmus.errors import InputError

# Properties of the CPU object that are booleans but not features of a CPU: how QEMU behaves,
# its aliases, and what it fills by itself.  QEMU: target/i386/cpu.c, x86_cpu_properties.
_SWITCHES = frozenset(
    {
        "check", "enforce", "cpuid-0xb", "fill-mtrr-mask", "full-cpuid-auto-level",
        "host-cache-info", "host-phys-bits", "hotplugged", "hotpluggable", "kvm",
        "kvm-no-smi-migration",
        "kvm-pv-enforce-cpuid", "l3-cache", "legacy-cache", "lmce", "migratable", "pmu", "realized",
        "start-powered-off", "tcg-cpuid", "vmware-cpuid-freq", "xen-vapic",
    }
)  # fmt: skip
_SWITCH_PREFIXES = ("x-", "hv-")

# QEMU's other spellings of one bit.  QEMU: target/i386/cpu.c, x86_cpu_initfn,
# object_property_add_alias.
_ALIASES = {
    "ffxsr": "fxsr-opt", "i64": "lm", "kvm-steal-tm": "kvm-steal-time", "pclmuldq": "pclmulqdq",
    "sse3": "pni", "sse4-1": "sse4.1", "sse4-2": "sse4.2", "xd": "nx",
}  # fmt: skip


def canonical(name: str) -> str:
    """QEMU's spelling of a feature with '-' and aliases resolved."""
    dashed = name.replace("_", "-")
    return _ALIASES.get(dashed, dashed)


class _Properties(msgspec.Struct):
    vendor: str
    family: int
    model: int
    stepping: int
    level: int
    xlevel: int
    model_id: str = msgspec.field(name="model-id", default="")
    phys_bits: int = msgspec.field(name="phys-bits", default=0)


def model_from_properties(name: str, props: dict[str, object], *, source: str) -> CpuModel:
    """A CPU model from the properties that ``query-cpu-model-expansion`` (type full) returns.

    :raises InputError: a property is missing or of the wrong type.
    """
    try:
        facts = msgspec.convert(props, _Properties)
    except msgspec.ValidationError as error:
        raise InputError(
            f"{source}: {name}: not a full CPU model expansion: {error}",
            remedy="save the whole answer of query-cpu-model-expansion, type full",
        ) from error
    features = frozenset(
        canonical(key)
        for key, value in props.items()
        if value is True and key not in _SWITCHES and not key.startswith(_SWITCH_PREFIXES)
    )
    return CpuModel(
        name=name,
        source=source,
        vendor=facts.vendor,
        family=facts.family,
        model=facts.model,
        stepping=facts.stepping,
        brand=facts.model_id,
        level=facts.level,
        xlevel=facts.xlevel,
        phys_bits=facts.phys_bits or None,
        features=features,
        unknown=("raw CPUID leaves", "XSAVE layout"),
    )


def first_document(text: str) -> Any:
    """The first JSON document of a text that may hold several.

    :raises ValueError: it does not begin with one.
    """
    document, _ = json.JSONDecoder().raw_decode(text.lstrip("\ufeff \t\r\n"))
    return document


def expansion(document: Any) -> dict[str, Any] | None:
    """The properties in a document that is an answer of QEMU's; None if it is none."""
    for key in ("return", "model"):
        if isinstance(document, dict) and key in document:
            document = document[key]
    props = document.get("props") if isinstance(document, dict) else None
    return props if isinstance(props, dict) else None
