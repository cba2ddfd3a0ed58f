"""Levels in the words of platforms, given to the real consumer where one can run here.

libvirt's own QEMU driver (in this process's own folder, no daemon's) validates and translates; what
it makes of it is asked of the real QEMU. Xen's own library parses ``cpuid=`` policies.
"""

import asyncio
import ctypes
import itertools
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from isthmus.baseline.level import Baseline, level
from isthmus.cpu.features import FEATURES
from isthmus.cpu.model import CpuModel
from isthmus.cpu.named import libvirt_models, qemu_models
from isthmus.cpu.readers.qemu import model_from_properties
from isthmus.hypervisor.collect import LIBVIRT_MAP, read_libvirt_map
from isthmus.hypervisor.libvirt.render import Choice, cpu_element, features_element
from isthmus.hypervisor.qemu.binary import find_qemu
from isthmus.hypervisor.qemu.engine import Accelerator
from isthmus.hypervisor.qemu.levels import render as render_qemu
from isthmus.hypervisor.qemu.models import read_cpus
from isthmus.hypervisor.qemu.monitor import Monitor
from isthmus.hypervisor.qemu.process import start_bare
from isthmus.hypervisor.xen.render import policy, render

pytestmark = pytest.mark.lab

_DRIVERS = list(Path("/usr/lib").glob("*/libvirt/connection-driver/libvirt_driver_qemu.so"))
needs_libvirt = pytest.mark.skipif(
    not (shutil.which("virsh") and _DRIVERS), reason="no libvirt with its QEMU driver here"
)
_XENLIGHT = sorted(Path("/usr/lib").glob("*/libxenlight.so.*"))
_XLUTIL = sorted(Path("/usr/lib").glob("*/libxlutil.so.*"))
needs_xen = pytest.mark.skipif(not (_XENLIGHT and _XLUTIL), reason="no Xen library here")

PAIRS = [
    ("phenom", "Penryn"), ("EPYC-Milan", "Icelake-Server"), ("EPYC-Rome", "Skylake-Server-IBRS"),
    ("Opteron_G3", "Nehalem"), ("Opteron_G5", "Haswell"), ("EPYC", "Broadwell-noTSX"),
    ("EPYC-IBPB", "Cascadelake-Server"), ("Snowridge", "EPYC-Milan"), ("kvm64", "qemu64"),
    ("Skylake-Server", "Cascadelake-Server"), ("EPYC", "EPYC-Milan"), ("Dhyana", "EPYC-Rome"),
]  # fmt: skip


@pytest.fixture(scope="module")
def offers() -> Mapping[str, CpuModel]:
    cpus = asyncio.run(read_cpus(find_qemu(), Accelerator.TCG))
    return {name: cpus.offered(name) for name in cpus.definitions}


@pytest.fixture(scope="module")
def driver() -> Iterator[str]:
    """The folder of libvirt's driver; it asks QEMU for its capabilities once, then remembers."""
    with tempfile.TemporaryDirectory(prefix="embed") as folder:
        # QEMU as ourselves: its own user may not enter this folder.
        settings = Path(folder) / "etc" / "qemu.conf"
        settings.parent.mkdir()
        settings.write_text(f'user = "+{os.getuid()}"\ngroup = "+{os.getgid()}"\n')
        yield folder


def levelled(pair: tuple[str, str], offers: Mapping[str, CpuModel]) -> Baseline:
    return level([offers[name].replace(phys_bits=40) for name in pair])


def domain(baseline: Baseline) -> str:
    """A domain with the level as its CPU."""
    features = features_element(baseline) if baseline.mixed else ""
    return f"""<domain type='qemu'>
  <name>levelled</name>
  <memory unit='MiB'>64</memory>
  <os><type arch='x86_64' machine='pc-q35-7.2'>hvm</type></os>
  {features}
  {cpu_element(baseline, Choice(baseline.model))}
</domain>
"""


def virsh(folder: str, *words: str) -> str:
    command = ["virsh", "--quiet", "--connect", f"qemu:///embed?root={folder}", *words]
    done = subprocess.run(command, capture_output=True, text=True, timeout=180, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


async def shown_by_qemu(argument: str) -> CpuModel:
    """What the real QEMU makes of a ``-cpu`` argument."""
    name, *words = argument.split(",")
    props: dict[str, object] = {}
    for word in words:
        key, _, value = word.partition("=")
        if key.startswith(("+", "-")):
            key, value = key[1:], "on" if key[0] == "+" else "off"
        if value in {"on", "off"}:
            props[key] = value == "on"
        elif value:
            props[key] = int(value, 0) if re.fullmatch(r"\d+|0x[0-9a-f]+", value) else value
    with tempfile.TemporaryDirectory() as folder:
        process = await start_bare(find_qemu(), Accelerator.TCG, Path(folder))
        try:
            async with Monitor.session(process.qmp) as monitor:
                answer = await monitor.execute(
                    "query-cpu-model-expansion",
                    {"type": "full", "model": {"name": name, "props": props}},
                )
        finally:
            await asyncio.to_thread(process.kill)
    return model_from_properties("shown", answer["model"]["props"], source="test")


@needs_libvirt
@pytest.mark.parametrize("pair", PAIRS, ids=" and ".join)
def test_libvirt_takes_a_level_and_gives_qemu_just_that(
    pair: tuple[str, str], offers: Mapping[str, CpuModel], tmp_path: Path, driver: str
) -> None:
    baseline = levelled(pair, offers)
    file = tmp_path / "domain.xml"
    file.write_text(domain(baseline))
    virsh(driver, f"define --validate {file}; undefine levelled")
    native = virsh(driver, f"domxml-to-native qemu-argv --xml {file}")
    found = re.search(r" -cpu (\S+)", native)
    assert found, native
    shown = asyncio.run(shown_by_qemu(found[1]))
    assert shown.vendor == baseline.model.vendor
    assert shown.phys_bits == 40
    visible = {
        name
        for name in shown.features
        if FEATURES[name].leaf is not None
        and not 0x40000000 <= (FEATURES[name].leaf or 0) < 1 << 31
    }
    # Nothing beyond the level, and nothing of it missing that libvirt has a name for.
    assert visible - baseline.model.features - {"hypervisor"} == set()
    missing = baseline.model.features - shown.features
    assert {name for name in missing if FEATURES[name].libvirt} <= {"hypervisor"}


@pytest.mark.parametrize("pair", PAIRS, ids=" and ".join)
def test_qemu_shows_the_level_that_was_rendered_without_it(
    pair: tuple[str, str], offers: Mapping[str, CpuModel]
) -> None:
    """The models that Isthmus carries do as well as asking the QEMU of the host."""
    baseline = levelled(pair, offers)
    text = render_qemu(baseline, "x").files[0].text
    shown = asyncio.run(shown_by_qemu(text.strip().removeprefix("-cpu ").strip("'")))
    assert shown.vendor == baseline.model.vendor
    assert shown.features == baseline.model.features


@needs_xen
def test_xens_library_parses_the_policy_of_every_pair() -> None:
    xenlight = ctypes.CDLL(str(_XENLIGHT[0]))
    names = ["phenom", "Penryn", "EPYC-Milan", "Icelake-Server", "Opteron_G3", "Nehalem"]
    for pair in itertools.combinations(names, 2):
        policies = ctypes.c_void_p()
        baseline = level([qemu_models()[name].replace(phys_bits=39) for name in pair])
        for entry in policy(baseline):
            parsed = xenlight.libxl_cpuid_parse_config_xend(ctypes.byref(policies), entry.encode())
            assert parsed == 0, entry
    assert xenlight.libxl_cpuid_parse_config_xend(ctypes.byref(policies), b"0x1:eax=q") != 0


@needs_xen
def test_xls_parser_reads_the_rendered_configuration() -> None:
    baseline = level([qemu_models()["Opteron_G3"], qemu_models()["Nehalem"]])
    text = render(baseline, "blue pool").files[0].text.encode()
    xlutil = ctypes.CDLL(str(_XLUTIL[0]))
    libc = ctypes.CDLL(None)
    xlutil.xlu_cfg_init.restype = ctypes.c_void_p
    xlutil.xlu_cfg_get_listitem.restype = ctypes.c_char_p
    report = ctypes.c_void_p.in_dll(libc, "stderr")
    configuration = ctypes.c_void_p(xlutil.xlu_cfg_init(report, b"test"))
    assert xlutil.xlu_cfg_readdata(configuration, text, len(text)) == 0
    items, count = ctypes.c_void_p(), ctypes.c_int()
    assert (
        xlutil.xlu_cfg_get_list(
            configuration, b"cpuid", ctypes.byref(items), ctypes.byref(count), 0
        )
        == 0
    )
    read = tuple(xlutil.xlu_cfg_get_listitem(items, index).decode() for index in range(count.value))
    assert read == policy(baseline)


@pytest.mark.skipif(not LIBVIRT_MAP.is_dir(), reason="no libvirt here")
def test_the_models_of_libvirt_are_those_of_the_installed_map() -> None:
    if (
        not (LIBVIRT_MAP / "x86_EPYC-Milan.xml").exists()
        or (LIBVIRT_MAP / "x86_SapphireRapids.xml").exists()
    ):
        pytest.skip("another libvirt than 9.0")
    for model in read_libvirt_map():
        assert libvirt_models()[model.name].features == frozenset(model.features), model.name


def test_the_models_of_qemu_are_those_of_the_installed_one() -> None:
    cpus = asyncio.run(read_cpus(find_qemu(), Accelerator.TCG))
    if not cpus.version.startswith("7.2"):
        pytest.skip("another QEMU than 7.2")
    carried = qemu_models()
    assert set(carried) == {name for name in cpus.named if name != "base"}
    for name, model in carried.items():
        assert model.features == cpus.named[name].features, name
