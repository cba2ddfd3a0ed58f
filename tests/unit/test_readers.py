"""Readers of /proc/cpuinfo and of Firecracker's fingerprints, with hostile input."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from isthmus.cpu.readers.cpuinfo import is_cpuinfo, read_cpuinfo
from isthmus.cpu.readers.firecracker import read_firecracker
from isthmus.errors import InputError

CPUINFO = """\
processor\t: 0
vendor_id\t: AuthenticAMD
cpu family\t: 25
model\t\t: 1
model name\t: AMD EPYC 7763 64-Core Processor
stepping\t: 1
microcode\t: 0xa0011d1
cpuid level\t: 16
flags\t\t: fpu sse3_of_nobody pni sse4_1 abm rdtscp fxsr_opt nonstop_tsc svm
address sizes\t: 48 bits physical, 48 bits virtual

processor\t: 1
vendor_id\t: AuthenticAMD
cpu family\t: 25
model\t\t: 1
flags\t\t: fpu pni sse4_1 abm rdtscp fxsr_opt nonstop_tsc
"""


def test_cpuinfo() -> None:
    assert is_cpuinfo(CPUINFO)
    cpu = read_cpuinfo(CPUINFO, name="host", where="test")
    assert (cpu.vendor, cpu.family, cpu.model, cpu.stepping) == ("AuthenticAMD", 25, 1, 1)
    assert cpu.features == {"fpu", "pni", "sse4.1", "abm", "rdtscp", "fxsr-opt"}  # not svm: CPU 1
    assert (cpu.phys_bits, cpu.linear_bits, cpu.microcode) == (48, 48, 0xA0011D1)
    assert "XSAVE layout" in cpu.unknown


@pytest.mark.parametrize(
    "text",
    [
        "",
        CPUINFO.replace("AuthenticAMD", "AMD"),
        CPUINFO.replace(": 25", ": twenty-five"),
        CPUINFO.replace(": 25", ": " + "9" * 5000),
        "flags : fpu\n\n" * 9000,
    ],
)
def test_cpuinfo_that_is_none(text: str) -> None:
    with pytest.raises(InputError):
        read_cpuinfo(text, name="host", where="test")


def fingerprint(**changes: object) -> bytes:
    def entry(leaf: str, **registers: int) -> dict[str, object]:
        bitmaps = [{"register": r, "bitmap": f"{v:#034b}"} for r, v in registers.items()]
        return {"leaf": leaf, "subleaf": "0x0", "flags": 0, "modifiers": bitmaps}

    document = {
        "microcode_version": "0xa0011de",
        "guest_cpu_config": {
            "cpuid_modifiers": [
                entry("0x0", eax=13, ebx=0x68747541, ecx=0x444D4163, edx=0x69746E65),
                entry("0x1", eax=0x00A00F11, ebx=0, ecx=1, edx=1 << 4),
                entry("0x7", eax=0, ebx=0, ecx=0, edx=1 << 29),
            ],
            "msr_modifiers": [{"addr": "0x10a", "bitmap": "0b1"}],
        },
    }
    return json.dumps(document | changes).encode()


def test_firecracker_fingerprint() -> None:
    cpu = read_firecracker(fingerprint(), name="milan", where="test")
    assert (cpu.vendor, cpu.family, cpu.model, cpu.stepping) == ("AuthenticAMD", 25, 1, 1)
    assert cpu.features == {"pni", "tsc", "arch-capabilities", "rdctl-no"}
    assert cpu.microcode == 0xA0011DE
    assert cpu.msrs == {0x10A: 1}


def test_a_template_is_no_cpu() -> None:
    template = fingerprint().replace(b"0b0000", b"0bxxx0")
    with pytest.raises(InputError, match="template"):
        read_firecracker(template, name="t", where="test")


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"[]",
        b"{}",
        b"[" * 100_000,
        fingerprint(microcode_version="1e9"),
        fingerprint(microcode_version="9" * 10_000),
        fingerprint().replace(b'"eax"', b'"rax"'),
        fingerprint().replace(b'"0x7"', b'"-1"'),
    ],
)
def test_no_fingerprint(data: bytes) -> None:
    with pytest.raises(InputError):
        read_firecracker(data, name="t", where="test")


_words = st.sampled_from(["flags", "model", "vendor_id", "cpu family", "AuthenticAMD", "0x", "7"])


@given(st.lists(st.tuples(_words, _words | st.text(max_size=20)), max_size=30))
def test_any_cpuinfo_gives_a_model_or_an_error(pairs: list[tuple[str, str]]) -> None:
    text = "\n".join(f"{key} : {value}" for key, value in pairs)
    try:
        assert read_cpuinfo(text, name="x", where="test").vendor
    except InputError as error:
        assert "test" in str(error)
