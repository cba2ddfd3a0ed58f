"""End a guest of ours for good, and what a move that was cut short has left of it.

The record of such a move is closed with it: a later guest of that name has nothing to do with it.
"""

import shutil
from pathlib import Path

from isthmus.errors import InputError
from isthmus.hypervisor.qemu import process
from isthmus.hypervisor.qemu.guests import GuestStore
from isthmus.migration.hosts import unfinished
from isthmus.migration.phases import Phase
from isthmus.migration.record import Journal, guest_lock

WHY = "the operator has stopped the guest"


def stop(store: GuestStore, name: str) -> None:
    """Kill the guest and remove all files of its processes.

    :raises InputError: there is no guest of that name; one whose file is damaged is ended, too.
    :raises IsthmusError: another process moves it.
    """
    with guest_lock(store.locks, name):
        folders = set((store.run / name).glob("*"))
        try:
            guest = store.read(name)
        except InputError:
            if name not in store.names():
                raise
            # Its file is damaged: what lies in its folder tells of its processes.
        else:
            guest.process.kill()
            # Some may lie in another run folder: that setting is the command's, not the guest's.
            folders |= {path.parent for path in guest.streams}
        for path in unfinished(store, name):
            journal = Journal.reopen(path)
            try:
                plan = journal.record.plan
                if plan.platform:  # a daemon's guest of the same name
                    continue
                folders |= {
                    side.directory for side in (plan.source, plan.destination) if side.directory
                }
                _end(folders)
                journal.enter(Phase.LOST, WHY)
            finally:
                journal.close()
        _end(folders)
        for folder in folders:
            shutil.rmtree(folder, ignore_errors=True)
        store.forget(name)


def _end(folders: set[Path]) -> None:
    for folder in folders:
        if (left := process.find(folder)) is not None:
            left.kill()
