"""Guests of this machine on hosts that its QEMU plays: start them, move them, take stock.

This ties the parts together for the command line and the demo: preflight, the engine, the guest's
file.  The hosts are named CPU models; what each truly offers is asked of QEMU.
"""

import contextlib
import time
import uuid
from collections.abc import Callable, Collection, Mapping
from pathlib import Path

import msgspec

from isthmus.cpu.model import CpuModel
from isthmus.divergence.rules import GuestEvidence
from isthmus.errors import InputError, IsthmusError
from isthmus.hypervisor.qemu import process
from isthmus.hypervisor.qemu.binary import QemuBinary, versioned_pc_machine
from isthmus.hypervisor.qemu.breakpoints import try_breakpoint
from isthmus.hypervisor.qemu.engine import Accelerator
from isthmus.hypervisor.qemu.guests import Guest, GuestStore, level_command
from isthmus.hypervisor.qemu.models import QemuCpus
from isthmus.hypervisor.qemu.process import LaunchSpec, QemuProcess
from isthmus.hypervisor.qemu.render import cpu_argument
from isthmus.hypervisor.qemu.through_file import Deposit, check_place
from isthmus.migration import engine, platforms
from isthmus.migration.options import Observer, Options
from isthmus.migration.preflight import Preflight, preflight
from isthmus.migration.record import (
    MigrationRecord,
    Plan,
    Side,
    guest_lock,
    new_id,
    read_record,
    records,
    require_none_pending,
)
from isthmus.translate.placement import Service, Translation, arrange, service
from isthmus.translate.rewrite.record import RECORD, RewriteOrder
from isthmus.translate.rewrite.record import read_record as read_rewritten
from isthmus.translate.service import TranslatorClient, TranslatorError, spawn
from isthmus.translate.table import Placement
from isthmus.values import Value

ASSURED = ("vendor-stated", "cpu-enforced", "registers-compared")
"""What a move between these hosts always sees to (``divergence/data/facts.json``)."""


class Machine(Value, frozen=True):
    """What a lab guest is, apart from its CPU: memory in MiB, vCPUs, what it boots.

    ``paravirtual``: what the hypervisor offers it besides, as in :class:`LaunchSpec`.
    """

    kernel: Path
    initrd: Path
    command_line: str
    memory_mib: int = 256
    vcpus: int = 1
    disk: Path | None = None
    paravirtual: tuple[str, ...] = ()


class Hosts:
    """The hosts that one QEMU plays under one accelerator, and the guests on them."""

    def __init__(
        self, qemu: QemuBinary, accelerator: Accelerator, cpus: QemuCpus, store: GuestStore
    ) -> None:
        self.qemu = qemu
        self.accelerator = accelerator
        self.cpus = cpus
        self.store = store
        self._trapping: dict[str, bool] = {}

    def offered(self, host: str) -> CpuModel:
        """What ``host`` can show a guest; raises :class:`InputError` for an unknown one."""
        return self.cpus.offered(host)

    def hypervisor(self, host: str) -> QemuBinary:  # noqa: ARG002 (one QEMU plays them all)
        """The QEMU of ``host``."""
        return self.qemu

    def program(self, host: str, home: Path) -> Path:  # noqa: ARG002
        """The QEMU that takes over a guest on ``host`` whose QEMU so far is ``home``."""
        return home

    def facts(self) -> Mapping[str, bool]:
        """What is known of every host, as ``divergence/data/facts.json`` names it."""
        return {}

    def way(self, host: str, folder: Path, channel: str) -> tuple[str, str]:  # noqa: ARG002
        """Where a guest that comes to ``host`` is received, and where its source has to dial.

        :param folder: of the process that will receive it; ``channel`` as in the options of a move.
        :returns: addresses as QEMU writes them; the second is empty if it is the first.
        """
        return "tcp:127.0.0.1:0" if channel == "tcp" else f"unix:{folder / 'stream.sock'}", ""

    def deposit(self, path: Path, host: str, folder: Path, channel: tuple[str, str]) -> Deposit:  # noqa: ARG002
        """How a guest goes through the file ``path`` to ``host``.

        :param folder: of the process that will receive it.
        :param channel: what :meth:`way` has said.
        """
        return Deposit(path=path, listen=f"unix:{folder / 'file.sock'}")

    def traps(self, host: str) -> bool:
        """Whether guests on ``host`` stop at breakpoints, which the translator outside needs.

        Tried once for each host; seconds where the host is emulated.
        """
        if self.accelerator is Accelerator.TCG:
            return True  # QEMU executes the guest, so it sees each of its instructions
        if host not in self._trapping:
            self._trapping[host] = try_breakpoint(self.hypervisor(host), self.accelerator).works
        return self._trapping[host]

    def served(self, guest: Guest, host: str, *, translate: bool) -> Service:
        """Who would translate for the guest on ``host``.

        :param translate: whether it may be done from outside.
        """
        lacking = guest.shown.features - self.offered(host).features
        possible = translate and not guest.module and (not lacking or self.traps(host))
        return service(
            module=guest.module,
            outside=possible,
            avx="avx" in guest.shown.features,
            vcpus=guest.spec.vcpus,
        )

    async def start(
        self,
        name: str,
        host: str,
        machine: Machine,
        *,
        shown: CpuModel | None = None,
        module: bool = False,
        lives_with_parent: bool = False,
    ) -> Guest:
        """Start a guest on ``host``.

        :param module: its kernel will have the translator's module loaded.
        :param shown: the CPU the guest sees; all that the host offers if None (unlevelled).
        :raises InputError: there is a guest of that name, or the host lacks what is to be shown.
        """
        if name in self.store.names():
            raise InputError(
                f"{name}: there is a guest of that name", remedy=f"isthmus guest stop {name}"
            )
        offer = self.offered(host)
        shown = shown or offer
        if shown.tsc_khz is None:
            # Nobody tells it a rate: it measures its home's when it boots.
            shown = shown.replace(tsc_khz=offer.tsc_khz)
        if missing := sorted(shown.features - offer.features):
            raise InputError(
                f"{host} does not offer {', '.join(missing)}", remedy="level for this host, too"
            )
        spec = LaunchSpec(
            qemu=self.hypervisor(host).path,
            accelerator=self.accelerator,
            machine=versioned_pc_machine(self.hypervisor(host)),
            cpu=cpu_argument(shown, self.cpus.named),
            vcpus=machine.vcpus,
            memory_mib=machine.memory_mib,
            kernel=machine.kernel,
            initrd=machine.initrd,
            command_line=machine.command_line,
            name=name,
            uuid=str(uuid.uuid4()),
            disk=machine.disk,
            paravirtual=machine.paravirtual,
        )
        running = await process.start(
            spec, self.store.hop_folder(name, 0), lives_with_parent=lives_with_parent
        )
        guest = Guest(
            name=name,
            spec=spec,
            host=host,
            shown=shown,
            process=running,
            streams=(running.payload,),
            module=module,
            home=host,
        )
        try:
            self.store.write(guest)
        except IsthmusError:
            running.kill()
            raise
        return guest

    def check(
        self,
        guest: Guest,
        host: str,
        *,
        translate: bool = True,
        rewrite: bool = True,
        accepted: Collection[str] = (),
    ) -> Preflight:
        """All checks of a move to ``host``; takes no step.

        :param translate: whether the translator outside may be armed.
        :param rewrite: whether it may also rewrite the kernel's patch sites.
        """
        by = self.served(guest, host, translate=translate)
        return self._judge(guest, host, by, accepted, rewrite=rewrite and translate)

    def _judge(
        self, guest: Guest, host: str, by: Service, accepted: Collection[str], *, rewrite: bool
    ) -> Preflight:
        evidence = GuestEvidence(
            shown=guest.shown,
            vcpus=guest.spec.vcpus,
            memory_mib=guest.spec.memory_mib,
            facts=_clock_of(guest.spec.command_line),
        )
        return preflight(
            guest.name,
            evidence,
            guest.host,
            self.offered(host),
            translatable=by.covered,
            accepted=accepted,
            hypervisor=self.accelerator.value,
            manager="qemu",
            assured=(*ASSURED, *(("repairs-hypercalls",) if rewrite else ())),
            source=self._source(guest),
            facts=self.facts(),
        )

    async def move(
        self,
        name: str,
        host: str,
        options: Options,
        *,
        accepted: Collection[str] = (),
        observer: Observer = lambda _: None,
        checkpoint: engine.Checkpoint = engine.nothing,
        alter: Callable[[LaunchSpec], LaunchSpec] = lambda spec: spec,
    ) -> MigrationRecord:
        """Move a guest to ``host``.

        :param alter: changes how the destination is launched; tests make it refuse there.
        :raises RefusedError: preflight found what could not work; nothing was touched.
        :raises RolledBackError: it failed and the guest runs on its source.
        :raises UndecidedError: the operator has to decide.
        """
        with guest_lock(self.store.locks, name):
            guest = self.store.read(name)
            require_at_rest(self.store, name)
            await _revive(guest)
            by = self.served(guest, host, translate=options.translate is not False)
            rewrite = options.rewrite and options.translate is not False
            verdict = self._judge(guest, host, by, accepted, rewrite=rewrite)
            verdict.require()
            translation = translation_for(guest, verdict, by, warn_share=options.warn_share)
            plan = self._plan(guest, host, verdict, translation, options)
            if plan.spec is not None:
                plan = msgspec.structs.replace(plan, spec=alter(plan.spec))
            return await engine.move(
                plan,
                journals=self.store.journals,
                options=options,
                observer=observer,
                checkpoint=checkpoint,
                adopt=lambda record: adopt(self.store, record),
            )

    def _source(self, guest: Guest) -> CpuModel | None:
        """What the guest's present host can do; None where that is not known any more."""
        try:
            return self.offered(guest.host)
        except InputError:
            return None

    def _plan(
        self,
        guest: Guest,
        host: str,
        verdict: Preflight,
        translation: Translation | None,
        options: Options,
    ) -> Plan:
        folder = self.store.hop_folder(guest.name, guest.hops + 1)
        outside = translation is not None and translation.placement is Placement.OUTSIDE
        rewrite = None
        needed = any(finding.rule == "hypercalls-rewritten" for finding in verdict.findings)
        if guest.rewritten is not None or needed or (options.rewrite and outside):
            rewrite = RewriteOrder(
                record=folder / RECORD,
                born=guest.shown.features,
                # Without the wish to rewrite, all is put back: as if nothing were missing.
                features=verdict.shown.features if options.rewrite else guest.shown.features,
                maker=self.offered(host).vendor if options.rewrite else guest.shown.vendor,
                memory_mib=guest.spec.memory_mib,
                kernel=guest.spec.kernel,
                prior=guest.rewritten,
                needed=needed,
            )
        channel, dial = self.way(host, folder, options.channel)
        deposit = None
        if options.through is not None:
            check_place(options.through, guest.spec.memory_mib)
            deposit = self.deposit(options.through, host, folder, (channel, dial))
        return Plan(
            id=new_id(),
            guest=guest.name,
            source=side_of(guest.process, guest.translator),
            destination=Side(
                qmp=folder / "qmp.sock",
                observe=folder / "observe.sock",
                directory=folder,
                translator=folder if outside else None,
            ),
            channel=channel,
            dial=dial,
            deposit=deposit,
            spec=msgspec.structs.replace(
                guest.spec,
                qemu=self.program(host, guest.spec.qemu),
                cpu=cpu_argument(verdict.shown, self.cpus.named),
            ),
            source_host=guest.host,
            destination_host=host,
            created=time.time(),
            rewrite=rewrite,
            translation=translation,
        )


def _clock_of(command_line: str) -> dict[str, bool]:
    """What a kernel's command line says of its clock source; nothing where it leaves the choice."""
    chosen = [word for word in command_line.split() if word.startswith("clocksource=")]
    return {"clock-tsc": chosen[-1] == "clocksource=tsc"} if chosen else {}


def translation_for(
    guest: Guest, verdict: Preflight, by: Service, *, warn_share: float | None = None
) -> Translation | None:
    """What has to be translated for a guest where ``verdict`` is about, None: nothing.

    :param by: who may serve it there, as for the verdict.
    """
    return arrange(
        by,
        verdict.translated,
        warn_share=guest.warn_share if warn_share is None else warn_share,
        level=level_command(guest.home or guest.shown.name, verdict.destination_host),
    )


def side_of(running: QemuProcess, translator: Path | None) -> Side:
    """A running process as one side of a migration."""
    return Side(
        qmp=running.qmp,
        observe=running.observe,
        directory=running.directory,
        identity=running.identity,
        translator=translator,
    )


def adopt(store: GuestStore, record: MigrationRecord) -> None:
    """Make the destination of a migration the guest; doing it twice changes nothing."""
    plan = record.plan
    side = plan.destination
    if plan.spec is None or side.directory is None or side.identity is None:
        return  # not a guest of ours
    guest = store.read(plan.guest)
    running = QemuProcess(identity=side.identity, directory=side.directory, command=())
    if running.payload in guest.streams:
        return
    store.write(
        msgspec.structs.replace(
            guest,
            spec=plan.spec,
            host=plan.destination_host,
            process=running,
            streams=(*guest.streams, running.payload),
            translator=side.translator,
            rewritten=_rewritten(plan),
            translation=plan.translation,
            warn_share=plan.translation.warn_share if plan.translation else guest.warn_share,
        )
    )


def _rewritten(plan: Plan) -> Path | None:
    """The record of what is not as at home in the guest that has arrived, if anything is."""
    if plan.rewrite is None:
        return None
    path = plan.rewrite.record
    return path if read_rewritten(path).written else None


def require_at_rest(store: GuestStore, guest: str) -> None:
    """Refuse while an earlier migration of a guest of ours has not come to its end.

    :raises IsthmusError: one has not.
    """
    require_none_pending(
        store.journals, guest, lambda plan: not plan.platform and plan.guest == guest
    )


def unfinished(store: GuestStore, guest: str | None = None) -> list[Path]:
    """The journals of migrations that have not come to their end, oldest first."""
    return [
        path
        for path, record in records(store.journals)
        if not record.final and guest in {None, record.plan.guest}
    ]


async def recover(
    store: GuestStore, path: Path, *, observer: Observer = lambda _: None, use: str = ""
) -> MigrationRecord:
    """Finish or roll back a migration whose process was killed.

    :param use: the operator's choice (``source`` or ``destination``) where nothing else decides.
    :raises IsthmusError: somebody moves the guest right now.
    :raises UndecidedError: the operator has to decide.
    """
    record = read_record(path)
    with guest_lock(store.locks, record.plan.guest):
        if record.plan.platform:
            return await platforms.load(record.plan.platform).recover(path, store, observer, use)
        return await engine.resume(
            path,
            options=Options(),
            observer=observer,
            adopt=lambda done: adopt(store, done),
            use=use,
        )


async def spawn_for(guest: Guest) -> TranslatorClient:
    """Start the translator of a running guest of ours; it is not armed.

    :raises TranslatorError: it does not come up.
    """
    folder = guest.translator or guest.process.directory
    return await spawn(
        guest.process.gdb, folder, warn_share=guest.warn_share, level=guest.level_command
    )


async def revive_translators(
    store: GuestStore, problems: dict[str, str] | None = None
) -> list[str]:
    """Start the translators again that have died while their guests need them.

    Such a guest stands still at its next #UD; the new translator takes over there.  A guest that
    another command works on is left to it: two translators for one guest would be one too many.

    :param problems: gets the names of the guests that cannot be helped, and why; without it the
        first of them is raised.
    :returns: the names of the guests that were helped.
    """
    helped = []
    for name in (guest.name for guest in store.guests()[0]):
        with contextlib.ExitStack() as held:
            try:
                held.enter_context(guest_lock(store.locks, name))
            except IsthmusError:
                continue
            # Which copy may run is for its recovery to say: the stale one would run beside it.
            try:
                if not unfinished(store, name) and await _revive(store.read(name)):
                    helped.append(name)
            except IsthmusError as error:
                if problems is None:
                    raise
                problems[name] = str(error)
    return helped


async def _revive(guest: Guest) -> bool:
    """Whether the guest lacked its translator and has one now."""
    if guest.translator is None or not guest.process.alive():
        return False
    try:
        client = await TranslatorClient.connect(guest.translator)
    except TranslatorError:
        client = await spawn_for(guest)
        await client.take_over()
        missing = True
    else:
        missing = False
    await client.close()
    return missing
