"""A move between Xen hosts whose process was killed: brought to its end from what both hosts say.

What was known when the process died is in the journal and in the move's folder beside it; what has
become of the guest since, only the hosts know.  The rule is :mod:`isthmus.migration.decision`'s; a
copy is destroyed only after the other is known to be whole, and before that one runs.
"""

import contextlib
from collections.abc import Callable
from pathlib import Path

from isthmus.errors import HypervisorError, LostError, UndecidedError
from isthmus.hypervisor.xen import host as xen
from isthmus.hypervisor.xen.host import AWAY, INCOMING
from isthmus.hypervisor.xen.liveness import watch
from isthmus.hypervisor.xen.runner import Runner, UnreachedError
from isthmus.hypervisor.xen.transfer import clean
from isthmus.migration import xen_copies as copies
from isthmus.migration.decision import Action, Copy, Situation, chosen, decide
from isthmus.migration.ending import DeadOnArrivalError
from isthmus.migration.options import Observer, Options, Progress
from isthmus.migration.phases import MAY_HAVE_RUN, Phase
from isthmus.migration.record import Journal, MigrationRecord, Plan, read_record
from isthmus.migration.xen_copies import One

KILLED = "the process that moved the guest was killed"
VERIFY_S = Options().verify_s
"""For how long a guest is watched, in s: the move's own choice is not in its record."""


def folder_beside(journals: Path, plan: Plan) -> Path:
    """Where a move keeps what its programs said."""
    return journals / f"{plan.id}.xen"


def keep_skip(folder: Path, skip: int) -> None:
    """Keep how much of the console's log at the destination is older than the guest's arrival."""
    (folder / "console.skip").write_text(f"{skip}\n", encoding="ascii")


def _kept_skip(folder: Path) -> int:
    try:
        return int((folder / "console.skip").read_text(encoding="ascii"))
    except (OSError, ValueError):
        return 0  # killed before it was written: then nothing has arrived


async def verified(runner: Runner, guest: One, vcpus: int, *, seconds: float, skip: int) -> None:
    """Watch the guest on its destination.

    :raises DeadOnArrivalError: it does not live there.
    :raises HypervisorError: the host does not tell.
    """
    arrived = (await copies.found(runner, guest)).get(guest.name)
    if arrived is None:
        raise DeadOnArrivalError("the guest is not on the destination")
    evidence = await watch(runner, guest.name, arrived.number, vcpus, seconds=seconds, skip=skip)
    if not evidence.alive:
        raise DeadOnArrivalError(f"the guest does not live on the destination: {evidence.reason}")


async def recovered(
    path: Path, ways: Callable[[str], Runner], observer: Observer, use: str
) -> MigrationRecord:
    """Bring the move of the journal at ``path`` to its end; returns its record.

    The caller holds the guest's lock.

    :param ways: the way to the host of an address.
    :param use: the operator's choice of the copy that goes on: ``source`` or ``destination``.
    :raises UndecidedError: the operator has to decide, or has chosen a copy that is not there.
    :raises LostError: no host has the guest any more.
    """
    plan = read_record(path).plan
    journal = Journal.reopen(path)
    try:
        if not journal.record.final:
            source, destination = ways(plan.source_host), ways(plan.destination_host)
            recovery = _Recovery(journal, source, destination, folder_beside(path.parent, plan))
            await recovery.through(use)
            observer(Progress(phase=journal.phase))
        return journal.record
    finally:
        journal.close()


class _Recovery:
    """One move that was cut short."""

    def __init__(self, journal: Journal, source: Runner, destination: Runner, folder: Path) -> None:
        self.journal = journal
        self.source = source
        self.destination = destination
        self.plan = journal.record.plan
        self.one = One(self.plan.guest, self.plan.source.domain)
        self.skip = _kept_skip(folder)

    async def through(self, use: str) -> None:
        """Find out, decide, act."""
        with contextlib.suppress(HypervisorError):
            await clean(self.source, self.plan.id)
        left = await copies.left(self.source, self.one)
        arrived = await copies.arrived(self.destination, self.one)
        reached = copies.reached(self.journal.record.reached, arrived)
        situation = Situation(
            phase=reached,
            source=left,
            destination=arrived,
            rolling_back=self.journal.record.rolling_back,
            # xl itself lets the source go on only where the destination has not run.
            traceless=left is Copy.RUNNING or await copies.diskless(self.source, self.one),
        )
        decision = chosen(use, situation) if use else decide(situation)
        if use and decision.action is Action.HOLD:
            raise UndecidedError(f"{self.plan.guest}: {decision.reason}", remedy=remedy(self.plan))
        why = f"{KILLED}; {decision.reason}"
        if decision.action is Action.FINISH and not use and reached is not Phase.COMMITTING:
            try:
                await self._verify(why)
            except DeadOnArrivalError as dead:
                decision = decide(situation.replace(failed=True))
                why = f"{KILLED}; {dead}; {decision.reason}"
        if decision.action is Action.ROLL_BACK:
            await self._roll_back(why, answered_for=bool(use) or reached not in MAY_HAVE_RUN)
        elif decision.action is Action.FINISH:
            await self._finish(why, chosen=bool(use))
        elif decision.action is Action.LOST and situation.destination is Copy.DEAD:
            # Left open the record would stand in the way of the next guest of that name.
            self._enter(Phase.LOST, why)
            raise LostError(
                f"{self.plan.guest}: {why}: neither host has it any more",
                remedy="xl list on both hosts; start it anew from its disks",
            )
        else:
            self.journal.enter(Phase.UNDECIDED, why)
            raise UndecidedError(f"{self.plan.guest}: {why}", remedy=remedy(self.plan))

    async def _verify(self, why: str) -> None:
        """Let the guest go on at the destination, and watch it there.

        :raises DeadOnArrivalError: it does not live there.
        """
        self._enter(Phase.STARTING, why)
        await copies.unpause(self.destination, self.one)
        self._enter(Phase.VERIFYING)
        guest = await xen.read_guest(self.destination, self.one.name)
        await verified(self.destination, self.one, guest.vcpus, seconds=VERIFY_S, skip=self.skip)

    async def _roll_back(self, why: str, *, answered_for: bool) -> None:
        self._enter(Phase.ROLLING_BACK, why)
        lost = await _taken_away(
            self.destination, self.one, ("", INCOMING), answered_for=answered_for
        )
        await copies.resume(self.source, self.one)
        self._enter(Phase.ROLLED_BACK, f"{why}; {lost}" if lost else "")

    async def _finish(self, why: str, *, chosen: bool) -> None:
        """Give the source up; what the operator has not chosen is ended before the other runs."""
        for step in (Phase.STARTING, Phase.VERIFYING, Phase.COMMITTING):
            if self.journal.phase not in {step, Phase.COMMITTING}:
                self._enter(step, why if step is Phase.STARTING else "")
        lost = await _taken_away(
            self.source, self.one, (AWAY, ""), answered_for=chosen, running=chosen
        )
        await copies.unpause(self.destination, self.one)
        self._enter(Phase.COMMITTED, lost)

    def _enter(self, phase: Phase, why: str = "") -> None:
        self.journal.open_way(phase, why)
        self.journal.enter(phase, why)


async def _taken_away(
    runner: Runner, guest: One, ends: tuple[str, ...], *, answered_for: bool, running: bool = True
) -> str:
    """Destroy one end's copies; returns what is left to do there.

    :param answered_for: a host that does not answer is passed over: what it has never runs, or
        the operator says so.
    :raises UnreachedError: the host does not answer, and may run the guest.
    """
    try:
        await copies.destroy(runner, guest, ends, running=running)
    except UnreachedError as error:
        if not answered_for:
            raise
        return copies.abandoned(error, guest.name + (INCOMING if INCOMING in ends else AWAY))
    return ""


def remedy(plan: Plan) -> str:
    """What the operator can do where nobody but them can decide."""
    return (
        "xl list on both hosts; make sure that one which does not answer is off; then"
        f" isthmus migrate --resume {plan.id} --use source|destination"
    )
