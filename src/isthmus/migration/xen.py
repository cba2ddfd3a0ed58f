"""A move between two Xen hosts: ``xl migrate``, with each of its steps in the journal.

The rule is the engine's (:mod:`isthmus.migration.engine`): at most one copy runs.  What ``xl`` does
by itself fits into it, because its handshake goes through our hands
(:mod:`isthmus.hypervisor.xen.handshake`): ``switched`` when the destination holds the guest and
neither copy runs; ``starting`` is written before the source hears of it; the source's copy waits,
whole, until the guest has been watched on the destination, and only then is destroyed or resumed.
"""

import asyncio
import contextlib
import shlex
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
from isthmus.hypervisor.xen.host import AWAY, INCOMING, GuestDomain, Host
from isthmus.hypervisor.xen.liveness import console_size, watch
from isthmus.hypervisor.xen.runner import Runner, runner_of
from isthmus.hypervisor.xen.transfer import Transfer, clean
from isthmus.migration.decision import Action, Copy, Situation, decide
from isthmus.migration.options import Observer, Progress
from isthmus.migration.phases import MAY_HAVE_RUN, TRANSITIONS, Phase
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
    read_record,
    require_none_pending,
)
from isthmus.translate.xen.report import read_report

PLATFORM = "xen"

DESTROY_TIMEOUT_S = 60.0
"""How long a host may take to destroy a guest for which it has been asked to."""

# xl has a command for it since 4.20 (tools/xl/xl_cmdtable.c); older hosts have libxc's binding.
_RESUME = """
xl resume {number} 2>/dev/null || python3 -c \
 'import xen.lowlevel.xc as x; x.xc().domain_resume({number}, 1)'
"""


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
        logs = store.journals / f"{plan.id}.xen"
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
    offer = there.offers[guest.type.policy].replace(name=there.address)
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
                await self._move(transfer, report)
            except (IsthmusError, OSError, asyncio.CancelledError) as error:
                await asyncio.shield(asyncio.ensure_future(self._settle(transfer, error)))
            return self.journal.record
        finally:
            await transfer.close()
            await transfer.clean()
            self.journal.close()

    async def _move(self, transfer: Transfer, report: Path) -> None:
        self.enter(Phase.PREPARING)
        skip = await console_size(self.destination, self.name)
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
        await self._verify(skip)
        self.enter(Phase.COMMITTING)
        await transfer.accept()
        self.enter(Phase.COMMITTED)

    async def _verify(self, skip: int) -> None:
        arrived = (await xen.domains(self.destination)).get(self.name)
        if arrived is None:
            raise _DeadOnArrivalError("the guest is not on the destination")
        evidence = await watch(
            self.destination,
            self.name,
            arrived.number,
            self.checked.guest.vcpus,
            seconds=self.verify_s,
            skip=skip,
        )
        if not evidence.alive:
            raise _DeadOnArrivalError(
                f"the guest does not live on the destination: {evidence.reason}"
            )

    async def _settle(self, transfer: Transfer, error: BaseException) -> None:
        """Bring a move that did not go on to a safe end.

        :raises RolledBackError: the guest runs on its source.
        :raises UndecidedError: the operator has to decide.
        """
        words = await transfer.last_words()
        why = (str(error) or "interrupted") + (f" ({words})" if words else "")
        phase = self.journal.phase
        try:
            if phase in MAY_HAVE_RUN:
                await self._take_back(transfer, error, why)
            else:
                self._note(Phase.ROLLING_BACK, why)
                await transfer.close()
                await transfer.settled()
            await self._source_runs()
        except (IsthmusError, OSError) as worse:
            self._note(Phase.UNDECIDED, f"{why}; {worse}")
            raise UndecidedError(
                f"{why}; {worse}",
                remedy=f"xl list on both hosts, then isthmus migrate --resume"
                f" {self.journal.record.plan.id} --use source|destination",
            ) from error
        self._note(Phase.ROLLED_BACK)
        raise RolledBackError(
            f"{why}; the guest runs on its source", remedy="nothing was lost"
        ) from error

    async def _take_back(self, transfer: Transfer, error: BaseException, why: str) -> None:
        """From ``starting`` on: only what is gone for certain lets the source resume."""
        phase = self.journal.phase
        copy = await _arrived(self.destination, self.name)
        decision = decide(
            Situation(
                phase=_reached(phase, copy),
                source=Copy.HELD,
                destination=copy,
                failed=isinstance(error, _DeadOnArrivalError | _NotStartedError),
                traceless=self.checked.guest.disks == 0,
            )
        )
        if decision.action is not Action.ROLL_BACK:
            raise HypervisorError(decision.reason)
        self._note(Phase.ROLLING_BACK, why)
        await _destroy(self.destination, (self.name, self.name + INCOMING))
        await transfer.refuse()

    async def _source_runs(self) -> None:
        """Make sure that the source's copy goes on, and that it is the only one."""
        await _destroy(self.destination, (self.name + INCOMING,))
        deadline = time.monotonic() + 30
        while time.monotonic() < deadline:
            domain = (await xen.domains(self.source)).get(self.name)
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
    plan = read_record(path).plan
    journal = Journal.reopen(path)
    try:
        if not journal.record.final:
            source, destination = runner_of(plan.source_host), runner_of(plan.destination_host)
            await _recovered(journal, source, destination, use)
            observer(Progress(phase=journal.phase))
        return journal.record
    finally:
        journal.close()


async def _recovered(journal: Journal, source: Runner, destination: Runner, use: str) -> None:
    plan = journal.record.plan
    phase = journal.record.reached
    with contextlib.suppress(HypervisorError):
        await clean(source, plan.id)
    left = await _left(source, plan.guest)
    arrived = await _arrived(destination, plan.guest)
    decision = decide(
        Situation(
            phase=_reached(phase, arrived),
            source=left,
            destination=arrived,
            # xl itself lets the source go on only where the destination has not run.
            traceless=left is Copy.RUNNING or await _diskless(source, plan.guest),
        )
    )
    action = decision.action
    if use:
        action = Action.ROLL_BACK if use == "source" else Action.FINISH
    why = "the process that moved the guest was killed"
    if action is Action.ROLL_BACK:
        journal.enter(Phase.ROLLING_BACK, f"{why}; {decision.reason}")
        await _destroy(destination, (plan.guest, plan.guest + INCOMING))
        await _resume(source, plan.guest)
        journal.enter(Phase.ROLLED_BACK)
    elif action is Action.FINISH:
        if journal.phase is not Phase.COMMITTING:
            for step in (Phase.STARTING, Phase.VERIFYING, Phase.COMMITTING):
                if step in TRANSITIONS[journal.phase]:
                    journal.enter(step, why if step is Phase.STARTING else "")
        await _unpause(destination, plan.guest)
        await _destroy(source, (plan.guest + AWAY, plan.guest), running=False)
        journal.enter(Phase.COMMITTED)
    else:
        journal.enter(Phase.UNDECIDED, f"{why}; {decision.reason}")
        raise UndecidedError(
            f"{plan.guest}: {why}; {decision.reason}",
            remedy=f"xl list on both hosts, then isthmus migrate --resume {plan.id}"
            " --use source|destination",
        )


def _reached(phase: Phase, arrived: Copy) -> Phase:
    """The phase that a move really came to: who is still named as it came has never run.

    ``xl migrate-receive`` gives the guest its own name before it lets it go.
    """
    return Phase.SWITCHED if arrived is Copy.PARTIAL and phase in MAY_HAVE_RUN else phase


async def _diskless(runner: Runner, name: str) -> bool:
    """Whether a guest has no disk that its destination could have written to."""
    for each in (name, name + AWAY):
        with contextlib.suppress(IsthmusError):
            return (await xen.read_guest(runner, each)).disks == 0
    return False


async def _left(runner: Runner, name: str) -> Copy:
    """The state of the copy at the source."""
    try:
        listed = await xen.domains(runner)
    except HypervisorError:
        return Copy.UNREACHABLE
    domain = listed.get(name) or listed.get(name + AWAY)
    if domain is None or domain.gone or domain.down:
        return Copy.DEAD
    return Copy.HELD if domain.suspended or domain.paused else Copy.RUNNING


async def _arrived(runner: Runner, name: str) -> Copy:
    """The state of the copy at the destination."""
    try:
        listed = await xen.domains(runner)
    except HypervisorError:
        return Copy.UNREACHABLE
    domain = listed.get(name)
    if domain is None or domain.gone:
        return Copy.PARTIAL if name + INCOMING in listed else Copy.DEAD
    if domain.down:
        return Copy.DEAD
    return Copy.HELD if domain.paused else Copy.RUNNING


async def _destroy(runner: Runner, names: tuple[str, ...], *, running: bool = True) -> None:
    """Destroy the copies of these names, and make sure that they are gone.

    :param running: also those that run.
    :raises HypervisorError: one is still there.
    """
    deadline = time.monotonic() + DESTROY_TIMEOUT_S
    while True:
        listed = await xen.domains(runner)
        there = [listed[name] for name in names if name in listed]
        there = [one for one in there if running or one.suspended or one.down or one.gone]
        if not there:
            return
        if time.monotonic() > deadline:
            raise HypervisorError(f"{there[0].name} cannot be destroyed on {runner.address}")
        for one in there:
            if not one.gone:
                await runner.ask(f"xl destroy {one.number}")
        await asyncio.sleep(0.3)


async def _resume(runner: Runner, name: str) -> None:
    """Let the source's copy go on if it stands still, under its own name."""
    listed = await xen.domains(runner)
    if (away := listed.get(name + AWAY)) is not None:
        await runner.told(f"xl rename {away.number} {shlex.quote(name)}")
    domain = away or listed.get(name)
    if domain is None:
        raise HypervisorError(f"{runner.address} has no copy of {name} left")
    if domain.suspended:
        await runner.told(_RESUME.format(number=domain.number))
    elif domain.paused:
        await runner.told(f"xl unpause {domain.number}")


async def _unpause(runner: Runner, name: str) -> None:
    domain = (await xen.domains(runner)).get(name)
    if domain is None:
        raise HypervisorError(f"{runner.address} has no guest {name}")
    if domain.paused:
        await runner.told(f"xl unpause {domain.number}")


class _DeadOnArrivalError(IsthmusError):
    """Verification found that the guest does not live on the destination."""


class _NotStartedError(IsthmusError):
    """The destination has the guest and cannot start it."""
