"""The orders of a move, and the questions about one under way.

Within a pool whose storage both hosts see, ``VM.pool_migrate`` moves the guest; to another pool, or
with its disks to other storage, ``VM.migrate_send`` does, by a token that the destination gives
(``host.migrate_receive``).  Both run as a task that goes on without us.  XAPI keeps a task for 65
minutes after its end, and none over a restart of its own (xen-api ``ocaml/idl/datamodel.ml``,
``module Task``; ``ocaml/xapi/xapi_globs.ml``, ``completed_task_timeout``); so whoever finds no task
asks the guest.
"""

from collections.abc import Mapping
from typing import Any

from isthmus.errors import InputError
from isthmus.hypervisor.xapi.address import Address
from isthmus.hypervisor.xapi.connection import Connection, typed
from isthmus.hypervisor.xapi.failures import HANDLE_INVALID, XapiFailureError
from isthmus.hypervisor.xapi.inventory import Guest, Host, Inventory, management_network
from isthmus.hypervisor.xapi.records import (
    NULL,
    NetworkRecord,
    Ref,
    SrRecord,
    TaskRecord,
    TaskStatus,
    VbdRecord,
    VifRecord,
)
from isthmus.values import Value

EVENT_WAIT_S = 5.0
"""How long one question about a task waits for news of it."""


class Carrying(Value, frozen=True):
    """What ``VM.migrate_send`` needs.  ``token`` holds a session: it is a secret, never kept."""

    token: dict[str, str]
    disks: dict[Ref, Ref]
    cards: dict[Ref, Ref]

    def __repr__(self) -> str:
        """Without the token."""
        return f"Carrying({len(self.disks)} disks, {len(self.cards)} cards)"


class Order(Value, frozen=True):
    """A move: the guest, the host, whether XAPI is to leave out its comparison of CPUs.

    ``carrying`` is None where the guest stays on its storage and in its pool.
    """

    guest: Ref
    host: Ref
    force: bool = False
    carrying: Carrying | None = None

    @property
    def options(self) -> dict[str, str]:
        """The ``options`` of the call."""
        return {"live": "true"} | ({"force": "true"} if self.force else {})


def ordered(
    guest: Guest,
    host: Host,
    destination: Address,
    here: tuple[Connection, Inventory],
    there: tuple[Connection, Inventory],
    *,
    force: bool,
) -> Order:
    """The order that moves ``guest`` to ``host``; asks the destination for a token if it needs one.

    :raises InputError: storage or a network of the destination is not named, or there is none.
    """
    between = here[1].record.uuid != there[1].record.uuid
    if not between and not destination.sr:
        return Order(guest=guest.ref, host=host.ref, force=force)
    disks = _disks(here[0], guest, there[0], _storage(there, destination.sr))
    cards = _cards(here[0], guest, there[0], destination) if between else {}
    token = typed(
        there[0].order("host.migrate_receive", host.ref, management_network(there[0], host), {}),
        dict[str, str],
        "host.migrate_receive",
    )
    return Order(
        guest=guest.ref,
        host=host.ref,
        force=force,
        carrying=Carrying(token=token, disks=disks, cards=cards),
    )


def refused(connection: Connection, order: Order) -> XapiFailureError | None:
    """What XAPI itself has against the move, None if nothing."""
    try:
        if order.carrying is None:
            connection.ask("VM.assert_can_boot_here", order.guest, order.host)
        else:
            connection.ask("VM.assert_can_migrate", *_sending(order, order.carrying))
    except XapiFailureError as failure:
        return failure
    return None


def begin(connection: Connection, order: Order) -> Ref:
    """Give the order, once; returns its task.

    :raises XapiFailureError: XAPI did not take it.
    :raises XapiGoneError: no answer came; whether XAPI has begun has to be asked.
    """
    if order.carrying is None:
        answer = connection.order("Async.VM.pool_migrate", order.guest, order.host, order.options)
    else:
        answer = connection.order("Async.VM.migrate_send", *_sending(order, order.carrying))
    return typed(answer, str, "a task")


def task(connection: Connection, ref: Ref) -> TaskRecord | None:
    """The task as it stands, None if there is none or XAPI knows it no more."""
    if not ref:
        return None
    try:
        return connection.ask_for(TaskRecord, "task.get_record", ref)
    except XapiFailureError as failure:
        if failure.code == HANDLE_INVALID:
            return None
        raise


def pending(record: TaskRecord | None) -> bool:
    """Whether the task goes on."""
    return record is not None and record.status in {TaskStatus.PENDING, TaskStatus.CANCELLING}


class _Batch(Value, frozen=True):
    """What ``event.from`` answers, as far as it matters."""

    token: str = ""


def news(connection: Connection, ref: Ref, token: str) -> str:
    """Wait until something has happened to the task, or some time; returns where to go on."""
    answer = connection.ask("event.from", [f"task/{ref}"], token, EVENT_WAIT_S)
    return typed(answer, _Batch, "event.from").token


def cancel(connection: Connection, ref: Ref) -> None:
    """Ask XAPI to give the move up.  It may be too late for that, which is no error."""
    try:
        connection.order("task.cancel", ref)
    except XapiFailureError:
        return


def forget(connection: Connection, ref: Ref) -> None:
    """Let XAPI forget a task that has ended."""
    try:
        connection.order("task.destroy", ref)
    except XapiFailureError:
        return


def stop(connection: Connection, guest: Ref) -> None:
    """End a guest's domain, as the operator has decided; its disks stay."""
    connection.order("VM.hard_shutdown", guest)


def _sending(order: Order, carrying: Carrying) -> tuple[Any, ...]:
    """The parameters that ``assert_can_migrate`` and ``migrate_send`` share."""
    options = {key: value for key, value in order.options.items() if key != "live"}
    return (order.guest, carrying.token, True, carrying.disks, carrying.cards, options, {})


def _storage(there: tuple[Connection, Inventory], wanted: str) -> Ref:
    """The storage that is named, else the pool's default."""
    connection, pool = there
    if not wanted:
        if pool.record.default_sr == NULL:
            raise InputError(
                f"{pool.name}: no storage is named, and the pool has no default",
                remedy="name one behind the destination: ?sr=NAME",
            )
        return pool.record.default_sr
    return _named(connection, "SR", SrRecord, wanted, "sr")


def _disks(
    source: Connection, guest: Guest, destination: Connection, storage: Ref
) -> dict[Ref, Ref]:
    """Every disk of the guest to ``storage``; empty drives and CDs stay (``vdi_filter``)."""
    destination.ask_for(SrRecord, "SR.get_record", storage)
    disks = {}
    for ref in guest.record.vbds:
        vbd = source.ask_for(VbdRecord, "VBD.get_record", ref)
        if not vbd.empty and vbd.type != "CD":
            disks[vbd.vdi] = storage
    return disks


def _cards(
    source: Connection, guest: Guest, destination: Connection, address: Address
) -> dict[Ref, Ref]:
    """Every network card to the network that is named for it, else to the one of the same name."""
    cards = {}
    for ref in guest.record.vifs:
        card = source.ask_for(VifRecord, "VIF.get_record", ref)
        network = source.ask_for(NetworkRecord, "network.get_record", card.network)
        named = {network.name_label, network.uuid}
        wanted = next((new for old, new in address.networks if old in named), network.name_label)
        cards[ref] = _named(
            destination, "network", NetworkRecord, wanted, f"network={network.name_label}"
        )
    return cards


def _named(
    connection: Connection,
    kind: str,
    record: type[SrRecord] | type[NetworkRecord],
    wanted: str,
    key: str,
) -> Ref:
    """The one object of that name or UUID."""
    every: Mapping[str, Any] = connection.ask_for(
        dict[str, record],  # type: ignore[valid-type]
        f"{kind}.get_all_records",
    )
    found = [ref for ref, each in every.items() if wanted in {each.uuid, each.name_label}]
    if len(found) != 1:
        raise InputError(
            f"{wanted}: {'several' if found else 'no'} {kind} of that name at the destination",
            remedy=f"name one behind the destination: ?{key}=UUID",
        )
    return found[0]
