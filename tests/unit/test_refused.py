"""Instructions that nobody translates are told by name; what is undefined is not.

The decoder iced-x86 judges: whatever it finds in the space of opcodes and knows by a feature that
the core refuses must be refused under that family's name, and nothing else may be.
"""

from collections.abc import Iterator
from itertools import product

import iced_x86
import pytest

from isthmus.translate.machine import Kind, Machine, PageFaultError, families

FAMILIES = {
    "key_locker": "AESKLE KL WIDE_KL",
    "amx": "AMX_BF16 AMX_COMPLEX AMX_FP16 AMX_INT8 AMX_TILE",
    "cet": "CET_SS",
    "pku": "PKU",
    "sgx": "SGX1 OSS",
    "vmx": "VMX INVEPT INVVPID",
    "svm": "SVM SKINIT_OR_SVM",
    "sev": "SEV_ES SEV_SNP RMPQUERY",
    "tdx": "TDX",
    "smap": "SMAP",
    "uintr": "UINTR",
    "fred": "FRED",
    "lkgs": "LKGS",
    "msrlist": "MSRLIST",
    "wrmsrns": "WRMSRNS",
    "pconfig": "PCONFIG",
    "tse": "TSE",
    "xsave": "XSAVE XSAVEC XSAVEOPT XSAVES",
    "cache": "CLFLUSHOPT CLWB PCOMMIT",
    "enqcmd": "ENQCMD",
    "fsgsbase": "FSGSBASE",
    "invpcid": "INVPCID",
    "invlpgb": "INVLPGB",
    "mcommit": "MCOMMIT",
    "smx": "SMX",
    "sysenter": "SEP",
    "syscall": "SYSCALL",
    "tsxldtrk": "TSXLDTRK",
    "hreset": "HRESET",
}
BY_FEATURE = {feature: family for family, names in FAMILIES.items() for feature in names.split()}
FEATURES = {
    value: name for name, value in vars(iced_x86.CpuidFeature).items() if isinstance(value, int)
}
MNEMONICS = {
    value: name for name, value in vars(iced_x86.Mnemonic).items() if isinstance(value, int)
}
# They run as NOPs where they are missing, so they never raise #UD (Intel SDM vol. 2, RDSSPD).
NEVER_FAULT = {"RDSSPD", "RDSSPQ"}
TAIL = bytes.fromhex("2500000000000000000000")


class _Nothing:
    def load(self, address: int, size: int) -> bytes:
        raise PageFaultError(address, 4)

    def store(self, address: int, data: bytes) -> None:
        raise PageFaultError(address, 6)


def expected(code: bytes, bits: int) -> str:
    """The family that iced-x86 would have it in, "" if none."""
    decoded = iced_x86.Decoder(bits, code, iced_x86.DecoderOptions.PCOMMIT, ip=0x1000).decode()
    if decoded.is_invalid:
        return ""
    name = MNEMONICS[decoded.mnemonic]
    if name in NEVER_FAULT:
        return ""
    if name in ("VMCALL", "VMMCALL"):
        return "hypercall"
    names = [FEATURES[feature] for feature in decoded.cpuid_features()]
    if any(each.startswith("AVX512") for each in names):
        return "avx512"
    return next((BY_FEATURE[each] for each in names if each in BY_FEATURE), "")


def refused(machine: Machine, code: bytes, bits: int) -> str:
    machine.state.mode, machine.state.rip = bits, 0x1000
    kind = machine.execute(code, _Nothing())
    return machine.family if kind is Kind.REFUSED else ""


def legacy() -> Iterator[bytes]:
    prefixes = (b"", b"\x66", b"\xf3", b"\xf2", b"\x48", b"\xf3\x48")
    for prefix, escape, opcode in product(
        prefixes, (b"\x0f", b"\x0f\x38", b"\x0f\x3a"), range(256)
    ):
        whole = escape == b"\x0f" and opcode in (0x00, 0x01, 0xAE, 0xC7)
        seconds = range(256) if whole else (*range(0, 64, 8), *range(0xC0, 256, 8), 0xC3)
        for second in seconds:
            yield prefix + escape + bytes((opcode, second)) + TAIL


def vex() -> Iterator[bytes]:
    """Every map, prefix, W and L, with and without a second source."""
    for form, opcode, tail in product((1, 2, 3), range(256), range(16)):
        for vvvv in (0x78, 0x70):
            for second in (*range(0x04, 64, 8), 0x05, *range(0xC0, 256, 8), 0xC3):
                byte = vvvv | (tail & 7) | (tail & 8) << 4
                yield bytes((0xC4, 0xE0 | form, byte, opcode, second)) + TAIL


@pytest.mark.parametrize("bits", [64, 32, 16])
def test_refuses_what_the_decoder_knows_and_nothing_else(bits: int) -> None:
    machine = Machine()
    machine.state.cr4 = 0x200
    wrong = []
    seen = set()
    for code in legacy():
        if bits != 64 and 0x48 in code[:2]:
            continue
        want, got = expected(code, bits), refused(machine, code, bits)
        seen.add(got)
        if want != got:
            wrong.append((code.hex(), want, got))
    assert wrong[:20] == []
    assert {"vmx", "svm", "cet", "xsave", "hypercall"} <= seen


def test_refuses_mask_and_tile_instructions_by_vex() -> None:
    machine = Machine()
    wrong = []
    for code in vex():
        want, got = expected(code, 64), refused(machine, code, 64)
        # iced-x86 reads register operands more strictly: three different tiles, no bits of REX.
        if want != got and not (got in ("amx", "avx512") and not want):
            wrong.append((code.hex(), want, got))
    assert wrong[:20] == []


@pytest.mark.parametrize(
    ("code", "family"),
    [
        ("62f17c4858c1", "avx512"),  # VADDPS zmm0, zmm0, zmm1
        ("62f57c4858c1", "avx512"),  # VADDPH zmm0, zmm0, zmm1
        ("62f17c4058c1", "avx512"),
        ("62f1784858c1", ""),  # the bit that must be 1 is 0
        ("6662f17c4858c1", ""),  # a prefix in front of EVEX is undefined everywhere
        ("c5f492c0", ""),  # KMOV with L and vvvv: undefined
        ("0f0b", ""),  # UD2
        ("0fb9c0", ""),  # UD1
        ("0fffc0", ""),  # UD0
        ("f00f01c1", ""),  # LOCK VMCALL is undefined everywhere
    ],
)
def test_names_evex_and_leaves_the_undefined_alone(code: str, family: str) -> None:
    assert refused(Machine(), bytes.fromhex(code), 64) == family


def test_bound_is_no_evex() -> None:
    assert refused(Machine(), bytes.fromhex("620100000000"), 32) == ""
    assert refused(Machine(), bytes.fromhex("62f17c4858c1"), 32) == "avx512"


def test_every_family_is_judged() -> None:
    assert families() == {*FAMILIES, "avx512", "hypercall"}


def test_asks_for_more_bytes_where_the_page_ends_inside() -> None:
    machine = Machine()
    machine.state.mode = 64
    assert machine.execute(b"\x0f\x01", _Nothing()) is Kind.MORE_BYTES
    assert machine.execute(b"\x62\xf1", _Nothing()) is Kind.MORE_BYTES


@pytest.mark.parametrize(
    ("code", "length", "before", "after"),
    [
        ("8fe97812c0", 5, 0x77, 0x77),  # LLWPCB eax: profiling stays off
        ("8fe97812c8", 5, 0x77, 0),  # SLWPCB eax: no control block
        ("8fe9f812c8", 5, -1, 0),  # SLWPCB rax
        ("8fea7812c078563412", 9, 0x77, 0x77),  # LWPINS eax, eax, imm32
        ("8fea7812c878563412", 9, 0x77, 0x77),  # LWPVAL
        ("8fea78120c2578563412efbeadde", 14, 0x77, 0x77),  # LWPVAL with memory: not read
    ],
)
def test_lwp_with_profiling_off(code: str, length: int, before: int, after: int) -> None:
    """As on a CPU whose LWP_CFG grants no event (AMD publication 43724)."""
    machine = Machine()
    state = machine.state
    state.mode, state.rip, state.rflags = 64, 0x1000, 0x8D5
    state.gpr[0] = before & (1 << 64) - 1
    assert machine.execute(bytes.fromhex(code), _Nothing()) is Kind.DONE
    assert (state.gpr[0], state.rip) == (after, 0x1000 + length)
    assert machine.outcome.length == length
    assert state.rflags == (0x8D4 if machine.mnemonic == "LWPINS" else 0x8D5)


@pytest.mark.parametrize(
    "code",
    ["8fe97812d0", "8fe97c12c0", "8fe97012c0", "8fe9781200", "8fea7812d078563412"],
    ids=["/2", "L", "vvvv", "memory", "LWP /2"],
)
def test_what_is_undefined_in_lwps_opcodes_stays_so(code: str) -> None:
    machine = Machine()
    machine.state.mode = 64
    assert machine.execute(bytes.fromhex(code), _Nothing()) is Kind.NOT_OURS


def test_ptwrite_reads_its_operand_and_nothing_more() -> None:
    """Without a trace the value goes nowhere (Intel SDM vol. 2B, PTWRITE)."""
    machine = Machine()
    machine.state.mode, machine.state.rip = 64, 0x1000
    assert machine.execute(bytes.fromhex("f3480faee0"), _Nothing()) is Kind.DONE
    assert (machine.mnemonic, machine.state.rip) == ("PTWRITE", 0x1005)
    assert machine.execute(bytes.fromhex("f30fae20"), _Nothing()) is Kind.FAULT
    assert machine.execute(bytes.fromhex("66f30faee0"), _Nothing()) is Kind.NOT_OURS
