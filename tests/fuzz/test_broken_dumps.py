"""Broken dumps: every reader gives a model or one clear line, never a traceback, in bounded memory.

Hypothesis mutates a good document of each format. A few hundred of them are tried in every run,
100,000 of each format under ``script/test --slow`` (or ``-m slow tests/fuzz``).
"""

import json
import resource
from collections.abc import Mapping
from functools import cache

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from isthmus.cpu.fingerprint import Core, Fingerprint
from isthmus.cpu.model import CpuidLeaf, CpuModel
from isthmus.cpu.named import qemu_models
from isthmus.cpu.readers.recognise import recognise
from isthmus.cpu.registers import FEATURESET, signature, vendor_words, word
from isthmus.errors import InputError
from isthmus.values import to_json

MODEL = qemu_models()["EPYC-Milan"]


def leaves() -> tuple[CpuidLeaf, ...]:
    """A small dump of a model's CPU."""
    registers: dict[tuple[int, int], dict[str, int]] = {
        (0, 0): {"eax": 0xD, **vendor_words(MODEL.vendor)},
        (0x80000000, 0): {"eax": 0x8000001E},
        (0x80000008, 0): {"eax": 0x3030},
        (0xD, 0): {"eax": 7, "ebx": 832, "ecx": 832},
        (0xD, 2): {"eax": 256, "ebx": 576},
    }
    for leaf, subleaf, register in FEATURESET:
        value = word(MODEL.features, (leaf, subleaf, register), amd=True)
        registers.setdefault((leaf, subleaf), {})[register] = value
    registers[1, 0]["eax"] = signature(MODEL.family, MODEL.model, MODEL.stepping)
    zero = {"eax": 0, "ebx": 0, "ecx": 0, "edx": 0}
    return tuple(
        CpuidLeaf(leaf=leaf, subleaf=subleaf, **(zero | words))
        for (leaf, subleaf), words in sorted(registers.items())
    )


def bits(value: int) -> str:
    return ":".join(f"{value:032b}"[start : start + 4] for start in range(0, 32, 4))


@cache
def documents() -> Mapping[str, bytes]:
    """A good document of each format."""
    dump = leaves()
    cpuid_r = "CPU 0:\n" + "".join(
        f"   {x.leaf:#010x} {x.subleaf:#04x}: eax={x.eax:#010x} ebx={x.ebx:#010x} "
        f"ecx={x.ecx:#010x} edx={x.edx:#010x}\n"
        for x in dump
    )
    instlat = "------[ Logical CPU #0 ]------\n" + "".join(
        f"CPUID {x.leaf:08X}: {x.eax:08X}-{x.ebx:08X}-{x.ecx:08X}-{x.edx:08X} "
        f"[SL {x.subleaf:02X}]\n"
        for x in dump
    )
    libcpuid = "".join(
        f"{'ext_cpuid' if x.leaf >> 31 else 'basic_cpuid'}[{x.leaf & 0xFFFF}]="
        f"{x.eax:08x} {x.ebx:08x} {x.ecx:08x} {x.edx:08x}\n"
        for x in dump
        if not x.subleaf
    )
    cpudata = "<cpudata arch='x86'>" + "".join(
        f"<cpuid eax_in='{x.leaf:#x}' ecx_in='{x.subleaf:#x}' eax='{x.eax:#x}' ebx='{x.ebx:#x}' "
        f"ecx='{x.ecx:#x}' edx='{x.edx:#x}'/>"
        for x in dump
    )
    policy = "Host policy: 9 leaves, 1 MSRs\n CPUID:\n" + "".join(
        f"  {x.leaf:08x}:{x.subleaf:08x} -> {x.eax:08x}:{x.ebx:08x}:{x.ecx:08x}:{x.edx:08x}\n"
        for x in dump
    )
    words = ":".join(f"{word(MODEL.features, place, amd=True):08x}" for place in FEATURESET)
    props = dict.fromkeys(MODEL.features, True) | {
        "vendor": MODEL.vendor, "family": 25, "model": 1, "stepping": 1, "level": 13,
        "xlevel": 0x8000001E, "model-id": "x", "phys-bits": 40,
    }  # fmt: skip
    modifiers = [
        {
            "leaf": hex(x.leaf), "subleaf": hex(x.subleaf), "flags": 0,
            "modifiers": [
                {"register": register, "bitmap": f"0b{getattr(x, register):032b}"}
                for register in ("eax", "ebx", "ecx", "edx")
            ],
        }
        for x in dump
    ]  # fmt: skip
    firecracker = {
        "firecracker_version": "1.9.0", "kernel_version": "6.1", "microcode_version": "0xa0011d1",
        "bios_version": "1", "bios_revision": "1",
        "guest_cpu_config": {
            "cpuid_modifiers": modifiers,
            "msr_modifiers": [{"addr": "0x10a", "bitmap": f"0b{5:064b}"}],
        },
    }  # fmt: skip
    vmware = {
        "config": {
            "featureCapability": [
                {"key": "cpuid.AVX2", "value": "1"}, {"key": "cpuid.AMD", "value": "1"},
                {"key": "cpuid.FAMILY", "value": "25"},
            ]
        },
        "hardware": {
            "cpuFeature": [
                {"level": x.leaf, **{r: bits(getattr(x, r)) for r in ("eax", "ebx", "ecx", "edx")}}
                for x in dump
                if not x.subleaf
            ]
        },
    }  # fmt: skip
    core = Core(cpus=(0, 1), leaves=dump, msrs={0x10A: 5})
    cpuinfo = (
        "processor\t: 0\nvendor_id\t: AuthenticAMD\ncpu family\t: 25\nmodel\t\t: 1\n"
        "model name\t: AMD EPYC 7B13\nstepping\t: 1\nmicrocode\t: 0xa0011d1\ncpuid level\t: 13\n"
        "flags\t\t: fpu vme de pse tsc msr sse4a avx2\n"
        "address sizes\t: 48 bits physical, 48 bits virtual\n\n"
    )
    libvirt = (
        "<capabilities><host><cpu><arch>x86_64</arch><model>EPYC-Rome</model><vendor>AMD</vendor>"
        "<microcode version='1'/><signature family='23' model='49' stepping='0'/>"
        "<counter name='tsc' frequency='2250000000'/><maxphysaddr mode='emulate' bits='48'/>"
        "<feature name='ht' policy='require'/></cpu></host></capabilities>"
    )
    return {
        "cpuid -r": cpuid_r.encode(),
        "InstLatx64": instlat.encode(),
        "libcpuid": libcpuid.encode(),
        "cpudata": cpudata.encode() + b"<msr index='0x10a' edx='0x0' eax='0x5'/></cpudata>",
        "libvirt": libvirt.encode(),
        "xen-cpuid -p": policy.encode() + b" MSRs:\n  0000010a -> 0000000000000001\n",
        "xl info": f"host : a\nhw_caps                : {words}\n".encode(),
        "QEMU": json.dumps({"return": {"model": {"name": "x", "props": props}}}).encode(),
        "Firecracker": json.dumps(firecracker).encode(),
        "vCenter": json.dumps(vmware).encode(),
        "fingerprint": to_json(Fingerprint(host="h", cores=(core,))),
        "CpuModel": to_json(MODEL),
        "/proc/cpuinfo": cpuinfo.encode() * 2,
    }


FORMATS = list(documents())

# What breaks parsers: signs, huge numbers, brackets, quotes, controls, entities, long repeats.
PIECES = st.one_of(
    st.sampled_from(
        [
            b"\0", b"\xff\xfe", b"-", b"0x", b"1e999", b"9" * 40, b"\n\n", b"<", b">", b"&lt;",
            b"<!DOCTYPE a [<!ENTITY b SYSTEM 'file:///etc/passwd'>]>", b"&b;", b'"', b"'", b"{",
            b"}", b"[" * 200, b"]", b":", b"=", b"null", b"true", b"[]", b"{}", b"ffffffff",
            b"80000000", b"CPU 1:\n", b"</cpu>", b"\xe2\x80\xa8", b"a" * 500, b"0b" + b"x" * 32,
        ]
    ),
    st.binary(max_size=8),
)  # fmt: skip
EDITS = st.lists(
    st.tuples(
        st.integers(0, 1 << 16),
        st.integers(0, 64),
        PIECES,
        st.sampled_from(["replace", "repeat", "cut"]),
    ),
    min_size=1,
    max_size=6,
)


def edited(document: bytes, edits: list[tuple[int, int, bytes, str]]) -> bytes:
    """The document with pieces replaced, stretches repeated or the rest cut off."""
    for place, length, piece, how in edits:
        at = place % (len(document) + 1)
        if how == "replace":
            document = document[:at] + piece + document[at + length :]
        elif how == "repeat":
            document = document[: at + length] + document[at : at + length] * 3 + document[at:]
        else:
            document = document[:at]
    return document


def try_one(document: bytes) -> None:
    """Read it: a model, or one clear line that names the file."""
    try:
        cpu = recognise(document, name="x", where="the-file", every=True)
    except InputError as error:
        assert error.message.startswith("the-file: ")
        assert len(error.message) < 2000
        assert error.remedy
        return
    assert isinstance(cpu, CpuModel)
    assert len(to_json(cpu)) < 20 * len(document) + 100_000


def fuzz(name: str, examples: int) -> None:
    @settings(
        max_examples=examples,
        deadline=None,
        database=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(EDITS)
    def run(edits: list[tuple[int, int, bytes, str]]) -> None:
        try_one(edited(documents()[name], edits))

    run()


@pytest.mark.parametrize("name", FORMATS)
def test_the_good_document_is_read(name: str) -> None:
    cpu = recognise(documents()[name], name="x", where="x")
    assert cpu.vendor == "AuthenticAMD"
    assert "avx2" in cpu.features


@pytest.mark.parametrize("name", FORMATS)
def test_a_few_hundred_broken_ones(name: str) -> None:
    fuzz(name, 300)


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("name", FORMATS)
def test_a_hundred_thousand_broken_ones(name: str) -> None:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    fuzz(name, 100_000)
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert grown < 400 * 1024, f"{grown} KiB more than before"


@pytest.mark.parametrize(
    "document",
    [
        b"[" * 100_000,
        b"<a>" * 100_000,
        b"{" + b'"a":{' * 50_000,
        b"CPU 0:\n" * 20_000,
        b"processor\t: 0\nvendor_id\t: x\nflags\t: a\n\n" * 9000,
        b"<!DOCTYPE l [<!ENTITY a 'a'>" + b"<!ENTITY b '&a;&a;&a;&a;&a;&a;&a;&a;'>" * 9
        + b"]><cpu><model>&b;</model></cpu>",
    ],
    ids=["lists", "elements", "objects", "headings", "processors", "laughs"],
)  # fmt: skip
def test_bombs_are_refused(document: bytes) -> None:
    with pytest.raises(InputError):
        recognise(document, name="x", where="the-file", every=True)


@pytest.mark.parametrize(
    ("name", "old", "new"),
    [
        ("libvirt", b"</cpu>", b"<" + b"a" * 3000 + b"></cpu>"),
        ("QEMU", b'"stepping"', b'"steppin"'),
        ("fingerprint", b'"ebx":0', b'"ebx":99999999999'),
    ],
)
def test_what_fuzzing_found(name: str, old: bytes, new: bytes) -> None:
    document = documents()[name]
    assert old in document
    try_one(document.replace(old, new))
