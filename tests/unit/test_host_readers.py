"""Readers of what hypervisors say of their hosts (libvirt, Xen, vCenter), and of this machine."""

import json
import shutil
import subprocess
from pathlib import Path

import pytest

from isthmus.cli.cpu import compared, surroundings
from isthmus.cpu.features import FEATURES
from isthmus.cpu.fingerprint import Core, Fingerprint, cpu_of, kinds, take
from isthmus.cpu.model import CpuidLeaf
from isthmus.cpu.named import libvirt_models, qemu_models
from isthmus.cpu.probe import LogicalCpu, leaves, this_machine
from isthmus.cpu.readers.cpuinfo import read_cpuinfo
from isthmus.cpu.readers.recognise import read_host, recognise
from isthmus.cpu.registers import FEATURESET, signature, vendor_words, word
from isthmus.errors import InputError
from isthmus.values import from_json, to_json

CAPABILITIES = b"""<capabilities><host><cpu>
  <arch>x86_64</arch><model>EPYC-Rome</model><vendor>AMD</vendor>
  <microcode version='137363509'/>
  <signature family='23' model='49' stepping='0'/>
  <counter name='tsc' frequency='2250000000' scaling='no'/>
  <maxphysaddr mode='emulate' bits='48'/>
  <feature name='ht'/><feature name='of_tomorrow'/>
</cpu></host></capabilities>"""


def read(data: bytes) -> object:
    return recognise(data, name="x", where="x")


def test_a_host_as_libvirt_tells_it() -> None:
    cpu = recognise(CAPABILITIES, name="rome", where="caps.xml")
    assert (cpu.vendor, cpu.family, cpu.model, cpu.stepping) == ("AuthenticAMD", 23, 49, 0)
    assert cpu.features == libvirt_models()["EPYC-Rome"].features | {"ht"}
    assert (cpu.phys_bits, cpu.tsc_khz, cpu.microcode) == (48, 2250000, 137363509)
    assert any("of_tomorrow" in fact for fact in cpu.unknown)


def test_what_a_domain_is_shown_and_what_it_may_be_shown() -> None:
    domain = b"""<domain><name>g</name><cpu mode='custom'>
      <model vendor_id='GenuineIntel'>EPYC</model>
      <feature policy='disable' name='sse4a'/><feature policy='require' name='pcid'/>
      </cpu></domain>"""
    cpu = recognise(domain, name="g", where="g.xml")
    assert cpu.vendor == "GenuineIntel"
    assert "sse4a" not in cpu.features
    assert "pcid" in cpu.features
    capabilities = b"""<domainCapabilities><cpu><mode name='host-model' supported='yes'>
      <model>Penryn</model><vendor>Intel</vendor><feature policy='disable' name='ssse3'/>
      </mode></cpu></domainCapabilities>"""
    assert "ssse3" not in recognise(capabilities, name="h", where="h.xml").features


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"<cpu mode='host-passthrough'/>", "no model in its CPU"),
        (b"<cpu><model>Zen9</model></cpu>", "'Zen9' is not in libvirt's map"),
        (b"<capabilities><host/></capabilities>", "no CPU with a model"),
        (b"<domain><cpu><model>EPYC</model>", "x: "),
        (CAPABILITIES.replace(b"'23'", b"'many'"), "'many' is no number"),
        (b'<!DOCTYPE a [<!ENTITY b "c">]><cpu><model>&b;</model></cpu>', "x: "),
    ],
)
def test_broken_documents_of_libvirt_are_told(text: bytes, message: str) -> None:
    with pytest.raises(InputError, match=message):
        recognise(text, name="x", where="x")


def xen_policy(name: str) -> str:
    """What ``xen-cpuid -p`` prints of a host with a QEMU model's CPU."""
    model = qemu_models()[name]
    words = vendor_words(model.vendor)
    amd = model.vendor == "AuthenticAMD"
    lines = ["Xen reports there are maximum 59 leaves and 2 MSRs", "Raw policy: 1 leaves, 0 MSRs"]
    lines += [" CPUID:", "  00000000:ffffffff -> 00000001:00000000:00000000:00000000"]
    lines += ["Host policy: 9 leaves, 1 MSRs", " CPUID:", "  leaf     subleaf  -> eax ..."]

    def put(leaf: int, subleaf: int, **registers: int) -> None:
        values = [registers.get(register, 0) for register in ("eax", "ebx", "ecx", "edx")]
        place = f"{leaf:08x}:{subleaf if leaf in {7, 0xD} else 0xFFFFFFFF:08x}"
        lines.append(f"  {place} -> " + ":".join(f"{value:08x}" for value in values))

    put(0, 0, eax=model.level, **words)
    numbers = signature(model.family, model.model, model.stepping)
    for leaf, subleaf in sorted({(leaf, subleaf) for leaf, subleaf, _ in FEATURESET}):
        registers = {
            register: word(model.features, (number, sub, register), amd=amd)
            for number, sub, register in FEATURESET
            if (number, sub) == (leaf, subleaf)
        }
        if (leaf, subleaf) == (1, 0):
            registers["eax"] = numbers
        if (leaf, subleaf) == (0x80000001, 0):
            put(0x80000000, 0, eax=model.xlevel)
        put(leaf, subleaf, **registers)
    lines += [" MSRs:", "  index    -> value", "  0000010a -> 0000000000000001"]
    return "\n".join(lines)


@pytest.mark.parametrize("name", ["EPYC-Milan", "Nehalem", "Skylake-Server"])
def test_the_host_policy_of_xen(name: str) -> None:
    model = qemu_models()[name]
    cpu = recognise(xen_policy(name).encode(), name="x", where="x")
    assert (cpu.vendor, cpu.family, cpu.model) == (model.vendor, model.family, model.model)
    known = {place[:2] for place in FEATURESET}
    told = {n for n in model.features if (FEATURES[n].leaf, FEATURES[n].subleaf or 0) in known}
    assert cpu.features - {"rdctl-no"} == told
    assert cpu.msrs == {0x10A: 1}


def test_xl_info_tells_features_and_says_what_it_cannot() -> None:
    model = qemu_models()["EPYC"]
    words = ":".join(f"{word(model.features, place, amd=True):08x}" for place in FEATURESET[:8])
    text = f"host                   : dom0\nhw_caps                : {words}\n"
    cpu = recognise(text.encode(), name="x", where="x")
    assert {"sse4a", "avx2", "svm"} <= cpu.features
    assert cpu.vendor == "AuthenticAMD"
    assert "family, model and stepping" in cpu.unknown


def groups(value: int) -> str:
    bits = f"{value:032b}"
    return ":".join(bits[start : start + 4] for start in range(0, 32, 4))


def test_a_host_as_vcenter_tells_it() -> None:
    words = vendor_words("GenuineIntel")
    document = {
        "config": {
            "featureCapability": [
                {"key": "cpuid.AVX2", "featureName": "cpuid.AVX2", "value": "1"},
                {"key": "cpuid.AVX512F", "featureName": "cpuid.AVX512F", "value": "0"},
                {"key": "cpuid.Intel", "value": "1"},
                {"key": "cpuid.FAMILY", "value": "6"},
                {"key": "hv.capable", "value": "1"},
            ]
        },
        "hardware": {
            "cpuFeature": [
                {"level": 0, "eax": groups(0x16), **{r: groups(v) for r, v in words.items()}},
                {
                    "level": 1, "eax": groups(0x50654), "ebx": groups(0),
                    "ecx": groups(1 << 20), "edx": groups(1),
                },
            ]
        },
    }  # fmt: skip
    cpu = recognise(json.dumps(document).encode(), name="esx", where="esx.json")
    assert (cpu.vendor, cpu.family, cpu.model, cpu.stepping) == ("GenuineIntel", 6, 0x55, 4)
    assert {"avx2", "sse4.2", "fpu"} <= cpu.features
    assert "avx512f" not in cpu.features
    only = document["config"]["featureCapability"]
    assert recognise(json.dumps(only).encode(), name="esx", where="e").vendor == "GenuineIntel"


@pytest.mark.parametrize(
    ("document", "message"),
    [
        ([{"key": "cpuid.AVX", "value": "1"}], "no vendor"),
        ([{"key": "cpuid.AVX", "value": {}}, {"key": "cpuid.AMD", "value": 1}], "no number"),
        ([{"level": 0, "eax": "x" * 32, "ebx": "", "ecx": "", "edx": ""}], "has not 32 bits"),
        ([{"level": 1 << 40, "eax": "", "ebx": "", "ecx": "", "edx": ""}], "is no CPUID leaf"),
    ],
)
def test_broken_documents_of_vcenter_are_told(document: object, message: str) -> None:
    with pytest.raises(InputError, match=message):
        recognise(json.dumps(document).encode(), name="x", where="x")


def test_this_machine_has_what_its_kernel_tells() -> None:
    """The kernel's own list is the independent witness."""
    cpu = this_machine()
    told = read_cpuinfo(Path("/proc/cpuinfo").read_text(), name="x", where="x")
    assert (cpu.vendor, cpu.family, cpu.model, cpu.stepping) == (
        told.vendor, told.family, told.model, told.stepping,
    )  # fmt: skip
    assert (cpu.phys_bits, cpu.linear_bits) == (told.phys_bits, told.linear_bits)
    # What Linux announces by itself, whatever CPUID says (cpufeatures.h: synthetic words).
    own = {"ibpb", "ibrs", "stibp", "ssbd", "amd-stibp", "amd-ssbd", "spec-ctrl", "virt-ssbd"}
    assert told.features - own <= cpu.features


def test_every_leaf_of_this_machine_agrees_with_the_program_cpuid() -> None:
    if shutil.which("cpuid") is None:
        pytest.skip("no program cpuid here")
    done = subprocess.run(["cpuid", "-r", "-1"], capture_output=True, text=True, check=True)
    theirs = recognise(done.stdout.encode(), name="x", where="x")
    ours = this_machine()
    assert ours.features == theirs.features
    assert (ours.level, ours.xlevel, ours.xcr0) == (theirs.level, theirs.xlevel, theirs.xcr0)
    assert ours.xsave == theirs.xsave


def test_subleaves_end_where_each_kind_of_leaf_ends() -> None:
    def execute(leaf: int, subleaf: int) -> CpuidLeaf:
        eax = {0: 0xD, 0x80000000: 0x80000001, 7: 2}.get(leaf, 0)
        if leaf == 4 and subleaf < 3:
            eax = 1
        if leaf == 0xD and subleaf in {2, 9}:
            eax = 64
        ecx = 0x100 if leaf == 0xB and subleaf < 2 else 0
        return CpuidLeaf(leaf=leaf, subleaf=subleaf, eax=eax, ebx=0, ecx=ecx, edx=0)

    places = [(leaf.leaf, leaf.subleaf) for leaf in leaves(execute)]
    assert [s for n, s in places if n == 4] == [0, 1, 2, 3]
    assert [s for n, s in places if n == 7] == [0, 1, 2]
    assert [s for n, s in places if n == 0xB] == [0, 1, 2]
    assert [s for n, s in places if n == 0xD] == [0, 1, 2, 9]
    assert (0x80000001, 0) in places
    assert not any(0x40000000 <= n < 0x80000000 or n >= 0xC0000000 for n, _ in places)


def logical(number: int, ecx: int) -> LogicalCpu:
    words = vendor_words("GenuineIntel")
    leaves = (
        CpuidLeaf(leaf=0, subleaf=0, eax=1, **words),
        CpuidLeaf(leaf=1, subleaf=0, eax=0x90672, ebx=number << 24, ecx=ecx, edx=1),
    )
    return LogicalCpu(number=number, leaves=leaves, msrs={})


def test_a_hybrid_cpu_has_what_all_kinds_of_cores_have() -> None:
    cpus = (logical(0, 1 << 28 | 1), logical(1, 1 << 28 | 1), logical(2, 1))
    cores = kinds(cpus)
    assert [core.cpus for core in cores] == [(0, 1), (2,)]
    cpu = cpu_of(Fingerprint(host="h", cores=cores), "h", "h")
    assert "pni" in cpu.features
    assert "avx" not in cpu.features
    assert any(fact.startswith("unlike cores: without avx") for fact in cpu.unknown)


def test_a_dump_of_unlike_cores_gives_a_host_what_all_have(tmp_path: Path) -> None:
    text = "\n".join(
        f"CPU {cpu.number}:\n"
        + "\n".join(
            f"   {leaf.leaf:#010x} 0x00: eax={leaf.eax:#010x} ebx={leaf.ebx:#010x} "
            f"ecx={leaf.ecx:#010x} edx={leaf.edx:#010x}"
            for leaf in cpu.leaves
        )
        for cpu in (logical(0, 1 << 28 | 1), logical(1, 1))
    )
    file = tmp_path / "dump.txt"
    file.write_text(text)
    assert "avx" not in read_host(file).features
    assert "avx" in recognise(text.encode(), name="x", where="x").features


def test_a_fingerprint_survives_its_file_and_tells_drift(tmp_path: Path) -> None:
    before = take()
    assert from_json(to_json(before), Fingerprint) == before
    cpu = recognise(to_json(before), name="here", where="here")
    assert cpu.features - {"osxsave"} == this_machine().features - {"osxsave"}
    assert compared(cpu, cpu, "a", "b").any is False
    after = before.replace(kernel="6.99", vulnerabilities={**before.vulnerabilities, "new": "bad"})
    changed = surroundings(before, after)
    assert changed["kernel"][1] == "6.99"
    assert changed["vulnerability new"] == ("not named", "bad")
    rrsba = cpu.replace(features=cpu.features | {"rrsba"})
    assert compared(cpu, rrsba, "a", "b").gained == ("rrsba",)


def test_a_fingerprint_without_a_core_is_told() -> None:
    empty = to_json(Fingerprint(host="h", cores=(Core(cpus=(0,), leaves=(), msrs={}),)))
    with pytest.raises(InputError, match="no CPUID leaf 0"):
        recognise(empty, name="x", where="x")
    with pytest.raises(InputError, match="no core in it"):
        recognise(to_json(Fingerprint(host="h", cores=())), name="x", where="x")
