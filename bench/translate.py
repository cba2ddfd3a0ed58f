"""What a translated instruction costs inside a process, beside an empty SIGILL handler.

Both natively, in turn, on EXTRQ, which this CPU must lack. Then eight missing instructions in a
row: how many traps they take. The placement outside the guest has a bench of its own
(translate_outside.py); the one inside the guest's kernel is not built yet.

    .venv/bin/python bench/translate.py [ROUNDS]
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


def nanoseconds(program: Path, kind: str, settings: dict[str, str]) -> float:
    done = subprocess.run(
        [program, kind, str(TRAPS)], env=settings, capture_output=True, text=True, check=True
    )
    return float(done.stdout)


def traps_for_eight(folder: Path) -> float:
    probe, report = folder / "probe", folder / "report"
    source = HERE.parent / "tests/unit/preload_probe.c"
    subprocess.run(["gcc", "-O1", "-mavx2", "-o", probe, source, "-lpthread"], check=True)
    settings = environment(dict(os.environ), report)
    subprocess.run([probe, "run"], env=settings, check=True, stdout=subprocess.DEVNULL)
    counts = dict(line.split() for line in report.read_text().splitlines())
    return int(counts.pop("traps")) / sum(map(int, counts.values()))


def main() -> int:
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 25
    if " sse4a " in Path("/proc/cpuinfo").read_text():
        print("this CPU has SSE4a: the bench needs one that lacks it", file=sys.stderr)
        return 6
    empty, ours = [], []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        program = folder / "traps"
        subprocess.run(["gcc", "-O2", "-o", program, HERE / "traps.c"], check=True)
        plain = {key: value for key, value in os.environ.items() if key != REPORT}
        translated = environment(plain, None)
        for _ in range(rounds):
            empty.append(nanoseconds(program, "empty", plain))
            ours.append(nanoseconds(program, "own", translated))
        per_instruction = traps_for_eight(folder)
    ratio = statistics.median(a / b for a, b in zip(ours, empty, strict=True))
    print(f"empty SIGILL handler: {statistics.median(empty):8.0f} ns at the median")
    print(f"translated EXTRQ:     {statistics.median(ours):8.0f} ns, {ratio:.2f} x")
    print(f"eight in a row:       {per_instruction:8.3f} traps an instruction")
    bounds = {"preload_ratio": ["<=", 1.3], "traps_per_instruction": ["<=", 0.3]}
    figures = {
        "preload_ratio": round(ratio, 3),
        "traps_per_instruction": round(per_instruction, 3),
        "preload_ns": round(statistics.median(ours)),
        "empty_ns": round(statistics.median(empty)),
    }
    ok = ratio <= 1.3 and per_instruction <= 0.3
    print(json.dumps({"bench": "translate", "figures": figures, "bounds": bounds, "ok": ok}))
    return 0 if ok else 1


if __name__ == "__main__":
    sys.exit(main())
