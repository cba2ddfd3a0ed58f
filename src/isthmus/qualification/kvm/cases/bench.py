"""What a case works with: lab hosts that are up, guests on them, moves, and what they say.

A guest is started and moved here by the same functions as by the command line.  Whatever is waited
for is waited for with a deadline of minutes: an emulated host is slow, and a busy machine slower.
"""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable, Collection, Iterable
from pathlib import Path

from isthmus.baseline.level import level
from isthmus.cpu.model import CpuModel
from isthmus.errors import IsthmusError, RefusedError, RolledBackError
from isthmus.hypervisor.qemu import process
from isthmus.hypervisor.qemu.guests import Guest, GuestStore
from isthmus.hypervisor.qemu.process import LaunchSpec
from isthmus.migration.hosts import Machine
from isthmus.migration.options import Options
from isthmus.migration.record import MigrationRecord, records
from isthmus.qualification.kvm.pool import LabHosts
from isthmus.qualification.lab.image import GuestImage, command_line
from isthmus.qualification.payload.verdict import Verdict, judge
from isthmus.values import Value

PATIENCE_S = 300.0
"""How long something is waited for that happens within seconds on an idle machine."""

VERIFY_S = 120.0
"""How long a move watches for the payload's reports; it goes on as soon as they come."""

MEMORY_MIB = 128
BARE_MEMORY_MIB = 32


class Moved(Value, frozen=True):
    """What became of a move: ``committed``, ``refused`` or ``rolled back``, and why if not."""

    outcome: str
    why: str = ""
    record: MigrationRecord | None = None

    @property
    def committed(self) -> bool:
        """Whether the guest is at the destination."""
        return self.outcome == "committed"


class Bench:
    """Lab hosts that are up, and what a case does on them.

    :param kernels: the guest's image for a kernel (a series or package, None: the usual one).
    :param note: is told each step that takes time.
    """

    def __init__(
        self,
        hosts: LabHosts,
        kernels: Callable[[str | None], GuestImage],
        note: Callable[[str], None] = lambda _: None,
    ) -> None:
        self.hosts = hosts
        self.note = note
        self._kernels = kernels
        self._started = 0

    @property
    def store(self) -> GuestStore:
        """The guests of this user."""
        return self.hosts.store

    async def image(self, kernel: str | None = None) -> GuestImage:
        """What a guest boots from."""
        return await asyncio.to_thread(self._kernels, kernel)

    @contextlib.asynccontextmanager
    async def guest(
        self,
        host: str,
        *,
        level_with: Iterable[str] = (),
        shown: CpuModel | None = None,
        vcpus: int = 1,
        options: dict[str, object] | None = None,
        kernel: str | None = None,
        image: GuestImage | None = None,
        clock: str = "kvm-clock",
        words: str = "",
        paravirtual: tuple[str, ...] = (),
        module: bool = False,
    ) -> AsyncIterator[str]:
        """A guest on ``host`` whose payload has reported, by its name; it ends with the block.

        :param level_with: it is shown the level of its host and these.
        :param shown: or it is shown just this CPU; all that the host offers if neither is given.
        :param options: of its payload (``docs/payload.md``).
        :param image: what it boots, if not the usual image of ``kernel``.
        :param words: more words for its kernel's command line.
        :param paravirtual: what its hypervisor offers it besides, in QEMU's words.
        :param module: its image loads the translator's module.
        """
        self._started += 1
        name = f"self{self._started}"
        boot = image or await self.image(kernel)
        pool = [host, *level_with]
        if shown is None and len(pool) > 1:
            shown = level([self.hosts.offered(each) for each in pool]).model
        line = command_line(options or {}, clock=clock)
        machine = Machine(
            kernel=boot.kernel,
            initrd=boot.initrd,
            command_line=f"{line} {words}".strip(),
            memory_mib=MEMORY_MIB,
            vcpus=vcpus,
            paravirtual=paravirtual,
        )
        self.note(f"a guest boots on {host}")
        self._forget(name)
        started = await self.hosts.start(
            name, host, machine, shown=shown, module=module, lives_with_parent=True
        )
        try:
            await self.until(
                lambda: b" tick " in _bytes(started.process.payload),
                f"the guest on {host} comes up",
                alive=started,
            )
            yield name
        finally:
            await asyncio.to_thread(self._forget, name)

    @contextlib.asynccontextmanager
    async def bare_guest(
        self, host: str, boot: GuestImage, words: str, *, level_with: Iterable[str] = ()
    ) -> AsyncIterator[str]:
        """A guest on ``host`` that has no payload, by its name; it ends with the block.

        :param boot: what it boots, a kernel of its own; ``words``: that one's command line.
        """
        self._started += 1
        name = f"self{self._started}"
        machine = Machine(boot.kernel, boot.initrd, words, memory_mib=BARE_MEMORY_MIB)
        shown = level([self.hosts.offered(each) for each in (host, *level_with)]).model
        self._forget(name)
        await self.hosts.start(name, host, machine, shown=shown, lives_with_parent=True)
        try:
            yield name
        finally:
            await asyncio.to_thread(self._forget, name)

    def read(self, name: str) -> Guest:
        """The guest as it is now."""
        return self.store.read(name)

    async def move(
        self,
        name: str,
        to: str,
        *,
        accepted: Collection[str] = (),
        translate: bool | None = None,
        rewrite: bool = True,
        verify_s: float = VERIFY_S,
        alter: Callable[[LaunchSpec], LaunchSpec] = lambda spec: spec,
    ) -> Moved:
        """Move a guest as ``isthmus migrate`` does; what fails is told, not raised.

        :param accepted: the risks that are taken, by rule; ``*`` is every one that is found.
        :param alter: how the destination is launched otherwise than it should be.
        """
        if "*" in accepted:
            found = self.hosts.check(self.read(name), to, translate=translate is not False)
            accepted = [finding.rule for finding in found.blocking]
        options = Options(
            verify_s=verify_s, translate=translate, rewrite=rewrite, lives_with_parent=True
        )
        self.note(f"it moves to {to}")
        before = set(self.store.journals.glob("*"))
        try:
            record = await self.hosts.move(name, to, options, accepted=accepted, alter=alter)
        except RefusedError as error:
            return Moved(outcome="refused", why=error.message)
        except RolledBackError as error:
            return Moved(
                outcome="rolled back", why=error.message, record=self._newest(name, before)
            )
        return Moved(outcome="committed", record=record)

    def _newest(self, name: str, before: set[Path]) -> MigrationRecord | None:
        found = [
            record
            for path, record in records(self.store.journals)
            if path not in before and record.plan.guest == name
        ]
        return found[-1] if found else None

    def console(self, name: str) -> str:
        """What the guest has printed in the process that it runs in now."""
        return _bytes(self.read(name).process.console).decode(errors="replace")

    def consoles(self, name: str) -> str:
        """What the guest has printed in all the processes that it was given, oldest first."""
        paths = sorted((self.store.run / name).glob("*/console.log"), key=_made)
        return "".join(_bytes(path).decode(errors="replace") for path in paths)

    def verdict(self, name: str) -> Verdict:
        """The payload's judgement of the guest's whole life so far."""
        return judge([_bytes(stream) for stream in self.read(name).streams])

    def heard(self, name: str) -> int:
        """How many bytes of reports have come from the guest where it is now."""
        return len(_bytes(self.read(name).process.payload))

    async def lives(self, name: str, *, reports: int = 5) -> bool:
        """Whether so many more reports come from the guest, within the time of patience."""
        stream = self.read(name).process.payload
        before = _bytes(stream).count(b"\n")
        try:
            await self.until(
                lambda: _bytes(stream).count(b"\n") >= before + reports, "it reports", alive=None
            )
        except IsthmusError:
            return False
        return True

    async def says(self, name: str, *words: str, patience_s: float = PATIENCE_S) -> str | None:
        """The first of these words that the guest's consoles show; None if none comes."""
        deadline = time.monotonic() + patience_s
        while True:
            text = self.consoles(name)
            for word in words:
                if word in text:
                    return word
            if time.monotonic() >= deadline:
                return None
            await asyncio.sleep(0.5)

    async def until(
        self,
        holds: Callable[[], bool],
        what: str,
        *,
        alive: Guest | None = None,
        patience_s: float = PATIENCE_S,
    ) -> None:
        """Wait until ``holds``.

        :param alive: whose process must live meanwhile.
        :raises IsthmusError: it does not happen; names ``what``.
        """
        deadline = time.monotonic() + patience_s
        while not holds():
            if alive is not None and not alive.process.alive():
                said = process.last_words(alive.process.messages)
                raise IsthmusError(f"not seen: {what}; QEMU ended: {said}")
            if time.monotonic() >= deadline:
                raise IsthmusError(f"not seen within {patience_s:g} s: {what}")
            await asyncio.sleep(0.2)

    def _forget(self, name: str) -> None:
        """End a guest and everything that a move of it has left."""
        for left in process.mentioning(self.store.run / name):
            left.kill()
        self.store.forget(name)


def _bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError:
        return b""


def _made(path: Path) -> float:
    return path.stat().st_mtime
