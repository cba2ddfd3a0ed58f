"""Every feature that the installed libvirt names is ours, at the same bit, in its spelling."""

from pathlib import Path

import pytest
from lxml import etree

from isthmus.cpu.features import FEATURES, by_cpuid

MAP = Path("/usr/share/libvirt/cpu_map/x86_features.xml")


def bits(entry: etree._Element, register: str) -> list[int]:
    value = int(entry.get(register, "0"), 0)
    return [bit for bit in range(32) if value >> bit & 1]


@pytest.mark.skipif(not MAP.exists(), reason="no libvirt here: apt-get install libvirt0")
def test_every_libvirt_feature_is_known() -> None:
    registers = {
        (feature.msr, feature.bit): name
        for name, feature in FEATURES.items()
        if feature.msr is not None
    }
    places = by_cpuid()
    count = 0
    for feature in etree.parse(MAP).getroot().iterfind("feature"):
        theirs = feature.get("name")
        for entry in feature.iterchildren("cpuid", "msr"):
            for register in ("eax", "ebx", "ecx", "edx"):
                for bit in bits(entry, register):
                    if entry.tag == "msr":
                        high = 32 * (register == "edx")
                        name = registers[int(entry.get("index", ""), 0), bit + high]
                    else:
                        leaf, subleaf = (int(entry.get(k, "0"), 0) for k in ("eax_in", "ecx_in"))
                        name = places[leaf, subleaf, register, bit]  # type: ignore[index]
                    assert FEATURES[name].libvirt == theirs
                    count += 1
    assert count > 150
