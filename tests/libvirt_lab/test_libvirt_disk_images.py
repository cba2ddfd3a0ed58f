"""Guests that write to a qcow2 image all the time, which both hosts share or which is copied.

What the source's QEMU still has in mind of such an image (its tables, counts of clusters) must be
in the file before the destination's writes to it: else the image is damaged, days later perhaps.
"""

import hashlib
from pathlib import Path

import pytest
import qcow2
from libvirt_world import World
from shared_folder import INSIDE, share

from isthmus.migration.phases import Phase
from isthmus.qualification.lab.libvirt_guest import Drive

pytestmark = [pytest.mark.lab, pytest.mark.slow]

SIZE = 96 << 20
HEAD = 64 << 10
"""The guest writes to the disk's beginning only (docs/payload.md, ``disk``)."""
CONTENT = hashlib.shake_256(b"a disk").digest(32 << 20)


def intact(image: Path, content: bytes = CONTENT) -> bytes:
    """The part that the guest writes to; the image is sound, and the rest of it as it was."""
    disk = qcow2.read(image)
    assert len(disk) == SIZE
    assert disk[HEAD:] == content[HEAD:].ljust(SIZE - HEAD, b"\0")
    return disk[:HEAD]


async def test_a_guest_on_shared_storage_goes_there_and_back(world: World) -> None:
    folder = world.folder / "shared"
    share(world.hosts.values(), folder)
    image = folder / "disk.qcow2"
    qcow2.make(image, SIZE, CONTENT)
    await world.born(disk=Drive(INSIDE / image.name, "qcow2"))
    for source, destination in (("amd", "intel"), ("intel", "amd")):
        record = await world.move(source, destination)
        assert record.phase is Phase.COMMITTED
        await world.one_runs(destination)
    await world.gone()
    assert intact(image) != CONTENT[:HEAD]


@pytest.mark.parametrize("content", [CONTENT, b""], ids=["full", "new"])
async def test_an_image_is_copied_with_its_guest(world: World, content: bytes) -> None:
    """Each host has its own file at that path; at the destination it is empty before.

    A new one has nothing to copy but the beginning, so its guest has to be stopped at once.
    """
    inside = Path("/var/lib/libvirt/disk.qcow2")
    here, there = (world.hosts[name].folder / "lib" / inside.name for name in ("amd", "intel"))
    qcow2.make(here, SIZE, content)
    qcow2.make(there, SIZE)
    try:
        await world.born(disk=Drive(inside, "qcow2"))
        record = await world.move("amd", "intel", copy_storage=True)
        assert record.phase is Phase.COMMITTED
        await world.one_runs("intel")
        left = intact(here, content)
        await world.ticks(2)
        assert intact(here, content) == left, "nobody writes to the old image any more"
        await world.gone()
        assert intact(there, content) not in {left, content[:HEAD]}
    finally:
        here.unlink()
        there.unlink()
