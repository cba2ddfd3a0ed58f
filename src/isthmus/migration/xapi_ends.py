"""The two ends of a move by XAPI: one pool or two, a guest, two hosts; and all checks of it."""

from contextlib import ExitStack
from typing import Self

import msgspec

from isthmus.baseline.shown import shown_on
from isthmus.cpu.model import NO_LEAVES, CpuModel
from isthmus.divergence.evidence import GuestEvidence, HostEvidence
from isthmus.divergence.finding import Finding, Severity, blocking
from isthmus.divergence.rules import findings
from isthmus.errors import InputError
from isthmus.hypervisor.xapi import orders
from isthmus.hypervisor.xapi.address import Address, parse
from isthmus.hypervisor.xapi.compatibility import (
    BELOW_LEVEL,
    FEATURES_MISSING,
    FEATURES_UNKNOWN,
    MAKERS_DIFFER,
    Obstacle,
    moving,
)
from isthmus.hypervisor.xapi.connection import Connection
from isthmus.hypervisor.xapi.failures import INCOMPATIBLE, printable
from isthmus.hypervisor.xapi.featureset import Words, features
from isthmus.hypervisor.xapi.inventory import (
    Guest,
    Host,
    Inventory,
    find_guest,
    inventory,
    live,
)
from isthmus.hypervisor.xapi.records import PowerState
from isthmus.migration.platforms import Request
from isthmus.migration.preflight import Preflight
from isthmus.migration.record import Side
from isthmus.values import Value

XAPI_REFUSES = "xapi-refuses"
_COMPARES = frozenset({MAKERS_DIFFER, FEATURES_MISSING, FEATURES_UNKNOWN})
"""The rules that ``force=true`` makes XAPI leave out."""
_REMEDY = {
    FEATURES_MISSING: "move it to a host that has them, or start it anew at the pool's level",
    FEATURES_UNKNOWN: "start the guest anew: XAPI writes down what it is started with",
    BELOW_LEVEL: "start it anew there when it suits",
}
_SOURCE = "xen-api ocaml/xapi/cpuid_helpers.ml, assert_vm_is_compatible"


class Addresses(Value, frozen=True):
    """Both addresses of a move."""

    source: Address
    destination: Address


class Ends:
    """Sessions with the pools of both ends; one session where the addresses are one pool's."""

    def __init__(self, source: Connection, destination: Connection, addresses: Addresses) -> None:
        self.source = source
        self.destination = destination
        self.addresses = addresses
        self.here = inventory(source)
        self.there = self.here if destination is source else inventory(destination)

    @classmethod
    def open(cls, addresses: Addresses) -> Self:
        """Log in.

        :raises HypervisorError: a pool does not answer or is not to be trusted.
        :raises InputError: no password is given, or it is not taken.
        """
        with ExitStack() as opened:
            source = opened.enter_context(Connection.open(addresses.source))
            destination = source
            if _login(addresses.source) != _login(addresses.destination):
                destination = opened.enter_context(Connection.open(addresses.destination))
            ends = cls(source, destination, addresses)
            opened.pop_all()
            return ends

    @property
    def one_pool(self) -> bool:
        """Whether both ends are in one pool."""
        return self.here.record.uuid == self.there.record.uuid

    def close(self, *, moving: bool = False) -> None:
        """Log out, unless a move may still need the sessions."""
        for connection in {id(each): each for each in (self.source, self.destination)}.values():
            if moving:
                connection.leave()
            else:
                connection.close()


class Route(Value, frozen=True):
    """A guest, where it is, and where it is to go."""

    guest: Guest
    source: Host
    destination: Host

    def sides(self, addresses: Addresses) -> tuple[Side, Side]:
        """Both ends as the journal keeps them, with the hosts by their UUIDs."""
        ends = ((addresses.source, self.source), (addresses.destination, self.destination))
        source, destination = (
            Side(
                address=str(msgspec.structs.replace(address, target=host.record.uuid)),
                domain=self.guest.record.uuid,
            )
            for address, host in ends
        )
        return source, destination


def addresses_of(source: str, destination: str) -> Addresses:
    """Both addresses, read; raises :class:`InputError`."""
    return Addresses(source=parse(source), destination=parse(destination))


def find_route(ends: Ends, guest: str) -> Route:
    """Find the guest and both hosts.

    :raises InputError: no such guest or host, it does not run, or it is there already.
    """
    found = find_guest(ends.source, guest)
    if found.record.power_state is not PowerState.RUNNING:
        raise InputError(
            f"{found.name} is {found.record.power_state.lower()}, not running",
            remedy="start or resume it first; a halted guest needs no live migration",
        )
    source = ends.here.by_ref(found.record.resident_on)
    if (wanted := ends.addresses.source.target) and ends.here.find(wanted) is not source:
        raise InputError(
            f"{found.name} is on {source.name}, not on {wanted}",
            remedy="leave the host out: XAPI knows where its guests are",
        )
    destination = _destination(ends.there, ends.addresses.destination)
    if ends.one_pool and destination.record.uuid == source.record.uuid:
        raise InputError(f"{found.name} is on {source.name} already", remedy="name another host")
    return Route(guest=found, source=source, destination=destination)


def order_for(ends: Ends, route: Route, *, force: bool) -> orders.Order:
    """The order of the move; see :func:`orders.ordered`."""
    return orders.ordered(
        route.guest,
        route.destination,
        ends.addresses.destination,
        (ends.source, ends.here),
        (ends.destination, ends.there),
        force=force,
    )


def judge(ends: Ends, route: Route, request: Request) -> tuple[Preflight, orders.Order]:
    """All checks, ours and XAPI's own; takes no step.

    XAPI is told to leave out its comparison of CPUs only where every rule that it compares by, and
    that applies, has been accepted.
    """
    obstacles = moving(
        route.guest.demand,
        route.destination.cpu,
        into=None if ends.one_pool else ends.there.level,
    )
    shown = _shown(route)
    found = [*_findings(route, shown), *(_finding(o) for o in obstacles if o.rule != MAKERS_DIFFER)]
    if not live(ends.destination, route.destination.record):
        found.append(_xapi(route, "HOST_NOT_LIVE", "its pool does not hear from it"))
    compared = [f for f in found if f.rule in _COMPARES and f.severity is Severity.REFUSE]
    force = bool(compared) and not _blocking(compared, request)
    order = order_for(ends, route, force=force)
    refusal = orders.refused(ends.source, order)
    if refusal is not None and not (refusal.code == INCOMPATIBLE and compared):
        found.append(_xapi(route, refusal.code, str(refusal)))
    verdict = Preflight(
        guest=route.guest.name,
        source_host=route.source.name,
        destination_host=route.destination.name,
        shown=shown_on(shown, _offer(route)),
        findings=tuple(found),
        blocking=_blocking(found, request),
    )
    return verdict, order


def _blocking(found: list[Finding], request: Request) -> tuple[Finding, ...]:
    if not request.force:
        return blocking(found, request.accepted)
    # What XAPI itself will refuse cannot be forced by accepting it here.
    return tuple(f for f in found if f.rule == XAPI_REFUSES and f.severity is Severity.REFUSE)


def _findings(route: Route, shown: CpuModel) -> tuple[Finding, ...]:
    """What the catalogue of divergences says."""
    offer = _offer(route)
    record = route.guest.record
    evidence = GuestEvidence(shown=shown, vcpus=record.vcpus, memory_mib=record.memory_target >> 20)
    return findings(
        evidence,
        offer,
        shown_on(shown, offer),
        here=_host(route.source),
        there=_host(route.destination),
    )


def _host(host: Host) -> HostEvidence:
    return HostEvidence(
        hypervisor="xen",
        version=host.record.software_version.get("xen", "").partition("-")[0],
        manager="xapi",
        manager_version=host.record.software_version.get("xapi_build", "")
        or host.record.software_version.get("xapi", ""),
    )


def _shown(route: Route) -> CpuModel:
    """The CPU that the guest was shown when it was started."""
    demand = route.guest.demand
    model = _model(route.source, demand.features)
    return msgspec.structs.replace(
        model, name=route.guest.name, vendor=demand.vendor or model.vendor
    )


def _offer(route: Route) -> CpuModel:
    cpu = route.destination.cpu
    return _model(route.destination, cpu.hvm if route.guest.demand.hvm else cpu.pv)


def _model(host: Host, words: Words) -> CpuModel:
    """A host's CPU with these features, as far as XAPI tells."""
    info = host.record.cpu_info
    family, model, stepping = (_number(info.get(key, "")) for key in _NUMBERS)
    return CpuModel(
        name=host.name,
        source="XAPI, host.cpu_info",
        vendor=host.cpu.vendor,
        family=family,
        model=model,
        stepping=stepping,
        brand=printable(info.get("modelname", ""))[:64],
        features=features(words),
        unknown=("raw CPUID leaves", "XSAVE layout", "address widths", NO_LEAVES),
    )


_NUMBERS = ("family", "model", "stepping")


def _number(text: str) -> int:
    return int(text) if text.isascii() and text.isdigit() and len(text) < 6 else 0


def _finding(obstacle: Obstacle) -> Finding:
    return Finding(
        rule=obstacle.rule,
        severity=Severity.REFUSE if obstacle.refuses else Severity.WARN,
        subject=", ".join(obstacle.features[:8]) or "vendor",
        notice=obstacle.text,
        remedy=_REMEDY[obstacle.rule],
        source=_SOURCE,
        evidence="VM.last_boot_CPU_flags, host.cpu_info",
    )


def _xapi(route: Route, code: str, text: str) -> Finding:
    return Finding(
        rule=XAPI_REFUSES,
        severity=Severity.REFUSE,
        subject=code,
        notice=text,
        remedy=f"isthmus explain {code}",
        source="the pool's own answer",
        evidence=f"asked for {route.destination.name}",
    )


def _destination(pool: Inventory, address: Address) -> Host:
    """The host that the address means."""
    if address.target:
        return pool.find(address.target)
    at_address = [
        host for host in pool.hosts if address.host in {host.record.address, host.record.hostname}
    ]
    if len(at_address) == 1:
        return at_address[0]
    if len(pool.hosts) == 1:
        return pool.hosts[0]
    names = ", ".join(host.name for host in pool.hosts)
    raise InputError(
        f"xapi://{address.authority}: which host of pool {pool.name} is meant?",
        remedy=f"write xapi://{address.authority}/HOST, one of {names}",
    )


def _login(address: Address) -> tuple[object, ...]:
    """Addresses that are equal in this are one session."""
    return (
        address.host, address.port, address.user, address.cacert, address.fingerprints,
        address.password_file,
    )  # fmt: skip
