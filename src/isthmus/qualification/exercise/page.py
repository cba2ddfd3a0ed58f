"""The page ``docs/crossings.md``: which unlevelled guests crossed, as a run recorded it.

``python -m isthmus.qualification.exercise.page docs/crossings.json docs/crossings.md`` writes it
anew; a test holds the committed page to the committed record.
"""

import sys
from pathlib import Path

from isthmus.qualification.exercise.crossing import Crossing
from isthmus.qualification.exercise.encodings import LEFT_OUT, TCG_DIFFERS
from isthmus.qualification.exercise.record import Programs, Refused, Row, read

_HEAD = """# Crossings

Guests that were booted **unlevelled**, on a CPU of one maker or generation, moved to one that
lacks instructions they use, and moved home again. This page is generated from
`docs/crossings.json`, the record of a run (QEMU 7.2, TCG, Linux 6.1, one vCPU):

```sh
ISTHMUS_CROSSINGS=docs/crossings.json script/test --slow tests/lab/test_crossings.py \\
    tests/lab/test_real_programs.py
python -m isthmus.qualification.exercise.page docs/crossings.json docs/crossings.md
```

## Every instruction, to the bit

In the guest runs the *exercise* (`src/isthmus/qualification/exercise`). It executes every encoding
that the emulation core knows and its CPU shows, each once a round, on registers, flags, x87 state
and memory that are drawn from the round's number, and prints one sum a feature over all that came
out. A second guest with the same image stays at home. A crossing counts if the traveller's every
round, at home, abroad and at home again, is equal to that of the guest that stayed; if every
missing instruction was met and translated; and if the payload (payload.md) has no complaint.

*Missing*: encodings that the CPU abroad lacks, of all that the home CPU has. *Rounds*: whole ones
at home, abroad, at home again. *Translated*: instructions abroad, the kernel's own among them.

| home | abroad | makers | lost | missing | rounds | translated | where |
|---|---|---|---|---|---|---|---|
"""

_PROGRAMS = """
## Real programs

Programs and libraries out of Debian's packages, at work since the guest was booted, so they chose
their code for the home CPU: `crypto` is OpenSSL's libcrypto (AES-GCM, AES-CBC, ChaCha20, SHA-1,
-256, -512), `strings` glibc's string and rounding functions by its IFUNCs, `blas` OpenBLAS (dgemm,
sgemm, ddot), `go` a Go program (gron), whose runtime hashes with AES. Results are compared with a
guest that stayed at home and, for the first two, with those of the machine that runs the test.

| programs | home | abroad | rounds | translated, the most frequent |
|---|---|---|---|---|
"""

_REFUSED = """
## Refused

Pairs that preflight refuses for more than missing instructions, so no translation helps:

| home | abroad | what blocks |
|---|---|---|
"""

_LIMITS = """
## What is left out

| instruction | why |
|---|---|
"""

_TCG = """
## Where the emulator is not as a CPU is

The lab's CPUs are QEMU's TCG. The core does what silicon does; natively it agrees with an AMD EPYC
(Zen 5) on all that this CPU has. Where TCG differs, a guest at home would compute
something else than the same guest translated abroad. So the exercise avoids:

| what | how TCG differs, and what is done |
|---|---|
"""

_TAIL = """
Between makers, too, something is open: the upper quadword that EXTRQ and INSERTQ leave undefined
(Zen 5 and the core clear it; QEMU and Bochs keep it) is not summed, and which NaN a DPPS gives
where several meet (the core does as Intel's Sapphire Rapids, Zen 5 gives another) is not tried.

## What was seen on the way

- A guest whose kernel reads its clock by RDTSCP (`clocksource=tsc` on an AMD CPU) and which
  computes without pause can starve abroad if it is translated from outside under TCG: three of
  four such moves were rolled back ("its payload reported nothing"). It seems that with a
  high-resolution timer the reads of one tick (4 ms), each a trap after which TCG compiles the
  kernel anew, take longer than the tick. With `highres=off nohz=off`, as the guests here have it,
  or with another clock source it did not happen again.
- Opteron_G4 and Opteron_G5 cannot be homes: with XSAVE and without XSAVEOPT a guest does not boot
  under QEMU 7.2's TCG ([demo.md](demo.md)).
- Pairs that lose AVX2, FMA, F16C or XOP need a placement that reaches the upper halves of YMM
  registers; a pair of the matrix names its placement.
"""


def _crossing(row: Crossing) -> str:
    makers = " to ".join("AMD" if name == "AuthenticAMD" else "Intel" for name in row.makers)
    verdict = "" if row.ok else " **failed**"
    return (
        f"| {row.pair.home} | {row.pair.abroad}{verdict} | {makers} | {', '.join(row.lost)} | "
        f"{row.missing} of {row.encodings} | {' + '.join(map(str, row.rounds))} | "
        f"{sum(row.translated.values()):,} | {row.pair.placement.value} |"
    )


def _programs(row: Programs) -> str:
    most = sorted(row.translated.items(), key=lambda item: -item[1])[:5]
    counts = ", ".join(f"{name} {count:,}" for name, count in most)
    rounds = " + ".join(map(str, row.rounds))
    return f"| {', '.join(row.names)} | {row.home} | {row.abroad} | {rounds} | {counts} |"


def _refused(row: Refused) -> str:
    return f"| {row.home} | {row.abroad} | {', '.join(row.subjects)} |"


def page(rows: tuple[Row, ...]) -> str:
    """The whole page, as Markdown."""
    lines = [_HEAD.rstrip("\n")]
    lines += [_crossing(row.crossing) for row in rows if row.crossing]
    lines.append(_PROGRAMS.rstrip("\n"))
    lines += [_programs(row.programs) for row in rows if row.programs]
    lines.append(_REFUSED.rstrip("\n"))
    lines += [_refused(row.refused) for row in rows if row.refused]
    lines.append(_LIMITS.rstrip("\n"))
    lines += [f"| {name} | {why} |" for name, why in LEFT_OUT.items()]
    lines.append(_TCG.rstrip("\n"))
    lines += [f"| {name} | {why} |" for name, why in TCG_DIFFERS.items()]
    return "\n".join(lines) + "\n" + _TAIL


if __name__ == "__main__":
    Path(sys.argv[2]).write_text(page(read(Path(sys.argv[1]))), encoding="utf-8")
