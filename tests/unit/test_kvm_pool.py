"""Lab hosts as hosts: who may translate there, by whether a trial guest stops there."""

from pathlib import Path

import pytest

from isthmus.cpu.model import CpuModel
from isthmus.errors import RefusedError
from isthmus.hypervisor.qemu.binary import QemuBinary
from isthmus.hypervisor.qemu.engine import Accelerator, Trial
from isthmus.hypervisor.qemu.guests import Guest, GuestStore
from isthmus.hypervisor.qemu.models import QemuCpus
from isthmus.hypervisor.qemu.process import LaunchSpec, ProcessIdentity, QemuProcess
from isthmus.migration import hosts as migration_hosts
from isthmus.qualification.kvm.host import LabHost, host_models
from isthmus.qualification.kvm.pool import Asked, LabHosts
from isthmus.translate.table import Placement

OLD = CpuModel(
    name="host", source="test", vendor="AuthenticAMD", family=15, model=6, stepping=1
)  # fmt: skip
NOBODY = QemuProcess(
    identity=ProcessIdentity(pid=1, start_ticks=0), directory=Path("/nowhere"), command=()
)


def pool(folder: Path) -> LabHosts:
    """Two hosts that lack what the guest has: one of QEMU's emulation and one of Bochs's."""
    cpus = QemuCpus(
        version="7.2.0",
        accelerator=Accelerator.KVM,
        definitions={"host": OLD},
        unavailable={"host": frozenset()},
    )
    store = GuestStore(folder / "state", folder / "run")
    hosts = {
        f"kvm:{name}": LabHost(
            name=name, model=host_models()[name], process=NOBODY, streams=(), restored=False,
            seconds=1.0, kernel="6.1", qemu="7.2", kvm="kvm",
        )
        for name in ("opteron2", "haswell")
    }  # fmt: skip
    asked = {
        name: Asked(QemuBinary(path=Path(name) / "qemu", version=(7, 2, 0)), cpus, store)
        for name in hosts
    }
    return LabHosts(hosts, asked)


def guest(*, module: bool) -> Guest:
    """A guest that saw SSE4a at its boot."""
    spec = LaunchSpec(
        qemu=Path("qemu"), accelerator=Accelerator.KVM, machine="pc-i440fx-7.2", cpu="phenom",
        vcpus=1, memory_mib=128, kernel=Path("k"), initrd=Path("i"), command_line="",
    )  # fmt: skip
    return Guest(
        name="g", spec=spec, host="kvm:phenom", process=NOBODY, module=module,
        shown=OLD.replace(features=frozenset({"sse4a"})),
    )  # fmt: skip


@pytest.mark.parametrize(
    ("host", "module", "placement"),
    [
        ("kvm:haswell", False, Placement.OUTSIDE),
        ("kvm:haswell", True, Placement.INSIDE),
        ("kvm:opteron2", False, None),
        ("kvm:opteron2", True, Placement.INSIDE),
    ],
)
def test_where_no_breakpoint_stops_a_guest_only_its_module_serves_it(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    host: str,
    module: bool,
    placement: Placement | None,
) -> None:
    def tried(qemu: QemuBinary, accelerator: Accelerator) -> Trial:
        return Trial(accelerator=accelerator, works="haswell" in str(qemu.path), reason="tried")

    monkeypatch.setattr(migration_hosts, "try_breakpoint", tried)
    hosts = pool(tmp_path)
    by = hosts.served(guest(module=module), host, translate=True)
    assert by.placement is placement
    verdict = hosts.check(guest(module=module), host)
    assert bool(verdict.blocking) is (placement is None)
    if placement is None:
        with pytest.raises(RefusedError, match="sse4a"):
            verdict.require()


def test_where_nothing_is_missing_nothing_is_tried(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It takes seconds on an emulated host, and a levelled guest needs no translator."""

    def tried(qemu: QemuBinary, accelerator: Accelerator) -> Trial:
        raise AssertionError(f"{qemu.path} was tried with {accelerator}")

    monkeypatch.setattr(migration_hosts, "try_breakpoint", tried)
    level = guest(module=False).replace(shown=OLD)
    assert not pool(tmp_path).check(level, "kvm:opteron2").blocking
