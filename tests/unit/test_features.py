"""The feature table holds together: places, dependencies and spellings."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from isthmus.cpu.decode import decode
from isthmus.cpu.features import FEATURES, by_cpuid, close, closure_violations, find
from isthmus.cpu.model import CpuidLeaf
from isthmus.cpu.page import page
from isthmus.cpu.registers import vendor_words
from isthmus.errors import InputError


def test_known_bits() -> None:
    # Intel SDM vol. 2A and AMD APM vol. 3, CPUID: a bit of each kind of place.
    places = by_cpuid()
    assert places[1, 0, "edx", 25] == "sse"
    assert places[1, 0, "ecx", 28] == "avx"
    assert places[7, 0, "ebx", 5] == "avx2"
    assert places[0x80000001, 0, "ecx", 6] == "sse4a"
    assert places[0x80000001, 0, "edx", 27] == "rdtscp"
    assert places[0xD, 1, "eax", 3] == "xsaves"
    assert (FEATURES["rdctl-no"].msr, FEATURES["rdctl-no"].bit) == (0x10A, 0)


def test_no_two_features_share_a_place() -> None:
    places = [
        (f.leaf, f.subleaf, f.register, f.msr, f.bit)
        for f in FEATURES.values()
        if f.bit is not None
    ]
    assert len(places) == len(set(places))


def test_every_requirement_is_a_feature_and_none_goes_in_circles() -> None:
    for name in FEATURES:
        open_names, seen = {name}, set()
        while open_names:
            step = {need for open_name in open_names for need in FEATURES[open_name].requires}
            assert name not in step, f"{name} needs itself"
            open_names = step - seen
            seen |= step


def test_spellings() -> None:
    assert find("sse4_1").name == "sse4.1"
    assert find("SSE3").name == "pni"
    assert find("lzcnt").name == "abm"
    assert find("cmp_legacy").name == "cmp-legacy"
    assert find("ffxsr").name == "fxsr-opt"
    with pytest.raises(InputError, match="sse17"):
        find("sse17")


def test_no_spelling_means_two_features() -> None:
    spellings = [s for f in FEATURES.values() for s in (f.name, *f.aliases)]
    assert len(spellings) == len(set(spellings))


def test_avx2_falls_with_xsave() -> None:
    whole = frozenset({"fxsr", "sse", "sse2", "pni", "ssse3", "sse4.1", "sse4.2", "xsave", "avx",
                       "avx2", "popcnt"})  # fmt: skip
    assert close(whole) == whole
    assert isinstance(close(whole - {"xsave"}), frozenset)
    assert close(whole - {"xsave"}) == whole - {"xsave", "avx", "avx2"}
    assert closure_violations(whole - {"xsave"}) == {"avx": ("xsave",)}


def test_3dnow_chain_falls_with_mmx() -> None:
    assert close({"3dnow", "3dnowext", "mmxext", "sse4a", "cx8"}) == {"cx8"}


@given(st.frozensets(st.sampled_from(sorted(FEATURES))))
def test_closing_gives_the_largest_closed_part(features: frozenset[str]) -> None:
    closed = close(features)
    assert closed <= features
    assert not closure_violations(closed)
    assert close(closed) == closed
    for dropped in features - closed:  # each was dropped for want of something not kept
        assert any(need not in closed for need in FEATURES[dropped].requires)


def test_the_page_of_features_is_current() -> None:
    assert Path("docs/features.md").read_text(encoding="utf-8") == page()


def hypervisor(signature: bytes, *leaves: CpuidLeaf) -> frozenset[str]:
    ebx, ecx, edx = (int.from_bytes(signature[at : at + 4], "little") for at in (0, 4, 8))
    basic = CpuidLeaf(leaf=0, subleaf=0, eax=1, **vendor_words("GenuineIntel"))
    head = CpuidLeaf(leaf=0x40000000, subleaf=0, eax=0x40000006, ebx=ebx, ecx=ecx, edx=edx)
    return decode([basic, head, *leaves], name="x", source="x").features


def test_the_hypervisors_leaves_mean_what_its_signature_says() -> None:
    words = {"ebx": 0, "ecx": 0, "edx": 0}
    first = CpuidLeaf(leaf=0x40000001, subleaf=0, eax=1 << 3, **words)
    third = CpuidLeaf(leaf=0x40000003, subleaf=0, eax=1 << 9, **words)
    assert hypervisor(b"KVMKVMKVM\0\0\0", first, third) == {"kvmclock"}
    assert hypervisor(b"Microsoft Hv", first, third) == {"hv-reference-tsc"}
    assert hypervisor(b"XenVMMXenVMM", first, third) == frozenset()
