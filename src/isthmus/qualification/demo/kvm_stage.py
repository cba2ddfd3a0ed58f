"""The stage on which both hosts have real KVM: lab hosts, started for the demo and gone with it."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Mapping
from pathlib import Path

from isthmus.hypervisor.qemu import process
from isthmus.hypervisor.qemu.binary import find_qemu
from isthmus.hypervisor.qemu.engine import Accelerator, Trial
from isthmus.hypervisor.qemu.guests import GuestStore
from isthmus.hypervisor.qemu.render import cpu_argument
from isthmus.qualification.demo.pace import EMULATED
from isthmus.qualification.demo.stage import Stage, own_folder
from isthmus.qualification.exercise.crossing import counting
from isthmus.qualification.kvm import together
from isthmus.qualification.kvm.host import LabHost
from isthmus.qualification.kvm.pool import PREFIX, lab_hosts
from isthmus.qualification.lab.image import build_image

ACCEPTED = frozenset({"compat-entry-at-zero", "sysenter-cut-short", "hypercall-instruction"})
"""Rules that refuse a move between the makers' KVMs for what the demo's guests do not have: 32-bit
programs, programs that attack the kernel, and a second vCPU that would have to be kicked awake."""


class KvmStage(Stage):
    """A stage of lab hosts; their names begin with ``kvm:``."""

    accepted = ACCEPTED
    clock = "kvm-clock"  # the makers' hosts have time stamp counters of two speeds

    memory_mib = 128

    # A precopy ends only if memory is sent faster than it is written, and an emulated host sends a
    # few MiB a second.
    payload: Mapping[str, object] = {"rewrite_kib": 64}
    load: Mapping[str, object] = {"beat_ms": 10, "rewrite_kib": 256}

    def unlevelled(self, host: str) -> str:
        """All that the host's KVM offers, without the nesting that QEMU's ``host`` has."""
        return cpu_argument(self.hosts.offered(host), self.hosts.cpus.named)


@contextlib.asynccontextmanager
async def open_kvm(
    pair: tuple[str, str],
    *,
    qemu: str,
    kernel: str | None,
    cache: Path,
    progress: Callable[[str], None],
) -> AsyncIterator[KvmStage]:
    """Start the two lab hosts; whatever happens, they and their files go.

    :param pair: the names of two lab hosts, without a prefix.
    :raises InputError: there is no lab host of that name.
    :raises EnvironmentLackError: this machine lacks something.
    :raises HypervisorError: a host does not come up.
    """
    progress("looking for the guest image")
    image = await asyncio.to_thread(build_image, kernel, cache=cache, progress=progress)
    program = await asyncio.to_thread(find_qemu, qemu)
    with own_folder() as folder:
        started = await together.start(
            pair,
            program,
            # No guest has a name that begins with a dot, and guests have their folders here.
            run=process.private_directory(folder / ".kvm"),
            cache=cache,
            kernel=kernel,
            lives_with_parent=True,
            progress=progress,
        )
        progress("asking both hosts what their KVM offers")
        store = GuestStore(folder / "state", folder)
        hosts = await lab_hosts({host.name: host for host in started}, store)
        trial = Trial(accelerator=Accelerator.KVM, works=True, reason=_reason(started))
        served = None
        if not await asyncio.to_thread(hosts.traps, host_names(pair)[1]):
            served = await asyncio.to_thread(
                build_image, kernel, cache=cache, progress=progress, inside=True, more=counting()
            )
        yield KvmStage(hosts, image, trial, folder, EMULATED, served)


def host_names(pair: tuple[str, str]) -> tuple[str, str]:
    """The names that the two lab hosts have as hosts."""
    return PREFIX + pair[0], PREFIX + pair[1]


def _reason(hosts: list[LabHost]) -> str:
    return "; ".join(
        f"{host.kvm} of Linux {host.kernel} on {host.name}, emulated by {host.emulator}"
        for host in hosts
    )
