"""The selftest of the lab: every failure of a move between makers, reproduced and cured."""

import json
from collections.abc import Iterator

import pytest
from kvm_cases import need_lab_hosts
from kvm_lab import Lab, lab_of

from isthmus.qualification.kvm.cases.registry import all_cases

pytestmark = [pytest.mark.lab, pytest.mark.slow, pytest.mark.timeout(3600)]

CASES = all_cases()


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    need_lab_hosts(intel=True)
    hosts = dict.fromkeys(f"kvm:{name}" for case in CASES for name in case.hosts)
    with lab_of(*hosts) as up:
        yield up


@pytest.mark.parametrize("number", [case.number for case in CASES])
def test_it_goes_as_expected(lab: Lab, number: int) -> None:
    """Nothing of a case is waited for without a deadline, so this ends."""
    said = lab.isthmus(
        "lab", "kvm", "selftest", "--only", str(number), "--json", patience_s=3000
    )  # fmt: skip
    (outcome,) = json.loads(said)["outcomes"]
    assert {part["verdict"] for part in outcome["parts"]} <= {"as expected", "explained"}
