"""A CPU model written as QEMU's -cpu argument."""

import pytest

from isthmus.cpu.model import CpuModel
from isthmus.errors import InputError
from isthmus.hypervisor.qemu.render import cpu_argument

INTEL = CpuModel(
    name="Old-v1", source="test", vendor="GenuineIntel", family=6, model=23, stepping=3, level=10,
    xlevel=0x80000008, brand="An Intel", features=frozenset({"fpu", "sse", "ssse3"}),
)  # fmt: skip
AMD = INTEL.replace(vendor="AuthenticAMD", family=16, model=2, features=frozenset({"fpu", "sse4a"}))
NAMED = {"Old": INTEL, "Old-v1": INTEL, "Opteron-v1": AMD, "max": INTEL}


def test_every_difference_is_stated() -> None:
    model = INTEL.replace(features=frozenset({"fpu", "sse", "lahf-lm"}), phys_bits=40)
    assert cpu_argument(model, NAMED) == (
        "Old-v1,vendor=GenuineIntel,family=6,model=23,stepping=3,model-id=An Intel,level=0xa,"
        "xlevel=0x80000008,phys-bits=40,+lahf-lm,-ssse3,enforce"
    )


def test_base_of_the_same_vendor_wins() -> None:
    model = AMD.replace(features=INTEL.features)
    assert cpu_argument(model, NAMED, enforce=False).startswith("Opteron-v1,vendor=AuthenticAMD,")
    assert cpu_argument(model, {"Old": INTEL}).startswith("Old,vendor=AuthenticAMD,family=16,")


def test_nothing_in_a_brand_becomes_a_property() -> None:
    argument = cpu_argument(INTEL.replace(brand="x,svm=on\n,+avx" + "y" * 60), NAMED)
    words = argument.split(",")
    assert "svm=on" not in words
    assert "+avx" not in words
    assert "\n" not in argument


@pytest.mark.parametrize(
    "model",
    [
        INTEL.replace(features=frozenset({"sse", "no-such,-fpu"})),
        INTEL.replace(features=frozenset({"rdpru"})),  # known, but QEMU 7.2 has no property
        INTEL.replace(vendor="Genuine,+avx"),
        INTEL.replace(vendor="AMD"),
    ],
)
def test_what_qemu_cannot_be_told_is_refused(model: CpuModel) -> None:
    with pytest.raises(InputError):
        cpu_argument(model, NAMED)
    with pytest.raises(InputError):
        cpu_argument(INTEL, {})
