"""XAPI's decisions about CPUs, as its source has them, and what they mean for pools and guests."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from xapi_lab import cpu, words

from isthmus.errors import InputError
from isthmus.hypervisor.xapi.compatibility import (
    BELOW_LEVEL,
    FEATURES_MISSING,
    FEATURES_UNKNOWN,
    MAKERS_DIFFER,
    demand,
    given_up,
    host_cpu,
    joining,
    level_of,
    lowering,
    moving,
    stated_level,
)
from isthmus.hypervisor.xapi.featureset import (
    Words,
    common,
    features,
    missing,
    names,
    parse,
    written,
)

SETS = st.lists(st.integers(0, 0xFFFFFFFF), max_size=20).map(tuple)
SKY, OLD, ROME = (
    host_cpu(name, cpu(model))
    for name, model in [("sky", "Skylake-Server"), ("old", "Haswell"), ("rome", "EPYC-Rome")]
)


def flags(model: str, vendor: str = "GenuineIntel") -> dict[str, str]:
    return {"vendor": vendor, "features": written(words(model))}


# --- featuresets: ocaml/libs/cpuid/cpuid.ml and its tests (ocaml/xenopsd/test/test_cpuid.ml) -----


@pytest.mark.parametrize(
    ("text", "expected"),
    [("00000000-00000002-0000007b", (0, 2, 123)), ("00000000", (0,)), ("", ())],
)
def test_a_featureset_is_read_as_xapi_writes_it(text: str, expected: Words) -> None:
    assert parse(text, where="x") == expected
    assert written(expected) == text


@pytest.mark.parametrize(
    "text", ["-", "123", "0000000g", "00000000-", "00000000:00000000", "\u0660" * 8]
)
def test_what_is_no_featureset(text: str) -> None:
    with pytest.raises(InputError, match="no featureset"):
        parse(text, where="host")


@given(SETS)
def test_writing_and_reading_are_inverse(words_: Words) -> None:
    assert parse(written(words_), where="x") == words_


@given(SETS, SETS)
def test_what_is_common_is_missing_on_neither(one: Words, other: Words) -> None:
    both = common([one, other])
    if one and other:
        assert not any(missing(both, one))
        assert not any(missing(both, other))
    else:
        assert both == (one or other), "an unknown one takes nothing away"


@given(SETS, SETS)
def test_what_is_missing_and_what_is_offered_make_up_what_is_wanted(
    wanted: Words, offered: Words
) -> None:
    lacks = missing(wanted, offered)
    for number, word in enumerate(wanted):
        had = offered[number] if number < len(offered) else 0
        assert word == lacks[number] | (word & had)


def test_words_beyond_those_of_an_older_host_are_missing() -> None:
    """XAPI's own fallback cuts them off, and lets such a guest through."""
    assert missing((1, 1), (1,)) == (0, 1)


@given(SETS)
def test_every_bit_has_a_name_or_a_place(words_: Words) -> None:
    assert all(name for name in names(words_))
    assert features(words_) <= set(names(words_))


# --- the pool's level ---------------------------------------------------------------------------


def test_the_level_is_what_all_hosts_have() -> None:
    level = level_of([SKY, OLD])
    assert level.vendor == "GenuineIntel"
    assert features(level.hvm) == features(SKY.hvm) & features(OLD.hvm)


def test_the_oldest_host_lowers_it_and_the_others_give_up() -> None:
    (one,) = lowering([SKY, SKY.replace(name="sky2"), OLD])
    assert one.host == "old"
    assert "avx512f" in one.features
    assert "avx512f" in given_up(SKY, level_of([SKY, OLD]))
    assert given_up(OLD, level_of([OLD])) == ()


def test_two_equal_old_hosts_lower_it_together_and_none_alone() -> None:
    assert lowering([SKY, OLD, OLD.replace(name="old2")]) == ()


def test_a_pool_of_one_host_is_lowered_by_nobody() -> None:
    assert lowering([OLD]) == ()


def test_older_xapi_states_no_features_to_start_with() -> None:
    """Before the keys features_*_host, guests were started with features_hvm and features_pv."""
    info = {key: value for key, value in cpu("Haswell").items() if not key.endswith("_host")}
    host = host_cpu("x", info)
    assert host.start_hvm == host.hvm == words("Haswell")
    assert stated_level(info, where="pool").hvm == words("Haswell")


# --- who may go where: assert_vm_is_compatible ---------------------------------------------------


def test_a_guest_goes_where_its_features_are() -> None:
    assert moving(demand(flags("Haswell"), "hvm", where="g"), SKY) == ()


def test_a_guest_does_not_go_where_one_is_missing() -> None:
    (obstacle,) = moving(demand(flags("Skylake-Server"), "hvm", where="g"), OLD)
    assert obstacle.rule == FEATURES_MISSING
    assert "avx512f" in obstacle.features


def test_a_guest_does_not_go_to_the_other_maker() -> None:
    found = moving(demand(flags("Haswell"), "hvm", where="g"), ROME)
    assert MAKERS_DIFFER in {obstacle.rule for obstacle in found}


@pytest.mark.parametrize(("kind", "blocked"), [("pv", True), ("hvm", False), ("pvh", False)])
def test_a_pv_guest_is_compared_with_what_pv_guests_are_offered(kind: str, blocked: bool) -> None:
    host = SKY.replace(pv=(0,) * len(SKY.pv))
    assert bool(moving(demand(flags("Haswell"), kind, where="g"), host)) is blocked


@pytest.mark.parametrize("guest", [{}, {"vendor": "GenuineIntel"}])
def test_what_is_not_known_is_refused(guest: dict[str, str]) -> None:
    found = moving(demand(guest, "hvm", where="g"), SKY)
    assert {obstacle.rule for obstacle in found} == {FEATURES_UNKNOWN}


def test_a_guest_above_its_new_pools_level_is_warned_of() -> None:
    guest = demand(flags("Skylake-Server"), "hvm", where="g")
    (obstacle,) = moving(guest, SKY, into=level_of([SKY, OLD]))
    assert obstacle.rule == BELOW_LEVEL
    assert not obstacle.refuses
    assert moving(guest, SKY, into=level_of([SKY])) == ()


# --- joining a pool: assert_hosts_homogeneous -----------------------------------------------------


def test_the_other_maker_does_not_join() -> None:
    (obstacle,) = joining(ROME, level_of([SKY])).obstacles
    assert "HOSTS_NOT_HOMOGENEOUS" in obstacle.text


def test_an_older_host_joins_and_takes_features_from_new_guests() -> None:
    verdict = joining(OLD, level_of([SKY]))
    assert verdict.obstacles == ()
    assert "avx512f" in verdict.loses
    assert joining(SKY, level_of([OLD])).loses == ()
