"""Our move between two libvirt hosts beside plain `virsh migrate` of the same guest, alternating.

Both move the same levelled guest, under its payload's load, peer to peer between the two real
daemons of `isthmus lab libvirt`, with libvirt's own limits.  Measured alike for both, by QEMU's own
time stamps: downtime from the source's STOP to the destination's RESUME, the total from the order
(the start of `virsh`, or of our checks and connections) to that RESUME.  What we do after it, the
look whether the guest lives, costs the guest nothing and is not in the figures.

The guests are emulated here.  For those our move stops the guest once more at the beginning, which
KVM needs not (isthmus.hypervisor.libvirt.move): that is left out, `virsh migrate` has none either.

The pair is the unit: figures are medians of differences and of ratios within a pair.  Both moves of
a pair go the same way, since the two directions differ by more than what is measured; who goes
first changes from pair to pair.
"""

import argparse
import asyncio
import contextlib
import json
import statistics
import sys
import tempfile
import time
import uuid
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

from isthmus.hypervisor.libvirt.connection import qemu_binding, session
from isthmus.hypervisor.qemu.guests import GuestStore
from isthmus.migration import libvirt as mover
from isthmus.migration.options import Options
from isthmus.migration.platforms import Request
from isthmus.places import cache_folder
from isthmus.qualification.lab import libvirt_guest, libvirt_host
from isthmus.qualification.lab.image import build_image
from isthmus.qualification.lab.libvirt_host import LibvirtHost

NAME = "bench"
PATIENCE_S = 120


class Stamps:
    """The latest STOP and RESUME of any guest of a host, in Unix seconds by QEMU's clock."""

    def __init__(self) -> None:
        self.latest: dict[str, float] = {}

    def tell(self, *told: Any) -> None:
        """What libvirt calls at each event."""
        _connection, _domain, event, seconds, micros, *_ = told
        self.latest[event] = seconds + micros / 1e6


@contextlib.asynccontextmanager
async def stamps(host: LibvirtHost) -> AsyncIterator[Stamps]:
    """Listen to a host."""
    async with session(host.uri) as connection:
        heard = Stamps()
        for event in ("STOP", "RESUME"):
            qemu_binding().qemuMonitorEventRegister(
                connection.handle, None, event, heard.tell, None
            )
        yield heard


class Bench:
    """The two hosts with somebody listening to each, and where records go."""

    def __init__(
        self, hosts: dict[str, LibvirtHost], heard: dict[str, Stamps], store: GuestStore
    ) -> None:
        self.hosts = hosts
        self.heard = heard
        self.store = store

    async def ours(self, source: str, goal: str) -> None:
        """Move by Isthmus."""
        request = Request(
            guest=NAME,
            source=self.hosts[source].uri,
            destination=self.hosts[goal].uri,
            peer=self.hosts[goal].peer_uri,
            options=Options(still=False),
        )
        await mover.move(request, self.store, lambda _: None)

    async def plain(self, source: str, goal: str) -> None:
        """Move by virsh."""
        process = await asyncio.create_subprocess_exec(
            "virsh", "-q", "-c", self.hosts[source].uri,
            "migrate", "--live", "--p2p", NAME, self.hosts[goal].peer_uri,
        )  # fmt: skip
        if await process.wait():
            raise SystemExit("virsh migrate failed")

    async def measured(self, move: Any, source: str, goal: str) -> tuple[float, float]:
        """Downtime and total of a move, in ms."""
        self.heard[goal].latest.clear()
        begun = time.time()
        await move(source, goal)
        async with asyncio.timeout(PATIENCE_S):
            while "RESUME" not in self.heard[goal].latest:  # noqa: ASYNC110
                await asyncio.sleep(0.01)
        resumed = self.heard[goal].latest["RESUME"]
        return (resumed - self.heard[source].latest["STOP"]) * 1000, (resumed - begun) * 1000


Pair = tuple[tuple[float, float], tuple[float, float]]


def run(pairs: int) -> list[Pair]:
    """The figures of each pair: ours, and plain."""
    with tempfile.TemporaryDirectory(prefix="ib-") as name:
        folder = Path(name)
        hosts = libvirt_host.up_both(
            {"amd": "phenom", "intel": "Nehalem"},
            "qemu-system-x86_64",
            folder / "hosts",
            lives_with_parent=True,
        )
        try:
            return asyncio.run(between(hosts, folder, pairs))
        finally:
            for host in hosts.values():
                host.stop()


async def between(hosts: dict[str, LibvirtHost], folder: Path, pairs: int) -> list[Pair]:
    """Start the guest, and move it to and fro."""
    await libvirt_guest.start(
        NAME, hosts["amd"], build_image(cache=cache_folder()),
        level_with=tuple(hosts.values()), identity=str(uuid.uuid4()), folder=folder,
    )  # fmt: skip
    payload = folder / f"{NAME}.payload"
    async with asyncio.timeout(PATIENCE_S):
        while not payload.exists() or payload.read_bytes().count(b" tick ") < 3:  # noqa: ASYNC110
            await asyncio.sleep(0.1)
    results: list[Pair] = []
    async with stamps(hosts["amd"]) as amd, stamps(hosts["intel"]) as intel:
        bench = Bench(hosts, {"amd": amd, "intel": intel}, GuestStore(folder / "state", folder))
        for block in range((pairs + 1) // 2):
            one, other = (bench.ours, bench.plain) if block % 2 else (bench.plain, bench.ours)
            there, back = ("amd", "intel"), ("intel", "amd")
            both: dict[tuple[str, str], dict[Any, tuple[float, float]]] = {there: {}, back: {}}
            for move, way in ((one, there), (other, back), (other, there), (one, back)):
                both[way][move] = await bench.measured(move, *way)
            results += [(both[way][bench.ours], both[way][bench.plain]) for way in both]
    return results


def main() -> int:
    """Measure, print one JSON line; 1 if a bound is not kept."""
    # libvirt's binding has this file's name, and Python looks for it beside the script first.
    sys.path[:] = [entry for entry in sys.path if Path(entry).resolve() != Path(__file__).parent]
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pairs", type=int, default=20)
    parser.add_argument("--no-bounds", action="store_true")
    chosen = parser.parse_args()
    results = run(chosen.pairs)
    figures = {
        "downtime_added_ms_p50": statistics.median(a[0] - b[0] for a, b in results),
        "total_ratio_p50": statistics.median(a[1] / b[1] for a, b in results),
        "downtime_ms_p50": statistics.median(a[0] for a, _ in results),
        "downtime_plain_ms_p50": statistics.median(b[0] for _, b in results),
        "total_ms_p50": statistics.median(a[1] for a, _ in results),
        "total_plain_ms_p50": statistics.median(b[1] for _, b in results),
        "pairs": len(results),
    }
    bounds = {"downtime_added_ms_p50": 5.0, "total_ratio_p50": 1.1}
    ok = chosen.no_bounds or all(figures[name] <= bound for name, bound in bounds.items())
    print(json.dumps({"bench": "libvirt", "figures": figures, "bounds": bounds, "ok": ok}))
    return 0 if ok else 1


if __name__ == "__main__":
    sys.exit(main())
