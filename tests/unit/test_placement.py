"""Who translates for a guest: its own module before the debug stub, and what each covers."""

import pytest

from isthmus.translate.placement import arrange, service
from isthmus.translate.table import Placement


@pytest.mark.parametrize(
    ("module", "outside", "placement"),
    [
        (True, True, Placement.INSIDE),
        (True, False, Placement.INSIDE),
        (False, True, Placement.OUTSIDE),
        (False, False, None),
    ],
)
def test_the_module_comes_first(module, outside, placement) -> None:
    assert service(module=module, outside=outside, avx=True, vcpus=1).placement is placement


def test_only_the_module_reaches_the_upper_halves() -> None:
    inside = service(module=True, outside=False, avx=True, vcpus=1).covered
    outside = service(module=False, outside=True, avx=True, vcpus=1).covered
    assert {"avx2", "fma", "f16c"} <= inside - outside
    assert "sse4a" in inside & outside


def test_nobody_covers_nothing() -> None:
    assert service(module=False, outside=False, avx=False, vcpus=1).covered == frozenset()


def test_inside_nothing_atomic_is_promised_to_several_vcpus() -> None:
    assert "cx16" in service(module=True, outside=False, avx=False, vcpus=1).covered
    assert "cx16" not in service(module=True, outside=False, avx=False, vcpus=2).covered
    assert "cx16" in service(module=False, outside=True, avx=False, vcpus=2).covered


def test_what_is_missing_and_covered_is_arranged() -> None:
    by = service(module=False, outside=True, avx=True, vcpus=1)
    found = arrange(by, {"sse4a", "popcnt", "avx2"}, warn_share=0.2, level="isthmus level a b")
    assert found is not None
    assert found.features == ("popcnt", "sse4a")
    assert (found.placement, found.warn_share) == (Placement.OUTSIDE, 0.2)
    assert "popcnt, sse4a" in found.words


@pytest.mark.parametrize(
    ("module", "outside", "missing"),
    [
        (False, False, {"sse4a"}),
        (False, True, set()),
        (False, True, {"avx2"}),
        (True, True, {"abm"}),
    ],
)
def test_nothing_to_do_arms_nothing(module, outside, missing) -> None:
    by = service(module=module, outside=outside, avx=True, vcpus=1)
    assert arrange(by, missing, warn_share=0.05, level="") is None
