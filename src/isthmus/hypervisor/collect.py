"""Collecting the named CPU models of the QEMU and the libvirt installed.

``python -m isthmus.hypervisor.collect FILE`` writes ``cpu/data/models.json`` anew.
"""

import asyncio
import sys
from pathlib import Path

from lxml import etree

from isthmus.cpu.features import FEATURES
from isthmus.cpu.named import VENDORS, NamedModel, NamedModels
from isthmus.hypervisor.qemu.binary import find_qemu
from isthmus.hypervisor.qemu.engine import Accelerator
from isthmus.hypervisor.qemu.models import read_cpus
from isthmus.values import to_json

LIBVIRT_MAP = Path("/usr/share/libvirt/cpu_map")


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
                vendor=VENDORS[str(vendor.get("name"))] if vendor is not None else "",
                family=int(str(signature.get("family"))) if signature is not None else 0,
                model=int(str(signature.get("model"))) if signature is not None else 0,
            )
        return found[name]

    return tuple(read(name) for name in sorted(elements))


def read_qemu_models() -> tuple[NamedModel, ...]:
    """The named models of the installed QEMU, as it defines them, by name."""
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
    models = NamedModels(
        schema=1,
        source="QEMU 7.2.22 query-cpu-model-expansion; libvirt 9.0.0 cpu_map (Debian 12)",
        qemu=read_qemu_models(),
        libvirt=read_libvirt_map(),
    )
    Path(sys.argv[1]).write_bytes(to_json(models, indent=None) + b"\n")
