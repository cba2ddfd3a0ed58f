"""What a translated instruction costs beside an empty stop and continue, on the same debug stub.

The peer is the cheapest stop there is: the stub stops at a breakpoint, we read RIP and go on.  Both
run in the same guest (bench/trap_guest.S) in turn.  The guest's loops hold one missing instruction
and one that ends a run, so each is a stop of its own; another loop holds eight, with ordinary ones
between them, for the stops that a run takes.  Prints µs and ratios, and a line of JSON.
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
MODES = {"EXTRQ": 1, "RDTSCP": 2, "POPCNT from memory": 5}
EIGHT = 4
BOUNDED = ("EXTRQ", "RDTSCP")
OUTSIDE, TRAPS = 1.6, 0.3  # bounds


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


async def translated(
    stub: Stub, translator: Translator, mode: int, count: int
) -> tuple[float, float]:
    """µs of a stop that translates, mean over about `count`, and stops for each instruction."""
    await stub.ask(b"P%x=%s" % (RBX, mode.to_bytes(8, "little").hex().encode()))
    translator.resume()
    tally = translator.tally
    warm = tally.traps + 5
    while tally.traps < warm:  # noqa: ASYNC110
        await asyncio.sleep(0)
    begun, stops, instructions = time.perf_counter(), tally.traps, tally.translated.total()
    await asyncio.sleep(count * 300e-6)
    spent = time.perf_counter() - begun
    stops, instructions = tally.traps - stops, tally.translated.total() - instructions
    await translator.hold()
    await translator.arm()
    return spent / stops * 1e6, stops / instructions


async def in_turn(rounds: int, count: int) -> dict[str, list[float]]:
    """What each round gave: µs of an empty stop and of each mode, stops per instruction."""
    results: dict[str, list[float]] = {name: [] for name in ("empty", *MODES, "traps")}
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
                    spent, _ = await translated(stub, translator, number, count)
                    results[mode].append(spent)
                _, traps = await translated(stub, translator, EIGHT, count // 4)
                results["traps"].append(traps)
        finally:
            qemu.kill()
            qemu.wait()
    return results


def measure(rounds: int = 15, count: int = 400) -> dict[str, float]:
    """The figures: medians over the rounds; ratios are taken within a round."""
    results = asyncio.run(in_turn(rounds, count))
    medians = {name: statistics.median(values) for name, values in results.items()}
    ratios = {
        name: statistics.median(a / b for a, b in zip(results[name], results["empty"], strict=True))
        for name in MODES
    }
    return {
        "outside_ratio": round(max(ratios[name] for name in BOUNDED), 3),
        "outside_memory_ratio": round(ratios["POPCNT from memory"], 3),
        "traps_per_instruction": round(medians["traps"], 3),
        "us_per_instruction_p50": round(medians["EXTRQ"], 1),
        "us_per_rdtscp_p50": round(medians["RDTSCP"], 1),
        "us_per_memory_p50": round(medians["POPCNT from memory"], 1),
        "us_empty_p50": round(medians["empty"], 1),
    }


def main() -> int:
    """Run the bench; 0 if the bounds hold."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--count", type=int, default=400, help="stops in a round")
    options = parser.parse_args()
    figures = measure(options.rounds, options.count)
    for name, value in figures.items():
        print(f"{name:24} {value:8.2f}")
    bounds = {"outside_ratio": ["<=", OUTSIDE], "traps_per_instruction": ["<=", TRAPS]}
    ok = figures["outside_ratio"] <= OUTSIDE and figures["traps_per_instruction"] <= TRAPS
    print(
        json.dumps({"bench": "translate_outside", "figures": figures, "bounds": bounds, "ok": ok})
    )
    return 0 if ok else 1


if __name__ == "__main__":
    sys.exit(main())
