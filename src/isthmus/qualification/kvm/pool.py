"""The lab hosts that are up, as hosts that guests are started on and moved between.

This is :class:`isthmus.migration.hosts.Hosts` with another answer to three questions: what a host
offers (its KVM is asked), which QEMU it has (the program that stands for it), and how it is
reached (over TCP).  All the rest is the same code.
"""

import asyncio
import itertools
import secrets
from collections.abc import Mapping
from pathlib import Path

from isthmus.cpu.features import close
from isthmus.cpu.model import CpuModel
from isthmus.errors import InputError
from isthmus.hypervisor.qemu.binary import QemuBinary, find_qemu
from isthmus.hypervisor.qemu.engine import Accelerator
from isthmus.hypervisor.qemu.guests import GuestStore
from isthmus.hypervisor.qemu.models import QemuCpus, read_cpus
from isthmus.hypervisor.qemu.through_file import Deposit
from isthmus.migration.hosts import Hosts
from isthmus.places import run_folder
from isthmus.qualification.kvm.host import GATEWAY, STREAM_PORTS, LabHost

PREFIX = "kvm:"
"""What the names of lab hosts begin with where hosts are named."""

NESTING = frozenset({"svm", "vmx"})
"""Virtualisation inside the guest: its state cannot be moved to another maker, so no guest has it.

Linux: Documentation/virt/kvm/x86/running-nested-guests.rst, "Limitations on Linux kernel versions".
"""


def lab_folder() -> Path:
    """Where this user's lab hosts are; no guest has a name that begins with a dot."""
    return run_folder() / ".kvm"


class LabHosts(Hosts):
    """The lab hosts by name (with :data:`PREFIX`), and the guests on them."""

    def __init__(self, hosts: Mapping[str, LabHost], asked: Mapping[str, "Asked"]) -> None:
        first = asked[next(iter(hosts))]
        super().__init__(first.qemu, Accelerator.KVM, first.cpus, first.store)
        self.hosts = hosts
        self._asked = asked
        # Each command is a process of its own: they must not all begin at the same port.
        self._next = itertools.count(secrets.randbelow(len(STREAM_PORTS)))

    def offered(self, host: str) -> CpuModel:
        """What the host's KVM can show a guest (QEMU's ``-cpu host``), without nesting."""
        offer = self._of(host).cpus.offered("host")
        needing = close(offer.features) - close(offer.features - NESTING)
        return offer.replace(
            name=host,
            features=offer.features - NESTING - needing,
            tsc_khz=self._tsc_khz(self.hosts[host].model.emulator),
        )

    def facts(self) -> Mapping[str, bool]:
        """Neither emulator scales a guest's TSC: QEMU warns of it at each arrival."""
        return {"tsc-scaling": False}

    def _tsc_khz(self, emulator: str) -> int | None:
        """The rate of an emulator's TSC: one for all its hosts, each of which measured it."""
        measured = (h.tsc_khz for h in self.hosts.values() if h.model.emulator == emulator)
        return next((khz for khz in measured if khz), None)

    def hypervisor(self, host: str) -> QemuBinary:
        """The program that stands for the host's QEMU."""
        return self._of(host).qemu

    def program(self, host: str, home: Path) -> Path:  # noqa: ARG002
        """Each host has a QEMU of its own."""
        return self.hypervisor(host).path

    def deposit(self, path: Path, host: str, folder: Path, channel: tuple[str, str]) -> Deposit:  # noqa: ARG002
        """By TCP, as hosts of a data centre would send it: this machine is their gateway."""
        return Deposit(
            path=path,
            listen="tcp:127.0.0.1:0",
            gateway=GATEWAY,
            feed=channel[1].replace(GATEWAY, "127.0.0.1"),
        )

    def way(self, host: str, folder: Path, channel: str) -> tuple[str, str]:  # noqa: ARG002
        """A port of the host, and where the other hosts find it."""
        self._of(host)
        turn = next(self._next) % len(STREAM_PORTS)
        return (
            f"tcp:0.0.0.0:{STREAM_PORTS[turn]}",
            f"tcp:{GATEWAY}:{self.hosts[host].streams[turn]}",
        )

    def _of(self, host: str) -> "Asked":
        if host not in self._asked:
            raise InputError(
                f"{host}: no lab host of that name is up",
                remedy=f"up are {', '.join(self.hosts)}; isthmus lab kvm up starts others",
            )
        return self._asked[host]


class Asked:
    """What a lab host's QEMU has told."""

    def __init__(self, qemu: QemuBinary, cpus: QemuCpus, store: GuestStore) -> None:
        self.qemu = qemu
        self.cpus = cpus
        self.store = store


async def lab_hosts(hosts: Mapping[str, LabHost], store: GuestStore) -> LabHosts:
    """Ask every host that is up what it offers.

    :raises InputError: none is up.
    :raises HypervisorError: one does not answer.
    """
    if not hosts:
        raise InputError("no lab host is up", remedy="isthmus lab kvm up")

    # What QEMU's models are defined as is the same on all; asking the quickest host suffices.
    quickest = min(hosts.values(), key=lambda host: host.seconds)
    order = sorted(hosts, key=lambda name: hosts[name] is not quickest)
    hosts = {name: hosts[name] for name in order}

    async def ask(host: LabHost) -> Asked:
        qemu = await asyncio.to_thread(find_qemu, str(host.program))
        names = None if host is quickest else ("host",)
        return Asked(qemu, await read_cpus(qemu, Accelerator.KVM, names), store)

    answers = await asyncio.gather(*(ask(host) for host in hosts.values()))
    named = {PREFIX + name: host for name, host in hosts.items()}
    return LabHosts(named, dict(zip(named, answers, strict=True)))
