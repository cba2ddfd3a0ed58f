"""Levelling pools whose answer can be told by hand."""

import pytest

from isthmus.baseline.level import level
from isthmus.cpu.model import NO_LEAVES, CpuModel, XsaveComponent
from isthmus.errors import InputError

SSE = frozenset({"fxsr", "sse", "sse2", "mmx", "tsc", "lm", "pae"})
AMD_HOST = CpuModel(
    name="amd", source="test", vendor="AuthenticAMD", family=16, model=2, stepping=3, level=5,
    xlevel=0x8000001A, phys_bits=48, brand="An Opteron",
    features=SSE | {"pni", "sse4a", "rdtscp", "svm", "npt", "popcnt", "kvm-pv-unhalt", "kvmclock"},
)  # fmt: skip
INTEL_HOST = CpuModel(
    name="intel", source="test", vendor="GenuineIntel", family=6, model=23, stepping=6, level=13,
    xlevel=0x8000000A, phys_bits=38, brand="A Xeon",
    features=SSE | {"pni", "ssse3", "vmx", "npt", "svm", "kvm-pv-unhalt", "kvmclock", "erms"},
)  # fmt: skip


def test_two_makers() -> None:
    baseline = level([AMD_HOST, INTEL_HOST])
    assert baseline.model.features == SSE | {"pni", "kvmclock"}
    assert (baseline.model.level, baseline.model.xlevel) == (5, 0x8000000A)
    assert baseline.model.phys_bits == 38
    assert baseline.losses[0].host == "amd"
    assert baseline.losses[0].features == (
        "kvm-pv-unhalt", "npt", "popcnt", "rdtscp", "sse4a", "svm",
    )  # fmt: skip
    text = "\n".join(baseline.reasons)
    assert "without npt, svm: its state cannot move between makers" in text
    assert "without kvm-pv-unhalt" in text
    assert "Meltdown" in text


def test_identity_avoids_unprotected_meltdown() -> None:
    assert level([AMD_HOST, INTEL_HOST]).model.vendor == "GenuineIntel"
    cured = INTEL_HOST.replace(features=INTEL_HOST.features | {"rdctl-no", "arch-capabilities"})
    assert level([AMD_HOST, cured]).model.vendor == "AuthenticAMD"
    assert level([AMD_HOST, cured, INTEL_HOST]).model.vendor == "GenuineIntel"


def test_one_maker_keeps_virtualisation_and_the_elder_identity() -> None:
    younger = AMD_HOST.replace(name="younger", family=23, model=1, brand="An EPYC")
    baseline = level([younger, AMD_HOST])
    assert {"svm", "npt", "kvm-pv-unhalt"} <= baseline.model.features
    assert (baseline.model.family, baseline.model.brand) == (16, "An Opteron")


def test_keep_and_drop() -> None:
    assert {"svm", "npt"} <= level([AMD_HOST, INTEL_HOST], keep=["svm", "npt"]).model.features
    assert "pni" not in level([AMD_HOST, INTEL_HOST], drop=["sse3"]).model.features
    for wrong in ({"keep": ["sse4a"]}, {"keep": ["pni"], "drop": ["pni"]}, {"drop": ["sse17"]},
                  {"keep": ["pni"], "drop": ["sse2"]}):  # fmt: skip
        with pytest.raises(InputError):
            level([AMD_HOST, INTEL_HOST], **wrong)
    with pytest.raises(InputError):
        level([])


def test_feature_above_the_lowest_leaf_goes() -> None:
    old = AMD_HOST.replace(features=AMD_HOST.features | {"erms"})
    baseline = level([old, INTEL_HOST])
    assert "erms" not in baseline.model.features
    assert any("erms" in reason and "leaf" in reason for reason in baseline.reasons)


def test_moved_xsave_state_goes() -> None:
    # PKRU lies at 2688 on Intel server CPUs and at 832 on AMD's Zen 3 (CPUID 0xD, sub-leaf 9).
    common = SSE | {"xsave", "pku"}
    avx = XsaveComponent(number=2, size=256, offset=576)
    amd = AMD_HOST.replace(
        features=common, level=16, xsave=(avx, XsaveComponent(number=9, size=8, offset=832))
    )
    intel = INTEL_HOST.replace(
        features=common, xsave=(avx, XsaveComponent(number=9, size=8, offset=2688))
    )
    assert level([amd, intel]).model.features == SSE | {"xsave"}
    assert "pku" in level([intel, intel]).model.features


def test_a_restriction_of_one_host_binds_all() -> None:
    limited = INTEL_HOST.replace(features=INTEL_HOST.features | {"rsba", "arch-capabilities"})
    whole = INTEL_HOST.replace(features=INTEL_HOST.features | {"arch-capabilities"})
    assert "rsba" in level([limited, whole]).model.features


def test_state_of_unknown_place_goes_between_makers_unless_kept() -> None:
    amd = AMD_HOST.replace(features=SSE | {"xsave", "pku"}, level=16)
    intel = INTEL_HOST.replace(features=SSE | {"xsave", "pku"})
    assert "pku" not in level([amd, intel]).model.features
    assert "pku" in level([amd, intel], keep=["pku"]).model.features
    assert "pku" in level([amd, amd.replace(name="other")]).model.features
    place = (XsaveComponent(number=9, size=8, offset=2688),)
    located = level([amd.replace(xsave=place), intel.replace(xsave=place)])
    assert "pku" in located.model.features


def test_a_source_that_cannot_tell_its_highest_leaves_costs_nothing() -> None:
    silent = AMD_HOST.replace(name="silent", level=0, xlevel=0, unknown=(NO_LEAVES,))
    both = level([AMD_HOST, silent]).model
    assert both.features == level([AMD_HOST]).model.features
    assert (both.level, both.xlevel, both.unknown) == (5, 0x8000001A, ())
    none = AMD_HOST.replace(name="none", xlevel=0)  # known to have no extended leaves
    assert "sse4a" not in level([AMD_HOST, none]).model.features
