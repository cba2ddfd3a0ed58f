"""The selftest of the KVM lab, as far as it needs no host: what there is, and how it is told."""

from unittest.mock import Mock

import pytest
from click.testing import CliRunner

from isthmus.cli.main import cli
from isthmus.errors import HypervisorError, InputError
from isthmus.qualification.kvm.cases import table
from isthmus.qualification.kvm.cases.bench import Bench
from isthmus.qualification.kvm.cases.case import (
    Case,
    Outcome,
    Part,
    Verdict,
    explained,
    last_lines,
    part,
)
from isthmus.qualification.kvm.cases.failure_1_hypercalls import caller_that_died
from isthmus.qualification.kvm.cases.registry import all_cases, chosen
from isthmus.qualification.kvm.cases.run import Ground, Report, _try, needed_hosts
from isthmus.qualification.kvm.host import host_models


def report(*parts: Part) -> Report:
    host = Ground(
        name="epyc", kvm="kvm_amd", kernel="6.1.0", qemu="7.2.22 (Debian | 1)", cpu="EPYC,+svm",
        emulator="QEMU 7.2.22", seconds=3.2,
    )  # fmt: skip
    outcome = Outcome(number=2, title="masked", parts=parts, seconds=12.0)
    return Report(
        hosts=(host,), guest_kernel="6.1.0-cloud", at=0.0, seconds=61.0, outcomes=(outcome,)
    )


def test_each_failure_has_one_case_and_hosts_that_there_are() -> None:
    cases = all_cases()
    numbers = [case.number for case in cases]
    assert numbers == sorted(set(numbers))
    assert set(needed_hosts(cases)) <= set(host_models())


def test_cases_are_chosen_by_number() -> None:
    first = all_cases()[0]
    assert chosen([first.number]) == (first,)
    assert chosen([]) == all_cases()
    with pytest.raises(InputError, match="99: no failure"):
        chosen([first.number, 99])


def test_the_page_tells_versions_verdicts_and_consoles_and_breaks_no_table() -> None:
    seen = report(
        part("moved", "dead", "dead | by\nopcode", holds=True, console="``` oops"),
        explained("on Bochs", "moved", "it has no PKU"),
    )
    page = table.page(seen)
    assert "on 1970-01-01" in page
    assert "7.2.22 (Debian \\| 1)" in page
    assert "| 2. masked | moved | dead | dead \\| by opcode | as expected |" in page
    assert "|  | on Bochs | moved | it has no PKU | explained |" in page
    assert page.count("```") == 2
    assert seen.as_expected


def test_a_page_with_marks_gets_the_table_between_them_again_and_again() -> None:
    text = f"# Mine\n\n{table.BEGIN}\nold\n{table.END}\n\nmore\n"
    first = table.rewritten(text, report(part("moved", "dead", "alive", holds=False)))
    again = table.rewritten(first, report(part("moved", "dead", "dead", holds=True)))
    assert again.startswith(f"# Mine\n\n{table.BEGIN}\nOf the run on 1970-01-01 (1 min):\n")
    assert again.endswith(f"| as expected |\n{table.END}\n\nmore\n")
    assert again.count("| 2. masked | moved |") == 1
    assert "alive" not in again
    assert "old" not in again


def test_somebody_elses_page_is_not_overwritten() -> None:
    assert table.takes("")
    assert table.takes(table.page(report(part("moved", "dead", "dead", holds=True))))
    assert table.takes(f"x{table.BEGIN}{table.END}")
    assert not table.takes("# Mine")
    assert not table.takes(f"x{table.END}{table.BEGIN}")


def test_what_goes_otherwise_is_told_and_counted() -> None:
    seen = report(part("moved", "alive", "dead", holds=False))
    assert not seen.as_expected
    assert "0 as expected, 1 NOT AS EXPECTED, 0 explained; 61 s" in table.lines(seen)


def test_of_a_console_the_telling_lines_are_kept() -> None:
    text = "\n".join(["boot"] * 50 + ["BUG: \x1b[31mhere", "", "RIP: x"])
    assert last_lines(text, "BUG").splitlines() == ["BUG: [31mhere", "RIP: x"]
    assert len(last_lines(text).splitlines()) == 24


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--only", "x"], "not numbers"),
        (["--only", "99"], "no failure of that number"),
        (["--write", "./nowhere/page.md"], "nowhere: no such folder"),
    ],
)
def test_bad_input_is_told_before_anything_runs(words: list[str], told: str) -> None:
    done = CliRunner().invoke(cli, ["lab", "kvm", "selftest", *words])
    assert done.exit_code != 0
    assert told in str(done.exception)


async def test_a_case_that_breaks_off_has_gone_otherwise() -> None:
    async def run(_: Bench) -> list[Part]:
        raise HypervisorError("QEMU did not open its monitor")

    said: list[str] = []
    outcome = await _try(Case(7, "clocks", (), run), Mock(), said.append)
    assert not outcome.as_expected
    assert outcome.parts[0].seen == "QEMU did not open its monitor"
    assert said[0] == "failure 7: clocks"


def test_the_list_runs_nothing() -> None:
    done = CliRunner().invoke(cli, ["lab", "kvm", "selftest", "--list"])
    assert done.exit_code == 0
    assert f"{all_cases()[0].number}  {all_cases()[0].title}" in done.output


def test_a_verdict_is_one_of_three_words() -> None:
    assert [str(one) for one in Verdict] == ["as expected", "NOT AS EXPECTED", "explained"]


def test_the_function_that_called_the_hypervisor_is_known_by_the_faults_address() -> None:
    told = "contend has kvm_kick_cpu at ffffffffa0472520\ncontend has other at ffffffffa0473000\n"
    fault = "[   26.6] BUG: unable to handle page fault for address: {}\n[   26.7] #PF: supervisor"
    assert caller_that_died(told + fault.format("ffffffffa0472543")) == "kvm_kick_cpu"
    assert caller_that_died(told + fault.format("ffffffffa0472000")) == ""
    assert caller_that_died(told + fault.format("0000000000000010")) == ""
    assert caller_that_died(fault.format("ffffffffa0472543")) == ""
    assert caller_that_died(told) == ""
