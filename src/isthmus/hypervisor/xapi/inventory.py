"""What a pool consists of: its hosts and their CPUs, its level, and one guest with what it needs.

Only questions are asked here; nothing of the pool is changed.
"""

from isthmus.errors import InputError, IsthmusError
from isthmus.hypervisor.xapi.compatibility import (
    Demand,
    HostCpu,
    Level,
    demand,
    host_cpu,
    stated_level,
)
from isthmus.hypervisor.xapi.connection import Connection
from isthmus.hypervisor.xapi.failures import (
    HANDLE_INVALID,
    UUID_INVALID,
    XapiFailureError,
    printable,
)
from isthmus.hypervisor.xapi.records import (
    NULL,
    HostRecord,
    PifRecord,
    PoolRecord,
    Ref,
    VmMetricsRecord,
    VmRecord,
)
from isthmus.values import Value


class Host(Value, frozen=True):
    """A host of a pool."""

    ref: Ref
    record: HostRecord
    cpu: HostCpu

    @property
    def name(self) -> str:
        """What it is called, fit to be shown."""
        return self.cpu.name


class Inventory(Value, frozen=True):
    """A pool with its hosts; ``level`` is what the pool itself states."""

    ref: Ref
    record: PoolRecord
    level: Level
    hosts: tuple[Host, ...]

    @property
    def name(self) -> str:
        """What the pool is called; a pool of one host has no name."""
        return printable(self.record.name_label) or self.by_ref(self.record.master).name

    def by_ref(self, ref: Ref) -> Host:
        """The host of a reference; raises :class:`InputError` if it is not of this pool."""
        for host in self.hosts:
            if host.ref == ref:
                return host
        raise InputError("a host that is not of this pool", remedy="isthmus xapi pool lists them")

    def find(self, wanted: str) -> Host:
        """The host of that UUID, name or address.

        :raises InputError: none, or several.
        """
        found = [
            host
            for host in self.hosts
            if wanted
            in {host.record.uuid, host.record.name_label, host.record.hostname, host.record.address}
        ]
        known = ", ".join(sorted(host.name for host in self.hosts))
        if len(found) != 1:
            what = "several hosts" if found else "no host"
            raise InputError(
                f"{wanted}: {what} of that name or address in pool {self.name}",
                remedy=f"its hosts are {known}; a UUID is never ambiguous",
            )
        return found[0]


class Guest(Value, frozen=True):
    """A VM, how it was started (``kind``: the type of its domain), and what its CPU needs."""

    ref: Ref
    record: VmRecord
    kind: str
    demand: Demand

    @property
    def name(self) -> str:
        """What it is called."""
        return printable(self.record.name_label or self.record.uuid)


def inventory(connection: Connection) -> Inventory:
    """Ask for the pool and its hosts.

    :raises HypervisorError: the pool does not answer, or with something else.
    :raises InputError: a host states a featureset that is none.
    """
    pools = connection.ask_for(dict[str, PoolRecord], "pool.get_all_records")
    hosts = connection.ask_for(dict[str, HostRecord], "host.get_all_records")
    if len(pools) != 1 or not hosts:
        raise InputError("not a pool: it names no hosts", remedy="name a pool's coordinator")
    ref, record = next(iter(pools.items()))
    return Inventory(
        ref=ref,
        record=record,
        level=stated_level(record.cpu_info, where=printable(record.name_label) or "the pool"),
        hosts=tuple(
            Host(ref=each, record=host, cpu=host_cpu(printable(host.name_label), host.cpu_info))
            for each, host in sorted(hosts.items(), key=lambda pair: pair[1].name_label)
        ),
    )


def find_guest(connection: Connection, wanted: str) -> Guest:
    """The VM of that UUID or name.

    :raises InputError: none, several, or it is a template, a snapshot or a control domain.
    """
    found = {
        ref: record
        for ref, record in _named(connection, wanted).items()
        if not record.is_a_snapshot and not record.is_a_template
    }
    if len(found) != 1:
        what = "several guests" if found else "no guest"
        raise InputError(
            f"{wanted}: {what} of that name in this pool",
            remedy="`xe vm-list` names them; a UUID is never ambiguous",
        )
    ref, record = next(iter(found.items()))
    if record.is_control_domain:
        raise InputError(f"{wanted}: a control domain does not move", remedy="name a guest")
    return _guest(connection, ref, record)


def guest_of(connection: Connection, uuid: str) -> Guest | None:
    """The VM of a UUID, None if the pool has none of it."""
    try:
        ref = connection.ask_for(str, "VM.get_by_uuid", uuid)
        record = connection.ask_for(VmRecord, "VM.get_record", ref)
    except XapiFailureError as failure:
        if failure.code in {UUID_INVALID, HANDLE_INVALID}:
            return None
        raise
    return _guest(connection, ref, record)


def live(connection: Connection, host: HostRecord) -> bool:
    """Whether the pool hears from the host (``host_metrics.live``)."""
    if host.metrics == NULL:
        return True
    try:
        return connection.ask_for(bool, "host_metrics.get_live", host.metrics)
    except XapiFailureError:
        return True


def management_network(connection: Connection, host: Host) -> Ref:
    """The network that the host is managed through, by which moves go unless another is chosen.

    :raises IsthmusError: the host has none.
    """
    for pif in connection.ask_for(dict[str, PifRecord], "PIF.get_all_records").values():
        if pif.management and pif.host == host.ref:
            return pif.network
    raise IsthmusError(f"{host.name}: no management network", remedy="see `xe pif-list`")


def _named(connection: Connection, wanted: str) -> dict[Ref, VmRecord]:
    refs = connection.ask_for(tuple[Ref, ...], "VM.get_by_name_label", wanted)
    if not refs:
        try:
            refs = (connection.ask_for(Ref, "VM.get_by_uuid", wanted),)
        except XapiFailureError as failure:
            if failure.code not in {UUID_INVALID, HANDLE_INVALID}:
                raise
    return {ref: connection.ask_for(VmRecord, "VM.get_record", ref) for ref in refs}


def _guest(connection: Connection, ref: Ref, record: VmRecord) -> Guest:
    kind = _kind(connection, record)
    return Guest(
        ref=ref,
        record=record,
        kind=kind,
        demand=demand(record.last_boot_cpu_flags, kind, where=printable(record.name_label)),
    )


def _kind(connection: Connection, record: VmRecord) -> str:
    """How the guest runs, else how it would be started (``Helpers.domain_type`` of xen-api)."""
    kind = "unspecified"
    if record.metrics != NULL:
        try:
            kind = connection.ask_for(
                VmMetricsRecord, "VM_metrics.get_record", record.metrics
            ).current_domain_type
        except XapiFailureError as failure:
            if failure.code != HANDLE_INVALID:
                raise
    if kind == "unspecified":
        kind = record.domain_type
    if kind == "unspecified":
        kind = "hvm" if record.hvm_boot_policy else "pv"
    return kind
