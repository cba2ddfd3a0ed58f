"""What an earlier migration that has not ended keeps from beginning."""

from pathlib import Path

import pytest

from isthmus.errors import IsthmusError
from isthmus.hypervisor.qemu.guests import GuestStore
from isthmus.migration.hosts import require_at_rest
from isthmus.migration.phases import Phase
from isthmus.migration.record import Journal, Plan, Side


def begun(store: GuestStore, platform: str = "") -> Journal:
    plan = Plan(
        id=f"m{platform}", guest="web", source=Side(), destination=Side(), channel="",
        platform=platform,
    )  # fmt: skip
    journal = Journal.create(store.journals, plan)
    journal.enter(Phase.PREPARING)
    return journal


@pytest.fixture
def store(tmp_path: Path) -> GuestStore:
    return GuestStore(tmp_path / "state", tmp_path / "run")


def test_a_guest_whose_move_was_cut_short_is_not_moved_again(store: GuestStore) -> None:
    begun(store).close()
    with pytest.raises(IsthmusError, match="web: migration m was cut short"):
        require_at_rest(store, "web")
    require_at_rest(store, "other")


def test_a_domain_of_the_same_name_is_another_guest(store: GuestStore) -> None:
    begun(store, "libvirt").close()
    require_at_rest(store, "web")


def test_what_was_put_right_is_not_where_it_was(store: GuestStore) -> None:
    journal = begun(store)
    journal.note(Phase.ROLLING_BACK, "why")
    journal.note(Phase.COMMITTED)  # no way leads there: it is not written
    assert journal.phase is Phase.ROLLING_BACK
    assert journal.record.reached is Phase.PREPARING
    journal.note(Phase.ROLLED_BACK)
    journal.close()
    require_at_rest(store, "web")
