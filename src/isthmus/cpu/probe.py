"""Probing this machine: CPUID on every logical CPU, and the MSRs that announce features.

CPUID is executed by a small C helper on each logical CPU in turn, the thread bound to it, as far as
this process may run there.  Feature MSRs are read from ``/dev/cpu/N/msr`` where that is allowed
(root, module msr).  Sub-leaves follow the Intel SDM (vol. 2A, CPUID) and the AMD APM (vol. 3,
appendix E): each kind of leaf ends its list in its own way.
"""

import os
import platform
from collections.abc import Callable, Iterator
from pathlib import Path

from isthmus.cpu.decode import decode
from isthmus.cpu.model import CpuidLeaf, CpuModel
from isthmus.errors import EnvironmentLackError
from isthmus.values import Value

FEATURE_MSRS = (0x10A, 0xCF, 0x345)
"""IA32_ARCH_CAPABILITIES, IA32_CORE_CAPABILITIES, IA32_PERF_CAPABILITIES (Intel SDM vol. 4)."""

_RANGES = (0x0, 0x40000000, 0x80000000, 0xC0000000)
_MAX_LEAVES = 0x100
_MAX_SUBLEAVES = 64
_COMPONENTS = 64

Cpuid = Callable[[int, int], CpuidLeaf]


class LogicalCpu(Value, frozen=True):
    """One logical CPU's answers, APIC numbers and serial numbers included."""

    number: int
    leaves: tuple[CpuidLeaf, ...]
    msrs: dict[int, int]


def cpuid(leaf: int, subleaf: int = 0) -> CpuidLeaf:
    """Execute CPUID on the CPU that runs this thread.

    :raises EnvironmentLackError: no x86, or the helper is not built.
    """
    if platform.machine().lower() not in {"x86_64", "amd64", "i686", "i386"}:
        raise EnvironmentLackError(
            f"this machine is {platform.machine()}, not x86", remedy="name files of dumps instead"
        )
    try:
        from isthmus.cpu._cpuid import ffi, lib  # noqa: PLC0415 (compiled; dumps do without it)
    except ImportError as error:
        raise EnvironmentLackError(
            "the CPUID helper is not built", remedy="run script/setup, or pip install ."
        ) from error
    words = ffi.new("uint32_t[4]")
    lib.isthmus_cpuid(leaf, subleaf, words)
    eax, ebx, ecx, edx = (int(word) for word in words)
    return CpuidLeaf(leaf=leaf, subleaf=subleaf, eax=eax, ebx=ebx, ecx=ecx, edx=edx)


def leaves(execute: Cpuid = cpuid) -> Iterator[CpuidLeaf]:
    """Every leaf and sub-leaf that ``execute`` tells of."""
    for start in _RANGES:
        head = execute(start, 0)
        if start and not start <= head.eax < start + _MAX_LEAVES:
            continue
        last = min(head.eax, start + _MAX_LEAVES - 1)
        for leaf in range(start, last + 1):
            yield from _subleaves(execute, leaf)


def _subleaves(execute: Cpuid, leaf: int) -> Iterator[CpuidLeaf]:
    first = execute(leaf, 0)
    yield first
    if leaf in {0x7, 0x14, 0x17, 0x18, 0x1D, 0x20, 0x23, 0x24}:  # EAX: the highest sub-leaf
        for subleaf in range(1, min(first.eax, _MAX_SUBLEAVES) + 1):
            yield execute(leaf, subleaf)
    elif leaf in {0x4, 0x8000001D}:  # caches, until one of type 0
        for subleaf in range(1, _MAX_SUBLEAVES):
            answer = execute(leaf, subleaf)
            yield answer
            if answer.eax & 0x1F == 0:
                return
    elif leaf in {0xB, 0x1F, 0x80000026}:  # levels, until one of type 0
        for subleaf in range(1, _MAX_SUBLEAVES):
            answer = execute(leaf, subleaf)
            yield answer
            if answer.ecx >> 8 & 0xFF == 0:
                return
    elif leaf == 0xD:  # state components
        yield execute(leaf, 1)
        for subleaf in range(2, _COMPONENTS):
            answer = execute(leaf, subleaf)
            if answer.eax:
                yield answer
    elif leaf in {0xF, 0x10, 0x12}:
        for subleaf in range(1, 4):
            yield execute(leaf, subleaf)


def probe() -> tuple[LogicalCpu, ...]:
    """Every logical CPU that this process may run on, by number.

    :raises EnvironmentLackError: no x86, or the helper is not built.
    """
    allowed = os.sched_getaffinity(0)
    found = []
    try:
        for number in sorted(allowed):
            os.sched_setaffinity(0, {number})
            found.append(LogicalCpu(number=number, leaves=tuple(leaves()), msrs=_msrs(number)))
    finally:
        os.sched_setaffinity(0, allowed)
    return tuple(found)


def _msrs(number: int) -> dict[int, int]:
    values = {}
    try:
        descriptor = os.open(f"/dev/cpu/{number}/msr", os.O_RDONLY)
    except OSError:
        return {}
    try:
        for index in FEATURE_MSRS:
            try:
                values[index] = int.from_bytes(os.pread(descriptor, 8, index), "little")
            except OSError:
                continue  # this CPU has no such MSR
    finally:
        os.close(descriptor)
    return values


def this_machine() -> CpuModel:
    """The CPU of this machine: of unlike cores what all of them have.

    :raises EnvironmentLackError: no x86, or the helper is not built.
    """
    return common([model(cpu, "this machine") for cpu in probe()])


def model(cpu: LogicalCpu, name: str) -> CpuModel:
    """The model that one logical CPU's answers tell."""
    return decode(
        cpu.leaves,
        name=name,
        source=f"CPUID of logical CPU {cpu.number}",
        msrs=cpu.msrs,
        microcode=microcode(),
    )


def common(cores: list[CpuModel]) -> CpuModel:
    """What every core of one machine has: the first core's model, less what others lack.

    A guest's vCPU runs on any of them.
    """
    first = cores[0]
    features = frozenset.intersection(*(core.features for core in cores))
    lacking = first.features - features
    if not lacking:
        return first
    told = f"unlike cores: without {', '.join(sorted(lacking))}, which only some have"
    return first.replace(features=features, unknown=(*first.unknown, told))


def microcode() -> int | None:
    """The revision of the microcode as the kernel tells it; None where it does not."""
    try:
        text = Path("/sys/devices/system/cpu/cpu0/microcode/version").read_text()
        return int(text, 0)
    except (OSError, ValueError):
        return None
