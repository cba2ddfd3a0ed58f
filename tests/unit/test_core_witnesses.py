"""AMD's instructions beside this machine's CPU where it has them, and beside QEMU's user mode.

Both run the harness ``vectors_on_this_cpu.c``: some thousand cases of each encoding in every run,
more than 100,000 of a group under ``script/test --slow``.  Left out, since they differ by design:

* the upper quadword after EXTRQ and INSERTQ in QEMU: undefined (AMD APM vol. 4); we clear it as a
  real CPU does, QEMU keeps it;
* fields that reach beyond bit 63 on a real CPU: undefined;
* 3DNow!'s arithmetic in QEMU, which rounds to nearest and knows infinities and NaNs, where the
  manual (21928) truncates and saturates: that is compared with Bochs.
"""

import shutil
import subprocess
from importlib import resources
from pathlib import Path

import pytest

from isthmus.translate.build_core import sources

CORE = Path(str(resources.files("isthmus.translate"))) / "core"
HARNESS = Path(__file__).with_name("vectors_on_this_cpu.c")
QEMU = shutil.which("qemu-x86_64") or shutil.which("qemu-x86_64-static")

# The harness's words for operands that raise no page fault, and for an undefined upper quadword.
INSIDE, UPPER_UNDEFINED = -5, -2
# Destination XMM0: QEMU 7.2 takes it whatever EXTRQ with immediates names.  Lengths and indices
# that stay within 64 bits.
FIELDS = ("1008", "2020", "3f01", "0000", "013f", "0138", "2800", "0828")
SSE4A_FIELDS = [f"660f78c0{field}" for field in FIELDS] + [f"f20f78c2{field}" for field in FIELDS]
SSE4A_REGISTER = ["660f79c2", "f20f79c2"]
SSE4A_STORES = ["f30f2b16", "f20f2b16", "f2440f2b4e08", "f3440f2b4e04"]
# PAVGUSB, PMULHRW, PSWAPD, PI2FW; PFRCPIT1, PFRCPIT2, PFRSQIT1 with nothing left to refine.
AMD_3DNOW = [
    f"0f0f{form}{opcode}"
    for opcode in ("bf", "b7", "bb", "0c", "a6", "b6", "a7")
    for form in ("ca", "16")
]


@pytest.fixture(scope="module")
def harness(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if shutil.which("gcc") is None or " avx2 " not in Path("/proc/cpuinfo").read_text():
        pytest.skip("no C compiler, or no AVX2 here")
    program = tmp_path_factory.mktemp("witness") / "harness"
    files = [HARNESS, *(CORE / name for name in sources())]
    command = ["gcc", "-O1", "-mavx2", "-static", f"-I{CORE}", "-o", program, *files]
    subprocess.run(command, check=True)
    return program


def wrong(command: list[str | Path], codes: list[str], cases: int, mask: int) -> list[str]:
    lines = "".join(f"{code} {cases} 8d5 {mask}\n" for code in codes)
    done = subprocess.run(
        command, input=lines, capture_output=True, text=True, timeout=250, check=True
    )
    rows = done.stdout.splitlines()
    assert len(rows) == len(codes)
    return [row for row in rows if not row.endswith(" 0")]


PREFETCHES = ["0f0d06", "0f0d0e", "0f0d4e20"]

needs_qemu = pytest.mark.skipif(QEMU is None, reason="no qemu-user here")
has_sse4a = " sse4a" in Path("/proc/cpuinfo").read_text()
needs_sse4a = pytest.mark.skipif(not has_sse4a, reason="this CPU has no SSE4a")
several = pytest.mark.parametrize(
    "cases", [500, pytest.param(10_000, marks=pytest.mark.slow)], ids=["some", "many"]
)


@needs_sse4a
@several
def test_sse4a_on_this_cpu(harness: Path, cases: int) -> None:
    assert wrong([harness], SSE4A_FIELDS, cases, -1) == []
    assert wrong([harness], SSE4A_STORES, cases, -1) == []


@needs_qemu
@several
def test_sse4a_in_qemu(harness: Path, cases: int) -> None:
    command: list[str | Path] = [str(QEMU), "-cpu", "max", harness]
    assert wrong(command, SSE4A_FIELDS + SSE4A_REGISTER, cases, UPPER_UNDEFINED) == []
    assert wrong(command, SSE4A_STORES, cases, INSIDE) == []


@needs_qemu
@several
def test_3dnow_in_qemu(harness: Path, cases: int) -> None:
    assert wrong([str(QEMU), "-cpu", "max", harness], AMD_3DNOW, cases, INSIDE) == []


@needs_qemu
def test_prefetches_in_qemu(harness: Path) -> None:
    assert wrong([str(QEMU), "-cpu", "max", harness], PREFETCHES, 100, INSIDE) == []


@pytest.mark.skipif(
    " 3dnowprefetch" not in Path("/proc/cpuinfo").read_text(), reason="this CPU has no PREFETCHW"
)
def test_prefetches_on_this_cpu(harness: Path) -> None:
    assert wrong([harness], PREFETCHES, 100, -1) == []
