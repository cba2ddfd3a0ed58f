"""A mover of a Xen guest is killed, and ``--resume`` leaves exactly one live guest.

The toolstack is a stand-in, as in test_xen_move.py.
"""

from pathlib import Path

import pytest
from xen_moves import ALIVE, Hosts, killed_in, settled
from xen_stand_in import UUID

from isthmus.errors import LostError, UndecidedError
from isthmus.migration import xen_copies
from isthmus.migration.phases import Phase


@pytest.fixture
def hosts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Hosts:
    return Hosts(tmp_path, monkeypatch)


@pytest.mark.parametrize(
    "phase", ["prepared", "moving", "switched", "starting", "verifying", "committing"]
)
def test_a_killed_mover_leaves_one_guest_after_recovery(
    hosts: Hosts, tmp_path: Path, phase: str
) -> None:
    killed_in(phase, tmp_path)
    # xl at both ends finds its transport at an end, and acts for itself.
    settled(hosts)
    hosts.recover()
    assert hosts.record.final
    everywhere = [*hosts.intel.guests().items(), *hosts.amd.guests().items()]
    assert everywhere == [("web", "-b----")]


def test_a_killed_movers_guest_goes_on_although_the_destination_is_lost(
    hosts: Hosts, tmp_path: Path
) -> None:
    killed_in("moving", tmp_path)
    settled(hosts)
    hosts.amd.does("vanish")
    assert hosts.recover().phase is Phase.ROLLED_BACK
    assert "no route" in hosts.record.error
    assert hosts.intel.guests() == ALIVE


def test_a_mover_killed_while_it_rolled_back_does_not_leave_the_dead_copy(
    hosts: Hosts, tmp_path: Path
) -> None:
    """The guest spins at the destination, which its state does not tell."""
    hosts.amd.does("spin")
    killed_in("rolling-back", tmp_path)
    settled(hosts)
    assert hosts.amd.guests() == {"web": "r-----"}
    assert hosts.recover().phase is Phase.ROLLED_BACK
    assert hosts.intel.guests() == ALIVE
    assert not hosts.amd.guests()


def test_recovery_verifies_before_it_gives_the_source_up(hosts: Hosts, tmp_path: Path) -> None:
    hosts.amd.does("spin")
    killed_in("verifying", tmp_path)
    settled(hosts)
    record = hosts.recover()
    assert record.phase is Phase.ROLLED_BACK
    assert "is never idle" in record.error
    assert hosts.intel.guests() == ALIVE
    assert not hosts.amd.guests()


def test_recovery_leaves_a_dead_guest_with_a_disk_to_the_operator(
    hosts: Hosts, tmp_path: Path
) -> None:
    hosts.amd.does("spin")
    (hosts.intel.folder / "disks").write_text('[{"vdev": "xvda"}]')
    killed_in("verifying", tmp_path)
    settled(hosts)
    for _ in range(2):
        with pytest.raises(UndecidedError, match="may have written to its disk"):
            hosts.recover()
        assert hosts.intel.guests() == {"web--migratedaway": "---ss-"}
    assert hosts.recover("source").phase is Phase.ROLLED_BACK
    assert hosts.intel.guests() == ALIVE


@pytest.mark.parametrize(("use", "phase"), [("source", "committing"), ("destination", "moving")])
def test_the_operator_cannot_choose_a_copy_that_is_not_there(
    hosts: Hosts, tmp_path: Path, use: str, phase: str
) -> None:
    killed_in(phase, tmp_path)
    settled(hosts)
    if use == "source":
        (hosts.intel.folder / "guest-web--migratedaway").unlink()
    before = hosts.intel.guests(), hosts.amd.guests()
    with pytest.raises(UndecidedError, match=f"the {use} has no copy that could go on"):
        hosts.recover(use)
    assert (hosts.intel.guests(), hosts.amd.guests()) == before
    hosts.recover()
    assert hosts.record.final


def test_a_guest_that_is_gone_from_both_hosts_leaves_no_record_open(
    hosts: Hosts, tmp_path: Path
) -> None:
    """It was switched off after its mover had been killed, say: its name is free again."""
    killed_in("verifying", tmp_path)
    settled(hosts)
    for each in (hosts.intel.folder, hosts.amd.folder):
        for path in each.glob("guest-*"):
            path.unlink()
    with pytest.raises(LostError, match="neither host has it"):
        hosts.recover()
    assert hosts.record.phase is Phase.LOST


def test_an_incoming_copy_is_kept_where_the_source_is_gone(hosts: Hosts, tmp_path: Path) -> None:
    """It may be all that is left of the guest."""
    killed_in("verifying", tmp_path)
    settled(hosts)
    for path in hosts.intel.folder.glob("guest-*"):
        path.unlink()
    (hosts.amd.folder / "guest-web").rename(hosts.amd.folder / "guest-web--incoming")
    before = hosts.amd.guests()
    with pytest.raises(UndecidedError):
        hosts.recover()
    assert hosts.amd.guests() == before
    assert not hosts.record.final


@pytest.mark.parametrize("use", ["source", "destination"])
def test_of_two_copies_the_one_that_was_not_chosen_ends_first(
    hosts: Hosts, tmp_path: Path, use: str
) -> None:
    """Somebody has let the source's copy go on although the other runs."""
    killed_in("committing", tmp_path)
    settled(hosts)
    (hosts.intel.folder / "guest-web--migratedaway").rename(hosts.intel.folder / "guest-web")
    hosts.intel.start()
    with pytest.raises(UndecidedError, match="the source runs although the destination"):
        hosts.recover()
    record = hosts.recover(use)
    assert record.phase is (Phase.ROLLED_BACK if use == "source" else Phase.COMMITTED)
    assert (hosts.intel.guests(), hosts.amd.guests()) == (
        (ALIVE, {}) if use == "source" else ({}, ALIVE)
    )


def test_a_guest_that_was_given_the_name_since_is_left_alone(hosts: Hosts, tmp_path: Path) -> None:
    killed_in("moving", tmp_path)
    settled(hosts)
    hosts.amd.start(uuid=UUID[::-1])
    assert hosts.recover().phase is Phase.ROLLED_BACK
    assert hosts.intel.guests() == ALIVE
    assert hosts.amd.guests() == ALIVE, "another guest"


@pytest.mark.parametrize("name", ["(null)", "renamed"])
def test_a_copy_under_another_name_is_not_taken_for_gone(
    hosts: Hosts, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setattr(xen_copies, "TELLING_S", 1.0)
    killed_in("verifying", tmp_path)
    settled(hosts)
    (hosts.amd.folder / "guest-web").rename(hosts.amd.folder / f"guest-{name}")
    with pytest.raises(UndecidedError, match="may be running"):
        hosts.recover()
    assert hosts.intel.guests() == {"web--migratedaway": "---ss-"}
