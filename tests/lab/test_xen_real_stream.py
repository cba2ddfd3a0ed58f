"""Real Xen: a guest born on Intel is saved, refused by AMD as it is, and lives there filtered.

Two emulated hosts with Debian's Xen, one after the other; a minute or two.  The guest is levelled
for both by ``isthmus level``: a filter does not spare that (unlevelled, the guest was taken by Xen
and its kernel died at once).
"""

import re
import struct
from collections.abc import Callable
from pathlib import Path

import pytest

from isthmus.baseline.level import level
from isthmus.cpu.named import qemu_models
from isthmus.errors import EnvironmentLackError
from isthmus.hypervisor.xen.render import policy
from isthmus.places import cache_folder
from isthmus.qualification.lab.xen_host import XenHost, build_host, run_script
from isthmus.translate.xen import transport
from isthmus.translate.xen.knowledge import rules
from isthmus.translate.xen.report import Report
from isthmus.translate.xen.rules import chosen

pytestmark = [pytest.mark.lab, pytest.mark.timeout(900)]

INTEL, AMD = "Nehalem", "Opteron_G3"
DISK_MIB = 320
SECOND_MIB = 160
"""Where the second stream lies on the disk; each has some 97 MiB."""

# Programs in a PV guest see the host's own CPUID, so no level keeps glibc from choosing string
# functions of SSE4.2 on the Intel host: the guest's init died so.  The kernel gives this to init.
PLAIN_STRINGS = "GLIBC_TUNABLES=glibc.cpu.hwcaps=-AVX2,-AVX,-SSE4_2,-SSE4_1,-SSSE3,-ERMS"

CONFIG = f"""
name = "vm"
type = "pv"
kernel = "/guest/vmlinuz"
ramdisk = "/guest/initrd"
memory = 96
vcpus = 1
extra = "console=hvc0 quiet {PLAIN_STRINGS}"
on_crash = "preserve"
cpuid = [ LEVEL ]
"""

BEAT = "/var/log/xen/console/guest-vm.log"
SAVE = f"""
cat > /tmp/vm.cfg <<'CONFIG'
{CONFIG}
CONFIG
xl create /tmp/vm.cfg
for second in $(seq 60); do grep -q 'beat 3' {BEAT} && break; sleep 1; done
xl save vm /tmp/vm.save
dd if=/tmp/vm.save of=/dev/vdb bs=1M conv=fsync
echo "saved $(stat -c %s /tmp/vm.save) bytes"
"""


def levelled() -> tuple[str, ...]:
    """What ``isthmus level Nehalem Opteron_G3 --for xen`` writes into the guest's configuration."""
    models = qemu_models()
    return policy(level((models[INTEL], models[AMD])))


POLICY = re.compile(rb"\x12\0\0\0..\0\0" + re.escape(struct.pack("<II", 0xCE, 0)), re.DOTALL)
"""The head of X86_MSR_POLICY and of its first entry, PLATFORM_INFO; 8 bytes of value follow."""


def restore(size: int, faulting: int) -> str:
    """What dom0 is to do with the streams on its disk.

    :param faulting: where the byte with PLATFORM_INFO's bit of CPUID faulting lies in them.
    """
    return f"""
dd if=/dev/vdb bs=1M skip={SECOND_MIB} | head -c {size} > /tmp/vm.save
xl restore /tmp/vm.save; echo "as it is: status $?"
xl dmesg | grep 'MCA capabilities'
printf '\\200' | dd of=/tmp/vm.save bs=1 seek={faulting} conv=notrunc
xl restore /tmp/vm.save; echo "with CPUID faulting: status $?"
dd if=/dev/vdb bs=1M | head -c {size} > /tmp/vm.save
rm -f {BEAT}
kill -HUP $(pidof xenconsoled)
xl restore /tmp/vm.save; echo "filtered: status $?"
for second in $(seq 60); do [ $(grep -c beat {BEAT}) -ge 3 ] && break; sleep 1; done
sed 's/^/guest: /' {BEAT}
xl list
"""


@pytest.fixture(scope="module")
def host() -> XenHost:
    try:
        return build_host(cache=cache_folder())
    except EnvironmentLackError as error:
        pytest.skip(str(error))


@pytest.fixture
def disk(tmp_path: Path) -> Path:
    path = tmp_path / "disk"
    with path.open("wb") as file:
        file.truncate(DISK_MIB << 20)
    return path


def filtered(source: Path, sink: Path, report: Report) -> transport.Summary:
    """Filter a file for AMD as ``isthmus xen-filter < source > sink`` does."""
    with source.open("rb") as stream, sink.open("wb") as file:
        pump = transport.Pump(stream.fileno(), file.fileno())
        maker = "AuthenticAMD"
        return transport.filtered(pump, chosen(rules(), maker), report, to=maker)


def test_a_guest_born_on_intel_lives_on_amd_only_when_its_stream_is_filtered(
    host: XenHost, disk: Path, tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    console = tmp_path / "console"
    script = SAVE.replace("LEVEL", ", ".join(f'"{entry}"' for entry in levelled()))
    said = run_script(host, INTEL, script, disk, console=console, timeout_s=400)
    found = re.search(r"saved (\d+) bytes", said)
    assert found, said[-2000:]
    size = int(found[1])
    born, changed = tmp_path / "vm.save", tmp_path / "vm-for-amd.save"
    with disk.open("rb") as file:
        born.write_bytes(file.read(size))

    # No model of QEMU has CPUID faulting, with which PV guests of real Intel hosts are born.
    content = born.read_bytes()
    policy_at = POLICY.search(content)  # before the guest's memory, which may hold the like
    assert policy_at
    faulting = policy_at.end() + 3
    assert content[policy_at.end() : policy_at.end() + 8] == bytes(8)
    real = tmp_path / "vm-real.save"
    real.write_bytes(content[:faulting] + b"\x80" + content[faulting + 1 :])

    report = Report(None)
    summary = filtered(real, changed, report)
    assert (summary.guest, summary.xen, summary.bytes) == ("pv", host.version, size)
    assert summary.pages == 96 * 256
    [policy_change, change] = report.changes
    assert (policy_change.before, policy_change.after) == (1 << 31, 0)
    assert (change.field, change.before, change.after) == ("vmce.caps", 0x1000C02, 2)
    expected = bytearray(content)
    expected[change.offset : change.offset + 8] = (2).to_bytes(8, "little")
    assert changed.read_bytes() == expected, "nothing else changed"

    with disk.open("r+b") as file:
        file.write(expected)
        file.seek(SECOND_MIB << 20)
        file.write(content)
    said = run_script(host, AMD, restore(size, faulting), disk, console=console, timeout_s=400)
    record_property("console", said[-4000:])
    assert re.search(r"as it is: status [1-9]", said), said[-3000:]
    assert "unsupported MCA capabilities 0x1000c02" in said
    assert re.search(r"with CPUID faulting: status [1-9]", said), said[-3000:]
    assert "msr 000000ce" in said
    assert "filtered: status 0" in said, said[-3000:]
    beats = [int(number) for number in re.findall(r"guest: beat (\d+)", said)]
    assert len(beats) >= 3, said[-3000:]
    assert beats == list(range(beats[0], beats[0] + len(beats))), "it went on counting"
    assert beats[0] > 3, "it is the guest that was saved, not a new one"


PVH = f"""
cat > /tmp/vm.cfg <<'CONFIG'
name = "vm"
type = "pvh"
kernel = "/guest/vmlinuz"
ramdisk = "/guest/initrd"
memory = 96
vcpus = 2
extra = "console=hvc0 quiet"
cpuid = "host,rdtscp=0"
CONFIG
xl create /tmp/vm.cfg
for second in $(seq 60); do grep -q 'beat 3' {BEAT} && break; sleep 1; done
xl save vm /tmp/vm.save
dd if=/tmp/vm.save of=/dev/vdb bs=1M conv=fsync
echo "saved $(stat -c %s /tmp/vm.save) bytes"
"""
"""Without RDTSCP: Xen on TCG's SVM cannot tell that instruction's length, and the guest dies."""


@pytest.mark.slow
def test_the_stream_of_a_pvh_guest_passes_and_its_vcpus_are_rewritten(
    host: XenHost, disk: Path, tmp_path: Path
) -> None:
    said = run_script(host, f"{AMD},+npt", PVH, disk, console=tmp_path / "console", timeout_s=400)
    found = re.search(r"saved (\d+) bytes", said)
    assert found, said[-2000:]
    with disk.open("rb") as file:
        data = file.read(int(found[1]))
    saved, out = tmp_path / "vm.save", tmp_path / "out.save"
    saved.write_bytes(data)
    report = Report(None)
    summary = filtered(saved, out, report)
    assert out.read_bytes() == data, "born on AMD: nothing to rewrite"
    assert not report.changes
    assert summary.guest == "hvm"
    assert summary.records["hvm.VMCE_VCPU"] == 2

    # No HVM guest can be born on an Intel host under TCG, which has no VMX: give it those values.
    head = b"\x12\0[\0\1]\0\x20\0\0\0"
    born, count = re.subn(
        b"(" + head + b")" + re.escape((2).to_bytes(8, "little")),
        lambda match: match[1] + (0x1000C02).to_bytes(8, "little"),
        data,
    )
    assert count == 2
    saved.write_bytes(born)
    filtered(saved, out, report)
    assert [change.rule for change in report.changes] == ["hvm-vmce-caps"] * 2
    assert out.read_bytes() == data
