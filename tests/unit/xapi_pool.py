"""A XenServer pool as XAPI's documents describe it: a database, and what the calls do to it.

Types and behaviour follow xen-api: ``ocaml/idl/datamodel*.ml`` (records, failures),
``ocaml/xapi/cpuid_helpers.ml`` (who may go where), ``ocaml/xapi/xapi_vm_migrate.ml`` and
``message_forwarding.ml`` (moves), ``ocaml/xapi/xapi_event.ml`` (events).  ``World.domains`` is the
truth that no API tells: which hosts execute which guest right now.
"""

import datetime as dt
import threading
import time
import uuid as uuids
from collections.abc import Callable, Sequence
from typing import Any

from xapi_types import FIELDS, conforms

NULL = "OpaqueRef:NULL"
CLASSES = frozenset(FIELDS)
Features = Sequence[int]


class RefusedError(Exception):
    """A failure as XAPI gives it: a code and its parameters."""

    def __init__(self, *details: str) -> None:
        super().__init__(details)
        self.details = list(details)


def written(words: Features) -> str:
    return "-".join(f"{word:08x}" for word in words)


def cpu_info(vendor: str, hvm: Features, pv: Features | None = None) -> dict[str, str]:
    """``host.cpu_info`` as ``create_misc.ml`` writes it."""
    amd = vendor == "AuthenticAMD"
    pv = pv or hvm
    return {
        "cpu_count": "16", "socket_count": "2", "threads_per_core": "2", "nr_nodes": "2",
        "vendor": vendor, "speed": "2400.000",
        "modelname": "AMD EPYC 7302" if amd else "Intel(R) Xeon(R) Gold 6248",
        "family": "23" if amd else "6", "model": "49" if amd else "85", "stepping": "0",
        "flags": "fpu de tsc", "features_hvm": written(hvm), "features_pv": written(pv),
        "features_hvm_host": written(hvm), "features_pv_host": written(pv),
    }  # fmt: skip


class World:
    """All pools, who executes which guest, and how moves go.

    ``hold_at``: a move stands still at this progress until it is released; ``fails``: (progress,
    failure) at which the next move fails; ``pause_s`` between two of its steps.
    """

    def __init__(self) -> None:
        self.lock = threading.RLock()
        self.changed = threading.Condition(self.lock)
        self.pools: dict[str, Pool] = {}
        self.domains: dict[str, set[str]] = {}
        self.seen: list[int] = []
        self.hold_at: float | None = None
        self.fails: tuple[float, list[str]] | None = None
        self.loses = False
        self.pause_s = 0.005

    def executes(self, guest: str, host: str, *, here: bool) -> None:
        with self.lock:
            where = self.domains.setdefault(guest, set())
            (where.add if here else where.discard)(host)
            self.seen.append(len(where))

    def switch(self, guest: str, source: str, destination: str) -> None:
        """Xen's own hand-over: the source's domain has ended before the destination's runs."""
        self.executes(guest, source, here=False)
        self.executes(guest, destination, here=True)

    def release(self) -> None:
        with self.changed:
            self.hold_at = None
            self.changed.notify_all()


class Pool:
    """One pool; its first host is the coordinator."""

    def __init__(
        self, world: World, name: str, hosts: dict[str, dict[str, str]], *, password: str = "pw"
    ) -> None:
        self.world = world
        self.name = name
        self.password = password
        self.sessions: set[str] = set()
        self.caller = threading.local()
        self.tables: dict[str, dict[str, dict[str, Any]]] = {each: {} for each in CLASSES}
        self.generation = 1
        self.touched: dict[tuple[str, str], int] = {}
        self.network = self.add("network", name_label="Pool-wide network", bridge="xenbr0")
        self.sr = self.add("SR", name_label="shared storage", shared=True, type="nfs")
        self.hosts: dict[str, str] = {}
        for number, (label, info) in enumerate(hosts.items()):
            metrics = self.add("host_metrics", live=True, memory_free=64 << 30)
            host = self.add(
                "host", name_label=label, hostname=label,
                address=f"10.0.{len(world.pools)}.{number}", enabled=True,
                cpu_info=info, metrics=metrics,
                software_version={"xen": "4.17.5-13", "product_version": "8.4.0"},
                API_version_major=2, API_version_minor=21,
            )  # fmt: skip
            self.hosts[label] = host
            self.add("PIF", host=host, network=self.network, management=True, device="eth0")
        self.ref = self.add(
            "pool", name_label=name, master=next(iter(self.hosts.values())), default_SR=self.sr,
            cpu_info={},
        )  # fmt: skip
        self.level()
        world.pools[name] = self

    def level(self) -> None:
        """``create_pool_cpuinfo``: the intersection of what the hosts start guests with."""
        infos = [host["cpu_info"] for host in self.tables["host"].values()]
        level = {"vendor": infos[-1]["vendor"], "cpu_count": "32", "socket_count": "4"}
        for key in ("features_hvm_host", "features_pv_host"):
            words = [[int(word, 16) for word in info[key].split("-")] for info in infos]
            level[key] = written([_all(each) for each in zip(*words, strict=True)])
        self.change("pool", self.ref, cpu_info=level)

    def add(self, kind: str, **fields: Any) -> str:
        ref = f"OpaqueRef:{uuids.uuid4()}"
        conforms(kind, fields)
        with self.world.changed:
            self.tables[kind][ref] = {"uuid": str(uuids.uuid4()), **fields}
            self._touch(kind, ref)
        return ref

    def change(self, kind: str, ref: str, **fields: Any) -> None:
        conforms(kind, fields)
        with self.world.changed:
            self.tables[kind][ref].update(fields)
            self._touch(kind, ref)

    def remove(self, kind: str, ref: str) -> None:
        with self.world.changed:
            self.tables[kind].pop(ref, None)
            self._touch(kind, ref)

    def _touch(self, kind: str, ref: str) -> None:
        self.generation += 1
        self.touched[kind, ref] = self.generation
        self.world.changed.notify_all()

    def get(self, kind: str, ref: object) -> dict[str, Any]:
        record = self.tables[kind].get(ref) if isinstance(ref, str) else None
        if record is None:
            raise RefusedError("HANDLE_INVALID", kind, str(ref))
        return record

    def guest(self, name: str, host: str, *, kind: str = "hvm", **fields: Any) -> str:
        """A running guest, started at the pool's level, with one disk and one network card."""
        on = self.hosts[host]
        info = self.tables["host"][on]["cpu_info"]
        key = "features_pv_host" if kind == "pv" else "features_hvm_host"
        flags = {
            "vendor": info["vendor"], "features": self.tables["pool"][self.ref]["cpu_info"][key],
        }  # fmt: skip
        vdi = self.add("VDI", name_label=f"{name} root", SR=self.sr, virtual_size=8 << 30)
        record = {
            "name_label": name, "name_description": "", "power_state": "Running",
            "resident_on": on, "scheduled_to_be_resident_on": NULL, "is_a_template": False,
            "is_a_snapshot": False, "is_control_domain": False, "domain_type": kind,
            "last_boot_CPU_flags": flags, "current_operations": {},
            "allowed_operations": ["pool_migrate", "migrate_send"], "memory_target": 1 << 30,
            "memory_static_max": 1 << 30, "VCPUs_max": 2, "VCPUs_at_startup": 2,
            "HVM_boot_policy": "" if kind == "pv" else "BIOS order", "platform": {"pae": "true"},
            "domid": 7, "metrics": self.add("VM_metrics", current_domain_type=kind),
            "snapshot_time": dt.datetime(1970, 1, 1, tzinfo=dt.UTC), "snapshots": [],
            "VBDs": [], "VIFs": [],
        }  # fmt: skip
        ref = self.add("VM", **(record | fields))
        vbds = [
            self.add("VBD", VM=ref, VDI=vdi, type="Disk", empty=False, mode="RW"),
            self.add("VBD", VM=ref, VDI=NULL, type="CD", empty=True, mode="RO"),
        ]
        vif = self.add("VIF", VM=ref, network=self.network, device="0", MAC="52:54:00:00:00:01")
        self.change("VM", ref, VBDs=vbds, VIFs=[vif])
        if self.tables["VM"][ref]["power_state"] == "Running":
            self.world.executes(self.uuid(ref), on, here=True)
        return ref

    def uuid(self, vm: str) -> str:
        return str(self.tables["VM"][vm]["uuid"])

    def check_cpu(self, record: dict[str, Any], kind: str, host: str) -> None:
        """``assert_vm_is_compatible``."""
        if record["power_state"] == "Halted":
            return
        info, flags = self.get("host", host)["cpu_info"], record["last_boot_CPU_flags"]
        fail = ("VM_INCOMPATIBLE_WITH_THIS_HOST", NULL, host)
        if flags.get("vendor", info["vendor"]) != info["vendor"]:
            raise RefusedError(
                *fail, "VM last booted on a host which had a CPU from a different vendor."
            )
        offered = info["features_pv" if kind == "pv" else "features_hvm"].split("-")
        for wanted, had in zip(flags.get("features", "").split("-"), offered, strict=False):
            if wanted and int(wanted, 16) & ~int(had, 16):
                raise RefusedError(
                    *fail,
                    "VM last booted on a CPU with features this host's CPU does not have.",
                )

    def can_boot(self, vm: str, host: str, *, cpu: bool = True) -> None:
        """``assert_can_boot_here``, as far as a host's state and CPU go."""
        record, there = self.get("VM", vm), self.get("host", host)
        if not self.get("host_metrics", there["metrics"])["live"]:
            raise RefusedError("HOST_OFFLINE", host)
        if not there["enabled"]:
            raise RefusedError("HOST_DISABLED", host)
        if cpu:
            self.check_cpu(record, record["domain_type"], host)
        if record["memory_target"] > self.get("host_metrics", there["metrics"])["memory_free"]:
            raise RefusedError("HOST_NOT_ENOUGH_FREE_MEMORY", str(record["memory_target"]), "1")

    def begin(self, vm: str, operation: str, work: Callable[[str], str]) -> str:
        """``Async.VM.…``: a task that does ``work`` and ends as documented."""
        record = self.get("VM", vm)
        now = dt.datetime.now(dt.UTC)
        task = self.add(
            "task", name_label=f"Async.VM.{operation}", name_description="", created=now,
            finished=now, status="pending", resident_on=self.get("pool", self.ref)["master"],
            progress=0.0, type="<none/>", result="", error_info=[], other_config={},
            allowed_operations=["cancel"], current_operations={}, subtask_of=NULL, subtasks=[],
            backtrace="()",
        )  # fmt: skip

        busy: list[str] = []
        with self.world.lock:
            for other, what in record["current_operations"].items():
                busy = ["OTHER_OPERATION_IN_PROGRESS", "VM", vm, what, other]
            if not busy:
                self.change("VM", vm, current_operations={task: operation})

        def run() -> None:
            try:
                result = self._worked(vm, task, work, busy)
            except RefusedError as refused:
                cancelled = refused.details[0] == "TASK_CANCELLED"
                end = {"status": "cancelled" if cancelled else "failure"}
                end |= {"error_info": refused.details}
            else:
                end = {"status": "success", "result": result}
            if task in self.tables["task"]:
                self.change(
                    "task", task, progress=1.0, allowed_operations=[],
                    finished=dt.datetime.now(dt.UTC), **end,
                )  # fmt: skip

        threading.Thread(target=run, daemon=True).start()
        return task

    def _worked(self, vm: str, task: str, work: Callable[[str], str], busy: list[str]) -> str:
        if busy:
            raise RefusedError(*busy)
        try:
            return work(task)
        finally:
            if vm in self.tables["VM"]:
                self.change("VM", vm, current_operations={})

    def advance(self, task: str, *, steps: int = 10) -> None:
        """The memory goes over: progress, the moments to hold, to fail and to be cancelled."""
        for step in range(1, steps + 1):
            here = step / (steps + 1)
            if task in self.tables["task"]:
                self.change("task", task, progress=here)
            with self.world.changed:
                while self.world.hold_at is not None and here >= self.world.hold_at:
                    self._cancelled(task)
                    self.world.changed.wait(0.05)
            self._cancelled(task)
            if self.world.fails is not None and here >= self.world.fails[0]:
                details, self.world.fails = self.world.fails[1], None
                raise RefusedError(*details)
            time.sleep(self.world.pause_s)

    def _cancelled(self, task: str) -> None:
        if "cancel" in self.tables["task"].get(task, {}).get("current_operations", {}).values():
            raise RefusedError("TASK_CANCELLED", task)

    def restart(self) -> None:
        """XAPI restarts: sessions, tasks and operations are not kept; moves go on below it."""
        with self.world.changed:
            self.sessions.clear()
            for ref in list(self.tables["task"]):
                self.remove("task", ref)
            for ref in list(self.tables["VM"]):
                self.change("VM", ref, current_operations={})


def _all(words: Sequence[int]) -> int:
    result = -1
    for word in words:
        result &= word
    return result
