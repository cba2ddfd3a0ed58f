"""Who translates for a guest: its own module before the debug stub, and what each covers."""

import pytest

from isthmus.translate.placement import service
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
