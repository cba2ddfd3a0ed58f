"""A lab guest of Xen under the payload: its image, its ``xl`` configuration, its start.

Its kernel is dom0's, which is a PV and PVH kernel as well.  The payload reports on the guest's
console, since a PV guest of ``xl`` has no other wire without QEMU in dom0; xenconsoled keeps what
it says, and :func:`reports` takes the payload's lines out of it.
"""

import asyncio
import hashlib
import re
import time
from collections.abc import Callable, Mapping
from pathlib import Path

from isthmus.baseline.level import Baseline
from isthmus.errors import InputError
from isthmus.hypervisor.xen.host import Type, require_name
from isthmus.hypervisor.xen.render import policy
from isthmus.qualification.kvm.channel import AgentRefusedError
from isthmus.qualification.lab.image import APPLETS, static_busybox
from isthmus.qualification.lab.initramfs import archive, file, folder, link
from isthmus.qualification.payload.build import build_payload, instruction_groups
from isthmus.qualification.store import Made, key_of, obtain
from isthmus.qualification.xen.host import LabHost

KERNEL = "/guest/vmlinuz"
"""Where dom0 has its own kernel for guests."""

UP_TIMEOUT_S = 600.0

QUIET: Mapping[str, object] = {
    "memory_mib": 8, "rewrite_kib": 256, "threads": 1, "tick_ms": 400, "beat_ms": 100,
}  # fmt: skip
"""Options of the payload that leave an emulated host time for its dom0."""

# Programs in a PV guest see the host's own CPUID, so no level keeps glibc from choosing string
# functions of the host at hand: init died so in the lab.  The kernel gives this to init.
PLAIN_STRINGS = (
    "GLIBC_TUNABLES=glibc.cpu.hwcaps=-AVX512F,-AVX512VL,-AVX2,-AVX,-SSE4_2,-SSE4_1,-SSSE3,-ERMS"
)

# The console's line discipline must not make two signs of a line's end.
_INIT = b"""#!/bin/sh
# Mount what programs need, take Xen's console, become the payload.
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs devtmpfs /dev
echo 1 > /proc/sys/kernel/print-fatal-signals
exec < /dev/hvc0 > /dev/hvc0 2>&1
stty -opost -echo
echo "isthmus: guest is up"
exec /bin/payload --port /dev/hvc0
"""

_REPORT = re.compile(rb"isthmus1 [^\r\n]*\n")


def build_initrd(cache: Path, *, progress: Callable[[str], None] = lambda _: None) -> Path:
    """The initramfs of a guest of Xen, from the cache or built.

    :raises EnvironmentLackError: busybox or a compiler is missing.
    """
    busybox = static_busybox(cache, progress)
    payload = build_payload(cache, progress=progress).read_bytes()
    entries = [folder(path) for path in ("bin", "dev", "proc", "sys")]
    entries += [file("init", _INIT, executable=True), file("bin/busybox", busybox, executable=True)]
    entries += [link(f"bin/{applet}", "busybox") for applet in (*APPLETS, "stty")]
    entries += [file("bin/payload", payload, executable=True)]
    content = archive(entries)
    made = obtain(cache, "images", key_of(content), lambda _: Made(files={"initrd": content}))
    return made.folder / "initrd"


def configuration(
    name: str,
    initrd: str,
    *,
    kind: Type = Type.PV,
    memory_mib: int = 96,
    vcpus: int = 1,
    level: Baseline | None = None,
    cpuid: tuple[str, ...] | None = None,
    options: Mapping[str, object] | None = None,
) -> str:
    """The guest's xl.cfg(5).

    :param level: show it this CPU and test only what that has; None: what Xen gives it.
    :param cpuid: the entries of ``cpuid=`` instead of the level's.
    """
    require_name(name)
    chosen = {**QUIET, **(options or {})}
    if level is not None:
        groups = sorted(instruction_groups() & level.model.features)
        chosen.setdefault("test", ",".join(groups) or "none")
    words = ["console=hvc0", "quiet", "panic=-1", PLAIN_STRINGS]
    words += [f"isthmus.{key}={value}" for key, value in chosen.items()]
    text = " ".join(words)
    if '"' in text or not text.isprintable():
        raise InputError(f"{text}: cannot stand in a configuration of xl")
    entries = cpuid if cpuid is not None else policy(level) if level is not None else ()
    shown = "".join(f"  '{entry}',\n" for entry in entries)
    return (
        f'name = "{name}"\ntype = "{kind.value}"\nkernel = "{KERNEL}"\nramdisk = "{initrd}"\n'
        f'memory = {memory_mib}\nvcpus = {vcpus}\nextra = "{text}"\n'
        'on_crash = "preserve"\non_reboot = "preserve"\n'
        + (f"cpuid = [\n{shown}]\n" if shown else "")
    )


async def start(host: LabHost, name: str, initrd: Path, **settings: object) -> None:
    """Start a guest on a lab host, and wait until it reports.

    :param settings: of :func:`configuration`.
    :raises HypervisorError: it does not come up.
    """
    channel = host.channel()
    content = await asyncio.to_thread(initrd.read_bytes)
    place = f"/guest/{hashlib.sha256(content).hexdigest()[:16]}"
    if not await channel.has(place):
        await channel.put(place, content)
    text = configuration(name, place, **settings)  # type: ignore[arg-type]
    await channel.put(f"/guest/{name}.cfg", text.encode())
    await channel.run("/bin/sh", "-c", f"xl create /guest/{name}.cfg 2>&1")
    deadline = time.monotonic() + UP_TIMEOUT_S
    while b" tick " not in await console(host, name):
        if time.monotonic() > deadline:
            said = (await console(host, name))[-400:].decode(errors="replace")
            raise AgentRefusedError(f"{name}: does not report on {host.address}: {said}")


async def console(host: LabHost, name: str) -> bytes:
    """All that a guest's console has said on a host, also in the part after it came there."""
    log = "/var/log/xen/console/guest-"
    said = await host.channel().run(
        "/bin/sh", "-c",
        f"cat {log}{name}.log {log}{name}--incoming.log 2>/dev/null; true",
    )  # fmt: skip
    return said.encode()


def reports(said: bytes) -> bytes:
    """The payload's lines in what a console has said."""
    return b"".join(match[0] for match in _REPORT.finditer(said.replace(b"\r", b"")))
