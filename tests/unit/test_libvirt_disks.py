"""The end of the copying of disks is seen coming, however late one looks."""

import asyncio
from typing import Any

import pytest

from isthmus.hypervisor.libvirt import disks, move
from isthmus.hypervisor.libvirt.disks import Copying
from isthmus.hypervisor.libvirt.move import Wishes, _TooQuickError

GIB = 1 << 30


class Qemu:
    """Copies one disk at the speed that it was told last, between two looks."""

    def __init__(self, size: int, looks_every_s: float) -> None:
        self.size = size
        self.done = 0
        self.every = looks_every_s
        self.speed = 1 << 20
        self.held = False
        self.transfer = "none"
        self.looks = 0

    async def command(
        self, _domain: Any, name: str, arguments: dict[str, Any] | None = None
    ) -> Any:
        if name == "query-block-jobs":
            self.looks += 1
            self.done = min(self.size, self.done + int(self.speed * self.every))
            ready = self.done == self.size
            return [{"device": "d", "len": self.size, "offset": self.done, "ready": ready}]
        if name == "query-migrate":
            return {"status": self.transfer}
        assert arguments is not None and arguments["device"] == "d"
        if name == "block-job-set-speed":
            self.speed = arguments["speed"]
        self.held = {"block-job-pause": True, "block-job-resume": False}.get(name, self.held)
        return None


async def followed(monkeypatch: pytest.MonkeyPatch, qemu: Qemu, **more: Any) -> Copying:
    monkeypatch.setattr(disks, "command", qemu.command)
    monkeypatch.setattr(disks, "LOOK_S", 0)
    copying = Copying(None, **more)
    await copying.near_its_end(asyncio.get_running_loop().create_future())
    return copying


@pytest.mark.parametrize("late_s", [0.03, 0.4])
@pytest.mark.parametrize("bandwidth", [None, 8 << 20])
async def test_the_end_is_not_passed_unseen(
    monkeypatch: pytest.MonkeyPatch, late_s: float, bandwidth: int | None
) -> None:
    qemu = Qemu(10 * (bandwidth or GIB), late_s)
    copying = await followed(monkeypatch, qemu, bandwidth=bandwidth)
    rest = 0.06 * (bandwidth or GIB)
    assert 0 < qemu.size - qemu.done <= rest
    assert qemu.looks * late_s < 10 + 3, "and it takes little longer than at full speed"
    async with copying.held():
        assert qemu.held
    assert not qemu.held
    await copying.hurry()
    assert qemu.speed == (bandwidth or GIB)


async def test_where_no_disk_is_to_be_copied_none_is_waited_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Else the memory goes at the slow pace of its beginning to its end."""
    qemu = Qemu(0, 0.1)

    async def command(domain: Any, name: str, arguments: dict[str, Any] | None = None) -> Any:
        if name == "query-block-jobs":
            qemu.transfer = "active" if (looks := qemu.looks + 1) > 3 else "completed"
            qemu.looks = looks
            return []
        return await qemu.command(domain, name, arguments)

    monkeypatch.setattr(disks, "command", command)
    async with asyncio.timeout(180):
        await Copying(None, None).near_its_end(asyncio.get_running_loop().create_future())
    assert qemu.looks == 4


async def test_what_is_cancelled_while_it_is_held_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    """A job that nobody resumes keeps libvirt, and with it the guest, waiting."""
    qemu = Qemu(2 * GIB, 0.4)
    copying = await followed(monkeypatch, qemu, bandwidth=None)

    async def slow(domain: Any, name: str, arguments: dict[str, Any] | None = None) -> Any:
        await qemu.command(domain, name, arguments)
        if name == "block-job-pause":
            raise asyncio.CancelledError

    monkeypatch.setattr(disks, "command", slow)
    with pytest.raises(asyncio.CancelledError):
        async with copying.held():
            pytest.fail("it was cancelled before")
    assert not qemu.held


async def test_an_empty_disk_has_come_to_its_end(monkeypatch: pytest.MonkeyPatch) -> None:
    copying = await followed(monkeypatch, Qemu(0, 0.1), bandwidth=None)
    assert copying.before == 0


async def test_what_is_left_is_told_from_the_look_before(monkeypatch: pytest.MonkeyPatch) -> None:
    """As zeros are skipped at any speed, the last look may see the end only."""
    qemu = Qemu(GIB, 0.0)
    seen = [GIB // 2, GIB]

    async def command(domain: Any, name: str, arguments: dict[str, Any] | None = None) -> Any:
        if name == "query-block-jobs":
            qemu.done = seen.pop(0)
        return await qemu.command(domain, name, arguments)

    monkeypatch.setattr(disks, "command", command)
    copying = Copying(None, None)
    await copying.near_its_end(asyncio.get_running_loop().create_future())
    assert copying.before == GIB // 2


@pytest.mark.parametrize(("left", "rest"), [(5 * GIB, 10 * GIB), (0, None)])
async def test_what_was_too_quick_to_follow_is_waited_for(
    monkeypatch: pytest.MonkeyPatch, left: int, rest: int | None
) -> None:
    tried: list[Copying | None] = []

    async def migrate(*arguments: Any) -> bool:
        tried.append(arguments[-1])
        if len(tried) == 1:
            raise _TooQuickError(left)
        return False

    monkeypatch.setattr(move, "_migrate", migrate)
    await move.migrate(None, None, Wishes(copy_storage=True), lambda _: None)  # type: ignore[arg-type]
    first, second = tried
    assert first is not None
    assert (second and second._rest) == rest


async def test_a_guest_goes_on_although_its_stop_was_cancelled(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The order may have been carried out by then."""
    told: list[str] = []

    async def command(_: Any, name: str, arguments: Any = None) -> Any:
        told.append(name)
        if name == "stop":
            raise asyncio.CancelledError

    async def call(*_: Any) -> str:
        return "uuid"

    class Domain:
        UUIDString = None

    class There:
        async def find(self, _: str) -> object:
            return object()

    monkeypatch.setattr(move, "command", command)
    monkeypatch.setattr(move, "call", call)
    moving = asyncio.get_running_loop().create_future()
    with pytest.raises(asyncio.CancelledError):
        await move._begin_quietly(Domain(), There(), Wishes(quiet=True), moving, None)  # type: ignore[arg-type]
    assert told == ["stop", "cont"]
