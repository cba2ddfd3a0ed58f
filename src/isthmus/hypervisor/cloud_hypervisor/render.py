"""A level for Cloud Hypervisor, which shows guests its host's CPU and has few settings for it.

``--cpus max_phys_bits=…,features=amx`` is all (Cloud Hypervisor ``docs/cpu.md``); a migration
checks that the destination's CPUID has what the source's had.  So it honours a level only where
every host of the pool gives up nothing that a guest could see.
"""

from isthmus.baseline.level import Baseline
from isthmus.cpu.features import FEATURES
from isthmus.hypervisor.rendering import (
    RenderedFile,
    Rendering,
    kvm_features,
    mixed_makers,
    told,
)


def render(level: Baseline, name: str) -> Rendering:  # noqa: ARG001 (every renderer takes one)
    """The arguments, or why they cannot do."""
    model = level.model
    words = []
    if model.phys_bits is not None:
        words.append(f"max_phys_bits={model.phys_bits}")
    if "amx-tile" in model.features:
        words.append("features=amx")
    refusals = mixed_makers(level, "Cloud Hypervisor", "it shows each host's own vendor")
    for loss in level.losses:
        lost = {
            name
            for name in loss.features
            if name in FEATURES
            and FEATURES[name].kind not in {"hint", "hypervisor"}
            and name in kvm_features()
            and not name.startswith("amx")
        }
        if lost:
            refusals += (f"Cloud Hypervisor cannot hide {told(lost)} of {loss.host}",)
    text = f"--cpus boot=N{''.join(f',{word}' for word in words)}\n"
    return Rendering(
        platform="cloud-hypervisor",
        files=(RenderedFile(name="argument of cloud-hypervisor", text=text),),
        notes=("not yet run on a real Cloud Hypervisor",),
        refusals=refusals,
    )
