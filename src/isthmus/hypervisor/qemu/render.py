"""A CPU model as QEMU's ``-cpu`` argument: a named model and everything in which ours differs.

Both sides of a move must show the guest the same CPU, so nothing is left to what QEMU fills in:
vendor, numbers, brand, maximum leaves and every differing feature are written down.  What a base
model has and ours lacks is written as ``-feature``, counted from the model's full definition: a
feature that this accelerator cannot give would otherwise make ``enforce`` refuse the start.

The base also supplies what no property can set (cache and topology leaves: QEMU
``target/i386/cpu.c``, X86CPUDefinition.cache_info).  So a base of the same vendor comes first, the
shortest remainder second, and a versioned name third: ``EPYC`` alone means another model with
another machine type, ``EPYC-v1`` never does (QEMU docs, "CPU model versions").
"""

from collections.abc import Mapping

from isthmus.cpu.features import FEATURES
from isthmus.cpu.model import CpuModel
from isthmus.errors import InputError
from isthmus.hypervisor.rendering import nearest

# Models that mean what the machine or the accelerator offers, not one CPU.
_FLEETING = frozenset({"max", "host", "base"})

_BRAND_BYTES = 48  # CPUID 0x80000002-4 (Intel SDM vol. 2A, CPUID)


def cpu_argument(model: CpuModel, named: Mapping[str, CpuModel], *, enforce: bool = True) -> str:
    """The ``-cpu`` argument that shows exactly ``model``.

    :param named: QEMU's models as it defines them, before the accelerator takes anything away.
    :param enforce: have QEMU refuse to start rather than show less.
    :raises InputError: no base to start from, or a feature that QEMU cannot be told.
    """
    unsayable = sorted(
        name for name in model.features if name not in FEATURES or FEATURES[name].qemu is None
    )
    if unsayable:
        raise InputError(
            f"{model.name}: QEMU has no property for {', '.join(unsayable)}",
            remedy="drop these features from the model",
        )
    base = nearest(model, {n: cpu for n, cpu in named.items() if n not in _FLEETING})
    words = [
        base.name,
        f"vendor={_vendor(model)}",
        f"family={model.family}",
        f"model={model.model}",
        f"stepping={model.stepping}",
    ]
    if brand := _brand(model.brand):
        words.append(f"model-id={brand}")
    for name, highest in (("level", model.highest("level")), ("xlevel", model.highest("xlevel"))):
        if highest is not None:
            words.append(f"{name}={highest:#x}")
    if model.phys_bits is not None:
        words.append(f"phys-bits={model.phys_bits}")
    words += [f"+{name}" for name in sorted(model.features - base.features)]
    words += [f"-{name}" for name in sorted(base.features - model.features)]
    if enforce:
        words.append("enforce")
    return ",".join(words)


def _vendor(model: CpuModel) -> str:
    if len(model.vendor) != 12 or not model.vendor.isascii() or "," in model.vendor:
        raise InputError(
            f"{model.name}: {model.vendor!r} is no CPUID vendor",
            remedy="a vendor is 12 ASCII characters, such as AuthenticAMD",
        )
    return model.vendor


def _brand(brand: str) -> str:
    """The brand as ``model-id`` takes it: QEMU splits the argument at every comma."""
    plain = "".join(c if c.isascii() and c.isprintable() else " " for c in brand.replace(",", " "))
    return plain.strip()[: _BRAND_BYTES - 1]
