"""A move between two Xen hosts: ``xl migrate``, with each of its steps in the journal.

The rule is the engine's (:mod:`isthmus.migration.engine`): at most one copy runs.  What ``xl`` does
by itself fits into it, because its handshake goes through our hands
(:mod:`isthmus.hypervisor.xen.handshake`): ``switched`` when the destination holds the guest and
neither copy runs; ``starting`` is written before the source hears of it; the source's copy waits,
whole, until the guest has been watched on the destination, and only then is destroyed or resumed.
"""

import asyncio
import contextlib
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from isthmus.baseline.shown import shown_on
from isthmus.divergence.evidence import GuestEvidence, HostEvidence
from isthmus.divergence.finding import Finding, blocking
from isthmus.divergence.rules import findings
from isthmus.errors import (
    HypervisorError,
    InputError,
    IsthmusError,
    RolledBackError,
    UndecidedError,
)
from isthmus.hypervisor.qemu.guests import GuestStore
from isthmus.hypervisor.xen import host as xen
from isthmus.hypervisor.xen.admission import admission
from isthmus.hypervisor.xen.host import AWAY, INCOMING, POLICIES, GuestDomain, Host
from isthmus.hypervisor.xen.liveness import console_size
from isthmus.hypervisor.xen.runner import Runner, UnreachedError, runner_of
from isthmus.hypervisor.xen.transfer import Transfer
from isthmus.migration import xen_copies as copies
from isthmus.migration.decision import Action, Decision, Situation, decide
from isthmus.migration.ending import DeadOnArrivalError, to_its_end
from isthmus.migration.options import Observer, Progress
from isthmus.migration.phases import MAY_HAVE_RUN, Phase
from isthmus.migration.platforms import Request
from isthmus.migration.preflight import Preflight
from isthmus.migration.record import (
    Figures,
    Journal,
    MigrationRecord,
    Plan,
    Side,
    guest_lock,
    new_id,
    require_none_pending,
)
from isthmus.migration.xen_copies import One
from isthmus.migration.xen_recovery import (
    folder_beside,
    keep_skip,
    recovered,
    remedy,
    verified,
)
from isthmus.translate.xen.report import read_report

PLATFORM = "xen"

RESUMING_S = 180.0
"""How long a source may take to let its copy go on once its ``xl`` has been told."""


@dataclass(frozen=True, slots=True)
class _Checked:
    """What was asked before a move: both hosts, the guest, and the verdict."""

    source: Host
    destination: Host
    guest: GuestDomain
    verdict: Preflight


async def check(request: Request) -> Preflight:
    """All checks of a move; no step is taken.

    :raises InputError: there is no such guest, or the destination has one of that name.
    :raises HypervisorError: a host does not answer.
    """
    ways = runner_of(request.source), runner_of(request.destination)
    return (await _checked(request, *ways)).verdict


async def move(request: Request, store: GuestStore, observer: Observer) -> MigrationRecord:
    """Move a guest; returns the record of a committed migration.

    :raises RefusedError: preflight found what could not work; nothing was touched.
    :raises RolledBackError: it failed and the guest runs on its source.
    :raises UndecidedError: the operator has to decide.
    """
    source, destination = runner_of(request.source), runner_of(request.destination)
    name = request.guest
    with guest_lock(store.locks, name):
        require_none_pending(
            store.journals, name, lambda plan: (plan.platform, plan.guest) == (PLATFORM, name)
        )
        checked = await _checked(request, source, destination)
        checked.verdict.require()
        plan = Plan(
            id=new_id(),
            guest=name,
            source=Side(address=source.address, domain=checked.guest.uuid),
            destination=Side(address=destination.address, domain=checked.guest.uuid),
            channel="xl migrate",
            source_host=source.address,
            destination_host=destination.address,
            created=time.time(),
            platform=PLATFORM,
        )
        logs = folder_beside(store.journals, plan)
        logs.mkdir(mode=0o700, parents=True, exist_ok=True)
        run = _Run(
            Journal.create(store.journals, plan),
            source,
            destination,
            checked,
            request.options.verify_s,
            observer,
        )
        return await run.through(logs, checked.destination.maker if _filters(request) else "")


async def _checked(request: Request, source: Runner, destination: Runner) -> _Checked:
    name = request.guest
    here, there, guest = await asyncio.gather(
        xen.read_host(source), xen.read_host(destination), xen.read_guest(source, name)
    )
    taken = await xen.domains(destination)
    for other in (name, name + INCOMING, name + AWAY):
        if other in taken:
            raise InputError(
                f"{destination.address} has a guest {other} already",
                remedy="xl list there; rename or destroy the one that is not wanted",
            )
    shown = await xen.shown_to(source, guest.number, name)
    # A host that has no policy for such guests runs none, of which admission tells.
    offers = {**dict.fromkeys(POLICIES, next(iter(there.offers.values()))), **there.offers}
    offer = offers[guest.type.policy].replace(name=there.address)
    evidence = GuestEvidence(
        shown=shown,
        vcpus=guest.vcpus,
        memory_mib=guest.memory_mib,
        facts={"xen-pv": guest.type is xen.Type.PV},
    )
    visible = shown_on(shown, offer)
    found: tuple[Finding, ...] = (
        *admission(guest, shown, here, there, filtered=_filters(request)),
        *findings(
            evidence,
            offer,
            visible,
            here=HostEvidence(hypervisor="xen", version=here.version),
            there=HostEvidence(hypervisor="xen", version=there.version),
        ),
    )
    verdict = Preflight(
        guest=name,
        source_host=here.address,
        destination_host=there.address,
        shown=visible,
        findings=found,
        blocking=() if request.force else blocking(found, request.accepted),
    )
    return _Checked(here, there, guest, verdict)


def _filters(request: Request) -> bool:
    """Whether the stream is rewritten for the destination's maker."""
    return request.options.translate is not False


class _Run:
    """One move under way."""

    def __init__(
        self,
        journal: Journal,
        source: Runner,
        destination: Runner,
        checked: _Checked,
        verify_s: float,
        observer: Observer,
    ) -> None:
        self.journal = journal
        self.source = source
        self.destination = destination
        self.checked = checked
        self.verify_s = verify_s
        self.observer = observer
        self.name = journal.record.plan.guest
        self.one = One(self.name, checked.guest.uuid)
        self.skip = 0

    def enter(self, phase: Phase, why: str = "") -> None:
        self.journal.enter(phase, why)
        self.observer(Progress(phase=phase))

    async def through(self, folder: Path, maker: str) -> MigrationRecord:
        report = folder / "stream.jsonl"
        filtering = [sys.executable, "-m", "isthmus.translate.xen", maker, str(report)]
        move = self.journal.record.plan.id
        transfer = Transfer(move, self.name, self.source, self.destination, filtering, folder)
        try:
            try:
                await self._move(transfer, report, folder)
            except (IsthmusError, OSError, asyncio.CancelledError) as error:
                await to_its_end(self._settle(transfer, error))
            return self.journal.record
        finally:
            await transfer.close()
            await transfer.clean()
            self.journal.close()

    async def _move(self, transfer: Transfer, report: Path, folder: Path) -> None:
        self.enter(Phase.PREPARING)
        self.skip = await console_size(self.destination, self.name)
        keep_skip(folder, self.skip)
        await transfer.open()
        self.enter(Phase.PREPARED)
        self.enter(Phase.MOVING)
        begun = time.monotonic()
        await transfer.send()
        self.enter(Phase.SWITCHED)
        self.enter(Phase.STARTING)
        status = await transfer.let_start()
        total = (time.monotonic() - begun) * 1000
        if status != 0:
            raise _NotStartedError(f"the destination cannot start the guest (status {status})")
        self.enter(Phase.VERIFYING)
        _, summary = read_report(report)
        self.journal.measure(Figures(total_ms=total, moved_bytes=summary.bytes if summary else 0))
        await self._verify()
        self.enter(Phase.COMMITTING)
        await transfer.accept()
        self.enter(Phase.COMMITTED)

    async def _verify(self) -> None:
        vcpus = self.checked.guest.vcpus
        await verified(self.destination, self.one, vcpus, seconds=self.verify_s, skip=self.skip)

    async def _settle(self, transfer: Transfer, error: BaseException) -> None:
        """Bring a move that did not go on to a safe end.

        :raises RolledBackError: the guest runs on its source.
        :raises UndecidedError: the operator has to decide.
        """
        words = await transfer.last_words()
        why = (str(error) or "interrupted") + (f" ({words})" if words else "")
        left = ""
        try:
            if self.journal.phase in MAY_HAVE_RUN:
                if await self._after_start(transfer, error, why):
                    return
            else:
                self._note(Phase.ROLLING_BACK, why)
                await transfer.close()
                await transfer.settled()
                left = await self._forgotten()
            await self._source_runs()
        except (IsthmusError, OSError) as worse:
            self._note(Phase.UNDECIDED, f"{why}; {worse}")
            raise UndecidedError(
                f"{why}; {worse}", remedy=remedy(self.journal.record.plan)
            ) from error
        why = f"{why}; {left}" if left else why
        self._note(Phase.ROLLED_BACK, why if left else "")
        raise RolledBackError(
            f"{why}; the guest runs on its source", remedy="nothing was lost"
        ) from error

    async def _after_start(self, transfer: Transfer, error: BaseException, why: str) -> bool:
        """Settle from ``starting`` on; whether the move was finished all the same.

        A connection that broke is no reason to give up a guest that lives at its destination, and
        only a copy that is gone there for certain lets the source go on.

        :raises HypervisorError: neither can be done: the operator decides.
        """
        decision = await self._decided(error)
        if decision.action is Action.FINISH:
            try:
                await self._finish(transfer, why)
            except DeadOnArrivalError as dead:
                why = f"{why}; {dead}"
                decision = await self._decided(dead)
            else:
                return True
        if decision.action is not Action.ROLL_BACK:
            raise HypervisorError(decision.reason)
        self._note(Phase.ROLLING_BACK, why)
        await copies.destroy(self.destination, self.one, ("", INCOMING))
        with contextlib.suppress(HypervisorError):
            await transfer.refuse()
        await transfer.close()
        await transfer.settled()
        # Where the source was not reached by that, its xl has ended and left the copy as it was.
        await copies.resume(self.source, self.one)
        return False

    async def _decided(self, error: BaseException) -> Decision:
        arrived = await copies.arrived(self.destination, self.one)
        return decide(
            Situation(
                phase=copies.reached(self.journal.phase, arrived),
                source=await copies.left(self.source, self.one),
                destination=arrived,
                failed=isinstance(error, DeadOnArrivalError | _NotStartedError),
                traceless=self.checked.guest.disks == 0,
            )
        )

    async def _finish(self, transfer: Transfer, why: str) -> None:
        """Commit although a connection was lost.

        :raises DeadOnArrivalError: the guest does not live at the destination.
        """
        if self.journal.phase is not Phase.COMMITTING:
            self.enter(Phase.VERIFYING, why)
            await copies.unpause(self.destination, self.one)
            await self._verify()
            self.enter(Phase.COMMITTING)
        with contextlib.suppress(HypervisorError):
            await transfer.accept()
        await transfer.close()
        await transfer.settled()
        await copies.destroy(self.source, self.one, (AWAY, ""), running=False)
        self.enter(Phase.COMMITTED)

    async def _forgotten(self) -> str:
        """Take away what the destination has of the guest, which has never run there.

        Returns what the operator has to know: a destination that is lost does not hold the guest
        up, since nobody will ever give its half the permission to start.
        """
        try:
            await copies.destroy(self.destination, self.one, (INCOMING,))
        except UnreachedError as error:
            return copies.abandoned(error, self.name + INCOMING)
        return ""

    async def _source_runs(self) -> None:
        """Make sure that the source's copy goes on."""
        deadline = time.monotonic() + RESUMING_S
        while time.monotonic() < deadline:
            domain = (await copies.found(self.source, self.one)).get(self.name)
            if domain is not None and not domain.suspended and not domain.down:
                return
            await asyncio.sleep(0.5)
        raise HypervisorError(f"{self.name} does not go on at {self.source.address}")

    def _note(self, phase: Phase, why: str = "") -> None:
        self.journal.note(phase, why)
        self.observer(Progress(phase=phase))


async def recover(path: Path, store: GuestStore, observer: Observer, use: str) -> MigrationRecord:
    """Bring a move to its end whose process was killed; returns its record.

    The caller holds the guest's lock.

    :param store: not asked: the hosts know their guests.
    :param use: the operator's choice of the copy that goes on: ``source`` or ``destination``.
    :raises UndecidedError: the operator has to decide.
    """
    del store
    return await recovered(path, runner_of, observer, use)


class _NotStartedError(IsthmusError):
    """The destination has the guest and cannot start it."""
