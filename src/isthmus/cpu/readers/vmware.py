"""CPUs as vCenter tells them, saved as JSON.

A ``HostSystem``'s ``config.featureCapability`` lists keys such as ``cpuid.AVX`` with a value, with
``cpuid.FAMILY``, ``cpuid.MODEL`` and ``cpuid.STEPPING`` as numbers; ``hardware.cpuFeature`` lists
raw registers of some leaves as 32 characters in groups (vSphere Web Services API,
HostFeatureCapability and HostCpuIdInfo).  Either list, or any document that holds them, is read.
"""

from collections.abc import Iterator
from functools import cache
from typing import Any

from isthmus.cpu.decode import decode
from isthmus.cpu.features import FEATURES
from isthmus.cpu.model import NO_LEAVES, CpuidLeaf, CpuModel
from isthmus.errors import InputError

_MAX_NODES = 200_000
_REGISTERS = ("eax", "ebx", "ecx", "edx")
_VENDORS = {"intel": "GenuineIntel", "amd": "AuthenticAMD", "hygon": "HygonGenuine"}
_UNKNOWN = ("raw CPUID leaves", "XSAVE layout", "address widths", NO_LEAVES)


def is_vmware(document: Any) -> bool:
    """Whether a JSON document holds one of the lists."""
    return any(True for _ in _capabilities(document)) or any(True for _ in _leaves(document))


def read_vmware(document: Any, *, name: str, where: str) -> CpuModel:
    """The CPU of a host's document.

    :raises InputError: nothing in it names a vendor, or a value is no number.
    """
    capabilities: dict[str, Any] = {}
    for entry in _capabilities(document):
        capabilities.setdefault(entry["key"].removeprefix("cpuid."), entry.get("value"))
    leaves = [_leaf(entry, where) for entry in _leaves(document)]
    raw = None
    if any(leaf.leaf == 0 for leaf in leaves):
        raw = decode(leaves, name=name, source=where)
        if not capabilities:
            return raw.replace(unknown=(*raw.unknown, "leaves beyond 0, 1 and 0x80000000 to 8"))
    features = {feature for key, feature in _names().items() if _number(capabilities, key, where)}
    vendor = raw.vendor if raw else _vendor(capabilities)
    if not vendor:
        raise InputError(
            f"{where}: no vendor in it",
            remedy="save the whole HostSystem, with hardware.cpuFeature",
        )
    return CpuModel(
        name=name,
        source=where,
        vendor=vendor,
        family=raw.family if raw else _number(capabilities, "FAMILY", where),
        model=raw.model if raw else _number(capabilities, "MODEL", where),
        stepping=raw.stepping if raw else _number(capabilities, "STEPPING", where),
        features=frozenset(features | (raw.features if raw else frozenset())),
        phys_bits=raw.phys_bits if raw else None,
        unknown=_UNKNOWN,
    )


@cache
def _names() -> dict[str, str]:
    return {feature.vmware: name for name, feature in FEATURES.items() if feature.vmware}


def _walk(document: Any) -> Iterator[dict[str, Any]]:
    """Every object of a document, without recursion."""
    waiting = [document]
    for _ in range(_MAX_NODES):
        if not waiting:
            return
        node = waiting.pop()
        if isinstance(node, dict):
            yield node
            waiting.extend(reversed(node.values()))
        elif isinstance(node, list):
            waiting.extend(reversed(node))


def _capabilities(document: Any) -> Iterator[dict[str, Any]]:
    for node in _walk(document):
        key = node.get("key")
        if isinstance(key, str) and key.startswith("cpuid.") and "value" in node:
            yield node


def _leaves(document: Any) -> Iterator[dict[str, Any]]:
    for node in _walk(document):
        if isinstance(node.get("level"), int) and all(
            isinstance(node.get(register), str) for register in _REGISTERS
        ):
            yield node


def _leaf(entry: dict[str, Any], where: str) -> CpuidLeaf:
    leaf = entry["level"]
    if not -(1 << 31) <= leaf < 1 << 32:  # a signed int in the API
        raise InputError(f"{where}: level {leaf} is no CPUID leaf", remedy="mend the file")
    words = {register: _word(entry[register], where) for register in _REGISTERS}
    return CpuidLeaf(leaf=leaf & 0xFFFFFFFF, subleaf=0, **words)


def _word(text: str, where: str) -> int:
    bits = text[:64].replace(":", "")
    if len(bits) != 32 or set(bits) - {"0", "1"}:
        raise InputError(
            f"{where}: register {text[:48]!r} has not 32 bits of 0 and 1",
            remedy="name a host's cpuFeature, not a mask",
        )
    return int(bits, 2)


def _number(capabilities: dict[str, Any], key: str, where: str) -> int:
    value = capabilities.get(key, 0)
    if isinstance(value, bool):
        return int(value)
    if isinstance(value, str) and value.isascii() and value.isdecimal() and len(value) <= 10:
        return int(value)
    if isinstance(value, int) and 0 <= value < 1 << 32:
        return value
    raise InputError(f"{where}: cpuid.{key} is {str(value)[:40]!r}, no number", remedy="mend it")


def _vendor(capabilities: dict[str, Any]) -> str:
    lowered = {key.lower(): value for key, value in capabilities.items()}
    for key, vendor in _VENDORS.items():
        if str(lowered.get(key, "0")) not in {"0", "False"}:
            return vendor
    return ""
