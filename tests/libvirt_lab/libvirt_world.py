"""Two real libvirt hosts and the guest ``g`` on them, in folders of the test's own."""

import asyncio
import contextlib
import os
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path

import pytest

from isthmus.errors import EnvironmentLackError, HypervisorError, IsthmusError
from isthmus.hypervisor.libvirt.connection import binding, call, session
from isthmus.hypervisor.qemu.guests import GuestStore
from isthmus.migration import libvirt as mover
from isthmus.migration.options import Observer, Options, Progress
from isthmus.migration.platforms import Request
from isthmus.migration.record import MigrationRecord, records
from isthmus.places import cache_folder
from isthmus.qualification.lab import libvirt_guest, libvirt_host
from isthmus.qualification.lab.agent import agent_entries
from isthmus.qualification.lab.image import build_image
from isthmus.qualification.lab.libvirt_guest import Drive
from isthmus.qualification.lab.libvirt_host import LibvirtHost
from isthmus.qualification.payload.verdict import Verdict, judge

PATIENCE_S = 180
PLAYS = {"amd": "phenom", "intel": "Nehalem"}
TRANSLATABLE = "rdtscp,sse4a,popcnt,lahf-lm,cx16"
SLOWLY = Options(bandwidth=8 << 20)
"""Some ten seconds for the guest's memory: time for something to break."""

Fault = Callable[[], Awaitable[object]]


class World:
    """Both hosts, and the records of what happened between them.

    ``uris`` are the addresses that Isthmus is told, ``peers`` those by which the hosts know each
    other; a test may name others.
    """

    def __init__(self, folder: Path, hosts: dict[str, LibvirtHost]) -> None:
        self.folder = folder
        self.hosts = hosts
        self.uris = {name: host.uri for name, host in hosts.items()}
        self.peers = {name: host.peer_uri for name, host in hosts.items()}
        self.store = GuestStore(folder / "state", folder / "run")
        self.payload = folder / "g.payload"
        self.console = folder / "g.console"
        self.identity = ""

    async def born(
        self,
        host: str = "amd",
        *,
        levelled: bool = True,
        disk: Drive | None = None,
        agent: bool = False,
        persistent: bool = False,
        memory_mib: int = 256,
    ) -> None:
        """A guest that has begun to tick; unlevelled, it tests only what can be translated."""
        self.identity = str(uuid.uuid4())
        await libvirt_guest.start(
            "g",
            self.hosts[host],
            build_image(cache=cache_folder(), more=agent_entries(cache_folder()) if agent else ()),
            level_with=tuple(self.hosts.values()) if levelled else (),
            identity=self.identity,
            folder=self.folder,
            memory_mib=memory_mib,
            options={"test": "all" if levelled else TRANSLATABLE, "disk": int(disk is not None)},
            disk=disk,
            agent=agent,
            persistent=persistent,
        )
        await self.ticks(3)

    async def ticks(self, more: int) -> None:
        """Wait until the guest's payload has ticked so many times from now on."""
        wanted = self._ticked() + more
        await until(lambda: self._ticked() >= wanted, f"{more} ticks more than {wanted - more}")

    def _ticked(self) -> int:
        return self.payload.read_bytes().count(b" tick ") if self.payload.exists() else 0

    def request(self, source: str, destination: str, **more: object) -> Request:
        """A move of the guest between two hosts, peer to peer unless told otherwise."""
        given: dict[str, object] = {
            "guest": "g",
            "source": self.uris[source],
            "destination": self.uris[destination],
            "peer": self.peers[destination],
            "options": Options(),
        }
        return Request(**(given | more))  # type: ignore[arg-type]

    async def move(
        self,
        source: str,
        destination: str,
        observer: Observer = lambda _: None,
        **more: object,
    ) -> MigrationRecord:
        """Move the guest."""
        return await mover.move(self.request(source, destination, **more), self.store, observer)

    def migrating(
        self, source: str, destination: str, *more: str, within: str = ""
    ) -> "subprocess.Popen[bytes]":
        """The command that moves the guest, as a user gives it, in the network of a host or not."""
        network = (
            ["nsenter", "--target", str(self.hosts[within].inside.pid), "--net", "--"]
            if within
            else []
        )
        return subprocess.Popen(
            [
                *network, sys.executable, "-c", "from isthmus.cli.main import main; main()",
                "migrate", "g", "--from", self.uris[source], "--to", self.uris[destination], *more,
            ],
            env=os.environ
            | {
                "ISTHMUS_STATE": str(self.folder / "state"),
                "ISTHMUS_RUN": str(self.folder / "run"),
                "ISTHMUS_CACHE": str(cache_folder()),
            },
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )  # fmt: skip

    async def running(self) -> list[str]:
        """The hosts on which a copy of the guest runs right now."""
        libvirt = binding()
        return [
            name
            for name in self.hosts
            if await self.state(name) in {libvirt.VIR_DOMAIN_RUNNING, libvirt.VIR_DOMAIN_BLOCKED}
        ]

    async def present(self) -> list[str]:
        """The hosts that have a copy of the guest, whatever it does.

        Of a translated guest libvirt cannot say whether it runs: each trap stops it.
        """
        return [name for name in self.hosts if await self.state(name) is not None]

    async def state(self, host: str) -> int | None:
        """The state of the host's copy in libvirt's numbers, None where it has none."""
        async with session(self.hosts[host].uri) as connection:
            domain = await connection.find(self.identity)
            return None if domain is None else int((await call(domain.state))[0])

    async def one_runs(self, host: str) -> None:
        """Exactly one copy runs, on ``host``, and no report of its is amiss."""
        assert await self.running() == [host]
        await self.ticks(3)
        verdict = self.verdict()
        assert verdict.ok, verdict.faults

    def verdict(self) -> Verdict:
        """The payload's judgement of its life so far."""
        return judge([self.payload.read_bytes()])

    def seen(self) -> str:
        """What daemons, QEMUs and the guest have said last, and the last record's steps."""
        logs = [
            path
            for host in self.hosts.values()
            for path in (host.daemon_log, host.folder / "log/qemu/g.log")
        ]
        lines = []
        for path in (*logs, self.console):
            if path.exists():
                lines.append(f"-- {path.relative_to(self.folder)}")
                lines += path.read_text(encoding="utf-8", errors="replace").splitlines()[-15:]
        lines += [f"-- {record.steps}" for _, record in records(self.store.journals)[-1:]]
        return "\n".join(lines)

    async def gone(self) -> None:
        """End every copy of the guest."""
        for host in self.hosts.values():
            with contextlib.suppress(HypervisorError):
                async with session(host.uri) as connection:
                    domain = await connection.find(self.identity or "g")
                    if domain is not None:
                        persistent = await call(domain.isPersistent)
                        with contextlib.suppress(HypervisorError):
                            await call(domain.destroy)
                        if persistent:
                            await call(domain.undefine)


async def moved_while(
    world: World, fault: Fault, options: Options = SLOWLY, **more: object
) -> MigrationRecord | IsthmusError:
    """Move from amd to intel; once memory flows, ``fault`` happens.  What became of the move."""
    flows = asyncio.Event()

    def observe(progress: Progress) -> None:
        if progress.transfer is not None and progress.transfer.transferred > 4 << 20:
            flows.set()

    async def happen() -> None:
        await flows.wait()
        await fault()

    breaking = asyncio.create_task(happen())
    try:
        outcome: MigrationRecord | IsthmusError = await world.move(
            "amd", "intel", observe, options=options, **more
        )
    except IsthmusError as error:
        outcome = error
    if not flows.is_set():
        breaking.cancel()
        raise AssertionError(f"it ended before its memory flowed: {outcome}")
    async with asyncio.timeout(PATIENCE_S):
        await breaking
    return outcome


def last_record(world: World) -> MigrationRecord:
    """The latest record."""
    return records(world.store.journals)[-1][1]


async def until(condition: Callable[[], bool], what: str) -> None:
    """Wait until it holds; a deadline of minutes says that it never will."""
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {PATIENCE_S} s: {what}")
        await asyncio.sleep(0.05)


@contextlib.contextmanager
def hosts_of_a_module() -> Iterator[World]:
    """Two hosts that end with the test run; skipped where this machine cannot have them."""
    with tempfile.TemporaryDirectory(prefix="iv-") as name:
        folder = Path(name)
        try:
            libvirt_host.require()
            binding()
        except EnvironmentLackError as error:
            pytest.skip(str(error))
        try:
            hosts = libvirt_host.up_both(
                PLAYS, "qemu-system-x86_64", folder / "hosts", lives_with_parent=True
            )
        except HypervisorError as error:
            if "namespaces cannot be made" in str(error):
                pytest.skip(str(error))
            raise
        try:
            yield World(folder, hosts)
        finally:
            for host in hosts.values():
                host.stop()


@contextlib.asynccontextmanager
async def guest_of_a_test(world: World) -> AsyncIterator[World]:
    """The world without a guest; afterwards it has none again, and both daemons run."""
    try:
        yield world
    finally:
        for host in world.hosts.values():
            host.start_daemon()
            host.link(up=True)
        await world.gone()
