"""What is known of a guest and of the two hosts, beside their CPUs.

Everything here may be unknown, and says so: an empty string, 0, None, or a fact that is absent.
The facts that can be given by name are listed in ``data/facts.json``.
"""

import functools
from collections.abc import Mapping
from importlib import resources
from typing import Literal

import msgspec

from isthmus.cpu.model import CpuModel
from isthmus.errors import InputError
from isthmus.values import Value, from_json


class GuestFacts(Value, frozen=True, kw_only=True):
    """What is known of a guest beside its CPU.

    ``memory_mib`` is its memory in MiB, 0 if unknown.  ``system`` is its operating system
    (``linux``, ``windows``, ``freebsd`` …), ``kernel`` the version, ``command_line`` the kernel's;
    empty where unknown.  ``facts`` says what is known to hold or not to hold.  ``uses`` holds the
    features whose instructions a scan found in its programs and kernel, None if nobody looked.
    ``vulnerabilities`` is what the files of /sys/devices/system/cpu/vulnerabilities say in the
    guest; ``bugs`` the line of that name in its /proc/cpuinfo, None if unknown.
    """

    vcpus: int = 1
    memory_mib: int = 0
    system: str = ""
    kernel: str = ""
    command_line: str = ""
    facts: dict[str, bool] = msgspec.field(default_factory=dict)
    uses: frozenset[str] | None = None
    vulnerabilities: dict[str, str] = msgspec.field(default_factory=dict)
    bugs: frozenset[str] | None = None

    @property
    def words(self) -> frozenset[str] | None:
        """The words of the kernel's command line; None if it is unknown."""
        return frozenset(self.command_line.split()) if self.command_line.strip() else None


class GuestEvidence(GuestFacts, frozen=True, kw_only=True):
    """What is known of a guest: ``shown`` is the CPU that it was shown at boot."""

    shown: CpuModel


class HostEvidence(Value, frozen=True):
    """What is known of a host: its hypervisor and how it is set up.

    ``hypervisor`` is what runs guests (``kvm``, ``tcg``, ``xen``, ``hyper-v``, ``vmware``),
    ``version`` its version (``kvm``: of Linux), ``manager`` what drives it (``qemu``, ``xapi``,
    ``kubevirt`` …) with ``manager_version``; empty where unknown.
    """

    hypervisor: str = ""
    version: str = ""
    manager: str = ""
    manager_version: str = ""
    facts: dict[str, bool] = msgspec.field(default_factory=dict)
    vulnerabilities: dict[str, str] = msgspec.field(default_factory=dict)


class Fact(Value, frozen=True, forbid_unknown_fields=True):
    """A fact that evidence can state: of whom, what it says, how it is found out."""

    name: str
    of: Literal["guest", "host"]
    says: str
    found: str


class _Facts(Value, frozen=True, forbid_unknown_fields=True):
    schema: int
    facts: tuple[Fact, ...]


@functools.cache
def facts() -> Mapping[str, Fact]:
    """Every fact that evidence can state, by name."""
    data = resources.files("isthmus.divergence").joinpath("data/facts.json").read_bytes()
    return {fact.name: fact for fact in from_json(data, _Facts, where="facts.json").facts}


def require_known_facts(stated: Mapping[str, bool], of: Literal["guest", "host"]) -> None:
    """Refuse a fact that no rule could know, which would be a slip of the pen.

    :raises InputError: a name that is not in the list.
    """
    known = sorted(name for name, fact in facts().items() if fact.of == of)
    if unknown := sorted(set(stated) - set(known)):
        raise InputError(
            f"{unknown[0]}: no known fact of a {of}", remedy=f"known are {', '.join(known)}"
        )
