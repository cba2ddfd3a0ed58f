"""What libvirt's binding says, in our words; libvirt's own test driver stands for a daemon."""

import importlib

import pytest
from click.testing import CliRunner

from isthmus.cli.migrate import migrate as command
from isthmus.errors import EnvironmentLackError, InputError, IsthmusError
from isthmus.hypervisor.libvirt import connection
from isthmus.hypervisor.libvirt.connection import DaemonGoneError, call, session
from isthmus.hypervisor.libvirt.move import Wishes, flags, parameters

NOBODY = "qemu+unix:///system?socket=/nonexistent/libvirt-sock"


@pytest.fixture
def binding() -> None:
    pytest.importorskip("libvirt", reason="libvirt's binding is an optional part")


def test_without_the_binding_it_is_told_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    def lacks(name: str) -> None:
        raise ImportError(name)

    monkeypatch.setattr(importlib, "import_module", lacks)
    with pytest.raises(EnvironmentLackError, match=r"script/setup --libvirt"):
        connection.binding()


@pytest.mark.usefixtures("binding")
async def test_a_domain_is_found_by_name_and_by_uuid() -> None:
    async with session("test:///default") as opened:
        by_name = await opened.domain("test")
        uuid = await call(by_name.UUIDString)
        assert await call((await opened.domain(uuid)).name) == "test"
        assert await opened.find("nobody") is None
        with pytest.raises(InputError, match="no guest of that name"):
            await opened.domain("nobody")


@pytest.mark.usefixtures("binding")
async def test_a_daemon_that_is_not_there_is_gone() -> None:
    with pytest.raises(DaemonGoneError, match="nonexistent"):
        async with session(NOBODY):
            pass


@pytest.mark.usefixtures("binding")
def test_the_command_says_so_in_one_line() -> None:
    done = CliRunner().invoke(command, ["web", "--from", NOBODY, "--to", NOBODY])
    assert isinstance(done.exception, IsthmusError)
    assert "\n" not in str(done.exception)


@pytest.mark.usefixtures("binding")
def test_wishes_become_libvirts_flags_and_parameters() -> None:
    libvirt = connection.binding()
    plain = flags(Wishes())
    assert plain == libvirt.VIR_MIGRATE_LIVE
    assert parameters(Wishes()) == {}
    wishes = Wishes(
        peer="qemu+tcp://b/system",
        link="tcp://10.0.0.2",
        bandwidth=3 << 20,
        postcopy=True,
        parallel=4,
        copy_storage=True,
        tls=True,
        persistent=True,
    )
    for wanted in (
        libvirt.VIR_MIGRATE_PEER2PEER,
        libvirt.VIR_MIGRATE_POSTCOPY,
        libvirt.VIR_MIGRATE_PARALLEL,
        libvirt.VIR_MIGRATE_NON_SHARED_DISK,
        libvirt.VIR_MIGRATE_TLS,
        libvirt.VIR_MIGRATE_PERSIST_DEST,
        libvirt.VIR_MIGRATE_UNDEFINE_SOURCE,
    ):
        assert flags(wishes) & wanted
        assert not plain & wanted
    assert parameters(wishes) == {
        libvirt.VIR_MIGRATE_PARAM_URI: "tcp://10.0.0.2",
        libvirt.VIR_MIGRATE_PARAM_BANDWIDTH: 3,
        libvirt.VIR_MIGRATE_PARAM_BANDWIDTH_POSTCOPY: 3,
        libvirt.VIR_MIGRATE_PARAM_PARALLEL_CONNECTIONS: 4,
    }


@pytest.mark.usefixtures("binding")
def test_less_than_a_mebibyte_a_second_is_one() -> None:
    libvirt = connection.binding()
    assert parameters(Wishes(bandwidth=1)) == {libvirt.VIR_MIGRATE_PARAM_BANDWIDTH: 1}
