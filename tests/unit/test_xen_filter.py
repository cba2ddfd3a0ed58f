"""``isthmus xen-filter`` as a process, in the place where ``xl migrate`` puts its transport."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from isthmus.qualification.lab import xen_stream as made
from isthmus.translate.xen.report import read_report

PROGRAM = [sys.executable, "-c", "from isthmus.cli.main import main; main()", "xen-filter"]
WAIT_S = 60

# What `xl migrate-receive` does, as tools/xl/xl_migrate.c has it: a banner, the stream to its END,
# "ready", then it waits for the permission and reports.  The stream goes to the file named first.
RECEIVER = f"""
import sys, os
out, inp = sys.stdout.buffer, sys.stdin.buffer
out.write({made.BANNER!r}); out.flush()
length = int(sys.argv[2])
data = inp.read(length)
open(sys.argv[1], "wb").write(data)
if len(data) < length:
    sys.exit("receiver: stream too short")
out.write({made.READY!r}); out.flush()
go = inp.read({len(made.GO)})
if go != {made.GO!r}:
    sys.exit("receiver: no permission")
out.write(b"my copy unpause results are as follows\\0" + bytes(1)); out.flush()
"""


def started(*arguments: str) -> "subprocess.Popen[bytes]":
    return subprocess.Popen(
        [*PROGRAM, *arguments],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip


def with_receiver(where: Path, length: int, *options: str) -> "subprocess.Popen[bytes]":
    return started(*options, "--", sys.executable, "-c", RECEIVER, str(where), str(length))


def exactly(process: "subprocess.Popen[bytes]", count: int) -> bytes:
    assert process.stdout is not None
    return process.stdout.read(count)


def test_the_whole_handshake_of_xl_migrate_passes_and_the_guest_is_rewritten(
    tmp_path: Path,
) -> None:
    data = made.pv_stream()
    report = tmp_path / "report"
    got = tmp_path / "got"
    process = with_receiver(got, len(data), "--to", "amd", "--report", str(report))
    assert process.stdin is not None
    assert exactly(process, len(made.BANNER)) == made.BANNER
    process.stdin.write(data)
    process.stdin.flush()
    assert exactly(process, len(made.READY)) == made.READY
    changes, summary = read_report(report)
    assert summary is not None, "the report is whole before the destination may start the guest"
    assert [change.instance for change in changes] == [0, 1]
    assert (summary.to, summary.changes, summary.pages) == ("AuthenticAMD", 2, 3)
    process.stdin.write(made.GO)
    rest, errors = process.communicate(timeout=WAIT_S)
    assert rest == b"my copy unpause results are as follows\0\0"
    assert process.returncode == 0, errors
    assert b"vmce.caps 0x1000c02 -> 0x2 (pv-vmce-caps)" in errors
    arrived = got.read_bytes()
    assert len(arrived) == len(data)
    assert arrived.count(made.INTEL_CAPS.to_bytes(8, "little")) == 0


def test_a_wrong_stream_ends_the_receiver_and_fails(tmp_path: Path) -> None:
    data = made.pv_stream()
    at = data.index(b"XENF")
    bad = data[:at] + b"XENG" + data[at + 4 :]
    got = tmp_path / "got"
    report = tmp_path / "report"
    process = with_receiver(got, len(data), "--report", str(report))
    out, errors = process.communicate(bad + made.GO, timeout=WAIT_S)
    assert process.returncode == 1
    assert b"libxc image header: id 0x58454e47" in errors
    assert b"Traceback" not in errors
    assert out == made.BANNER, "no ready: the source resumes the guest"
    assert got.read_bytes() == data[: at - 8], "up to the last whole record, nothing of the GO"
    assert read_report(report) == ((), None)


def test_a_source_that_dies_fails_both(tmp_path: Path) -> None:
    data = made.pv_stream()
    got = tmp_path / "got"
    process = with_receiver(got, len(data))
    out, errors = process.communicate(data[:-40], timeout=WAIT_S)
    assert process.returncode == 1
    assert b"before its END" in errors
    assert out == made.BANNER


@pytest.mark.parametrize("transport", ["command", "pipeline"])
def test_a_receiver_that_dies_before_its_banner_lets_the_source_see_it(transport: str) -> None:
    words = [*PROGRAM, "--", "false"] if transport == "command" else ["sh", "-c", '"$@" | false']
    arguments = words if transport == "command" else [*words, "sh", *PROGRAM]
    process = subprocess.Popen(
        arguments, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert process.stdout is not None
    # The source sends nothing before the banner: it waits for it or for the end of its pipe.
    assert process.stdout.read() == b""
    assert process.stdin is not None
    assert process.wait(WAIT_S) == 1
    process.stdin.close()
    assert process.stderr is not None
    with process.stderr as errors:
        assert b"the receiver went away" in errors.read()


def test_a_filter_that_is_killed_leaves_no_receiver_with_a_guest(tmp_path: Path) -> None:
    data = made.pv_stream()
    got = tmp_path / "got"
    process = with_receiver(got, len(data))
    assert process.stdin is not None
    assert exactly(process, len(made.BANNER)) == made.BANNER
    process.stdin.write(data[:-8])
    process.stdin.flush()
    time.sleep(0.2)
    process.send_signal(signal.SIGKILL)
    assert process.stdout is not None
    assert process.stdout.read() == b"", "no ready, and the pipe of the way back is closed"
    assert process.wait(WAIT_S) == -signal.SIGKILL
    process.stdin.close()


def test_a_receiver_that_fails_behind_the_stream_fails_the_filter(tmp_path: Path) -> None:
    data = made.pv_stream()
    process = with_receiver(tmp_path / "got", len(data))
    _, errors = process.communicate(data + b"not a permission, but as long as one.....\0\0", WAIT_S)
    assert process.returncode == 1
    assert b"receiver: no permission" in errors
    assert b"Traceback" not in errors


@pytest.mark.parametrize("end", ["file", "pipe"])
def test_a_saved_guest_is_filtered_from_file_to_file_and_to_a_pipe(
    end: str, tmp_path: Path
) -> None:
    data = made.hvm_stream()
    (tmp_path / "in").write_bytes(data)
    with (tmp_path / "in").open("rb") as source, (tmp_path / "out").open("wb") as file:
        done = subprocess.run(
            [*PROGRAM, "--to", "amd"],
            stdin=source, stdout=file if end == "file" else subprocess.PIPE,
            stderr=subprocess.PIPE, timeout=WAIT_S, check=False,
        )  # fmt: skip
    assert done.returncode == 0, done.stderr
    out = (tmp_path / "out").read_bytes() if end == "file" else done.stdout
    assert len(out) == len(data)
    assert sum(a != b for a, b in zip(data, out, strict=True)) == 4, "two bytes of each vCPU's caps"


def test_a_report_that_cannot_be_kept_stops_the_stream_before_its_end() -> None:
    if not os.path.exists("/dev/full"):  # noqa: PTH110
        pytest.skip("no /dev/full here")
    data = made.pv_stream()
    process = started("--to", "amd", "--report", "/dev/full")
    out, errors = process.communicate(data, timeout=WAIT_S)
    assert process.returncode == 6
    assert b"/dev/full: No space left" in errors
    assert len(out) < len(data)


def test_a_receiver_that_is_no_program_is_told() -> None:
    process = started("--", "/no/such/program")
    _, errors = process.communicate(b"", timeout=WAIT_S)
    assert process.returncode == 6
    assert b"/no/such/program: No such file" in errors


def test_options_behind_the_program_are_the_program_s_and_wrong_ones_before_are_told() -> None:
    words = started("sh", "-c", "cat >/dev/null; echo $0", "--to")
    out, errors = words.communicate(made.pv_stream(), timeout=WAIT_S)
    assert (words.returncode, out) == (0, b"--to\n"), errors
    wrong = started("--tp", "amd", "cat")
    _, errors = wrong.communicate(b"", timeout=WAIT_S)
    assert wrong.returncode == 2
    assert b"--tp" in errors


def test_the_report_is_lines_of_json(tmp_path: Path) -> None:
    report = tmp_path / "report"
    process = started("--to", "amd", "--report", str(report))
    process.communicate(made.hvm_stream(ext_ctl=1), timeout=WAIT_S)
    lines = [json.loads(line) for line in report.read_bytes().splitlines()]
    assert [line.get("rule") for line in lines] == [
        "hvm-vmce-caps", "hvm-vmce-local", "hvm-vmce-caps", "hvm-vmce-local", None,
    ]  # fmt: skip
    assert lines[-1]["records"]["hvm.CPU"] == 2
