"""The disks of a guest that was given away and is taken back.

When a precopy has completed, QEMU gives up the source's block devices, so that the destination may
write (migration/migration.c, ``migration_completion``: ``inactivate``).  ``cont`` takes them back
(monitor/qmp-cmds.c, ``qmp_cont``: ``bdrv_activate_all``); the debug stub's "continue", by which a
guest under translation runs, does not (gdbstub.c, ``gdb_continue``), and QEMU ends by an assertion
at the guest's next write (block/io.c, ``bdrv_co_write_req_prepare``).  Seen with QEMU 7.2.

QEMU 10.0 has a command for it; before that a block export does it on its way
(block/export/export.c, ``blk_exp_add``: ``bdrv_activate``).
"""

import contextlib
import secrets
from pathlib import Path

from isthmus.hypervisor.qemu.monitor import CommandRefusedError, Monitor


async def take_back(monitor: Monitor, folder: Path | None) -> None:
    """Have QEMU use the guest's disks again; the guest still stands afterwards.

    :param folder: a private one where QEMU can make a socket, None: it is on another machine.
    :raises CommandRefusedError: they cannot be taken back: another process has them.
    """
    if await monitor.status() != "postmigrate":
        return
    nodes = [
        device["inserted"]["node-name"]
        for device in await monitor.execute("query-block")
        if device.get("inserted", {}).get("node-name")
    ]
    if not nodes:
        return
    with contextlib.suppress(CommandRefusedError):
        await monitor.execute("blockdev-set-active", {"active": True})
        return
    name = f"isthmus-{secrets.token_hex(8)}"
    socket = folder / "nbd.sock" if folder is not None else None
    place = {"path": str(socket)} if socket is not None else {"path": name, "abstract": True}
    await monitor.execute("nbd-server-start", {"addr": {"type": "unix", "data": place}})
    try:
        for node in nodes:
            export = {"type": "nbd", "id": name, "name": name, "node-name": node}
            await monitor.execute("block-export-add", export)
            await monitor.execute("block-export-del", {"id": name, "mode": "hard"})
    finally:
        await monitor.execute("nbd-server-stop")
        if socket is not None:
            socket.unlink(missing_ok=True)
