"""What a translated instruction costs beside an empty stop and continue, on the same debug stub.

The peer is the cheapest stop there is: the stub stops at a breakpoint, we read RIP and go on.  Both
run in the same guest (bench/trap_guest.S) in turn.  Prints µs and ratios, and a line of JSON.
"""

import argparse
import asyncio
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from isthmus.hypervisor.qemu.binary import find_qemu
from isthmus.translate.outside import Translator
from isthmus.translate.rsp import Stub

SOURCE = Path(__file__).with_name("trap_guest.S")
RBX = 1
MODES = {"EXTRQ": 1, "RDTSCP": 2}


def image(folder: Path) -> tuple[Path, int]:
    """Assemble the guest; returns the firmware image and the address of `site`."""
    objects, binary = folder / "guest.o", folder / "guest.bin"
    subprocess.run(["gcc", "-c", "-o", objects, SOURCE], check=True)
    subprocess.run(["objcopy", "-O", "binary", "-j", ".text", objects, binary], check=True)
    symbols = subprocess.run(["nm", objects], check=True, capture_output=True, text=True).stdout
    site = next(int(line.split()[0], 16) for line in symbols.splitlines() if line.endswith(" site"))
    rom = folder / "guest.rom"
    rom.write_bytes(binary.read_bytes().ljust(0x1000, b"\0").rjust(64 << 10, b"\xf4"))
    return rom, 0xFFFFF000 + site


async def empty(stub: Stub, site: int, count: int) -> float:
    """µs of a stop that only reads RIP, mean over `count`."""
    await stub.ask(b"P%x=%s" % (RBX, bytes(8).hex().encode()), b"Z1,%x,1" % site)
    stub.go()
    await stub.stopped()
    begun = time.perf_counter()
    for _ in range(count):
        await stub.ask(b"p10")
        stub.go()
        await stub.stopped()
    spent = time.perf_counter() - begun
    await stub.ask(b"z1,%x,1" % site)
    return spent / count * 1e6


async def translated(stub: Stub, translator: Translator, mode: int, count: int) -> float:
    """µs of a translated instruction, mean over at least `count`."""
    await stub.ask(b"P%x=%s" % (RBX, mode.to_bytes(8, "little").hex().encode()))
    translator.resume()
    before = sum(translator.translated.values())
    while sum(translator.translated.values()) < before + 5:  # noqa: ASYNC110
        await asyncio.sleep(0)
    begun, first = time.perf_counter(), sum(translator.translated.values())
    await asyncio.sleep(count * 300e-6)
    done, spent = sum(translator.translated.values()) - first, time.perf_counter() - begun
    await translator.hold()
    await translator.arm()
    return spent / done * 1e6


async def measure(rounds: int, count: int) -> dict[str, list[float]]:
    """The figures of each round: empty, EXTRQ, RDTSCP."""
    results: dict[str, list[float]] = {"empty": [], **{name: [] for name in MODES}}
    with tempfile.TemporaryDirectory(prefix="isthmus-bench-") as name:
        rom, site = image(Path(name))
        socket = Path(name) / "gdb.sock"
        qemu = subprocess.Popen(  # noqa: ASYNC220
            [
                find_qemu().path, "-accel", "tcg", "-cpu", "Penryn", "-M", "pc", "-m", "16",
                "-bios", rom, "-nodefaults", "-no-user-config", "-display", "none",
                "-chardev", f"socket,id=gdb,path={socket},server=on,wait=off",
                "-gdb", "chardev:gdb",
            ],
            stderr=subprocess.DEVNULL,
        )  # fmt: skip
        try:
            while not socket.exists():  # noqa: ASYNC110
                await asyncio.sleep(0.01)
            await asyncio.sleep(0.5)  # the guest walks into its loop
            stub = await Stub.connect(socket)
            translator = Translator(stub)
            await translator.arm()
            for _ in range(rounds):
                results["empty"].append(await empty(stub, site, count))
                for mode, number in MODES.items():
                    results[mode].append(await translated(stub, translator, number, count))
        finally:
            qemu.kill()
            qemu.wait()
    return results


def main() -> int:
    """Run the bench; 0 if the bound holds."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--count", type=int, default=400, help="instructions in a round")
    options = parser.parse_args()
    results = asyncio.run(measure(options.rounds, options.count))
    medians = {name: statistics.median(values) for name, values in results.items()}
    ratios = {
        name: statistics.median(a / b for a, b in zip(results[name], results["empty"], strict=True))
        for name in MODES
    }
    for name, median in medians.items():
        spread = f"{min(results[name]):.0f} to {max(results[name]):.0f}"
        print(f"{name:7} {median:7.1f} us at the median ({spread})")
    for name, ratio in ratios.items():
        print(f"{name:7} {ratio:7.2f} x an empty stop")
    figures = {
        "ratio_p50": round(max(ratios.values()), 3),
        "us_per_instruction_p50": round(medians["EXTRQ"], 1),
        "us_per_rdtscp_p50": round(medians["RDTSCP"], 1),
        "us_empty_p50": round(medians["empty"], 1),
    }
    ok = figures["ratio_p50"] <= 2.0
    bounds = {"ratio_p50": ["<=", 2.0]}
    print(
        json.dumps({"bench": "translate_outside", "figures": figures, "bounds": bounds, "ok": ok})
    )
    return 0 if ok else 1


if __name__ == "__main__":
    sys.exit(main())
