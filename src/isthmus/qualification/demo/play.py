"""What the acts share: the stage, the two hosts, the clock, and whom they tell."""

import asyncio
import time
from collections.abc import Callable
from typing import Protocol

from isthmus.baseline.level import Baseline, level
from isthmus.cpu.model import CpuModel
from isthmus.migration.options import Progress
from isthmus.qualification.demo.result import ActName, ActResult, MoveResult
from isthmus.qualification.demo.stage import Stage


class Display(Protocol):
    """Whom the demo tells what it does."""

    def step(self, text: str) -> None:
        """Something that takes time begins."""

    def act(self, name: ActName) -> None:
        """An act begins."""

    def progress(self, progress: Progress) -> None:
        """A move has come further."""

    def moved(self, move: MoveResult) -> None:
        """A move has been done."""

    def ended(self, act: ActResult) -> None:
        """An act has ended."""


class Play:
    """One performance: ``source`` and ``destination`` are the names of the two hosts."""

    def __init__(
        self,
        stage: Stage,
        source: str,
        destination: str,
        display: Display,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.stage = stage
        self.source = source
        self.destination = destination
        self.display = display
        self.clock = clock

    @property
    def offers(self) -> tuple[CpuModel, CpuModel]:
        """What both hosts truly offer."""
        return self.stage.offered(self.source), self.stage.offered(self.destination)

    @property
    def baseline(self) -> Baseline:
        """The level of both hosts."""
        return level(self.offers)


def pass_on_interrupt() -> None:
    """Raise the cancellation again that a rolled-back move has turned into an error of its own."""
    task = asyncio.current_task()
    if task is not None and task.cancelling():
        raise asyncio.CancelledError
