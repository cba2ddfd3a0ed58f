"""Act one: a guest is moved by hand, with plain QMP, as every product does it today.

Nothing of our migration core is used.  Each host gives the guest what its CPU model offers, the
guest does not look at CPUID again, and its first instruction that the other host lacks is its last.
"""

import asyncio
import re
import time

import msgspec

from isthmus.errors import HypervisorError
from isthmus.guest.console import Death, Kind, find_death, readable
from isthmus.hypervisor.qemu import process
from isthmus.hypervisor.qemu.binary import versioned_pc_machine
from isthmus.hypervisor.qemu.monitor import Monitor, MonitorGoneError
from isthmus.hypervisor.qemu.stream import Transfer, measured
from isthmus.qualification.demo.listener import Listener
from isthmus.qualification.demo.pace import QUICK, Pace
from isthmus.qualification.demo.play import Play
from isthmus.qualification.demo.result import (
    FAILED_IN_GUEST,
    ActName,
    ActResult,
    Command,
    MoveResult,
    Outcome,
    Stay,
)
from isthmus.qualification.payload.verdict import Verdict
from isthmus.scan.explain import explain
from isthmus.values import Value

TICK_MS = 50
LIVES_TICKS = 60
"""So many rounds of checks on the destination without a death: it lives."""
_KINDS = {
    Kind.PANIC: Outcome.PANIC,
    Kind.OOPS: Outcome.OOPS,
    Kind.KILLED_BY_SIGNAL: Outcome.KILLED,
}


class Fate(Value, frozen=True):
    """What became of the guest on the destination."""

    outcome: Outcome
    headline: str
    death: Death | None = None


async def without(play: Play) -> ActResult:
    """Boot a guest on the source, migrate it by plain QMP, watch what happens to it."""
    begun = play.clock()
    source, destination, hosts = play.source, play.destination, play.stage.hosts
    machine = play.stage.machine(tick_ms=TICK_MS)
    spec = process.LaunchSpec(
        qemu=hosts.hypervisor(source).path,
        accelerator=hosts.accelerator,
        machine=versioned_pc_machine(hosts.hypervisor(source)),
        cpu=play.stage.unlevelled(source),
        vcpus=machine.vcpus,
        memory_mib=machine.memory_mib,
        kernel=machine.kernel,
        initrd=machine.initrd,
        command_line=machine.command_line,
        name="plain",
    )
    folder = play.stage.folder / "plain"
    play.display.step(f"booting a guest on {source}")
    here = await process.start(spec, folder / "0", lives_with_parent=True)
    listener = Listener(folder)
    await play.stage.up(here)
    there = await process.start(
        msgspec.structs.replace(
            spec,
            qemu=hosts.hypervisor(destination).path,
            cpu=play.stage.unlevelled(destination),
        ),
        folder / "1",
        incoming=True,
        lives_with_parent=True,
    )
    play.display.step(f"moving it to {destination} with plain QMP")
    left = play.clock()
    way = hosts.way(destination, there.directory, "unix")
    transfer = await move_by_hand(here, there, way, pace=play.stage.pace)
    arrived = play.clock()
    move = MoveResult(
        number=1,
        source=source,
        destination=destination,
        begun_s=left,
        total_ms=transfer.total_ms,
        downtime_ms=transfer.downtime_ms or 0.0,
        moved_bytes=transfer.transferred,
    )
    if transfer.status == "completed":
        play.display.moved(move)
        play.display.step(f"watching it on {destination}")
        fate = await watch_fate(there, listener, play.stage.pace)
    else:
        fate = Fate(
            outcome=Outcome.NOT_MOVED,
            headline=f"QEMU did not move the guest: {transfer.error or transfer.status}",
        )
    await listener.close()
    ended = play.clock()
    verdict = listener.verdict()
    console = fate.death.lines if fate.death else readable(there.console.read_bytes(), last=16)
    for running in (here, there):
        await asyncio.to_thread(running.kill)
    return ActResult(
        name=ActName.WITHOUT,
        ok=fate.outcome in FAILED_IN_GUEST,
        outcome=fate.outcome,
        headline=fate.headline,
        explanation=_explained(play, fate, verdict),
        moves=(move,) if transfer.status == "completed" else (),
        stays=(
            Stay(host=source, begun_s=begun, ended_s=arrived),
            Stay(host=destination, begun_s=arrived, ended_s=ended),
        ),
        console=console,
        commands=tuple(
            Command(host=host, arguments=running.command)
            for host, running in ((source, here), (destination, there))
        ),
        faults=tuple(f"{fault.kind}: {fault.detail}" for fault in verdict.faults),
        records=verdict.records,
        instructions=verdict.instructions,
        begun_s=begun,
        ended_s=ended,
    )


async def move_by_hand(
    here: process.QemuProcess,
    there: process.QemuProcess,
    way: tuple[str, str],
    *,
    pace: Pace = QUICK,
) -> Transfer:
    """What a user types: migrate-incoming there, migrate here, wait, cont there.

    A move that QEMU gives up has its reason in ``error``.

    :param way: where the destination listens and what the source dials, see ``Hosts.way``.
    """
    listen, dial = way
    async with Monitor.session(here.qmp) as mine, Monitor.session(there.qmp) as theirs:
        await theirs.execute("migrate-incoming", {"uri": listen})
        await mine.execute("migrate", {"uri": dial or listen})
        deadline = time.monotonic() + pace.move_s
        transfer = await measured(mine)
        while transfer.status not in {"completed", "failed"}:
            if time.monotonic() > deadline:
                raise HypervisorError(f"plain QMP did not move the guest in {pace.move_s:g} s")
            await asyncio.sleep(0.02)
            transfer = await measured(mine)
        if transfer.status == "completed":
            try:
                await _loaded(theirs, deadline)
                await theirs.execute("cont")
            except MonitorGoneError:
                words = process.last_words(there.messages)
                return msgspec.structs.replace(transfer, status="failed", error=words)
    return transfer


async def _loaded(monitor: Monitor, deadline: float) -> None:
    """Wait until the destination has loaded the guest."""
    while await monitor.status() == "inmigrate" and time.monotonic() < deadline:  # noqa: ASYNC110
        await asyncio.sleep(0.005)


async def watch_fate(there: process.QemuProcess, listener: Listener, pace: Pace = QUICK) -> Fate:
    """Watch the guest until it dies, hangs, or has lived for long enough."""
    deadline = time.monotonic() + pace.watch_s
    heard, heard_at = 0, time.monotonic()
    async with Monitor.session(there.observe) as monitor:
        while time.monotonic() < deadline:
            await asyncio.sleep(0.1)
            reports = there.payload.read_bytes()
            death = find_death(there.console.read_bytes())
            if death is not None or b" death " in reports:
                return await _dead(there, pace)
            state = await monitor.status()
            if state != "running":
                return await _dead(there, pace, otherwise=f"the guest is {state}")
            if reports.count(b" tick ") >= LIVES_TICKS:
                break
            if len(reports) != heard:
                heard, heard_at = len(reports), time.monotonic()
            elif time.monotonic() - heard_at > pace.hung_s:
                return Fate(outcome=Outcome.HUNG, headline=await _hung(monitor))
    wrong = [fault for fault in listener.verdict().faults if fault.kind not in {"cpuid", "death"}]
    if wrong:
        headline = f"the payload computes wrong: {wrong[0].kind}: {wrong[0].detail}"
        return Fate(outcome=Outcome.WRONG, headline=headline)
    return Fate(outcome=Outcome.LIVED, headline="the guest lives and computes as before")


async def _dead(there: process.QemuProcess, pace: Pace, *, otherwise: str = "") -> Fate:
    """The death, when all of it has been printed."""
    size = -1
    while size != (size := there.console.stat().st_size):  # noqa: ASYNC110  (a file tells nobody)
        await asyncio.sleep(pace.settle_s)
    death = find_death(there.console.read_bytes())
    if death is not None:
        killed = death.kind is Kind.KILLED_BY_SIGNAL
        said = f"{death.program or 'program'} killed by {death.trap}" if killed else death.headline
        return Fate(outcome=_KINDS[death.kind], headline=said, death=death)
    lines = there.payload.read_bytes().split(b"\n")
    words = next((line for line in lines if b" death " in line), b"").decode(errors="replace")
    return Fate(
        outcome=Outcome.KILLED if words else Outcome.HUNG,
        headline=f"the payload died: {words[:200]}" if words else otherwise,
    )


async def _hung(monitor: Monitor) -> str:
    text = await monitor.human("info registers")
    match = re.search(r"RIP=([0-9a-f]{16})", text)
    where = f", its vCPU at {match[1]}" if match else ""
    return f"the guest hangs without a word{where}"


def _explained(play: Play, fate: Fate, verdict: Verdict) -> str:
    """Why it ended so, in a paragraph."""
    source, destination = play.offers
    if fate.death is not None:
        return explain(fate.death, source, destination)
    lost = sorted(source.features - destination.features)
    if fate.outcome is Outcome.HUNG and lost:
        return (
            f"{destination.name} lacks {', '.join(lost)}. Where the kernel itself uses one of them"
            " while it reports that fault, it faults again, and again, and says nothing."
        )
    if fate.outcome is not Outcome.LIVED:
        return ""
    if not lost and not verdict.faults:
        return (
            f"{source.name} has nothing that {destination.name} lacks, and the payload noticed"
            " nothing: under emulation these two hosts do not differ in this direction."
        )
    noticed = "its CPUID changed under it" if verdict.faults else "it noticed nothing"
    without_use = f" It uses nothing of what {destination.name} lacks ({', '.join(lost)})."
    return (
        f"Under emulation this pair shows no failure: the guest runs on, {noticed}."
        f"{without_use if lost else ''} Choose another pair to see one."
    )
