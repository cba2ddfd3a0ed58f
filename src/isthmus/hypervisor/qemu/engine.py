"""Which accelerator a guest can have here: KVM where it truly works, else TCG.

A ``/dev/kvm`` can exist and still not run ordinary guests (a nested hypervisor without
virtualisation, where KVM interprets instructions in software and stops at the first SSE one with
``emulation failure``).  So we do not look for a device file: we run a guest of a few instructions
(``data/kvm_trial.S``) that walks into 64-bit mode, takes an exception, uses SSE and CPUID, and
answers through ``isa-debug-exit``.
"""

import enum
import subprocess
import tempfile
import time
from importlib import resources
from pathlib import Path

from isthmus.hypervisor.qemu.binary import QemuBinary
from isthmus.values import Value

TRIAL_TIMEOUT_S = 5.0
_ANSWER = 0x2A
_IMAGE_BYTES = 64 << 10


class Accelerator(enum.StrEnum):
    """QEMU's accelerators that Isthmus uses."""

    KVM = "kvm"
    TCG = "tcg"


class Trial(Value, frozen=True):
    """What came of trying an accelerator: whether it ran the guest, and why not."""

    accelerator: Accelerator
    works: bool
    reason: str


def trial_image() -> bytes:
    """The trial guest as a 64 KiB firmware image that ends at the reset vector."""
    data = resources.files("isthmus.hypervisor.qemu").joinpath("data/kvm_trial.hex").read_text()
    *body, reset = (bytes.fromhex(line) for line in data.splitlines())
    page = b"".join(body).ljust(0xFF0, b"\0") + reset.ljust(16, b"\0")
    return page.rjust(_IMAGE_BYTES, b"\xf4")


def try_accelerator(qemu: QemuBinary, accelerator: Accelerator) -> Trial:
    """Run the trial guest under ``accelerator``; takes well under a second where it works."""
    with tempfile.TemporaryDirectory(prefix="isthmus-trial-") as folder:
        image = Path(folder, "trial.rom")
        image.write_bytes(trial_image())
        command = [
            str(qemu.path), "-accel", accelerator.value, "-M", "pc", "-m", "16",
            "-bios", str(image), "-nodefaults", "-no-user-config", "-display", "none",
            "-no-reboot", "-device", "isa-debug-exit,iobase=0xf4,iosize=1",
        ]  # fmt: skip
        messages = Path(folder, "messages")
        try:
            with messages.open("wb") as log:
                child = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        except OSError as error:
            return Trial(accelerator=accelerator, works=False, reason=str(error))
        try:
            status = _outcome(child, messages)
        finally:
            child.kill()
            child.wait()
        said = messages.read_text(encoding="utf-8", errors="replace")
    # isa-debug-exit ends QEMU with (value << 1) | 1.
    if status == (_ANSWER << 1) | 1:
        return Trial(accelerator=accelerator, works=True, reason="a trial guest ran")
    fate = "hangs" if status is None else f"ended QEMU with status {status}"
    return Trial(
        accelerator=accelerator, works=False, reason=_reason(said) or f"the trial guest {fate}"
    )


def _outcome(child: subprocess.Popen[bytes], messages: Path) -> int | None:
    """The exit status of the trial, None if it hangs; KVM's own failure stops QEMU, not ends it."""
    deadline = time.monotonic() + TRIAL_TIMEOUT_S
    while child.poll() is None and time.monotonic() < deadline:
        if b"internal error" in messages.read_bytes():
            time.sleep(0.05)  # let QEMU finish its report
            break
        time.sleep(0.01)
    return child.poll()


def choose_accelerator(qemu: QemuBinary) -> Trial:
    """KVM if it truly runs a guest, else TCG; the reason tells why KVM was not taken.

    :returns: the trial of the chosen accelerator, or the failed trial of KVM with TCG put in.
    """
    kvm = try_accelerator(qemu, Accelerator.KVM)
    if kvm.works:
        return kvm
    return Trial(
        accelerator=Accelerator.TCG, works=True, reason=f"KVM is not usable here: {kvm.reason}"
    )


def _reason(stderr: str) -> str:
    """The line of QEMU's complaint that tells most."""
    lines = [line.strip() for line in stderr.splitlines() if line.strip()]
    telling = [
        line
        for line in lines
        if "warning:" not in line and ("fail" in line or "could not" in line.lower())
    ]
    return (telling or lines or [""])[0].removeprefix("qemu-system-x86_64: ")
