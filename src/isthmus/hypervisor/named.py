"""The CPU models that platforms know by name, for rendering where the platform itself is not.

``data/models.json`` holds what QEMU and libvirt of Debian 12 say of each: a renderer of a laptop
can so write for hosts far away.  ``python -m isthmus.hypervisor.named FILE`` writes it anew from
the QEMU and the libvirt installed.
"""

import asyncio
import functools
import sys
from collections.abc import Mapping
from importlib import resources
from pathlib import Path

from lxml import etree

from isthmus.cpu.features import FEATURES
from isthmus.cpu.model import CpuModel
from isthmus.values import Value, from_json, to_json

LIBVIRT_MAP = Path("/usr/share/libvirt/cpu_map")
_VENDORS = {"AMD": "AuthenticAMD", "Intel": "GenuineIntel", "Hygon": "HygonGenuine"}


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


class _Models(Value, frozen=True, forbid_unknown_fields=True):
    schema: int
    source: str
    qemu: tuple[NamedModel, ...]
    libvirt: tuple[NamedModel, ...]


@functools.cache
def _models() -> _Models:
    data = resources.files("isthmus.hypervisor").joinpath("data", "models.json").read_bytes()
    return from_json(data, _Models, where="models.json")


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


def read_libvirt_map(folder: Path = LIBVIRT_MAP) -> tuple[NamedModel, ...]:
    """The x86 models of an installed libvirt's map, by name.

    Format: libvirt ``docs/formatcaps.rst`` and ``src/cpu/cpu_map.c``.  A model may take another
    one as its base; a feature that later versions removed from a model is left out.
    """
    parser = etree.XMLParser(resolve_entities=False, no_network=True, load_dtd=False)
    names = {feature.libvirt: name for name, feature in FEATURES.items() if feature.libvirt}
    found: dict[str, NamedModel] = {}
    elements = {
        str(element.get("name")): element
        for path in sorted(folder.glob("x86_*.xml"))
        for element in etree.parse(path, parser).getroot().iterchildren("model")
    }

    def read(name: str) -> NamedModel:
        if name not in found:
            element = elements[name]
            base = element.find("model")
            features = set(read(str(base.get("name"))).features if base is not None else ())
            features |= {
                names[str(child.get("name"))]
                for child in element.iterchildren("feature")
                if child.get("removed") != "yes" and child.get("name") in names
            }
            vendor, signature = element.find("vendor"), element.find("signature")
            found[name] = NamedModel(
                name=name,
                features=tuple(sorted(features)),
                vendor=_VENDORS[str(vendor.get("name"))] if vendor is not None else "",
                family=int(str(signature.get("family"))) if signature is not None else 0,
                model=int(str(signature.get("model"))) if signature is not None else 0,
            )
        return found[name]

    return tuple(read(name) for name in sorted(elements))


def read_qemu_models() -> tuple[NamedModel, ...]:
    """The named models of the installed QEMU, as it defines them, by name."""
    from isthmus.hypervisor.qemu.binary import find_qemu  # noqa: PLC0415 (below this in the map)
    from isthmus.hypervisor.qemu.engine import Accelerator  # noqa: PLC0415
    from isthmus.hypervisor.qemu.models import read_cpus  # noqa: PLC0415

    cpus = asyncio.run(read_cpus(find_qemu(), Accelerator.TCG))
    return tuple(
        NamedModel(
            name=name,
            features=tuple(sorted(model.features)),
            vendor=model.vendor,
            family=model.family,
            model=model.model,
            stepping=model.stepping,
            level=model.level,
            xlevel=model.xlevel,
        )
        for name, model in sorted(cpus.named.items())
        if name != "base"
    )


if __name__ == "__main__":
    models = _Models(
        schema=1,
        source="QEMU 7.2.22 query-cpu-model-expansion; libvirt 9.0.0 cpu_map (Debian 12)",
        qemu=read_qemu_models(),
        libvirt=read_libvirt_map(),
    )
    Path(sys.argv[1]).write_bytes(to_json(models, indent=1) + b"\n")
