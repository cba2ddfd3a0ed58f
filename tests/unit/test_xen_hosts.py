"""What xl and xen-cpuid say is read as meant, and what Xen would refuse is told beforehand."""

import pytest

from isthmus.divergence.finding import Severity
from isthmus.errors import HypervisorError, InputError
from isthmus.hypervisor.rules import rules_of
from isthmus.hypervisor.xen.admission import RELATIONS, admission
from isthmus.hypervisor.xen.host import (
    GuestDomain,
    Host,
    Type,
    guest_from,
    host_from,
    parse_list,
    require_name,
)
from isthmus.hypervisor.xen.runner import runner_of

LIST = """\
Name                                        ID   Mem VCPUs\tState\tTime(s)
Domain-0                                     0   560     1     r-----      16.2
web                                          3    96     1     -b----       3.1
web--migratedaway                            4    96     1     ---ss-       0.7
dead                                         5    96     1     ---sc-       0.7
(null)                                       6    96     1     --p--d       0.0
"""

INFO = """\
host                   : opteron3
virt_caps              : pv hvm hap shadow gnttab-v1
free_memory            : 411
xen_version            : 4.17.5
"""


def policies(
    vendor: str, level: int, xlevel: int, *, platform_info: int = 0, subleaf: int | None = None
) -> str:
    """The output of xen-cpuid -p for a host with no features."""
    words = [vendor[n : n + 4].encode() for n in (0, 8, 4)]
    ebx, ecx, edx = (int.from_bytes(word, "little") for word in words)
    leaves = (
        f"  00000000:ffffffff -> {level:08x}:{ebx:08x}:{ecx:08x}:{edx:08x}\n"
        + (f"  00000007:00000000 -> {subleaf:08x}:{0:08x}:{0:08x}:{0:08x}\n" if subleaf else "")
        + f"  80000000:ffffffff -> {xlevel:08x}:00000000:00000000:00000000\n"
    )
    return "".join(
        f"{kind} policy: 2 leaves, 1 MSRs\n CPUID:\n{leaves}"
        f" MSRs:\n  000000ce -> {platform_info:016x}\n"
        for kind in ("Raw", "Host", "PV Max", "HVM Max", "PV Default", "HVM Default")
    )


def host(
    vendor: str = "AuthenticAMD", *, level: int = 5, xlevel: int = 0x80000001, **more: str
) -> Host:
    info = INFO
    for name, value in more.items():
        info += f"{name} : {value}\n"
    return host_from(f"xen+ssh://{vendor}", info, policies(vendor, level, xlevel))


GUEST = GuestDomain(name="web", number=1, type=Type.PV, vcpus=1, memory_mib=96, disks=0)


def test_the_state_of_each_domain_is_read() -> None:
    listed = parse_list(LIST)
    assert listed["web"].number == 3
    assert not listed["web"].down
    assert listed["web--migratedaway"].suspended
    assert not listed["web--migratedaway"].down
    assert listed["dead"].down == "crashed"
    assert not listed["dead"].suspended
    assert listed["(null) 6"].gone
    assert listed["(null) 6"].paused


VERBOSE = """\
Name                                        ID   Mem VCPUs\tState\tTime(s)   UUID  \
Reason-Code\tSecurity Label
Domain-0                                     0   560     1     r-----     154.2 \
00000000-0000-0000-0000-000000000000        -                -
web                                          5    96     1     ---ss-       1.0 \
4b8b6f7e-3a3c-4cf4-a5c2-ae4e5b0f7d6a        3                -
"""


def test_the_uuid_of_each_domain_is_read() -> None:
    listed = parse_list(VERBOSE)
    assert listed["web"].uuid == "4b8b6f7e-3a3c-4cf4-a5c2-ae4e5b0f7d6a"
    assert listed["web"].suspended


@pytest.mark.parametrize("text", ["", LIST.splitlines()[0], LIST.replace("Domain-0 ", "")[:200]])
def test_a_listing_without_dom0_tells_of_nobody(text: str) -> None:
    with pytest.raises(HypervisorError, match="does not tell of dom0"):
        parse_list(text)


def test_a_host_tells_its_release_and_what_it_offers() -> None:
    told = host()
    assert told.release == (4, 17)
    assert told.maker == "AuthenticAMD"
    assert told.shadow
    assert told.types == (Type.PV, Type.PVH, Type.HVM)
    assert told.offers["PV"].highest("level") == 5
    assert told.free_mib == 411


@pytest.mark.parametrize(
    ("info", "cpuid"), [("", policies("AuthenticAMD", 5, 1)), (INFO, "nothing")]
)
def test_what_is_no_xen_host_is_said_so(info: str, cpuid: str) -> None:
    with pytest.raises(HypervisorError, match="xen:///"):
        host_from("xen:///", info, cpuid)


def test_a_guest_of_libxl_is_read() -> None:
    text = """[{"domid": 7, "config": {"c_info": {"type": "pv", "name": "web", "uuid": "1-2"},
      "b_info": {"max_vcpus": 2, "max_memkb": 98304}, "disks": [{"vdev": "xvda"}]}}]"""
    guest = guest_from(text, "web")
    assert guest == GuestDomain(
        name="web", number=7, type=Type.PV, vcpus=2, memory_mib=96, disks=1, uuid="1-2"
    )


@pytest.mark.parametrize("text", ["", "[]", "{}", '[{"domid": 1, "config": {"c_info": 3}}]', "\0"])
def test_a_broken_listing_is_one_clear_line(text: str) -> None:
    with pytest.raises(HypervisorError, match="web"):
        guest_from(text, "web")


@pytest.mark.parametrize(
    "name", ["", "-x", "a b", "a;reboot", "$(id)", "a'b", "Domain-0", "x" * 300]
)
def test_no_name_comes_near_a_shell_that_is_none(name: str) -> None:
    with pytest.raises(InputError, match="not the name of a guest"):
        require_name(name)


def test_every_rule_has_its_relation_and_quotes_what_xen_says() -> None:
    assert [rule.relation for rule in rules_of("xen")] == list(RELATIONS)
    for rule in rules_of("xen"):
        assert rule.literal in rule.notice


def test_more_leaves_than_the_host_has_are_refused_in_xens_words() -> None:
    amd = host("AuthenticAMD", xlevel=0x8000001A)
    intel = host("GenuineIntel", level=11, xlevel=0x80000008)
    (there,) = admission(GUEST, amd.offers["PV"], amd, intel)
    assert there.severity is Severity.REFUSE
    assert "Failed to set CPUID policy: leaf 80000000" in there.notice
    back, note = admission(GUEST, intel.offers["PV"], intel, amd)
    assert "Failed to set CPUID policy: leaf 00000000" in back.notice
    assert note.severity is Severity.NOTE


def faulting(vendor: str, platform_info: int) -> Host:
    """A host with or without CPUID faulting."""
    return host_from("xen:///", INFO, policies(vendor, 5, 0x80000001, platform_info=platform_info))


def test_cpuid_faulting_is_taken_out_on_the_way_to_amd_and_refused_elsewhere() -> None:
    """Intel's hosts from Ivy Bridge on give it to each PV guest; Xen compares it."""
    born, amd, old = faulting("GenuineIntel", 1 << 31), host(), host("GenuineIntel")
    shown = born.offers["PV"]
    note = admission(GUEST, shown, born, amd)[0]
    assert (note.rule, note.severity) == ("xen-cpuid-faulting-rewritten", Severity.NOTE)
    for there, filtered in ((amd, False), (old, True)):
        refused = admission(GUEST, shown, born, there, filtered=filtered)[0]
        assert refused.rule == "xen-cpuid-faulting"
        assert refused.severity is Severity.REFUSE
        assert "msr 000000ce" in refused.notice
    assert not admission(GUEST, shown, born, born)


def test_more_subleaves_than_the_host_has_are_refused() -> None:
    def with_subleaf(vendor: str, subleaf: int) -> Host:
        return host_from("xen:///", INFO, policies(vendor, 7, 0x80000001, subleaf=subleaf))

    amd, intel = with_subleaf("AuthenticAMD", 2), with_subleaf("GenuineIntel", 1)
    (found,) = admission(GUEST, amd.offers["PV"], amd, intel)
    assert "Failed to set CPUID policy: leaf 00000007, subleaf 00000000" in found.notice
    assert found.severity is Severity.REFUSE
    assert not admission(GUEST, intel.offers["PV"], amd, intel)


def test_without_the_filter_a_guest_born_on_intel_is_refused() -> None:
    amd, intel = host("AuthenticAMD"), host("GenuineIntel")
    (found,) = admission(GUEST, intel.offers["PV"], intel, amd, filtered=False)
    assert found.severity is Severity.REFUSE
    assert "unsupported MCA capabilities" in found.notice
    assert not admission(GUEST, amd.offers["PV"], amd, intel, filtered=False)


def test_a_hypervisor_without_shadow_paging_moves_no_pv_guest() -> None:
    packaged = host(virt_caps="pv hvm hap gnttab-v1")
    (found,) = admission(GUEST, packaged.offers["PV"], packaged, host())
    assert "Failed to enable logdirty" in found.notice
    pvh = GUEST.replace(type=Type.PVH)
    assert not admission(pvh, packaged.offers["HVM"], packaged, host())


def test_a_release_that_takes_no_guest_of_the_other_maker_is_told() -> None:
    amd, intel = host(), host("GenuineIntel", xen_version="4.22.0")
    rules = {finding.rule for finding in admission(GUEST, amd.offers["PV"], amd, intel)}
    assert rules == {"xen-other-maker-removed"}
    older = admission(GUEST, intel.offers["PV"], intel, amd)
    assert "xen-older-release" in {finding.rule for finding in older}


def test_addresses_lead_to_a_program_and_nothing_else() -> None:
    assert runner_of("xen:///").command("xl info")[:2] == ["/bin/sh", "-c"]
    command = runner_of("xen+ssh://root@amd1:2222").command("xl info")
    assert command[0] == "ssh"
    assert command[-4:-1] == ["2222", "--", "root@amd1"]
    assert command[-1].endswith("xl info")


@pytest.mark.parametrize(
    "address",
    ["xen+ssh://", "xen+ssh://-oProxyCommand=x", "xen+ssh://-u@host", "xen://host", "xen+tls://a",
     "xen:///system", "xen+lab://../x", "xen+ssh://a:port", "http://a"],
)  # fmt: skip
def test_what_is_no_address_is_bad_input(address: str) -> None:
    with pytest.raises(InputError, match="not the address of a Xen host"):
        runner_of(address)
