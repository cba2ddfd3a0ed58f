"""How a whole program slows that executes 10, 1,000 and 100,000 missing instructions a second.

The rates are those of the program where nothing is missing: the same work is done without the
instruction and with it. Natively by `isthmus run` (preload), on an instruction that this CPU lacks;
and in a guest under TCG, translated from outside, EXTRQ on a Nehalem.

    .venv/bin/python bench/translate_program.py
"""

import asyncio
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from isthmus.errors import IsthmusError
from isthmus.hypervisor.qemu.binary import find_qemu, versioned_pc_machine
from isthmus.hypervisor.qemu.engine import Accelerator
from isthmus.hypervisor.qemu.process import LaunchSpec, QemuProcess, start
from isthmus.places import cache_folder
from isthmus.qualification.lab.image import build_image, command_line
from isthmus.qualification.lab.initramfs import file, folder
from isthmus.translate.preload import environment
from isthmus.translate.service import spawn
from translate_preload import NothingMissingError, build

HERE = Path(__file__).parent
RATES = (10, 1_000, 100_000)
NATIVE_S = 1.0
OUTSIDE_S = {10: 2.0, 1_000: 0.5, 100_000: 0.02}
"""Shorter where each instruction is a stop: 2,000 stops are enough to measure their price."""
EXTRQ = "660f78c01008"
CODES = {"PFADD": "0f0fc19e", "BLCFILL": "8fe97801c8", "VPHADDBW": "8fe978c1c1",
         "VFMADDPS": "c4e3f968c120", "EXTRQ": EXTRQ}  # fmt: skip
PATIENCE_S = 240
_LINE = re.compile(r"paced (\d+) plain=([\d.]+) translated=([\d.]+) count=(\d+) end")


def slowdowns(text: str) -> dict[int, list[float]]:
    """The program's lines: by rate, how many times longer the work took."""
    found: dict[int, list[float]] = {}
    for rate, plain, translated, _ in _LINE.findall(text):
        found.setdefault(int(rate), []).append(float(translated) / float(plain))
    return found


def natively(rounds: int) -> dict[int, float]:
    """Slowdown by rate under `isthmus run`, the median of ``rounds``.

    :raises NothingMissingError: this CPU lacks nothing that can be tried.
    """
    with tempfile.TemporaryDirectory() as name:
        program = Path(name) / "paced"
        _, missing = build(Path(name))
        subprocess.run(["gcc", "-O2", "-o", program, HERE / "paced.c"], check=True)
        text = ""
        for _ in range(rounds):
            text += subprocess.run(
                [program, str(NATIVE_S), CODES[missing], *map(str, RATES)],
                env=environment(dict(os.environ), None), capture_output=True, text=True, check=True,
            ).stdout  # fmt: skip
    return {rate: statistics.median(values) for rate, values in slowdowns(text).items()}


async def outside(program: bytes, rounds: int) -> dict[int, float]:
    """Slowdown by rate in a guest under TCG that is translated from outside; the static program."""
    with tempfile.TemporaryDirectory(prefix="ib-") as name:
        lines = ["#!/bin/sh", "sleep 3"]  # the translator is armed meanwhile
        lines += [f"/bin/paced {OUTSIDE_S[rate]} {EXTRQ} {rate}" for rate in RATES] * rounds
        script = "\n".join([*lines, "echo paced done", ""]).encode()
        image = build_image(
            cache=cache_folder(),
            more=[
                folder("beside"),
                file("beside/paced", script, executable=True),
                file("bin/paced", program, executable=True),
            ],
        )
        qemu = find_qemu()
        spec = LaunchSpec(
            qemu=qemu.path,
            accelerator=Accelerator.TCG,
            machine=versioned_pc_machine(qemu),
            cpu="Nehalem",
            vcpus=1,
            memory_mib=256,
            kernel=image.kernel,
            initrd=image.initrd,
            command_line=command_line(test="none", tick_ms=5000, beat_ms=0),
        )
        process = await start(spec, Path(name), lives_with_parent=True)
        try:
            text = await _said(process, "guest is up")
            client = await spawn(process.gdb, Path(name))
            await client.arm()
            await client.resume()
            text = await _said(process, "paced done")
            await client.close()
        finally:
            process.kill()
    return {rate: statistics.median(values) for rate, values in slowdowns(text).items()}


async def _said(process: QemuProcess, word: str) -> str:
    deadline = time.monotonic() + PATIENCE_S
    while True:
        text = process.console.read_text(errors="replace")
        if word in text:
            return text
        if time.monotonic() > deadline:
            raise IsthmusError(f"the guest never said {word!r}: {text[-300:]}")
        await asyncio.sleep(0.1)


def measure(rounds: int = 3) -> dict[str, object]:
    """The slowdowns as figures: ``program_PLACEMENT_at_RATE``, in times the work's own time.

    A placement that cannot be measured here is left out.
    """
    figures: dict[str, object] = {}
    try:
        for rate, times in natively(rounds).items():
            figures[f"program_preload_at_{rate}"] = round(times, 3)
    except NothingMissingError:
        pass
    with tempfile.TemporaryDirectory() as name:
        program = Path(name) / "paced"
        subprocess.run(["gcc", "-O2", "-static", "-o", program, HERE / "paced.c"], check=True)
        static = program.read_bytes()
    for rate, times in asyncio.run(outside(static, rounds)).items():
        figures[f"program_outside_at_{rate}"] = round(times, 2)
    return figures


def main() -> int:
    """Run the bench and print a table."""
    figures = measure()
    print(f"{'missing instructions a second':30} {'preload':>10} {'outside, TCG':>14}")
    for rate in RATES:
        cells = [figures.get(f"program_{where}_at_{rate}", "-") for where in ("preload", "outside")]
        print(f"{rate:30,} {cells[0]:>9}x {cells[1]:>13}x")
    print(json.dumps({"bench": "translate_program", "figures": figures, "bounds": {}, "ok": True}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
