"""Moves of guests that libvirt's daemons run, wrapped in our journal.

libvirt's protocol has its own hand-over: the destination's daemon lets the guest run, and tells the
source's, which then destroys its copy or, if the destination failed, lets it run again (libvirt:
docs/migration.rst).  By postcopy it runs there before all its memory is: if that breaks, libvirt is
told to go on for as long as the link may come back, and neither copy is touched otherwise.
So from the moment libvirt is told to move, the destination may have run, and
the journal says ``starting`` before.  Isthmus adds what libvirt leaves to its caller: checks
beforehand, a record, the end of a move that was cut short anywhere, and a look whether the guest
lives.  What to do is decided by :mod:`isthmus.migration.decision` from what both daemons say.

Where the destination lacks what the guest uses, libvirt refuses such a move, whatever it is told:
that way is :mod:`isthmus.migration.libvirt_translated`.
"""

import asyncio
import contextlib
import time
from pathlib import Path
from typing import Any

import msgspec

from isthmus.errors import (
    HypervisorError,
    IsthmusError,
    RolledBackError,
    UndecidedError,
)
from isthmus.hypervisor.libvirt import move as libvirt_move
from isthmus.hypervisor.libvirt.connection import (
    Connection,
    DaemonGoneError,
    LibvirtError,
    binding,
    call,
    session,
)
from isthmus.hypervisor.libvirt.move import Moved, Wishes
from isthmus.hypervisor.qemu.guests import GuestStore
from isthmus.hypervisor.qemu.stream import Transfer
from isthmus.migration import libvirt_translated
from isthmus.migration.decision import Action, Copy, Decision, Situation, chosen, decide
from isthmus.migration.ending import DeadOnArrivalError, brought_to_end, to_its_end
from isthmus.migration.libvirt_ends import DestinationEnd, End, broken, is_split, reached
from isthmus.migration.libvirt_guest import Facts, goes_by_hand, judge, read_facts, served
from isthmus.migration.options import Observer, Options, Progress
from isthmus.migration.phases import UNTOUCHED, Phase
from isthmus.migration.platforms import Request, has_host
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

PLATFORM = "libvirt"
PATIENCE_S = 60.0
"""How long a daemon may be away, or may take to clean up, before the operator is asked."""
POLL_S = 0.05
LOOK_S = 1.0
"""How long at least a guest is looked at after libvirt has handed it over."""
_NOT_REACHED = "Failed to connect to remote libvirt URI"
"""Begins libvirt's message where the source's daemon cannot dial the destination's."""


async def check(request: Request) -> Preflight:
    """All checks of the move; takes no step."""
    async with session(request.source) as source, session(request.destination) as destination:
        facts = await read_facts(await source.domain(request.guest))
        return await judge(request, facts, source, destination)


async def move(request: Request, store: GuestStore, observer: Observer) -> MigrationRecord:
    """Move the guest; see :class:`isthmus.migration.platforms.Platform`."""
    async with session(request.source) as source, session(request.destination) as destination:
        facts = await read_facts(await source.domain(request.guest))
        verdict = await judge(request, facts, source, destination)
    verdict.require()
    with guest_lock(store.locks, facts.uuid):
        require_none_pending(
            store.journals, request.guest, lambda plan: plan.source.domain == facts.uuid
        )
        by = served(request, facts)
        if goes_by_hand(facts, verdict):
            return await libvirt_translated.move(request, facts, verdict, by, store, observer)
        plan = Plan(
            id=new_id(),
            guest=facts.name,
            source=Side(address=request.source, domain=facts.uuid),
            destination=Side(address=request.destination, domain=facts.uuid),
            channel=request.link,
            source_host=request.source,
            destination_host=request.destination,
            created=time.time(),
            platform=PLATFORM,
            peer=request.peer or (request.destination if has_host(request.destination) else ""),
            tls=request.tls,
        )
        run = _Run(Journal.create(store.journals, plan), request.options, observer)
        try:
            return await run.whole(request, facts)
        finally:
            await run.close()


async def recover(path: Path, store: GuestStore, observer: Observer, use: str) -> MigrationRecord:
    """Bring a migration to its end whose process was killed; the caller holds the guest's lock."""
    plan = read_record(path).plan
    with guest_lock(store.locks, plan.source.domain):
        if plan.destination.directory is not None:
            return await libvirt_translated.recover(path, observer, use)
        return await brought_to_end(_Run(Journal.reopen(path), Options(), observer), use)


class _Run:
    """One migration under way."""

    def __init__(self, journal: Journal, options: Options, observer: Observer) -> None:
        self.journal = journal
        self.options = options
        self.observer = observer
        self.source = End(journal.record.plan.source)
        self.destination = DestinationEnd(journal.record.plan.destination)
        self.facts: Facts | None = None
        self.postcopy = False
        self.last = Transfer(status="none")

    def enter(self, phase: Phase, why: str = "") -> None:
        self.journal.enter(phase, why)
        self.observer(Progress(phase=phase))

    async def whole(self, request: Request, facts: Facts) -> MigrationRecord:
        """From its beginning to its end."""
        self.facts = facts
        try:
            domain, there = await self.prepare()
            await self.transfer(domain, there, request, facts)
            await self.verify()
        except (IsthmusError, OSError, asyncio.CancelledError) as error:
            await to_its_end(self.settle(error))
        else:
            await to_its_end(self.commit())
        return self.journal.record

    async def prepare(self) -> tuple[Any, Connection]:
        """Look at both ends; nothing moves."""
        self.enter(Phase.PREPARING)
        domain = await self.source.domain()
        if domain is None or await self.source.state() is not Copy.RUNNING:
            raise HypervisorError("the guest does not run", remedy="start or resume it first")
        there = await self.destination.connection()
        if await self.destination.state() is not Copy.DEAD:
            raise HypervisorError(
                f"{there.uri} has a running guest with that UUID", remedy="look at both"
            )
        self.enter(Phase.PREPARED)
        return domain, there

    async def transfer(
        self, domain: Any, there: Connection, request: Request, facts: Facts
    ) -> None:
        """Libvirt's own move, peer to peer where the source's daemon reaches the destination's."""
        self.enter(Phase.MOVING)
        options = self.options
        plan = self.journal.record.plan
        wishes = Wishes(
            peer=plan.peer,
            link=plan.channel,
            bandwidth=options.bandwidth,
            downtime_limit_ms=options.downtime_limit_ms,
            postcopy=request.postcopy,
            parallel=request.parallel,
            copy_storage=request.copy_storage,
            tls=plan.tls,
            persistent=facts.persistent,
            quiet=facts.emulated if options.still is None else options.still,
        )

        def progress(transfer: Transfer) -> None:
            self.last = transfer
            self.observer(Progress(phase=Phase.MOVING, transfer=transfer))

        # From here on libvirt itself may let the destination run.
        self.journal.enter(Phase.STARTING)
        try:
            self.postcopy = await libvirt_move.migrate(domain, there, wishes, progress)
        except LibvirtError as error:
            refused = isinstance(error, DaemonGoneError) or _NOT_REACHED in error.message
            if request.peer or not wishes.peer or self.last.transferred or not refused:
                raise
            if not await self._untouched():
                raise
            self.journal.amend(msgspec.structs.replace(plan, peer=""))
            self.journal.enter(Phase.STARTING, f"not peer to peer: {error.message}")
            wishes = wishes.replace(peer="")
            domain, there = await self.source.domain(), await self.destination.connection()
            self.postcopy = await libvirt_move.migrate(domain, there, wishes, progress)
        await self._arrived()

    async def _untouched(self) -> bool:
        """Whether nothing has come of a move: the source runs as before, the destination has none.

        That the source's daemon does not reach the destination's is told in as many ways as there
        are transports; by ssh it looks as if a connection were lost.
        """
        source, destination = await self.source.state(), await self.destination.state()
        if source is not Copy.RUNNING or destination is not Copy.DEAD:
            return False
        return not await self._busy(source, destination)

    async def _arrived(self) -> None:
        """Libvirt says that the destination has the guest."""
        self.enter(Phase.VERIFYING)
        domain = await self.destination.domain()
        if domain is not None:
            moved = await libvirt_move.measured(domain)
            if not moved.moved_bytes:  # by postcopy libvirt tells nothing of it there
                moved = Moved(total_ms=self.last.total_ms, moved_bytes=self.last.transferred)
            self.journal.measure(
                Figures(
                    total_ms=moved.total_ms,
                    downtime_ms=moved.downtime_ms,
                    moved_bytes=moved.moved_bytes,
                    postcopy=self.postcopy,
                )
            )

    async def verify(self) -> None:
        """Look whether the guest goes on: libvirt calls it running, and it uses its CPU.

        A guest that somebody has paused meanwhile stays paused.
        """
        begun = time.monotonic()
        first: int | None = None
        while True:
            copy, _, reason = await self.destination.told()
            elapsed = time.monotonic() - begun
            if copy is Copy.HELD and reason == binding().VIR_DOMAIN_PAUSED_USER:
                return
            if copy is not Copy.RUNNING:
                raise DeadOnArrivalError(
                    f"the guest does not live on the destination: it is {copy}"
                    f" (libvirt's reason {reason})"
                )
            domain = await self.destination.domain()
            used = (await call(domain.info))[4] if domain is not None else 0
            first = used if first is None else first
            if (elapsed >= LOOK_S and used > first) or elapsed >= self.options.verify_s:
                return
            await asyncio.sleep(POLL_S)

    async def commit(self) -> None:
        """The guest is at the destination; what is left at the source goes."""
        self.enter(Phase.COMMITTING)
        if await self.source.state() is not Copy.DEAD:
            await self.source.destroy()
        self.enter(Phase.COMMITTED)

    async def settle(self, error: BaseException) -> None:
        """Bring a migration that did not go on to an end that is safe.

        :raises RolledBackError: the guest is on its source.
        :raises UndecidedError: both copies are held, or none is left.
        """
        why = str(error) or "interrupted"
        situation, kept = await self._situation(failed=isinstance(error, DeadOnArrivalError))
        if situation.split and (await self.source.told())[1:] in broken():
            why += await self._go_on(why)
            situation, kept = await self._situation(failed=False)
        decision = decide(situation)
        try:
            if decision.action is Action.FINISH:
                await self._finish(situation)
                return
            if decision.action is Action.ROLL_BACK:
                await self._roll_back(why, resume=not kept)
        except RolledBackError:
            raise
        except (IsthmusError, OSError) as worse:
            decision = Decision(action=Action.HOLD, reason=f"{decision.reason}; {worse}")
        else:
            if decision.action is Action.ROLL_BACK:
                raise RolledBackError(f"{why}; the guest is on its source") from error
        if ended := await self._shut_down(situation):
            self._note(Phase.ROLLING_BACK, f"{ended} during the move")
            self._note(Phase.ROLLED_BACK)
            raise RolledBackError(f"{ended} during the move; it is off, on its source") from error
        self._note(Phase.UNDECIDED, f"{why}; {decision.reason}")
        again = f"isthmus migrate --resume {self.journal.record.plan.id}"
        remedy = f"look at both (virsh list --all on each), then {again} --use source|destination"
        if situation.split and decision.action is Action.HOLD:
            remedy = (
                "end neither copy; mend the way between the hosts, then"
                f" {again}: libvirt goes on where it broke"
            )
        raise UndecidedError(f"{why}; {decision.reason}", remedy=remedy) from error

    async def impose(self, winner: str) -> None:
        """Carry out the operator's decision which copy goes on (``source`` or ``destination``).

        :raises UndecidedError: there is no such copy, and the other one may be the guest.
        :raises IsthmusError: each copy has memory that the other lacks.
        """
        situation, _ = await self._situation(failed=False)
        decision = decide(situation)
        if situation.split and decision.action is Action.HOLD:
            raise IsthmusError(
                f"{decision.reason}: to choose one is to lose the guest",
                remedy=f"isthmus migrate --resume {self.journal.record.plan.id}, without --use;"
                " or end both with virsh destroy",
            )
        decision = chosen(winner, situation)
        other = situation.destination if winner == "source" else situation.source
        # Where the other is gone, too, the choice at least closes the record.
        if decision.action is Action.HOLD and other is not Copy.DEAD:
            raise UndecidedError(
                f"{self.journal.record.plan.guest}: {decision.reason}",
                remedy="look at both (virsh list --all on each)",
            )
        if winner == "source":
            await self._roll_back("the operator chose the source", resume=True)
        else:
            await self._finish(situation)

    async def _situation(self, *, failed: bool) -> tuple[Situation, bool]:
        """What both daemons say once they have come to rest, and whether somebody paused it.

        A move that libvirt makes peer to peer goes on without us, a daemon that was restarted
        clears up by itself, and a destination whose source is gone is ended by its daemon: all
        that is waited for, as long as something is still sent or a minute without.
        """
        deadline = time.monotonic() + PATIENCE_S
        sent = 0
        while True:
            source, state, reason = await self.source.told()
            destination, *words = await self.destination.told()
            if (state, reason) in broken() or not await self._busy(source, destination):
                break
            if (now_sent := await self._sent()) != sent:
                sent, deadline = now_sent, time.monotonic() + PATIENCE_S
            if time.monotonic() > deadline:
                break
            await asyncio.sleep(POLL_S)
        split = is_split((state, reason), destination, tuple(words))
        self.postcopy = self.postcopy or split
        libvirt = binding()
        kept = state == libvirt.VIR_DOMAIN_PAUSED and reason == libvirt.VIR_DOMAIN_PAUSED_USER
        return Situation(
            phase=reached(self.journal.record.reached, source, destination, kept=kept),
            source=source,
            destination=destination,
            failed=failed,
            traceless=self.facts is not None and not self.facts.disks,
            rolling_back=self.journal.record.rolling_back,
            split=split,
        ), kept

    async def _go_on(self, why: str) -> str:
        """Have libvirt go on with a postcopy that was broken, while the link may come back.

        :returns: why it did not, to be added to what went wrong; empty if it did.
        """
        self._note(Phase.STARTING, f"postcopy: {why}; waiting to go on")
        plan = self.journal.record.plan
        deadline = time.monotonic() + PATIENCE_S
        while True:
            try:
                domain = await self.source.domain()
                if domain is None:
                    return ""
                wishes = Wishes(
                    peer=plan.peer,
                    link=plan.channel,
                    tls=plan.tls,
                    persistent=bool(await call(domain.isPersistent)),
                )
                await libvirt_move.go_on(domain, await self.destination.connection(), wishes)
            except HypervisorError as error:
                if time.monotonic() > deadline:
                    return f"; libvirt does not go on: {error.message}"
            else:
                return ""
            await asyncio.sleep(LOOK_S)

    async def _sent(self) -> int:
        """How many bytes the source has sent, by what libvirt tells; 0 where it tells nothing."""
        with contextlib.suppress(LibvirtError):
            domain = await self.source.domain()
            if domain is not None:
                return await libvirt_move.sent(domain)
        return 0

    async def _busy(self, source: Copy, destination: Copy) -> bool:
        """Whether something is still going on that will end by itself."""
        if Copy.UNREACHABLE in {source, destination}:
            return True
        if destination is Copy.PARTIAL and source is not Copy.DEAD:
            return True
        for end in (self.source, self.destination):
            with contextlib.suppress(LibvirtError):
                domain = await end.domain()
                if domain is not None and await libvirt_move.under_way(domain):
                    return True
        return False

    async def _shut_down(self, situation: Situation) -> str:
        """How the guest itself has ended meanwhile, empty if it has not."""
        libvirt = binding()
        if situation.source is not Copy.DEAD or situation.destination is not Copy.DEAD:
            return ""
        _, state, reason = await self.source.told()
        if state != libvirt.VIR_DOMAIN_SHUTOFF:
            return ""
        return {
            libvirt.VIR_DOMAIN_SHUTOFF_SHUTDOWN: "the guest shut down",
            libvirt.VIR_DOMAIN_SHUTOFF_DESTROYED: "the guest was destroyed",
            libvirt.VIR_DOMAIN_SHUTOFF_CRASHED: "the guest crashed",
        }.get(reason, "")

    async def _finish(self, situation: Situation) -> None:
        waits = situation.destination is Copy.HELD and situation.source is Copy.DEAD
        proved = situation.phase in {Phase.COMMITTING, Phase.COMMITTED}
        following = Phase.COMMITTING if proved else Phase.STARTING if waits else Phase.VERIFYING
        self.journal.open_way(following)
        if not proved:
            if waits:
                self._note(Phase.STARTING)
                await self.destination.resume()
            await self._arrived()
            await self.verify()
        await self.commit()

    async def _roll_back(self, why: str, *, resume: bool) -> None:
        self._note(Phase.ROLLING_BACK, why)
        # Before libvirt was told to move, what the destination has is another's of that UUID.
        if self.journal.record.reached not in UNTOUCHED:
            if await self.destination.state() is not Copy.DEAD:
                await self.destination.destroy()
            if resume and await self.source.state() is Copy.HELD:
                await self.source.resume()
        self._note(Phase.ROLLED_BACK)

    def _note(self, phase: Phase, why: str = "") -> None:
        self.journal.note(phase, why)
        self.observer(Progress(phase=phase))

    async def close(self) -> None:
        for end in (self.source, self.destination):
            await end.close()
        self.journal.close()
