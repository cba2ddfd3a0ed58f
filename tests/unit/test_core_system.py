"""The core beside this CPU, QEMU and Bochs, where registers hold addresses, clocks, random numbers.

What no CPU, no QEMU and no Bochs at hand has is in ``test_core_formulas.py``.  Left out, since they
differ by design: PFRSQRT in QEMU divides by a rounded root, so the last place may differ; estimates
of denormals, infinities and NaNs, which 3DNow! does not have.
"""

import importlib.util
import json
import os
import shutil
import subprocess
import sys
from importlib import resources
from pathlib import Path

import pytest

from isthmus.translate.build_core import sources

HERE = Path(__file__).parent
CORE = Path(str(resources.files("isthmus.translate"))) / "core"
QEMU = shutil.which("qemu-x86_64") or shutil.which("qemu-x86_64-static")
BOCHS = importlib.util.find_spec("bochscpu")
SAPPHIRE_RAPIDS = "_Z28create_sapphire_rapids_cpuidP8BX_CPU_C"

# Encoding, and what the harness puts into registers for it.
CLOCKS = {"RDTSCP": [("0f01f9", "-")], "RDPID": [("f30fc7f8", "-"), ("f30fc7ff", "-")]}
RANDOM = {
    "RDRAND": [("0fc7f0", "-"), ("480fc7f0", "-"), ("660fc7f0", "-")],
    "RDSEED": [("0fc7f8", "-"), ("480fc7f8", "-"), ("660fc7f8", "-")],
}
ADDRESSES = {
    "CLZERO": [("0f01fc", "a")],
    "MONITORX": [("0f01fa", "ac")],
    "MWAITX": [("0f01fb", "c")],
    "MOVDIRI": [("0f38f916", "s"), ("480f38f916", "s")],
    "MOVDIR64B": [("660f38f83e", "sd"), ("660f38f83f", "d")],
    "UMONITOR": [("f30faef0", "a")],
}
PLAIN = {
    "SERIALIZE": [("0f01e8", "-")],
    "PTWRITE": [("f30faee0", "-"), ("f3480faee1", "-"), ("f30fae26", "s")],
    "TPAUSE": [("660faef1", "w")],
    "UMWAIT": [("f20faef1", "w")],
    "XTEST": [("0f01d6", "-")],
    "XEND": [("0f01d5", "-")],
}
EVERY = CLOCKS | RANDOM | ADDRESSES | PLAIN

needs_qemu = pytest.mark.skipif(QEMU is None, reason="no qemu-user here")
pytestmark = pytest.mark.skipif(shutil.which("gcc") is None, reason="no C compiler")


def build(name: str, folder: Path) -> Path:
    program = folder / name
    files = [HERE / f"{name}.c", *(CORE / source for source in sources())]
    command = ["gcc", "-O1", "-w", "-static", f"-I{CORE}", "-o", program, *files]
    subprocess.run(command, check=True)
    return program


@pytest.fixture(scope="module")
def harness(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build("system_on_this_cpu", tmp_path_factory.mktemp("system"))


def answers(command: list[str | Path], forms: list[tuple[str, str]], cases: int) -> list[str]:
    lines = "".join(f"{code} {cases} {setup}\n" for code, setup in forms)
    done = subprocess.run(
        command, input=lines, capture_output=True, text=True, timeout=250, check=True
    )
    rows = done.stdout.splitlines()
    assert [row.split()[0] for row in rows] == [code for code, _ in forms]
    return rows


@pytest.mark.parametrize("name", EVERY)
def test_agrees_with_this_cpu(harness: Path, name: str) -> None:
    rows = answers([harness], EVERY[name], 20_000 if name in ADDRESSES else 3_000)
    if any(row.endswith("missing") for row in rows):
        pytest.skip(f"this CPU has no {name}")
    assert [row for row in rows if row.split()[2] != "0"] == []


@needs_qemu
@pytest.mark.parametrize("name", ["RDTSCP", *RANDOM])
def test_agrees_with_qemu(harness: Path, name: str) -> None:
    rows = answers([str(QEMU), "-cpu", "max", harness], EVERY[name], 1_000)
    assert [row for row in rows if row.split()[2:] != ["0", "0"]] == []


@needs_qemu
def test_estimates_and_femms_agree_with_qemu(tmp_path: Path) -> None:
    program = build("reciprocals_in_qemu", tmp_path)
    command = [str(QEMU), "-cpu", "max", program, "100000"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=250, check=True)
    exact, root, femms = (line.split() for line in done.stdout.splitlines())
    assert exact == ["PFRCP", "0", "0"]
    assert (root[0], root[2]) == ("PFRSQRT", "1")  # units in the last place
    assert femms == ["FEMMS", "0", "0", "1"]  # all tags empty, TOP 0; the core says so too


@pytest.mark.skipif(BOCHS is None, reason="no package bochscpu-python here")
def test_agrees_with_bochs(tmp_path: Path) -> None:
    shim, source = tmp_path / "shim.so", HERE / "bochs_shim.c"
    subprocess.run(["gcc", "-shared", "-fPIC", "-o", shim, source, "-ldl"], check=True)
    assert BOCHS is not None
    assert BOCHS.origin is not None
    (extension,) = Path(BOCHS.origin).parent.glob("_bochscpu*.so")
    settings = {
        "LD_PRELOAD": str(shim), "BOCHS_SO": str(extension), "BOCHS_MODEL": SAPPHIRE_RAPIDS,
    }  # fmt: skip
    done = subprocess.run(
        [sys.executable, HERE / "bochs_system_oracle.py", "1", "1000"], env=os.environ | settings,
        capture_output=True, text=True, timeout=280, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    tried = {"SERIALIZE": 1000, "UMWAIT": 1000, "RDPID": 1000}
    assert json.loads(done.stdout) == {"tried": tried, "wrong": {}}
