"""A level goes into a domain's XML and nothing else changes, whatever the XML looks like."""

import re
from pathlib import Path

import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st
from lxml import etree

from isthmus.baseline.level import Baseline, level
from isthmus.cli.level import level as command
from isthmus.cpu.named import qemu_models
from isthmus.cpu.readers.libvirt_cpu import read_libvirt
from isthmus.errors import HypervisorError, InputError, RefusedError
from isthmus.hypervisor.libvirt.definitions import apply_to_all, apply_to_domain, apply_to_file
from isthmus.hypervisor.libvirt.domain import read_domain
from isthmus.hypervisor.libvirt.relevel import relevel, same_but_for_level
from isthmus.hypervisor.libvirt.spans import spans
from isthmus.hypervisor.libvirt.virsh import DomainState

ROME, MILAN, ICELAKE = (
    qemu_models()[name].replace(phys_bits=46)
    for name in ("EPYC-Rome", "EPYC-Milan", "Icelake-Server")
)
MIXED, AMD_ONLY = level([MILAN, ICELAKE]), level([ROME, MILAN])

HEAD = """<?xml version='1.0' encoding='utf-8'?>
<!-- kept by the web team: do not touch -->
<domain type="kvm" xmlns:qemu='http://libvirt.org/schemas/domain/qemu/1.0'>
  <name>web</name>
  <metadata><a:x xmlns:a="urn:a" b='1 > 0'><!-- hi --><cpu mode='mine'/></a:x></metadata>
  <os>
    <type arch='x86_64' machine='pc-q35-7.2'>hvm</type>
  </os>
"""
TAIL = """  <clock offset='utc'/>\r
  <devices><graphics type='vnc' passwd='&quot;secret&quot;'/></devices>
  <qemu:commandline><qemu:arg value='-snapshot'/></qemu:commandline>
</domain>
<!-- end -->
"""
CPUS = [
    "",
    "  <cpu mode='host-passthrough' check='none' migratable='on'/>\n",
    """  <cpu mode='host-model'>
    <topology sockets='1' cores='2' threads='1'/>
    <numa><cell id='0' cpus='0-1' memory='4' unit='GiB'/></numa>
  </cpu>
""",
    """  <cpu><!-- as the old host --><model>Nehalem</model><vendor>Intel</vendor><cache
    mode='passthrough'/><maxphysaddr mode='passthrough'/></cpu>
""",
    "  <cpu mode='custom'><model>EPYC</model><cache level='3' mode='emulate'/></cpu>\n",
]
FEATURES = [
    "",
    "  <features/>\n",
    "  <features>\n    <acpi/>\n    <kvm>\n      <hidden state='on'/>\n    </kvm>\n  </features>\n",
    "  <features><acpi/><kvm><pv-ipi state='on'/></kvm><pvspinlock state=\"on\"/></features>\n",
    "  <features>\n    <kvm/><apic/>\n  </features>\n",
]


def outside(xml: str) -> str:
    """The text without what a level may write: the elements <cpu> and <features> of the domain."""
    data = xml.encode()
    parts, at = [], 0
    for span in spans(data, depth=1, where="test"):
        if span.path in {("cpu",), ("features",)}:
            parts.append(data[at : span.start].rstrip(b" \n"))
            at = span.end
    return b"".join([*parts, data[at:]]).decode().replace("\n\n", "\n")


@pytest.mark.parametrize("baseline", [MIXED, AMD_ONLY], ids=["both makers", "one maker"])
@pytest.mark.parametrize("features", FEATURES)
@pytest.mark.parametrize("cpu", CPUS)
def test_the_level_goes_in_and_nothing_else_changes(
    cpu: str, features: str, baseline: Baseline
) -> None:
    before = HEAD + features + cpu + TAIL
    change = relevel(before, baseline, where="web.xml")
    after = change.after
    assert change.changed
    # Everything else is there, byte for byte: quotes, comments, line ends, metadata.
    assert re.sub(r"\n+", "\n", outside(after)) == re.sub(r"\n+", "\n", outside(before))
    assert same_but_for_level(before, after, where="x")
    shown = read_libvirt(after.encode(), name="shown", where="after")
    assert shown.vendor == baseline.model.vendor
    assert shown.features - {"hypervisor"} <= baseline.model.features
    domain = read_domain(after.encode(), where="after")
    if baseline.mixed:
        assert domain.kvm_features["pv-ipi"] == "off"
        assert domain.spinlock == "off"
    elif not features:
        assert "<features>" not in after
    # Twice is once.
    assert not relevel(after, baseline, where="again").changed


def test_of_the_old_cpu_stays_what_is_not_about_its_abilities() -> None:
    after = relevel(HEAD + CPUS[2] + TAIL, MIXED, where="x").after
    assert "<topology sockets='1' cores='2' threads='1'/>" in after
    assert "<cell id='0' cpus='0-1' memory='4' unit='GiB'/>" in after
    gone = relevel(HEAD + CPUS[3] + TAIL, MIXED, where="x")
    assert "<!-- as the old host -->" in gone.after
    assert "<vendor>" not in gone.after and "passthrough" not in gone.after
    assert any("caches" in note for note in gone.notes)
    assert (
        "<cache level='3' mode='emulate'/>"
        in relevel(HEAD + CPUS[4] + TAIL, MIXED, where="x").after
    )


def test_a_steady_tsc_is_not_promised_since_such_a_guest_cannot_move() -> None:
    steady = [host.replace(features=host.features | {"invtsc"}) for host in (ROME, MILAN)]
    after = relevel(HEAD + TAIL, level(steady), where="x").after
    assert "invtsc" not in after
    stated = TAIL.replace(
        "<clock offset='utc'/>", "<clock><timer name='tsc' frequency='2000000000'/></clock>"
    )
    assert "invtsc" in relevel(HEAD + stated, level(steady), where="x").after


def test_other_settings_of_kvm_stay() -> None:
    after = relevel(HEAD + FEATURES[2] + CPUS[1] + TAIL, MIXED, where="x").after
    assert "      <hidden state='on'/>\n      <pv-ipi state='off'/>\n    </kvm>\n" in after
    assert "    <acpi/>\n" in after


def test_the_difference_is_a_unified_diff_of_the_changed_lines_only() -> None:
    change = relevel(HEAD + FEATURES[0] + CPUS[1] + TAIL, AMD_ONLY, where="x")
    removed = [line for line in change.difference().splitlines() if line.startswith("-")]
    assert removed == [
        "--- web.xml (as it is)",
        "-  <cpu mode='host-passthrough' check='none' migratable='on'/>",
    ]
    assert "secret" not in "".join(removed)
    assert any("host's own" in note for note in change.notes)


@pytest.mark.parametrize(
    ("xml", "says"),
    [
        (HEAD.replace('"kvm"', '"xen"') + TAIL, "type xen"),
        (HEAD.replace("x86_64", "aarch64") + TAIL, "aarch64"),
        (HEAD + CPUS[1] + CPUS[1] + TAIL, "2 <cpu>"),
        ("<!DOCTYPE domain [<!ENTITY a 'b'>]>" + HEAD.split("\n", 1)[1] + TAIL, "DOCTYPE"),
        ((HEAD + TAIL).replace("utf-8", "utf-16"), "."),
        (HEAD, "."),
    ],
)
def test_what_cannot_be_levelled_is_refused_in_a_line(xml: str, says: str) -> None:
    with pytest.raises(InputError, match=says):
        relevel(xml, MIXED, where="web.xml")


@given(
    st.permutations(["<a/>", "<b x='>'/>", "<!-- c > d -->", "<cpu mode='host-model'/>"]),
    st.sampled_from(["", "\n", "  ", "\t\n  "]),
)
def test_any_order_and_layout(parts: list[str], space: str) -> None:
    body = space.join(["<name>w</name>", "<os><type arch='x86_64'>hvm</type></os>", *parts])
    before = f"<domain type='qemu'>{space}{body}{space}</domain>"
    after = relevel(before, AMD_ONLY, where="x").after
    start, end = before.index("<cpu"), before.index("/>", before.index("<cpu")) + 2
    assert after.startswith(before[:start]) and after.endswith(before[end:])
    etree.fromstring(after)


@given(st.integers(0, len(HEAD + CPUS[3] + TAIL)), st.text("<>/&'\"cpu! -\x00é", max_size=6),
       st.integers(0, 60))  # fmt: skip
def test_broken_xml_is_refused_in_a_line_or_levelled_right(at: int, junk: str, less: int) -> None:
    whole = HEAD + CPUS[3] + TAIL
    try:
        change = relevel(whole[:at] + junk + whole[at + less :], AMD_ONLY, where="broken")
    except InputError as error:
        assert error.remedy and "\n" not in str(error)
    else:
        assert read_domain(change.after.encode(), where="x").cpu.mode == "custom"


class Stub:
    """A libvirt that keeps one definition, and may be an old one that drops what it likes."""

    def __init__(self, xml: str, drops: str = "", state: DomainState | None = None) -> None:
        self.xml = xml
        self.drops = drops
        self.facts = state or DomainState(active=True, persistent=True, managed_save=False)
        self.defined: list[str] = []

    def state(self, domain: str) -> DomainState:
        return self.facts

    def definition(self, domain: str) -> str:
        return self.xml

    def define(self, xml: str) -> None:
        self.defined.append(xml)
        self.xml = re.sub(self.drops, "", xml) if self.drops else xml

    def put_back(self, path: Path) -> str:
        return f"virsh define {path}"


BEFORE = HEAD + FEATURES[2] + CPUS[1] + TAIL


def test_the_former_definition_is_kept_for_this_user_only(tmp_path: Path) -> None:
    stub = Stub(BEFORE)
    done = apply_to_domain(stub, "web", MIXED, keep=tmp_path / "keep", write=True)
    assert done.written and done.former is not None
    assert done.former.read_bytes().decode() == BEFORE
    assert done.former.stat().st_mode & 0o777 == 0o600
    assert str(done.former) in done.undo
    assert "shutdown and a start" in done.next_step and "reboot" in done.next_step
    again = apply_to_domain(stub, "web", MIXED, keep=tmp_path / "keep", write=True)
    assert not again.written and not again.difference


def test_a_dry_run_shows_and_writes_nothing(tmp_path: Path) -> None:
    stub = Stub(BEFORE)
    done = apply_to_domain(stub, "web", MIXED, keep=tmp_path / "keep", write=False)
    assert "+  <cpu mode='custom'" in done.difference
    assert not done.written and not stub.defined and not (tmp_path / "keep").exists()


@pytest.mark.parametrize("drops", ["<maxphysaddr[^>]*/>", "<graphics[^>]*/>"])
def test_a_libvirt_that_loses_something_gets_the_former_definition_back(
    tmp_path: Path, drops: str
) -> None:
    stub = Stub(BEFORE, drops=drops)
    with pytest.raises(HypervisorError, match="former definition is in force"):
        apply_to_domain(stub, "web", MIXED, keep=tmp_path, write=True)
    assert stub.defined[-1] == BEFORE


def test_a_transient_domain_is_refused_and_a_saved_one_is_told_of(tmp_path: Path) -> None:
    transient = Stub(BEFORE, state=DomainState(active=True, persistent=False, managed_save=False))
    with pytest.raises(RefusedError, match="transient"):
        apply_to_domain(transient, "web", MIXED, keep=tmp_path, write=True)
    saved = Stub(BEFORE, state=DomainState(active=False, persistent=True, managed_save=True))
    done = apply_to_domain(saved, "web", MIXED, keep=tmp_path, write=False)
    assert any("managed save" in note for note in done.notes)


def test_what_fails_for_one_does_not_stop_the_others(tmp_path: Path) -> None:
    good = tmp_path / "good.xml"
    good.write_text(BEFORE)
    outcomes = apply_to_all(
        (str(tmp_path / "none.xml"), str(good)),
        lambda name: apply_to_file(Path(name), MIXED, write=True),
    )
    assert outcomes[0].problem and not outcomes[0].written
    assert outcomes[1].written and not outcomes[1].problem


def test_the_command_levels_files_shows_first_and_can_be_undone(tmp_path: Path) -> None:
    file = tmp_path / "web.xml"
    file.write_bytes(BEFORE.encode())
    hosts = []
    for name, model in (("amd", "EPYC-Milan"), ("intel", "Icelake-Server")):
        path = tmp_path / f"{name}-host.xml"
        path.write_text(f"<cpu><model>{model}</model></cpu>")
        hosts.append(str(path))
    run = CliRunner().invoke
    shown = run(command, [*hosts, "--apply", "--domain", str(file), "--dry-run"])
    assert shown.exit_code in {0, None}, shown.output
    assert "+  <cpu mode='custom' match='exact'" in shown.stdout
    assert file.read_bytes().decode() == BEFORE
    run(command, [*hosts, "--apply", "--domain", str(file)])
    assert file.read_bytes().decode() != BEFORE
    kept = tmp_path / "web.xml.before-level"
    assert kept.read_bytes().decode() == BEFORE
    twice = run(command, [*hosts, "--apply", "--domain", str(file)])
    assert "in it already" in twice.stdout and not (tmp_path / "web.xml.before-level.1").exists()


@pytest.mark.parametrize(
    "words",
    [
        ["EPYC", "--domain", "web"],
        ["EPYC", "--apply"],
        ["EPYC", "--apply", "--all", "--domain", "web"],
        ["EPYC", "--apply", "--all", "--for", "xen"],
        ["EPYC", "--apply", "--domain", "./web.xml", "--connect", "qemu:///system"],
    ],
)
def test_words_that_do_not_fit_together_are_refused(words: list[str]) -> None:
    assert CliRunner().invoke(command, words).exit_code == 2
