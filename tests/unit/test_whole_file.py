"""A file is written whole or not at all, and a device stays one."""

import os
import stat
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from isthmus.whole_file import write_whole

RUN = [sys.executable, "-c", "from isthmus.cli.main import main; main()"]


def test_a_new_file_and_one_that_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / "x"
    for data in (b"a" * 10, b"b"):
        write_whole(path, data)
        assert path.read_bytes() == data
        assert stat.S_IMODE(path.stat().st_mode) == 0o644
    assert list(tmp_path.iterdir()) == [path]


def test_a_link_stays_and_leads_to_the_new_content(tmp_path: Path) -> None:
    (tmp_path / "kept").write_bytes(b"old")
    link = tmp_path / "link"
    link.symlink_to("kept")
    write_whole(link, b"new")
    assert link.is_symlink()
    assert (tmp_path / "kept").read_bytes() == b"new"


def test_what_is_no_plain_file_is_written_to_and_not_replaced(tmp_path: Path) -> None:
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    read: list[bytes] = []
    reader = threading.Thread(target=lambda: read.append(fifo.read_bytes()))
    reader.start()
    write_whole(fifo, b"x" * 100_000)
    reader.join(60)
    assert read == [b"x" * 100_000]
    assert stat.S_ISFIFO(fifo.stat().st_mode)


def test_what_cannot_be_written_leaves_nothing(tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    loop = tmp_path / "loop"
    loop.symlink_to("loop")
    before = sorted(tmp_path.iterdir())
    for path in (folder, loop, tmp_path / "no" / "x"):
        with pytest.raises(OSError, match=r"x|folder|loop"):
            write_whole(path, b"data")
    assert sorted(tmp_path.iterdir()) == before


def test_no_command_puts_a_file_in_the_place_of_a_device(tmp_path: Path) -> None:
    """As root that would be the end of /dev/null."""
    fifo = tmp_path / "device"
    os.mkfifo(fifo)
    held = os.open(fifo, os.O_RDWR)  # so that writing finds a reader
    try:
        done = subprocess.run(
            [*RUN, "translate", "metrics", "--textfile", fifo],
            env=os.environ | {"ISTHMUS_STATE": str(tmp_path / "state")},
            capture_output=True,
            timeout=120,
            check=False,
        )
    finally:
        os.close(held)
    assert done.returncode == 0, done.stderr
    assert stat.S_ISFIFO(fifo.stat().st_mode)
