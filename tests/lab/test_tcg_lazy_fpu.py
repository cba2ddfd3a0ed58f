"""Why Xen hosts of the lab have an eager FPU: what QEMU's emulation does while CR0.TS is set.

By both makers' manuals (Intel SDM vol. 2D, XSAVE, XRSTOR; AMD APM vol. 4) all these instructions
raise #NM then.  Xen on AMD relies on it to give the FPU to a guest only when it is used.
"""

import subprocess
import time
from pathlib import Path

import pytest

from isthmus.hypervisor.qemu.binary import find_qemu
from isthmus.qualification.xen.host import host_models

pytestmark = pytest.mark.lab

SOURCE = Path(__file__).with_name("lazy_fpu.S")
WAIT_S = 240
STATE = {"xsave", "xsaveopt", "xrstor"}


def answers(cpu: str, folder: Path) -> dict[str, str]:
    """What each instruction did: ``N`` #NM, ``U`` #UD, ``-`` nothing."""
    program, said = folder / "lazy_fpu", folder / "said"
    words = [
        "gcc",
        "-m32",
        "-nostdlib",
        "-static",
        "-no-pie",
        "-Wl,-Ttext=0x100000,--build-id=none",
    ]
    subprocess.run([*words, "-o", program, SOURCE], check=True)
    command = [
        find_qemu().path, "-accel", "tcg", "-cpu", cpu, "-M", "pc", "-m", "16", "-nodefaults",
        "-no-user-config", "-display", "none", "-serial", f"file:{said}", "-kernel", program,
    ]  # fmt: skip
    with subprocess.Popen(command, stdin=subprocess.DEVNULL) as qemu:
        try:
            deadline = time.monotonic() + WAIT_S
            while not said.exists() or "end" not in said.read_text():
                assert qemu.poll() is None, "QEMU ended"
                assert time.monotonic() < deadline, said.read_text() if said.exists() else "silent"
                time.sleep(0.05)
        finally:
            qemu.kill()
    lines = [line.split() for line in said.read_text().splitlines()]
    return {name: what for name, what in lines if name != "end"}


@pytest.mark.parametrize("name", ["epyc", "skylake"])
def test_where_xsave_ignores_ts_an_amd_host_has_an_eager_fpu(tmp_path: Path, name: str) -> None:
    model = host_models()[name]
    did = answers(model.cpu.partition(",")[0], tmp_path)
    assert {did.pop(one) for one in ("fxsave", "fxrstor", "movaps", "vmovaps")} == {"N"}
    assert set(did) == STATE
    if set(did.values()) == {"N"}:
        pytest.skip("this QEMU raises #NM, so a lazy FPU would do")
    assert model.maker == "GenuineIntel" or "eager-fpu=1" in model.xen
