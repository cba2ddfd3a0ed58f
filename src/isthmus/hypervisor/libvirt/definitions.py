"""Put levels into domains, of a connection or of files, so that each can be put back.

The former XML is on the disk before the new one is defined.  What libvirt made of it is read back:
if anything but the level's own parts has changed, or the level has not come through whole, the
former one is defined again.
"""

import os
import re
import shlex
import time
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

from isthmus.baseline.level import Baseline
from isthmus.errors import HypervisorError, InputError, IsthmusError, RefusedError
from isthmus.hypervisor.libvirt.domain import MAX_BYTES
from isthmus.hypervisor.libvirt.relevel import (
    Relevelled,
    holds_level,
    relevel,
    same_but_for_level,
)
from isthmus.hypervisor.libvirt.virsh import DomainState
from isthmus.values import Value, read_bytes

SCHEMA_VERSION = 1
_FILE_SUFFIX = ".before-level"


class Definitions(Protocol):
    """What is asked of a connection to libvirt."""

    def state(self, domain: str) -> DomainState: ...
    def definition(self, domain: str) -> str: ...
    def define(self, xml: str) -> None: ...
    def put_back(self, path: Path) -> str: ...


class Applied(Value, frozen=True):
    """What became of one domain.

    ``difference`` is the change as a unified diff, empty where the level was in it already;
    ``written``: it was written, ``former`` the file with the former XML and ``undo`` the command
    that puts it back.  ``next_step``: what has to be done for it to count.  ``problem``: why
    nothing was done, empty if all went well.
    """

    domain: str
    difference: str = ""
    written: bool = False
    former: Path | None = None
    undo: str = ""
    next_step: str = ""
    notes: tuple[str, ...] = ()
    problem: str = ""
    schema: int = SCHEMA_VERSION


def apply_to_domain(
    connection: Definitions, name: str, level: Baseline, *, keep: Path, write: bool
) -> Applied:
    """Put the level into the definition of a domain.

    :param keep: the folder for the former XML.
    :param write: False only shows the change.
    :raises RefusedError: the domain has no definition that could be changed.
    :raises HypervisorError: libvirt did not take it; what it was before is in force again.
    """
    state = connection.state(name)
    if not state.persistent:
        raise RefusedError(
            f"{name}: a transient domain, which libvirt keeps no definition of",
            remedy="change it where it is made: isthmus level --for libvirt prints the element",
        )
    before = connection.definition(name)
    change = relevel(before, level, where=name)
    applied = Applied(
        domain=name,
        difference=change.difference(),
        next_step=_next_step(state) if change.changed else "",
        notes=change.notes + _state_notes(state, change),
    )
    if not (write and change.changed):
        return applied
    former = keep_former(keep, change.uuid or name, before)
    if connection.definition(name) != before:
        raise HypervisorError(
            f"{name}: somebody changed its definition just now", remedy="try again"
        )
    connection.define(change.after)
    _require_come_through(connection, name, before, level, former)
    return applied.replace(written=True, former=former, undo=connection.put_back(former))


def apply_to_file(path: Path, level: Baseline, *, write: bool) -> Applied:
    """Put the level into a domain's XML file; the former content goes beside it.

    :raises InputError: no such file, or no domain in it.
    """
    data = read_bytes(path, limit=MAX_BYTES)
    try:
        text = data.decode()
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: not UTF-8", remedy="write it in UTF-8") from error
    change = relevel(text, level, where=str(path))
    applied = Applied(
        domain=change.domain,
        difference=change.difference(str(path)),
        next_step=f"virsh define {path}, then shut the domain down and start it"
        if change.changed
        else "",
        notes=change.notes,
    )
    if not (write and change.changed):
        return applied
    former = _beside(path)
    _write(former, data, mode=path.stat().st_mode & 0o777)
    fresh = path.with_name(f"{path.name}.new-{os.getpid()}")
    _write(fresh, change.after.encode(), mode=path.stat().st_mode & 0o777)
    try:
        fresh.replace(path)
    except OSError as error:
        fresh.unlink(missing_ok=True)
        raise InputError(f"{path}: {error.strerror}", remedy="make it writable") from error
    return applied.replace(
        written=True, former=former, undo=shlex.join(["mv", str(former), str(path)])
    )


def apply_to_all(names: tuple[str, ...], one: Callable[[str], Applied]) -> tuple[Applied, ...]:
    """The same for several; what fails is told of that one, and the others go on."""
    outcomes = []
    for name in names:
        try:
            outcomes.append(one(name))
        except IsthmusError as error:
            outcomes.append(Applied(domain=name, problem=str(error)))
    return tuple(outcomes)


def keep_former(folder: Path, name: str, xml: str) -> Path:
    """Write a domain's XML into ``folder``, readable by this user only: it may hold passwords.

    :raises InputError: the folder cannot be written.
    """
    plain = re.sub(r"[^A-Za-z0-9_.-]", "_", name)[:80]
    stamp = time.strftime("%Y%m%d-%H%M%S", time.gmtime())
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise _unwritable(folder, error) from error
    path = folder / f"{plain}-{stamp}.xml"
    number = 0
    while path.exists():
        number += 1
        path = folder / f"{plain}-{stamp}.{number}.xml"
    _write(path, xml.encode(), mode=0o600)
    return path


def _require_come_through(
    connection: Definitions, name: str, before: str, level: Baseline, former: Path
) -> None:
    """Read back what libvirt made of it; put the former back unless it is just what was meant."""
    after = connection.definition(name)
    if same_but_for_level(before, after, where=name) and holds_level(after, level, where=name):
        return
    connection.define(before)
    raise HypervisorError(
        f"{name}: this libvirt does not keep the level as it was given; the former definition is"
        f" in force again (and in {former})",
        remedy="an older libvirt drops what it does not know: compare `isthmus level --for libvirt`"
        " with what `virsh dumpxml` gives back",
    )


def _next_step(state: DomainState) -> str:
    if state.active:
        return (
            "it counts after a shutdown and a start (virsh shutdown, virsh start): a reboot"
            " inside the guest keeps the CPU that it has"
        )
    return "it counts from the next start"


def _state_notes(state: DomainState, change: Relevelled) -> tuple[str, ...]:
    if state.managed_save and change.changed:
        saved = (
            "its memory is saved (managed save), and it would wake up with the old CPU: start it"
            " and shut it down first, or virsh managedsave-remove"
        )
        return (saved,)
    return ()


def _beside(path: Path) -> Path:
    former = path.with_name(path.name + _FILE_SUFFIX)
    number = 0
    while former.exists():
        number += 1
        former = path.with_name(f"{path.name}{_FILE_SUFFIX}.{number}")
    return former


def _write(path: Path, data: bytes, *, mode: int) -> None:
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(descriptor)
    except OSError as error:
        raise _unwritable(path, error) from error


def _unwritable(path: Path, error: OSError) -> InputError:
    return InputError(
        f"{path}: {error.strerror or error}; nothing was changed",
        remedy="the former XML must be kept: free some space, or set ISTHMUS_STATE",
    )
