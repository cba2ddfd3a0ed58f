"""How many real CPU dumps are read right: vendor, family, model, stepping and features.

    python bench/knowledge.py ../shared/data [DIR...]

A dump with an expected answer in it (libcpuid's ``.test`` files: the numbers and the flags that
libcpuid decodes) is right if each number agrees and each flag whose name maps to a feature of ours
agrees in both directions.  A dump without one is right if it can be read and its features are
closed under what they need.  Prints one line for each that is wrong, then one JSON document with
``files`` and ``files_right``.
"""

import contextlib
import json
import sys
import time
from pathlib import Path

from isthmus.cpu.features import FEATURES
from isthmus.cpu.model import CpuModel
from isthmus.cpu.readers.recognise import read_cpu
from isthmus.errors import IsthmusError

RULE = "-" * 80
# Not judged: ht, which libcpuid takes away where one thread is all there is.
SAME = {  # libcpuid's spelling: ours; libcpuid/cpuid_main.c (cpu_feature_str)
    "xd": "nx",
    "acpi": "acpi",
    "ds_cpl": "ds-cpl",
    "dts64": "dtes64",
    "dts": "ds",
    "est": "est",
    "sep": "sep",
    "smx": "smx",
    "ss": "ss",
    "tm": "tm",
    "tm2": "tm2",
    "pbe": "pbe",
    "pdcm": "pdcm",
    "pn": "pn",
    "xtpr": "xtpr",
    "cid": "cid",
    "dca": "dca",
    "mmxext": "mmxext",
    "fxsr_opt": "fxsr-opt",
    "avx512vbmi": "avx512vbmi",
    "avx512vbmi2": "avx512vbmi2",
    "avx512vnni": "avx512vnni",
    "osxsave": "osxsave",
    "sse4_1": "sse4.1",
    "sse4_2": "sse4.2",
    "pni": "pni",
    "pclmul": "pclmulqdq",
    "fma3": "fma",
    "sha_ni": "sha-ni",
    "nx": "nx",
    "lm": "lm",
    "avx512f": "avx512f",
    "avx512dq": "avx512dq",
    "avx512cd": "avx512cd",
    "avx512bw": "avx512bw",
    "avx512vl": "avx512vl",
    "rdrand": "rdrand",
    "rdseed": "rdseed",
    "adx": "adx",
    "bmi1": "bmi1",
    "bmi2": "bmi2",
    "avx": "avx",
    "avx2": "avx2",
    "f16c": "f16c",
    "xop": "xop",
    "fma4": "fma4",
    "tbm": "tbm",
    "sse4a": "sse4a",
    "misalignsse": "misalignsse",
    "popcnt": "popcnt",
    "aes": "aes",
    "movbe": "movbe",
    "cx16": "cx16",
    "ssse3": "ssse3",
    "sse": "sse",
    "sse2": "sse2",
    "mmx": "mmx",
    "syscall": "syscall",
    "rdtscp": "rdtscp",
    "svm": "svm",
    "vmx": "vmx",
    "skinit": "skinit",
    "wdt": "wdt",
    "osvw": "osvw",
    "ibs": "ibs",
    "abm": "abm",
    "x2apic": "x2apic",
    "xsave": "xsave",
    "3dnow": "3dnow",
    "3dnowext": "3dnowext",
    "3dnowprefetch": "3dnowprefetch",
    "hle": "hle",
    "rtm": "rtm",
    "fpu": "fpu",
    "vme": "vme",
    "de": "de",
    "pse": "pse",
    "tsc": "tsc",
    "msr": "msr",
    "pae": "pae",
    "mce": "mce",
    "cx8": "cx8",
    "apic": "apic",
    "mtrr": "mtrr",
    "pge": "pge",
    "mca": "mca",
    "cmov": "cmov",
    "pat": "pat",
    "pse36": "pse36",
    "clflush": "clflush",
    "fxsr": "fxsr",
    "monitor": "monitor",
    "lahf_lm": "lahf-lm",
    "cmp_legacy": "cmp-legacy",
}


def expected(path: Path) -> list[str]:
    """The answer that libcpuid gives in a file, line by line; empty if there is none."""
    if path.suffix != ".test":
        return []
    text = path.read_text(encoding="utf-8", errors="replace")
    answer = text.partition(f"\n{RULE}\n")[2]
    return [line.strip() for line in answer.splitlines() if line.strip()]


def judged(files: list[Path]) -> dict[str, set[str]]:
    """The flags that libcpuid looks for, by maker: those of any of the maker's dumps.

    Its tables differ by maker: it does not name NX of an Intel CPU, nor VMX of a Zhaoxin one.
    """
    flags: dict[str, set[str]] = {}
    for path in files:
        if answer := expected(path):
            flags.setdefault(_maker(path), set()).update(answer[-1].split())
    return flags


def _maker(path: Path) -> str:
    with contextlib.suppress(IsthmusError):
        return read_cpu(path).vendor
    return ""


def wrong(path: Path, looked_for: dict[str, set[str]]) -> str | None:
    """What is wrong with our reading of a file; None if nothing is."""
    try:
        model = read_cpu(path)
    except IsthmusError as error:
        return error.message
    if answer := expected(path):
        return _against(answer, model, looked_for.get(model.vendor, set()))
    return None if model.vendor and model.features <= set(FEATURES) else "features without a name"


def _against(answer: list[str], model: CpuModel, looked_for: set[str]) -> str | None:
    numbers = (int(answer[6]), int(answer[7]), int(answer[5]))
    if (model.family, model.model, model.stepping) != numbers:
        return f"{model.family}/{model.model}/{model.stepping} is expected to be {numbers}"
    flags = set(answer[-1].split())
    differing = [
        flag
        for flag, name in SAME.items()
        if flag in looked_for and (flag in flags) != (name in model.features)
    ]
    return f"differs in {' '.join(sorted(differing))}" if differing else None


def main() -> int:
    if len(sys.argv) < 2:
        sys.exit("usage: python bench/knowledge.py DIR...")
    places = [Path(name) for name in sys.argv[1:]]
    files = sorted(
        path
        for place in places
        for path in place.rglob("*")
        if path.is_file() and path.suffix in {".test", ".txt", ".json", ".xml", ".raw"}
    )
    looked_for = judged(files)
    begun = time.perf_counter()
    faults = {path: fault for path in files if (fault := wrong(path, looked_for)) is not None}
    seconds = time.perf_counter() - begun
    for path, fault in faults.items():
        print(f"{path}: {fault}", file=sys.stderr)
    figures = {"files": len(files), "files_right": len(files) - len(faults), "seconds": seconds}
    print(json.dumps(figures))
    return 0 if files and figures["files_right"] >= 0.98 * len(files) else 1


if __name__ == "__main__":
    sys.exit(main())
