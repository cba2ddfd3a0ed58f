"""What is preloaded into Bochs keeps its screen on this machine."""

import os
import shutil
import subprocess
import sys
from importlib import resources
from pathlib import Path

import pytest

from isthmus.qualification.payload.build import SHARED, compiled

_ASK = """
import socket
for family, address in ((socket.AF_INET, "0.0.0.0"), (socket.AF_INET, "127.0.0.2")):
    with socket.socket(family) as one:
        one.bind((address, 0))
        print(one.getsockname()[0])
"""


@pytest.mark.skipif(shutil.which("gcc") is None, reason="no C compiler")
def test_a_socket_for_all_addresses_is_one_for_the_loopback(tmp_path: Path) -> None:
    source = resources.files("isthmus.qualification.kvm").joinpath("loopback.c").read_bytes()
    library = tmp_path / "loopback.so"
    library.write_bytes(compiled({"loopback.c": source}, tmp_path, "gcc", SHARED))
    done = subprocess.run(
        [sys.executable, "-c", _ASK], env=os.environ | {"LD_PRELOAD": str(library)},
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert done.stdout.split() == ["127.0.0.1", "127.0.0.2"]
    assert done.stderr == ""
