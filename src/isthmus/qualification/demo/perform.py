"""The demo from beginning to end: three acts on one stage, told to a display as they happen."""

import contextlib
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
from isthmus.qualification.demo.kvm_stage import host_names, open_kvm
from isthmus.qualification.demo.plain import without
from isthmus.qualification.demo.play import Display, Play
from isthmus.qualification.demo.result import ActName, ActResult, DemoResult, HostFacts
from isthmus.qualification.demo.stage import Stage, choose_engine
from isthmus.qualification.kvm.host import host_model
from isthmus.values import Value


class Script(Value, frozen=True):
    """What to perform: the pair, how many moves in act two, which acts.

    ``kvm``: the pair are lab hosts with real KVM, else CPU models that QEMU plays.
    """

    source: str
    destination: str
    moves: int = acts.MOVES
    only: Collection[ActName] = tuple(ActName)
    qemu: str = DEFAULT_NAME
    engine: str = "auto"
    kernel: str | None = None
    kvm: bool = False


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
    if script.kvm:
        return _planned_on_lab_hosts(script, qemu.version_text)
    pair = (script.source, script.destination)
    trial, cpus = await choose_engine(qemu, pair, script.engine)
    return _plan(trial, cpus, (cpus.offered(pair[0]), cpus.offered(pair[1])))


async def perform(script: Script, display: Display, *, cache: Path) -> DemoResult:
    """Perform the acts of ``script``; leaves no process and no file behind, whatever happens.

    :raises InputError: QEMU has no such CPU model.
    :raises EnvironmentLackError: this machine lacks something.
    """
    began = dt.datetime.now(dt.UTC).isoformat(timespec="seconds")
    begun = time.monotonic()
    pair = (script.source, script.destination)
    async with _stage(script, display, cache) as stage:
        ready = time.monotonic()
        source, destination = host_names(pair) if script.kvm else pair
        play = Play(stage, source, destination, display, clock=lambda: time.monotonic() - ready)
        done: list[ActResult] = []
        for name in ActName:
            if name in script.only:
                display.act(name)
                done.append(await _act(play, name, script))
                display.ended(done[-1])
        plan = _plan(stage.engine, stage.hosts.cpus, play.offers)
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


def _stage(
    script: Script, display: Display, cache: Path
) -> contextlib.AbstractAsyncContextManager[Stage]:
    pair = (script.source, script.destination)
    if script.kvm:
        return open_kvm(
            pair, qemu=script.qemu, kernel=script.kernel, cache=cache, progress=display.step
        )
    return Stage.open(
        pair,
        qemu=script.qemu,
        engine=script.engine,
        kernel=script.kernel,
        cache=cache,
        progress=display.step,
    )


async def _act(play: Play, name: ActName, script: Script) -> ActResult:
    if name is ActName.WITHOUT:
        return await without(play)
    if name is ActName.LEVELLED:
        return await acts.levelled(play, script.moves)
    return await acts.translated(play)


def _plan(trial: Trial, cpus: QemuCpus, offers: tuple[CpuModel, CpuModel]) -> Plan:
    source, destination = offers
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


def _planned_on_lab_hosts(script: Script, qemu: str) -> Plan:
    """What is known before the hosts are up: what they offer is then asked of their KVM."""
    pair = (script.source, script.destination)
    source, destination = (
        HostFacts(name=name, vendor=model.maker, brand=f"{model.emulator}: {model.cpu}", only=())
        for name, model in zip(host_names(pair), map(host_model, pair), strict=True)
    )
    return Plan(
        engine="kvm",
        engine_reason="lab hosts, each an emulated machine with the KVM of its maker",
        qemu=qemu,
        source=source,
        destination=destination,
        level="asked of both hosts when they are up",
        level_reasons=(),
    )


def _facts(host: CpuModel, other: CpuModel) -> HostFacts:
    return HostFacts(
        name=host.name,
        vendor=host.vendor,
        brand=host.brand,
        only=tuple(sorted(host.features - other.features)),
    )
