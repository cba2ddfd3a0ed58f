"""What the engine does with two copies whose hosts say this and that: without any QEMU."""

import asyncio
from pathlib import Path

import pytest

from isthmus.errors import LostError, UndecidedError
from isthmus.hypervisor.qemu.through_file import Deposit
from isthmus.migration.decision import Copy
from isthmus.migration.engine import resume
from isthmus.migration.options import Options
from isthmus.migration.phases import Phase
from isthmus.migration.record import Journal, MigrationRecord, Plan, Side, read_record

WAY = (
    Phase.PREPARING, Phase.PREPARED, Phase.MOVING, Phase.SWITCHED, Phase.STARTING,
    Phase.VERIFYING, Phase.COMMITTING,
)  # fmt: skip


class Monitor:
    """The monitor of a guest that lives."""


class End:
    """One end that says what it is told to, and writes down what is done to it."""

    def __init__(self, *states: Copy, done: list[str], name: str) -> None:
        self.states = list(states)
        self.done = done
        self.name = name
        self.side = Side()
        self.translator = None
        self.monitor = Monitor()

    async def state(self) -> Copy:
        return self.states.pop(0) if len(self.states) > 1 else self.states[0]

    async def loaded(self) -> Copy:
        return self.states[-1]

    async def last_words(self, *, patience_s: float) -> str:
        return ""

    async def touched_disk(self) -> bool:
        return True

    def file(self, name: str) -> None:
        return None

    async def start(self) -> None:
        self.done.append(f"start {self.name}")
        self.states = [Copy.RUNNING]

    async def resume(self) -> None:
        self.done.append(f"resume {self.name}")
        self.states = [Copy.RUNNING]

    async def destroy(self) -> None:
        self.done.append(f"destroy {self.name}")
        self.states = [Copy.DEAD]

    async def close(self) -> None:
        pass


class Cut:
    """A migration that was cut short in a phase, and both its ends."""

    def __init__(self, folder: Path, *phases: Phase, deposit: Deposit | None = None) -> None:
        plan = Plan(
            id="m", guest="web", source=Side(), destination=Side(), channel="", deposit=deposit
        )
        journal = Journal.create(folder, plan)
        for phase in phases:
            journal.enter(phase)
        journal.close()
        self.path = journal.path
        self.done: list[str] = []

    def resume(
        self, source: tuple[Copy, ...], destination: tuple[Copy, ...], use: str = ""
    ) -> MigrationRecord:
        ends = (
            End(*source, done=self.done, name="source"),
            End(*destination, done=self.done, name="destination"),
        )
        options = Options(verify_s=0)
        return asyncio.run(resume(self.path, options=options, use=use, ends=lambda _: ends))  # type: ignore[arg-type,return-value]

    @property
    def record(self) -> MigrationRecord:
        return read_record(self.path)


@pytest.fixture
def lives(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever is watched lives."""

    class Evidence:
        alive = True

    async def watch(*_: object, **__: object) -> Evidence:
        return Evidence()

    monkeypatch.setattr("isthmus.migration.engine.watch", watch)


@pytest.mark.parametrize(
    ("use", "source", "destination"),
    [
        ("source", Copy.DEAD, Copy.HELD),
        ("source", Copy.UNREACHABLE, Copy.RUNNING),
        ("destination", Copy.HELD, Copy.PARTIAL),
        ("destination", Copy.HELD, Copy.DEAD),
        ("destination", Copy.HELD, Copy.UNREACHABLE),
    ],
)
@pytest.mark.parametrize("reached", [Phase.MOVING, Phase.VERIFYING, Phase.COMMITTING])
def test_the_operator_cannot_end_the_last_copy_by_choosing_one_that_is_not_there(
    tmp_path: Path, reached: Phase, use: str, source: Copy, destination: Copy
) -> None:
    cut = Cut(tmp_path, *WAY[: WAY.index(reached) + 1])
    with pytest.raises(UndecidedError, match=f"the {use} has no copy that could go on"):
        cut.resume((source,), (destination,), use)
    assert cut.done == []
    assert cut.record.phase is reached


@pytest.mark.parametrize("destination", [Copy.HELD, Copy.RUNNING])
@pytest.mark.parametrize("reached", WAY[2:])
def test_a_destination_takes_over_from_a_source_that_ended_while_it_was_rolled_back_to(
    tmp_path: Path, reached: Phase, destination: Copy, lives: None
) -> None:
    cut = Cut(tmp_path, *WAY[: WAY.index(reached) + 1], Phase.ROLLING_BACK)
    use = "destination" if destination is Copy.RUNNING else ""
    assert cut.resume((Copy.DEAD,), (destination,), use).phase is Phase.COMMITTED
    assert "destroy destination" not in cut.done


def test_a_destination_that_falls_silent_before_the_commit_ends_no_source(
    tmp_path: Path, lives: None
) -> None:
    """Its host may be gone: then the source is all that is left."""
    cut = Cut(tmp_path, *WAY)
    with pytest.raises(UndecidedError, match="does not answer"):
        cut.resume((Copy.HELD,), (Copy.HELD, Copy.UNREACHABLE))
    assert cut.done == []
    assert not cut.record.final


def test_the_file_that_a_lost_guest_went_through_is_named_and_kept(tmp_path: Path) -> None:
    path = tmp_path / "web.state"
    path.write_bytes(b"all of it")
    deposit = Deposit(path=path, listen="")
    cut = Cut(tmp_path, *WAY[:3], deposit=deposit)
    with pytest.raises(LostError, match=r"web\.state"):
        cut.resume((Copy.DEAD,), (Copy.DEAD,))
    assert path.exists()
    assert "web.state" in cut.record.error
