"""Moves by XAPI: the pool's coordinator moves the guest, the journal says what is known of it.

XAPI copies, hands over and starts in one step and by itself, as a task that goes on when we die.
So the journal says ``starting`` before the order is given: from there on the guest may run on its
destination.  Whatever happens then, our own death included, is settled in the same way: wait until
neither the task nor the guest's own list of operations has a move any more, look where the guest
runs, and let :func:`isthmus.migration.decision.decide` say what that means.  Nothing is ever
started, and nothing is ended unless the operator says which copy is the true one: that exactly one
copy runs is XAPI's own promise, and here it is watched.

A move is never ordered twice: where the answer to an order got lost, the guest's operations tell
whether it was taken (``VM.current_operations``, xen-api ``ocaml/idl/datamodel_common.ml``,
``allowed_and_current_operations``).
"""

import asyncio
import contextlib
import time
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn, TypeVar

import msgspec

from isthmus.errors import (
    InputError,
    IsthmusError,
    RefusedError,
    RolledBackError,
    UndecidedError,
)
from isthmus.hypervisor.qemu.guests import GuestStore
from isthmus.hypervisor.qemu.stream import Transfer
from isthmus.hypervisor.xapi import orders
from isthmus.hypervisor.xapi.failures import XapiFailureError, XapiGoneError, XapiNonsenseError
from isthmus.hypervisor.xapi.inventory import guest_of
from isthmus.hypervisor.xapi.records import Ref, TaskRecord, TaskStatus
from isthmus.migration.decision import Action, decide
from isthmus.migration.ending import to_its_end
from isthmus.migration.options import Observer, Options, Progress
from isthmus.migration.phases import MAY_HAVE_RUN, TRANSITIONS, Phase
from isthmus.migration.platforms import Request
from isthmus.migration.preflight import Preflight
from isthmus.migration.record import (
    Journal,
    MigrationRecord,
    Plan,
    guest_lock,
    new_id,
    require_none_pending,
)
from isthmus.migration.xapi_ends import Ends, addresses_of, find_route, judge
from isthmus.migration.xapi_settle import Look, look, situation, told

SETTLED_S = 10.0
"""How long what is seen must stay so to be believed, where no task has told the end."""
RESUME_S = 60.0
"""How long recovery waits for a move that XAPI still works at, before it says so."""
SAMPLE_S = 1.0
RECOVERED = Options()
"""How recovery watches a guest that has arrived."""

T = TypeVar("T")


async def check(request: Request) -> Preflight:
    """All checks of the move, XAPI's own as well; takes no step."""
    return await asyncio.to_thread(_check, request)


def _check(request: Request) -> Preflight:
    _require_possible(request.options)
    with contextlib.closing(Ends.open(addresses_of(request.source, request.destination))) as ends:
        route = find_route(ends, request.guest)
        verdict, order = judge(ends, route, request)
        _give_back(ends, order)
        return verdict


async def move(request: Request, store: GuestStore, observer: Observer) -> MigrationRecord:
    """Move the guest.

    :raises RefusedError: preflight found what could not work; nothing was touched.
    :raises RolledBackError: it failed and the guest runs on its source.
    :raises UndecidedError: the operator has to decide, or nobody can tell yet.
    """
    _require_possible(request.options)
    addresses = addresses_of(request.source, request.destination)
    ends = await asyncio.to_thread(Ends.open, addresses)
    run: _Run | None = None
    judged: tuple[Preflight, orders.Order] | None = None
    try:
        route = await asyncio.to_thread(find_route, ends, request.guest)
        name = route.guest.name
        with guest_lock(store.locks, name):
            uuid = route.guest.record.uuid
            require_none_pending(store.journals, name, lambda plan: plan.source.domain == uuid)
            judged = verdict, order = await asyncio.to_thread(judge, ends, route, request)
            verdict.require()
            source, destination = route.sides(addresses)
            plan = Plan(
                id=new_id(),
                guest=name,
                source=source,
                destination=destination,
                channel="",
                source_host=route.source.name,
                destination_host=route.destination.name,
                created=time.time(),
                platform="xapi",
            )
            run = _Run(Journal.create(store.journals, plan), ends, request.options, observer)
            try:
                await run.carry_out(order)
            finally:
                run.journal.close()
            return run.journal.record
    finally:
        # While XAPI may still be moving it, the sessions must live: the hosts work in their name.
        moving = run is not None and not run.journal.record.final
        if judged is not None and not moving:
            await asyncio.to_thread(_give_back, ends, judged[1])
        await asyncio.to_thread(ends.close, moving=moving)


def _require_possible(options: Options) -> None:
    """Refuse what is wished for and XAPI has no way to do."""
    if options.translate:
        raise RefusedError(
            "guests of XAPI have no translator: their QEMU, where they have one, is Xen's",
            remedy="leave --translate out; what the destination lacks is refused",
        )
    for option, value in (
        ("--bandwidth", options.bandwidth),
        ("--downtime-limit", options.downtime_limit_ms),
    ):
        if value is not None:
            raise InputError(f"{option}: XAPI takes no such limit", remedy="leave it out")


async def recover(
    path: Path,
    store: GuestStore,  # noqa: ARG001 (every platform is given it)
    observer: Observer,
    use: str,
) -> MigrationRecord:
    """Bring a migration to its end whose process was killed; the caller holds the guest's lock.

    :raises IsthmusError: XAPI still works at it.
    :raises UndecidedError: the operator has to decide.
    """
    journal = Journal.reopen(path)
    try:
        if journal.record.final:
            return journal.record
        plan = journal.record.plan
        addresses = addresses_of(plan.source.address, plan.destination.address)
        ends = await asyncio.to_thread(Ends.open, addresses)
        try:
            run = _Run(journal, ends, RECOVERED, observer)
            with contextlib.suppress(RolledBackError):
                await run.settle("the process that moved the guest was killed", RESUME_S, use)
        finally:
            await asyncio.to_thread(ends.close)
        return journal.record
    finally:
        journal.close()


def _give_back(ends: Ends, order: orders.Order) -> None:
    """End the session that the destination has made for the move."""
    if order.carrying is not None and (session := order.carrying.token.get("session_id")):
        ends.destination.revoke(session)


class _Run:
    """One migration under way."""

    def __init__(self, journal: Journal, ends: Ends, options: Options, observer: Observer) -> None:
        self.journal = journal
        self.ends = ends
        self.options = options
        self.observer = observer
        self._shown = -1

    async def carry_out(self, order: orders.Order) -> None:
        """Give the order, and bring what comes of it to its end."""
        why = ""
        try:
            for phase in (Phase.PREPARING, Phase.PREPARED, Phase.MOVING, Phase.STARTING):
                self.enter(phase)
            await self._begin(order)
            why = await self._follow()
        except (IsthmusError, OSError) as error:
            why = str(error)
        except asyncio.CancelledError:
            # Ctrl-C: the move is given up if XAPI still can, and then it is seen what has become.
            why = "interrupted"
            await to_its_end(self._cancel())
        await to_its_end(self.settle(why))

    def enter(self, phase: Phase, why: str = "") -> None:
        """Write the phase, then tell of it."""
        self.journal.enter(phase, why)
        self.observer(Progress(phase=phase))

    async def _begin(self, order: orders.Order) -> None:
        """Give the order and write down its task; both are done, even if we are interrupted."""

        async def give() -> None:
            task = await asyncio.to_thread(orders.begin, self.ends.source, order)
            self.journal.amend(msgspec.structs.replace(self.journal.record.plan, task=task))

        giving = asyncio.ensure_future(give())
        try:
            await asyncio.shield(giving)
        except asyncio.CancelledError:
            with contextlib.suppress(IsthmusError):
                await giving
            raise

    async def _cancel(self) -> None:
        for task in await self._tasks():
            with contextlib.suppress(IsthmusError):
                await asyncio.to_thread(orders.cancel, self.ends.source, task)

    async def _tasks(self) -> tuple[Ref, ...]:
        """The task of the order, else those that the guest says it is moved by."""
        if task := self.journal.record.plan.task:
            return (task,)
        with contextlib.suppress(IsthmusError):
            guest = await asyncio.to_thread(
                guest_of, self.ends.source, self.journal.record.plan.source.domain
            )
            return guest.record.moves if guest else ()
        return ()

    async def _follow(self) -> str:
        """Wait for the task's end, telling how far it is; returns why it failed, if it did."""
        task = self.journal.record.plan.task
        token = ""
        while True:
            record = await asyncio.to_thread(orders.task, self.ends.source, task)
            self._tell(record)
            if not orders.pending(record):
                return _why(record)
            try:
                token = await asyncio.to_thread(orders.news, self.ends.source, task, token)
            except XapiFailureError:
                token = ""  # a token of before a restart of XAPI
                await asyncio.sleep(SAMPLE_S)

    def _tell(self, record: TaskRecord | None) -> None:
        if record is None or not orders.pending(record):
            return
        done = record.percent
        if done != self._shown:
            self._shown = done
            transfer = Transfer(status="active", total=100, remaining=100 - done)
            self.observer(Progress(phase=Phase.MOVING, transfer=transfer))

    async def settle(self, why: str, patience_s: float | None = None, use: str = "") -> None:
        """Bring the migration to the end that it has come to.

        :param why: what kept it from its end, empty if nothing did.
        :param patience_s: how long to wait for a move that goes on; None: as long as it takes.
        :param use: the copy that the operator says is the true one.
        :raises RolledBackError: the guest runs on its source.
        :raises UndecidedError: nobody can tell, or the operator has to.
        """
        phase = self.journal.record.reached
        if phase not in MAY_HAVE_RUN:
            self._roll_back(why or "nothing was ordered")
        try:
            await self._end(why, phase, patience_s, use)
        except (XapiGoneError, XapiFailureError, XapiNonsenseError) as error:
            self._undecided(why, str(error))

    async def _end(self, why: str, phase: Phase, patience_s: float | None, use: str) -> None:
        """What :meth:`settle` does once an order may have been given."""
        seen = await self._at_rest(patience_s)
        if use:
            seen = await self._impose(seen, use)
        decision = decide(situation(phase, seen))
        if decision.action is Action.ROLL_BACK and seen.runs[0]:
            self._roll_back(why or decision.reason)
        if decision.action is not Action.FINISH:
            self._undecided(why, told(seen, decision))
        if wrong := await self._verify(seen, phase):
            self._undecided(why, wrong)
        await self._commit()

    async def _at_rest(self, patience_s: float | None) -> Look:
        """What is seen of the guest once nothing moves it any more."""
        task = self.journal.record.plan.task
        deadline = None if patience_s is None else time.monotonic() + patience_s
        last: Look | None = None
        since = time.monotonic()
        while True:
            record = (
                await self._asked(lambda: orders.task(self.ends.source, task)) if task else None
            )
            seen = await self._look()
            now = time.monotonic()
            if orders.pending(record) or seen.moving:
                self._tell(record)
                last = None
                if deadline is not None and now > deadline:
                    raise IsthmusError(
                        f"{self.journal.record.plan.guest}: XAPI still moves it"
                        + (f" ({record.percent} %)" if record else ""),
                        remedy="ask again later by isthmus migrate --resume,"
                        " or give it up by `xe task-cancel`",
                    )
            elif last is None or seen.copies != last.copies:
                last, since = seen, now
            if last is not None and (record is not None or now - since >= SETTLED_S):
                return last
            await asyncio.sleep(min(SAMPLE_S, SETTLED_S))

    async def _asked(self, question: Callable[[], T]) -> T | None:
        """The answer, None where the pool does not give one."""
        try:
            return await asyncio.to_thread(question)
        except (XapiGoneError, XapiFailureError):
            return None

    async def _impose(self, seen: Look, use: str) -> Look:
        """End the copy that the operator has said is not the true one, if both run."""
        loser = seen.arrived if use == "source" else seen.home
        if not all(seen.runs) or loser.guest is None:
            return seen
        pool = self.ends.destination if use == "source" else self.ends.source
        await asyncio.to_thread(orders.stop, pool, loser.guest.ref)
        return await self._look()

    async def _look(self) -> Look:
        return await asyncio.to_thread(look, self.ends, self.journal.record.plan)

    async def _verify(self, seen: Look, phase: Phase) -> str:
        """Watch the guest on its destination; returns what is wrong with it, empty if nothing."""
        if phase in {Phase.COMMITTING, Phase.COMMITTED}:
            return ""
        self.enter(Phase.VERIFYING)
        domid = seen.arrived.guest.record.domid if seen.arrived.guest else None
        deadline = time.monotonic() + self.options.verify_s
        while True:
            guest = seen.arrived.guest
            if not seen.runs[1] or guest is None:
                return f"it does not live on its destination: {told(seen)}"
            if guest.record.domid != domid:
                return "it has died on its destination, and was started anew there"
            if time.monotonic() >= deadline:
                return ""
            await asyncio.sleep(SAMPLE_S)
            seen = await self._look()

    async def _commit(self) -> None:
        self.enter(Phase.COMMITTING)
        if task := self.journal.record.plan.task:
            await self._asked(lambda: orders.forget(self.ends.source, task))
        self.enter(Phase.COMMITTED)

    def _roll_back(self, why: str) -> NoReturn:
        """Write that the guest is where it was; XAPI has left it there.

        :raises RolledBackError: always.
        """
        for phase in (Phase.ROLLING_BACK, Phase.ROLLED_BACK):
            if phase in TRANSITIONS[self.journal.phase]:
                # Should it not be written, recovery finds the same truth again.
                with contextlib.suppress(IsthmusError):
                    self.enter(phase, why if phase is Phase.ROLLING_BACK else "")
        raise RolledBackError(f"{why}; the guest runs on its source", remedy="nothing was lost")

    def _undecided(self, why: str, reason: str) -> NoReturn:
        """Write that nobody can tell.

        :raises UndecidedError: always.
        """
        text = f"{why}; {reason}" if why and why != reason else reason
        with contextlib.suppress(IsthmusError):
            self.enter(Phase.UNDECIDED, text)
        raise UndecidedError(
            text,
            remedy="look at it (xe vm-list params=power-state,resident-on), then isthmus migrate"
            " --resume, with --use source|destination if both run",
        )


def _why(record: TaskRecord | None) -> str:
    """Why a task that has ended did not succeed."""
    if record is None:
        return "XAPI has forgotten its task: it was started anew"
    if record.status is TaskStatus.SUCCESS:
        return ""
    if record.status is TaskStatus.CANCELLED:
        return "the move was cancelled"
    return str(XapiFailureError(record.error_info or ("INTERNAL_ERROR",)))
