"""The payload on this very machine: it runs, reports in the documented format, and never hangs."""

import os
import signal
import struct
import subprocess
import time
from fractions import Fraction
from math import isqrt
from pathlib import Path

import pytest

from isthmus.errors import EnvironmentLackError
from isthmus.places import cache_folder
from isthmus.qualification.payload.build import build_payload, sources
from isthmus.qualification.payload.report import parse
from isthmus.qualification.payload.verdict import judge

QUICK = ("memory_mib=4", "tick_ms=5", "beat_ms=5")


@pytest.fixture(scope="module")
def payload():
    return build_payload(cache_folder())


def run(payload, port, *options):
    done = subprocess.run(
        [payload, "--port", port, *QUICK, *options], capture_output=True, timeout=60, check=False
    )
    return done.returncode


def test_it_runs_to_its_end_and_is_right(payload, tmp_path):
    port = tmp_path / "port"
    assert run(payload, port, "ticks=12") == 0
    verdict = judge([port.read_bytes()])
    assert verdict.ok, verdict.faults
    assert verdict.ticks == 12
    assert verdict.instructions
    assert set(verdict.instructions.values()) == {12}


def test_tests_can_be_chosen(payload, tmp_path):
    assert run(payload, tmp_path / "none", "ticks=1", "test=none") == 0
    assert judge([(tmp_path / "none").read_bytes()]).tests == "none"
    assert run(payload, tmp_path / "one", "ticks=1", "test=cx16,unknown") == 0
    verdict = judge([(tmp_path / "one").read_bytes()])
    assert verdict.ok
    assert set(verdict.instructions) == {"cmpxchg16b"}


@pytest.mark.parametrize("word", ["tick_ms=0", "tick_ms=-1", "tick_ms=1x", "what=1", "fault=never"])
def test_wrong_options_are_refused(payload, tmp_path, word):
    assert run(payload, tmp_path / "port", word) == 2


def worker_of(supervisor):
    children = Path(f"/proc/{supervisor.pid}/task/{supervisor.pid}/children")
    while True:
        if found := children.read_text().split():
            return int(found[0])
        time.sleep(0.01)


def test_death_of_the_worker_is_told(payload, tmp_path):
    port = tmp_path / "port"
    with subprocess.Popen([payload, "--port", port, *QUICK]) as supervisor:
        while not port.exists() or b" tick " not in port.read_bytes():
            time.sleep(0.02)
        os.kill(worker_of(supervisor), signal.SIGKILL)
        assert supervisor.wait(timeout=180) == 128 + signal.SIGKILL
    verdict = judge([port.read_bytes()])
    assert [fault.kind for fault in verdict.faults] == ["death"]
    last = parse(port.read_bytes().splitlines()[-1])
    assert last is not None
    assert last.fields["signal"] == "9"


def test_a_port_that_takes_nothing_stops_nobody(payload, tmp_path):
    """A pipe holds 64 KiB; what is reported beyond that waits in the queue until it is read."""
    port = tmp_path / "port"
    os.mkfifo(port)
    reader = os.open(port, os.O_RDONLY | os.O_NONBLOCK)
    options = ("beat_ms=1", "tick_ms=1", "memory_mib=1", "rewrite_kib=4", "ticks=1500")
    with subprocess.Popen([payload, "--port", port, *options]) as supervisor:
        time.sleep(1.5)
        os.set_blocking(reader, True)
        data = b""
        while part := os.read(reader, 1 << 16):
            data += part
        assert supervisor.wait(timeout=180) == 0
    os.close(reader)
    assert len(data) > 1 << 16
    verdict = judge([data])
    assert verdict.ok, verdict.faults
    assert verdict.ticks == 1500


def test_disk_keeps_the_number_and_sees_another_writer(payload, tmp_path):
    disk = tmp_path / "disk"
    disk.write_bytes(bytes(8192))
    port = tmp_path / "port"
    options = ("disk=1", f"disk_path={disk}")
    assert run(payload, port, "ticks=3", *options) == 0
    verdict = judge([port.read_bytes()])
    if [fault.kind for fault in verdict.faults] == ["disk-error"] * 4:
        pytest.skip("this file system has no O_DIRECT")
    assert verdict.ok, verdict.faults
    assert disk.read_bytes().startswith(b"isthmus-payload\0")
    port.unlink()
    with subprocess.Popen([payload, "--port", port, *QUICK, *options]) as supervisor:
        while not port.exists() or b" tick " not in port.read_bytes():
            time.sleep(0.02)
        disk.write_bytes(bytes(8192))
        while b"kind=disk" not in port.read_bytes():
            time.sleep(0.02)
        supervisor.kill()
    assert "disk" in [fault.kind for fault in judge([port.read_bytes()]).faults]


def test_compilers_that_are_not_there(tmp_path):
    with pytest.raises(EnvironmentLackError, match="apt-get install"):
        build_payload(tmp_path, compiler="no-such-compiler")


def test_the_build_can_be_repeated(payload, tmp_path):
    assert build_payload(tmp_path).read_bytes() == payload.read_bytes()


# ---- the known answers, computed here by another way ----


def rounded(value, bits):
    """To the nearest value of so many bits, ties to even (IEEE 754)."""
    exponent = value.numerator.bit_length() - value.denominator.bit_length()
    exponent -= value < Fraction(2) ** exponent
    scaled = value * Fraction(2) ** (bits - 1 - exponent)
    return round(scaled) / Fraction(2) ** (bits - 1 - exponent)


def root(value, bits):
    scale = 4 ** (bits + 80)
    scaled = value * scale
    whole = isqrt(scaled.numerator // scaled.denominator)
    inexact = whole * whole != scaled
    return rounded((whole + Fraction(1, 2) * inexact) / Fraction(2) ** (bits + 80), bits)


def series(bits):
    value = Fraction(1)
    for i in range(1, 501):
        value = root(rounded(rounded(value * i, bits) + rounded(Fraction(1, i), bits), bits), bits)
    return value


def test_known_answers_are_those_of_exact_arithmetic():
    text = sources()["arithmetic.c"].decode() + sources()["checks.h"].decode()
    extended = series(64)
    assert f"{int(extended * Fraction(2) ** (63 - 8)):#x}" in text  # 256 <= value < 512
    double = float(series(53))
    assert f"UINT64_C({int.from_bytes(struct.pack('>d', double)):#x})" in text
    value, mask = 0x9E3779B97F4A7C15, (1 << 64) - 1
    for i in range(1, 20001):
        value = (value * 6364136223846793005 + i) & mask
        value ^= (value << 13) & mask | value >> 51
        value = (value + value // (i | 1)) & mask
        value ^= value % (i + 3)
    assert f"UINT64_C({value:#x})" in text
