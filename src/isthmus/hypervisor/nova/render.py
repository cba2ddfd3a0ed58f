"""A level as settings of OpenStack Nova's libvirt driver.

``[libvirt] cpu_mode, cpu_models, cpu_model_extra_flags`` of ``nova.conf`` (Nova configuration
reference; admin guide, "CPU models"): ``cpu_mode = custom`` takes one or several models, the flags
may carry ``+`` and ``-`` since Stein.  Nova sets no ``vendor_id``.
"""

from isthmus.baseline.level import Baseline
from isthmus.hypervisor.libvirt.render import Choice
from isthmus.hypervisor.rendering import (
    RenderedFile,
    Rendering,
    identity_note,
    mixed_makers,
    told,
    unspoken,
)


def render(level: Baseline, name: str) -> Rendering:  # noqa: ARG001 (every renderer takes one)
    """The section of ``nova.conf`` for every compute host of the pool."""
    choice = Choice(level.model)
    flags = [*choice.required, *(f"-{flag}" for flag in choice.disabled)]
    lines = ["[libvirt]", "cpu_mode = custom", f"cpu_models = {choice.base.name}"]
    if flags:
        lines.append(f"cpu_model_extra_flags = {', '.join(flags)}")
    refusals = mixed_makers(
        level,
        "Nova",
        "it cannot tell libvirt a vendor_id, so QEMU would show each host's own vendor",
    )
    if choice.unhidden:
        refusals += (f"libvirt cannot hide {told(choice.unhidden)} of {choice.base.name}",)
    notes = [*identity_note(level.model, choice.base), *unspoken(choice.unshown, "Nova")]
    if level.model.phys_bits is not None:
        notes.append(
            "set address widths by flavor: hw:maxphysaddr_mode=emulate, "
            f"hw:maxphysaddr_bits={level.model.phys_bits} (Nova 2024.1)"
        )
    return Rendering(
        platform="nova",
        files=(
            RenderedFile(
                name="nova.conf of every compute host of the pool", text="\n".join(lines) + "\n"
            ),
        ),
        commands=("systemctl restart nova-compute   # guests take it at their next hard reboot",),
        notes=tuple(notes),
        refusals=refusals,
    )
