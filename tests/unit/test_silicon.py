"""What the catalogue says of silent differences, tried on the CPU that these tests run on.

The values were measured on one CPU of each maker; another generation may leave undefined flags
otherwise, and then the catalogue has something to learn.
"""

import json
import shutil
import subprocess
from pathlib import Path

import pytest

from isthmus.baseline.identity import maker
from isthmus.cpu.identify import identify
from isthmus.cpu.readers.cpuinfo import read_cpuinfo

HERE = Path(__file__).parent
RECORDED = json.loads((HERE / "data" / "silicon.json").read_text())["values"]
CPUINFO = Path("/proc/cpuinfo")
NEW = {"Sunny Cove", "Cypress Cove", "Golden Cove", "Raptor Cove", "Redwood Cove", "Zen 3", "Zen 4"}


@pytest.fixture(scope="module")
def this_maker() -> str:
    cpu = read_cpuinfo(CPUINFO.read_text(), name="this", where=str(CPUINFO))
    kind = identify(cpu)
    if maker(cpu.vendor) not in {"Intel", "AMD"} or kind is None or kind.generation not in NEW:
        pytest.skip(f"nobody has measured a {cpu.brand}")
    return maker(cpu.vendor)


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    if shutil.which("gcc") is None:
        pytest.skip("no C compiler")
    program = tmp_path_factory.mktemp("silicon") / "silicon"
    source = HERE / "silicon.c"
    subprocess.run(["gcc", "-O1", "-Wall", "-Werror", "-o", program, source], check=True)
    answer = subprocess.run([program], check=True, capture_output=True, text=True, timeout=180)
    return dict(line.split(" ", 1) for line in answer.stdout.splitlines())


@pytest.mark.parametrize("probe", RECORDED)
def test_this_cpu_does_as_its_maker_was_seen_to(
    probe: str, this_maker: str, measured: dict[str, str]
) -> None:
    assert measured[probe] == RECORDED[probe][this_maker]


def test_every_probe_is_recorded(measured: dict[str, str]) -> None:
    assert measured.keys() == RECORDED.keys()
