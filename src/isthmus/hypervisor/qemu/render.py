"""Write a CPU model as QEMU's ``-cpu`` argument, with nothing left to defaults.

Vendor, family, model, stepping and the highest leaves are stated, and every feature in which the
model differs from the named base's full definition.  The vendor matters: under KVM, QEMU silently
shows the host's unless ``vendor=`` is given (QEMU: target/i386/cpu.c, x86_cpu_load_model).  The base
is the named model that leaves the shortest list.
"""

from collections.abc import Mapping

from isthmus.cpu.model import CpuModel

# Bits that QEMU sets itself from the guest's CR4 or the topology, and "hypervisor", which it sets
# unless told otherwise: no -cpu property changes the first ones.
_AUTOMATIC = frozenset({"osxsave", "ospke", "ht", "cmp-legacy", "arat", "hypervisor"})


def cpu_argument(model: CpuModel, named: Mapping[str, CpuModel], *, enforce: bool = True) -> str:
    """The ``-cpu`` argument for ``model``.

    :param named: QEMU's named models as it defines them, before the accelerator takes away.
    :param enforce: let QEMU refuse to start where it cannot give every bit.
    """
    base = min(named.values(), key=lambda base: (_distance(model, base), base.name))
    parts = [
        base.name,
        f"vendor={model.vendor}",
        f"family={model.family}",
        f"model={model.model}",
        f"stepping={model.stepping}",
        f"level={model.level}",
        f"xlevel={model.xlevel}",
    ]
    if model.brand and "," not in model.brand:
        parts.append(f"model-id={model.brand}")
    parts += [f"{name}=on" for name in sorted(model.features - base.features - _AUTOMATIC)]
    parts += [f"{name}=off" for name in sorted(base.features - model.features - _AUTOMATIC)]
    if enforce:
        parts.append("enforce")
    return ",".join(parts)


def _distance(model: CpuModel, base: CpuModel) -> tuple[int, int]:
    """How many features must be stated, then whether the base is of the other maker."""
    return len((model.features ^ base.features) - _AUTOMATIC), base.vendor != model.vendor
