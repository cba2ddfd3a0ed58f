"""``isthmus level`` with the installed QEMU."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from isthmus.cpu.model import CpuModel
from isthmus.hypervisor.qemu.binary import find_qemu
from isthmus.values import to_json

pytestmark = pytest.mark.lab


def isthmus(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", "from isthmus.cli.main import main; main()", *arguments],
        capture_output=True, text=True, timeout=180, check=False,
    )  # fmt: skip


def test_the_old_pair_in_words() -> None:
    done = isthmus("level", "phenom", "Penryn", "--accel", "tcg")
    assert done.returncode == 0, done.stderr
    assert "rdtscp" in done.stdout
    assert "Meltdown" in done.stdout
    last = done.stdout.strip().splitlines()[-1]
    assert last.startswith("-cpu '")
    assert last.endswith(",enforce'")


def test_the_argument_starts_the_installed_qemu() -> None:
    done = isthmus("level", "EPYC", "Haswell", "--accel", "tcg", "--json", "--drop", "AVX2,rdrand")
    answer = json.loads(done.stdout)
    features = answer["baseline"]["model"]["features"]
    assert "avx" in features
    assert not {"avx2", "rdrand", "svm"} & set(features)
    qemu = subprocess.run(
        [find_qemu().path, "-accel", "tcg", "-display", "none", "-nodefaults", "-m", "16", "-S",
         "-cpu", answer["cpu"], "-monitor", "stdio"],
        input="quit\n", capture_output=True, text=True, timeout=180, check=False,
    )  # fmt: skip
    assert qemu.returncode == 0, qemu.stderr
    assert not qemu.stderr


def test_hosts_from_files(tmp_path: Path) -> None:
    host = CpuModel(
        name="old-xeon", source="test", vendor="GenuineIntel", family=6, model=15, stepping=11,
        level=10, xlevel=0x80000008, features=frozenset({"fpu", "tsc", "mmx", "fxsr", "sse"}),
    )  # fmt: skip
    file = tmp_path / "host.json"
    file.write_bytes(to_json(host))
    answer = json.loads(isthmus("level", str(file), "phenom", "--json", "--accel", "tcg").stdout)
    assert set(answer["baseline"]["model"]["features"]) == host.features
    assert answer["baseline"]["model"]["model"] == 15


@pytest.mark.parametrize("text", ["", "{}", "[" * 100_000, '{"name": 7}', "\x00"])
def test_a_file_that_is_no_cpu_model(text: str, tmp_path: Path) -> None:
    file = tmp_path / "host.json"
    file.write_text(text)
    done = isthmus("level", str(file), "--accel", "tcg")
    assert done.returncode == 2
    assert str(file) in done.stderr
    assert "Traceback" not in done.stderr


def test_wrong_names_end_with_a_line_and_a_remedy() -> None:
    for arguments, word in (
        (("penryn",), "did you mean Penryn"),
        (("Penryn", "--drop", "sse17"), "sse17"),
        (("EPYC", "Haswell", "--keep", "svm"), "Haswell lacks it"),
        ((), "Usage"),
        (("./absent.json",), "absent.json"),
    ):
        done = isthmus("level", *arguments)
        assert done.returncode == 2, arguments
        assert word in done.stderr
        assert "Traceback" not in done.stderr
