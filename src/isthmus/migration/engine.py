"""The move itself: prepare -> move -> verify -> commit or roll back.

The split-brain rule: the source may run only while the destination provably has not run and never
will; the destination may run only while the source provably stands still.  Both stand still between
``switched`` and ``starting``, and the journal says that the destination may be let go *before* it
is.  Whatever fails, and also a crash of this very process, is settled by one decision
(:mod:`isthmus.migration.decision`) from the journal's phase and what both processes say.

Preflight has been done before: see :mod:`isthmus.migration.preflight`.
"""

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

import msgspec

from isthmus.errors import (
    HypervisorError,
    IsthmusError,
    LostError,
    RolledBackError,
    UndecidedError,
)
from isthmus.hypervisor.qemu import stream, through_file
from isthmus.hypervisor.qemu.monitor import MonitorGoneError
from isthmus.hypervisor.qemu.through_file import Deposit
from isthmus.migration import arrival
from isthmus.migration.decision import WHOLE, Action, Copy, Decision, Situation, chosen, decide
from isthmus.migration.ending import DeadOnArrivalError, brought_to_end, to_its_end
from isthmus.migration.options import Observer, Options, Progress
from isthmus.migration.phases import MAY_HAVE_RUN, UNTOUCHED, Phase
from isthmus.migration.record import (
    Figures,
    Journal,
    MigrationRecord,
    Plan,
)
from isthmus.migration.sides import Destination, Source, processes
from isthmus.migration.verify import watch
from isthmus.translate.service import TranslatorClient, TranslatorError, spawn
from isthmus.values import to_json

ENDING_S = 2.0
"""How long a QEMU that has closed its monitor is given to end and to say why."""


Ends = Callable[[MigrationRecord], tuple[Source, Destination]]
"""What may be done to the two ends of a migration, from its record."""
Checkpoint = Callable[[Phase], Awaitable[None]]
Adopt = Callable[[MigrationRecord], None]


async def nothing(_: Phase) -> None:
    """The checkpoint that makes no fault."""


async def move(
    plan: Plan,
    *,
    journals: Path,
    options: Options,
    observer: Observer = lambda _: None,
    checkpoint: Checkpoint = nothing,
    adopt: Adopt = lambda _: None,
    ends: Ends = processes,
) -> MigrationRecord:
    """Move one guest; returns the record of a committed migration.

    :param checkpoint: awaited after each phase is entered; tests make faults there.
    :param adopt: called when the destination is the guest and the source is destroyed.
    :raises RolledBackError: it failed, and the guest runs on its source.
    :raises UndecidedError: both copies are held for the operator.
    :raises LostError: no copy is left.
    :raises IsthmusError: the guest runs on its destination, and the move could not be closed.
    """
    run = _Run(Journal.create(journals, plan), options, observer, checkpoint, adopt, ends)
    try:
        try:
            await run.prepare()
            await run.transfer()
            await run.verify()
        except (IsthmusError, OSError, asyncio.CancelledError) as error:
            # A cancelled task (Ctrl-C) puts things right, too, before it ends.
            await to_its_end(run.settle(error))
        else:
            await to_its_end(run.commit())
        return run.journal.record
    finally:
        await run.close()


async def resume(
    path: Path,
    *,
    options: Options,
    observer: Observer = lambda _: None,
    adopt: Adopt = lambda _: None,
    use: str = "",
    ends: Ends = processes,
) -> MigrationRecord:
    """Bring a migration to its end whose process was killed; returns its record.

    The caller holds the guest's lock, so nobody else moves it.

    :param use: the operator's choice of the copy that goes on: ``source`` or ``destination``.

    :raises UndecidedError: both copies are held for the operator.
    :raises LostError: no copy is left.
    """
    run = _Run(Journal.reopen(path), options, observer, nothing, adopt, ends)
    return await brought_to_end(run, use)


class _Run:
    """One migration under way."""

    def __init__(
        self,
        journal: Journal,
        options: Options,
        observer: Observer,
        checkpoint: Checkpoint,
        adopt: Adopt,
        ends: Ends,
    ) -> None:
        self.journal = journal
        self.options = options
        self.observer = observer
        self.checkpoint = checkpoint
        self.adopt = adopt
        self.source, self.destination = ends(journal.record)
        self.armed: TranslatorClient | None = None
        self._unseen: list[Phase] = []

    async def enter(self, phase: Phase, why: str = "") -> None:
        self.journal.enter(phase, why)
        self._unseen.append(phase)
        # While no copy runs, nobody is told: showing it would lengthen the downtime.
        if phase not in {Phase.SWITCHED, Phase.STARTING}:
            self._tell()
        await self.checkpoint(phase)

    def _tell(self) -> None:
        for phase in self._unseen:
            self.observer(Progress(phase=phase))
        self._unseen.clear()

    async def prepare(self) -> None:
        """Connect to the source, launch the destination, spawn its translator; nothing moves."""
        plan = self.journal.record.plan
        await self.enter(Phase.PREPARING)
        await self.source.attach()
        await self.source.prepare(
            bandwidth=self.options.bandwidth, downtime_limit_ms=self.options.downtime_limit_ms
        )
        side = await self.destination.launch(plan, lives_with_parent=self.options.lives_with_parent)
        if side != plan.destination:
            self.journal.amend(msgspec.structs.replace(plan, destination=side))
        await self.destination.attach()
        if side.directory is not None and side.translator is not None:
            self.armed = await self._spawn(side.directory / "gdb.sock", side.translator)
        await self._prepare_rewriting()
        await self.enter(Phase.PREPARED)

    async def _spawn(self, gdb: Path, folder: Path) -> TranslatorClient:
        """Start the destination's translator, which will warn as the plan says."""
        wanted = self.journal.record.plan.translation
        if wanted is None:  # it only rewrites, and leaves
            return await spawn(gdb, folder)
        return await spawn(gdb, folder, warn_share=wanted.warn_share, level=wanted.level)

    async def _prepare_rewriting(self) -> None:
        """Have the order to rewrite read, by the translator or by one that leaves afterwards."""
        order = self.journal.record.plan.rewrite
        folder = self.destination.side.directory
        if order is None or folder is None:
            return
        if self.armed is None:
            try:
                self.armed = await TranslatorClient.connect(folder)
            except TranslatorError:
                self.armed = await self._spawn(folder / "gdb.sock", folder)
        path = folder / "rewrite.json"
        path.write_bytes(to_json(order))
        await self.armed.prepare(path)

    async def transfer(self) -> None:
        """Precopy, switch over, start the destination."""
        await self.enter(Phase.MOVING)
        plan = self.journal.record.plan
        listening = await self.destination.listen(plan.channel)
        if plan.deposit is not None:
            await self._through_file(plan.deposit, listening)
            return
        uri = plan.dial or listening
        source, destination = self.source.monitor, self.destination.monitor
        with source.events("STOP") as stops, destination.events("RESUME") as resumes:
            await self.source.send(
                uri, lambda transfer: self.observer(Progress(phase=Phase.MOVING, transfer=transfer))
            )
            await self.enter(Phase.SWITCHED)
            await self._arrived()
            await self._start()
            resumed = await stream.last_stamp(resumes, patience_s=5.0)
            stopped = await stream.last_stamp(stops, patience_s=0.0)
        if plan.dial:  # stamps of two machines are of two clocks, which nobody has compared
            resumed = stopped = None
        final = await stream.measured(source)
        self.journal.measure(
            Figures(
                total_ms=final.total_ms,
                downtime_ms=final.downtime_ms,
                stopped_ms=(resumed - stopped) * 1000 if resumed and stopped else None,
                moved_bytes=final.transferred,
            )
        )

    async def _through_file(self, deposit: Deposit, listening: str) -> None:
        """Write the guest, which is held, to a file, have it loaded, start the destination."""
        begun = time.monotonic()
        await self.source.hold()
        saved = await through_file.save(
            self.source.monitor,
            deposit,
            lambda transfer: self.observer(Progress(phase=Phase.MOVING, transfer=transfer)),
        )
        await through_file.load(self.destination.monitor, deposit, listening, saved)
        await self.enter(Phase.SWITCHED)
        await self._arrived()
        await self._start()
        took_ms = (time.monotonic() - begun) * 1000
        self.journal.measure(Figures(total_ms=took_ms, downtime_ms=took_ms, moved_bytes=saved.size))

    async def _arrived(self) -> None:
        """Compare what both sides have in their registers, while both stand still.

        Not where QEMU emulates the CPU: nobody refuses its state there, and asking adds downtime.

        :raises HypervisorError: the destination's hypervisor did not take the guest's state.
        """
        if self.source.emulated:
            return
        here, there = await asyncio.gather(
            self.source.monitor.human(arrival.COMMAND),
            self.destination.monitor.human(arrival.COMMAND),
        )
        if missing := arrival.lost(here, there):
            raise HypervisorError(
                f"the destination's hypervisor did not take the guest's registers: {missing}"
            )

    async def _start(self) -> None:
        """Let the destination run.  The journal says so first: it may have run from here on."""
        if self.armed is not None:
            if (order := self.journal.record.plan.rewrite) is not None:
                done = await self.armed.rewrite()
                if order.needed and (left := done.hypercalls_left(abroad=True)):
                    raise IsthmusError(f"the guest's hypercalls cannot be rewritten: {left}")
            if self.destination.side.translator is not None:
                await self.armed.arm()
                self.destination.translator = self.armed
            else:
                await self.armed.detach()
                await self.armed.close()
            self.armed = None
        await self.enter(Phase.STARTING)
        await self.destination.start()
        await self.enter(Phase.VERIFYING)

    async def verify(self) -> None:
        """Watch the guest on the destination; raises :class:`IsthmusError` if it does not live."""
        evidence = await watch(
            self.destination.monitor,
            seconds=self.options.verify_s,
            console=self.destination.file("console.log"),
            payload=self.destination.file("payload.log") if self._reported() else None,
            translated=self.destination.translator is not None,
        )
        if not evidence.alive:
            raise DeadOnArrivalError(
                f"the guest does not live on the destination: {evidence.reason}"
                + await self.destination.held_by_translator()
            )

    def _reported(self) -> bool:
        """Whether a payload has reported at the source: who never did is not missed here."""
        folder = self.source.side.directory
        try:
            return folder is None or (folder / "payload.log").stat().st_size > 0
        except OSError:
            return True

    async def commit(self) -> None:
        """The destination has proved itself: the source is destroyed, and it is the guest.

        :raises IsthmusError: that could not be brought to its end; recovery does it later.
        :raises RolledBackError: the destination has died since it was looked at.
        :raises UndecidedError: it does not answer, and nobody can tell.
        """
        try:
            await self.enter(Phase.COMMITTING)
            if (state := await self.destination.state()) in WHOLE:
                await self.source.destroy()
                # Not before: until then the guest may have to go back.
                self.adopt(self.journal.record)
                self._forget_file()
                await self.enter(Phase.COMMITTED)
                return
        except (IsthmusError, OSError) as error:
            raise IsthmusError(
                f"the guest runs on its destination, but the move could not be closed: {error}",
                remedy="mend that, then isthmus migrate --resume",
            ) from error
        await self.settle(
            HypervisorError(f"the destination was {state} when it was to be committed to")
        )

    async def settle(self, error: BaseException) -> None:
        """Bring a migration that did not go on to an end that is safe.

        :raises RolledBackError: the guest runs on its source.
        :raises UndecidedError: both copies are held.
        :raises LostError: no copy is left.
        """
        why = (str(error) or "interrupted") + await self._last_words(error)
        situation = await self._situation(failed=isinstance(error, DeadOnArrivalError))
        decision = decide(situation)
        try:
            if decision.action is Action.FINISH:
                await self._finish(situation)
                return
            if decision.action is Action.ROLL_BACK:
                await self._roll_back(why)
        except (RolledBackError, UndecidedError, LostError):
            raise  # settled already, below
        except DeadOnArrivalError as dead:
            if not situation.failed:
                await self.settle(dead)
                return
            decision = Decision(action=Action.HOLD, reason=f"{decision.reason}; {dead}")
        except (IsthmusError, OSError) as worse:
            decision = Decision(action=Action.HOLD, reason=f"{decision.reason}; {worse}")
        else:
            if decision.action is Action.ROLL_BACK:
                untouched = situation.phase in UNTOUCHED
                raise RolledBackError(
                    f"{why}; the guest {'was not touched' if untouched else 'runs on its source'}",
                    remedy="nothing was lost",
                ) from error
            if decision.action is Action.LOST:
                why += self._saved()
                await self._lose(f"{why}; {decision.reason}")
                raise LostError(
                    f"{why}; {decision.reason}: the guest is lost",
                    remedy="isthmus guest stop takes away what is left of it",
                ) from error
        why += self._saved()
        self._note(Phase.UNDECIDED, f"{why}; {decision.reason}")
        raise UndecidedError(
            f"{why}; {decision.reason}",
            remedy=f"look at both (isthmus status), then isthmus migrate --resume"
            f" {self.journal.record.plan.id} --use source|destination",
        ) from error

    def _saved(self) -> str:
        """Where the guest's state still lies, if it went through a file."""
        deposit = self.journal.record.plan.deposit
        if deposit is None or not deposit.path.exists():
            return ""
        return f"; what was saved of the guest is in {deposit.path}"

    async def impose(self, winner: str) -> None:
        """Carry out the operator's decision which copy goes on (``source`` or ``destination``).

        :raises UndecidedError: there is no such copy that could go on; nothing was touched.
        """
        situation = await self._situation(failed=False)
        decision = chosen(winner, situation)
        if decision.action is Action.HOLD:
            plan = self.journal.record.plan
            raise UndecidedError(
                f"{plan.guest}: {decision.reason}",
                remedy=f"isthmus migrate --resume {plan.id}, with the other copy or without --use",
            )
        if decision.action is Action.ROLL_BACK:
            await self._roll_back(decision.reason)
        else:
            await self._finish(situation)

    async def _situation(self, *, failed: bool) -> Situation:
        phase = self.journal.record.reached
        source = await self.source.state()
        destination = await self.destination.state()
        if source is Copy.DEAD and destination is Copy.PARTIAL and phase not in UNTOUCHED:
            destination = await self.destination.loaded()
        if failed and destination is Copy.RUNNING:
            with contextlib.suppress(IsthmusError):
                await self.destination.stop()
                destination = await self.destination.state()
        return Situation(
            phase=phase,
            source=source,
            destination=destination,
            failed=failed,
            traceless=await self._traceless(phase, destination),
            rolling_back=self.journal.record.rolling_back,
        )

    async def _traceless(self, phase: Phase, destination: Copy) -> bool:
        """Whether the destination has provably written to no disk."""
        if phase not in MAY_HAVE_RUN:
            return True
        spec = self.journal.record.plan.spec
        if spec is not None and spec.disk is None:
            return True
        if destination is not Copy.HELD:
            return False
        with contextlib.suppress(IsthmusError):
            return not await self.destination.touched_disk()
        return False

    async def _finish(self, situation: Situation) -> None:
        held = situation.destination is Copy.HELD
        proved = situation.phase in {Phase.COMMITTING, Phase.COMMITTED}
        following = Phase.COMMITTING if proved else Phase.STARTING if held else Phase.VERIFYING
        self.journal.open_way(following)
        if not proved:
            folder = self.destination.side.translator
            if folder is not None and self.armed is None:
                try:
                    self.armed = await TranslatorClient.connect(folder)
                except TranslatorError:
                    self.armed = await self._spawn(folder / "gdb.sock", folder)
                    if not held:
                        await self.armed.take_over()
            if held:
                await self._prepare_rewriting()
                await self._start()
            else:
                self.destination.translator, self.armed = self.armed, None
                await self.enter(Phase.VERIFYING)
            await self.verify()
        await self.commit()

    async def _last_words(self, error: BaseException) -> str:
        """What a destination that has ended said last.

        One that has just closed its monitor is given a moment to end: its reason comes with it.  So
        is one that has broken off the stream, where nobody waits for that: the source runs.
        """
        ending = isinstance(error, MonitorGoneError) or (
            isinstance(error, stream.StreamFailedError)
            and await self.source.state() is Copy.RUNNING
        )
        said = await self.destination.last_words(patience_s=ENDING_S if ending else 0)
        return f" (the destination ended: {said})" if said else ""

    async def _roll_back(self, why: str) -> None:
        self._note(Phase.ROLLING_BACK, why)
        if self.armed is not None:
            with contextlib.suppress(IsthmusError, OSError):
                await self.armed.close()
            self.armed = None
        await self.destination.destroy()
        if self.journal.record.reached not in UNTOUCHED:
            await self.source.resume()
        self._forget_file()
        self._note(Phase.ROLLED_BACK)

    async def _lose(self, why: str) -> None:
        """No copy is left: end what is left of the destination, which can never be whole."""
        with contextlib.suppress(IsthmusError, OSError):
            await self.destination.destroy()
        self._note(Phase.LOST, why)

    def _forget_file(self) -> None:
        """Remove what the guest went through, now that one copy of it is the guest."""
        deposit = self.journal.record.plan.deposit
        if deposit is not None:
            deposit.remove()

    def _note(self, phase: Phase, why: str = "") -> None:
        self.journal.note(phase, why)
        self._unseen.append(phase)
        self._tell()

    async def close(self) -> None:
        for end in (self.source, self.destination):
            with contextlib.suppress(IsthmusError, OSError):
                await end.close()
        self.journal.close()
