"""A real move over real ssh: `xen+ssh://`, with a small ssh server put into the lab's hosts."""

import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from xen_lab import Lab, lab_of

from isthmus.places import cache_folder
from isthmus.qualification.lab import packages, programs
from isthmus.qualification.xen.host import LabHost, image, started

pytestmark = [pytest.mark.lab, pytest.mark.slow, pytest.mark.timeout(3600)]

AMD, INTEL = "opteron3", "nehalem"
SERVER = "usr/sbin/dropbear"


@pytest.fixture
def server(tmp_path: Path) -> dict[str, bytes]:
    if shutil.which("ssh") is None or shutil.which("ssh-keygen") is None:
        pytest.skip("no ssh here")
    if packages.find("dropbear-bin") is None:
        pytest.skip("apt's lists have no dropbear-bin")
    chosen = programs.needed_packages(("dropbear-bin",))
    return programs.files(chosen, (SERVER,), (), scratch=tmp_path)


@pytest.fixture
def lab() -> Iterator[Lab]:
    if not image(cache=cache_folder())[1]:
        pytest.skip("no source of Xen here: Debian's own hypervisor cannot move PV guests live")
    with lab_of(AMD, INTEL) as up:
        yield up


def serve(lab: Lab, host: LabHost, files: dict[str, bytes], key: str) -> None:
    """Start the server in dom0, for the owner of ``key`` alone."""
    import asyncio

    async def put() -> None:
        channel = host.channel()
        for name, content in files.items():
            place = f"/ssh/{Path(name).name}"
            await channel.run("/bin/mkdir", "-p", "/ssh", "/root/.ssh", "/etc")
            await channel.put(place, content)
        await channel.put("/root/.ssh/authorized_keys", key.encode())
        await channel.put("/etc/passwd", b"root:x:0:0:root:/root:/bin/sh\n")
        await channel.put("/etc/group", b"root:x:0:\n")
        await channel.put("/etc/shells", b"/bin/sh\n")

    asyncio.run(put())
    lab.xl(
        host.name,
        "chmod 700 /root /root/.ssh; chown -R 0:0 /root; cd /ssh;"
        " ./ld-linux-x86-64.so.2 --library-path /ssh ./dropbear -R -E -s -r /ssh/hostkey -p 22"
        " > /ssh/log 2>&1",
    )


def test_a_guest_crosses_by_ssh(
    lab: Lab, server: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    key = tmp_path / "key"
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", key], check=True)
    config = tmp_path / "config"
    config.write_text(
        f"Host *\n  IdentityFile {key}\n  StrictHostKeyChecking no\n"
        "  UserKnownHostsFile /dev/null\n  LogLevel ERROR\n"
    )
    wrapper = tmp_path / "bin" / "ssh"
    wrapper.parent.mkdir()
    wrapper.write_text(f'#!/bin/sh\nexec {shutil.which("ssh")} -F {config} "$@"\n')
    wrapper.chmod(0o755)
    monkeypatch.setenv("PATH", f"{wrapper.parent}:{os.environ['PATH']}")
    hosts = started(lab.folder / "run" / ".xen")
    addresses = {}
    for name, host in hosts.items():
        serve(lab, host, server, key.with_suffix(".pub").read_text())
        addresses[name] = f"xen+ssh://root@127.0.0.1:{host.ssh}"
    lab.isthmus("lab", "xen", "start", "byssh", "--host", INTEL, "--level-with", AMD)
    record = json.loads(
        lab.isthmus(
            "migrate", "byssh", "--from", addresses[INTEL], "--to", addresses[AMD], "--json"
        )
    )
    assert record["steps"][-1]["phase"] == "committed"
    assert lab.domains(AMD) == {"byssh"}
    assert not lab.domains(INTEL)
