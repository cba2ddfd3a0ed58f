"""The calls of the API that the tests' pool answers, with the documented types of parameters.

Signatures: xen-api ``ocaml/idl/datamodel_vm.ml`` (``pool_migrate``, ``migrate_send``,
``assert_can_migrate``), ``datamodel_host.ml`` (``migrate_receive``), ``datamodel.ml`` (session,
task, event).  Each takes the pool, then the parameters behind the session.
"""

import time
from collections.abc import Callable
from typing import Any

from xapi_pool import CLASSES, NULL, Pool, RefusedError

Call = Callable[..., Any]
CALLS: dict[str, tuple[tuple[str, ...], Call]] = {}
"""Method to the types of its parameters and what it does.  ``ref CLASS`` is checked to exist."""

_PLAIN = {
    "string": str, "bool": bool, "float": float, "map": dict, "set": list,
}  # fmt: skip


def call(name: str, *kinds: str) -> Callable[[Call], Call]:
    def register(function: Call) -> Call:
        CALLS[name] = (kinds, function)
        return function

    return register


def check(pool: Pool, name: str, arguments: tuple[Any, ...]) -> None:
    """The parameters are of the documented number and types, and refer to what exists."""
    kinds, _ = CALLS[name]
    if len(arguments) != len(kinds):
        raise RefusedError(
            "MESSAGE_PARAMETER_COUNT_MISMATCH", name, str(len(kinds)), str(len(arguments))
        )
    for kind, value in zip(kinds, arguments, strict=True):
        plain, _, table = kind.partition(" ")
        if not isinstance(value, str if plain == "ref" else _PLAIN[plain]):
            raise RefusedError("FIELD_TYPE_ERROR", f"{name}: {kind}")
        if plain == "ref":
            pool.get(table, value)


def implicit(pool: Pool, name: str, arguments: tuple[Any, ...]) -> Any:
    """The messages that every class has: get_all, get_all_records, get_record, get_by_…, get_…"""
    kind, _, verb = name.partition(".")
    if kind not in CLASSES or not verb.startswith("get_"):
        raise RefusedError("MESSAGE_METHOD_UNKNOWN", name)
    table = pool.tables[kind]
    if verb == "get_all":
        return list(table)
    if verb == "get_all_records":
        return {ref: dict(record) for ref, record in table.items()}
    if verb == "get_by_name_label":
        return [ref for ref, record in table.items() if record.get("name_label") == arguments[0]]
    if verb == "get_by_uuid":
        for ref, record in table.items():
            if record["uuid"] == arguments[0]:
                return ref
        raise RefusedError("UUID_INVALID", kind, str(arguments[0]))
    record = pool.get(kind, arguments[0])
    if verb == "get_record":
        return dict(record)
    if verb.removeprefix("get_") not in record:
        raise RefusedError("MESSAGE_METHOD_UNKNOWN", name)
    return record[verb.removeprefix("get_")]


@call("task.cancel", "ref task")
def cancel(pool: Pool, task: str) -> str:
    if "cancel" not in pool.get("task", task)["allowed_operations"]:
        raise RefusedError("OPERATION_NOT_ALLOWED", "task.cancel")
    pool.change("task", task, current_operations={"OpaqueRef:canceller": "cancel"})
    return ""


@call("task.destroy", "ref task")
def destroy(pool: Pool, task: str) -> str:
    pool.remove("task", task)
    return ""


@call("event.from", "set", "string", "float")
def events(pool: Pool, classes: list[str], token: str, timeout: float) -> dict[str, Any]:
    try:
        since = int(token.partition(",")[0]) if token else 0
    except ValueError:
        raise RefusedError("EVENT_FROM_TOKEN_PARSE_FAILURE", token) from None
    wanted = [each.partition("/") for each in classes]
    deadline = time.monotonic() + min(timeout, 30)

    def found() -> list[dict[str, Any]]:
        return [
            _event(pool, kind, ref, changed, since)
            for (kind, ref), changed in pool.touched.items()
            if changed > since
            and any(kind.lower() == c and (not r or r == ref) for c, _, r in wanted)
        ]

    with pool.world.changed:
        while not (batch := found()) and time.monotonic() < deadline:
            pool.world.changed.wait(max(0.0, deadline - time.monotonic()))
        return {
            "events": batch,
            "valid_ref_counts": {kind.lower(): len(rows) for kind, rows in pool.tables.items()},
            "token": f"{pool.generation:020d},{0:020d}",
        }


def _event(pool: Pool, kind: str, ref: str, changed: int, since: int) -> dict[str, Any]:
    event = {"id": changed, "timestamp": "0.0", "class": kind.lower(), "ref": ref}
    record = pool.tables[kind].get(ref)
    if record is None:
        return event | {"operation": "del"}
    return event | {"operation": "mod" if since else "add", "snapshot": dict(record)}


@call("VM.hard_shutdown", "ref VM")
def hard_shutdown(pool: Pool, vm: str) -> str:
    pool.world.executes(pool.uuid(vm), pool.get("VM", vm)["resident_on"], here=False)
    pool.change("VM", vm, power_state="Halted", resident_on=NULL, domid=-1)
    return ""


@call("VM.assert_can_boot_here", "ref VM", "ref host")
def assert_can_boot_here(pool: Pool, vm: str, host: str) -> str:
    pool.can_boot(vm, host)
    return ""


@call("host.migrate_receive", "ref host", "ref network", "map")
def migrate_receive(pool: Pool, host: str, network: str, _: dict[str, str]) -> dict[str, str]:
    """A token: a session of the pool's own, and where to send to."""
    if not any(
        pif["host"] == host and pif["network"] == network for pif in pool.tables["PIF"].values()
    ):
        raise RefusedError("HOST_CANNOT_ATTACH_NETWORK", host, network)
    session = f"OpaqueRef:session-{len(pool.sessions)}-{time.monotonic_ns()}"
    pool.sessions.add(session)
    address = pool.get("host", host)["address"]
    return {
        "SM": f"http://{address}/services/SM?session_id={session}",
        "host": host,
        "xenops": f"http://{address}/services/xenops?session_id={session}",
        "session_id": session,
        "master": f"http://{pool.name}",
    }


def _destination(pool: Pool, dest: dict[str, str]) -> Pool:
    name = dest.get("master", "").removeprefix("http://")
    there = pool.world.pools.get(name)
    if there is None or dest.get("session_id") not in there.sessions:
        raise RefusedError("SESSION_INVALID_AT_DESTINATION", name)
    return there


_SEND = ("ref VM", "map", "bool", "map", "map", "map", "map")


@call("VM.assert_can_migrate", *_SEND)
def assert_can_migrate(
    pool: Pool, vm: str, dest: dict[str, str], live: bool, vdi_map: dict[str, str],
    vif_map: dict[str, str], options: dict[str, str], vgpu_map: dict[str, str],
) -> str:  # fmt: skip
    there, record = _destination(pool, dest), pool.get("VM", vm)
    for vbd in record["VBDs"]:
        disk = pool.get("VBD", vbd)
        if disk["empty"] or disk["type"] == "CD":
            continue
        if disk["VDI"] not in vdi_map:
            raise RefusedError("VDI_NOT_IN_MAP", disk["VDI"])
        there.get("SR", vdi_map[disk["VDI"]])
    force = options.get("force") == "true"
    host = there.get("host", dest["host"])
    if not there.get("host_metrics", host["metrics"])["live"]:
        raise RefusedError("CANNOT_CONTACT_HOST", host["address"])
    if not host["enabled"]:
        raise RefusedError("HOST_DISABLED", dest["host"])
    if there is pool:
        if vif_map:
            raise RefusedError("OPERATION_NOT_ALLOWED", "VIF mapping is not allowed")
    else:
        for vif in record["VIFs"]:
            if vif not in vif_map:
                raise RefusedError("VIF_NOT_IN_MAP", vif)
            there.get("network", vif_map[vif])
    if not force:
        there.check_cpu(record, record["domain_type"], dest["host"])
    return ""


def _let_in(pool: Pool, session: str, vm: str) -> None:
    """The hosts let each other in by a session (``xenops_url``): without it the move breaks."""
    if session not in pool.sessions:
        raise RefusedError("VM_MIGRATE_FAILED", vm, "", "", "not authorised")


@call("Async.VM.pool_migrate", "ref VM", "ref host", "map")
def pool_migrate(pool: Pool, vm: str, host: str, options: dict[str, str]) -> str:
    session = pool.caller.session

    def work(task: str) -> str:
        record = pool.get("VM", vm)
        if record["power_state"] != "Running":
            raise RefusedError("VM_BAD_POWER_STATE", vm, "running", record["power_state"].lower())
        pool.can_boot(vm, host, cpu=options.get("force") != "true")
        source = record["resident_on"]
        pool.change("VM", vm, scheduled_to_be_resident_on=host)
        try:
            pool.advance(task)
            _let_in(pool, session, vm)
        except RefusedError:
            if pool.world.loses:
                pool.world.executes(pool.uuid(vm), source, here=False)
                pool.change("VM", vm, power_state="Halted", resident_on=NULL, domid=-1)
            pool.change("VM", vm, scheduled_to_be_resident_on=NULL)
            raise
        pool.world.switch(pool.uuid(vm), source, host)
        pool.change(
            "VM", vm, resident_on=host, scheduled_to_be_resident_on=NULL, domid=record["domid"] + 1
        )
        return ""

    return pool.begin(vm, "pool_migrate", work)


@call("Async.VM.migrate_send", *_SEND)
def migrate_send(
    pool: Pool, vm: str, dest: dict[str, str], live: bool, vdi_map: dict[str, str],
    vif_map: dict[str, str], options: dict[str, str], vgpu_map: dict[str, str],
) -> str:  # fmt: skip
    def work(task: str) -> str:
        assert_can_migrate(pool, vm, dest, live, vdi_map, vif_map, options, vgpu_map)
        there, record = _destination(pool, dest), pool.get("VM", vm)
        source, host = record["resident_on"], dest["host"]
        arrived = there.add(
            "VM", **(record | {"power_state": "Halted", "resident_on": NULL, "domid": -1}),
        )  # fmt: skip
        there.change(
            "VM", arrived, current_operations={}, VBDs=[], VIFs=[],
            metrics=there.add("VM_metrics", current_domain_type=record["domain_type"]),
        )  # fmt: skip
        try:
            pool.advance(task)
            _let_in(there, dest["session_id"], vm)
        except RefusedError:
            there.remove("VM", arrived)
            raise
        there.world.switch(pool.uuid(vm), source, host)
        there.change("VM", arrived, power_state="Running", resident_on=host, domid=3)
        pool.remove("VM", vm)
        return f"<value>{arrived}</value>"

    return pool.begin(vm, "migrate_send", work)
