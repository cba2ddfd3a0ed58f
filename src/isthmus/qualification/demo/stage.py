"""The stage of the demo: two hosts, a folder of its own, and nothing left behind.

All processes are started with ``lives_with_parent`` and killed at the end; all files lie in one
folder that is removed.  So an interrupted demo leaves nothing, and a killed one only that folder.
"""

import asyncio
import contextlib
import os
import shutil
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from pathlib import Path
from typing import Self

from isthmus.cpu.model import CpuModel
from isthmus.errors import EnvironmentLackError, InputError, IsthmusError
from isthmus.guest.console import find_death, readable
from isthmus.hypervisor.qemu import process
from isthmus.hypervisor.qemu.binary import QemuBinary, find_qemu
from isthmus.hypervisor.qemu.engine import Accelerator, Trial, try_accelerator
from isthmus.hypervisor.qemu.guests import GuestStore
from isthmus.hypervisor.qemu.models import QemuCpus, read_cpus
from isthmus.migration.hosts import Hosts, Machine
from isthmus.places import run_folder
from isthmus.qualification.demo.pace import QUICK, Pace
from isthmus.qualification.lab.image import GuestImage, build_image, command_line

POLL_S = 0.02


class Stage:
    """Everything the acts need; use as ``async with Stage.open(…) as stage``."""

    accepted: frozenset[str] = frozenset()
    """Rules whose risk the demo takes, since its guests have nothing that they are about."""

    clock = "tsc"
    """The clock source of its guests."""

    memory_mib = 256

    payload: Mapping[str, object] = {}
    """Options of every guest's payload, where an act does not say otherwise."""

    load: Mapping[str, object] = {"beat_ms": 10, "memory_mib": 64, "rewrite_kib": 4096}
    """The levelled guest's payload: 4 MiB of memory are written anew ten times a second."""

    def __init__(
        self,
        hosts: Hosts,
        image: GuestImage,
        engine: Trial,
        folder: Path,
        pace: Pace = QUICK,
        served: GuestImage | None = None,
    ) -> None:
        self.hosts = hosts
        self.image = image
        self.served = served or image
        self.engine = engine
        self.folder = folder
        self.pace = pace

    @classmethod
    @contextlib.asynccontextmanager
    async def open(
        cls,
        pair: tuple[str, str],
        *,
        qemu: str,
        engine: str,
        kernel: str | None,
        cache: Path,
        progress: Callable[[str], None],
    ) -> AsyncIterator[Self]:
        """Find QEMU, choose the engine, build the guest image; clean up whatever happens.

        :raises InputError: QEMU has no CPU model of that name.
        :raises EnvironmentLackError: this machine lacks something.
        """
        progress("finding out what can play both hosts")
        binary = await asyncio.to_thread(find_qemu, qemu)
        trial, cpus = await choose_engine(binary, pair, engine)
        progress("looking for the guest image")
        image = await asyncio.to_thread(build_image, kernel, cache=cache, progress=progress)
        with own_folder() as folder:
            store = GuestStore(folder / "state", folder)
            yield cls(Hosts(binary, trial.accelerator, cpus, store), image, trial, folder)

    def offered(self, host: str) -> CpuModel:
        """What the host of that name truly offers."""
        return self.hosts.offered(host)

    def unlevelled(self, host: str) -> str:
        """QEMU's ``-cpu`` for a guest that sees all that the host of that name offers."""
        return host

    def machine(self, **options: object) -> Machine:
        """The lab guest, with options for its payload."""
        return self._machine(self.image, options)

    def served_machine(self, **options: object) -> Machine:
        """The same with the translator's module in its kernel, whose counters it prints."""
        return self._machine(self.served, options)

    def _machine(self, image: GuestImage, options: Mapping[str, object]) -> Machine:
        return Machine(
            kernel=image.kernel,
            initrd=image.initrd,
            command_line=command_line({**self.payload, **options}, clock=self.clock),
            memory_mib=self.memory_mib,
        )

    async def up(
        self, running: process.QemuProcess, *, ticks: int = 2, patience_s: float | None = None
    ) -> None:
        """Wait until the payload has ticked ``ticks`` times in this process.

        :param patience_s: for how long; as for a boot if None.
        :raises IsthmusError: it does not; tells of its death, or the console's last line.
        """
        deadline = time.monotonic() + (self.pace.boot_s if patience_s is None else patience_s)
        while time.monotonic() < deadline and running.alive():
            if running.payload.exists() and running.payload.read_bytes().count(b" tick ") >= ticks:
                return
            await asyncio.sleep(POLL_S)
        console = running.console.read_bytes() if running.console.exists() else b""
        death = find_death(console)
        said = readable(console, last=1)
        why = death.headline if death else said[0] if said else "its console is empty"
        raise IsthmusError(
            f"the guest's payload is silent: {why}",
            remedy="isthmus doctor tells whether this machine has what is needed",
        )


async def choose_engine(
    binary: QemuBinary, pair: tuple[str, str], wanted: str = "auto"
) -> tuple[Trial, QemuCpus]:
    """KVM if it truly runs guests and gives both models whole, else TCG; with the reason.

    :param wanted: ``auto``, or ``kvm`` or ``tcg`` to take no other.
    :raises InputError: QEMU has no CPU model of that name.
    :raises EnvironmentLackError: KVM was asked for and cannot do it.
    """
    reason = "asked for"
    if wanted != Accelerator.TCG:
        trial = await asyncio.to_thread(try_accelerator, binary, Accelerator.KVM)
        reason = f"KVM is not usable here: {trial.reason}"
        if trial.works:
            cpus = await _cpus(binary, Accelerator.KVM, pair)
            short = {name: cpus.unavailable[name] for name in pair if cpus.unavailable[name]}
            if not short:
                return trial, cpus
            lacks = "; ".join(f"{name}: {', '.join(sorted(of))}" for name, of in short.items())
            reason = f"KVM runs guests here but lacks what the two hosts have ({lacks})"
        if wanted == Accelerator.KVM:
            raise EnvironmentLackError(reason, remedy="use --engine tcg, or auto")
    tcg = Trial(accelerator=Accelerator.TCG, works=True, reason=reason)
    return tcg, await _cpus(binary, Accelerator.TCG, pair)


async def _cpus(binary: QemuBinary, accelerator: Accelerator, pair: tuple[str, str]) -> QemuCpus:
    cpus = await read_cpus(binary, accelerator)
    for name in pair:
        cpus.offered(name)
        if name in {"host", "max", "base"}:
            raise InputError(
                f"{name}: means another CPU on every machine",
                remedy="name a model of a real processor",
            )
    return cpus


@contextlib.contextmanager
def own_folder() -> Iterator[Path]:
    """A folder whose processes are ended, and which is removed, when the block is left."""
    run = process.private_directory(run_folder())
    folder = Path(tempfile.mkdtemp(prefix="demo-", dir=run))
    try:
        yield folder
    finally:
        end_processes(folder)
        shutil.rmtree(folder, ignore_errors=True)
        with contextlib.suppress(OSError):
            run.rmdir()  # only if nobody else uses it


def end_processes(folder: Path) -> None:
    """End the QEMUs and translators of ours that live in ``folder``, nobody else's."""
    for found in process.mentioning(folder):
        if _parent(found.pid) == os.getpid():
            found.kill()


def _parent(pid: int) -> int | None:
    """Field 4 of /proc/PID/stat (proc(5)); None for a process that has gone."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    return int(text[text.rindex(")") + 2 :].split()[1])
