"""The demo from beginning to end: three acts on one stage, told to a display as they happen."""

import time
from collections.abc import Collection
from pathlib import Path
from typing import Protocol

from isthmus.baseline.level import level
from isthmus.hypervisor.qemu.render import cpu_argument
from isthmus.qualification.demo import acts
from isthmus.qualification.demo.result import ActResult, DemoResult, MoveResult
from isthmus.qualification.demo.stage import Stage, differences
from isthmus.values import Value

ACTS = ("without", "levelled", "translated")


class Display(Protocol):
    """Whom the demo tells what it does."""

    def step(self, text: str) -> None:
        """Something that takes time begins."""

    def act(self, title: str) -> None:
        """An act begins."""

    def moved(self, move: MoveResult) -> None:
        """A move has been done."""

    def ended(self, act: ActResult) -> None:
        """An act has ended."""


class Script(Value, frozen=True):
    """What to perform: the pair, how many moves in act two, which acts."""

    source: str
    destination: str
    moves: int = acts.MOVES
    only: Collection[str] = ACTS
    qemu: str = "qemu-system-x86_64"
    engine: str = "auto"
    kernel: str | None = None


async def perform(script: Script, display: Display, *, cache: Path) -> DemoResult:
    """Perform the acts of ``script``; leaves no process and no file behind, whatever happens.

    :raises InputError: QEMU has no such CPU model.
    :raises EnvironmentLackError: this machine lacks something.
    """
    begun = time.monotonic()
    source, destination = script.source, script.destination
    async with Stage.open(
        (source, destination),
        qemu=script.qemu,
        engine=script.engine,
        kernel=script.kernel,
        cache=cache,
        progress=display.step,
    ) as stage:
        cpus = stage.hosts.cpus
        offers = cpus.offered(source), cpus.offered(destination)
        baseline = level(offers)
        done: list[ActResult] = []
        for name in ACTS:
            if name not in script.only:
                continue
            display.act(name)
            if name == "without":
                result = await acts.without(stage, source, destination, display.step)
            elif name == "levelled":
                result = await acts.levelled(
                    stage, source, destination, baseline, script.moves, display.step, display.moved
                )
            else:
                result = await acts.translated(
                    stage, source, destination, display.step, display.moved
                )
            display.ended(result)
            done.append(result)
        return DemoResult(
            source=source,
            destination=destination,
            engine=stage.engine.accelerator.value,
            engine_reason=stage.engine.reason,
            qemu=stage.hosts.qemu.version_text,
            kernel=stage.image.release,
            ok=all(act.ok for act in done),
            only_source=differences(*offers),
            only_destination=differences(offers[1], offers[0]),
            level=cpu_argument(baseline.model, cpus.named),
            level_reasons=baseline.reasons,
            acts=tuple(done),
            seconds=time.monotonic() - begun,
        )
