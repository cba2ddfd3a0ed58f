"""What XAPI decides about CPUs, decided beforehand: pure, from the ``cpu_info`` of its records.

Facts, all from xen-api's source:

* A host says what it can offer guests by ``cpu_info`` (``ocaml/xapi/create_misc.ml``,
  ``create_host_cpu``): ``features_hvm`` and ``features_pv`` are the most that a guest may arrive
  with, ``features_hvm_host`` and ``features_pv_host`` what one is started with.  XAPI without
  the latter (before its 2023 versions) starts guests with the former.
* The pool's level is what all hosts have (``create_pool_cpuinfo``); a guest is started with it,
  and keeps what it was started with in ``last_boot_CPU_flags`` (``ocaml/xapi/xapi_xenops.ml``).
* A guest that is not halted may go where the maker is the one of its last boot and where its
  features are a subset of the host's (``ocaml/xapi/cpuid_helpers.ml``,
  ``assert_vm_is_compatible``); so both within a pool and between pools (``ocaml/xapi/import.ml``).
  ``force=true`` in the options of the move leaves the whole comparison out (``pool_migrate`` in
  ``ocaml/xapi/message_forwarding.ml``; ``check_cpu`` in ``ocaml/xapi/xapi_vm_migrate.ml``).
* A host joins where its maker is the pool's, whatever its features; else the join fails with
  HOSTS_NOT_HOMOGENEOUS, "CPUs differ" (``ocaml/xapi/xapi_pool.ml``,
  ``assert_hosts_homogeneous``), unless it is ``pool.join_force``.
"""

from collections.abc import Mapping, Sequence

from isthmus.hypervisor.xapi.featureset import Words, common, missing, names, parse
from isthmus.values import Value

HVM_KINDS = frozenset({"hvm", "pv_in_pvh", "pvh"})
"""``domain_type`` of guests whose CPUID Xen answers itself; the others are ``pv``."""

MAKERS_DIFFER = "xapi-forbids"
FEATURES_MISSING = "xapi-features"
FEATURES_UNKNOWN = "xapi-features-unknown"
BELOW_LEVEL = "xapi-island"


class HostCpu(Value, frozen=True):
    """A host's CPU as XAPI tells it; ``start_hvm`` and ``start_pv`` are what guests start with."""

    name: str
    vendor: str
    hvm: Words
    pv: Words
    start_hvm: Words
    start_pv: Words


class Level(Value, frozen=True):
    """What guests of a pool are started with; ``vendor`` is empty where the hosts' differ."""

    vendor: str
    hvm: Words
    pv: Words


class Lowering(Value, frozen=True):
    """What the pool would offer HVM guests more if this host were not in it."""

    host: str
    features: tuple[str, ...]


class Demand(Value, frozen=True):
    """What a guest that is not halted needs: its maker and features at its last boot.

    Both may be empty, where XAPI does not know them.  It compares nothing then; we refuse.
    """

    vendor: str
    hvm: bool
    features: Words


class Obstacle(Value, frozen=True):
    """Why XAPI would refuse: the rule, in words, and the features that it is about.

    ``refuses`` is False for what XAPI lets pass but an operator should know.
    """

    rule: str
    text: str
    features: tuple[str, ...] = ()
    refuses: bool = True


class Joining(Value, frozen=True):
    """What a join would mean: the obstacles, and what new guests of the pool would lose."""

    obstacles: tuple[Obstacle, ...]
    loses: tuple[str, ...]


def host_cpu(name: str, cpu_info: Mapping[str, str]) -> HostCpu:
    """A host's CPU from its record.

    :raises InputError: a featureset that is none.
    """
    words = {
        key: parse(cpu_info.get(key, ""), where=f"{name}: {key}")
        for key in ("features_hvm", "features_pv", "features_hvm_host", "features_pv_host")
    }
    return HostCpu(
        name=name,
        vendor=cpu_info.get("vendor", ""),
        hvm=words["features_hvm"],
        pv=words["features_pv"],
        start_hvm=words["features_hvm_host"] or words["features_hvm"],
        start_pv=words["features_pv_host"] or words["features_pv"],
    )


def stated_level(cpu_info: Mapping[str, str], *, where: str) -> Level:
    """The level as the pool's record states it.

    :raises InputError: a featureset that is none.
    """
    hvm, pv = (
        parse(cpu_info.get(f"{key}_host", "") or cpu_info.get(key, ""), where=f"{where}: {key}")
        for key in ("features_hvm", "features_pv")
    )
    return Level(vendor=cpu_info.get("vendor", ""), hvm=hvm, pv=pv)


def level_of(hosts: Sequence[HostCpu]) -> Level:
    """The level that XAPI arrives at with these hosts."""
    makers = {host.vendor for host in hosts}
    return Level(
        vendor=makers.pop() if len(makers) == 1 else "",
        hvm=common(host.start_hvm for host in hosts),
        pv=common(host.start_pv for host in hosts),
    )


def lowering(hosts: Sequence[HostCpu]) -> tuple[Lowering, ...]:
    """The hosts that alone keep the pool from more, and from what."""
    level = level_of(hosts)
    found = []
    for host in hosts:
        others = [other for other in hosts if other is not host]
        if others and any(lost := missing(level_of(others).hvm, level.hvm)):
            found.append(Lowering(host=host.name, features=names(lost)))
    return tuple(found)


def given_up(host: HostCpu, level: Level) -> tuple[str, ...]:
    """What the host could offer HVM guests and the level does not."""
    return names(missing(host.start_hvm, level.hvm))


def demand(flags: Mapping[str, str], kind: str, *, where: str) -> Demand:
    """What a guest needs, by its ``last_boot_CPU_flags`` and the type of its domain.

    :raises InputError: a featureset that is none.
    """
    return Demand(
        vendor=flags.get("vendor", ""),
        hvm=kind in HVM_KINDS,
        features=parse(flags.get("features", ""), where=f"{where}: last_boot_CPU_flags"),
    )


def moving(guest: Demand, host: HostCpu, *, into: Level | None = None) -> tuple[Obstacle, ...]:
    """Why XAPI would not move the guest to the host.

    :param into: the level of the pool that the guest would come into, if it is another one.
    """
    found = []
    offered = host.hvm if guest.hvm else host.pv
    if guest.vendor and guest.vendor != host.vendor:
        found.append(
            Obstacle(
                rule=MAKERS_DIFFER,
                text=f"the guest was started on a CPU of {guest.vendor}, {host.name} has one of"
                f" {host.vendor or 'an unknown maker'}",
            )
        )
    if not offered or not guest.features:
        who = host.name if not offered else "the pool"
        what = "it offers a guest of this kind" if not offered else "the guest was started with"
        found.append(Obstacle(rule=FEATURES_UNKNOWN, text=f"{who} does not say what {what}"))
    elif any(lacks := missing(guest.features, offered)):
        found.append(
            Obstacle(
                rule=FEATURES_MISSING,
                text=f"the guest was started with what {host.name} cannot offer",
                features=names(lacks),
            )
        )
    if into is not None and (obstacle := _island(guest, host, into)):
        found.append(obstacle)
    return tuple(found)


def _island(guest: Demand, host: HostCpu, into: Level) -> Obstacle | None:
    """The guest may arrive, and can go nowhere else in its new pool before a restart.

    The design asked XAPI to refuse this (``doc/content/design/cpu-levelling-v2.md``, "For cross
    pool migrations"); the code compares with the host.
    """
    level = into.hvm if guest.hvm else into.pv
    above = missing(guest.features, level)
    if not level or not any(above) or guest.vendor != host.vendor:
        return None
    return Obstacle(
        rule=BELOW_LEVEL,
        text="the guest has more than its new pool's level: until it is restarted,"
        " not every host there can take it",
        features=names(above),
        refuses=False,
    )


def joining(host: HostCpu, pool: Level) -> Joining:
    """What it would mean that ``host`` joins ``pool``."""
    obstacles: tuple[Obstacle, ...] = ()
    if host.vendor != pool.vendor:
        obstacles = (
            Obstacle(
                rule=MAKERS_DIFFER,
                text=f"HOSTS_NOT_HOMOGENEOUS: {host.name} has a CPU of"
                f" {host.vendor or 'an unknown maker'}, the pool's are of"
                f" {pool.vendor or 'unknown makers'}",
            ),
        )
    loses = names(missing(pool.hvm, host.start_hvm)) if host.start_hvm else ()
    return Joining(obstacles=obstacles, loses=loses)
