"""A guest that was booted unlevelled lives on a CPU that lacks what it uses, and goes home."""

import asyncio
import os
import signal
from pathlib import Path

import pytest
from lab_guests import ticks

from isthmus.errors import RefusedError
from isthmus.hypervisor.qemu import process
from isthmus.hypervisor.qemu.guests import Guest
from isthmus.migration.hosts import Hosts, Machine, revive_translators
from isthmus.migration.options import Options
from isthmus.migration.record import guest_lock
from isthmus.places import cache_folder
from isthmus.qualification.demo.listener import cpuid_bits
from isthmus.qualification.lab.image import build_image, command_line
from isthmus.qualification.payload.verdict import judge
from isthmus.translate.service import TranslatorClient

pytestmark = pytest.mark.lab

TESTS = "rdtscp,sse4a,popcnt,lahf-lm,cx16"


async def born(
    hosts: Hosts, *, vcpus: int = 1, words: str = "", kernel: str | None = None,
    host: str = "phenom", tests: str = TESTS,
) -> Guest:  # fmt: skip
    image = build_image(kernel, cache=cache_folder())
    machine = Machine(
        kernel=image.kernel,
        initrd=image.initrd,
        command_line=f"{command_line(test=tests)} {words}",
        vcpus=vcpus,
    )
    guest = await hosts.start("g", host, machine)
    await ticks(hosts, 3)
    return guest


async def translated(hosts: Hosts) -> dict[str, int]:
    folder = hosts.store.read("g").translator
    assert folder is not None
    client = await TranslatorClient.connect(folder)
    try:
        status = await client.status()
        assert status.problem == ""
        # The payload executes UD2 on purpose in every round, and it must get its SIGILL.
        assert status.passed > 0
        return status.translated
    finally:
        await client.close()


def verdict(hosts: Hosts, home: str = "phenom", abroad: str = "Penryn"):
    lost = hosts.cpus.offered(home).features - hosts.cpus.offered(abroad).features
    streams = [path.read_bytes() for path in hosts.store.read("g").streams]
    return judge(streams, cpuid_may_lose=cpuid_bits(lost))


async def there_and_home_again(hosts: Hosts, options: Options, *, rdtscp: int) -> None:
    for _ in range(2):
        await hosts.move("g", "Penryn", options)
        await ticks(hosts, 4)
        counts = await translated(hosts)
        assert counts["RDTSCP"] > rdtscp
        assert {"EXTRQ", "INSERTQ", "MOVNTSD", "MOVNTSS", "POPCNT"} <= counts.keys()
        await hosts.move("g", "phenom", Options())
        assert hosts.store.read("g").translator is None
        await ticks(hosts, 4)
    result = verdict(hosts)
    assert result.ok, result.faults


@pytest.mark.parametrize(
    ("vcpus", "words", "kernel"),
    [(1, "", None), (2, "", None), (1, "pti=on", None), (1, "nokaslr", None), (1, "", "6.12")],
)
async def test_there_and_home_again(
    hosts: Hosts, vcpus: int, words: str, kernel: str | None
) -> None:
    await born(hosts, vcpus=vcpus, words=words, kernel=kernel)
    await there_and_home_again(hosts, Options(translate=True), rdtscp=0)


async def test_a_kernel_that_is_not_rewritten_is_translated(hosts: Hosts) -> None:
    """Each clock read of the kernel traps, thousands in a second."""
    # With a high-resolution timer the reads may outlast the tick under TCG.
    await born(hosts, words="highres=off nohz=off")
    options = Options(translate=True, rewrite=False, verify_s=60.0)
    await there_and_home_again(hosts, options, rdtscp=100)


async def test_without_the_translator_it_is_refused(hosts: Hosts) -> None:
    await born(hosts)
    with pytest.raises(RefusedError, match="rdtscp"):
        await hosts.move("g", "Penryn", Options(translate=False))
    await ticks(hosts, 3)


async def test_a_killed_translator_is_replaced(hosts: Hosts) -> None:
    await born(hosts)
    await hosts.move("g", "Penryn", Options(translate=True))
    await ticks(hosts, 2)
    folder = hosts.store.read("g").translator
    for service in process.mentioning(folder):
        command = Path(f"/proc/{service.pid}/cmdline").read_bytes()
        if b"isthmus.translate.service" in command:
            os.kill(service.pid, signal.SIGKILL)
            async with asyncio.timeout(180):
                while service.alive():
                    await asyncio.sleep(0.05)
    await asyncio.sleep(0.5)  # time for the guest to come to its next #UD, and to stand there
    with guest_lock(hosts.store.locks, "g"):  # another command is at work on it
        assert await revive_translators(hosts.store) == []
    assert await revive_translators(hosts.store) == ["g"]
    assert await revive_translators(hosts.store) == []
    await ticks(hosts, 4)
    assert (await translated(hosts))["RDTSCP"] > 0
    await hosts.move("g", "phenom", Options())
    await ticks(hosts, 3)
    result = verdict(hosts)
    assert result.ok, result.faults


async def test_an_intel_guest_finds_its_instructions_on_an_older_amd(hosts: Hosts) -> None:
    """SSSE3, SSE4, AES and PCLMULQDQ on a CPU of 2008 that has none of them, and home again."""
    guest = await born(hosts, host="Westmere", tests="ssse3,sse4.1,sse4.2,aes,pclmulqdq,popcnt")
    await hosts.move(guest.name, "phenom", Options(translate=True))
    await ticks(hosts, 3)
    done = await translated(hosts)
    assert {"PSHUFB", "AESENC", "PCLMULQDQ"} & set(done), done
    await hosts.move(guest.name, "Westmere", Options(translate=True))
    await ticks(hosts, 3)
    found = verdict(hosts, "Westmere", "phenom")
    assert found.ok, found
    assert found.records > 0
