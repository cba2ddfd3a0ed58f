"""The demo from beginning to end: three acts on one stage, told to a display as they happen."""

import datetime as dt
import time
from collections.abc import Collection
from pathlib import Path

from isthmus import __version__
from isthmus.baseline.level import Baseline, level
from isthmus.cpu.model import CpuModel
from isthmus.hypervisor.qemu.binary import DEFAULT_NAME, find_qemu
from isthmus.hypervisor.qemu.engine import Trial
from isthmus.hypervisor.qemu.models import QemuCpus
from isthmus.hypervisor.qemu.render import cpu_argument
from isthmus.qualification.demo import acts
from isthmus.qualification.demo.plain import without
from isthmus.qualification.demo.play import Display, Play
from isthmus.qualification.demo.result import ActName, ActResult, DemoResult, HostFacts
from isthmus.qualification.demo.stage import Stage, choose_engine
from isthmus.values import Value


class Script(Value, frozen=True):
    """What to perform: the pair, how many moves in act two, which acts."""

    source: str
    destination: str
    moves: int = acts.MOVES
    only: Collection[ActName] = tuple(ActName)
    qemu: str = DEFAULT_NAME
    engine: str = "auto"
    kernel: str | None = None


class Plan(Value, frozen=True):
    """What a performance rests on: the engine, the two hosts, their level."""

    engine: str
    engine_reason: str
    qemu: str
    source: HostFacts
    destination: HostFacts
    level: str
    level_reasons: tuple[str, ...]


async def planned(script: Script) -> Plan:
    """What would be performed; starts no guest and fetches nothing.

    :raises InputError: QEMU has no such CPU model.
    :raises EnvironmentLackError: this machine lacks something.
    """
    qemu = find_qemu(script.qemu)
    trial, cpus = await choose_engine(qemu, (script.source, script.destination), script.engine)
    return _plan(script, trial, cpus)


async def perform(script: Script, display: Display, *, cache: Path) -> DemoResult:
    """Perform the acts of ``script``; leaves no process and no file behind, whatever happens.

    :raises InputError: QEMU has no such CPU model.
    :raises EnvironmentLackError: this machine lacks something.
    """
    began = dt.datetime.now(dt.UTC).isoformat(timespec="seconds")
    begun = time.monotonic()
    async with Stage.open(
        (script.source, script.destination),
        qemu=script.qemu,
        engine=script.engine,
        kernel=script.kernel,
        cache=cache,
        progress=display.step,
    ) as stage:
        ready = time.monotonic()
        play = Play(
            stage,
            script.source,
            script.destination,
            display,
            clock=lambda: time.monotonic() - ready,
        )
        done: list[ActResult] = []
        for name in ActName:
            if name in script.only:
                display.act(name)
                done.append(await _act(play, name, script))
                display.ended(done[-1])
        plan = _plan(script, stage.engine, stage.hosts.cpus)
        return DemoResult(
            ok=all(act.ok for act in done),
            isthmus=__version__,
            began=began,
            source=plan.source,
            destination=plan.destination,
            engine=plan.engine,
            engine_reason=plan.engine_reason,
            qemu=plan.qemu,
            kernel=stage.image.release,
            level=plan.level,
            level_reasons=plan.level_reasons,
            acts=tuple(done),
            setup_s=ready - begun,
            seconds=time.monotonic() - ready,
        )


async def _act(play: Play, name: ActName, script: Script) -> ActResult:
    if name is ActName.WITHOUT:
        return await without(play)
    if name is ActName.LEVELLED:
        return await acts.levelled(play, script.moves)
    return await acts.translated(play)


def _plan(script: Script, trial: Trial, cpus: QemuCpus) -> Plan:
    source, destination = cpus.offered(script.source), cpus.offered(script.destination)
    baseline: Baseline = level([source, destination])
    return Plan(
        engine=trial.accelerator.value,
        engine_reason=trial.reason,
        qemu=cpus.version,
        source=_facts(source, destination),
        destination=_facts(destination, source),
        level=cpu_argument(baseline.model, cpus.named),
        level_reasons=baseline.reasons,
    )


def _facts(host: CpuModel, other: CpuModel) -> HostFacts:
    return HostFacts(
        name=host.name,
        vendor=host.vendor,
        brand=host.brand,
        only=tuple(sorted(host.features - other.features)),
    )
