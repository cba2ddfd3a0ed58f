"""Masks in any platform's words: applied to every host of a pool, they leave the same bits."""

import json
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from isthmus.baseline.level import level
from isthmus.cpu.model import CpuModel
from isthmus.cpu.named import qemu_models
from isthmus.cpu.registers import DYNAMIC, FEATURESET, Place, feature_registers, word
from isthmus.hypervisor.firecracker.render import template
from isthmus.hypervisor.platforms import RENDERERS, render
from isthmus.hypervisor.vmware.render import evc_modes, masks, nearest_evc
from isthmus.hypervisor.xapi.render import featureset
from isthmus.hypervisor.xen.render import policy

HOSTS = [model for name, model in sorted(qemu_models().items()) if model.vendor]
pools = st.lists(st.sampled_from(HOSTS), min_size=1, max_size=4)


def left(value: int, mask: str, place: Place) -> int:
    """What a mask of 32 characters leaves of a host's register, dynamic bits aside."""
    bits = "".join(
        mine if sign in "x-" else sign for sign, mine in zip(mask, f"{value:032b}", strict=True)
    )
    return int(bits, 2) & ~DYNAMIC.get(place, 0)


def same_everywhere(hosts: list[CpuModel], wanted: CpuModel, place: Place, mask: str) -> None:
    amd = wanted.vendor == "AuthenticAMD"
    expected = word(wanted.features, place, amd=amd) & ~DYNAMIC.get(place, 0)
    for host in hosts:
        seen = left(word(host.features, place, amd=amd), mask, place)
        assert seen == expected, (host.name, place)


@given(pools)
@settings(deadline=None, max_examples=150)
def test_a_firecracker_template_leaves_every_host_the_level(hosts: list[CpuModel]) -> None:
    baseline = level(hosts)
    for leaf in template(baseline)["cpuid_modifiers"]:
        assert re.fullmatch(r"0x[0-9a-f]+", leaf["leaf"])
        assert leaf["flags"] in {0, 1}
        for modifier in leaf["modifiers"]:
            assert re.fullmatch(r"0b[01x]{32}", modifier["bitmap"])
            place = (int(leaf["leaf"], 16), int(leaf["subleaf"], 16), modifier["register"])
            if place in feature_registers():
                same_everywhere(hosts, baseline.model, place, modifier["bitmap"][2:])


@given(pools)
@settings(deadline=None, max_examples=150)
def test_a_xen_policy_leaves_every_host_the_level(hosts: list[CpuModel]) -> None:
    baseline = level(hosts)
    for entry in policy(baseline):
        place, _, words = entry.partition(":")
        leaf, _, subleaf = place.partition(",")
        for item in words.split(","):
            register, _, bits = item.partition("=")
            assert re.fullmatch(r"[01x]{32}", bits)
            where = (int(leaf, 16), int(subleaf or "0", 16), register)
            if where in feature_registers():
                same_everywhere(hosts, baseline.model, where, bits)  # type: ignore[arg-type]


@given(pools)
@settings(deadline=None, max_examples=150)
def test_a_xen_policy_names_no_subleaf_that_a_host_lacks(hosts: list[CpuModel]) -> None:
    """Xen starts no guest then ("Missing leaf"); what is not named is beyond what is shown."""

    def deepest(model: CpuModel) -> int:
        amd = model.vendor == "AuthenticAMD"
        sevens = [place for place in feature_registers() if place[0] == 7]
        return max((at[1] for at in sevens if word(model.features, at, amd=amd)), default=0)

    baseline = level(hosts)
    entries = [entry for entry in policy(baseline) if entry.startswith("0x7,")]
    for entry in entries:
        subleaf = int(entry.partition(",")[2].partition(":")[0], 16)
        assert subleaf <= min(map(deepest, hosts))
    if entries:
        assert entries[0].startswith(f"0x7,0x0:eax={deepest(baseline.model):032b},")


@given(pools)
@settings(deadline=None, max_examples=150)
def test_vmware_masks_leave_every_host_the_level(hosts: list[CpuModel]) -> None:
    baseline = level(hosts)
    for line in masks(baseline):
        found = re.fullmatch(
            r'cpuid\.([0-9a-f]+)\.(e[abcd]x)(\.amd)? = "((?:[01-]{4}:){7}[01-]{4})"', line
        )
        assert found, line
        place = (int(found[1], 16), 0, found[2])
        if place not in feature_registers():
            continue
        amd = found[3] is not None
        expected = word(baseline.model.features, place, amd=amd)  # type: ignore[arg-type]
        for host in hosts:
            if (host.vendor == "AuthenticAMD") == amd:
                seen = left(
                    word(host.features, place, amd=amd),  # type: ignore[arg-type]
                    found[4].replace(":", ""),
                    place,  # type: ignore[arg-type]
                )
                assert seen == expected & ~DYNAMIC.get(place, 0)  # type: ignore[call-overload]


@given(pools)
@settings(deadline=None, max_examples=100)
def test_an_evc_mode_is_never_above_the_level(hosts: list[CpuModel]) -> None:
    baseline = level(hosts)
    for vendor in baseline.vendors:
        best = nearest_evc(baseline, vendor)
        if best is not None:
            assert evc_modes()[best[0]][1] <= baseline.model.features


@given(pools)
@settings(deadline=None, max_examples=100)
def test_a_featureset_names_every_feature_of_its_words(hosts: list[CpuModel]) -> None:
    baseline = level(hosts)
    words = featureset(baseline).split("-")
    assert len(words) == len(FEATURESET)
    for place, text in zip(FEATURESET, words, strict=True):
        amd = baseline.model.vendor == "AuthenticAMD"
        assert int(text, 16) == word(baseline.model.features, place, amd=amd)


MIXED_MAKERS = {"qemu", "libvirt", "proxmox", "xen"}


@given(pools)
@settings(deadline=None, max_examples=100)
def test_a_platform_refuses_mixed_makers_unless_it_can_show_one_vendor(
    hosts: list[CpuModel],
) -> None:
    baseline = level(hosts)
    for platform in RENDERERS:
        rendering = render(baseline, platform, "a pool; with: odd, name")
        assert rendering.files
        refused = any("cannot serve a pool of" in reason for reason in rendering.refusals)
        assert refused == (baseline.mixed and platform not in MIXED_MAKERS)


# Proxmox VE, PVE::QemuServer::CPUConfig: the grammar of a flag list and of a section's name.
@given(pools)
@settings(deadline=None, max_examples=100)
def test_a_proxmox_section_keeps_to_its_grammar(hosts: list[CpuModel]) -> None:
    text = render(level(hosts), "proxmox", "Pool of hosts, No. 1").files[0].text
    head, *rest = text.splitlines()
    assert re.fullmatch(r"cpu-model: [a-z0-9-]+", head)
    settings_of = dict(line.split(maxsplit=1) for line in rest)
    assert settings_of.keys() <= {"reported-model", "flags", "phys-bits"}
    flag = r"[+-][a-zA-Z0-9\-_.]+"
    assert re.fullmatch(rf"{flag}(;{flag})*", settings_of.get("flags", "+x"))


@pytest.mark.parametrize("platform", ["kubevirt", "firecracker"])
def test_documents_are_json(platform: str) -> None:
    for file in render(level(HOSTS[:2]), platform, "x").files:
        assert isinstance(json.loads(file.text), dict)


def test_an_ovirt_entry_has_the_five_fields_of_its_list() -> None:
    baseline = level([qemu_models()["EPYC"], qemu_models()["EPYC-Rome"]])
    entry = render(baseline, "ovirt", "a:b;c,d").files[0].text.strip()
    number, _, flags, model, architecture = entry.split(":")
    assert number.isdecimal()
    assert ";" not in entry
    assert flags.split(",")[0] == "nx"
    assert model.split(",")[0] in qemu_models()
    assert architecture == "x86_64"
