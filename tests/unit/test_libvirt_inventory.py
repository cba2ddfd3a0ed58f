"""Libvirt's hosts by their URIs: with libvirt's own test driver, and with a virsh of our own."""

import json
import shutil
import stat
from pathlib import Path

import pytest
from click.testing import CliRunner

from isthmus.cli.hosts import is_file, is_uri, read_hosts
from isthmus.cli.inventory import inventory
from isthmus.errors import EnvironmentLackError, HypervisorError, InputError
from isthmus.hypervisor.libvirt.virsh import Virsh
from isthmus.migration.vigil_libvirt import read_event, run_state
from isthmus.migration.watching import Sign

needs_virsh = pytest.mark.skipif(not shutil.which("virsh"), reason="no virsh here")

FAKE = """#!/bin/sh
# A virsh with two domains, of which one is damaged.
while [ "${1#--}" != "$1" ]; do [ "$1" = --connect ] && shift; shift; done
case "$*" in
    capabilities) cat "$HERE/capabilities" ;;
    domcapabilities*) cat "$HERE/domcapabilities" ;;
    "list --all --name") printf 'web\\nbroken\\n\\n' ;;
    dominfo*) printf 'Id:             3\\nPersistent:     yes\\nManaged save:   no\\n' ;;
    dumpxml*broken*) echo '<domain>' ;;
    dumpxml*) cat "$HERE/domain" ;;
    *) echo "error: unknown $*" >&2; exit 1 ;;
esac
"""
CAPABILITIES = """<capabilities><host><uuid>a</uuid></host><guest><arch name='x86_64'>
<emulator>/usr/bin/qemu</emulator><machine>pc-q35-7.2</machine><domain type='kvm'/></arch></guest>
</capabilities>"""
SHOWN = """<domainCapabilities><domain>kvm</domain><cpu><mode name='host-model' supported='yes'>
<model>{model}</model></mode><mode name='custom' supported='yes'><model usable='yes'>{model}</model>
</mode></cpu></domainCapabilities>"""
DOMAIN = """<domain type='kvm'><name>web</name><memory>65536</memory><os><type arch='x86_64'
machine='pc-q35-7.2'>hvm</type></os><cpu mode='host-passthrough'/><devices><disk type='file'>
<source file='/var/web.img'/><target dev='vda'/></disk></devices></domain>"""


@pytest.fixture
def fake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A program virsh on PATH that answers from files."""
    program = tmp_path / "virsh"
    program.write_text(FAKE)
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    (tmp_path / "capabilities").write_text(CAPABILITIES)
    (tmp_path / "domcapabilities").write_text(SHOWN.format(model="EPYC"))
    (tmp_path / "domain").write_text(DOMAIN)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    monkeypatch.setenv("HERE", str(tmp_path))
    return tmp_path


def test_a_uri_is_told_from_a_file_and_a_model() -> None:
    assert is_uri("qemu+ssh://root@amd1/system") and is_uri("qemu:///system")
    assert not is_uri("EPYC") and not is_uri("./a.xml") and not is_uri("://x")
    assert not is_file("qemu+ssh://amd.example/system")


def test_an_inventory_goes_on_where_a_domain_cannot_be_read(fake: Path) -> None:
    done = CliRunner().invoke(inventory, ["qemu+ssh://amd1/system", "--json"])
    answer = json.loads(done.stdout)
    (one,) = answer["inventories"]
    assert one["host"]["name"] == "amd1"
    assert one["host"]["cpu"]["vendor"] == "AuthenticAMD"
    assert [resident["defined"]["name"] for resident in one["domains"]] == ["web"]
    assert one["domains"][0]["running"] is not None
    assert "broken" in one["problems"][0]


def test_what_stands_in_the_way_of_each_domain_is_told(fake: Path) -> None:
    run = CliRunner().invoke
    words = ["qemu+ssh://amd1/system", "--to", "qemu+ssh://amd2/system"]
    done = run(inventory, words, standalone_mode=False)
    assert done.return_value == 3
    assert "libvirt-same-host" in done.stdout, "both answer with one UUID here"
    assert "libvirt-storage-local" in done.stdout
    copied = run(inventory, [*words, "--shared", "/var"], standalone_mode=False)
    assert "libvirt-storage-local" not in copied.stdout


def test_a_uri_is_a_host_wherever_one_is_named(fake: Path) -> None:
    (cpu,) = read_hosts(["qemu+ssh://amd1/system"])
    assert cpu.name == "amd1" and "sse4a" in cpu.features


def test_a_host_of_emulated_domains_is_asked_for_those(fake: Path) -> None:
    (fake / "domain").write_text(DOMAIN.replace("'kvm'", "'qemu'"))
    program = (fake / "virsh").read_text()
    (fake / "virsh").write_text(program.replace("web\\nbroken", "web"))
    (fake / "virsh").write_text(
        (fake / "virsh")
        .read_text()
        .replace("domcapabilities*)", '"domcapabilities --virttype qemu")')
    )
    (cpu,) = read_hosts(["qemu+ssh://amd1/system"])
    assert cpu.vendor == "AuthenticAMD"


def test_a_model_that_is_not_known_is_told_with_what_to_do(fake: Path) -> None:
    (fake / "domcapabilities").write_text(SHOWN.format(model="Z9"))
    with pytest.raises(InputError, match="Z9") as caught:
        read_hosts(["qemu+ssh://amd1/system"])
    assert "dump" in (caught.value.remedy or "")


def test_what_libvirt_refuses_is_one_line_in_its_own_words(fake: Path) -> None:
    with pytest.raises(HypervisorError, match="unknown migrate") as caught:
        Virsh("qemu:///system").run("migrate")
    assert "\n" not in str(caught.value)


def test_no_name_becomes_an_option_or_a_path(fake: Path) -> None:
    for name in ("", "a\nb", "../x", "x" * 300):
        with pytest.raises(InputError):
            Virsh(None).definition(name)
    assert "EPYC" not in Virsh(None).definition("--all")


def test_without_virsh_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nonexistent")
    with pytest.raises(EnvironmentLackError, match="virsh"):
        Virsh(None).names()


@needs_virsh
def test_the_test_driver_is_read() -> None:
    done = CliRunner().invoke(inventory, ["test:///default"])
    assert "test:///default" in done.stdout and "runs" in done.stdout


@pytest.mark.parametrize(
    ("line", "sign"),
    [
        ("event 'lifecycle' for domain 'web': Crashed Panicked", Sign.PANICKED),
        ("event 'lifecycle' for domain web: Stopped Failed", Sign.CRASHED),
        ("event 'lifecycle' for domain 'web': Shutdown Finished after guest request",
         Sign.SHUT_DOWN),
        ("event 'lifecycle' for domain 'web': Shutdown Finished after host request",
         Sign.STOPPED_BY_HOST),
        ("event 'lifecycle' for domain 'web': Stopped Destroyed", Sign.STOPPED_BY_HOST),
        ("event 'lifecycle' for domain 'web': Suspended Migrated", Sign.MOVED),
        ("event 'lifecycle' for domain 'web': Resumed Unpaused", Sign.RESUMED),
        ("event 'lifecycle' for domain 'web': Defined Updated", None),
        ("2026-11-26 03:00:00.1+0000: event 'reboot' for domain 'web'", Sign.RESTARTED),
        ("event 'io-error' for domain 'web': /a (vda) pause due to enospc", Sign.DISK_ERROR),
        ("event 'lifecycle' for domain 'other': Crashed Panicked", None),
        ("event 'balloon-change' for domain 'web': 65536KiB", None),
        ("events received: 7", None),
    ],
)  # fmt: skip
def test_libvirts_events_become_signs(line: str, sign: Sign | None) -> None:
    event = read_event(line, "web", 1.0)
    assert (event.sign if event else None) is sign


@pytest.mark.parametrize(
    ("said", "state"),
    [
        ("running (booted)\n", "running"), ("paused (user)", "paused"),
        ("paused (I/O error)", "io-error"), ("crashed (panicked)", "guest-panicked"),
        ("shut off (crashed)", "shutdown"), ("paused (migrated)", "postmigrate"), ("odd", ""),
    ],
)  # fmt: skip
def test_libvirts_states_in_qemus_words(said: str, state: str) -> None:
    assert run_state(said) == state
