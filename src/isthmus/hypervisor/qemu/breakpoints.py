"""Whether a guest stops at a breakpoint here, which translation from outside lives by.

It always does in QEMU's own emulation, and under KVM on a real CPU.  Under a KVM that is itself in
a virtual machine it depends on what emulates or nests that: QEMU's emulation of SVM, for one,
ignores the debug registers that KVM gives a guest (7.2: target/i386/tcg/sysemu/svm_helper.c,
helper_vmrun), and no intercept of #BP sees an INT3 (excp_helper.c, raise_interrupt2).  So it is
tried: the guest of the KVM trial is to stop before its CPUID.
"""

import contextlib
import socket
import subprocess
import tempfile
import time
from pathlib import Path

from isthmus.hypervisor.qemu.binary import QemuBinary
from isthmus.hypervisor.qemu.engine import Accelerator, Trial, trial_image

TRIAL_TIMEOUT_S = 120.0
"""Where nothing is emulated it takes a fraction of a second; a busy host in Bochs takes many."""

_IMAGE_END = 1 << 32
_CPUID = bytes.fromhex("0fa2b02a")  # CPUID; MOV AL, the answer
_POLL_S = 0.01


def try_breakpoint(qemu: QemuBinary, accelerator: Accelerator) -> Trial:
    """Run the trial guest with a hardware breakpoint before one of its instructions."""
    image = trial_image()
    place = _IMAGE_END - len(image) + image.index(_CPUID)
    with tempfile.TemporaryDirectory(prefix="isthmus-stop-") as name:
        folder = Path(name)
        rom, gdb = folder / "trial.rom", folder / "gdb.sock"
        rom.write_bytes(image)
        command = [
            str(qemu.path), "-accel", accelerator.value, "-M", "pc", "-m", "16", "-S",
            "-bios", str(rom), "-nodefaults", "-no-user-config", "-display", "none",
            "-no-reboot", "-device", "isa-debug-exit,iobase=0xf4,iosize=1",
            "-chardev", f"socket,id=gdb,path={gdb},server=on,wait=off", "-gdb", "chardev:gdb",
        ]  # fmt: skip
        try:
            child = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
            )  # fmt: skip
        except OSError as error:
            return Trial(accelerator=accelerator, works=False, reason=str(error))
        try:
            return _tried(child, gdb, place, accelerator)
        finally:
            child.kill()
            child.wait()


def _tried(
    child: subprocess.Popen[bytes], gdb: Path, place: int, accelerator: Accelerator
) -> Trial:
    deadline = time.monotonic() + TRIAL_TIMEOUT_S
    said = b""
    with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX) as stub:
        stub.settimeout(TRIAL_TIMEOUT_S)
        while child.poll() is None and time.monotonic() < deadline:
            with contextlib.suppress(FileNotFoundError, ConnectionRefusedError):
                stub.connect(str(gdb))
                break
            time.sleep(_POLL_S)
        stub.sendall(_packet(b"Z1,%x,1" % place))
        said = _until(stub, (b"$OK#", b"$E", b"$#"))
        if b"$OK#" in said:
            stub.sendall(_packet(b"c"))
            said = _until(stub, (b"$T05", b"$S05", b"$W", b"$X"))
    if b"$T05" in said or b"$S05" in said:
        return Trial(accelerator=accelerator, works=True, reason="a trial guest stopped")
    return Trial(
        accelerator=accelerator, works=False, reason="a trial guest ran past its breakpoint"
    )


def _packet(payload: bytes) -> bytes:
    """A packet of GDB's remote protocol (GDB manual, appendix E.1)."""
    return b"$%s#%02x" % (payload, sum(payload) & 0xFF)


def _until(stub: socket.socket, ends: tuple[bytes, ...]) -> bytes:
    """Everything that the stub says until one of these, or its end."""
    said = b""
    while not any(end in said for end in ends) and (block := stub.recv(4096)):
        said += block
    return said
