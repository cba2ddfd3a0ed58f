"""The addresses of the libvirt lab's ssh servers are told only for hosts that have one."""

import os
from pathlib import Path

from isthmus.hypervisor.qemu.process import ProcessIdentity
from isthmus.qualification.lab.libvirt_host import LibvirtHost
from isthmus.qualification.lab.libvirt_ssh import addresses


def host(name: str, folder: Path) -> LibvirtHost:
    here = ProcessIdentity.of(os.getpid())
    return LibvirtHost(
        name=name, folder=folder / name, plays="EPYC", number=1, uuid="", anchor=here, inside=here
    )


def test_an_address_is_told_of_a_server_that_was_started_with_its_host(tmp_path: Path) -> None:
    hosts = {name: host(name, tmp_path) for name in ("amd", "intel")}
    # What a former lab has left beside the hosts says nothing of these.
    (tmp_path / "ssh").mkdir()
    (tmp_path / "ssh" / "ssh").touch()
    assert addresses(hosts) == {}
    assert addresses({}) == {}
    (tmp_path / "amd" / "sshd").mkdir(parents=True)
    (tmp_path / "amd" / "sshd" / "pid").touch()
    assert addresses(hosts) == {
        "amd": f"qemu+ssh://root@amd/system?command={tmp_path}/ssh/ssh",
    }
