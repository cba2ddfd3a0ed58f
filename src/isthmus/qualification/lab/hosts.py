"""Emulated hosts that are up: each has a private folder below one for all of its lab."""

import asyncio
import contextlib
import fcntl
import os
import shutil
from collections.abc import Collection, Iterator
from pathlib import Path

from isthmus.errors import InputError
from isthmus.hypervisor.qemu import process


@contextlib.contextmanager
def starting(run: Path, names: Collection[str]) -> Iterator[None]:
    """Hold the right to start the hosts of ``names`` below ``run``; it ends with this process.

    :raises InputError: another process is starting one of them.
    """
    process.private_directory(run)
    with contextlib.ExitStack() as held:
        for name in sorted(set(names)):
            held.enter_context(_lock(run / f".{name}"))
        yield


@contextlib.contextmanager
def _lock(path: Path) -> Iterator[None]:
    """Hold the lock of one host; its file exists only as long as somebody holds it."""
    descriptor = _taken(path)
    while not _is(descriptor, path):  # its former holder has just removed it
        os.close(descriptor)
        descriptor = _taken(path)
    try:
        yield
    finally:
        path.unlink(missing_ok=True)
        os.close(descriptor)


def _taken(path: Path) -> int:
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        raise InputError(
            f"{path.name[1:]}: is being started by another process", remedy="wait until it is up"
        ) from None
    return descriptor


def _is(descriptor: int, path: Path) -> bool:
    with contextlib.suppress(FileNotFoundError):
        return os.path.samestat(os.fstat(descriptor), path.stat())
    return False


async def remove_all(run: Path) -> None:
    """End every process that has to do with a folder below ``run``, and remove them all."""
    for folder in sorted(run.glob("[!.]*")):  # noqa: ASYNC240  (a handful of folders)
        for left in process.mentioning(folder):
            await asyncio.to_thread(left.kill)
        shutil.rmtree(folder, ignore_errors=True)
    shutil.rmtree(run, ignore_errors=True)
