"""What a Xen host is and offers, and which guests it runs: asked of ``xl`` and ``xen-cpuid``.

Formats: ``xl info``, ``xl list`` and ``xl list -l`` (tools/xl/xl_info.c, xl_list.c; the last is
libxl's own JSON), ``xen-cpuid -p`` (tools/misc/xen-cpuid.c).  All of it is read as hostile.
"""

import enum
import re
import shlex
from collections.abc import Mapping

import msgspec

from isthmus.cpu.model import CpuModel
from isthmus.cpu.readers.xen import read_policies
from isthmus.errors import HypervisorError, InputError
from isthmus.hypervisor.xen.runner import Runner
from isthmus.values import Value

AWAY = "--migratedaway"
INCOMING = "--incoming"
"""What ``xl`` adds to a guest's name while it moves (tools/xl/xl_migrate.c, xl_vmcontrol.c)."""

NAMELESS = "(null)"
"""What ``xl list`` prints for a domain that has no name in xenstore."""

_NAME = re.compile(r"[A-Za-z0-9_.+@:-]{1,200}")
_ROW = re.compile(
    r"(\S+)\s+(\d+)\s+(\d+)\s+(\d+)\s+([a-z-]{6})\s+([\d.]+)\s*(?:([0-9a-f-]{36})\s.*)?"
)
_VERSION = re.compile(r"(\d{1,3})\.(\d{1,3})")


POLICIES = ("PV", "HVM")
"""The kinds of policies; ``xen-cpuid -p`` leaves out what the hypervisor was built without."""


class Type(enum.StrEnum):
    """What kind of guest it is, as libxl names it."""

    PV = "pv"
    PVH = "pvh"
    HVM = "hvm"

    @property
    def policy(self) -> str:
        """Whose default policy it starts with; PVH guests are HVM to the hypervisor."""
        return "PV" if self is Type.PV else "HVM"


class Domain(Value, frozen=True):
    """A row of ``xl list -v``: name, number, state letters, CPU time in s, UUID.

    ``state``: running, blocked, paused, shut down, the reason of that, dying, each its letter or
    a dash.  ``uuid``: the hypervisor keeps it, and a guest takes it along; empty if not asked.
    """

    name: str
    number: int
    state: str
    time_s: float
    uuid: str = ""

    @property
    def gone(self) -> bool:
        """Whether it only waits to be taken away."""
        return self.state[5] == "d"

    @property
    def suspended(self) -> bool:
        """Whether it is whole and stands still, as after a move that was cut short."""
        return self.state[3:5] == "ss"

    @property
    def down(self) -> str:
        """Why it runs no more: a word, empty if it does run or could."""
        if self.state[3] != "s" or self.suspended:
            return ""
        words = {"c": "crashed", "r": "rebooting", "w": "killed by its watchdog"}
        return words.get(self.state[4], "shut down")

    @property
    def paused(self) -> bool:
        """Whether somebody holds it."""
        return self.state[2] == "p"


class GuestDomain(Value, frozen=True):
    """A guest as libxl has it configured."""

    name: str
    number: int
    type: Type
    vcpus: int
    memory_mib: int
    disks: int
    uuid: str = ""


class Host(Value, frozen=True):
    """What a host told.

    ``offers`` are its default policies by kind (``PV``, ``HVM``); ``limits`` the largest policies
    that it accepts of a guest that arrives; ``shadow``: whether it can move PV guests live.
    """

    address: str
    version: str
    maker: str
    shadow: bool
    types: tuple[Type, ...]
    offers: Mapping[str, CpuModel]
    limits: Mapping[str, CpuModel]
    free_mib: int = 0

    @property
    def release(self) -> tuple[int, int]:
        """Xen's version as numbers, for comparison."""
        match = _VERSION.match(self.version)
        return (int(match[1]), int(match[2])) if match else (0, 0)


async def read_host(runner: Runner) -> Host:
    """Ask a host what it is.

    :raises HypervisorError: it is not reached, or runs no Xen.
    """
    text = await runner.told("xl info && echo --- && xen-cpuid -p")
    told, _, policies = text.partition("\n---\n")
    return host_from(runner.address, told, policies)


def host_from(address: str, info: str, policies: str) -> Host:
    """What ``xl info`` and ``xen-cpuid -p`` tell of a host.

    :raises HypervisorError: they do not tell enough.
    """
    fields = {}
    for line in info.splitlines():
        name, colon, value = line.partition(":")
        if colon:
            fields[name.strip()] = value.strip()
    if "xen_version" not in fields:
        raise HypervisorError(f"{address}: runs no Xen", remedy="xl info, as root in its dom0")
    try:
        found = read_policies(policies, name=address, where=f"{address}: xen-cpuid -p")
    except InputError as error:
        raise HypervisorError(f"{address}: {error}") from error
    offers = {kind: found[f"{kind} Default"] for kind in POLICIES if f"{kind} Default" in found}
    # "Max" is what Xen checks a policy against; releases before 4.14 print only the defaults.
    limits = {kind: found.get(f"{kind} Max", offer) for kind, offer in offers.items()}
    if not offers:
        raise HypervisorError(f"{address}: xen-cpuid prints no policy", remedy="Xen 4.14 or newer")
    capable = fields.get("virt_caps", "").split()
    types = [kind for kind in Type if kind.policy in offers]
    types = [kind for kind in types if kind is Type.PV or "hvm" in capable]
    return Host(
        address=address,
        version=fields["xen_version"],
        maker=next(iter(offers.values())).vendor,
        shadow="shadow" in capable,
        types=tuple(types),
        offers=offers,
        limits=limits,
        free_mib=int(fields["free_memory"]) if fields.get("free_memory", "").isdigit() else 0,
    )


async def domains(runner: Runner) -> dict[str, Domain]:
    """The domains of a host by name, dom0 among them.

    :raises HypervisorError: the host does not tell.
    """
    return parse_list(await runner.told("xl list -v"))


def parse_list(text: str) -> dict[str, Domain]:
    """Read ``xl list``, with or without ``-v``.

    Domains that have no name, since they come or go, have one of their number: ``(null) 5``.

    :raises HypervisorError: it is no listing, of which nobody may conclude that a guest is gone.
    """
    found = {}
    for line in text.splitlines()[1:10_000]:
        if match := _ROW.fullmatch(line):
            name = f"{NAMELESS} {match[2]}" if match[1] == NAMELESS else match[1]
            found[name] = Domain(
                name=name,
                number=int(match[2]),
                state=match[5],
                time_s=float(match[6]),
                uuid=match[7] or "",
            )
    if all(domain.number != 0 for domain in found.values()):
        raise HypervisorError("xl list does not tell of dom0, nor for certain of others")
    return found


async def read_guest(runner: Runner, name: str) -> GuestDomain:
    """Ask what a guest is.

    :raises InputError: there is no such guest.
    """
    require_name(name)
    said = await runner.ask(f"xl list -l {shlex.quote(name)}")
    if said.status != 0:
        raise InputError(f"{name}: no guest of that name on {runner.address}", remedy="xl list")
    return guest_from(said.out, name)


def guest_from(text: str, name: str) -> GuestDomain:
    """Read one guest of ``xl list -l``.

    :raises HypervisorError: it is not what libxl prints.
    """
    try:
        listed = msgspec.json.decode(text)
        entry = listed[0] if isinstance(listed, list) else listed
        config = entry["config"]
        build = config["b_info"]
        return GuestDomain(
            name=str(config["c_info"]["name"]),
            number=int(entry["domid"]),
            type=Type(config["c_info"]["type"]),
            vcpus=int(build.get("max_vcpus", 1)),
            memory_mib=int(build.get("max_memkb", 0)) >> 10,
            disks=len(config.get("disks") or ()),
            uuid=str(config["c_info"].get("uuid", "")),
        )
    except (msgspec.DecodeError, KeyError, TypeError, ValueError, IndexError) as error:
        raise HypervisorError(f"{name}: xl list -l tells nothing that can be read") from error


async def shown_to(runner: Runner, number: int, name: str) -> CpuModel:
    """The policy that a guest has been given.

    :raises HypervisorError: Xen does not tell.
    """
    text = await runner.told(f"xen-cpuid -p {number}")
    try:
        found = read_policies(text, name=name, where=f"{name}: xen-cpuid -p {number}")
        return next(iter(found.values()))
    except (InputError, StopIteration) as error:
        raise HypervisorError(f"{name}: Xen tells no policy of it: {error}") from error


def require_name(name: str) -> None:
    """Refuse what is no name of a guest, before it comes near a shell.

    :raises InputError: it is none.
    """
    if not _NAME.fullmatch(name) or name.startswith("-") or name == "Domain-0":
        raise InputError(f"{name}: not the name of a guest", remedy="xl list")
