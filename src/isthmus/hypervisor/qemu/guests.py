"""The guests that Isthmus started on this machine: one small file each, replaced atomically.

The file says which process is the guest now.  A move changes it at one point only, when the
destination has proved itself (:func:`GuestStore.adopt` is the ``adopt`` of the engine).
"""

import os
import re
import shlex
import shutil
from pathlib import Path

from isthmus.cpu.model import CpuModel
from isthmus.errors import InputError, IsthmusError
from isthmus.hypervisor.qemu.process import (
    LaunchSpec,
    QemuProcess,
    private_directory,
)
from isthmus.translate.placement import WARN_SHARE, Translation
from isthmus.values import Value, read_value, to_json

SCHEMA_VERSION = 1
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,31}")


class Guest(Value, frozen=True):
    """One guest: what machine it is, on which host it runs, in which process.

    ``host`` names the CPU model that the process plays; ``shown`` is the CPU that the guest saw at
    boot and keeps.  ``streams`` are the payload's report files in the order of the hops, and
    ``translator`` the folder of the translator where one is armed; ``module``: its kernel has the
    translator's module loaded, so that it needs none outside; ``rewritten`` the record of what is
    not in its memory as it was at home.  ``translation`` says what is translated for it where it
    is, ``warn_share`` above which share of a vCPU its cost is warned of, ``home`` on which host it
    booted (empty where that was not written down).
    """

    name: str
    spec: LaunchSpec
    host: str
    shown: CpuModel
    process: QemuProcess
    streams: tuple[Path, ...] = ()
    translator: Path | None = None
    module: bool = False
    rewritten: Path | None = None
    translation: Translation | None = None
    warn_share: float = WARN_SHARE
    home: str = ""
    schema: int = SCHEMA_VERSION

    @property
    def hops(self) -> int:
        """How many moves are behind it."""
        return len(self.streams) - 1

    @property
    def level_command(self) -> str:
        """The command that computes the CPU to boot it with so that it needs no translation."""
        return level_command(self.home or self.shown.name, self.host)


def level_command(home: str, host: str) -> str:
    """The command that computes the level of the host a guest booted on and another."""
    return shlex.join(["isthmus", "level", *dict.fromkeys((home, host))])


class GuestStore:
    """The guests of one state folder; their processes' files lie below the run folder."""

    def __init__(self, state: Path, run: Path) -> None:
        self.folder = state / "guests"
        self.locks = state / "locks"
        self.journals = state / "migrations"
        self.run = run

    def names(self) -> list[str]:
        """The names of all guests, sorted."""
        found = (path.stem for path in self.folder.glob("*.json"))
        return sorted(name for name in found if _NAME.fullmatch(name))

    def read(self, name: str) -> Guest:
        """The guest of that name.

        :raises InputError: there is none, or its file is damaged.
        """
        path = self._path(name)
        if not path.exists():
            known = ", ".join(self.names()) or "none"
            raise InputError(
                f"{name}: no guest of that name", remedy=f"`isthmus guest list` (known: {known})"
            )
        return read_value(path, Guest)

    def guests(self) -> tuple[list[Guest], dict[str, str]]:
        """All guests by name, and by the names of the files that cannot be read, why not.

        One that is damaged must not hide the others.
        """
        found, problems = [], {}
        for name in self.names():
            try:
                found.append(self.read(name))
            except InputError as error:
                problems[name] = str(error)
        return found, problems

    def write(self, guest: Guest) -> None:
        """Write the guest's file, whole or not at all.

        :raises IsthmusError: the disk is full or the folder cannot be written.
        """
        path = self._path(guest.name)
        fresh = path.with_suffix(".new")
        try:
            self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            with fresh.open("wb") as file:
                file.write(to_json(guest))
                file.flush()
                os.fsync(file.fileno())
            fresh.replace(path)
        except OSError as error:
            fresh.unlink(missing_ok=True)
            raise IsthmusError(
                f"{path}: cannot be written: {error.strerror}", remedy="free some space"
            ) from error

    def forget(self, name: str) -> None:
        """Remove the guest's file and the files of all its processes, which must have ended."""
        self._path(name).unlink(missing_ok=True)
        shutil.rmtree(self.run / name, ignore_errors=True)

    def hop_folder(self, name: str, hop: int) -> Path:
        """The private folder of the guest's process after ``hop`` moves.

        A folder left by a move that was rolled back is passed over, never used again.
        """
        private_directory(self.run)
        private_directory(self.run / name)
        attempt = 0
        while True:
            suffix = f"{hop}" if attempt == 0 else f"{hop}.{attempt}"
            folder = self.run / name / suffix
            if not folder.exists():
                return private_directory(folder)
            attempt += 1

    def _path(self, name: str) -> Path:
        if not _NAME.fullmatch(name):
            raise InputError(
                f"{name!r}: not a guest name",
                remedy="use letters, digits, '-', '_' and '.', at most 32",
            )
        return self.folder / f"{name}.json"
