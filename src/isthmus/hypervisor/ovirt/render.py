"""A level as a cluster CPU type of oVirt.

An entry of the engine's ``ServerCPUList``: ``level:name:flags that a host must have:model and flags
of VDSM:architecture``, entries separated by ``;`` (oVirt engine, ``packaging/dbscripts`` and
``CpuFlagsManagerHandler``).  VDSM turns ``Model,+flag,-flag`` into libvirt's ``<model>`` and
``<feature>`` (``vdsm/virt/vmdevices``, ``vdsm/virt/domain_descriptor``) and sets no ``vendor_id``.
"""

from isthmus.baseline.level import Baseline
from isthmus.cpu.features import FEATURES
from isthmus.hypervisor.libvirt.render import Choice
from isthmus.hypervisor.rendering import (
    RenderedFile,
    Rendering,
    identity_note,
    mixed_makers,
    told,
    unspoken,
)

_LEVEL = 90
"""Where the type stands in oVirt's order: above its own."""


def render(level: Baseline, name: str) -> Rendering:
    """The entry, and how to give it to the engine."""
    choice = Choice(level.model)
    flags = [f"+{flag}" for flag in choice.required] + [f"-{flag}" for flag in choice.disabled]
    host_flags = ",".join(["nx", *_host_flags(choice)])
    entry = f"{_LEVEL}:{_title(name)}:{host_flags}:{','.join([choice.base.name, *flags])}:x86_64"
    refusals = mixed_makers(
        level,
        "oVirt",
        "VDSM cannot tell libvirt a vendor_id, so QEMU would show each host's own vendor",
    )
    if choice.unhidden:
        refusals += (f"libvirt cannot hide {told(choice.unhidden)} of {choice.base.name}",)
    return Rendering(
        platform="ovirt",
        files=(RenderedFile(name="an entry of ServerCPUList, after its ';'", text=f"{entry}\n"),),
        commands=(
            "engine-config -g ServerCPUList   # keep it",
            (
                "engine-config -s ServerCPUList='OLD; ENTRY' --cver=VERSION && systemctl restart "
                "ovirt-engine"
            ),
        ),
        notes=(
            *identity_note(level.model, choice.base),
            *unspoken(choice.unshown, "oVirt"),
            "address widths are the hosts' own: oVirt has no setting for them",
        ),
        refusals=refusals,
    )


def _host_flags(choice: Choice) -> list[str]:
    """VDSM reports a host's flags as ``/proc/cpuinfo`` names them."""
    return sorted({name for feature in choice.lacking if (name := FEATURES[feature].linux)})


def _title(name: str) -> str:
    """The name that administrators see; colons, commas and semicolons separate fields."""
    return "Isthmus " + "".join(c if c.isalnum() or c in " -._" else " " for c in name).strip()
