"""A level as a custom CPU template of Firecracker.

Format: Firecracker ``docs/cpu_templates/cpu-templates.md``: ``cpuid_modifiers`` with ``leaf``,
``subleaf``, ``flags`` (1 where the sub-leaf counts) and a ``bitmap`` for each register, ``0b`` and
32 characters, where ``x`` leaves a bit to the host; ``msr_modifiers`` alike with 64.  What the
level lacks is 0; what it has is left to the host, which has it.
"""

import json
from typing import Any

from isthmus.baseline.identity import AMD
from isthmus.baseline.level import Baseline
from isthmus.cpu.features import FEATURES
from isthmus.cpu.registers import DYNAMIC, feature_registers, word, xcr0
from isthmus.hypervisor.rendering import RenderedFile, Rendering, identifier, mixed_makers

_SIGNIFICANT = frozenset({7, 0xD})
"""Leaves whose sub-leaf counts (Linux Documentation/virt/kvm/api.rst, KVM_SET_CPUID2)."""
_ARCH_CAPABILITIES = 0x10A


def template(level: Baseline) -> dict[str, Any]:
    """The template's document."""
    model = level.model
    leaves: dict[tuple[int, int], list[dict[str, str]]] = {}
    for place in feature_registers():
        leaf, subleaf, register = place
        highest = model.highest("xlevel" if leaf >= 0x80000000 else "level")
        if highest is not None and leaf > highest:
            continue
        value = word(model.features, place, amd=model.vendor == AMD) | DYNAMIC.get(place, 0)
        bitmap = "0b" + f"{value:032b}".replace("1", "x")
        leaves.setdefault((leaf, subleaf), []).append({"register": register, "bitmap": bitmap})
    if "xsave" in model.features:
        states = f"{xcr0(model.features):032b}".replace("1", "x")
        leaves.setdefault((0xD, 0), []).append({"register": "eax", "bitmap": f"0b{states}"})
    if model.phys_bits is not None:
        widths = f"0b{'x' * 24}{model.phys_bits:08b}"
        leaves.setdefault((0x80000008, 0), []).append({"register": "eax", "bitmap": widths})
    return {
        "cpuid_modifiers": [
            {
                "leaf": f"{leaf:#x}",
                "subleaf": f"{subleaf:#x}",
                "flags": int(leaf in _SIGNIFICANT),
                "modifiers": sorted(modifiers, key=lambda modifier: modifier["register"]),
            }
            for (leaf, subleaf), modifiers in sorted(leaves.items())
        ],
        "msr_modifiers": _msrs(level),
    }


def _msrs(level: Baseline) -> list[dict[str, str]]:
    if "arch-capabilities" not in level.model.features:
        return []
    value = 0
    for name in level.model.features:
        feature = FEATURES.get(name)
        if feature and feature.msr == _ARCH_CAPABILITIES and feature.bit is not None:
            value |= 1 << feature.bit
    return [{"addr": f"{_ARCH_CAPABILITIES:#x}", "bitmap": f"0b{value:064b}"}]


def render(level: Baseline, name: str) -> Rendering:
    """The template, and how to give it to a microVM."""
    file = f"{identifier(name)}.json"
    return Rendering(
        platform="firecracker",
        files=(RenderedFile(name=file, text=json.dumps(template(level), indent=2) + "\n"),),
        commands=(
            f"cpu-template-helper template verify --template {file}",
            f"curl --unix-socket SOCKET -X PUT http://localhost/cpu-config -d @{file}",
        ),
        notes=("not yet run on a real Firecracker",),
        refusals=mixed_makers(
            level,
            "Firecracker",
            "a snapshot loads on CPUs of one maker only, and each host shows its own vendor",
        ),
    )
