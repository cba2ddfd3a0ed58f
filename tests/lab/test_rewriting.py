"""A guest's kernel and vDSO are rewritten for a CPU without RDTSCP, and put back at home."""

from pathlib import Path

import msgspec
import pytest
from lab_guests import ticks

from isthmus.errors import EnvironmentLackError
from isthmus.hypervisor.qemu.guests import Guest
from isthmus.migration.hosts import Hosts, Machine
from isthmus.migration.options import Options
from isthmus.places import cache_folder
from isthmus.qualification.demo.listener import cpuid_bits
from isthmus.qualification.lab.image import build_image, command_line
from isthmus.qualification.payload.verdict import judge
from isthmus.translate.rewrite.guest import dump
from isthmus.translate.rewrite.record import RECORD, RewriteRecord, read_record
from isthmus.translate.rsp import Stub
from isthmus.translate.service import TranslatorClient

pytestmark = pytest.mark.lab

AWAY = Options(translate=True)
LFENCE_RDTSC, RDTSCP_NOP = "0faee80f31", "0f01f96690"


async def born(hosts: Hosts, words: str, vcpus: int, kernel: str | None) -> Guest:
    try:
        image = build_image(kernel, cache=cache_folder())
    except EnvironmentLackError as error:
        pytest.skip(str(error))
    machine = Machine(
        kernel=image.kernel,
        initrd=image.initrd,
        command_line=f"{command_line(test='sse4a,popcnt')} {words}",
        vcpus=vcpus,
    )
    guest = await hosts.start("g", "phenom", machine)
    await ticks(hosts, 3)
    return guest


async def rdtscp_traps(hosts: Hosts) -> int:
    """How many RDTSCPs the translator has done for the guest where it is."""
    folder = hosts.store.read("g").translator
    assert folder is not None
    client = await TranslatorClient.connect(folder)
    try:
        status = await client.status()
        assert status.problem == ""
        return status.translated.get("RDTSCP", 0)
    finally:
        await client.close()


def record(hosts: Hosts) -> RewriteRecord:
    guest = hosts.store.read("g")
    found = read_record(guest.process.directory / RECORD)
    assert found.problem == ""
    assert (guest.rewritten is not None) == bool(found.written)
    return found


async def standing_there(hosts: Hosts, wanted: RewriteRecord) -> list[str]:
    """What stands at the places of a record, in the guest where it is now (untranslated)."""
    running = hosts.store.read("g").process
    stub = await Stub.connect(running.gdb)
    try:
        return [
            (await dump(stub, one.physical, len(one.now), running.directory)).hex()
            for one in wanted.written
        ]
    finally:
        stub.go()
        await stub.close()


def verdict(hosts: Hosts):
    lost = hosts.cpus.offered("phenom").features - hosts.cpus.offered("Penryn").features
    streams = [path.read_bytes() for path in hosts.store.read("g").streams]
    return judge(streams, cpuid_may_lose=cpuid_bits(lost))


@pytest.mark.parametrize(
    ("vcpus", "words", "kernel"),
    [(1, "", None), (2, "pti=on", None), (1, "nokaslr", "6.12"), (1, "", "5.10")],
)
async def test_no_reading_of_the_clock_traps_there_and_all_is_as_before_at_home(
    hosts: Hosts, vcpus: int, words: str, kernel: str | None
) -> None:
    await born(hosts, words, vcpus, kernel)
    for _ in range(2):
        await hosts.move("g", "Penryn", AWAY)
        away = record(hosts)
        assert {"rdtscp", "popcnt", "vmmcall"} <= {one.why for one in away.written}
        clocks = [one for one in away.written if one.why == "rdtscp"]
        assert {(one.before, one.after) for one in clocks} == {(RDTSCP_NOP, LFENCE_RDTSC)}
        assert any(one.vdso for one in clocks)
        await ticks(hosts, 4)
        # A site may be left if a vCPU stood in it; without rewriting it is hundreds a second.
        assert await rdtscp_traps(hosts) <= 5 or away.left
        await hosts.move("g", "phenom", Options())
        home = record(hosts)
        assert home.restored + len(home.written) == len(away.written)
        # What could not be put back keeps the form that works on both, and the record says so.
        assert sum(home.left.values()) == len(home.written)
        await ticks(hosts, 3)
        kept = {one.address: one.after for one in home.written}
        assert await standing_there(hosts, away) == [
            kept.get(one.address, one.before) for one in away.written
        ]
        await ticks(hosts, 2)
    result = verdict(hosts)
    assert result.ok, result.faults


async def test_with_an_image_that_tells_nothing_all_is_trapped_as_before(
    hosts: Hosts, tmp_path: Path
) -> None:
    """The payload of the image is gone; its header, which QEMU reads, is there."""
    # With a high-resolution timer the reads of the clock may outlast the tick under TCG.
    guest = await born(hosts, "highres=off nohz=off", 1, None)
    broken = tmp_path / "vmlinuz"
    whole = guest.spec.kernel.read_bytes()
    broken.write_bytes(whole[:0x8000].ljust(len(whole), b"\0"))
    spec = msgspec.structs.replace(guest.spec, kernel=broken)
    hosts.store.write(msgspec.structs.replace(guest, spec=spec))
    await hosts.move("g", "Penryn", Options(translate=True, verify_s=60.0))
    moved = hosts.store.read("g")
    assert read_record(moved.process.directory / RECORD).problem != ""
    assert moved.rewritten is None
    await ticks(hosts, 2)
    assert await rdtscp_traps(hosts) > 100
    await hosts.move("g", "phenom", Options())
    await ticks(hosts, 2)
    result = verdict(hosts)
    assert result.ok, result.faults
