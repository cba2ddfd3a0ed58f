"""Levelling at scale, and beside libvirt.

    python bench/level.py

Levels 1,000,000 synthetic hosts drawn from the reference CPUs (each lacks a few features of its
model); figure ``hosts_1e6_seconds``, generation excluded.  Then 1,000 Intel hosts beside libvirt's
``virsh cpu-baseline`` (its test driver; the time of the process is counted, and given for an empty
call, too), in turn; ``libvirt_keeps_more`` counts features that libvirt keeps and ours does not.
"""

import json
import random
import shutil
import statistics
import subprocess
import tempfile
import time
from pathlib import Path

import numpy as np
from lxml import etree

from isthmus.baseline.fleet import Fleet, level_fleet, pack
from isthmus.baseline.level import level
from isthmus.cpu.features import FEATURES, by_cpuid
from isthmus.cpu.model import CpuModel
from isthmus.divergence.examples import reference_cpus

HOSTS = 1_000_000
PEER_HOSTS = 1_000
ROUNDS = 5
INTEL = ("Penryn", "Nehalem", "Westmere", "SandyBridge", "IvyBridge", "Haswell-noTSX",
         "Broadwell-noTSX", "Skylake-Client-noTSX-IBRS", "Cascadelake-Server-noTSX")  # fmt: skip
EXTRAS = ("vmx", "est", "tm2", "ss", "ds_cpl", "monitor", "xtpr", "pdcm", "dca", "smx", "pbe")
LIBVIRT = {feature.libvirt: name for name, feature in FEATURES.items() if feature.libvirt}


def million() -> Fleet:
    small = pack(list(reference_cpus().values()))
    random_ = np.random.default_rng(1)
    kinds = random_.integers(0, len(small), HOSTS)
    words = small.words[kinds]
    for _ in range(3):  # each host lacks up to three features of its model
        bit = random_.integers(0, len(small.names), HOSTS)
        words[np.arange(HOSTS), bit // 64] &= ~(np.uint64(1) << (bit % 64).astype(np.uint64))
    return Fleet(small.names, small.cpus, small.kinds[kinds], words)


def virsh(xml: Path, *options: str) -> str:
    command = ["virsh", "-c", "test:///default", "cpu-baseline", *options, str(xml)]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def host_xml(model: str, extras: list[str]) -> str:
    features = "".join(f"<feature name='{name}'/>" for name in extras)
    return f"<cpu><arch>x86_64</arch><model>{model}</model><vendor>Intel</vendor>{features}</cpu>"


def required(answer: str) -> frozenset[str]:
    root = etree.fromstring(answer)
    return frozenset(
        LIBVIRT[feature.get("name")]
        for feature in root.iterfind("feature")
        if feature.get("policy") == "require"
    )


def beside_libvirt(folder: Path) -> dict[str, float]:
    one = folder / "one.xml"
    expanded = {}
    for model in INTEL:
        one.write_text(host_xml(model, []))
        expanded[model] = required(virsh(one, "--features"))
    random_ = random.Random(1)
    drawn = [
        (random_.choice(INTEL), [name for name in EXTRAS if random_.random() < 0.9])
        for _ in range(PEER_HOSTS)
    ]
    pool_xml = folder / "pool.xml"
    pool_xml.write_text("".join(host_xml(model, extras) for model, extras in drawn))
    hosts = [
        CpuModel(
            name=f"host{number}", source="bench", vendor="GenuineIntel", family=6, model=23,
            stepping=6, level=31, xlevel=0x80000008,
            features=expanded[model] | {LIBVIRT[name] for name in extras},
        )
        for number, (model, extras) in enumerate(drawn)
    ]  # fmt: skip
    ours, theirs, empty = [], [], []
    baseline, answer = level(hosts), ""
    for _ in range(ROUNDS):
        begun = time.perf_counter()
        baseline = level(hosts)
        ours.append(time.perf_counter() - begun)
        begun = time.perf_counter()
        answer = virsh(pool_xml, "--features")
        theirs.append(time.perf_counter() - begun)
        begun = time.perf_counter()
        virsh(one)
        empty.append(time.perf_counter() - begun)
    kept = required(answer)
    return {
        "ours_seconds": statistics.median(ours),
        "libvirt_seconds": statistics.median(theirs),
        "libvirt_empty_seconds": statistics.median(empty),
        "ours_keeps": len(baseline.model.features),
        "libvirt_keeps": len(kept),
        "libvirt_keeps_more": len(kept - baseline.model.features),
    }


def main() -> None:
    assert by_cpuid()  # the catalogue is read before the clock runs
    fleet = million()
    seconds = []
    for _ in range(ROUNDS):
        begun = time.perf_counter()
        baseline = level_fleet(fleet)
        seconds.append(time.perf_counter() - begun)
        assert baseline.model.vendor
    figures: dict[str, float] = {"hosts_1e6_seconds": statistics.median(seconds)}
    if shutil.which("virsh"):
        with tempfile.TemporaryDirectory() as name:
            figures |= beside_libvirt(Path(name))
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
