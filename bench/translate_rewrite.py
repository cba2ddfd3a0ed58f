"""How fast a moved and rewritten guest reads its clock, beside one that was levelled from birth.

Both run on the same host, which lacks RDTSCP, by turns, one of them stopped by a signal while the
other is measured; the program (bench/clock_loop.c) calls clock_gettime by the vDSO.  One was booted
with RDTSCP and moved there; it is measured with the translator armed, *alone* (rewritten, without
the translator's breakpoint, which slows down TCG), and only translated, where each reading traps.
The best of four half seconds counts, since other work of the machine only slows down.  Prints
readings a second and ratios, and a line of JSON.
"""

import asyncio
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import msgspec

from isthmus.baseline.level import level
from isthmus.hypervisor.qemu.binary import find_qemu
from isthmus.hypervisor.qemu.engine import Accelerator
from isthmus.hypervisor.qemu.guests import Guest, GuestStore
from isthmus.hypervisor.qemu.models import read_cpus
from isthmus.hypervisor.qemu.monitor import Monitor
from isthmus.migration.hosts import Hosts, Machine
from isthmus.migration.options import Options
from isthmus.places import cache_folder
from isthmus.qualification.lab import initramfs
from isthmus.qualification.lab.image import build_image, command_line
from isthmus.translate.service import TranslatorClient

SOURCE, DESTINATION = "phenom", "Penryn"
PROGRAM = Path(__file__).with_name("clock_loop.c")
BOUND = 0.8
ROUNDS, WINDOWS = 5, 4
WORD = "clock readings "


def program(folder: Path) -> bytes:
    """The loop, compiled; static, so that the guest needs no libraries."""
    out = folder / "clock_loop"
    subprocess.run(["gcc", "-O2", "-static", "-o", out, PROGRAM], check=True)
    return out.read_bytes()


async def rates(console: Path) -> list[float]:
    """The next windows' readings a second; the one that is under way is not counted."""

    def found() -> list[float]:
        text = console.read_text(encoding="utf-8", errors="replace")
        return [
            float(line.split(WORD)[1])
            for line in text.split("\n")[:-1]
            if WORD in line and line.split(WORD)[1].strip().isdecimal()
        ]

    before = len(found()) + 1
    async with asyncio.timeout(240):
        while len(found()) < before + WINDOWS:  # noqa: ASYNC110
            await asyncio.sleep(0.1)
    return found()[before : before + WINDOWS]


async def run() -> dict[str, list[float]]:
    """Readings a second, the best window of each round, for each state and the levelled guest."""
    qemu = find_qemu()
    results: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory(prefix="isthmus-bench-") as name:
        folder = Path(name)
        image = build_image(
            cache=cache_folder(),
            more=[
                initramfs.folder("beside"),
                initramfs.file("beside/clock_loop", program(folder), executable=True),
            ],
        )
        machine = Machine(
            kernel=image.kernel,
            initrd=image.initrd,
            # Translated only, with a high-resolution timer, the clock reads of one tick may take
            # longer than the tick under TCG (docs/translation.md).
            command_line=command_line(test="none", tick_ms=1000, threads=1)
            + " highres=off nohz=off",
        )
        cpus = await read_cpus(qemu, Accelerator.TCG)
        store = GuestStore(folder / "state", folder / "run")
        hosts = Hosts(qemu, Accelerator.TCG, cpus, store)
        shown = level([cpus.offered(SOURCE), cpus.offered(DESTINATION)]).model
        try:
            level_born = await hosts.start("levelled", DESTINATION, machine, shown=shown)
            await _up(level_born.process.console)
            _signal(level_born, signal.SIGSTOP)
            guest = await hosts.start("moved", SOURCE, machine)
            await _up(guest.process.console)
            for what, rewrite in (("rewritten", True), ("alone", True), ("translated", False)):
                options = Options(translate=True, rewrite=rewrite, verify_s=60.0)
                await hosts.move("moved", DESTINATION, options)
                guest = store.read("moved")
                if what == "alone":
                    guest = await _without_translator(store, guest)
                results[what], results[f"levelled beside {what}"] = [], []
                for _ in range(ROUNDS if rewrite else 1):
                    results[what].append(max(await rates(guest.process.console)))
                    _signal(guest, signal.SIGSTOP)
                    _signal(level_born, signal.SIGCONT)
                    beside = max(await rates(level_born.process.console))
                    results[f"levelled beside {what}"].append(beside)
                    _signal(level_born, signal.SIGSTOP)
                    _signal(guest, signal.SIGCONT)
                await hosts.move("moved", SOURCE, Options())
        finally:
            for known in store.names():
                store.read(known).process.kill()
    return results


def _said(console: Path) -> bool:
    return console.exists() and WORD.encode() in console.read_bytes()


async def _without_translator(store: GuestStore, guest: Guest) -> Guest:
    """The guest goes on with nobody to serve it: its payload tests nothing that would trap."""
    assert guest.translator is not None
    client = await TranslatorClient.connect(guest.translator)
    await client.hold()
    await client.detach()
    await client.close()
    async with Monitor.session(guest.process.observe) as monitor:
        await monitor.execute("cont")
    alone = msgspec.structs.replace(guest, translator=None)
    store.write(alone)
    return alone


def _signal(guest: Guest, number: int) -> None:
    os.kill(guest.process.identity.pid, number)


async def _up(console: Path) -> None:
    async with asyncio.timeout(120):
        while not _said(console):  # noqa: ASYNC110
            await asyncio.sleep(0.1)


def figures(results: dict[str, list[float]]) -> dict[str, float]:
    """The figures of one run."""
    found = {}
    for name in ("rewritten", "alone", "translated"):
        # Neighbours in time are compared, so that other work of the machine hits both.
        pairs = zip(results[name], results[f"levelled beside {name}"], strict=True)
        found[f"{name}_clock_ratio"] = round(statistics.median(a / b for a, b in pairs), 5)
    for name, values in results.items():
        found[f"{name.replace(' ', '_')}_per_s"] = round(statistics.median(values))
    return found


def measure() -> dict[str, float]:
    """Run it and return the figures."""
    return figures(asyncio.run(run()))


def main() -> int:
    """Run the bench; 0 if the bound holds."""
    found = measure()
    for name, value in found.items():
        print(f"{name:24} {value:14,.3f}")
    ok = found["rewritten_clock_ratio"] >= BOUND
    bounds = {"rewritten_clock_ratio": [">=", BOUND]}
    print(json.dumps({"bench": "translate_rewrite", "figures": found, "bounds": bounds, "ok": ok}))
    return 0 if ok else 1


if __name__ == "__main__":
    sys.exit(main())
