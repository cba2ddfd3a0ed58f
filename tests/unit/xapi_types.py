"""The documented types of the fields that the tests' pool has, and whether a record is of them.

Source: xen-api, ``ocaml/idl``: ``datamodel_pool.ml``, ``datamodel_host.ml``, ``datamodel_vm.ml``,
and ``datamodel.ml`` for the others (modules ``Host_metrics``, ``VM_metrics``, ``VBD``, ``VDI``,
``SR``, ``VIF``, ``Network``, ``PIF``, ``Task``).  ``uuid`` of each: ``uid`` in
``datamodel_common.ml``.
"""

import datetime as dt
from typing import Any

_POWER = "enum Halted|Paused|Running|Suspended"
_KIND = "enum hvm|pv|pv_in_pvh|pvh|unspecified"
_STATUS = "enum pending|success|failure|cancelling|cancelled"

FIELDS: dict[str, dict[str, str]] = {
    "pool": {"name_label": "string", "master": "ref", "default_SR": "ref", "cpu_info": "map"},
    "host": {
        "name_label": "string", "hostname": "string", "address": "string", "enabled": "bool",
        "cpu_info": "map", "metrics": "ref", "software_version": "map", "API_version_major": "int",
        "API_version_minor": "int",
    },
    "host_metrics": {"live": "bool", "memory_free": "int"},
    "VM": {
        "name_label": "string", "name_description": "string", "power_state": _POWER,
        "resident_on": "ref", "scheduled_to_be_resident_on": "ref", "is_a_template": "bool",
        "is_a_snapshot": "bool", "is_control_domain": "bool", "domain_type": _KIND,
        "last_boot_CPU_flags": "map", "current_operations": "map", "allowed_operations": "set",
        "memory_target": "int", "memory_static_max": "int", "VCPUs_max": "int",
        "VCPUs_at_startup": "int", "HVM_boot_policy": "string", "platform": "map", "domid": "int",
        "metrics": "ref", "snapshot_time": "datetime", "snapshots": "set", "VBDs": "set",
        "VIFs": "set",
    },
    "VM_metrics": {"current_domain_type": _KIND},
    "VBD": {
        "VM": "ref", "VDI": "ref", "type": "enum CD|Disk|Floppy", "empty": "bool",
        "mode": "enum RO|RW",
    },
    "VDI": {"name_label": "string", "SR": "ref", "virtual_size": "int"},
    "SR": {"name_label": "string", "shared": "bool", "type": "string"},
    "VIF": {"VM": "ref", "network": "ref", "device": "string", "MAC": "string"},
    "network": {"name_label": "string", "bridge": "string"},
    "PIF": {"host": "ref", "network": "ref", "management": "bool", "device": "string"},
    "task": {
        "name_label": "string", "name_description": "string", "created": "datetime",
        "finished": "datetime", "status": _STATUS, "resident_on": "ref", "progress": "float",
        "type": "string", "result": "string", "error_info": "set", "other_config": "map",
        "allowed_operations": "set", "current_operations": "map", "subtask_of": "ref",
        "subtasks": "set", "backtrace": "string",
    },
}  # fmt: skip


def conforms(kind: str, fields: dict[str, Any]) -> None:
    """The fields are documented ones of that class, and of their types."""
    for name, value in fields.items():
        wanted = "string" if name == "uuid" else FIELDS[kind][name]
        assert _is(value, wanted), f"{kind}.{name} is {wanted}, not {value!r}"


def _is(value: Any, wanted: str) -> bool:
    plain, _, words = wanted.partition(" ")
    if plain == "enum":
        return value in words.split("|")
    if plain == "ref":
        return isinstance(value, str) and value.startswith("OpaqueRef:")
    if plain == "int":
        return type(value) is int
    if plain == "map":
        return isinstance(value, dict) and all(
            isinstance(each, str) for pair in value.items() for each in pair
        )
    if plain == "set":
        return isinstance(value, list) and all(isinstance(each, str) for each in value)
    return isinstance(
        value, {"string": str, "bool": bool, "float": float, "datetime": dt.datetime}[plain]
    )
