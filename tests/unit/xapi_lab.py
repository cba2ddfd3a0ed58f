"""Pools of named CPUs behind servers, for tests of moves; one folder of journals."""

import contextlib
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from xapi_pool import Pool, World, cpu_info
from xapi_server import Certificates, XapiServer

from isthmus.baseline.identity import AMD
from isthmus.cpu.named import qemu_models
from isthmus.cpu.registers import FEATURESET, word
from isthmus.hypervisor.qemu.guests import GuestStore
from isthmus.migration.options import Options, Progress
from isthmus.migration.platforms import Request
from isthmus.migration.record import MigrationRecord, records

PASSWORD = "s3cr3t-passw0rd"
PATIENCE_S = 120.0


def words(model: str) -> tuple[int, ...]:
    """The featureset of one of QEMU's CPU models."""
    known = qemu_models()[model]
    return tuple(word(known.features, place, amd=known.vendor == AMD) for place in FEATURESET)


def cpu(model: str) -> dict[str, str]:
    return cpu_info(qemu_models()[model].vendor, words(model))


def until(condition: Callable[[], Any], what: str) -> None:
    """Wait until something holds, with more patience than any machine needs."""
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < deadline, f"never: {what}"
        time.sleep(0.01)


class Lab:
    """Two pools of one maker and one of the other, and where the journals are."""

    def __init__(self, folder: Path, certificates: Certificates) -> None:
        self.world = World()
        self.store = GuestStore(folder / "state", folder / "run")
        self.certificates = certificates
        self.servers: dict[str, XapiServer] = {}
        for name, hosts in {
            "intel": {"sky1": "Skylake-Server", "sky2": "Skylake-Server", "old": "Haswell"},
            "more": {"sky9": "Skylake-Server"},
            "amd": {"rome1": "EPYC-Rome"},
        }.items():
            pool = Pool(
                self.world, name, {host: cpu(model) for host, model in hosts.items()},
                password=PASSWORD,
            )  # fmt: skip
            self.servers[name] = XapiServer(pool, certificates)
        self.told: list[Progress] = []
        self.on_progress: Callable[[Progress], None] = lambda _: None

    @property
    def pool(self) -> Pool:
        return self.servers["intel"].pool

    def close(self) -> None:
        self.world.release()
        for server in self.servers.values():
            with contextlib.suppress(OSError):
                server.close()

    def request(self, to: str, *, name: str = "web", **fields: Any) -> Request:
        """A move of the guest from the Intel pool ``to`` POOL/HOST."""
        pool, _, host = to.partition("/")
        return Request(
            guest=name,
            source=self.servers["intel"].address(),
            destination=self.servers[pool].address(host),
            **({"options": Options(verify_s=0.0)} | fields),
        )

    def observe(self, progress: Progress) -> None:
        self.told.append(progress)
        self.on_progress(progress)

    def where(self, vm: str) -> set[str]:
        """The hosts that execute the guest of that UUID."""
        names = {
            ref: label
            for server in self.servers.values()
            for label, ref in server.pool.hosts.items()
        }
        return {names[ref] for ref in self.world.domains[vm]}

    def journal(self) -> MigrationRecord:
        return records(self.store.journals)[-1][1]

    def journal_task(self) -> str:
        """The task of the move that is under way, empty while there is none."""
        found = records(self.store.journals)
        return found[-1][1].plan.task if found else ""

    def journal_path(self) -> Path:
        return records(self.store.journals)[-1][0]


def environment(monkeypatch: pytest.MonkeyPatch, certificates: Certificates) -> None:
    monkeypatch.setenv("ISTHMUS_XAPI_PASSWORD", PASSWORD)
    monkeypatch.setenv("ISTHMUS_XAPI_CACERT", str(certificates.authority))
