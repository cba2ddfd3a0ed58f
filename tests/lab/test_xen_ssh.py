"""Real moves over real ssh, and what becomes of a guest when something ends in mid-move.

One lab of two hosts, each with a small ssh server.  After each fault exactly one copy of the guest
runs, and the record tells what happened.
"""

import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
import xen_python
from xen_lab import Lab, lab_of
from xen_ssh import Doors, Mover, host_of

from isthmus.errors import EnvironmentLackError
from isthmus.migration.phases import MAY_HAVE_RUN, Phase
from isthmus.migration.record import MigrationRecord, records
from isthmus.places import cache_folder
from isthmus.qualification.xen.guest import reports
from isthmus.qualification.xen.host import image

pytestmark = [pytest.mark.lab, pytest.mark.slow, pytest.mark.timeout(7200)]

AMD, INTEL = "opteron3", "nehalem"
GUEST = "byssh"


class Site:
    """Two hosts with the guest on one of them."""

    def __init__(self, lab: Lab, doors: Doors) -> None:
        self.lab = lab
        self.doors = doors
        self.before = 0

    def home(self) -> str:
        """Where the guest is, of which there is only this copy; it is started if there is none."""
        found = {host: self.lab.domains(host) for host in (AMD, INTEL)}
        there = [host for host, names in found.items() if names]
        if there:
            assert found[there[0]] == {GUEST}, found
            assert len(there) == 1, found
            return there[0]
        self.lab.isthmus("lab", "xen", "start", GUEST, "--host", INTEL, "--level-with", AMD)
        return INTEL

    def mover(self, home: str) -> Mover:
        """A move of the guest to the other host, begun."""
        self.before = len(self._records())
        return Mover(self.lab, GUEST, home, AMD if home == INTEL else INTEL)

    def record(self) -> MigrationRecord:
        """The record of the latest move."""
        return self._records()[-1]

    def may_have_run(self) -> bool:
        """Whether the latest move has come so far that the guest may run at its destination."""
        latest = self._records()[self.before :]
        return bool(latest) and latest[0].phase in MAY_HAVE_RUN

    def runs_there(self) -> bool:
        """Whether the latest move watches the guest at its destination."""
        latest = self._records()[self.before :]
        return bool(latest) and latest[0].phase is Phase.VERIFYING

    def _records(self) -> list[MigrationRecord]:
        return [record for _, record in records(self.lab.folder / "state" / "migrations")]

    def lives_on(self, host: str) -> None:
        """The guest runs on that host and reports, and there is no other copy."""
        assert self.home() == host
        self.lab.grows(GUEST, host, len(reports(self.lab.console(GUEST, host))))


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    doors = Doors(tmp_path_factory.mktemp("ssh"))
    try:
        live = image(cache=cache_folder())[1]
    except EnvironmentLackError as error:
        pytest.skip(str(error))
    if not live:
        pytest.skip("no source of Xen here: Debian's own hypervisor cannot move PV guests live")
    with lab_of(AMD, INTEL) as lab:
        for host in (AMD, INTEL):
            doors.open(lab, host)
        yield Site(lab, doors)


def test_a_guest_crosses_by_ssh(site: Site) -> None:
    home = site.home()
    mover = site.mover(home)
    assert mover.ended() == 0, mover.said()
    assert site.record().phase is Phase.COMMITTED
    site.lives_on(AMD if home == INTEL else INTEL)


@pytest.mark.parametrize("which", ["receiver", "stream", "answers"])
def test_an_ssh_that_is_killed_in_mid_move_leaves_the_guest_at_its_source(
    site: Site, which: str
) -> None:
    home = site.home()
    mover = site.mover(home)
    mover.until(mover.in_mid_move)
    mover.drop(which)
    assert mover.ended() == 4, mover.said()
    assert "the guest runs on its source" in mover.said()
    record = site.record()
    assert record.phase is Phase.ROLLED_BACK
    assert record.error, "it tells why"
    site.lives_on(home)


def test_a_mover_that_is_killed_in_mid_move_is_put_right_by_resume(site: Site) -> None:
    home = site.home()
    mover = site.mover(home)
    mover.until(mover.in_mid_move)
    mover.process.send_signal(signal.SIGKILL)
    assert mover.ended() == -signal.SIGKILL
    assert site.record().phase is Phase.MOVING
    said = site.lab.isthmus("migrate", "--resume")
    assert "rolled-back" in said
    record = site.record()
    assert record.phase is Phase.ROLLED_BACK
    assert "the process that moved the guest was killed" in record.error
    site.lives_on(home)


def test_a_source_whose_xl_has_given_up_goes_on_by_our_hand(site: Site, tmp_path: Path) -> None:
    """The operator chooses the source, whose copy nobody would wake any more."""
    home = site.home()
    xen_python.give(site.lab, home, xen_python.files(tmp_path))
    mover = site.mover(home)
    mover.until(site.may_have_run)
    mover.process.send_signal(signal.SIGKILL)
    assert mover.ended() == -signal.SIGKILL
    assert "rolled-back" in site.lab.isthmus("migrate", "--resume", "--use", "source")
    assert site.record().phase is Phase.ROLLED_BACK
    site.lives_on(home)
    # A guest that was resumed without xenstored's knowledge could not be moved any more.
    again = site.mover(home)
    assert again.ended() == 0, again.said()
    site.lives_on(AMD if home == INTEL else INTEL)


def test_a_mover_that_is_killed_while_it_watches_is_finished_by_resume(site: Site) -> None:
    """Recovery watches the guest once more before it gives the source's copy up."""
    home = site.home()
    mover = site.mover(home)
    mover.until(site.runs_there)
    mover.process.send_signal(signal.SIGKILL)
    assert mover.ended() == -signal.SIGKILL
    assert "committed" in site.lab.isthmus("migrate", "--resume")
    assert site.record().phase is Phase.COMMITTED
    site.lives_on(AMD if home == INTEL else INTEL)


def test_a_destination_that_dies_in_mid_move_leaves_the_guest_at_its_source(site: Site) -> None:
    home = site.home()
    away = AMD if home == INTEL else INTEL
    mover = site.mover(home)
    mover.until(mover.in_mid_move)
    host_of(site.lab, away).process.kill()
    assert mover.ended() == 4, mover.said()
    record = site.record()
    assert record.phase is Phase.ROLLED_BACK
    assert "when it comes back: xl destroy" in record.error
    site.lab.isthmus("lab", "xen", "up", away)
    site.doors.open(site.lab, away)
    site.lives_on(home)
