"""Cases of the selftest as tests, on lab hosts of the test's own."""

import asyncio
import contextlib
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from isthmus.hypervisor.qemu import process
from isthmus.hypervisor.qemu.binary import find_qemu
from isthmus.places import cache_folder
from isthmus.qualification.kvm.bochs import SUITES
from isthmus.qualification.kvm.cases.case import Case, Outcome
from isthmus.qualification.kvm.cases.run import selftest
from isthmus.qualification.lab import packages


def need_lab_hosts(*, intel: bool = False) -> None:
    """Skip where the package source has no emulator for them."""
    if packages.find("qemu-system-x86") is None:
        pytest.skip("apt's lists have no package qemu-system-x86, which lab hosts are made of")
    newer = (packages.of_suite(suite, cache_folder()) for suite in SUITES)
    if intel and packages.find("bochs") is None and not any(newer):
        pytest.skip("no package bochs is to be had here, which emulates the Intel host")


def outcome_of(case: Case) -> Outcome:
    """Run a case; afterwards nothing of it is left.  What was seen is in a failure's message."""
    with _own_folders() as run:
        report = asyncio.run(selftest((case,), find_qemu(), run=run, cache=cache_folder()))
        left = process.mentioning(run)
        for each in left:
            each.kill()
        assert not left, "the selftest leaves no process behind"
    (outcome,) = report.outcomes
    seen = "\n".join(f"{part.tried}: {part.seen}\n{part.console}" for part in outcome.parts)
    assert outcome.as_expected, seen
    return outcome


@contextlib.contextmanager
def _own_folders() -> Iterator[Path]:
    before = os.environ.get("ISTHMUS_RUN")
    with tempfile.TemporaryDirectory(prefix="ic-") as name:
        os.environ["ISTHMUS_RUN"] = name
        try:
            yield Path(name)
        finally:
            if before is None:
                del os.environ["ISTHMUS_RUN"]
            else:
                os.environ["ISTHMUS_RUN"] = before
