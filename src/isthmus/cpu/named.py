"""The CPU models that platforms know by name, for a machine where the platform itself is not.

``data/models.json`` holds what QEMU and libvirt of Debian 12 say of each, so that a laptop can read
and write for hosts far away.  ``python -m isthmus.hypervisor.collect FILE`` writes it anew.
"""

import functools
from collections.abc import Mapping
from importlib import resources

from isthmus.cpu.model import CpuModel
from isthmus.values import Value, from_json

VENDORS: Mapping[str, str] = {
    "AMD": "AuthenticAMD", "Intel": "GenuineIntel", "Hygon": "HygonGenuine",
}  # fmt: skip
"""CPUID's vendors by libvirt's names for them."""


class NamedModel(Value, frozen=True, forbid_unknown_fields=True):
    """A named model: identity as far as the name fixes it, and canonical feature names."""

    name: str
    features: tuple[str, ...]
    vendor: str = ""
    family: int = 0
    model: int = 0
    stepping: int = 0
    level: int = 0
    xlevel: int = 0


class NamedModels(Value, frozen=True, forbid_unknown_fields=True):
    """The document of ``data/models.json``."""

    schema: int
    source: str
    qemu: tuple[NamedModel, ...]
    libvirt: tuple[NamedModel, ...]


@functools.cache
def _models() -> NamedModels:
    data = resources.files("isthmus.cpu").joinpath("data", "models.json").read_bytes()
    return from_json(data, NamedModels, where="models.json")


@functools.cache
def qemu_models() -> Mapping[str, CpuModel]:
    """QEMU's named models by name, as it defines them."""
    return {model.name: _full(model) for model in _models().qemu}


@functools.cache
def libvirt_models() -> Mapping[str, CpuModel]:
    """The models of libvirt's map by name; those without a vendor are of any."""
    return {model.name: _full(model) for model in _models().libvirt}


def _full(model: NamedModel) -> CpuModel:
    return CpuModel(
        name=model.name,
        source="models.json",
        vendor=model.vendor,
        family=model.family,
        model=model.model,
        stepping=model.stepping,
        level=model.level,
        xlevel=model.xlevel,
        features=frozenset(model.features),
    )
