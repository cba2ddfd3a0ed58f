"""The records of XAPI that Isthmus reads, with the fields that it needs and no more.

Types and names: xen-api ``ocaml/idl/datamodel_vm.ml``, ``datamodel_host.ml``,
``datamodel_pool.ml`` and ``datamodel.ml`` (task, VBD, VDI, VIF, SR, network, PIF, VM_metrics).
A reference is an opaque text; :data:`NULL` refers to nothing.
"""

import enum
import math

import msgspec

from isthmus.values import Value

NULL = "OpaqueRef:NULL"

Ref = str
"""A reference to an object; means nothing outside its pool."""


class PowerState(enum.StrEnum):
    """``vm_power_state``."""

    HALTED = "Halted"
    PAUSED = "Paused"
    RUNNING = "Running"
    SUSPENDED = "Suspended"


class TaskStatus(enum.StrEnum):
    """``task_status_type``."""

    PENDING = "pending"
    SUCCESS = "success"
    FAILURE = "failure"
    CANCELLING = "cancelling"
    CANCELLED = "cancelled"


MOVING = frozenset({"pool_migrate", "migrate_send"})
"""The operations of a VM (``vm_operations``) that are a move."""


class PoolRecord(Value, frozen=True):
    """``pool``: ``cpu_info`` is the level of its hosts' CPUs."""

    uuid: str
    name_label: str
    master: Ref
    default_sr: Ref = msgspec.field(name="default_SR", default=NULL)
    cpu_info: dict[str, str] = msgspec.field(default_factory=dict)


class HostRecord(Value, frozen=True):
    """``host``: ``cpu_info`` tells its CPU, ``software_version`` its Xen (``xen``)."""

    uuid: str
    name_label: str
    address: str
    hostname: str = ""
    enabled: bool = True
    cpu_info: dict[str, str] = msgspec.field(default_factory=dict)
    software_version: dict[str, str] = msgspec.field(default_factory=dict)
    metrics: Ref = NULL


class VmRecord(Value, frozen=True):
    """``VM``: ``current_operations`` are the references of its tasks and what each does."""

    uuid: str
    name_label: str
    power_state: PowerState
    resident_on: Ref
    is_a_template: bool = False
    is_a_snapshot: bool = False
    is_control_domain: bool = False
    domain_type: str = "unspecified"
    hvm_boot_policy: str = msgspec.field(name="HVM_boot_policy", default="")
    last_boot_cpu_flags: dict[str, str] = msgspec.field(
        name="last_boot_CPU_flags", default_factory=dict
    )
    current_operations: dict[Ref, str] = msgspec.field(default_factory=dict)
    vbds: tuple[Ref, ...] = msgspec.field(name="VBDs", default=())
    vifs: tuple[Ref, ...] = msgspec.field(name="VIFs", default=())
    vcpus: int = msgspec.field(name="VCPUs_at_startup", default=1)
    memory_target: int = 0
    domid: int = -1
    metrics: Ref = NULL

    @property
    def moves(self) -> tuple[Ref, ...]:
        """The tasks that move it right now."""
        return tuple(task for task, what in self.current_operations.items() if what in MOVING)


class TaskRecord(Value, frozen=True):
    """``task``: ``progress`` from 0 to 1; ``error_info`` is the failure of a failed one."""

    status: TaskStatus
    progress: float = 0.0
    error_info: tuple[str, ...] = ()
    result: str = ""

    @property
    def percent(self) -> int:
        """How far it is, from 0 to 100."""
        return int(100 * min(1.0, max(0.0, self.progress))) if math.isfinite(self.progress) else 0


class VbdRecord(Value, frozen=True):
    """``VBD``: ``type`` is ``Disk``, ``CD`` or ``Floppy``."""

    type: str
    empty: bool
    vdi: Ref = msgspec.field(name="VDI")


class VdiRecord(Value, frozen=True):
    """``VDI``."""

    uuid: str
    name_label: str
    sr: Ref = msgspec.field(name="SR")


class SrRecord(Value, frozen=True):
    """``SR``: one that is ``shared`` can be seen by every host of its pool."""

    uuid: str
    name_label: str
    shared: bool = False


class VifRecord(Value, frozen=True):
    """``VIF``."""

    device: str
    network: Ref


class NetworkRecord(Value, frozen=True):
    """``network``."""

    uuid: str
    name_label: str


class PifRecord(Value, frozen=True):
    """``PIF``: ``management`` marks the interface that a host is managed by."""

    host: Ref
    network: Ref
    management: bool = False


class VmMetricsRecord(Value, frozen=True):
    """``VM_metrics``: ``current_domain_type`` is how a running VM was started."""

    current_domain_type: str = "unspecified"
