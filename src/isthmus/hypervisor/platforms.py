"""Every platform that a level can be rendered for, and its renderer, loaded when used."""

import importlib
from collections.abc import Callable, Mapping
from typing import cast

from isthmus.baseline.level import Baseline
from isthmus.errors import InputError
from isthmus.hypervisor.rendering import Rendering

RENDERERS: Mapping[str, str] = {
    "qemu": "isthmus.hypervisor.qemu.levels",
    "libvirt": "isthmus.hypervisor.libvirt.render",
    "proxmox": "isthmus.hypervisor.proxmox.render",
    "ovirt": "isthmus.hypervisor.ovirt.render",
    "nova": "isthmus.hypervisor.nova.render",
    "kubevirt": "isthmus.hypervisor.kubevirt.render",
    "xen": "isthmus.hypervisor.xen.render",
    "xapi": "isthmus.hypervisor.xapi.render",
    "vmware": "isthmus.hypervisor.vmware.render",
    "hyperv": "isthmus.hypervisor.hyperv.render",
    "firecracker": "isthmus.hypervisor.firecracker.render",
    "cloud-hypervisor": "isthmus.hypervisor.cloud_hypervisor.render",
}
"""The module whose ``render`` writes for each platform."""

KVM = frozenset({"qemu", "libvirt", "proxmox", "ovirt", "nova", "kubevirt", "firecracker"})
"""Platforms on KVM, where guests never see some of what a real CPU has."""


def render(level: Baseline, platform: str, name: str) -> Rendering:
    """The level in a platform's words.

    :param name: what to call the level there.
    :raises InputError: no such platform, or a level that no model can start from.
    """
    module = RENDERERS.get(platform)
    if module is None:
        raise InputError(
            f"{platform}: no known platform", remedy=f"name one of {', '.join(RENDERERS)}"
        )
    renderer = cast("Callable[[Baseline, str], Rendering]", importlib.import_module(module).render)
    return renderer(level, name)
