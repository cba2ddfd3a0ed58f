"""What a translated instruction costs inside a process, beside an empty SIGILL handler.

Both natively, in turn, on an instruction that this CPU lacks (the first of 3DNow!, TBM, XOP, FMA4
and SSE4a that raises SIGILL here). Then eight missing instructions in a row: how many traps they
take.

    .venv/bin/python bench/translate_preload.py [ROUNDS]
"""

import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from isthmus.translate.preload import REPORT, environment

HERE = Path(__file__).parent
TRAPS = 20_000
ROWS = 1_000
BOUNDS = {"preload_ratio": 1.3, "traps_per_instruction": 0.3}


class NothingMissingError(Exception):
    """This CPU has every instruction that the bench knows: there is nothing to translate."""


def build(folder: Path) -> tuple[Path, str]:
    """The program, and the name of an instruction that this CPU lacks.

    :raises NothingMissingError: it lacks none of those that the program knows.
    """
    program = folder / "traps"
    subprocess.run(["gcc", "-O2", "-o", program, HERE / "traps.c"], check=True)
    done = subprocess.run([program, "which"], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise NothingMissingError
    return program, done.stdout.strip()


def nanoseconds(program: Path, kind: str, count: int, name: str, settings: dict[str, str]) -> float:
    """Mean time for one round of the program's loop."""
    done = subprocess.run(
        [program, kind, str(count), name],
        env=settings, capture_output=True, text=True, check=True,
    )  # fmt: skip
    return float(done.stdout)


def traps_for_eight(program: Path, name: str, folder: Path) -> float:
    """Traps for each of eight missing instructions in a row."""
    report = folder / "report"
    nanoseconds(program, "eight", ROWS, name, environment(dict(os.environ), report))
    counts = dict(line.split() for line in report.read_text().splitlines())
    return int(counts.pop("traps")) / sum(map(int, counts.values()))


def measure(rounds: int = 25) -> dict[str, object]:
    """The figures: medians over ``rounds``, and the ratio's median.

    :raises NothingMissingError: this CPU lacks nothing that can be tried.
    """
    empty, ours = [], []
    plain = {key: value for key, value in os.environ.items() if key != REPORT}
    translated = environment(plain, None)
    with tempfile.TemporaryDirectory() as folder:
        program, name = build(Path(folder))
        for _ in range(rounds):
            empty.append(nanoseconds(program, "empty", TRAPS, name, plain))
            ours.append(nanoseconds(program, "own", TRAPS, name, translated))
        per_instruction = traps_for_eight(program, name, Path(folder))
    ratio = statistics.median(a / b for a, b in zip(ours, empty, strict=True))
    return {
        "preload_ratio": round(ratio, 3),
        "traps_per_instruction": round(per_instruction, 3),
        "preload_ns": round(statistics.median(ours)),
        "empty_ns": round(statistics.median(empty)),
        "preload_instruction": name,
    }


def main() -> int:
    """Run the bench; 0 if the bounds hold, 6 if there is nothing to measure."""
    try:
        figures = measure(int(sys.argv[1]) if len(sys.argv) > 1 else 25)
    except NothingMissingError:
        print("this CPU has every instruction that the bench knows", file=sys.stderr)
        return 6
    name = figures["preload_instruction"]
    print(f"empty SIGILL handler: {figures['empty_ns']:8} ns at the median, {name}")
    print(f"translated:           {figures['preload_ns']:8} ns, {figures['preload_ratio']} x")
    print(f"eight in a row:       {figures['traps_per_instruction']:8} traps an instruction")
    ok = all(float(str(figures[key])) <= bound for key, bound in BOUNDS.items())
    bounds = {key: ["<=", bound] for key, bound in BOUNDS.items()}
    line = {"bench": "translate_preload", "figures": figures, "bounds": bounds, "ok": ok}
    print(json.dumps(line))
    return 0 if ok else 1


if __name__ == "__main__":
    sys.exit(main())
