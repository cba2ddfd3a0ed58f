"""The three acts: the failure that every product has today, and the two cures.

Each act boots its own guest and gives an :class:`ActResult`.  Act one does not use our migration
core at all: it is what a user does by hand, with plain QMP.
"""

import asyncio
import shlex
import time
from collections.abc import Callable

import msgspec

from isthmus.baseline.level import Baseline
from isthmus.errors import IsthmusError
from isthmus.guest.console import Death, find_death
from isthmus.hypervisor.qemu import process
from isthmus.hypervisor.qemu.guests import Guest
from isthmus.hypervisor.qemu.monitor import Monitor, MonitorGoneError
from isthmus.hypervisor.qemu.stream import measured
from isthmus.migration.engine import Options
from isthmus.migration.record import MigrationRecord
from isthmus.qualification.demo.result import ActResult, MoveResult
from isthmus.qualification.demo.stage import Listener, Stage, cpuid_words
from isthmus.qualification.payload.build import instruction_groups
from isthmus.qualification.payload.verdict import Verdict, judge
from isthmus.scan.explain import explain
from isthmus.translate.service import TranslatorClient
from isthmus.translate.table import translatable

DEATH_WATCH_S = 12.0
STAY_S = 3.0  # how long the translated guest works abroad, and at home again
MOVES = 10

Say = Callable[[str], None]
Moved = Callable[[MoveResult], None]


async def without(stage: Stage, source: str, destination: str, say: Say) -> ActResult:
    """Act one: a guest born on ``source`` is migrated to ``destination`` by plain QMP and dies."""
    begun = time.monotonic()
    machine = stage.machine(tick_ms=50)
    base = process.LaunchSpec(
        qemu=stage.hosts.qemu.path,
        accelerator=stage.hosts.accelerator,
        machine="pc",
        cpu=source,
        vcpus=machine.vcpus,
        memory_mib=machine.memory_mib,
        kernel=machine.kernel,
        initrd=machine.initrd,
        command_line=machine.command_line,
        name="plain",
    )
    folder = process.private_directory(stage.folder / "plain")
    say(f"booting a guest on {source}")
    here = await process.start(base, folder / "source", lives_with_parent=True)
    there = await process.start(
        msgspec.structs.replace(base, cpu=destination),
        folder / "destination",
        incoming=True,
        lives_with_parent=True,
    )
    await stage.up(here)
    say(f"migrating it to {destination} with plain QMP")
    move = await _plain(here, there, source, destination)
    death, reported = await _death(there)
    here.kill()
    there.kill()
    offered = stage.hosts.cpus.offered(source), stage.hosts.cpus.offered(destination)
    if death is None and not reported:
        same = not (offered[0].features - offered[1].features)
        outcome = (
            "the two differ in nothing that emulation can show; the guest lives"
            if same
            else "the guest did not die: it used nothing that the destination lacks"
        )
    else:
        outcome = death.headline if death else f"the payload died: {reported}"
    return ActResult(
        name="without",
        title="Without Isthmus",
        ok=death is not None or bool(reported),
        outcome=outcome,
        explanation=explain(death, *offered) if death else "",
        moves=(move,),
        console=death.lines[:40] if death else (),
        commands={source: _shell(here), destination: _shell(there)},
        seconds=time.monotonic() - begun,
    )


async def _plain(
    here: process.QemuProcess, there: process.QemuProcess, source: str, destination: str
) -> MoveResult:
    """What a user does by hand: migrate-incoming, migrate, wait, cont."""
    uri = f"unix:{there.directory / 'stream.sock'}"
    async with Monitor.session(here.qmp) as mine, Monitor.session(there.qmp) as theirs:
        await theirs.execute("migrate-incoming", {"uri": uri})
        await mine.execute("migrate", {"uri": uri})
        deadline = time.monotonic() + 60
        transfer = await measured(mine)
        while transfer.status not in {"completed", "failed"} and time.monotonic() < deadline:
            await asyncio.sleep(0.02)
            transfer = await measured(mine)
        if transfer.status != "completed":
            raise IsthmusError(f"plain QMP migration {transfer.status}: {transfer.error}")
        await theirs.execute("cont")
    return MoveResult(
        number=1,
        source=source,
        destination=destination,
        total_ms=transfer.total_ms,
        downtime_ms=transfer.downtime_ms or 0.0,
        moved_bytes=transfer.transferred,
    )


async def _death(there: process.QemuProcess) -> tuple[Death | None, str]:
    """Watch the guest on the destination until it dies, or long enough to believe it lives."""
    deadline = time.monotonic() + DEATH_WATCH_S
    while time.monotonic() < deadline:
        await asyncio.sleep(0.2)
        death = find_death(there.console.read_bytes())
        reported = _reported_death(there)
        if death is not None or reported:
            await asyncio.sleep(0.5)  # the rest of the kernel's dump
            return find_death(there.console.read_bytes()), reported
        try:
            async with Monitor.session(there.observe) as monitor:
                state = await monitor.status()
        except MonitorGoneError:
            return None, "QEMU ended"
        if state not in {"running", "inmigrate"}:
            await asyncio.sleep(0.5)
            return find_death(there.console.read_bytes()), f"the guest is {state}"
        if there.payload.read_bytes().count(b" tick ") > 60:
            break
    return None, ""


def _reported_death(there: process.QemuProcess) -> str:
    lines = there.payload.read_bytes().split(b"\n")
    line = next((line for line in lines if b" death " in line), b"")
    return line.decode("ascii", errors="replace")[:200]


async def levelled(
    stage: Stage,
    source: str,
    destination: str,
    baseline: Baseline,
    moves: int,
    say: Say,
    moved: Moved,
) -> ActResult:
    """Act two: the same guest with the level of both hosts goes there and back, ``moves`` times."""
    begun = time.monotonic()
    say(f"booting a guest on {source} with the level of both")
    guest = await stage.hosts.start(
        "levelled", source, stage.machine(), shown=baseline.model, lives_with_parent=True
    )
    commands = {source: _shell(guest.process)}
    await stage.up(guest.process)
    listener = Listener(stage, guest)
    records: list[MigrationRecord] = []
    problem = ""
    for number in range(1, moves + 1):
        goal = destination if number % 2 else source
        say(f"move {number} of {moves}: to {goal}")
        try:
            record = await stage.hosts.move(guest.name, goal, Options(lives_with_parent=True))
        except IsthmusError as error:
            problem = f"move {number}: {error}"
            break
        records.append(record)
        moved(_move(number, record))
        commands.setdefault(goal, _of(stage, guest.name))
    await asyncio.sleep(0.5)
    verdict = judge(await listener.streams())
    _end(stage, guest.name)
    return _survival(
        "levelled",
        "Levelled",
        [_move(number, record) for number, record in enumerate(records, 1)],
        verdict,
        problem,
        commands,
        time.monotonic() - begun,
    )


async def translated(
    stage: Stage, source: str, destination: str, say: Say, moved: Moved
) -> ActResult:
    """Act three: an unlevelled guest goes to the destination with the translator, and home."""
    begun = time.monotonic()
    born, abroad = stage.hosts.cpus.offered(source), stage.hosts.cpus.offered(destination)
    usable = (born.features & abroad.features) | translatable()
    say(f"booting an unlevelled guest on {source}")
    guest = await stage.hosts.start(
        "translated",
        source,
        stage.machine(test=",".join(sorted(usable & instruction_groups()))),
        lives_with_parent=True,
    )
    commands = {source: _shell(guest.process)}
    await stage.up(guest.process)
    listener = Listener(stage, guest)
    moves: list[MoveResult] = []
    problem = ""
    try:
        say(f"moving it to {destination} with the translator armed")
        record = await stage.hosts.move(
            guest.name, destination, Options(translate=True, lives_with_parent=True)
        )
        commands[destination] = _of(stage, guest.name)
        say(f"working on {destination}, translated")
        await asyncio.sleep(STAY_S)
        counts = await _counts(stage, guest.name)
        moves.append(_move(1, record, counts))
        moved(moves[0])
        say(f"moving it home to {source}")
        record = await stage.hosts.move(guest.name, source, Options(lives_with_parent=True))
        await asyncio.sleep(STAY_S / 2)
        moves.append(_move(2, record, await _counts(stage, guest.name)))
        moved(moves[1])
        if not counts:
            problem = "nothing was translated"
        elif moves[1].translated:
            problem = "the translator did not go quiet at home"
    except IsthmusError as error:
        problem = str(error)
    verdict = judge(
        await listener.streams(), cpuid_may_lose=cpuid_words(born.features - abroad.features)
    )
    _end(stage, guest.name)
    return _survival(
        "translated",
        "Translated",
        moves,
        verdict,
        problem,
        commands,
        time.monotonic() - begun,
    )


async def _counts(stage: Stage, name: str) -> dict[str, int]:
    """What has been translated for the guest where it is now; nothing where no translator is."""
    folder = stage.hosts.store.read(name).translator
    if folder is None:
        return {}
    client = await TranslatorClient.connect(folder)
    try:
        return (await client.status()).translated
    finally:
        await client.close()


def _move(
    number: int, record: MigrationRecord, translated_counts: dict[str, int] | None = None
) -> MoveResult:
    figures = record.figures
    assert figures is not None
    return MoveResult(
        number=number,
        source=record.plan.source_host,
        destination=record.plan.destination_host,
        total_ms=figures.total_ms,
        downtime_ms=figures.downtime_ms,
        stopped_ms=figures.stopped_ms,
        moved_bytes=figures.moved_bytes,
        translated=translated_counts or {},
    )


def _survival(
    name: str,
    title: str,
    moves: list[MoveResult],
    verdict: Verdict,
    problem: str,
    commands: dict[str, str],
    seconds: float,
) -> ActResult:
    """The result of an act that the guest has to survive."""
    ok = not problem and verdict.ok
    timed = [
        msgspec.structs.replace(move, guest_gap_ms=times.guest_gap_ms, silence_ms=times.silence_ms)
        for move, times in zip(moves, verdict.hops, strict=False)
    ]
    if ok:
        worst = max((move.downtime_ms for move in moves), default=0.0)
        outcome = (
            f"alive after {len(moves)} moves, {verdict.records} reports without a fault,"
            f" downtime at most {worst:.0f} ms"
        )
    else:
        outcome = problem or "the payload found something wrong"
    return ActResult(
        name=name,
        title=title,
        ok=ok,
        outcome=outcome,
        moves=tuple(timed),
        commands=commands,
        faults=tuple(f"{fault.kind}: {fault.detail}" for fault in verdict.faults[:20]),
        records=verdict.records,
        seconds=seconds,
    )


def _of(stage: Stage, name: str) -> str:
    """The command line of the process in which a guest runs now."""
    guest: Guest = stage.hosts.store.read(name)
    return shlex.join(guest.spec.arguments(guest.process.directory, incoming=True))


def _shell(running: process.QemuProcess) -> str:
    return shlex.join(running.command)


def _end(stage: Stage, name: str) -> None:
    for left in process.mentioning(stage.hosts.store.run / name):
        left.kill()
    stage.hosts.store.forget(name)
