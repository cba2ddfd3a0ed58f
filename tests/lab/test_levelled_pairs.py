"""A guest levelled for an AMD and an Intel host lives through moves in both directions."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from isthmus.places import cache_folder

pytestmark = [pytest.mark.lab, pytest.mark.timeout(400)]

PAIRS = [
    "Opteron_G2,Nehalem",
    "Opteron_G3,Westmere",
    "EPYC,Skylake-Server",
    "EPYC-Rome,Cascadelake-Server",
    "Snowridge,EPYC-Milan",
]


@pytest.mark.parametrize("pair", PAIRS)
def test_it_crosses_and_returns(pair: str, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", "from isthmus.cli.main import main; main()", "demo", "--json",
         "--pair", pair, "--only", "levelled", "--moves", "2", "--report", "-"],
        env=os.environ | {"ISTHMUS_CACHE": str(cache_folder()), "ISTHMUS_STATE": str(tmp_path)},
        capture_output=True, text=True, timeout=330, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    (act,) = json.loads(done.stdout)["acts"]
    assert (act["ok"], act["outcome"], act["faults"]) == (True, "lived", [])
    first, second = pair.split(",")
    assert [(move["source"], move["destination"]) for move in act["moves"]] == [
        (first, second), (second, first),
    ]  # fmt: skip
