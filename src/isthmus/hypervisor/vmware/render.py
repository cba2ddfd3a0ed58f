"""A level as VMware's CPUID masks, with the nearest EVC mode of each maker.

A mask is a line of a guest's ``.vmx`` file: ``cpuid.LEAF.REGISTER = "…"`` with 32 characters, bit
31 first, in groups of four: ``-`` leaves a bit to ESXi, ``0`` and ``1`` force it; a line ending in
``.amd`` counts on AMD hosts (VMware, "Changing CPU identification mask settings", KB 1993).  EVC
modes are ``data/evc.json``.
"""

import functools
from importlib import resources

from isthmus.baseline.identity import AMD, INTEL
from isthmus.baseline.level import Baseline
from isthmus.cpu.registers import DYNAMIC, feature_registers, word, xcr0
from isthmus.hypervisor.rendering import RenderedFile, Rendering, mixed_makers, told
from isthmus.values import Value, from_json

_LEAVES = frozenset({1, 7, 0x80000001, 0x80000008})


class EvcMode(Value, frozen=True, forbid_unknown_fields=True):
    """A mode: its key in the vSphere API, what it adds to the modes before, and takes from them."""

    key: str
    vendor: str
    adds: tuple[str, ...]
    without: tuple[str, ...] = ()


class _Modes(Value, frozen=True):
    schema: int
    source: str
    modes: tuple[EvcMode, ...]


@functools.cache
def evc_modes() -> dict[str, tuple[EvcMode, frozenset[str]]]:
    """Every mode by its key, lowest first, with all features that it shows of those it is about."""
    data = resources.files("isthmus.hypervisor.vmware").joinpath("data", "evc.json").read_bytes()
    shown: dict[str, frozenset[str]] = {}
    modes = {}
    for mode in from_json(data, _Modes, where="evc.json").modes:
        shown[mode.vendor] = (shown.get(mode.vendor, frozenset()) | set(mode.adds)) - set(
            mode.without
        )
        modes[mode.key] = (mode, shown[mode.vendor])
    return modes


def nearest_evc(level: Baseline, vendor: str) -> tuple[str, frozenset[str]] | None:
    """The highest mode of a maker within the level, and what of the level's kind it gives up."""
    best = None
    about = frozenset[str]().union(*(shown for _, shown in evc_modes().values()))
    for key, (mode, shown) in evc_modes().items():
        if mode.vendor == vendor and shown <= level.model.features:
            best = key, (level.model.features & about) - shown
    return best


def masks(level: Baseline) -> tuple[str, ...]:
    """The lines of the ``.vmx`` file."""
    model = level.model
    lines = []
    for vendor in sorted({INTEL, AMD} & set(level.vendors)) or [model.vendor]:
        suffix = ".amd" if vendor == AMD else ""
        words = {
            f"{leaf:x}.{register}": word(
                model.features, (leaf, subleaf, register), amd=vendor == AMD
            )
            | DYNAMIC.get((leaf, subleaf, register), 0)
            for leaf, subleaf, register in feature_registers()
            if leaf in _LEAVES and not subleaf
        }
        words["d.eax"] = xcr0(model.features)
        lines += [f'cpuid.{place}{suffix} = "{_mask(value)}"' for place, value in words.items()]
    return tuple(lines)


def _mask(value: int) -> str:
    bits = f"{value:032b}".replace("1", "-")
    return ":".join(bits[start : start + 4] for start in range(0, 32, 4))


def render(level: Baseline, name: str) -> Rendering:  # noqa: ARG001 (every renderer takes one)
    """The masks, and the EVC modes with what they would give up besides."""
    notes = ["not yet run on a real ESXi host"]
    commands = []
    for vendor in level.vendors:
        best = nearest_evc(level, vendor)
        if best is None:
            notes.append(f"no EVC mode of {vendor} lies within the level")
            continue
        key, more = best
        cost = f"gives up {told(more)} besides" if more else "gives up nothing besides"
        notes.append(f"nearest EVC mode for {vendor}: {key}, {cost}")
        commands.append(f"Set-Cluster -Cluster CLUSTER -EVCMode {key}   # PowerCLI, {vendor} hosts")
    return Rendering(
        platform="vmware",
        files=(RenderedFile(name="the guest's .vmx file", text="\n".join(masks(level)) + "\n"),),
        commands=tuple(commands),
        notes=tuple(notes),
        refusals=mixed_makers(
            level,
            "vMotion",
            "ESXi checks the maker whatever masks say; move such guests powered off",
        ),
    )
