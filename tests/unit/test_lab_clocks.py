"""A guest that keeps time by the TSC is not sent to a host whose TSC has another rate."""

from pathlib import Path

import pytest

from isthmus.divergence.evidence import GuestEvidence
from isthmus.divergence.examples import reference_cpus
from isthmus.hypervisor.qemu.engine import Accelerator
from isthmus.hypervisor.qemu.process import LaunchSpec
from isthmus.migration.hosts import _clock_of
from isthmus.migration.preflight import preflight
from isthmus.qualification.kvm.host import read_tsc_khz


def _blocking(there_khz: int, command_line: str, *, scales: bool = False) -> set[str]:
    cpu = reference_cpus()["EPYC"]
    guest = GuestEvidence(shown=cpu.replace(tsc_khz=2_600_000), facts=_clock_of(command_line))
    verdict = preflight(
        "g", guest, "home", cpu.replace(tsc_khz=there_khz),
        hypervisor="kvm", facts={"tsc-scaling": scales},
    )  # fmt: skip
    return {finding.rule for finding in verdict.blocking}


def test_it_is_refused_by_name_unless_the_host_scales() -> None:
    assert _blocking(50_000, "quiet clocksource=tsc") == {"tsc-rate-clock"}
    assert not _blocking(50_000, "quiet clocksource=tsc", scales=True)
    assert not _blocking(2_600_000, "quiet clocksource=tsc")


@pytest.mark.parametrize("line", ["quiet clocksource=kvm-clock", "quiet"])
def test_other_clocks_go(line: str) -> None:
    assert not _blocking(50_000, line)


def test_the_last_word_counts() -> None:
    assert _clock_of("clocksource=tsc clocksource=kvm-clock") == {"clock-tsc": False}
    assert _clock_of("quiet") == {}


def test_the_rate_is_the_refined_one() -> None:
    said = (
        "[    0.000000] tsc: Fast TSC calibration using PIT\n"
        "[    0.000000] tsc: Detected 49.995 MHz processor\n"
        "[    2.100000] tsc: Refined TSC clocksource calibration: 50.000 MHz\n"
    )
    assert read_tsc_khz(said) == 50_000
    assert read_tsc_khz("") == 0


def test_what_the_hypervisor_offers_is_the_same_on_both_sides(tmp_path: Path) -> None:
    """It is no part of the CPU that is shown, which a move writes anew for its destination."""
    spec = LaunchSpec(
        qemu=Path("qemu"), accelerator=Accelerator.KVM, machine="pc", cpu="EPYC,enforce", vcpus=1,
        memory_mib=64, kernel=Path("k"), initrd=Path("i"), command_line="",
        paravirtual=("kvm=off", "hv-time=on"),
    )  # fmt: skip
    for incoming in (False, True):
        command = spec.arguments(tmp_path, incoming=incoming)
        assert command[command.index("-cpu") + 1] == "EPYC,enforce,kvm=off,hv-time=on"
