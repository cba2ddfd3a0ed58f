"""Lab hosts with real KVM, driven by the command line, with folders of their own."""

import contextlib
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from isthmus.hypervisor.qemu import process
from isthmus.places import cache_folder
from isthmus.qualification.payload.verdict import Verdict, judge


class Lab:
    """The command line with folders of its own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.run = folder / "run"

    def isthmus(self, *arguments: str, status: int = 0, patience_s: float = 280) -> str:
        """What a command prints, or its complaint where it is to fail with ``status``."""
        code, said = self.attempt(*arguments, patience_s=patience_s)
        assert code == status, said
        return said

    def attempt(self, *arguments: str, patience_s: float = 280) -> tuple[int, str]:
        """The exit status of a command, and what it prints or complains of."""
        done = subprocess.run(
            [sys.executable, "-c", "from isthmus.cli.main import main; main()", *arguments],
            env=os.environ
            | {
                "ISTHMUS_RUN": str(self.run),
                "ISTHMUS_STATE": str(self.folder / "state"),
                "ISTHMUS_CACHE": str(cache_folder()),
            },
            capture_output=True,
            text=True,
            timeout=patience_s,
            check=False,
        )
        assert "Traceback" not in done.stderr
        return done.returncode, done.stdout if done.returncode == 0 else done.stderr

    def verdict(self, guest: str) -> Verdict:
        """The payload's judgement of its life so far."""
        (state,) = [
            each for each in json.loads(self.isthmus("guest", "list", "--json"))
            if each["name"] == guest
        ]  # fmt: skip
        return judge([Path(stream).read_bytes() for stream in state["streams"]])


@contextlib.contextmanager
def lab_of(*hosts: str) -> Iterator[Lab]:
    """A lab with these hosts up; afterwards nothing of it is left."""
    with tempfile.TemporaryDirectory(prefix="is-") as name:
        lab = Lab(Path(name))
        try:
            lab.isthmus("lab", "kvm", "up", *(host.removeprefix("kvm:") for host in hosts))
            yield lab
        finally:
            lab.isthmus("lab", "kvm", "down")
            left = process.mentioning(Path(name))
            for each in left:
                each.kill()
            assert not left, "down leaves no process behind"
