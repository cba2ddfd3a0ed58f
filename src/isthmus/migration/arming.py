"""Arm, look at and disarm the translator of a guest that runs where it is, without a move.

The guest's file names the translator *before* one is armed and until it has left: whoever moves the
guest has to know of it, since a translator that is not held would start the stale source.  If we
are killed in between, `isthmus status` finds a guest whose translator is missing, and starts it.
"""

import contextlib

import msgspec

from isthmus.errors import IsthmusError, RefusedError
from isthmus.hypervisor.qemu.guests import Guest, GuestStore
from isthmus.hypervisor.qemu.monitor import CommandRefusedError, Monitor
from isthmus.migration.hosts import Hosts, require_at_rest, spawn_for, translation_for
from isthmus.migration.record import guest_lock
from isthmus.translate.cost import warning
from isthmus.translate.outside import TranslatorStatus
from isthmus.translate.placement import Translation
from isthmus.translate.service import TranslatorClient, TranslatorError
from isthmus.translate.table import Placement
from isthmus.values import Value

SCHEMA_VERSION = 1


class Report(Value, frozen=True):
    """What is translated for one guest, as the operator sees it.

    ``translation`` is None where nothing is; ``status`` holds the translator's counters where one
    answers, ``problem`` says what is wrong, ``warning`` that it costs too much; both may be empty.
    """

    guest: str
    host: str
    alive: bool
    translation: Translation | None = None
    status: TranslatorStatus | None = None
    problem: str = ""
    warning: str = ""
    schema: int = SCHEMA_VERSION


class Attached(Value, frozen=True):
    """What arming found: the #UD entry, ``missing``: features that the host lacks and that stay so.

    ``took_ms``: how long it took; the guest stood still for most of that.
    """

    guest: str
    translation: Translation
    entry: int
    took_ms: float
    missing: tuple[str, ...] = ()
    schema: int = SCHEMA_VERSION


async def attach(hosts: Hosts, name: str, *, warn_share: float | None = None) -> Attached:
    """Arm the translator outside on a guest that runs.

    One that was left behind by a killed command, or has died, is taken over.

    :param warn_share: above this share of a vCPU its cost is warned of; as before where None.
    :raises RefusedError: the guest needs none, has one, or is in no state for it.
    :raises IsthmusError: it cannot be armed; the guest runs on as it was.
    """
    store = hosts.store
    with guest_lock(store.locks, name):
        guest = _at_rest(store, name)
        if guest.module:
            raise RefusedError(
                f"{name}: its kernel's module translates inside the guest",
                remedy="nothing has to be armed outside; its counters are in the guest's debugfs",
            )
        if not hosts.traps(guest.host):
            raise RefusedError(
                f"{name}: guests on {guest.host} stop at no breakpoint",
                remedy="load the module in its kernel: isthmus translate module --help",
            )
        if guest.translator is not None and await _answers(guest):
            raise RefusedError(
                f"{name}: the translator is armed already",
                remedy=f"`isthmus translate status {name}` shows it",
            )
        before = await _state(guest)
        if before not in {"running", "debug"}:
            raise RefusedError(
                f"{name}: the guest is {before}, not running", remedy="resume it first"
            )
        verdict = hosts.check(guest, guest.host)
        share = guest.warn_share if warn_share is None else warn_share
        by = hosts.served(guest, guest.host, translate=True)
        translation = translation_for(guest, verdict, by, warn_share=share) or Translation(
            placement=Placement.OUTSIDE, warn_share=share, level=guest.level_command
        )
        armed = msgspec.structs.replace(
            guest,
            translator=guest.translator or guest.process.directory,
            translation=translation,
            warn_share=share,
        )
        store.write(armed)
        try:
            entry, took_ms = await _arm(armed)
        except BaseException:
            # One that serves after all, whatever we were told, must not be forgotten.
            if not await _answers(armed):
                store.write(msgspec.structs.replace(guest, translator=None, translation=None))
            raise
        return Attached(
            guest=name,
            translation=translation,
            entry=entry,
            took_ms=took_ms,
            missing=tuple(sorted({finding.subject for finding in verdict.blocking})),
        )


async def detach(store: GuestStore, name: str, *, force: bool = False) -> Report:
    """Take the translator away from a guest, which goes on without; its last counters.

    :param force: also where the guest would meet instructions that its host lacks.
    :raises RefusedError: none is armed, or the guest needs it and ``force`` is not given.
    """
    with guest_lock(store.locks, name):
        guest = _at_rest(store, name)
        if guest.module:
            raise RefusedError(
                f"{name}: its kernel's module translates inside the guest",
                remedy="to take it away: rmmod isthmus_translate, in the guest",
            )
        if guest.translator is None:
            raise RefusedError(
                f"{name}: no translator is armed", remedy="`isthmus translate status` lists them"
            )
        try:
            client = await TranslatorClient.connect(guest.translator)
        except TranslatorError:
            # Its breakpoint is still in QEMU: without a new one the guest would stop there.
            client = await spawn_for(guest)
            await client.take_over()
        try:
            status = await client.status()
            needs = ", ".join(_needed(guest, status))
            if needs and not force:
                raise RefusedError(
                    f"{name} would die at its next {needs}: {guest.host} lacks what it uses",
                    remedy="move it home first, or take it away all the same (--yes)",
                )
            await client.detach()
            await client.ended()
        finally:
            await client.close()
        gone = msgspec.structs.replace(guest, translator=None, translation=None)
        store.write(gone)
        return Report(guest=name, host=guest.host, alive=guest.process.alive(), status=status)


def note_module(store: GuestStore, name: str, *, loaded: bool) -> None:
    """Write down that the guest's kernel has the translator's module loaded, or has it no more.

    :raises RefusedError: it is translated where it is, in another way than is said now.
    :raises InputError: there is no guest of that name.
    """
    with guest_lock(store.locks, name):
        guest = _at_rest(store, name)
        if guest.translator is not None and loaded:
            raise RefusedError(
                f"{name}: the translator is armed outside, and stops it before its module sees"
                " anything",
                remedy=f"isthmus translate detach {name}",
            )
        translation = guest.translation
        if translation is not None and translation.placement is Placement.INSIDE and not loaded:
            raise RefusedError(
                f"{name}: its module does {', '.join(translation.features)} for it on {guest.host}",
                remedy="move it home first",
            )
        store.write(msgspec.structs.replace(guest, module=loaded))


async def look(store: GuestStore, name: str) -> Report:
    """What is translated for a guest now; changes nothing.

    :raises InputError: there is no guest of that name.
    """
    guest = store.read(name)
    translation = guest.translation
    if translation is None and guest.module:
        translation = Translation(placement=Placement.INSIDE)
    if translation is None and guest.translator is not None:  # armed before 0.2 wrote it down
        translation = Translation(placement=Placement.OUTSIDE, level=guest.level_command)
    report = Report(
        guest=name, host=guest.host, alive=guest.process.alive(), translation=translation
    )
    if not report.alive:
        return msgspec.structs.replace(report, problem="the guest's process has ended")
    if guest.translator is None or translation is None:
        return report
    try:
        client = await TranslatorClient.connect(guest.translator)
    except TranslatorError:
        return msgspec.structs.replace(
            report, problem="no translator answers: `isthmus status` starts it again"
        )
    try:
        status = await client.status()
    except TranslatorError as error:
        return msgspec.structs.replace(report, problem=str(error))
    finally:
        await client.close()
    return msgspec.structs.replace(
        report,
        status=status,
        problem=status.problem,
        warning=warning(status, translation.warn_share, translation.level or guest.level_command),
    )


def _needed(guest: Guest, status: TranslatorStatus) -> tuple[str, ...]:
    """What the guest cannot do without the translator: features, else what was done for it."""
    if guest.translation is not None:
        return guest.translation.features
    return tuple(sorted(status.translated))


def _at_rest(store: GuestStore, name: str) -> Guest:
    """The guest, which runs and is not being moved."""
    guest = store.read(name)
    require_at_rest(store, name)
    if not guest.process.alive():
        raise IsthmusError(
            f"{name}: the guest's process has ended", remedy=f"isthmus guest stop {name}"
        )
    return guest


async def _answers(guest: Guest) -> bool:
    try:
        client = await TranslatorClient.connect(guest.translator or guest.process.directory)
    except TranslatorError:
        return False
    await client.close()
    return True


async def _state(guest: Guest) -> str:
    async with Monitor.session(guest.process.observe) as monitor:
        return await monitor.status()


async def _arm(guest: Guest) -> tuple[int, float]:
    """Arm a guest that runs; its entry, and how long that took in ms."""
    try:
        # One that a killed command has left behind serves on.
        client = await TranslatorClient.connect(guest.translator or guest.process.directory)
    except TranslatorError:
        client = await spawn_for(guest)
    try:
        report = await client.take_over()
    except TranslatorError as error:
        await _let_go(client, guest)
        raise IsthmusError(
            f"{guest.name}: {error.message}; the guest runs on without", remedy=error.remedy
        ) from error
    finally:
        await client.close()
    return report.entry, report.took_ms


async def _let_go(client: TranslatorClient, guest: Guest) -> None:
    """Let a guest run that could not be armed: connecting to QEMU's stub has stopped it."""
    with contextlib.suppress(TranslatorError):
        await client.detach()
        await client.ended()
    async with Monitor.session(guest.process.observe) as monitor:
        if await monitor.status() != "running":
            with contextlib.suppress(CommandRefusedError):
                await monitor.execute("cont")
