"""Clock sources of two series of kernels through both moves, under real KVM."""

import pytest
from kvm_cases import need_lab_hosts, outcome_of

from isthmus.qualification.kvm.cases import failure_7_clocks as clocks

pytestmark = [pytest.mark.lab, pytest.mark.slow, pytest.mark.timeout(2400)]


def test_no_clock_goes_back() -> None:
    need_lab_hosts(intel=True)
    outcome_of(clocks.CASE)
