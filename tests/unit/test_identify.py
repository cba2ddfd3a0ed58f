"""Which CPU it is, from its numbers and its brand."""

import pytest

from isthmus.cpu.identify import generations, identify
from isthmus.cpu.model import CpuModel

INTEL, AMD = "GenuineIntel", "AuthenticAMD"


@pytest.mark.parametrize(
    ("vendor", "family", "model", "stepping", "brand", "codename", "generation"),
    [
        (AMD, 16, 2, 3, "Quad-Core AMD Opteron(tm) 2356", "Barcelona", "K10"),
        (AMD, 16, 2, 3, "AMD Phenom(tm) 9550", "Agena", "K10"),
        (AMD, 23, 1, 2, "AMD EPYC 7601", "Naples", "Zen"),
        (AMD, 23, 49, 0, "AMD EPYC 7742", "Rome", "Zen 2"),
        (AMD, 25, 1, 1, "AMD EPYC 7763", "Milan", "Zen 3"),
        (AMD, 25, 0x18, 1, "AMD Ryzen Threadripper 7980X", "Storm Peak", "Zen 4"),
        (AMD, 26, 2, 1, "AMD EPYC 9755", "Turin", "Zen 5"),
        (INTEL, 6, 23, 6, "Intel(R) Xeon(R) CPU E5420 @ 2.50GHz", "Harpertown", "Penryn"),
        (INTEL, 6, 23, 10, "Intel(R) Core(TM)2 Duo CPU P9500", "Penryn", "Penryn"),
        (INTEL, 6, 85, 4, "Intel(R) Xeon(R) Gold 6140", "Skylake-SP", "Skylake"),
        (INTEL, 6, 85, 7, "Intel(R) Xeon(R) Gold 6252", "Cascade Lake", "Cascade Lake"),
        (INTEL, 6, 85, 11, "", "Cooper Lake", "Cooper Lake"),
        (INTEL, 6, 106, 6, "", "Ice Lake-SP", "Sunny Cove"),
        (INTEL, 6, 143, 8, "", "Sapphire Rapids", "Golden Cove"),
        ("HygonGenuine", 24, 0, 1, "", "Dhyana", "Zen"),
        ("  Shanghai  ", 7, 0x3B, 0, "", "LuJiaZui", "LuJiaZui"),
    ],
)
def test_known_cpus(
    vendor: str, family: int, model: int, stepping: int, brand: str, codename: str, generation: str
) -> None:
    cpu = CpuModel(
        name="x", source="test", vendor=vendor, family=family, model=model, stepping=stepping,
        brand=brand,
    )  # fmt: skip
    kind = identify(cpu)
    assert kind is not None
    assert (kind.codename, kind.generation) == (codename, generation)
    assert identify(cpu.replace(vendor="NobodyAtAll!")) is None


def test_no_entry_hides_a_later_one() -> None:
    kinds = generations()
    for index, kind in enumerate(kinds):
        assert kind.models[0] <= kind.models[1]
        for later in kinds[index + 1 :]:
            hidden = (
                (later.vendor, later.family) == (kind.vendor, kind.family)
                and kind.models[0] <= later.models[0]
                and later.models[1] <= kind.models[1]
                and kind.steppings[0] <= later.steppings[0]
                and later.steppings[1] <= kind.steppings[1]
                and kind.brand in later.brand
            )
            assert not hidden, f"{kind.codename} hides {later.codename}"
