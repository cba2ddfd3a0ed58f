"""``isthmus cpu`` and ``isthmus check``, run as users run them."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from isthmus.cli.cpu import compared, spelled
from isthmus.cpu.features import FEATURES
from isthmus.cpu.readers.recognise import read_cpu
from isthmus.divergence.examples import reference_cpus
from isthmus.values import to_json

RUN = [sys.executable, "-c", "from isthmus.cli.main import main; main()"]
DUMP = """\
CPU 0:
   0x00000000 0x00: eax=0x00000001 ebx=0x68747541 ecx=0x444d4163 edx=0x69746e65
   0x00000001 0x00: eax=0x00a00f11 ebx=0x00000800 ecx=0x00080001 edx=0x07808111
"""


def isthmus(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*RUN, *map(str, arguments)], capture_output=True, text=True, timeout=60, check=False
    )


@pytest.fixture
def dump(tmp_path: Path) -> Path:
    path = tmp_path / "milan.txt"
    path.write_text(DUMP)
    return path


def saved(name: str, folder: Path) -> Path:
    path = folder / f"{name}.json"
    path.write_bytes(to_json(reference_cpus()[name]))
    return path


def test_show_prints_one_line_of_json_for_each_file_and_goes_on(dump: Path, tmp_path: Path) -> None:
    broken = tmp_path / "broken"
    broken.write_text("no dump\n")
    done = isthmus("cpu", "show", "--json", "--names", "libvirt", dump, broken, dump)
    assert done.returncode == 1
    first, second, third = map(json.loads, done.stdout.splitlines())
    assert first == third
    assert first["ok"] is True
    assert first["file"] == str(dump)
    assert (first["vendor"], first["family"], first["model"], first["stepping"]) == (
        "AuthenticAMD", 25, 1, 1,
    )  # fmt: skip
    assert "Milan" in first["codename"]
    # 0x07808111: fpu tsc cx8 cmov mmx fxsr sse sse2; 0x00080001: sse3 (pni) and sse4.1
    assert set(first["features"]) == {
        "fpu", "tsc", "cx8", "cmov", "mmx", "fxsr", "sse", "sse2", "pni", "sse4.1",
    }  # fmt: skip
    assert (second["file"], second["ok"]) == (str(broken), False)
    assert "no known format" in second["error"]
    assert done.stderr == ""


@pytest.mark.parametrize("names", ["qemu", "libvirt", "linux", "xen"])
def test_names_are_those_of_the_other_software_only(names: str) -> None:
    told = spelled(frozenset(FEATURES), names)
    theirs = {getattr(feature, names) for feature in FEATURES.values()} - {None}
    assert set(told) == theirs
    assert len(theirs) < len(FEATURES)


def test_diff_tells_what_an_update_took_away(dump: Path, tmp_path: Path) -> None:
    after = tmp_path / "after.txt"
    after.write_text(DUMP.replace("ecx=0x00080001", "ecx=0x00000001"))
    done = isthmus("cpu", "diff", dump, after)
    assert done.returncode == 1
    assert "- sse4.1 (instruction)" in done.stdout
    assert isthmus("cpu", "diff", dump, dump).returncode == 0
    drift = compared(read_cpu(after), read_cpu(dump), "a", "b")
    assert (drift.gained, drift.lost, drift.changed) == (("sse4.1",), (), {})


def test_check_refuses_and_says_which_rule(tmp_path: Path) -> None:
    amd, intel = saved("EPYC", tmp_path), saved("Skylake-Server", tmp_path)
    done = isthmus("check", amd, "--to", intel, "--memory", "512")
    assert done.returncode == 3
    assert "EPYC to Skylake-Server: refused" in done.stdout
    assert "sse4a [sse4a]" in done.stdout
    answer = json.loads(isthmus("check", amd, "--to", intel, "--to", amd, "--json").stdout)
    refused, alike = answer
    assert "sse4a" in {finding["subject"] for finding in refused["blocking"]}
    assert alike["blocking"] == []


def test_check_predicts_the_death_by_what_is_hidden_and_used(tmp_path: Path) -> None:
    """Under KVM a feature hidden in CPUID runs all the same, until the guest is elsewhere."""
    old, new = saved("Penryn", tmp_path), saved("EPYC", tmp_path)
    move = ("check", old, "--on", new, "--to", old, "--hypervisor", "kvm", "--json")

    def rules(*more: str) -> dict[str, set[str]]:
        found: dict[str, set[str]] = {}
        for finding in json.loads(isthmus(*move, *more).stdout)[0]["findings"]:
            found.setdefault(finding["rule"], set()).add(
                f"{finding['severity']}:{finding['subject']}"
            )
        return found

    unscanned = rules()
    assert unscanned["hidden-still-runs"] == {"warn:hidden"}
    assert "hidden-and-used" not in unscanned
    assert rules("--uses", "sse4a,popcnt")["hidden-and-used"] == {"refuse:sse4a", "refuse:popcnt"}
    assert "hidden-and-used" not in rules("--uses", "sse4.1")
    assert "hidden-and-used" not in rules("--uses", "sse4a", "--hypervisor", "tcg")


def test_check_accepts_a_risk_by_name(tmp_path: Path) -> None:
    amd, intel = saved("EPYC", tmp_path), saved("Skylake-Server", tmp_path)
    plain = json.loads(isthmus("check", amd, "--to", intel, "--json").stdout)[0]
    rules = {finding["rule"] for finding in plain["blocking"]}
    risks = [word for rule in sorted(rules) for word in ("--accept-risk", rule)]
    assert isthmus("check", amd, "--to", intel, *risks).returncode == 0
    assert isthmus("check", amd, "--to", intel, *risks[2:]).returncode == 3


def test_the_matrix_judges_every_ordered_pair(tmp_path: Path) -> None:
    paths = [saved(name, tmp_path) for name in ("Penryn", "EPYC", "EPYC-Milan")]
    done = isthmus("check", "--matrix", "--json", *paths)
    cells = [json.loads(line) for line in done.stdout.splitlines()]
    assert len({(cell["source"], cell["destination"]) for cell in cells}) == 6
    refused = {(cell["source"], cell["destination"]) for cell in cells if cell["blocking"]}
    assert ("EPYC", "Penryn") in refused
    assert done.returncode == 3
    assert all((cell["verdict"] == "refused") == bool(cell["blocking"]) for cell in cells)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["check", "./a.json"], "name one GUEST"),
        (["check", "./nowhere.json", "--to", "./a.json"], "nowhere.json"),
        (["check", "--matrix", "a.json", "--to", "b.json"], "exclude"),
        (["check", "a.json", "--to", "b.json", "--uses", "flux"], "flux: no known CPU feature"),
        (["cpu", "diff", "./nowhere", "./nowhere"], "nowhere"),
    ],
)
def test_bad_input_is_one_line(arguments: list[str], message: str) -> None:
    done = isthmus(*arguments)
    assert done.returncode == 2
    assert message in done.stderr
    assert "Traceback" not in done.stderr


def test_targets_come_best_first_with_reasons(tmp_path: Path) -> None:
    guest, twin, old, intel = (
        saved(name, tmp_path) for name in ("EPYC", "EPYC-Rome", "Penryn", "Skylake-Server")
    )
    done = isthmus("targets", guest, old, intel, twin, "--memory", "512", "--json")
    assert done.returncode == 0
    found = json.loads(done.stdout)
    assert [(target["host"], target["takes"]) for target in found] == [
        ("EPYC-Rome", True), ("Skylake-Server", False), ("Penryn", False),
    ]  # fmt: skip
    assert any("sse4a" in reason for reason in found[1]["reasons"])
    assert isthmus("targets", guest, old).returncode == 3


def test_what_the_hypervisor_cannot_break_is_not_refused(tmp_path: Path) -> None:
    """TCG keeps one layout of the extended state, whatever CPU it plays; KVM gives the host's."""
    amd, intel = saved("EPYC-Milan", tmp_path), saved("Ice-Lake-SP", tmp_path)

    def rules(hypervisor: str) -> set[str]:
        done = isthmus("check", amd, "--to", intel, "--hypervisor", hypervisor, "--json")
        return {finding["rule"] for finding in json.loads(done.stdout)[0]["blocking"]}

    assert "xsave-may-move" in rules("kvm")
    assert "xsave-may-move" not in rules("tcg")
