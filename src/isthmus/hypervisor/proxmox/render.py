"""A level as a custom CPU model of Proxmox VE.

A section of ``/etc/pve/virtual-guest/cpu-models.conf`` (Proxmox VE manual, ``cpu-models.conf(5)``):
``reported-model`` is a model of QEMU and decides the vendor too; ``flags`` is a list of ``+flag``
and ``-flag``, of any flag of QEMU's for administrators; ``phys-bits``.
"""

from isthmus.baseline.level import Baseline
from isthmus.cpu.features import FEATURES
from isthmus.cpu.named import qemu_models
from isthmus.hypervisor.rendering import (
    RenderedFile,
    Rendering,
    identifier,
    identity_note,
    nearest,
    unspoken,
)

# PVE::QemuServer::CPUConfig, $cpu_vendor_list: the models that it takes as reported-model.
_REPORTED = frozenset(
    {
        "486", "pentium", "pentium2", "pentium3", "coreduo", "core2duo", "Conroe", "Penryn",
        "Nehalem", "Nehalem-IBRS", "Westmere", "Westmere-IBRS", "SandyBridge", "SandyBridge-IBRS",
        "IvyBridge", "IvyBridge-IBRS", "Haswell", "Haswell-IBRS", "Haswell-noTSX",
        "Haswell-noTSX-IBRS", "Broadwell", "Broadwell-IBRS", "Broadwell-noTSX",
        "Broadwell-noTSX-IBRS", "Skylake-Client", "Skylake-Client-IBRS",
        "Skylake-Client-noTSX-IBRS", "Skylake-Server", "Skylake-Server-IBRS",
        "Skylake-Server-noTSX-IBRS", "Cascadelake-Server", "Cascadelake-Server-noTSX", "Cooperlake",
        "Icelake-Client", "Icelake-Client-noTSX", "Icelake-Server", "Icelake-Server-noTSX",
        "KnightsMill", "SapphireRapids", "athlon", "phenom", "Opteron_G1", "Opteron_G2",
        "Opteron_G3", "Opteron_G4", "Opteron_G5", "EPYC", "EPYC-IBPB", "EPYC-Rome", "EPYC-Milan",
        "kvm32", "kvm64", "qemu32", "qemu64",
    }
)  # fmt: skip
_OF_ANY_VENDOR = frozenset({"kvm32", "kvm64", "qemu32", "qemu64"})


def render(level: Baseline, name: str) -> Rendering:
    """The section, and the command that gives it to a guest."""
    model = level.model
    bases = {
        base: cpu
        for base, cpu in qemu_models().items()
        if base in _REPORTED and base not in _OF_ANY_VENDOR
    }
    base = nearest(model, bases, same_family=True)
    flags = [f"+{_flag(name)}" for name in sorted(model.features - base.features) if _flag(name)]
    flags += [f"-{_flag(name)}" for name in sorted(base.features - model.features) if _flag(name)]
    section = identifier(name)
    lines = [f"cpu-model: {section}", f"    reported-model {base.name}"]
    if flags:
        lines.append(f"    flags {';'.join(flags)}")
    if model.phys_bits is not None:
        lines.append(f"    phys-bits {model.phys_bits}")
    refusals: tuple[str, ...] = ()
    if base.vendor != model.vendor:
        refusals = (f"Proxmox has no model of vendor {model.vendor} to report",)
    silent = frozenset(n for n in model.features - base.features if not _flag(n))
    return Rendering(
        platform="proxmox",
        files=(
            RenderedFile(
                name="/etc/pve/virtual-guest/cpu-models.conf", text="\n".join(lines) + "\n"
            ),
        ),
        commands=(f"qm set VMID --cpu custom-{section}   # counts from the next start",),
        notes=(
            *identity_note(model, base),
            *unspoken(silent, "Proxmox"),
            "Proxmox gives QEMU the vendor of the reported model, on every host",
        ),
        refusals=refusals,
    )


def _flag(name: str) -> str | None:
    return FEATURES[name].qemu if name in FEATURES else None
