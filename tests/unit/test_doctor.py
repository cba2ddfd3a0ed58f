import json
import os
from pathlib import Path

import pytest
from click.testing import CliRunner

from isthmus.cli import doctor as module
from isthmus.cli.doctor import Check, Report, disk_space, doctor, examine
from isthmus.errors import EnvironmentLackError
from isthmus.values import from_json


def check_named(name: str, qemu: str = "no-such-qemu") -> Check:
    return next(check for check in examine(qemu) if check.name == name)


def test_a_missing_qemu_is_told_with_its_package(monkeypatch: pytest.MonkeyPatch) -> None:
    check = check_named("QEMU")
    assert (check.ok, check.needed) == (False, True)
    assert "apt-get install qemu-system-x86" in check.remedy


def fake_program(folder: Path, name: str, script: str) -> Path:
    path = folder / name
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    return path


def test_an_old_qemu_is_missing(tmp_path: Path) -> None:
    old = fake_program(tmp_path, "qemu", "echo 'QEMU emulator version 5.2.0'")
    check = check_named("QEMU", str(old))
    assert not check.ok
    assert "5.2.0" in check.detail
    assert "older than 7.2" in check.detail


def test_kvm_that_runs_no_guest_is_absent_but_not_needed(tmp_path: Path) -> None:
    """The program answers like QEMU and fails each guest: the trial, not /dev/kvm, decides."""
    script = "[ $1 = --version ] && echo 'QEMU emulator version 9.0.0' && exit 0\nexit 1"
    check = check_named("KVM", str(fake_program(tmp_path, "qemu", script)))
    assert (check.ok, check.needed) == (False, False)
    assert check.remedy


def test_a_kvm_that_runs_its_trial_is_usable(tmp_path: Path) -> None:
    script = "[ $1 = --version ] && echo 'QEMU emulator version 9.0.0' && exit 0\nexit 85"
    assert check_named("KVM", str(fake_program(tmp_path, "qemu", script))).ok


def test_without_programs_each_is_missing_with_its_package(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(module, "BUSYBOXES", (str(tmp_path / "busybox"),))
    remedies = {check.name: check.remedy for check in examine() if not check.ok}
    assert remedies["C compiler"] == "apt-get install gcc libc6-dev"
    assert remedies["setpriv"] == "apt-get install util-linux"
    assert remedies["static busybox"] == "apt-get install busybox-static"
    assert "--kernel" in remedies["kernel packages"]


def test_a_dynamic_busybox_is_not_enough(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dynamic, static = tmp_path / "dynamic", tmp_path / "static"
    dynamic.write_bytes(b"\x7fELF /lib64/ld-linux-x86-64.so.2")
    static.write_bytes(b"\x7fELF")
    monkeypatch.setattr(module, "BUSYBOXES", (str(dynamic),))
    assert not check_named("static busybox").ok
    monkeypatch.setattr(module, "BUSYBOXES", (str(dynamic), str(static)))
    assert check_named("static busybox").detail == str(static)


def test_a_compiler_whose_programs_do_not_run_is_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake_program(tmp_path, "gcc", "echo 'fatal: no libc.a' >&2; exit 1")
    monkeypatch.setenv("PATH", str(tmp_path) + os.pathsep + os.environ["PATH"])
    check = check_named("C compiler")
    assert (check.ok, check.detail) == (False, "fatal: no libc.a")


def test_disk_space_is_that_of_the_nearest_folder(tmp_path: Path) -> None:
    check = disk_space("x", tmp_path / "not" / "there", 1)
    assert check.ok
    assert check.detail.endswith(f"in {tmp_path}")
    full = disk_space("x", tmp_path, 1 << 60)
    assert not full.ok
    assert full.remedy.startswith("free ")


def test_a_file_where_a_folder_should_be(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    assert not disk_space("x", tmp_path / "file" / "below", 1).ok


def test_json_is_the_report_and_lacks_are_exit_6() -> None:
    done = CliRunner().invoke(doctor, ["--json", "--qemu", "no-such-qemu"])
    assert isinstance(done.exception, EnvironmentLackError)
    assert done.exception.exit_code == 6
    assert "QEMU" in str(done.exception)
    report = from_json(done.stdout, Report)
    assert not report.ok
    assert {"QEMU", "C compiler", "disk space for the cache"} <= {c.name for c in report.checks}
    assert json.loads(done.stdout)["checks"][0]["name"] == "QEMU"


def test_text_names_each_check_and_its_remedy() -> None:
    done = CliRunner().invoke(doctor, ["--qemu", "no-such-qemu"])
    assert "missing QEMU: no-such-qemu: no such program" in done.stdout
    assert "apt-get install qemu-system-x86" in done.stdout
