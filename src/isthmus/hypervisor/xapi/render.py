"""A level for XenServer and XCP-ng.

XAPI levels a pool by itself, to what all of its hosts have (``Pool.cpu_info``, ``features_hvm``),
and refuses hosts of another maker; it takes no level from outside.  What can be done is to hide
features on each host by Xen's own command line (``cpuid=no-NAME``, Xen documentation,
``misc/xen-command-line``), so that XAPI arrives at this level.  The featureset is Xen's
(``xen/include/public/arch-x86/cpufeatureset.h``), written as XAPI does: words in hexadecimal.
"""

from isthmus.baseline.identity import AMD
from isthmus.baseline.level import Baseline
from isthmus.cpu.features import FEATURES
from isthmus.cpu.registers import FEATURESET, word
from isthmus.hypervisor.rendering import RenderedFile, Rendering, mixed_makers, unspoken


def featureset(level: Baseline) -> str:
    """The level's features as XAPI writes them."""
    amd = level.model.vendor == AMD
    return "-".join(f"{word(level.model.features, place, amd=amd):08x}" for place in FEATURESET)


def render(level: Baseline, name: str) -> Rendering:  # noqa: ARG001 (every renderer takes one)
    """The featureset to compare with, and what to hide on each host."""
    lost = {feature for loss in level.losses for feature in loss.features}
    hidden = sorted(
        FEATURES[feature].xen or ""
        for feature in lost
        if feature in FEATURES and FEATURES[feature].xen and FEATURES[feature].merge != "ignore"
    )
    silent = frozenset(f for f in lost if f in FEATURES and not FEATURES[f].xen)
    commands = []
    if hidden:
        words = ",".join(f"no-{feature.replace('_', '-')}" for feature in hidden)
        commands.append(f"/opt/xensource/libexec/xen-cmdline --set-xen cpuid={words}")
        commands.append("reboot   # each host, emptied before")
    commands.append("xe pool-param-get uuid=POOL param-name=cpu-info   # features_hvm: compare")
    notes = ["not yet run on a real XenServer", *unspoken(silent, "Xen")]
    return Rendering(
        platform="xapi",
        files=(RenderedFile(name="the pool's featureset", text=f"{featureset(level)}\n"),),
        commands=tuple(commands),
        notes=tuple(notes),
        refusals=mixed_makers(
            level, "XAPI", "a host of another maker cannot join a pool (HOSTS_NOT_HOMOGENEOUS)"
        ),
    )
