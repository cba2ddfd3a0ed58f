"""Build the exercise: one static program, its table written from :mod:`.encodings`."""

import subprocess
from collections.abc import Callable
from importlib import resources
from pathlib import Path

from isthmus.cpu.features import FEATURES
from isthmus.errors import EnvironmentLackError
from isthmus.qualification.exercise.encodings import Encoding, encodings
from isthmus.qualification.payload.build import FLAGS, compiler_version
from isthmus.qualification.store import Made, key_of, obtain

_REGISTERS = ("eax", "ebx", "ecx", "edx")
_REMEDY = "apt-get install gcc libc6-dev"
COMPILE_TIMEOUT_S = 180


def source() -> bytes:
    """The program's C text."""
    return resources.files("isthmus.qualification.exercise").joinpath("exercise.c").read_bytes()


def table() -> str:
    """``table.inc``: the features and the encodings as C initialisers."""
    chosen = encodings()
    names = sorted({"avx", *(name for one in chosen for needed in one.needs for name in needed)})
    groups = sorted({one.group for one in chosen})
    names = groups + [name for name in names if name not in groups]
    counts = f"FEATURES = {len(names)}, ENCODINGS = {len(chosen)}, AVX = {names.index('avx')}"
    lines = [f"enum {{ {counts} }};", "static const struct feature features[] = {"]
    for name in names:
        one = FEATURES[name]
        assert one.leaf is not None
        assert one.register is not None
        lines.append(
            f'    {{"{name}", {one.leaf:#x}, {one.subleaf or 0}, '
            f"{_REGISTERS.index(one.register)}, {one.bit}}},"
        )
    lines += ["};", "static const struct encoding encodings[] = {"]
    lines += [_row(one, names) for one in chosen]
    return "\n".join([*lines, "};", ""])


def _row(one: Encoding, names: list[str]) -> str:
    code = ", ".join(f"{byte:#04x}" for byte in one.code)
    masks = [sum(1 << names.index(name) for name in needed) for needed in one.needs]
    needs = ", ".join(f"{mask:#x}" for mask in (*masks, 0)[:2])
    return (
        f"    {{{{{code}}}, {len(one.code)}, {int(one.shape)}, {names.index(one.group)}, "
        f'{one.mask}, {int(one.lab)}, {one.flags:#x}, {{{needs}}}, "{one.mnemonic}"}},'
    )


def build_exercise(
    cache: Path, *, compiler: str = "gcc", progress: Callable[[str], None] = lambda _: None
) -> Path:
    """Compile the exercise, or take it from ``cache``; returns the program's path.

    :raises EnvironmentLackError: there is no compiler, or no static C library.
    """
    text, rows = source(), table().encode()
    key = key_of(" ".join(FLAGS), compiler_version(compiler), text, rows)

    def make(scratch: Path) -> Made:
        progress("compiling the exercise")
        (scratch / "exercise.c").write_bytes(text)
        (scratch / "table.inc").write_bytes(rows)
        done = subprocess.run(
            [compiler, *FLAGS, "-o", "exercise", "exercise.c"],
            cwd=scratch, capture_output=True, text=True, check=False, timeout=COMPILE_TIMEOUT_S,
        )  # fmt: skip
        if done.returncode != 0:
            raise EnvironmentLackError(
                f"the exercise does not compile: {done.stderr.strip()[-400:]}", remedy=_REMEDY
            )
        return Made(files={"exercise": (scratch / "exercise").read_bytes()})

    program = obtain(cache, "exercises", key, make).folder / "exercise"
    program.chmod(0o755)
    return program
