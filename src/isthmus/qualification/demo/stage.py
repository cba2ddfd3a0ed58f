"""The stage of the demo: two hosts, a folder of its own, and nothing left behind.

All processes are started with ``lives_with_parent`` and killed at the end; all files lie in one
temporary folder that is removed.
"""

import asyncio
import contextlib
import shutil
import tempfile
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Self

from isthmus.cpu.features import FEATURES
from isthmus.cpu.model import CpuModel
from isthmus.errors import IsthmusError
from isthmus.hypervisor.qemu import process
from isthmus.hypervisor.qemu.binary import QemuBinary, find_qemu
from isthmus.hypervisor.qemu.engine import Accelerator, Trial, try_accelerator
from isthmus.hypervisor.qemu.guests import Guest, GuestStore
from isthmus.hypervisor.qemu.models import QemuCpus, read_cpus
from isthmus.migration.hosts import Hosts, Machine
from isthmus.qualification.lab.image import GuestImage, build_image, command_line
from isthmus.qualification.payload.report import Follower, Stream

BOOT_TIMEOUT_S = 90.0


class Stage:
    """Everything the acts need; use as ``async with Stage.open(…) as stage``."""

    def __init__(self, hosts: Hosts, image: GuestImage, engine: Trial, folder: Path) -> None:
        self.hosts = hosts
        self.image = image
        self.engine = engine
        self.folder = folder

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
        """
        binary = await asyncio.to_thread(find_qemu, qemu)
        progress("trying which engine can play both hosts")
        trial, cpus = await _engine(binary, pair, engine)
        for name in pair:
            cpus.offered(name)
        image = await asyncio.to_thread(build_image, kernel, cache=cache, progress=progress)
        folder = Path(tempfile.mkdtemp(prefix="isthmus-demo-"))
        try:
            store = GuestStore(folder / "state", folder / "run")
            yield cls(Hosts(binary, trial.accelerator, cpus, store), image, trial, folder)
        finally:
            for left in process.mentioning(folder):
                left.kill()
            shutil.rmtree(folder, ignore_errors=True)

    def machine(self, **options: object) -> Machine:
        """The lab guest, with options for its payload."""
        return Machine(
            kernel=self.image.kernel,
            initrd=self.image.initrd,
            command_line=command_line(options),
        )

    async def up(self, running: process.QemuProcess, *, ticks: int = 2) -> None:
        """Wait until the payload has ticked.

        :raises IsthmusError: it does not; tells the console's last line.
        """
        deadline = time.monotonic() + BOOT_TIMEOUT_S
        while time.monotonic() < deadline and running.alive():
            if running.payload.exists() and running.payload.read_bytes().count(b" tick ") >= ticks:
                return
            await asyncio.sleep(0.02)
        said = running.console.read_text(encoding="utf-8", errors="replace").strip().splitlines()
        raise IsthmusError(
            f"the guest does not come up: {said[-1] if said else 'its console is empty'}",
            remedy="isthmus doctor tells whether this machine has what is needed",
        )


class Listener:
    """Follows the payload of one guest from process to process, stamping what arrives."""

    def __init__(self, stage: Stage, guest: Guest) -> None:
        self._folder = stage.hosts.store.run / guest.name
        self._followers = [Follower(guest.process.payload)]
        self._task = asyncio.create_task(self._follow())

    async def _follow(self) -> None:
        while True:
            # The next process's file appears in the next folder while it is being prepared.
            following = self._folder / str(len(self._followers)) / "payload.log"
            if following.exists():
                self._followers.append(Follower(following))
            for follower in self._followers[-2:]:
                follower.poll()
            await asyncio.sleep(0.002)

    async def streams(self) -> list[Stream]:
        """Stop following and return all that came, one stream for each process."""
        self._task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self._task
        for follower in self._followers:
            follower.poll()
        return [follower.stream for follower in self._followers]


def cpuid_words(names: frozenset[str]) -> dict[tuple[int, int, str], int]:
    """The CPUID bits of features, as the payload's judge wants them."""
    words: dict[tuple[int, int, str], int] = {}
    for name in names:
        feature = FEATURES.get(name)
        if feature is None or feature.leaf is None or feature.bit is None:
            continue
        place = (feature.leaf, feature.subleaf or 0, str(feature.register))
        words[place] = words.get(place, 0) | 1 << feature.bit
        if name == "svm":  # its whole leaf goes with it
            words |= dict.fromkeys(
                ((0x8000000A, 0, register) for register in ("eax", "ebx", "ecx", "edx")), 0xFFFFFFFF
            )
    return words


def differences(one: CpuModel, other: CpuModel) -> tuple[str, ...]:
    """What the first has and the second lacks, sorted."""
    return tuple(sorted(one.features - other.features))


async def _engine(binary: QemuBinary, pair: tuple[str, str], wanted: str) -> tuple[Trial, QemuCpus]:
    """KVM if it truly runs guests and gives both models whole, else TCG; with the reason."""
    if wanted in {"auto", "kvm"}:
        trial = await asyncio.to_thread(try_accelerator, binary, Accelerator.KVM)
        if trial.works:
            cpus = await read_cpus(binary, Accelerator.KVM)
            lacking = {name: cpus.unavailable.get(name, frozenset()) for name in pair}
            short = [name for name in pair if lacking[name]]
            if wanted == "kvm" or not short:
                return trial, cpus
            reason = f"KVM runs guests here, but this CPU cannot play {' and '.join(short)}"
        else:
            reason = f"KVM is not usable here: {trial.reason}"
        if wanted == "kvm":
            raise IsthmusError(reason, remedy="use --engine tcg")
    else:
        reason = "asked for"
    trial = Trial(accelerator=Accelerator.TCG, works=True, reason=reason)
    return trial, await read_cpus(binary, Accelerator.TCG)
