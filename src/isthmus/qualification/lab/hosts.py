"""Emulated hosts that are up: each has a private folder below one for all of its lab."""

import asyncio
import contextlib
import shutil
from pathlib import Path

from isthmus.hypervisor.qemu import process


async def remove_all(run: Path) -> None:
    """End every process that has to do with a folder below ``run``, and remove them all."""
    for folder in sorted(run.glob("*")):  # noqa: ASYNC240  (a handful of folders)
        for left in process.mentioning(folder):
            await asyncio.to_thread(left.kill)
        shutil.rmtree(folder, ignore_errors=True)
    with contextlib.suppress(OSError):
        run.rmdir()  # noqa: ASYNC240
