"""Whether a process still lives, to the last of its threads."""

import subprocess
import sys
import time
from pathlib import Path

from isthmus.hypervisor.qemu.process import ProcessIdentity

# exit(2) of the first thread alone (syscall 60 of x86-64): the other goes on.
HALF_GONE = """
import ctypes, threading, time
threading.Thread(target=time.sleep, args=(3600,)).start()
ctypes.CDLL(None).syscall(60, 0)
"""


def state(pid: int) -> str:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]


def test_a_process_whose_first_thread_has_ended_lives_on() -> None:
    """A QEMU that is killed: its vCPU may still run when its first thread is a zombie."""
    child = subprocess.Popen([sys.executable, "-c", HALF_GONE])
    try:
        identity = ProcessIdentity.of(child.pid)
        deadline = time.monotonic() + 180
        while state(child.pid) != "Z":
            assert time.monotonic() < deadline, "its first thread does not end"
            time.sleep(0.01)
        assert identity.alive()
        identity.kill(timeout=180)
        assert not identity.alive()
    finally:
        child.kill()
        child.wait()


def test_a_zombie_does_not_live() -> None:
    child = subprocess.Popen(["cat"], stdin=subprocess.PIPE)
    try:
        identity = ProcessIdentity.of(child.pid)
        assert child.stdin is not None
        child.stdin.close()
        deadline = time.monotonic() + 180
        while state(child.pid) != "Z":
            assert time.monotonic() < deadline, "it does not end"
            time.sleep(0.01)
        assert not identity.alive()
    finally:
        child.kill()
        child.wait()
