"""CPUID dumps as text, and what their leaves mean."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from isthmus.cpu.decode import decode, numbers
from isthmus.cpu.model import CpuidLeaf, CpuModel, XsaveComponent
from isthmus.cpu.readers.raw import read_raw
from isthmus.errors import InputError

# A Zen 3 (family 0x19), shortened; leaf 0x11 lies above its maximum on purpose.
INSTLAT = """\
------[ CPUID Registers / Logical CPU #0 ]------
CPUID 00000000: 00000010-68747541-444D4163-69746E65 [AuthenticAMD]
CPUID 00000001: 00A20F12-000C0800-7EF8320B-178BFBFF
CPUID 00000007: 00000000-219C97A9-0040068C-00000010 [SL 00]
CPUID 0000000D: 00000207-00000340-00000988-00000000 [SL 00] [x87]
CPUID 0000000D: 0000000F-00000350-00001800-00000000 [SL 01] [SSE]
CPUID 0000000D: 00000100-00000240-00000000-00000000 [SL 02] [AVX]
CPUID 0000000D: 00000008-00000980-00000000-00000000 [SL 09] [PKRU]
CPUID 0000000D: 00000010-00000000-00000001-00000000 [SL 0B] [CET_U]
CPUID 00000011: FFFFFFFF-FFFFFFFF-FFFFFFFF-FFFFFFFF
CPUID 80000000: 80000023-68747541-444D4163-69746E65 [AuthenticAMD]
CPUID 80000001: 00A20F12-20000000-75C237FF-2FD3FBFF
CPUID 80000002: 20444D41-657A7952-2035206E-30303635 [AMD Ryzen 5 5600]
CPUID 80000003: 20443358-6F432D36-50206572-65636F72 [X3D 6-Core Proce]
CPUID 80000004: 726F7373-20202020-20202020-00202020 [ssor           ]
CPUID 80000008: 00003030-111EF657-0000400B-00010000

------[ Logical CPU #1 ]------
CPUID 00000000: 00000010-68747541-444D4163-69746E65 [AuthenticAMD]
"""


def as_cpuid_r(text: str) -> str:
    lines = ["CPU 0:"]
    for leaf in read_raw(text, where="test")[0].leaves:
        words = f"eax={leaf.eax:#010x} ebx={leaf.ebx:#010x} ecx={leaf.ecx:#010x}"
        lines.append(f"   {leaf.leaf:#010x} {leaf.subleaf:#04x}: {words} edx={leaf.edx:#010x}")
    return "\n".join(lines)


def model(text: str) -> CpuModel:
    return decode(read_raw(text, where="test")[0].leaves, name="test", source="test")


def test_a_zen_3() -> None:
    cpu = model(INSTLAT)
    assert (cpu.vendor, cpu.family, cpu.model, cpu.stepping) == ("AuthenticAMD", 0x19, 0x21, 2)
    assert cpu.brand == "AMD Ryzen 5 5600X3D 6-Core Processor"
    assert (cpu.phys_bits, cpu.linear_bits) == (48, 48)
    assert (cpu.level, cpu.xlevel) == (0x10, 0x80000023)
    assert cpu.xsave == (
        XsaveComponent(number=2, size=256, offset=576),
        XsaveComponent(number=9, size=8, offset=0x980),
    )
    assert {"svm", "sse4a", "abm", "avx2", "pku", "xsaves", "rdtscp", "mmxext"} <= cpu.features
    assert not {"3dnow", "vmx", "avx512f", "npt"} & cpu.features
    assert all(leaf.leaf != 0x11 for leaf in cpu.leaves)


def test_the_three_formats_say_the_same() -> None:
    want = model(INSTLAT)
    assert model(as_cpuid_r(INSTLAT)) == want
    table = "\n".join(
        f"basic_cpuid[{leaf.leaf}]={leaf.eax:08x} {leaf.ebx:08x} {leaf.ecx:08x} {leaf.edx:08x}"
        if leaf.leaf < 0x80000000
        else f"ext_cpuid[{leaf.leaf - 0x80000000}]={leaf.eax:08x} {leaf.ebx:08x} {leaf.ecx:08x} "
        f"{leaf.edx:08x}"
        for leaf in want.leaves
        if leaf.subleaf == 0
    )
    assert model(table).features >= want.features - {"xsaveopt", "xsavec", "xgetbv1", "xsaves"}


def test_logical_cpus_are_told_apart() -> None:
    assert [cpu.number for cpu in read_raw(INSTLAT, where="test")] == [0, 1]
    older = INSTLAT.replace(
        "------[ CPUID Registers / Logical CPU #0 ]------", "CPU#007 AffMask: 1"
    )
    assert [cpu.number for cpu in read_raw(older, where="test")] == [7, 1]
    one = as_cpuid_r(INSTLAT).replace("CPU 0:", "CPU:")
    bare = "\n".join(one.splitlines()[1:])
    assert len(read_raw(f"{bare}\n{bare}", where="test")) == 2


@pytest.mark.parametrize(
    ("eax", "want"),
    [
        (0x00100F23, (16, 2, 3)),  # Phenom
        (0x0001067A, (6, 23, 10)),  # Penryn: extended model counts in family 6
        (0x00000F29, (15, 2, 9)),  # Northwood
        (0x00000633, (6, 3, 3)),
        (0x00000543, (5, 4, 3)),
        (0x00A00F11, (25, 1, 1)),  # Milan
        (0x0FF00F00, (270, 0, 0)),
    ],
)
def test_numbers(eax: int, want: tuple[int, int, int]) -> None:
    assert numbers(eax) == want


def test_kvm_features_need_kvm_signature() -> None:
    leaves = read_raw(INSTLAT, where="test")[0].leaves
    head = {"leaf": 0x40000000, "subleaf": 0, "eax": 0x40000001}
    kvm = CpuidLeaf(**head, ebx=0x4B4D564B, ecx=0x564B4D56, edx=0x4D)
    xen = CpuidLeaf(**head, ebx=0x566E6558, ecx=0x65584D4D, edx=0x4D4D566E)
    bits = CpuidLeaf(leaf=0x40000001, subleaf=0, eax=1 << 7, ebx=0, ecx=0, edx=0)
    with_kvm = decode([*leaves, kvm, bits], name="a", source="test")
    assert "kvm-pv-unhalt" in with_kvm.features
    assert "kvm-pv-unhalt" not in decode([*leaves, xen, bits], name="a", source="test").features


def test_msr_features_need_their_cpuid_bit() -> None:
    leaves = read_raw(INSTLAT, where="test")[0].leaves
    assert "rdctl-no" not in decode(leaves, name="a", source="t", msrs={0x10A: 1}).features
    told = [
        CpuidLeaf(leaf=7, subleaf=0, eax=0, ebx=0, ecx=0, edx=1 << 29) if leaf.leaf == 7 else leaf
        for leaf in leaves
    ]
    cpu = decode(told, name="a", source="t", msrs={0x10A: 1})
    assert "rdctl-no" in cpu.features
    assert "feature MSRs" in decode(told, name="a", source="t").unknown


@pytest.mark.parametrize("text", ["", "hello", "CPU 0:\n", "CPUID 0000000G: 1-2-3-4", "\0" * 999])
def test_no_dump(text: str) -> None:
    with pytest.raises(InputError):
        read_raw(text, where="test")


def test_no_vendor() -> None:
    for text in ("CPUID 00000001: 00A20F12-000C0800-7EF8320B-178BFBFF",
                 "CPUID 00000000: 00000010-00000000-00000000-00000000"):  # fmt: skip
        with pytest.raises(InputError, match="leaf 0"):
            model(text)


@given(st.lists(st.tuples(*[st.integers(0, 0xFFFFFFFF)] * 5, st.integers(0, 70)), max_size=20))
def test_any_registers_give_a_model_or_an_error(rows: list[tuple[int, ...]]) -> None:
    head = "CPUID 00000000: FFFFFFFF-756E6547-6C65746E-49656E69\n"
    text = head + "\n".join(
        "CPUID {:08X}: {:08X}-{:08X}-{:08X}-{:08X} [SL {:02X}]".format(*row) for row in rows
    )
    try:
        cpu = model(text)
    except InputError:
        return
    assert cpu.vendor


@given(st.text() | st.text("CPUID0123456789ABCDEF:#-_[]= \n"))
def test_any_text_gives_leaves_or_an_error(text: str) -> None:
    try:
        assert read_raw(text, where="test")
    except InputError as error:
        assert "CPUID" in str(error)


@pytest.mark.parametrize(
    "line",
    [
        "CPUID 00000001:000006FB-00020800-0000E3BD-BFEBFBFF",
        "CPUID 00000001: 000006FB-00020800-0000E3BD-BFEBFBFF",
        "00000001 000006FB-00020800-0000E3BD-BFEBFBFF [SL 00]",
        "   0x00000001: eax=0x000006fb ebx=0x00020800 ecx=0x0000e3bd edx=0xbfebfbff",
        "   0x00000001 0x00: eax=0x000006fb ebx=0x00020800 ecx=0x0000e3bd edx=0xbfebfbff",
        "0x1: EAX=0x6fb, EBX=0x20800, ECX=0xe3bd, EDX=0xbfebfbff",
        "basic_cpuid[1]=000006fb 00020800 0000e3bd bfebfbff",
    ],
)
def test_one_answer_in_every_spelling(line: str) -> None:
    (cpu,) = read_raw(f"noise\n{line}\r\nmore noise: 12\n", where="a dump")
    assert cpu.leaves == (
        CpuidLeaf(leaf=1, subleaf=0, eax=0x6FB, ebx=0x20800, ecx=0xE3BD, edx=0xBFEBFBFF),
    )
