"""The demonstration on hosts with real KVM, as a user runs it; nothing of it is left behind."""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from kvm_cases import need_lab_hosts

from isthmus.hypervisor.qemu import process
from isthmus.places import cache_folder

pytestmark = [pytest.mark.lab, pytest.mark.slow, pytest.mark.timeout(1500)]


def demo(*arguments: str) -> dict[str, object]:
    """The result of `isthmus demo --kvm` with these arguments, which has to succeed."""
    with tempfile.TemporaryDirectory(prefix="kd-") as name:
        run = Path(name, "run")
        done = subprocess.run(
            [
                sys.executable, "-c", "from isthmus.cli.main import main; main()",
                "demo", "--kvm", "--json", "--report", str(Path(name, "report.html")), *arguments,
            ],
            env=os.environ | {"ISTHMUS_RUN": str(run), "ISTHMUS_CACHE": str(cache_folder())},
            capture_output=True, text=True, timeout=1400, check=False,
        )  # fmt: skip
        left = process.mentioning(Path(name))
        for each in left:
            each.kill()
        assert done.returncode == 0, done.stderr + done.stdout[-2000:]
        assert not left, "no process is left behind"
        assert [path.name for path in Path(name).rglob("*")] == ["report.html"]
        return json.loads(done.stdout)


def three_acts(result: dict, abroad: str) -> tuple[dict, dict, dict]:
    """The acts of a demo that went as it must."""
    without, levelled, translated = result["acts"]
    assert result["engine"] == "kvm"
    assert without["outcome"] in {"kernel-panic", "kernel-oops", "program-killed", "hung"}
    # Without RDTSCP the kernel cannot even tell: it reads its clock for that.
    told = any("invalid opcode" in line for line in without["console"])
    assert told or (abroad == "kvm:opteron2" and "rdtscp" in without["explanation"])
    for act in (levelled, translated):
        assert [act["outcome"], [f for f in act["faults"] if "cpuid" not in f]] == ["lived", []]
        assert [move["destination"] for move in act["moves"]] == [abroad, "kvm:phenom"]
        for move in act["moves"]:
            assert move["moved_bytes"] > 1 << 20
    there, home = translated["moves"]
    assert there["translated"]["EXTRQ"] > 0
    assert there["translated"]["PFADD"] > 0
    assert home["translated"] == {}
    return without, levelled, translated


def test_on_two_amd_hosts_the_module_translates() -> None:
    need_lab_hosts()
    result = demo("--pair", "phenom,opteron2")
    _, _, translated = three_acts(result, "kvm:opteron2")
    assert "module in its kernel" in translated["explanation"]


def test_on_an_amd_and_an_intel_host_the_debug_stub_translates() -> None:
    need_lab_hosts(intel=True)
    result = demo()
    assert "kvm_intel" in result["engine_reason"]
    _, _, translated = three_acts(result, "kvm:haswell")
    assert "#UD entry" in translated["explanation"]
