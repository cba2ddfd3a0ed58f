"""The module in the guest's kernel: unlevelled guests cross with nothing armed outside."""

import asyncio

import pytest

from isthmus.hypervisor.qemu.binary import find_qemu
from isthmus.hypervisor.qemu.engine import Accelerator
from isthmus.hypervisor.qemu.guests import GuestStore
from isthmus.hypervisor.qemu.models import QemuCpus, read_cpus
from isthmus.migration.hosts import Hosts
from isthmus.places import cache_folder
from isthmus.qualification.exercise.crossing import Pair, cross, image
from isthmus.translate.table import Placement

pytestmark = [pytest.mark.lab, pytest.mark.timeout(900)]

# Haswell's loss of BMI1 and of x86-64-v3 is refused for good reasons, which the exercise avoids.
PAIRS = (
    Pair("phenom", "Nehalem", Placement.INSIDE),
    Pair("Haswell", "IvyBridge", Placement.INSIDE, ("library-level", "silent-tzcnt")),
)


@pytest.fixture(scope="module")
def cpus() -> QemuCpus:
    return asyncio.run(read_cpus(find_qemu(), Accelerator.TCG))


@pytest.fixture(scope="module")
def made():
    return image(cache_folder(), inside=True)


@pytest.mark.parametrize("pair", PAIRS, ids=lambda pair: f"{pair.home}-{pair.abroad}")
async def test_crosses_by_its_own_module(cpus, made, pair: Pair, tmp_path_factory) -> None:
    folder = tmp_path_factory.mktemp("i")
    store = GuestStore(folder / "state", folder / "run")
    crossing = await cross(Hosts(find_qemu(), Accelerator.TCG, cpus, store), made, pair)
    assert crossing.missing > 50
    assert crossing.ok, crossing
