"""A level as KubeVirt's custom resources and node labels.

``spec.template.spec.domain.cpu`` has ``model`` and ``features`` with a ``policy`` (force, require,
optional, disable, forbid), and KubeVirt's node-labeller marks nodes with
``cpu-model.node.kubevirt.io/MODEL`` and ``cpu-feature.node.kubevirt.io/FEATURE`` (KubeVirt user
guide, "Virtual hardware", "Node assignment").  It sets no ``vendor_id``, and since December 2025
it keeps guests on nodes of one vendor (KubeVirt pull request 16060).
"""

import json
from typing import Any

from isthmus.baseline.level import Baseline
from isthmus.hypervisor.libvirt.render import Choice
from isthmus.hypervisor.rendering import (
    RenderedFile,
    Rendering,
    identifier,
    identity_note,
    mixed_makers,
    told,
    unspoken,
)


def render(level: Baseline, name: str) -> Rendering:
    """A patch for virtual machines, one for the cluster's default, and the nodes' label.

    They are JSON, which is YAML too: ``kubectl`` takes both.
    """
    choice = Choice(level.model)
    features = [{"name": flag, "policy": "require"} for flag in choice.required]
    features += [{"name": flag, "policy": "disable"} for flag in choice.disabled]
    label = f"isthmus.dev/pool-{identifier(name, 50)}"
    machine = {
        "spec": {
            "template": {
                "spec": {
                    "nodeSelector": {label: "true"},
                    "domain": {"cpu": {"model": choice.base.name, "features": features}},
                }
            }
        }
    }
    cluster = {"spec": {"configuration": {"cpuModel": choice.base.name}}}
    refusals = mixed_makers(
        level,
        "KubeVirt",
        "it sets no vendor_id and keeps guests on nodes of one vendor",
    )
    if choice.unhidden:
        refusals += (f"libvirt cannot hide {told(choice.unhidden)} of {choice.base.name}",)
    return Rendering(
        platform="kubevirt",
        files=(
            RenderedFile(name="vm-patch.json", text=_text(machine)),
            RenderedFile(name="kubevirt-patch.json", text=_text(cluster)),
        ),
        commands=(
            f"kubectl label node NODE {label}=true   # every host of the pool",
            "kubectl patch vm VM --type merge --patch-file vm-patch.json   # from the next start",
            (
                "kubectl patch kubevirt kubevirt -n kubevirt --type merge --patch-file "
                "kubevirt-patch.json   # the default of all"
            ),
        ),
        notes=(
            *identity_note(level.model, choice.base),
            *unspoken(choice.unshown, "KubeVirt"),
            "address widths are the nodes' own: KubeVirt has no setting for them",
        ),
        refusals=refusals,
    )


def _text(document: dict[str, Any]) -> str:
    return json.dumps(document, indent=2) + "\n"
