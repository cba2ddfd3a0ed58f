"""The identity a levelled CPU shows: vendor, family, model, stepping and brand.

A guest chooses by vendor at boot, once and for good: the defences against speculation, the
hypercall instruction (Linux ``arch/x86/include/asm/kvm_para.h``, KVM_HYPERCALL) and the system-call
instruction of 32-bit programs (Intel SDM vol. 2B, SYSCALL and SYSENTER; AMD APM vol. 3).  So the
identity must be one of a pool's hosts' and must never change.

In a pool of several makers the safe vendor is Intel's while any of its Intel hosts may have the
Meltdown flaw: Linux turns page-table isolation off for every AMD CPU (``cpu_vuln_whitelist`` in
``arch/x86/kernel/cpu/common.c``), so a guest that believes in AMD would run unprotected there.
"""

from collections.abc import Sequence

from isthmus.cpu.model import CpuModel

INTEL = "GenuineIntel"
AMD = "AuthenticAMD"

_MAKERS = {
    INTEL: "Intel",
    AMD: "AMD",
    "HygonGenuine": "AMD",  # Zen under licence: the same instructions and state
    "CentaurHauls": "Zhaoxin",
    "  Shanghai  ": "Zhaoxin",
}


def maker(vendor: str) -> str:
    """Whose rules a CPU of that CPUID vendor follows; the vendor itself where unknown."""
    return _MAKERS.get(vendor, vendor)


def identity(hosts: Sequence[CpuModel]) -> tuple[CpuModel, tuple[str, ...]]:
    """The host whose identity a pool shows, and why, in words.

    The same for every order of ``hosts``, of which there is at least one.
    """
    vendor, reasons = _vendor(hosts)
    eldest = min((host for host in hosts if host.vendor == vendor), key=_age)
    numbers = f"family {eldest.family}, model {eldest.model}, stepping {eldest.stepping}"
    why = "lowest of its vendor here: no guest expects more of it than every host has"
    return eldest, (*reasons, f"{numbers} of {eldest.name}: {why}")


def _age(host: CpuModel) -> tuple[int, int, int, str, str]:
    return host.family, host.model, host.stepping, host.name, host.brand


def _vendor(hosts: Sequence[CpuModel]) -> tuple[str, tuple[str, ...]]:
    vendors = sorted({host.vendor for host in hosts})
    if len(vendors) == 1:
        return vendors[0], (f"vendor {vendors[0]}: every host's",)
    exposed = sorted(
        {host.name for host in hosts if host.vendor == INTEL and "rdctl-no" not in host.features}
    )
    if exposed:
        names = ", ".join(exposed)
        why = "a guest that believes in AMD would run there without page-table isolation"
        return INTEL, (f"vendor {INTEL}: {names} may have Meltdown, and {why}",)
    if AMD in vendors:
        why = "on AMD hosts a guest then takes the right defences for them"
        return AMD, (f"vendor {AMD}: no Intel host here has Meltdown, and {why}",)
    return vendors[0], (f"vendor {vendors[0]}: first by name, no other reason",)
