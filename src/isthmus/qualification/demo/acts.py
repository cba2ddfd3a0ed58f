"""Acts two and three, the cures: the guest has to live, and its payload has to be right.

Both use the migration core as ``isthmus migrate`` does, over TCP.
"""

import asyncio
import time
from collections.abc import Sequence

import msgspec

from isthmus.errors import IsthmusError, RefusedError
from isthmus.hypervisor.qemu.guests import Guest
from isthmus.migration.options import Options
from isthmus.migration.record import MigrationRecord
from isthmus.qualification.demo.listener import Listener
from isthmus.qualification.demo.play import Play, pass_on_interrupt
from isthmus.qualification.demo.result import (
    ActName,
    ActResult,
    Command,
    MoveResult,
    Outcome,
    Stay,
    spread,
)
from isthmus.qualification.demo.stage import end_processes
from isthmus.qualification.demo.work import Work, work_at_home, work_for
from isthmus.qualification.payload.build import instruction_groups
from isthmus.qualification.payload.verdict import Verdict
from isthmus.translate.table import Placement, translatable

MOVES = 10
KVM_MOVES = 2  # there and back; on lab hosts one move takes 6 to 20 s
STAY_TICKS = 5  # rounds of the payload's checks between two moves


class _Journey:
    """One guest on its way: moves it and keeps what the result needs."""

    def __init__(self, play: Play, guest: Guest, begun_s: float) -> None:
        self.play = play
        self.name = guest.name
        self.begun_s = begun_s
        self.listener = Listener(play.stage.hosts.store.run / guest.name)
        self.moves: list[MoveResult] = []
        self.stays = [Stay(host=guest.host, begun_s=begun_s, ended_s=begun_s)]
        self.commands = {guest.host: guest.process.command}

    async def move(self, host: str, *, translate: bool = False) -> None:
        """Move to ``host`` and wait until the payload works there.

        :raises IsthmusError: the move failed, or the payload is silent.
        """
        play, hosts = self.play, self.play.stage.hosts
        left = play.clock()
        # QEMU's own bandwidth and downtime limits on purpose.  With 1 GiB/s and 40 ms QEMU 7.2's
        # TCG now and then loses a guest's write (docs/demo.md), which no migration can cure.
        options = Options(
            channel="tcp",
            translate=translate,
            downtime_limit_ms=play.stage.pace.downtime_limit_ms,
            verify_s=play.stage.pace.verify_s,
            lives_with_parent=True,
        )
        try:
            record = await hosts.move(
                self.name,
                host,
                options,
                accepted=play.stage.accepted,
                observer=play.display.progress,
            )
        except IsthmusError:
            pass_on_interrupt()
            raise
        self._arrived(record, left)
        guest = hosts.store.read(self.name)
        incoming = guest.spec.arguments(guest.process.directory, incoming=True)
        self.commands.setdefault(host, tuple(incoming))
        await play.stage.up(guest.process, ticks=STAY_TICKS, patience_s=play.stage.pace.arrive_s)
        self.moves[-1] = self._timed(self.moves[-1])

    def _arrived(self, record: MigrationRecord, left: float) -> None:
        now = self.play.clock()
        self.stays[-1] = msgspec.structs.replace(self.stays[-1], ended_s=now)
        self.stays.append(Stay(host=record.plan.destination_host, begun_s=now, ended_s=now))
        figures = record.figures
        assert figures is not None
        self.moves.append(
            MoveResult(
                number=len(self.moves) + 1,
                source=record.plan.source_host,
                destination=record.plan.destination_host,
                begun_s=left,
                total_ms=figures.total_ms,
                downtime_ms=figures.downtime_ms or 0.0,
                stopped_ms=figures.stopped_ms,
                moved_bytes=figures.moved_bytes,
            )
        )

    def _timed(self, move: MoveResult) -> MoveResult:
        times = self.listener.hop_times(move.number)
        return msgspec.structs.replace(
            move, guest_gap_ms=times.guest_gap_ms, silence_ms=times.silence_ms
        )

    def tell(self) -> None:
        """Show the last move, now that all is known of it."""
        self.play.display.moved(self.moves[-1])

    @property
    def guest(self) -> Guest:
        """The guest where it is now."""
        return self.play.stage.hosts.store.read(self.name)

    async def end(
        self,
        name: ActName,
        problem: IsthmusError | str | None,
        *,
        may_lose: frozenset[str] = frozenset(),
    ) -> tuple[ActResult, Verdict]:
        """Stop listening, end the guest, judge what its payload said."""
        await self.listener.close()
        ended = self.play.clock()
        self.stays[-1] = msgspec.structs.replace(self.stays[-1], ended_s=ended)
        verdict = await asyncio.to_thread(self.listener.verdict, may_lose)
        console = self.listener.console()
        store = self.play.stage.hosts.store
        await asyncio.to_thread(end_processes, store.run / self.name)
        store.forget(self.name)
        result = ActResult(
            name=name,
            ok=problem is None and verdict.ok,
            outcome=_outcome(problem, verdict),
            headline=str(problem) if problem else _judged(verdict),
            moves=tuple(self._timed(move) for move in self.moves),
            stays=tuple(self.stays),
            console=console,
            commands=tuple(
                Command(host=host, arguments=words) for host, words in self.commands.items()
            ),
            faults=tuple(f"{fault.kind}: {fault.detail}" for fault in verdict.faults),
            records=verdict.records,
            instructions=verdict.instructions,
            begun_s=self.begun_s,
            ended_s=ended,
        )
        return result, verdict


async def levelled(play: Play, moves: int = MOVES) -> ActResult:
    """The same guest with the level of both hosts goes there and back, under load."""
    begun = play.clock()
    play.display.step(f"booting a guest on {play.source}, levelled for both")
    guest = await play.stage.hosts.start(
        "levelled",
        play.source,
        play.stage.machine(**play.stage.load),
        shown=play.baseline.model,
        lives_with_parent=True,
    )
    journey = _Journey(play, guest, begun)
    problem: IsthmusError | None = None
    try:
        await play.stage.up(guest.process)
        for number in range(1, moves + 1):
            host = play.destination if number % 2 else play.source
            play.display.step(f"move {number} of {moves}: to {host}")
            await journey.move(host)
            journey.tell()
    except IsthmusError as error:
        problem = error
    result, verdict = await journey.end(ActName.LEVELLED, problem)
    if not result.ok:
        return result
    downtime = spread([move.downtime_ms for move in result.moves])
    assert downtime is not None
    return msgspec.structs.replace(
        result,
        headline=f"alive and correct after {len(result.moves)} moves;"
        f" downtime {downtime.median:.0f} ms at the median, {downtime.greatest:.0f} ms at most",
        explanation=f"The guest saw only what both hosts have, so nothing it uses went missing."
        f" {verdict.records} reports of its payload: none lost, repeated or wrong.",
    )


async def translated(play: Play) -> ActResult:
    """An unlevelled guest goes to the destination with the translator armed, and home again."""
    begun = play.clock()
    born, abroad = play.offers
    # The program leaves alone what is lost and cannot be translated: that is no cure's business.
    inside = not play.stage.hosts.traps(play.destination)
    placement = Placement.INSIDE if inside else Placement.OUTSIDE
    covered = translatable(placement, avx="avx" in born.features)
    left_alone = (instruction_groups() & born.features) - abroad.features - covered
    tests = (instruction_groups() & born.features) - left_alone
    play.display.step(f"booting a guest on {play.source}, not levelled")
    guest = await play.stage.hosts.start(
        "translated",
        play.source,
        (play.stage.served_machine if inside else play.stage.machine)(test=",".join(sorted(tests))),
        module=inside,
        lives_with_parent=True,
    )
    preflight = play.stage.hosts.check(guest, play.destination, accepted=play.stage.accepted)
    journey = _Journey(play, guest, begun)
    problem: IsthmusError | str | None = None
    work: Work | None = None
    try:
        await play.stage.up(guest.process)
        armed = "with the translator in its kernel" if inside else "translator armed"
        play.display.step(f"moving it to {play.destination}, {armed}")
        await journey.move(play.destination, translate=True)
        play.display.step(f"at work on {play.destination}, translated")
        work = await _at_work(journey, needed=preflight.needs_translation)
        journey.moves[-1] = _counted(journey.moves[-1], work)
        journey.tell()
        play.display.step(f"moving it home to {play.source}")
        await journey.move(play.source, translate=True)
        at_home = await work_at_home(journey.guest, patience_s=play.stage.pace.arrive_s)
        journey.moves[-1] = _counted(journey.moves[-1], at_home)
        journey.tell()
        if at_home is not None and (at_home.translated or at_home.passed):
            did = sum(at_home.translated.values()) + (at_home.passed or 0)
            problem = f"the translator did not go quiet at home: {did} traps"
        if inside and at_home is None:
            problem = "at home nothing was heard of the module in its kernel"
    except IsthmusError as error:
        problem = error
    if problem is None and preflight.needs_translation and not (work and work.translated):
        problem = "nothing was translated, although something should have been"
    may_lose = born.features - preflight.shown.features
    result, _ = await journey.end(ActName.TRANSLATED, problem, may_lose=may_lose)
    result = msgspec.structs.replace(result, findings=preflight.findings)
    return result if not result.ok else _cured(result, work, left_alone, inside=inside)


async def _at_work(journey: _Journey, *, needed: bool) -> Work | None:
    """Let the guest work abroad; what the translator has done for it by then.

    :param needed: wait on until it has done something, for as long as an arrival may take.
    """
    pace = journey.play.stage.pace
    deadline = time.monotonic() + pace.arrive_s
    while True:
        await asyncio.sleep(pace.abroad_s)
        work = await work_for(journey.guest)
        if not needed or (work and work.translated) or time.monotonic() > deadline:
            return work


def _cured(
    result: ActResult, work: Work | None, left_alone: frozenset[str], *, inside: bool
) -> ActResult:
    if work is None or not work.translated:
        headline = "alive and correct; nothing that it uses was missing, so nothing was translated"
        return msgspec.structs.replace(result, headline=headline)
    count = sum(work.translated.values())
    each = f" {work.us_per_instruction:.0f} µs each," if work.us_per_instruction else ""
    spared = f" The program leaves {', '.join(sorted(left_alone))} alone." if left_alone else ""
    own = ""
    if work.passed is not None:
        own = f" {work.passed} traps were the guest's own affair (UD2) and reached it untouched."
    return msgspec.structs.replace(
        result,
        headline=f"alive and correct there and back; {count} instructions were translated,{each}"
        " none at home",
        explanation=f"{_HOW_INSIDE if inside else _HOW_OUTSIDE}{own}{spared}",
    )


_HOW_OUTSIDE = (
    "Each missing instruction stops the guest at its #UD entry; the translator does the"
    " instruction's work and lets it go on."
)
_HOW_INSIDE = (
    "Each missing instruction raises #UD in the guest; the module in its kernel does the"
    " instruction's work. Nothing is armed outside: guests on that host stop at no breakpoint."
)


def _counted(move: MoveResult, work: Work | None) -> MoveResult:
    if work is None:
        return move
    return msgspec.structs.replace(
        move, translated=work.translated, us_per_instruction=work.us_per_instruction
    )


def _outcome(problem: IsthmusError | str | None, verdict: Verdict) -> Outcome:
    kinds: Sequence[str] = [fault.kind for fault in verdict.faults]
    if isinstance(problem, RefusedError):
        return Outcome.REFUSED
    if "death" in kinds:
        return Outcome.KILLED
    if kinds:
        return Outcome.WRONG
    return Outcome.LIVED if problem is None else Outcome.NOT_MOVED


def _judged(verdict: Verdict) -> str:
    if verdict.ok:
        return "alive and correct"
    first = verdict.faults[0]
    return (
        f"the payload found {verdict.fault_count} faults; the first: {first.kind}: {first.detail}"
    )
