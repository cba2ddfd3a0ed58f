"""Boot parameters give a guest the defences of every host, and only where they do."""

import itertools

import pytest

from isthmus.divergence.evidence import GuestEvidence
from isthmus.divergence.examples import reference_cpus
from isthmus.divergence.hardening import harden
from isthmus.divergence.security import exposed

CPUS = reference_cpus()


def guest(name: str, words: str = "") -> GuestEvidence:
    return GuestEvidence(shown=CPUS[name], system="linux", kernel="6.12.117", command_line=words)


def test_an_amd_guest_needs_page_table_isolation_on_an_intel_host_with_meltdown() -> None:
    found = harden(guest("EPYC"), [CPUS["Skylake-Server"], CPUS["EPYC"]])
    (meltdown,) = (flaw for flaw in found.flaws if flaw.flaw == "meltdown")
    assert (meltdown.hosts, meltdown.parameters, meltdown.sure) == (
        ("Skylake-Server",), ("pti=on",), True,
    )  # fmt: skip
    assert "pti=on" in found.parameters


def test_a_guest_that_was_told_needs_nothing_more() -> None:
    host = CPUS["Skylake-Server"]
    first = harden(guest("EPYC"), [host])
    again = harden(guest("EPYC", " ".join(first.parameters)), [host])
    assert not {flaw.flaw for flaw in again.flaws} & {
        flaw.flaw for flaw in first.flaws if flaw.parameters
    }
    assert again.parameters == ()


@pytest.mark.parametrize(
    ("shown", "host"), list(itertools.product(["EPYC", "Penryn", "Icelake-Server"], CPUS))
)
def test_the_parameters_close_what_they_are_said_to_close(shown: str, host: str) -> None:
    found = harden(guest(shown), [CPUS[host]])
    told = guest(shown, " ".join(found.parameters))
    for flaw in found.flaws:
        if flaw.parameters:
            assert exposed(flaw.flaw, guest(shown), CPUS[host]) is not False
            assert exposed(flaw.flaw, told, CPUS[host]) is False
