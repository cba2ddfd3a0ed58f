"""What levelling promises for every pool."""

from hypothesis import given
from hypothesis import strategies as st

from isthmus.baseline.fleet import level_fleet, pack
from isthmus.baseline.growth import growth
from isthmus.baseline.level import level
from isthmus.cpu.features import FEATURES, closure_violations
from isthmus.cpu.model import CpuModel, XsaveComponent
from isthmus.divergence.examples import reference_cpus

RESTRICTIONS = {name for name, feature in FEATURES.items() if feature.merge == "or"}

_components = st.builds(
    lambda number, offset: XsaveComponent(number=number, size=64, offset=offset),
    st.sampled_from([2, 5, 9]),
    st.sampled_from([576, 832]),
)
_hosts = st.builds(
    lambda features, **facts: CpuModel(source="test", features=frozenset(FEATURES) - features,
                                       **facts),
    # hosts that have almost everything, so that pools share much
    features=st.frozensets(st.sampled_from(sorted(FEATURES)), max_size=40),
    name=st.sampled_from(["a", "b", "c"]),
    vendor=st.sampled_from(["AuthenticAMD", "GenuineIntel", "HygonGenuine"]),
    family=st.integers(6, 25),
    model=st.integers(0, 255),
    stepping=st.integers(0, 15),
    level=st.sampled_from([5, 10, 13, 31]),
    xlevel=st.sampled_from([0x80000008, 0x8000001E, 0x80000021]),
    phys_bits=st.none() | st.integers(36, 52),
    xsave=st.lists(_components, max_size=2, unique_by=lambda c: c.number).map(tuple),
)  # fmt: skip
pools = st.lists(_hosts, min_size=1, max_size=4)


@given(pools)
def test_every_host_can_honour_it(pool: list[CpuModel]) -> None:
    features = level(pool).model.features
    assert not closure_violations(features)
    for host in pool:
        assert features - RESTRICTIONS <= host.features


@given(pools, st.randoms())
def test_order_does_not_matter(pool: list[CpuModel], random: object) -> None:
    shuffled = list(pool)
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    assert level(shuffled) == level(pool)


@given(pools)
def test_levelling_twice_changes_nothing(pool: list[CpuModel]) -> None:
    once = level(pool).model
    again = level([once]).model
    assert again == once.replace(name=again.name)
    with_it = level([*pool, once]).model
    assert with_it.features == once.features


@given(pools, _hosts)
def test_a_further_host_never_adds(pool: list[CpuModel], host: CpuModel) -> None:
    assert level([*pool, host]).model.features - RESTRICTIONS <= level(pool).model.features


@given(pools)
def test_losses_and_baseline_make_the_host(pool: list[CpuModel]) -> None:
    baseline = level(pool)
    for loss in baseline.losses:
        assert not set(loss.features) & baseline.model.features
    rebuilt = [frozenset(loss.features) for loss in baseline.losses]
    for host in pool:
        assert host.features - baseline.model.features in rebuilt


# What the rules between makers, of leaves and of XSAVE state take away is no part of maximality.
_REAL = [
    cpu.replace(name=name)
    for name, cpu in reference_cpus().items()
    if cpu.vendor in {"AuthenticAMD", "GenuineIntel"}
]


@given(st.lists(st.sampled_from(_REAL), min_size=1, max_size=6))
def test_the_baseline_of_real_cpus_is_sound_and_maximal(pool: list[CpuModel]) -> None:
    """No feature that all hosts have is missing, unless a rule took it and the reasons name it."""
    baseline = level(pool)
    features = baseline.model.features
    assert not closure_violations(features)
    common = frozenset.intersection(*(host.features for host in pool))
    assert features - RESTRICTIONS <= common
    told = {
        name.strip()
        for reason in baseline.reasons
        if reason.startswith("without ")
        for name in reason.removeprefix("without ").partition(":")[0].split(",")
    }
    ignored = {name for name in common if FEATURES[name].merge == "ignore"}
    assert common - features <= told | ignored


@given(st.lists(st.sampled_from(_REAL), min_size=2, max_size=6))
def test_every_way_to_grow_wins_what_it_says(pool: list[CpuModel]) -> None:
    pool = [host.replace(name=f"host{index}") for index, host in enumerate(pool)]
    base = level(pool).model.features
    for way in growth(pool):
        rest = [host for host in pool if host.name not in way.without]
        assert frozenset(way.wins) == level(rest).model.features - base
        assert way.wins


@given(pools, st.sampled_from(["", "sse4a", "avx2"]))
def test_a_fleet_is_levelled_as_its_hosts_are(pool: list[CpuModel], drop: str) -> None:
    dropped = [drop] if drop else []
    whole, packed = level(pool, drop=dropped), level_fleet(pack(pool), drop=dropped)
    assert packed.model.replace(name="") == whole.model.replace(name="")  # one host has a name
    assert packed.reasons == whole.reasons
