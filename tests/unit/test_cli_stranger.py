"""The command line in the hands of somebody who does everything wrong: one clear line, no more."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

RUN = [sys.executable, "-c", "from isthmus.cli.main import main; main()"]
DUMP = "CPU 0:\n   0x00000000 0x00: eax=0x0000000d ebx=0x756e6547 ecx=0x6c65746e edx=0x49656e69\n"


def isthmus(*words: object, folder: Path, **more: str) -> subprocess.CompletedProcess[bytes]:
    done = subprocess.run(
        [*RUN, *words],
        env=os.environ | {"ISTHMUS_STATE": str(folder / "state"), **more},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        timeout=120,
        check=False,
    )
    assert b"Traceback" not in done.stderr
    return done


@pytest.fixture
def dump(tmp_path: Path) -> Path:
    path = tmp_path / "dump.txt"
    path.write_text(DUMP)
    return path


def test_an_output_that_is_full_is_told_of(dump: Path) -> None:
    with Path("/dev/full").open("wb") as full:
        done = subprocess.run(
            [*RUN, "cpu", "show", dump], stdout=full, stderr=subprocess.PIPE, timeout=120,
            check=False,
        )  # fmt: skip
    assert done.returncode == 1
    assert done.stderr == b"isthmus: error: the standard output: No space left on device\n"


@pytest.mark.parametrize("closed", [">&-", "2>&-", ">&- 2>&-"])
def test_an_output_that_is_closed_is_not_missed(dump: Path, closed: str) -> None:
    command = f'exec "$0" "$@" {closed}'
    for words, status in ((["cpu", "show", dump], 0), (["cpu", "show", dump / "no"], 1)):
        done = subprocess.run(
            ["sh", "-c", command, *RUN, *words], capture_output=True, timeout=120, check=False
        )
        assert done.returncode == status, done.stderr
        assert b"Traceback" not in done.stderr


def test_a_character_that_the_terminal_lacks_is_described(tmp_path: Path) -> None:
    path = tmp_path / "名.txt"
    path.write_text(DUMP)
    done = isthmus("cpu", "show", path, folder=tmp_path, PYTHONIOENCODING="latin1")
    assert done.returncode == 0
    assert b"\\u540d.txt" in done.stdout


def test_a_name_that_is_not_utf8_has_no_json(tmp_path: Path) -> None:
    name = os.fsencode(tmp_path) + b"/\xff.txt"
    with open(name, "w") as file:  # noqa: PTH123
        file.write(DUMP)
    assert isthmus("cpu", "show", name, folder=tmp_path).returncode == 0
    done = isthmus("cpu", "show", "--json", name, folder=tmp_path)
    assert done.returncode == 2
    assert b"not UTF-8" in done.stderr


@pytest.mark.parametrize("columns", ["0", "1", "20"])
def test_a_table_is_whole_on_the_narrowest_terminal(tmp_path: Path, columns: str) -> None:
    for number in (1, 2):
        (tmp_path / f"host{number}.txt").write_text(DUMP)
    hosts = [tmp_path / f"host{number}.txt" for number in (1, 2)]
    done = isthmus("level", *hosts, folder=tmp_path, COLUMNS=columns)
    assert done.returncode == 0, done.stderr
    assert b"gives up" in done.stdout
    assert b"-cpu" in done.stdout


@pytest.mark.parametrize("words", [["guest", "stop", "x"], ["translate", "detach", "x"]])
def test_a_state_folder_that_cannot_be_made(tmp_path: Path, words: list[str]) -> None:
    (tmp_path / "state").write_text("a file")
    done = isthmus(*words, folder=tmp_path)
    assert done.returncode == 6, done.stderr
    assert b"ISTHMUS_STATE" in done.stderr


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["migrate", "web", "--to", "x", "--verify", "nan"], b"--verify nan"),
        (["migrate", "web", "--to", "x", "--verify", "-1"], b"--verify -1"),
        (["migrate", "web", "--to", "x", "--verify", "inf"], b"--verify inf"),
        (["migrate", "--resume", "nobody"], b"nobody: no guest and no migration"),
        (["migrate", "--resume", "web", "--to", "x"], b"--to: not for --resume"),
        (["migrate", "web", "--to", "x", "--use", "source"], b"--use: only with --resume"),
        (["guest", "start", "web", "--host", "qemu64", "--memory", "-5"], b"--memory"),
    ],
)
def test_what_makes_no_sense_is_refused_before_anything(
    tmp_path: Path, words: list[str], told: bytes
) -> None:
    done = isthmus(*words, folder=tmp_path)
    assert done.returncode == 2, done.stderr
    assert told in done.stderr


def test_a_run_folder_whose_name_is_not_utf8(tmp_path: Path) -> None:
    from isthmus.errors import InputError
    from isthmus.hypervisor.qemu.process import private_directory

    path = Path(os.fsdecode(os.fsencode(tmp_path) + b"/\xff"))
    with pytest.raises(InputError, match="not UTF-8"):
        private_directory(path)
    assert not path.exists()


def test_a_user_without_a_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a container that runs as any number."""
    from isthmus import places
    from isthmus.errors import EnvironmentLackError

    def none() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "home", none)
    for name in ("ISTHMUS_STATE", "XDG_STATE_HOME", "ISTHMUS_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(EnvironmentLackError, match="ISTHMUS_STATE"):
        places.state_folder()
    monkeypatch.setenv("ISTHMUS_STATE", str(tmp_path))
    assert places.state_folder() == tmp_path
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert places.cache_folder() == tmp_path / "isthmus"
