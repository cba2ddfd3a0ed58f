"""What a destination shows a guest that was born on another host."""

from isthmus.baseline.shown import shown_on
from isthmus.cpu.model import CpuModel

GUEST = CpuModel(
    name="phenom", source="test", vendor="AuthenticAMD", family=16, model=2, stepping=3, level=5,
    xlevel=0x8000001A, features=frozenset({"fxsr", "sse", "sse2", "pni", "sse4a", "rdtscp", "tsc"}),
)  # fmt: skip


def test_identity_stays_and_features_shrink() -> None:
    host = GUEST.replace(
        name="xeon", vendor="GenuineIntel", family=6, level=10, xlevel=0x80000008,
        features=frozenset({"fxsr", "sse", "sse2", "pni", "ssse3", "tsc"}),
    )  # fmt: skip
    shown = shown_on(GUEST, host)
    assert shown.features == {"fxsr", "sse", "sse2", "pni", "tsc"}
    assert shown.replace(features=GUEST.features, source=GUEST.source) == GUEST
    assert shown_on(GUEST, GUEST).features == GUEST.features


def test_what_lost_its_base_is_not_shown() -> None:
    host = GUEST.replace(features=GUEST.features - {"pni"})
    assert shown_on(GUEST, host).features == GUEST.features - {"pni", "sse4a"}
