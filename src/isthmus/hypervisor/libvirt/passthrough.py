"""QEMU's own monitor, through libvirt: for what libvirt has no call.

libvirt marks a domain that was spoken to in this way (its log says "tainted: custom-monitor");
what is only read, or put back, does no harm, and the mark goes with the process (libvirt:
docs/drvqemu.rst, "Pass-through of QEMU command-line arguments" and virsh's qemu-monitor-command).
"""

from typing import Any

import msgspec

from isthmus.errors import HypervisorError
from isthmus.hypervisor.libvirt.connection import call, qemu_binding
from isthmus.hypervisor.qemu.monitor import CommandRefusedError

MAX_ANSWER = 16 << 20


async def command(domain: Any, name: str, arguments: dict[str, object] | None = None) -> Any:
    """Run one QMP command in the domain's QEMU; returns its ``return`` value.

    :raises CommandRefusedError: QEMU answered with an error.
    :raises LibvirtError: libvirt did not pass it on.
    """
    order: dict[str, object] = {"execute": name}
    if arguments:
        order["arguments"] = arguments
    text = await call(
        qemu_binding().qemuMonitorCommand, domain, msgspec.json.encode(order).decode(), 0
    )
    try:
        answer = msgspec.json.decode(text[:MAX_ANSWER])
    except msgspec.DecodeError as error:
        raise HypervisorError(f"{name}: an answer that is no JSON: {error}") from error
    if not isinstance(answer, dict) or "error" in answer:
        described = answer.get("error") if isinstance(answer, dict) else None
        reason = described.get("desc", "") if isinstance(described, dict) else ""
        raise CommandRefusedError(name, str(reason) or "an answer of a strange form")
    return answer.get("return")
