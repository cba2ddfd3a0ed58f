"""What a translated instruction costs inside the guest, beside an empty #UD notifier.

Guest instructions, not time: QEMU counts them (``-icount shift=0``), so that the figure is the same
on every machine.  One guest, `mitigations=off`: first a module that only skips the instruction,
then ours, the same program under both.

    .venv/bin/python bench/translate_inside.py
"""

import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path

from isthmus.hypervisor.qemu.binary import find_qemu
from isthmus.places import cache_folder
from isthmus.qualification.lab.headers import inside_module, kernel_module
from isthmus.qualification.lab.image import build_image, command_line
from isthmus.qualification.lab.initramfs import file, folder
from isthmus.qualification.lab.kernel import fetch_kernel

HERE = Path(__file__).parent
BOUND = 1.5
PATIENCE_S = 300

_INIT = b"""#!/bin/sh
mount -t proc proc /proc
for module in empty isthmus_translate; do
    insmod /bench/$module.ko
    echo "bench $module $(/bench/traps)"
    [ $module = empty ] && rmmod $module
done
echo "bench done"
poweroff -f
"""


def traps(scratch: Path) -> bytes:
    """The static program that executes the missing instruction."""
    program = scratch / "traps"
    subprocess.run(["gcc", "-O2", "-static", "-o", program, HERE / "inside_traps.c"], check=True)
    return program.read_bytes()


def measure() -> dict[str, float]:
    """Guest instructions a trap of both, and their ratio."""
    cache = cache_folder()
    release = fetch_kernel(None, cache=cache, progress=lambda _: None).release
    empty = kernel_module(
        release,
        {"empty.c": (HERE / "empty_module.c").read_bytes(), "Kbuild": b"obj-m := empty.o\n"},
        "empty",
        cache=cache,
    )
    with tempfile.TemporaryDirectory(prefix="isthmus-bench-") as name:
        scratch = Path(name)
        image = build_image(
            cache=cache,
            more=[
                folder("bench"),
                file("bench/init", _INIT, executable=True),
                file("bench/traps", traps(scratch), executable=True),
                file("bench/empty.ko", empty),
                file("bench/isthmus_translate.ko", inside_module(release, cache=cache)),
            ],
        )
        console = scratch / "console"
        subprocess.run(
            [
                find_qemu().path, "-accel", "tcg", "-icount", "shift=0,sleep=off",
                "-cpu", "Nehalem", "-m", "256", "-kernel", image.kernel, "-initrd", image.initrd,
                "-append", f"{command_line()} mitigations=off rdinit=/bench/init",
                "-nodefaults", "-no-user-config", "-display", "none", "-no-reboot",
                "-serial", f"file:{console}",
            ],
            check=True, timeout=PATIENCE_S, stdin=subprocess.DEVNULL,
        )  # fmt: skip
        said = console.read_text(errors="replace")
    found = dict(re.findall(r"bench (\w+) instructions ([0-9.]+)", said))
    if set(found) != {"empty", "isthmus_translate"}:
        raise SystemExit(f"the guest did not finish:\n{said[-2000:]}")
    empty_count, ours = float(found["empty"]), float(found["isthmus_translate"])
    return {
        "inside_ratio": round(ours / empty_count, 3),
        "inside_instructions": ours,
        "inside_empty_instructions": empty_count,
    }


def main() -> int:
    """Run the bench; 0 if the bound holds."""
    figures = measure()
    ok = figures["inside_ratio"] <= BOUND
    print(f"empty notifier: {figures['inside_empty_instructions']:7.1f} guest instructions a trap")
    print(
        f"our module:     {figures['inside_instructions']:7.1f} guest instructions,"
        f" {figures['inside_ratio']:.2f} x"
    )
    bounds = {"inside_ratio": ["<=", BOUND]}
    print(json.dumps({"bench": "translate_inside", "figures": figures, "bounds": bounds, "ok": ok}))
    return 0 if ok else 1


if __name__ == "__main__":
    sys.exit(main())
