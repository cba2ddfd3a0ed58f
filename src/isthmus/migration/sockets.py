"""Move a guest that Isthmus did not start, known only by QMP sockets.

Nothing is known of how either QEMU was started, so both are asked what CPU they show: the CPUID
words of the vCPUs must be equal, bit for bit (QEMU: target/i386/cpu.c, property ``feature-words``).
"""

import contextlib
import time
from collections.abc import Collection
from pathlib import Path
from typing import Any

from isthmus.cpu.features import by_cpuid
from isthmus.errors import RefusedError
from isthmus.hypervisor.qemu import process
from isthmus.hypervisor.qemu.guests import GuestStore
from isthmus.hypervisor.qemu.monitor import Monitor
from isthmus.hypervisor.qemu.process import ProcessIdentity, private_directory
from isthmus.migration import engine
from isthmus.migration.options import Observer, Options
from isthmus.migration.record import (
    MigrationRecord,
    Plan,
    Side,
    guest_lock,
    new_id,
    require_none_pending,
)

RULE = "cpu-differs"
_IDENTITY = ("vendor", "family", "model", "stepping", "level", "xlevel")


async def move_by_socket(
    source: Path,
    destination: Path,
    store: GuestStore,
    options: Options,
    *,
    accepted: Collection[str] = (),
    observer: Observer = lambda _: None,
) -> MigrationRecord:
    """Move the guest behind ``source`` to the QEMU that waits behind ``destination``.

    :param source: the absolute path of a QMP socket, as ``destination``.
    :raises RefusedError: the two show different CPUs and ``cpu-differs`` was not accepted, or
        ``options`` ask for the translator by name.
    :raises MonitorGoneError: one of the sockets is no QMP monitor.
    """
    if options.translate:
        raise RefusedError(
            "a guest known only by its QMP socket cannot be translated: neither what it was shown"
            " at boot is known, nor a debug stub of its destination",
            remedy="move one that `isthmus guest start` has started, by name, or leave out"
            " --translate",
        )
    name = str(source)
    with contextlib.ExitStack() as held:
        held.enter_context(guest_lock(store.locks, name))
        found = {process.serving(path): path for path in (source, destination)}
        for one, path in found.items():
            if one is not None:
                _require_free(store, path, one)
                # One QEMU may have several monitors, so several names.
                held.enter_context(guest_lock(store.locks, f"qemu-{one.pid}-{one.start_ticks}"))
        if RULE not in accepted:
            await _same_cpu(source, destination)
        identity = new_id()
        stream = private_directory(store.run) / f"{identity}.sock"
        plan = Plan(
            id=identity,
            guest=name,
            source=Side(qmp=source),
            destination=Side(qmp=destination),
            channel=f"unix:{stream}",
            created=time.time(),
        )
        try:
            return await engine.move(
                plan, journals=store.journals, options=options, observer=observer
            )
        finally:
            stream.unlink(missing_ok=True)


def _require_free(store: GuestStore, path: Path, one: ProcessIdentity) -> None:
    """Refuse what another kind of move, or an earlier one that has not ended, has to do with.

    :raises RefusedError: it is a guest that has a name here, and a file that a move has to change.
    :raises IsthmusError: an earlier migration of that process has not ended.
    """
    for guest in store.guests()[0]:
        if guest.process.identity == one:
            raise RefusedError(
                f"{path}: that is the guest {guest.name}",
                remedy=f"isthmus migrate {guest.name} --to HOST",
            )

    def concerns(plan: Plan) -> bool:
        ends = (plan.source.qmp, plan.destination.qmp)
        return any(end == path or (end and process.serving(end) == one) for end in ends)

    require_none_pending(store.journals, str(path), concerns)


async def _same_cpu(source: Path, destination: Path) -> None:
    ours, theirs = await _shown(source), await _shown(destination)
    differences = [
        f"{key}: {ours.get(key)} here, {theirs.get(key)} there"
        for key in sorted(ours.keys() | theirs.keys())
        if ours.get(key) != theirs.get(key)
    ]
    if differences:
        raise RefusedError(
            f"the destination shows another CPU ({'; '.join(differences[:8])})",
            remedy=f"start it with the level of both hosts, or take the risk: --accept-risk {RULE}",
        )


async def _shown(path: Path) -> dict[str, Any]:
    """What the first vCPU behind a monitor shows: identity and features by name."""
    async with Monitor.session(path) as monitor:
        vcpus = await monitor.execute("query-cpus-fast")
        where = vcpus[0]["qom-path"]
        shown: dict[str, Any] = {
            key: await monitor.execute("qom-get", {"path": where, "property": key})
            for key in _IDENTITY
        }
        words = await monitor.execute("qom-get", {"path": where, "property": "feature-words"})
    names: dict[object, str] = dict(by_cpuid().items())
    for word in words:
        leaf, subleaf = word["cpuid-input-eax"], word.get("cpuid-input-ecx", 0)
        register = str(word["cpuid-register"]).lower()
        for bit in range(32):
            if word["features"] >> bit & 1:
                place = (leaf, subleaf, register, bit)
                shown[names.get(place, f"{leaf:#x}.{subleaf} {register} bit {bit}")] = True
    return shown
