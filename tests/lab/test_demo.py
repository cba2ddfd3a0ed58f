"""The demo as a user runs it: real guests, its exit code, its report, nothing left behind."""

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest

pytestmark = pytest.mark.lab

ISTHMUS = [sys.executable, "-c", "from isthmus.cli.main import main; main()"]


def left_behind(temporary: Path) -> list[str]:
    """Processes that name the folder, and what lies in it."""
    mark = os.fsencode(temporary)
    found = [str(path) for path in temporary.iterdir()]
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal() and int(entry.name) != os.getpid():
            try:
                command = (entry / "cmdline").read_bytes()
            except OSError:
                continue
            if mark in command:
                found.append(command.decode(errors="replace"))
    return found


@pytest.fixture
def temporary():
    # A short path: UNIX sockets of the demo lie below it.
    with tempfile.TemporaryDirectory(prefix="demo-") as name:
        yield Path(name)


def demo(temporary: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*ISTHMUS, "demo", *arguments],
        env=os.environ | {"TMPDIR": str(temporary)},
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )


@pytest.mark.parametrize("pair", ["2008", "modern"])
def test_all_three_acts(temporary: Path, tmp_path: Path, pair: str) -> None:
    report = tmp_path / "report.html"
    done = demo(temporary, "--pair", pair, "--moves", "2", "--json", "--report", str(report))
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    without, levelled, translated = result["acts"]
    assert result["ok"]
    if pair == "2008":
        assert "panic" in without["outcome"]
        assert "RDTSCP in read_tsc" in without["explanation"]
        assert translated["moves"][0]["translated"]["RDTSCP"] > 100
    else:
        assert "EXTRQ" in without["explanation"]
    for act in (levelled, translated):
        for move in act["moves"]:
            assert move["total_ms"] > 0
            assert move["downtime_ms"] > 0
            assert move["moved_bytes"] > 1 << 20
            assert move["guest_gap_ms"] is not None
            assert move["silence_ms"] >= move["downtime_ms"] / 2
    assert translated["moves"][0]["translated"]["EXTRQ"] > 0
    assert translated["moves"][0]["translated"]["INSERTQ"] > 0
    assert translated["moves"][1]["translated"] == {}
    page = report.read_text()
    assert "http" not in page.replace("http-equiv", "")
    assert "-incoming" in page
    assert "<svg" in page
    assert left_behind(temporary) == []


def test_a_pair_that_differs_in_nothing_says_so(temporary: Path) -> None:
    done = demo(temporary, "--pair", "Penryn,Penryn", "--only", "without", "--json")
    assert done.returncode == 1
    assert "differ in nothing" in json.loads(done.stdout)["acts"][0]["outcome"]


@pytest.mark.parametrize("after_s", [1.0, 4.0, 7.0])
def test_control_c_leaves_nothing(temporary: Path, after_s: float) -> None:
    running = subprocess.Popen(
        [*ISTHMUS, "demo"],
        env=os.environ | {"TMPDIR": str(temporary)},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    time.sleep(after_s)
    os.killpg(running.pid, signal.SIGINT)
    assert running.wait(20) == 130
    assert left_behind(temporary) == []


def test_a_killed_demo_takes_its_guests_along(temporary: Path) -> None:
    running = subprocess.Popen(
        [*ISTHMUS, "demo", "--only", "translated"],
        env=os.environ | {"TMPDIR": str(temporary)},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    time.sleep(6.0)
    running.kill()
    running.wait()
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        commands = [entry for entry in left_behind(temporary) if not entry.startswith("/")]
        qemus = [entry for entry in left_behind(temporary) if "qemu-system" in entry]
        if not commands and not qemus:
            return
        time.sleep(0.1)
    pytest.fail(f"still there: {qemus}")


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        (["--pair", "phenom"], "--pair"),
        (["--pair", "phenom,Pentium99"], "Pentium99"),
        (["--qemu", "no-such-qemu"], "no-such-qemu"),
        (["--report", "/nowhere/at/all.html"], "--report"),
    ],
)
def test_bad_input_is_one_line(temporary: Path, arguments: list[str], word: str) -> None:
    done = demo(temporary, *arguments)
    assert done.returncode in {2, 6}
    assert word in done.stderr
    assert "Traceback" not in done.stderr
    assert left_behind(temporary) == []
