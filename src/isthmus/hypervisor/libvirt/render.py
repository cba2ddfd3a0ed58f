"""A level as libvirt's ``<cpu>`` element.

Every feature in which the level differs from what libvirt or QEMU understand by the base model is
stated, so nothing depends on a host.  ``vendor_id`` shows the level's vendor on every host (the
element ``<vendor>`` would demand it of the host).  ``check='full'`` has libvirt refuse a start that
would show anything else.  Source: libvirt ``docs/formatdomain.rst``, CPU model and topology, and
``<features>``.
"""

from lxml import etree

from isthmus.baseline.level import Baseline
from isthmus.cpu.features import FEATURES
from isthmus.cpu.model import CpuModel
from isthmus.cpu.named import libvirt_models, qemu_models
from isthmus.hypervisor.rendering import (
    RenderedFile,
    Rendering,
    identity_note,
    nearest,
    told,
    unspoken,
)

_OWN = frozenset({"hypervisor"})
"""Bits that QEMU sets by itself for every guest.

They are no part of a level, but ``check='full'`` refuses to start a guest that shows what its
element does not name (libvirt 9.0: ``guest CPU doesn't match specification: extra features:
hypervisor``), so they are required by name.
"""

MAXPHYSADDR_SINCE = "8.7.0"


class Choice:
    """A base model of libvirt's, and what must be required and disabled to reach a level from it.

    ``required`` and ``disabled`` are libvirt's names, ``lacking`` what is required in ours.
    ``unshown`` are the level's features that
    libvirt cannot name, ``unhidden`` those of the base that it cannot take away.
    """

    def __init__(self, model: CpuModel) -> None:
        self.base = nearest(model, _bases(), same_family=True)
        known = libvirt_models()[self.base.name].features
        real = qemu_models()[self.base.name].features
        wanted = model.features - _OWN
        # Required unless both agree that the base has it; disabled if either thinks it has.
        lacking = wanted - (known & real)
        surplus = (known | real) - wanted - _OWN
        self.lacking = frozenset(name for name in lacking if _name(name))
        self.required = _named(lacking)
        self.disabled = _named(surplus)
        self.unshown = frozenset(name for name in lacking if not _name(name))
        self.unhidden = frozenset(name for name in surplus if not _name(name) and _visible(name))


def _bases() -> dict[str, CpuModel]:
    """The models that both know, as QEMU defines them."""
    return {name: model for name, model in qemu_models().items() if name in libvirt_models()}


def _name(feature: str) -> str | None:
    return FEATURES[feature].libvirt if feature in FEATURES else None


def _named(features: frozenset[str]) -> tuple[str, ...]:
    return tuple(sorted(name for feature in features if (name := _name(feature))))


def _visible(name: str) -> bool:
    """Whether leaving the feature on shows it: MSR and VMX bits need a parent that goes."""
    feature = FEATURES.get(name)
    return feature is not None and feature.leaf is not None and feature.leaf < 0x40000000


def cpu_element(level: Baseline, choice: Choice) -> str:
    """The ``<cpu>`` element."""
    model = level.model
    cpu = etree.Element("cpu", mode="custom", match="exact", check="full")
    name = etree.SubElement(cpu, "model", fallback="forbid", vendor_id=model.vendor)
    name.text = choice.base.name
    if model.phys_bits is not None:
        etree.SubElement(cpu, "maxphysaddr", mode="emulate", bits=str(model.phys_bits))
    policies = dict.fromkeys(choice.required, "require")
    policies |= dict.fromkeys(choice.disabled, "disable") | dict.fromkeys(_OWN, "require")
    for feature, policy in sorted(policies.items()):
        etree.SubElement(cpu, "feature", policy=policy, name=feature)
    return etree.tostring(cpu, pretty_print=True, encoding="unicode")


def features_element(level: Baseline) -> str:
    """What goes into ``<features>``: paravirtual features that call the hypervisor, off."""
    lines = ["<features>"]
    if "kvm-pv-unhalt" not in level.model.features:
        lines.append("  <pvspinlock state='off'/>")
    if "kvm-pv-ipi" not in level.model.features:
        lines.append("  <kvm>\n    <pv-ipi state='off'/>\n  </kvm>")
    return "\n".join([*lines, "</features>", ""])


def render(level: Baseline, name: str) -> Rendering:  # noqa: ARG001 (every renderer takes one)
    """The elements, and how to put them into a domain."""
    choice = Choice(level.model)
    files = [RenderedFile(name="element <cpu> of the domain", text=cpu_element(level, choice))]
    notes = [*identity_note(level.model, choice.base), *unspoken(choice.unshown, "libvirt")]
    if level.mixed:
        files.append(
            RenderedFile(name="into <features> of the domain", text=features_element(level))
        )
        notes.append("pv-ipi needs libvirt 7.10: leave that line out on older ones")
    if level.model.phys_bits is not None:
        notes.append(f"maxphysaddr needs libvirt {MAXPHYSADDR_SINCE}")
    refusals: tuple[str, ...] = ()
    if choice.unhidden:
        refusals = (f"libvirt cannot hide {told(choice.unhidden)} of {choice.base.name}",)
    return Rendering(
        platform="libvirt",
        files=tuple(files),
        commands=("virsh edit DOMAIN   # replace <cpu>; it counts from the next start",),
        notes=tuple(notes),
        refusals=refusals,
    )
