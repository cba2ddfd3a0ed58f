"""For every pair of QEMU's CPU models, both hosts can honour the levelled CPU and QEMU takes it.

QEMU is started with each ``-cpu`` argument and ``enforce``; it refuses to start if it had to take
a bit away.  Many pairs level to the same CPU, so there are fewer arguments than pairs.
"""

import itertools
import subprocess
from concurrent.futures import ThreadPoolExecutor

import pytest

from isthmus.baseline.level import level
from isthmus.cpu.features import FEATURES
from isthmus.hypervisor.qemu.binary import find_qemu
from isthmus.hypervisor.qemu.engine import Accelerator
from isthmus.hypervisor.qemu.models import QemuCpus, read_cpus
from isthmus.hypervisor.qemu.render import cpu_argument

pytestmark = pytest.mark.lab

RESTRICTIONS = {name for name, feature in FEATURES.items() if feature.merge == "or"}


def refusal(argument: str) -> str:
    """What QEMU says of a CPU that it does not take; empty if it starts with it."""
    done = subprocess.run(
        [str(find_qemu().path), "-no-user-config", "-nodefaults", "-display", "none", "-S",
         "-machine", "pc", "-accel", "tcg", "-m", "16", "-cpu", argument, "-monitor", "stdio"],
        input="quit\n", capture_output=True, text=True, timeout=180, check=False,
    )  # fmt: skip
    return done.stderr if done.returncode or "warning" in done.stderr else ""


def arguments(pairs: list[tuple[str, str]], cpus: QemuCpus) -> dict[str, tuple[str, str]]:
    """The distinct ``-cpu`` arguments of these pairs, each with one of its pairs."""
    found: dict[str, tuple[str, str]] = {}
    for pair in pairs:
        hosts = [cpus.offered(name) for name in pair]
        model = level(hosts).model
        for host in hosts:
            assert model.features - RESTRICTIONS <= host.features, pair
            assert model.level <= host.level
            assert model.xlevel <= host.xlevel
            assert (
                model.phys_bits is None
                or host.phys_bits is None
                or (model.phys_bits <= host.phys_bits)
            )
        found.setdefault(cpu_argument(model, cpus.named), pair)
    return found


async def every_pair() -> tuple[list[tuple[str, str]], QemuCpus]:
    cpus = await read_cpus(find_qemu(), Accelerator.TCG)
    makers = {"AuthenticAMD", "GenuineIntel", "HygonGenuine"}
    names = sorted(name for name, cpu in cpus.named.items() if cpu.vendor in makers)
    return list(itertools.combinations(names, 2)), cpus


def refused(wanted: dict[str, tuple[str, str]]) -> dict[tuple[str, str], str]:
    with ThreadPoolExecutor(max_workers=2) as workers:
        answers = list(workers.map(refusal, wanted))
    return {pair: words for pair, words in zip(wanted.values(), answers, strict=True) if words}


async def test_qemu_takes_the_level_of_every_pair() -> None:
    pairs, cpus = await every_pair()
    assert len(pairs) > 1000
    assert refused(arguments(pairs, cpus)) == {}


async def test_qemu_refuses_what_its_accelerator_lacks() -> None:
    """The question can be answered with no: else the tests above could not fail."""
    assert "avx512f" in refusal("Penryn,+avx512f,enforce")
