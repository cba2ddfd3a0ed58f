"""script/setup in a small tree of its own, with stand-ins for apt, id and the programs it needs."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
TOOLS = (
    "bash", "cat", "cut", "dirname", "env", "find", "flock", "grep", "head", "mkdir", "readlink",
    "rm", "sha256sum", "sort", "xargs",
)  # fmt: skip
PROGRAMS = ("qemu-system-x86_64", "gcc", "objcopy", "setpriv")


class Machine:
    """A tree with script/setup and a PATH that holds only what a test puts there."""

    def __init__(self, folder: Path) -> None:
        self.root, self.path, self.log = folder / "a tree", folder / "bin", folder / "log"
        self.home = folder / "home"
        shutil.copytree(ROOT / "script", self.root / "script")
        (self.root / "requirements.lock").write_text("")
        (self.root / "pyproject.toml").write_text("")
        (self.root / "src").mkdir()
        self.path.mkdir()
        for tool in TOOLS:
            found = shutil.which(tool)
            assert found
            (self.path / tool).symlink_to(found)
        for program in PROGRAMS:
            self.program(program, "echo /dev/null")
        # A static libc is "there" where gcc names a file; a log is one.
        self.log.touch()
        self.program("gcc", f'echo "{self.log}"')
        self.user(0)
        # apt-get gives what it is asked for; apt-cache knows every package.
        self.program("apt-cache", f'echo "apt-cache $*" >>"{self.log}"; echo linux-image-x')
        self.program(
            "apt-get",
            f'echo "apt-get $*" >>"{self.log}"\n'
            f'for word; do if [ "$word" = gcc ]; then printf "#!/bin/sh\\necho {self.log}\\n" '
            f'>"{self.path}/gcc"; "{shutil.which("chmod")}" 755 "{self.path}/gcc"; fi; done',
        )

    def program(self, name: str, script: str) -> None:
        path = self.path / name
        path.unlink(missing_ok=True)
        path.write_text(f"#!/bin/sh\n{script}\n")
        path.chmod(0o755)

    def user(self, number: int) -> None:
        self.program("id", f"echo {number}")

    def environment(self) -> None:
        """A .venv whose Python only writes down what it is asked."""
        folder = self.root / ".venv/bin"
        folder.mkdir(parents=True)
        for name in ("python", "isthmus"):
            path = folder / name
            path.write_text(f'#!/bin/sh\necho "{name} $*" >>"{self.log}"\n')
            path.chmod(0o755)

    def setup(self) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            ["bash", str(self.root / "script/setup")],
            cwd="/", env={"PATH": str(self.path), "HOME": str(self.home)},
            capture_output=True, text=True,
            timeout=60, check=False,
        )  # fmt: skip

    def asked(self, word: str) -> list[str]:
        return [line for line in self.log.read_text().splitlines() if word in line]


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    if not any(map(os.path.exists, ("/bin/busybox", "/usr/bin/busybox"))):
        pytest.skip("needs a static busybox at its usual place")
    return Machine(tmp_path)


def test_a_second_run_does_nothing(machine: Machine) -> None:
    machine.environment()
    first = machine.setup()
    assert first.returncode == 0, first.stderr
    assert len(machine.asked("--require-hashes")) == 1
    assert len(machine.asked("--no-build-isolation -e .")) == 1
    second = machine.setup()
    assert (second.returncode, second.stderr, second.stdout) == (0, "", "")
    assert len(machine.asked(" install ")) == 2
    assert not machine.asked("apt-get")


def test_changed_sources_build_again_without_the_packages(machine: Machine) -> None:
    machine.environment()
    machine.setup()
    (machine.root / "src/core.c").write_text("int x;\n")
    machine.setup()
    assert len(machine.asked("--require-hashes")) == 1
    assert len(machine.asked("--no-build-isolation -e .")) == 2


def test_a_changed_lock_installs_the_packages_again(machine: Machine) -> None:
    machine.environment()
    machine.setup()
    (machine.root / "requirements.lock").write_text("# changed\n")
    machine.setup()
    assert len(machine.asked("--require-hashes")) == 2


def test_without_root_it_names_the_command_and_exits_6(machine: Machine) -> None:
    machine.environment()
    machine.user(1000)
    (machine.path / "gcc").unlink()
    done = machine.setup()
    assert done.returncode == 6
    assert "missing packages: gcc libc6-dev" in done.stderr
    assert "apt-get install -y --no-install-recommends gcc libc6-dev" in done.stderr
    assert not machine.asked("apt-get")


def test_root_installs_only_what_is_missing(machine: Machine) -> None:
    machine.environment()
    (machine.path / "gcc").unlink()
    done = machine.setup()
    assert done.returncode == 0, done.stderr
    (line,) = machine.asked("apt-get")
    assert line.endswith("install -y --no-install-recommends gcc libc6-dev")
    assert "setup: apt-get install -y --no-install-recommends gcc libc6-dev" in done.stderr


def test_lists_are_fetched_only_when_a_package_is_unknown(machine: Machine) -> None:
    machine.environment()
    (machine.path / "gcc").unlink()
    machine.program("apt-cache", "[ $1 = pkgnames ] && echo linux-image-x || exit 100")
    assert machine.setup().returncode == 0
    assert [line.rsplit(maxsplit=1)[-1] for line in machine.asked("apt-get")] == [
        "update",
        "libc6-dev",
    ]


def test_lists_without_a_kernel_are_fetched(machine: Machine) -> None:
    machine.environment()
    machine.program("apt-cache", "true")
    assert machine.setup().returncode == 0
    (line,) = machine.asked("apt-get")
    assert line.endswith(" update")


def test_without_root_lists_without_a_kernel_are_told(machine: Machine) -> None:
    machine.environment()
    machine.program("apt-cache", "true")
    machine.user(1000)
    done = machine.setup()
    assert done.returncode == 6
    assert "sudo apt-get update" in done.stderr


def test_a_kernel_in_the_cache_needs_no_lists(machine: Machine) -> None:
    machine.environment()
    machine.program("apt-cache", "true")
    machine.user(1000)
    (machine.home / ".cache/isthmus/kernels/0123abcd").mkdir(parents=True)
    done = machine.setup()
    assert done.returncode == 0, done.stderr


def test_without_apt_it_names_what_is_missing(machine: Machine) -> None:
    machine.environment()
    (machine.path / "apt-get").unlink()
    (machine.path / "setpriv").unlink()
    done = machine.setup()
    assert done.returncode == 6
    assert "no apt: util-linux" in done.stderr


def test_a_step_that_fails_is_not_stamped(machine: Machine) -> None:
    machine.environment()
    path = machine.root / ".venv/bin/python"
    works = path.read_text()
    path.write_text(works + 'case "$*" in *require-hashes*) exit 1 ;; esac\n')
    assert machine.setup().returncode == 1
    path.write_text(works)
    assert machine.setup().returncode == 0
    assert len(machine.asked("--require-hashes")) == 2
