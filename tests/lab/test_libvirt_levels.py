"""A real libvirtd takes a level that Isthmus writes, gives it back, starts it; and is watched."""

import asyncio
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from private_libvirtd import available, private_libvirtd

from isthmus.cpu.readers.libvirt_cpu import read_libvirt
from isthmus.hypervisor.libvirt.domain import read_domain
from isthmus.hypervisor.libvirt.inventory import take_inventory
from isthmus.hypervisor.libvirt.relevel import same_but_for_level
from isthmus.hypervisor.libvirt.virsh import Virsh
from isthmus.migration.death_notice import WatchRecord
from isthmus.migration.vigil import keep_watch
from isthmus.migration.vigil_libvirt import DomainEyes
from isthmus.migration.watching import Outlook, Verdict

pytestmark = [
    pytest.mark.lab,
    pytest.mark.timeout(280),
    pytest.mark.skipif(not available(), reason="a private libvirtd needs root and the daemon"),
]

PATIENCE_S = 200
DOMAIN = """<domain type='qemu' xmlns:qemu='http://libvirt.org/schemas/domain/qemu/1.0'>
  <name>{name}</name>
  <metadata><a:note xmlns:a='urn:a' by='ops'>keep <!-- me --></a:note></metadata>
  <memory unit='MiB'>64</memory>
  <vcpu>2</vcpu>
  <os><type arch='x86_64' machine='pc'>hvm</type></os>
  <features><acpi/><kvm><hidden state='on'/></kvm></features>
  <cpu mode='host-model'><topology sockets='1' dies='1' cores='2' threads='1'/></cpu>
  <on_crash>preserve</on_crash>
  <devices><graphics type='vnc' passwd='secret'/><panic model='isa'/></devices>
  <qemu:commandline><qemu:arg value='-name'/><qemu:arg value='debug-threads=on'/></qemu:commandline>
</domain>"""
LEVEL = ("level", "phenom", "Penryn", "--apply")


@pytest.fixture(scope="module")
def virsh() -> Iterator[Virsh]:
    with private_libvirtd() as (uri, _):
        yield Virsh(uri)


@pytest.fixture
def domain(virsh: Virsh, request: pytest.FixtureRequest) -> Iterator[str]:
    name = f"d-{abs(hash(request.node.name)) % 10**6}"
    virsh.define(DOMAIN.format(name=name))
    yield name
    for words in (("destroy", name), ("undefine", name)):
        subprocess.run([*virsh.command(), *words], capture_output=True, check=False)


def isthmus(state: Path, *words: str, code: int = 0) -> str:
    done = subprocess.run(
        [sys.executable, "-c", "from isthmus.cli.main import main; main()", *words],
        capture_output=True, text=True, timeout=PATIENCE_S, check=False,
        env=os.environ | {"ISTHMUS_STATE": str(state)},
    )  # fmt: skip
    assert "Traceback" not in done.stderr
    assert done.returncode == code, (done.stdout, done.stderr)
    return done.stdout + done.stderr


def test_libvirt_keeps_what_was_written_starts_it_and_takes_the_former_back(
    virsh: Virsh, domain: str, tmp_path: Path
) -> None:
    assert virsh.uri is not None
    where = ("--connect", virsh.uri, "--domain", domain)
    before = virsh.definition(domain)
    shown = isthmus(tmp_path, *LEVEL, *where, "--dry-run")
    assert "+  <cpu mode='custom'" in shown and virsh.definition(domain) == before
    told = isthmus(tmp_path, *LEVEL, *where)
    assert "counts from the next start" in told
    after = virsh.definition(domain)
    assert same_but_for_level(before, after, where="x") and "secret" in after
    assert "<topology sockets='1' dies='1' cores='2' threads='1'/>" in after
    assert "in it already" in isthmus(tmp_path, *LEVEL, *where)
    # It starts: libvirt has compared what QEMU shows with the element (check='full').
    virsh.run("start", domain)
    live = read_libvirt(virsh.live(domain).encode(), name="live", where="live")
    assert live.vendor == "GenuineIntel"
    assert {"sse4a", "ssse3"} & live.features == set()
    virsh.run("destroy", domain)
    (former,) = (tmp_path / "libvirt").glob("*.xml")
    assert former.stat().st_mode & 0o777 == 0o600
    subprocess.run(["virsh", "--connect", virsh.uri, "define", former], check=True)
    assert virsh.definition(domain) == before


def test_a_running_domain_keeps_its_cpu_until_it_is_started_anew(
    virsh: Virsh, domain: str, tmp_path: Path
) -> None:
    assert virsh.uri is not None
    virsh.run("start", domain)
    had = read_domain(virsh.live(domain).encode(), where="live").cpu
    told = isthmus(tmp_path, *LEVEL, "--connect", virsh.uri, "--domain", domain)
    assert "shutdown and a start" in told
    assert read_domain(virsh.live(domain).encode(), where="live").cpu == had
    virsh.run("destroy", domain)
    virsh.run("start", domain)
    assert read_domain(virsh.live(domain).encode(), where="live").cpu.check == "full"


def test_all_domains_but_for_one_that_has_no_definition(
    virsh: Virsh, domain: str, tmp_path: Path
) -> None:
    assert virsh.uri is not None
    virsh.run("create", "/dev/stdin", stdin=DOMAIN.format(name="fleeting"))
    try:
        told = isthmus(tmp_path, *LEVEL, "--connect", virsh.uri, "--all", code=1)
        assert "isthmus: fleeting: a transient domain" in told
        assert f"{domain}: levelled" in told
    finally:
        virsh.run("destroy", "fleeting")


def test_the_inventory_of_a_real_host(virsh: Virsh, domain: str) -> None:
    found = take_inventory(virsh, name="here")
    assert not found.problems
    assert domain in {resident.defined.name for resident in found.domains}
    (resident,) = [one for one in found.domains if one.defined.name == domain]
    assert resident.defined.machine in found.host.machines, "libvirt has resolved the alias"
    assert found.host.uuid and found.host.cpu is not None and found.host.models


def _destroyed(virsh: Virsh, domain: str) -> None:
    subprocess.run([*virsh.command(), "destroy", domain], capture_output=True, check=False)


def _killed(virsh: Virsh, domain: str) -> None:
    subprocess.run(
        [*virsh.command(), "qemu-monitor-command", domain, '{"execute":"quit"}'],
        capture_output=True, check=False,
    )  # fmt: skip


def _reset(virsh: Virsh, domain: str) -> None:
    # The guest's own reset: port 0xCF9 of the chipset, written by QEMU's monitor.
    subprocess.run(
        [*virsh.command(), "qemu-monitor-command", domain, "--hmp", "o /b 0xcf9 0x06"],
        capture_output=True, check=False,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("end", "outlooks"),
    [
        (_destroyed, {Outlook.LEFT}),
        (_killed, {Outlook.DIED, Outlook.LEFT}),
        (_reset, {Outlook.RESTARTED}),
    ],
)
async def test_the_end_of_a_domain_under_watch_is_seen(
    virsh: Virsh, domain: str, end: Callable[[Virsh, str], None], outlooks: set[Outlook]
) -> None:
    await asyncio.to_thread(virsh.run, "start", domain)
    looked = asyncio.Event()

    def tell(verdict: Verdict, _: float) -> None:
        if verdict.outlook is Outlook.LIVES:
            looked.set()

    async with DomainEyes(virsh, domain) as eyes:
        begun = WatchRecord.begin(domain, "here", "test")
        watch = asyncio.ensure_future(
            keep_watch(eyes, begun, seconds=PATIENCE_S, tell=tell, sample_s=0.3)
        )
        await asyncio.wait_for(looked.wait(), PATIENCE_S)
        sample, _ = await eyes.look()
        assert len(sample.vcpus) == 2, "registers came through libvirt"
        # Again and again: an event that comes before virsh listens is missed.
        while not watch.done():
            await asyncio.to_thread(end, virsh, domain)
            await asyncio.wait([watch], timeout=2)
        record, _ = await watch
    assert record.outlook in outlooks, record
    assert record.watched_s < PATIENCE_S
