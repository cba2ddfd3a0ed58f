"""Unlevelled guests cross to CPUs that lack their instructions, and return, equal to the bit.

The exercise in the guest executes every instruction that its CPU has (docs/crossings.md).  With
``ISTHMUS_CROSSINGS=FILE`` each crossing is appended to that file as a line of JSON, from which the
page is made.
"""

import asyncio

import pytest

from isthmus.divergence.evidence import GuestEvidence
from isthmus.hypervisor.qemu.binary import find_qemu
from isthmus.hypervisor.qemu.engine import Accelerator
from isthmus.hypervisor.qemu.guests import GuestStore
from isthmus.hypervisor.qemu.models import QemuCpus, read_cpus
from isthmus.migration.hosts import Hosts
from isthmus.migration.preflight import preflight
from isthmus.places import cache_folder
from isthmus.qualification.exercise.crossing import Pair, cross, image, missing
from isthmus.qualification.exercise.record import Refused, Row, append
from isthmus.translate.table import Placement, translatable

pytestmark = [pytest.mark.lab, pytest.mark.timeout(900)]

FAST = (Pair("phenom", "Nehalem"), Pair("Westmere", "Opteron_G1"))
MATRIX = (
    # AMD to Intel
    Pair("phenom", "Penryn"),
    Pair("phenom", "Skylake-Client"),
    Pair("Opteron_G3", "Nehalem"),
    Pair("Opteron_G3", "Conroe"),
    Pair("Opteron_G3", "Penryn"),
    Pair("EPYC", "Cascadelake-Server"),
    Pair("EPYC-Milan", "Icelake-Server"),
    # Intel to AMD
    Pair("Conroe", "phenom"),
    Pair("Penryn", "Opteron_G2"),
    Pair("Nehalem", "phenom"),
    Pair("Nehalem", "Opteron_G3"),
    Pair("Nehalem", "Opteron_G1"),
    Pair("Westmere", "phenom"),
    Pair("Westmere", "Opteron_G3"),
    # the same maker, new to old and old to new
    Pair("phenom", "Opteron_G1"),
    Pair("phenom", "EPYC"),
    Pair("Opteron_G3", "Opteron_G2"),
    Pair("Penryn", "Conroe"),
    Pair("Nehalem", "Conroe"),
    Pair("Nehalem", "Penryn"),
    Pair("Westmere", "Nehalem"),
    Pair("Westmere", "Conroe"),
)


@pytest.fixture(scope="module")
def cpus() -> QemuCpus:
    return asyncio.run(read_cpus(find_qemu(), Accelerator.TCG))


@pytest.fixture(scope="module")
def made():
    return image(cache_folder())


@pytest.fixture
def hosts(cpus, tmp_path_factory) -> Hosts:
    folder = tmp_path_factory.mktemp("x")
    store = GuestStore(folder / "state", folder / "run")
    return Hosts(find_qemu(), Accelerator.TCG, cpus, store)


def named(pair: Pair) -> str:
    return f"{pair.home}-{pair.abroad}-{pair.placement.value}"


async def crosses(hosts, made, pair: Pair) -> None:
    crossing = await cross(hosts, made, pair)
    append(Row(crossing=crossing))
    assert crossing.faults == ()
    assert crossing.missing > 0
    assert crossing.untouched == (), "every missing instruction has to be met abroad"
    assert crossing.ok, crossing


@pytest.mark.parametrize("pair", FAST, ids=named)
async def test_crosses_and_returns(hosts, made, pair: Pair) -> None:
    await crosses(hosts, made, pair)


@pytest.mark.slow
@pytest.mark.parametrize("pair", MATRIX, ids=named)
async def test_every_pair_crosses_and_returns(hosts, made, pair: Pair) -> None:
    await crosses(hosts, made, pair)


def test_the_matrix_goes_every_way(cpus) -> None:
    """Twelve and more pairs, both makers, both directions, and within one, each with a loss."""
    pairs = (*FAST, *MATRIX)
    assert len(set(pairs)) == len(pairs) >= 12
    ways = {(cpus.offered(p.home).vendor, cpus.offered(p.abroad).vendor) for p in pairs}
    assert len(ways) == 4
    for pair in pairs:
        assert missing(cpus.offered(pair.home), cpus.offered(pair.abroad)), pair
    assert all(isinstance(pair.placement, Placement) for pair in pairs)


REFUSED = (  # a pair, and one of the subjects that block it wherever the instructions are done
    ("EPYC", "phenom", "avx"),
    ("EPYC", "Opteron_G5", "xsaveopt"),
    ("EPYC-Milan", "EPYC-Rome", "pku"),
    ("EPYC-Rome", "Haswell", "smap"),
    ("Haswell", "Westmere", "xsave"),
    ("Haswell", "IvyBridge", "bmi1"),
    ("Broadwell", "Haswell", "smap"),
    ("EPYC", "Skylake-Client", "clflushopt"),
    ("Icelake-Server", "Skylake-Server", "umip"),
    ("Denverton", "Westmere", "smep"),
    ("Snowridge", "Denverton", "clwb"),
    ("Opteron_G4", "Opteron_G3", "avx"),
)


@pytest.mark.parametrize(("home", "abroad", "subject"), REFUSED)
def test_state_is_refused_whatever_translates(cpus, home: str, abroad: str, subject: str) -> None:
    """What is more than instructions cannot be translated in any placement."""
    shown = cpus.offered(home)
    verdict = preflight(
        "g", GuestEvidence(shown=shown, vcpus=1, memory_mib=256), home, cpus.offered(abroad),
        translatable=translatable(Placement.INSIDE, avx="avx" in shown.features),
        hypervisor="tcg",
    )  # fmt: skip
    subjects = tuple(sorted({finding.subject for finding in verdict.blocking}))
    append(Row(refused=Refused(home=home, abroad=abroad, subjects=subjects)))
    assert subject in subjects
