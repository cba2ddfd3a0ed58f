"""A command in dom0 as a program of this machine, through an agent that runs here."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from isthmus.cpu.named import qemu_models
from isthmus.hypervisor.xen.host import Type
from isthmus.places import cache_folder
from isthmus.qualification.kvm.channel import Channel
from isthmus.qualification.kvm.image import build_agent
from isthmus.qualification.xen.guest import configuration, reports
from isthmus.qualification.xen.host import host_models

PROGRAM = [sys.executable, "-m", "isthmus.qualification.xen.remote"]
WAIT_S = 120


@pytest.fixture
def host(tmp_path: Path) -> Iterator[Path]:
    """The folder of a lab host that is this machine."""
    program = tmp_path / "agent"
    program.write_bytes(build_agent(cache_folder()))
    program.chmod(0o755)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    child = subprocess.Popen([program, str(port), "secret"], stdout=subprocess.PIPE)
    assert child.stdout is not None
    child.stdout.readline()
    Channel("here", port, "secret", "xen").write(tmp_path)
    yield tmp_path
    child.kill()
    child.wait()


def test_input_outputs_and_status_are_the_commands(host: Path) -> None:
    data = os.urandom(3_000_000)
    done = subprocess.run(
        [*PROGRAM, host, "cat; echo wrong >&2; exit 7"],
        input=data, capture_output=True, timeout=WAIT_S, check=False,
    )  # fmt: skip
    assert done.stdout == data
    assert done.stderr == b"wrong\n"
    assert done.returncode == 7


def test_a_command_that_takes_no_input_ends_nevertheless(host: Path) -> None:
    with subprocess.Popen(
        [*PROGRAM, host, "exec 0<&-; echo said"], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as child:
        assert child.stdout is not None
        assert child.stdout.read() == b"said\n"
        assert child.wait(WAIT_S) == 0


def test_if_the_program_is_killed_the_commands_input_ends_and_it_goes_on(
    host: Path, tmp_path: Path
) -> None:
    done = tmp_path / "done"
    child = subprocess.Popen(
        [*PROGRAM, host, f"echo begun; cat > /dev/null; touch {done}"],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE,
    )  # fmt: skip
    assert child.stdout is not None
    assert child.stdout.readline() == b"begun\n"
    child.send_signal(signal.SIGKILL)
    child.communicate(timeout=WAIT_S)
    deadline = time.monotonic() + WAIT_S
    while not done.exists():
        assert time.monotonic() < deadline, "xl may have a guest in its hands"
        time.sleep(0.05)


def test_a_host_that_is_not_there_is_told_as_ssh_tells_it(tmp_path: Path) -> None:
    done = subprocess.run(
        [*PROGRAM, tmp_path, "true"], capture_output=True, timeout=WAIT_S, check=False
    )
    assert done.returncode == 255
    assert b"not the folder of a lab host" in done.stderr
    assert b"Traceback" not in done.stderr


def test_both_makers_have_hosts() -> None:
    makers = {model.maker for model in host_models().values()}
    assert makers == {"AuthenticAMD", "GenuineIntel"}


def test_hosts_with_xsave_switch_the_fpu_eagerly_on_amd() -> None:
    """TCG does not check CR0.TS at XSAVE: lazily switched, dom0's programs die."""
    for model in host_models().values():
        features = qemu_models()[model.cpu.partition(",")[0]].features
        lazy = model.maker == "AuthenticAMD" and "xsave" in features
        assert ("eager-fpu=1" in model.xen) is lazy, model.name


def test_a_guests_configuration_says_what_it_is_shown() -> None:
    text = configuration("web", "/guest/x", kind=Type.PVH, cpuid=("0x0:eax=" + "0" * 32,))
    assert 'type = "pvh"' in text
    assert "cpuid = [\n  '0x0:eax=" in text
    assert "cpuid" not in configuration("web", "/guest/x")


def test_the_payloads_lines_are_taken_out_of_a_console() -> None:
    said = b"isthmus1 0 start a=1\r\n[ 1.0] kernel talk\nisthmus1 1 tick n=0\nisthmus1 2 ti"
    assert reports(said) == b"isthmus1 0 start a=1\nisthmus1 1 tick n=0\n"
