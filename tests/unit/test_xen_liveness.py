"""A guest that died, or spins without a word, is told from one that lives."""

import pytest

from isthmus.errors import HypervisorError
from isthmus.hypervisor.xen.host import Domain
from isthmus.hypervisor.xen.liveness import SAMPLES, Look, dead, look_from, stuck

SAID = """\
Name                                        ID   Mem VCPUs\tState\tTime(s)
Domain-0                                     0   560     1     r-----      16.2
web                                          3    96     2     -b----       3.1
---
rip: ffffffff81a5f3aa
rip: e033:ffffffff81a5f3bb pvclock_clocksource_read+0x10
---
isthmus1 5 beat n=3
"""


def looks(state: str, *places: int) -> list[Look]:
    domain = Domain(name="web", number=3, state=state, time_s=1.0)
    return [
        Look(domain=domain, positions=(places[n % len(places)],), console="")
        for n in range(SAMPLES)
    ]


def test_a_look_is_read() -> None:
    one = look_from(SAID, "web", 3)
    assert one.domain is not None
    assert one.domain.number == 3
    assert one.positions == (0xFFFFFFFF81A5F3AA, 0xFFFFFFFF81A5F3BB)
    assert one.console == "isthmus1 5 beat n=3\n"
    assert not dead(one)


def test_a_guest_that_is_not_listed_is_gone() -> None:
    assert dead(look_from(SAID, "other", 3)) == "the guest is gone"


def test_a_guest_that_was_started_anew_is_not_the_one_that_came() -> None:
    assert dead(look_from(SAID, "web", 2)) == "the guest is gone"


def test_a_listing_that_tells_nothing_is_no_word_of_a_death() -> None:
    """A tool of dom0 that died (status 139 in the lab) printed nothing."""
    with pytest.raises(HypervisorError, match="does not tell"):
        look_from("---\n---\n", "web", 3)


def test_a_crash_is_told_by_its_state_and_by_its_console() -> None:
    assert dead(looks("---sc-", 0)[0]) == "the guest has crashed"
    panic = "[   12.1] Kernel panic - not syncing: Attempted to kill init! exitcode=0x00000004\n"
    assert "panic" in dead(looks("-b----", 0)[0].replace(console=panic)).lower()


def test_a_vcpu_that_spins_is_stuck_and_one_that_waits_is_not() -> None:
    assert "0xffffffff81000010" in stuck(looks("r-----", 0xFFFFFFFF81000010, 0xFFFFFFFF81000018))
    assert not stuck(looks("-b----", 0xFFFFFFFF81000010))
    assert not stuck(looks("r-----", 0xFFFFFFFF81000010, 0xFFFFFFFF81234567))
    assert not stuck(looks("r-----", 0xFFFFFFFF81000010)[1:])
    unasked = looks("r-----", 0xFFFFFFFF81000010)[0].replace(positions=())
    assert stuck([unasked, *looks("r-----", 0xFFFFFFFF81000010)])
