"""32-bit programs by every entry, through both moves, under real KVM."""

import pytest
from kvm_cases import need_lab_hosts, outcome_of

from isthmus.qualification.kvm.cases import failure_3_entries as entries

pytestmark = [pytest.mark.lab, pytest.mark.slow, pytest.mark.timeout(2400)]


def test_each_entry_serves_or_fails_as_foretold() -> None:
    need_lab_hosts(intel=True)
    outcome_of(entries.CASE)
