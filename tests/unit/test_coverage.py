"""The table of instructions is whole: the decoder iced-x86 says what belongs to each feature."""

import iced_x86
import pytest

from isthmus.divergence.rules import rules
from isthmus.translate.table import Status, instructions, translatable

# What is promised to be told, by the decoder's features; of AVX-512 and AMX every subset it knows.
PROMISED = """
    SSE4A D3NOW D3NOWEXT XOP FMA4 TBM LWP CLZERO MONITORX RDPRU PREFETCHW HLE_OR_RTM RTM MOVBE
    RDTSCP RDPID RDRAND RDSEED POPCNT SSE3 SSSE3 SSE4_1 SSE4_2 AES PCLMULQDQ SHA GFNI BMI1 BMI2
    LZCNT ADX F16C FMA AVX AVX2 VAES VPCLMULQDQ AVX_VNNI MOVDIRI MOVDIR64B CLDEMOTE SERIALIZE
    WAITPKG CMPXCHG16B MPX CET_IBT CET_SS SYSCALL SEP PKU SGX1 OSS VMX SVM SKINIT_OR_SVM INVEPT
    INVVPID UINTR AESKLE KL WIDE_KL MONITOR PTWRITE ENQCMD XSAVE XSAVEC XSAVEOPT XSAVES FSGSBASE
    SMAP INVPCID CLFLUSHOPT CLWB PCOMMIT SMX MCOMMIT INVLPGB SEV_ES SEV_SNP RMPQUERY MSRLIST
    WRMSRNS TSXLDTRK HRESET PCONFIG WBNOINVD PREFETCHWT1 PREFETCHITI FRED LKGS
"""

MISSING: set[str] = set()

# The decoder's own names for forms with REX.W.
SAME = {
    "PCMPESTRI64": "PCMPESTRI", "PCMPESTRM64": "PCMPESTRM",
    "VPCMPESTRI64": "VPCMPESTRI", "VPCMPESTRM64": "VPCMPESTRM",
}  # fmt: skip


def codes() -> dict[int, str]:
    """The mnemonics of all that the decoder tells apart."""
    mnemonics = {number: name for name, number in vars(iced_x86.Mnemonic).items() if name.isupper()}
    found = {}
    for name, number in vars(iced_x86.Code).items():
        if name.isupper() and isinstance(number, int):
            instruction = iced_x86.Instruction()
            instruction.code = number
            found[number] = mnemonics[instruction.mnemonic]
    return found


def by_feature() -> dict[str, set[str]]:
    """The mnemonics of each of the decoder's features."""
    features = {
        number: name for name, number in vars(iced_x86.CpuidFeature).items() if name.isupper()
    }
    found: dict[str, set[str]] = {}
    for number, name in CODES.items():
        instruction = iced_x86.Instruction()
        instruction.code = number
        of = instruction.cpuid_features()
        for feature in of:
            # AVX with another stands for the registers only, as in VSHA512MSG1.
            if feature != iced_x86.CpuidFeature.AVX or len(of) == 1:
                found.setdefault(features[feature], set()).add(name)
    return found


CODES = codes()
BY_FEATURE = by_feature()
ROWS = {row.mnemonic for row in instructions()}


@pytest.mark.parametrize("feature", PROMISED.split())
def test_every_instruction_of_a_feature_has_a_row(feature: str) -> None:
    """A VEX form is told in the row of its legacy form, where the encodings stand."""
    names = {SAME.get(name, name) for name in BY_FEATURE[feature]}
    absent = {name for name in names if name not in ROWS and name.removeprefix("V") not in ROWS}
    assert absent == set()


def test_avx_has_a_row_for_every_encoding_of_its_own() -> None:
    """Its legacy forms are other features', so their rows do not tell of it."""
    told = {
        (row.mnemonic, encoding)
        for row in instructions()
        if row.feature == "avx"
        for encoding in row.encoding.split("; ")
    }
    lacking = set()
    for code, theirs in CODES.items():
        name = SAME.get(theirs, theirs)
        instruction = iced_x86.Instruction()
        instruction.code = code
        if instruction.cpuid_features() != [iced_x86.CpuidFeature.AVX]:
            continue  # VAESENC and the like stand with the other feature that they need
        encoding = iced_x86.OpCodeInfo(code).op_code_string
        if not {(name, encoding), (name[1:], encoding)} & told:
            lacking.add(name)
    assert lacking == set()


def test_every_subset_of_avx512_and_amx_is_refused_by_name() -> None:
    refused = {row.feature.replace("-", "") for row in instructions() if row.reason}
    subsets = {name for name in BY_FEATURE if name.startswith(("AVX512", "AMX"))}
    assert len(subsets) > 20
    assert {name for name in subsets if name.lower().replace("_", "") not in refused} == set()


def test_nothing_is_untold() -> None:
    """Verified by an oracle, refused or harmless for a reason, or silent under a rule."""
    known = {rule.id for rule in rules()}
    missing = set()
    for row in instructions():
        match row.status:
            case Status.TRANSLATED:
                assert row.oracle, row
            case Status.REFUSED | Status.HARMLESS:
                assert row.reason, row
            case Status.SILENT:
                assert row.rule in known, row
            case Status.MISSING:
                missing.add(row.mnemonic)
    assert missing == MISSING


def test_a_refused_instruction_keeps_its_feature_out() -> None:
    refused = {row.feature for row in instructions() if row.status is Status.REFUSED}
    assert {"pku", "avx512f", "amx-tile", "svm", "misalignsse"} <= refused
    assert not refused & translatable()
