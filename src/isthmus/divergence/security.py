"""Security parity: what a guest defends itself against, and what its destination suffers from.

Linux decides once, at boot, from the CPU that it is shown: vendor, family, model, stepping and
feature bits set "bug" flags (``arch/x86/kernel/cpu/common.c``, cpu_set_bug_bits), these choose
mitigations (``bugs.c``), and the kernel's text is patched accordingly.  After a move nothing is
looked at again.  So the same table answers two questions: does the destination's CPU have the flaw,
and did the guest, going by the CPU it was shown, believe so?  The table is
``data/vulnerabilities.json``: each file of ``/sys/devices/system/cpu/vulnerabilities``, split where
one file stands for flaws with different cures.
"""

import functools
from collections.abc import Mapping
from importlib import resources
from typing import Literal

from isthmus.cpu.model import CpuModel
from isthmus.divergence.evidence import GuestEvidence
from isthmus.divergence.truth import Truth, all_of, any_of, has_feature, negation, version
from isthmus.values import Value, from_json

HYPERVISOR_BIT = "hypervisor"


class CpuRow(Value, frozen=True, forbid_unknown_fields=True):
    """A kind of CPU by number; ``family`` None is any, ``models`` empty is any, both ends count."""

    vendor: str
    family: int | None = None
    models: tuple[int, ...] = ()
    steppings: tuple[int, int] = (0, 15)
    name: str = ""

    def matches(self, cpu: CpuModel) -> bool:
        """Whether ``cpu`` is of this kind."""
        return (
            cpu.vendor == self.vendor
            and self.family in {None, cpu.family}
            and (not self.models or cpu.model in self.models)
            and self.steppings[0] <= cpu.stepping <= self.steppings[1]
        )


class Parameter(Value, frozen=True, forbid_unknown_fields=True):
    """A word of the kernel's command line, and the Linux that first knows it."""

    word: str
    since: str = ""


class Vulnerability(Value, frozen=True, forbid_unknown_fields=True):
    """One flaw as Linux knows it.

    ``file`` is its name in sysfs, ``bug`` its name for ``setcpuid=`` and in /proc/cpuinfo.
    ``scope``: who has to act: the ``guest`` for its own programs, ``nested`` guests that run guests
    of their own, or the ``host`` alone.

    A CPU is affected if it is among ``only`` (or, without ``only``, is not among ``but``), has none
    of ``unless`` complete, and has one of ``when_any`` if any are named.  Guests of a hypervisor
    assume it, too, for CPUs of ``assumed`` that have none of ``assumed_unless`` complete: they may
    be moved.

    A guest that believes in the flaw defends itself if it was shown all of ``needs``.  ``defence``
    groups flaws that one defence covers; ``covered_by`` names flaws whose defence covers this one.
    ``forced_by`` are parameters that defend whatever the CPU, ``off`` those that give up.
    ``since``: the kernels that know of it: the first of the main line, then the first of each
    stable series that took it over.

    ``setcpuid``: setting ``bug`` by hand is enough to get this defence.  ``cures`` are parameters
    that give it to a guest that has the bug flag for whatever reason.
    ``mitigated`` are texts of the sysfs file that mean this defence, where several are possible.
    """

    id: str
    file: str
    title: str
    scope: Literal["guest", "nested", "host"]
    missing: str
    cost: str
    source: str
    since: tuple[str, ...] = ()
    bug: str = ""
    only: tuple[CpuRow, ...] = ()
    but: tuple[CpuRow, ...] = ()
    unless: tuple[tuple[str, ...], ...] = ()
    when_any: tuple[str, ...] = ()
    assumed: tuple[CpuRow, ...] = ()
    assumed_unless: tuple[tuple[str, ...], ...] = ()
    needs: tuple[str, ...] = ()
    defence: str = ""
    covered_by: tuple[str, ...] = ()
    forced_by: tuple[Parameter, ...] = ()
    off: tuple[str, ...] = ()
    setcpuid: bool = True
    cures: tuple[str, ...] = ()
    mitigated: tuple[str, ...] = ()


class _Table(Value, frozen=True, forbid_unknown_fields=True):
    schema: int
    source: str
    immune: tuple[CpuRow, ...]
    vulnerabilities: tuple[Vulnerability, ...]


@functools.cache
def _table() -> _Table:
    data = resources.files("isthmus.divergence").joinpath("data/vulnerabilities.json").read_bytes()
    return from_json(data, _Table, where="vulnerabilities.json")


@functools.cache
def vulnerabilities() -> Mapping[str, Vulnerability]:
    """Every flaw by its id."""
    return {flaw.id: flaw for flaw in _table().vulnerabilities}


def affected(flaw: Vulnerability, cpu: CpuModel) -> Truth:
    """Whether a CPU has the flaw, going by its own numbers and bits."""
    if any(row.matches(cpu) for row in _table().immune):
        return False
    listed = any(row.matches(cpu) for row in flaw.only or flaw.but) is bool(flaw.only)
    return all_of([listed, negation(_immune_by(flaw.unless, cpu)), _one_of(flaw.when_any, cpu)])


def knows(flaw: Vulnerability, guest: GuestEvidence) -> Truth:
    """Whether the guest's kernel knows of the flaw, going by its sysfs, else by its version.

    Not known for a series that is older than the flaw and not of the stable tree: distributions
    take fixes over without a new version.
    """
    if flaw.file and guest.vulnerabilities:
        return flaw.file in guest.vulnerabilities
    found = version(guest.kernel)
    if found is None or not flaw.since:
        return None
    first, *series = (version(text) or () for text in flaw.since)
    if found >= first:
        return True
    for backport in series:
        if found[:2] == backport[:2]:
            return found >= backport
    return None


def siblings(flaw: Vulnerability) -> tuple[Vulnerability, ...]:
    """The other flaws that share its bug flag, with other cures."""
    return tuple(
        other
        for other in vulnerabilities().values()
        if flaw.bug and other.bug == flaw.bug and other.id != flaw.id
    )


def believes(flaw: Vulnerability, guest: GuestEvidence) -> Truth:
    """Whether the guest's kernel took its CPU for affected when it booted.

    Its own words decide, where they are given; else the CPU it was shown.
    """
    text = guest.vulnerabilities.get(flaw.file)
    if text is not None and text.startswith("Not affected"):
        return False
    if text is None and flaw.file and guest.vulnerabilities and flaw.scope == "guest":
        return False  # its kernel is too old to know of it
    if guest.bugs is not None and flaw.bug and flaw.bug not in guest.bugs:
        return False
    if not siblings(flaw) and ((text is not None and not _shared(flaw)) or guest.bugs is not None):
        return True
    shown = guest.shown
    assumed = all_of(
        [
            knows(flaw, guest),
            has_feature(shown, HYPERVISOR_BIT),
            any(row.matches(shown) for row in flaw.assumed),
            negation(_immune_by(flaw.assumed_unless, shown)),
        ]
    )
    return any_of([affected(flaw, shown), assumed])


def defends(flaw: Vulnerability, guest: GuestEvidence) -> Truth:
    """Whether the guest runs with a defence that works against the flaw on any CPU that has it."""
    words = guest.words or frozenset()
    if words & {parameter.word for parameter in flaw.forced_by}:
        return True
    if words & set(flaw.cures):
        kin = (flaw, *siblings(flaw))
        return flaw.bug in _by_hand(words) or any_of(believes(other, guest) for other in kin)
    text = guest.vulnerabilities.get(flaw.file, "")
    if flaw.mitigated and text.startswith(("Mitigation", "Vulnerable")):
        return any(sign in text for sign in flaw.mitigated)
    group = {flaw.id: flaw} | {other: vulnerabilities()[other] for other in flaw.covered_by}
    if flaw.defence:
        group |= {f.id: f for f in vulnerabilities().values() if f.defence == flaw.defence}
    return any_of(
        all_of([_fights(other, guest, words), other.id == flaw.id or knows(other, guest)])
        for other in group.values()
    )


def _fights(flaw: Vulnerability, guest: GuestEvidence, words: frozenset[str]) -> Truth:
    """Whether the guest takes a flaw for its own, has what the defence needs, did not give up."""
    if words & {"mitigations=off", *flaw.off}:
        return False
    able = all_of(has_feature(guest.shown, name) for name in flaw.needs)
    by_hand = flaw.setcpuid and flaw.bug in _by_hand(words)
    if by_hand and not any(affected(other, guest.shown) for other in siblings(flaw)):
        return able
    return all_of([believes(flaw, guest), able])


def exposed(name: str, guest: GuestEvidence, destination: CpuModel) -> Truth:
    """Whether the destination's CPU has a flaw that the guest does not defend itself against.

    A guest that was told at boot to give up its defence loses nothing by a move.
    """
    if gives_up(name, guest):
        return False
    flaw = vulnerabilities()[name]
    if flaw.scope == "host":
        return affected(flaw, destination)
    return all_of([affected(flaw, destination), negation(defends(flaw, guest))])


def gives_up(name: str, guest: GuestEvidence) -> bool:
    """Whether the guest was told at boot not to defend itself against a flaw, on any CPU."""
    words = guest.words or frozenset()
    return bool(words & {"mitigations=off", *vulnerabilities()[name].off})


def _by_hand(words: frozenset[str]) -> frozenset[str]:
    """The bug flags that ``setcpuid=`` sets (Linux 6.15)."""
    return frozenset(
        name
        for word in words
        if word.startswith("setcpuid=")
        for name in word.removeprefix("setcpuid=").split(",")
    )


def _shared(flaw: Vulnerability) -> bool:
    """Whether the file of a flaw speaks of others as well, so that its text does not tell."""
    return sum(other.file == flaw.file for other in vulnerabilities().values()) > 1


def _immune_by(alternatives: tuple[tuple[str, ...], ...], cpu: CpuModel) -> Truth:
    return any_of(all_of(has_feature(cpu, name) for name in bits) for bits in alternatives)


def _one_of(names: tuple[str, ...], cpu: CpuModel) -> Truth:
    return any_of(has_feature(cpu, name) for name in names) if names else True
