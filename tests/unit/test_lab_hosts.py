"""Promises about starting emulated hosts: one process starts a host, and `down` leaves nothing."""

import subprocess
import sys
from pathlib import Path

import pytest

from isthmus.errors import InputError
from isthmus.qualification.lab.hosts import remove_all, starting

HOLDER = """
import sys
from pathlib import Path
from isthmus.qualification.lab.hosts import starting
with starting(Path(sys.argv[1]), ["epyc", "haswell"]):
    print("held", flush=True)
    sys.stdin.read()
"""


def test_a_host_that_another_process_starts_is_refused_until_that_ends(tmp_path: Path) -> None:
    run = tmp_path / "run"
    with subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(run)],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE,
    ) as holder:  # fmt: skip
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"held\n"
        with pytest.raises(InputError, match="haswell: is being started"), starting(
            run, ["haswell", "milan"]
        ):  # fmt: skip
            pass
        with starting(run, ["milan"]):
            pass
        holder.kill()
        holder.wait()
        with starting(run, ["haswell", "haswell", "epyc"]):
            pass
    assert not list(run.iterdir())


async def test_down_leaves_nothing_of_it(tmp_path: Path) -> None:
    run = tmp_path / "run"
    with starting(run, ["epyc"]):
        (run / "epyc").mkdir()
    await remove_all(run)
    assert not run.exists()
