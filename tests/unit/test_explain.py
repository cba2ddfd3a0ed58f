import pytest
from iced_x86 import CpuidFeature

from isthmus.cpu.model import CpuModel
from isthmus.errors import InputError
from isthmus.guest.console import Death, Kind
from isthmus.scan.explain import _names, explain, instruction


def cpu(name: str, vendor: str, *features: str) -> CpuModel:
    return CpuModel(
        name=name, source="test", vendor=vendor, family=6, model=1, stepping=1,
        features=frozenset(features),
    )  # fmt: skip


AMD = cpu("phenom", "AuthenticAMD", "rdtscp", "sse4a", "lm", "3dnow")
INTEL = cpu("Penryn", "GenuineIntel", "ssse3", "lm")


def death(code: str, **fields: object) -> Death:
    before = bytes.fromhex("9090")
    return Death(
        kind=Kind.OOPS, headline="invalid opcode: 0000 [#1]",
        code=before + bytes.fromhex(code), offset=2, **fields,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("code", "mnemonic", "features"),
    [
        ("0f01f9", "rdtscp", {"rdtscp"}),
        ("660f78c00808", "extrq", {"sse4a"}),
        ("f20f79c1", "insertq", {"sse4a"}),
        ("f30fbdc1", "lzcnt", {"abm"}),
        ("0f0fc19e", "pfadd", {"3dnow"}),
        ("0f0d08", "prefetchw", {"3dnowprefetch", "3dnow", "lm"}),
        ("9f", "lahf", {"lahf-lm"}),
        ("0f01ca", "clac", {"smap"}),
        ("c4e2f1b8c2", "vfmadd231pd", {"fma"}),
        ("90", "nop", set()),
        ("0f01f9ffff", "rdtscp", {"rdtscp"}),
    ],
)
def test_an_instruction_and_its_features(code: str, mnemonic: str, features: set[str]) -> None:
    found = instruction(bytes.fromhex(code))
    assert (found.mnemonic, found.features) == (mnemonic, features)


def test_lahf_needs_nothing_outside_64_bit_mode() -> None:
    assert instruction(b"\x9f", 32).features == frozenset()


def test_one_of_several_features_is_enough() -> None:
    prefetchw = instruction(bytes.fromhex("0f0d08"))
    assert prefetchw.missing(cpu("a", "x", "3dnow")) == frozenset()
    assert prefetchw.missing(cpu("b", "x")) == {"3dnowprefetch", "3dnow", "lm"}


@pytest.mark.parametrize("code", ["", "0f", "06"])
def test_no_instruction_is_an_input_error(code: str) -> None:
    with pytest.raises(InputError, match="not a whole"):
        instruction(bytes.fromhex(code))


def test_every_feature_of_the_decoder_is_named_or_declared_universal() -> None:
    known = {name for name in dir(CpuidFeature) if name.isupper()}
    names = _names()
    assert set(names.features) | set(names.always) == known
    assert not set(names.features) & set(names.always)


def test_the_kernel_believed_what_the_source_offered() -> None:
    text = explain(death("0f01f9", symbol="read_tsc+0x0/0x20", kernel="6.1.0"), AMD, INTEL)
    assert text == (
        "The guest kernel 6.1.0 died at RDTSCP in read_tsc+0x0/0x20. Penryn (GenuineIntel) lacks"
        " rdtscp and raises #UD on it; the guest believed in it because phenom (AuthenticAMD)"
        " offered rdtscp in CPUID when it booted, and it does not look again."
    )


def test_what_was_never_offered_is_said_so() -> None:
    text = explain(death("f30fbdc1", user=True, program="sh", ip=0x10), AMD, INTEL)
    assert text.startswith("The program sh died at LZCNT EAX,ECX at 0x10")
    assert "nothing offered it" in text


def test_a_deliberate_fault_and_an_innocent_instruction_blame_no_cpu() -> None:
    assert "software stopped itself" in explain(death("0f0b"), AMD, INTEL)
    assert "the cause lies elsewhere" in explain(death("90"), AMD, INTEL)


def test_without_code_or_with_garbage_it_does_not_guess() -> None:
    bare = Death(kind=Kind.OOPS, headline="h")
    assert explain(bare, AMD, INTEL).endswith("The console does not show the instruction.")
    assert "cannot be decoded" in explain(death("06"), AMD, INTEL)
