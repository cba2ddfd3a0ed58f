"""What translation costs, in every placement and in one run, each beside its own peer.

    .venv/bin/python bench/translate.py

The parts can be run alone: ``translate_preload.py`` (beside an empty SIGILL handler, natively),
``translate_inside.py`` (beside an empty #UD notifier, in guest instructions),
``translate_outside.py`` (beside an empty stop of QEMU's debug stub), ``translate_rewrite.py`` (a
loop that reads the clock, beside a levelled guest), ``translate_program.py`` (a whole program).
"""

import json
import sys

import translate_inside
import translate_outside
import translate_preload
import translate_program
import translate_rewrite

PARTS = (
    translate_preload,
    translate_inside,
    translate_outside,
    translate_rewrite,
    translate_program,
)
BOUNDS = {
    "preload_ratio": ("<=", 1.3),
    "inside_ratio": ("<=", 1.5),
    "outside_ratio": ("<=", 1.6),
    "traps_per_instruction": ("<=", 0.3),
    "rewritten_clock_ratio": (">=", 0.8),
}


def holds(figures: dict[str, object], name: str) -> bool:
    """Whether a figure was measured and keeps its bound."""
    sign, bound = BOUNDS[name]
    value = figures.get(name)
    if not isinstance(value, float):
        return False
    return value <= bound if sign == "<=" else value >= bound


def main() -> int:
    """Run all parts; 0 if every bound holds."""
    figures: dict[str, object] = {}
    for part in PARTS:
        print(f"{part.__name__} …", file=sys.stderr)
        try:
            measured = part.measure()
        except translate_preload.NothingMissingError as error:
            print(f"left out: {error}", file=sys.stderr)
            continue
        told = figures.get("traps_per_instruction", 0.0)
        figures |= measured
        if "traps_per_instruction" in measured:
            # Preload and outside both tell it: the worse of the two counts.
            figures["traps_per_instruction"] = max(told, measured["traps_per_instruction"])
    for name, (sign, bound) in BOUNDS.items():
        verdict = "holds" if holds(figures, name) else "FAILS"
        print(f"{name:24} {figures.get(name, '-')!s:>8}  {sign} {bound}  {verdict}")
    ok = all(holds(figures, name) for name in BOUNDS)
    bounds = {name: list(bound) for name, bound in BOUNDS.items()}
    print(json.dumps({"bench": "translate", "figures": figures, "bounds": bounds, "ok": ok}))
    return 0 if ok else 1


if __name__ == "__main__":
    sys.exit(main())
