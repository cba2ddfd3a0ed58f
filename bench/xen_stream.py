"""How fast Xen's migration stream goes through ``isthmus xen-filter``, beside ``cat``.

A stream of a PV guest, made to order, lies in memory (/dev/shm).  ``cat FILE`` sends it through a
pipe to the one that is measured, and that through a pipe to a reader that throws it away; the
filter and ``cat`` take turns.  All of them are held to one core, as on a host whose other cores are
busy, and the filter's start is counted; the second figure is of the filter's own time on the core.

Run: ``.venv/bin/python bench/xen_stream.py [MEBIBYTES [RUNS]]``.  The promise is 500 MB/s of guest
memory through one core.
"""

import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from isthmus.qualification.lab import xen_stream as made

BOUND_MB_S = 500
MEGABYTE = 1_000_000
FILTER = [
    sys.executable, "-c", "from isthmus.cli.main import main; main()",
    "xen-filter", "--to", "amd",
]  # fmt: skip


def write_stream(path: Path, mebibytes: int) -> int:
    """Write a guest of ``mebibytes`` of memory; gives the stream's bytes."""
    batch = os.urandom(made.BATCH * made.PAGE)
    marker = made.page_data([0xF << 60], b"")
    whole = made.stream(made.pv_image(marker))
    front, back = whole.split(marker)
    with path.open("wb") as file:
        file.write(front)
        for number in range(mebibytes * (1 << 20) // len(batch)):
            first = number * made.BATCH
            file.write(made.page_data(range(first, first + made.BATCH), batch))
        file.write(back)
        return file.tell()


def through(command: list[str], path: Path) -> tuple[float, float]:
    """Seconds by the wall, and seconds of the core that ``command`` itself took."""
    begin = time.perf_counter()
    feed = subprocess.Popen(["cat", str(path)], stdout=subprocess.PIPE)
    middle = subprocess.Popen(
        command, stdin=feed.stdout, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    )
    assert feed.stdout is not None
    assert middle.stdout is not None
    feed.stdout.close()
    reader = subprocess.Popen(["dd", "of=/dev/null", "bs=1M", "status=none"], stdin=middle.stdout)
    middle.stdout.close()
    _, status, usage = os.wait4(middle.pid, 0)
    middle.returncode = os.waitstatus_to_exitcode(status)
    if middle.returncode or feed.wait() or reader.wait():
        sys.exit(f"{' '.join(command)}: failed")
    return time.perf_counter() - begin, usage.ru_utime + usage.ru_stime


def main() -> int:
    """Measure, print the line of JSON, 0 if the bound holds."""
    mebibytes = int(sys.argv[1]) if len(sys.argv) > 1 else 1024
    runs = int(sys.argv[2]) if len(sys.argv) > 2 else 5
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    start_up = []
    rates: dict[str, list[float]] = {"cat": [], "filter": []}
    core: dict[str, list[float]] = {"cat": [], "filter": []}
    shared = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=shared if shared.is_dir() else None) as folder:
        small, large = Path(folder) / "small", Path(folder) / "large"
        write_stream(small, 0)
        size = write_stream(large, mebibytes)
        for _ in range(runs):
            start_up.append(through(FILTER, small)[0])
            for name, command in (("cat", ["cat"]), ("filter", FILTER)):
                wall, used = through(command, large)
                rates[name].append(size / wall / MEGABYTE)
                core[name].append(size / used / MEGABYTE)
    middle = {name: statistics.median(values) for name, values in rates.items()}
    figures = {
        "throughput_mb_s": round(middle["filter"]),
        "cat_mb_s": round(middle["cat"]),
        "ratio_to_cat": round(middle["filter"] / middle["cat"], 3),
        "own_core_mb_s": round(statistics.median(core["filter"])),
        "cat_own_core_mb_s": round(statistics.median(core["cat"])),
        "start_up_ms": round(1000 * statistics.median(start_up)),
        "stream_mb": round(size / MEGABYTE),
        "runs": runs,
    }
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
    figures["peak_memory_mib"] = peak // 1024
    ok = figures["throughput_mb_s"] >= BOUND_MB_S
    bounds = {"throughput_mb_s": [">=", BOUND_MB_S]}
    print(json.dumps({"bench": "xen_stream", "figures": figures, "bounds": bounds, "ok": ok}))
    return 0 if ok else 1


if __name__ == "__main__":
    sys.exit(main())
