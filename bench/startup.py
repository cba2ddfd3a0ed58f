"""How long ``isthmus`` takes to answer: ``--help`` and ``--version``, as a user waits for it.

Run: ``.venv/bin/python bench/startup.py [RUNS]``.  The promised figure is in docs/performance.md.
"""

import json
import statistics
import subprocess
import sys
import time
from pathlib import Path

BOUND_MS = 250
WARM_UPS = 3


def program() -> list[str]:
    """The installed command beside this Python, or the module where it is not installed."""
    installed = Path(sys.executable).with_name("isthmus")
    if installed.exists():
        return [str(installed)]
    return [sys.executable, "-c", "from isthmus.cli.main import main; main()"]


def wait_ms(option: str) -> float:
    """Milliseconds from start to exit of one run."""
    begin = time.perf_counter()
    subprocess.run([*program(), option], stdout=subprocess.DEVNULL, check=True)
    return (time.perf_counter() - begin) * 1000


def main() -> int:
    """Measure, print the line of JSON, 0 if the bound holds."""
    runs = int(sys.argv[1]) if len(sys.argv) > 1 else 30
    figures: dict[str, float] = {"runs": runs}
    for option in ("--help", "--version"):
        times = [wait_ms(option) for _ in range(WARM_UPS + runs)][WARM_UPS:]
        name = option.removeprefix("--")
        figures[f"{name}_ms_p50"] = round(statistics.median(times), 1)
        figures[f"{name}_ms_max"] = round(max(times), 1)
    bounds = {name: ["<=", BOUND_MS] for name in ("help_ms_p50", "version_ms_p50")}
    ok = all(figures[name] <= BOUND_MS for name in bounds)
    print(json.dumps({"bench": "startup", "figures": figures, "bounds": bounds, "ok": ok}))
    return 0 if ok else 1


if __name__ == "__main__":
    sys.exit(main())
