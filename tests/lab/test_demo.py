"""The demo as a user runs it: real guests, its exit code, its report, nothing left behind."""

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from msgspec.structs import replace

from isthmus.hypervisor.qemu import process
from isthmus.hypervisor.qemu.binary import find_qemu, versioned_pc_machine
from isthmus.hypervisor.qemu.engine import Accelerator
from isthmus.places import cache_folder
from isthmus.qualification.demo.plain import move_by_hand
from isthmus.qualification.lab.image import build_image, command_line

pytestmark = [pytest.mark.lab, pytest.mark.timeout(600)]

ISTHMUS = [sys.executable, "-c", "from isthmus.cli.main import main; main()"]


@pytest.fixture
def run() -> Iterator[Path]:
    """The demo's run folder; its path is short, since UNIX sockets lie below it."""
    with tempfile.TemporaryDirectory(prefix="demo-") as name:
        yield Path(name, "run")


def environment(run: Path) -> dict[str, str]:
    return os.environ | {"ISTHMUS_RUN": str(run)}


def processes(run: Path) -> list[str]:
    """The command lines of processes that name the run folder."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal() and int(entry.name) != os.getpid():
            try:
                command = (entry / "cmdline").read_bytes()
            except OSError:
                continue
            if os.fsencode(run) in command:
                found.append(command.replace(b"\0", b" ").decode(errors="replace"))
    return found


def left_behind(run: Path) -> list[str]:
    return processes(run) + [str(path) for path in run.parent.rglob("*")]


def demo(run: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*ISTHMUS, "demo", *arguments],
        env=environment(run),
        cwd=run.parent,
        capture_output=True,
        text=True,
        timeout=500,
        check=False,
    )


def until(condition: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + 180
    while not condition():
        assert time.monotonic() < deadline, f"not within 180 s: {what}"
        time.sleep(0.02)


@pytest.mark.parametrize(
    ("pair", "end", "died_at"),
    [
        ("classic", "kernel-panic", "died at RDTSCP in read_tsc"),
        ("modern", "program-killed", "died at EXTRQ"),
    ],
)
def test_all_three_acts(run: Path, tmp_path: Path, pair: str, end: str, died_at: str) -> None:
    report = tmp_path / "report.html"
    done = demo(run, "--pair", pair, "--moves", "2", "--json", "--report", str(report))
    assert done.returncode == 0, done.stderr
    assert left_behind(run) == []
    result = json.loads(done.stdout)
    assert result["ok"]
    without, levelled, translated = result["acts"]
    assert without["outcome"] == end
    assert died_at in without["explanation"]
    assert any("invalid opcode" in line for line in without["console"])
    for act in (levelled, translated):
        assert [act["outcome"], act["faults"]] == ["lived", []]
        for move in act["moves"]:
            assert move["total_ms"] >= move["downtime_ms"] > 0
            assert move["moved_bytes"] > 1 << 20
            assert move["guest_gap_ms"] > 0
            assert move["silence_ms"] >= move["stopped_ms"]
    there, home = translated["moves"]
    assert [there["source"], home["source"]] == [home["destination"], there["destination"]]
    assert there["translated"]["EXTRQ"] > 0
    assert there["translated"]["INSERTQ"] > 0
    # The payload's own; the kernel's are rewritten.
    assert (there["translated"].get("RDTSCP", 0) > 0) == (pair == "classic")
    assert home["translated"] == {}
    page = report.read_text()
    assert died_at in page
    assert "-incoming defer -S" in page


def test_a_pair_without_a_difference_says_so(run: Path) -> None:
    done = demo(run, "--pair", "Penryn,Penryn", "--only", "without", "--json", "--report", "-")
    assert done.returncode == 1
    (act,) = json.loads(done.stdout)["acts"]
    assert [act["ok"], act["outcome"]] == [False, "lived"]
    assert "do not differ" in act["explanation"]
    assert left_behind(run) == []


def test_what_no_translator_covers_is_refused_not_tried(run: Path) -> None:
    pair = ("Haswell-noTSX", "Penryn")  # AVX2 is lost, and its state with it
    done = demo(run, "--pair", ",".join(pair), "--only", "translated", "--json", "--report", "-")
    assert done.returncode == 1
    (act,) = json.loads(done.stdout)["acts"]
    assert [act["ok"], act["outcome"], act["moves"]] == [False, "refused", []]
    assert left_behind(run) == []


@pytest.mark.parametrize(
    ("only", "when", "sent"),
    [
        ("without", "booting", signal.SIGINT),
        ("without", "watching", signal.SIGHUP),
        ("levelled", "move 3 of", signal.SIGINT),
        ("levelled", "move 1 of", signal.SIGTERM),
        ("translated", "at work", signal.SIGINT),
        ("translated", "moving it home", signal.SIGINT),
    ],
)
def test_an_interrupt_leaves_nothing(run: Path, only: str, when: str, sent: signal.Signals) -> None:
    said = run.parent / "said"
    # Where the tests run in the background, SIGINT may be ignored, and children would inherit that.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    with said.open("wb") as log:
        running = subprocess.Popen(
            [*ISTHMUS, "demo", "--only", only],
            env=environment(run), cwd=run.parent, stdin=subprocess.DEVNULL,
            stdout=log, stderr=log, start_new_session=True,
        )  # fmt: skip
    try:
        until(lambda: when in said.read_text(), f"{when!r} in its output")
        until(lambda: bool(processes(run)), "a guest")
        os.killpg(running.pid, sent)
        assert running.wait(20) == 130
    finally:
        running.kill()
        running.wait()
    lines = said.read_text().splitlines()
    assert lines[-1] == "isthmus: interrupted"
    said.unlink()
    assert left_behind(run) == []


def test_a_killed_demo_takes_its_guests_and_translator_along(run: Path) -> None:
    said = run.parent / "said"
    with said.open("wb") as log:
        running = subprocess.Popen(
            [*ISTHMUS, "demo", "--only", "translated"],
            env=environment(run), cwd=run.parent, stdout=log, stderr=log,
        )  # fmt: skip
    until(lambda: "at work" in said.read_text(), "'at work' in its output")
    assert any("translate.service" in command for command in processes(run))
    running.kill()
    running.wait()
    until(lambda: not processes(run), f"their end: {processes(run)}")


@pytest.mark.parametrize(
    ("arguments", "code", "word"),
    [
        (["--pair", "phenom"], 2, "--pair"),
        (["--pair", "phenom,Pentium99"], 2, "Pentium99"),
        (["--pair", "phenom,max"], 2, "max"),
        (["--qemu", "no-such-qemu"], 6, "no-such-qemu"),
        (["--report", "/nowhere/at/all.html"], 2, "--report"),
        (["--kernel", "no-such-series"], 2, "no-such-series"),
    ],
)
def test_bad_input_is_one_line(run: Path, arguments: list[str], code: int, word: str) -> None:
    done = demo(run, *arguments)
    assert done.returncode == code, done.stderr
    assert word in done.stderr
    assert "Traceback" not in done.stderr
    assert left_behind(run) == []


def test_a_dry_run_starts_no_guest(run: Path) -> None:
    done = demo(run, "--dry-run", "--json")
    assert done.returncode == 0
    plan = json.loads(done.stdout)
    assert "rdtscp" in plan["source"]["only"]
    assert plan["level"].endswith(",enforce")
    assert "act 3" in demo(run, "--dry-run", "--pair", "modern").stdout
    assert left_behind(run) == []


async def test_a_stream_that_qemu_does_not_take_is_told(run: Path) -> None:
    qemu = find_qemu()
    image = build_image(cache=cache_folder())
    spec = process.LaunchSpec(
        qemu=qemu.path, accelerator=Accelerator.TCG, machine=versioned_pc_machine(qemu),
        cpu="phenom", vcpus=1, memory_mib=128, kernel=image.kernel, initrd=image.initrd,
        command_line=command_line(),
    )  # fmt: skip
    other = replace(spec, memory_mib=256)
    here = await process.start(spec, run / "0", lives_with_parent=True)
    there = await process.start(other, run / "1", incoming=True, lives_with_parent=True)
    try:
        transfer = await move_by_hand(here, there, (f"unix:{there.directory / 'stream.sock'}", ""))
    finally:
        here.kill()
        there.kill()
    assert transfer.status == "failed"
    assert transfer.error
