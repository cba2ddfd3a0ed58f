"""The small language in which rules say when they apply.

A condition is data: a tree whose leaves ask one thing of the guest, of a CPU or of a host.  It is
judged in three values, as in Kleene's logic: it holds, it does not hold, or nobody knows.  "Not
known" never counts as "does not hold": each rule says what it does then, and by default it acts as
if the condition held (unknown means refuse).

Who is who:

* ``born``: the CPU that the guest was shown at boot, which it believes in until it reboots;
* ``shown``: the CPU that the destination would show it;
* ``destination``, ``source``: what the two hosts' own CPUs offer;
* ``here``, ``there``: the hypervisors of source and destination.
"""

from collections.abc import Iterator

import msgspec

from isthmus.baseline.identity import maker
from isthmus.cpu.identify import identify
from isthmus.cpu.model import CpuModel
from isthmus.divergence.evidence import GuestEvidence, HostEvidence
from isthmus.divergence.security import exposed
from isthmus.divergence.truth import Truth, all_of, any_of, at_least, has_feature, negation
from isthmus.values import Value


class Situation(Value, frozen=True):
    """All that a condition can ask about; ``subject`` is the lost feature a rule is tried for."""

    guest: GuestEvidence
    destination: CpuModel
    shown: CpuModel
    source: CpuModel | None = None
    here: HostEvidence = HostEvidence()
    there: HostEvidence = HostEvidence()
    translatable: frozenset[str] = frozenset()
    subject: str = ""


class CpuCondition(Value, frozen=True, forbid_unknown_fields=True):
    """What is asked of a CPU; all that is given must hold.

    ``maker``: one of these makes it ("Intel", "AMD", "Zhaoxin"; Hygon counts as AMD).  ``has``: all
    of these features, ``has_any``: one of them, ``lacks``: none of them.  ``generation``: it is of
    one of these, ``family``: its CPUID family is one of these, ``models``: its model.
    ``phys_bits_below``, ``phys_bits_above``: its physical address width in bits.
    """

    maker: tuple[str, ...] = ()
    has: tuple[str, ...] = ()
    has_any: tuple[str, ...] = ()
    lacks: tuple[str, ...] = ()
    generation: tuple[str, ...] = ()
    family: tuple[int, ...] = ()
    models: tuple[int, ...] = ()
    phys_bits_below: int | None = None
    phys_bits_above: int | None = None

    def holds(self, cpu: CpuModel | None) -> Truth:
        """Judge it for ``cpu``, None being a CPU of which nothing is known."""
        if cpu is None:
            return None
        return all_of(self._parts(cpu))

    def _parts(self, cpu: CpuModel) -> Iterator[Truth]:
        if self.maker:
            yield maker(cpu.vendor) in self.maker
        for name in self.has:
            yield has_feature(cpu, name)
        if self.has_any:
            yield any_of(has_feature(cpu, name) for name in self.has_any)
        for name in self.lacks:
            yield negation(has_feature(cpu, name))
        if self.generation:
            kind = identify(cpu)
            yield None if kind is None else kind.generation in self.generation
        if self.family:
            yield cpu.family in self.family
        if self.models:
            yield cpu.model in self.models
        if self.phys_bits_below is not None:
            yield None if cpu.phys_bits is None else cpu.phys_bits < self.phys_bits_below
        if self.phys_bits_above is not None:
            yield None if cpu.phys_bits is None else cpu.phys_bits > self.phys_bits_above


class GuestCondition(Value, frozen=True, forbid_unknown_fields=True):
    """What is asked of the guest; all that is given must hold.

    ``system``: it runs one of these; ``kernel_from``, ``kernel_before``: its kernel's version;
    ``word``: one of these words is on its kernel's command line; ``memory_mib_from``,
    ``memory_mib_below``: its memory; ``vcpus_from``: its vCPUs; ``uses_it``: a scan found
    instructions of the lost feature in it; ``facts``: these facts are as given.
    """

    system: tuple[str, ...] = ()
    kernel_from: str = ""
    kernel_before: str = ""
    word: tuple[str, ...] = ()
    memory_mib_from: int | None = None
    memory_mib_below: int | None = None
    vcpus_from: int | None = None
    uses_it: bool | None = None
    facts: dict[str, bool] = msgspec.field(default_factory=dict)

    def holds(self, guest: GuestEvidence, subject: str) -> Truth:
        """Judge it for ``guest`` and the lost feature ``subject``."""
        return all_of(self._parts(guest, subject))

    def _parts(self, guest: GuestEvidence, subject: str) -> Iterator[Truth]:
        if self.system:
            yield guest.system in self.system if guest.system else None
        if self.kernel_from:
            yield at_least(guest.kernel, self.kernel_from)
        if self.kernel_before:
            yield negation(at_least(guest.kernel, self.kernel_before))
        if self.word:
            yield None if guest.words is None else bool(guest.words & set(self.word))
        if self.memory_mib_from is not None:
            yield guest.memory_mib >= self.memory_mib_from if guest.memory_mib else None
        if self.memory_mib_below is not None:
            yield guest.memory_mib < self.memory_mib_below if guest.memory_mib else None
        if self.vcpus_from is not None:
            yield guest.vcpus >= self.vcpus_from
        if self.uses_it is not None:
            used = None if guest.uses is None else subject in guest.uses
            yield used if self.uses_it else negation(used)
        for name, value in self.facts.items():
            known = guest.facts.get(name)
            yield None if known is None else known is value


class HostCondition(Value, frozen=True, forbid_unknown_fields=True):
    """What is asked of a host's hypervisor; all that is given must hold.

    ``hypervisor``, ``manager``: it is one of these; ``version_from``, ``version_before``,
    ``manager_from``, ``manager_before``: their versions; ``facts``: these facts are as given.
    """

    hypervisor: tuple[str, ...] = ()
    version_from: str = ""
    version_before: str = ""
    manager: tuple[str, ...] = ()
    manager_from: str = ""
    manager_before: str = ""
    facts: dict[str, bool] = msgspec.field(default_factory=dict)

    def holds(self, host: HostEvidence) -> Truth:
        """Judge it for ``host``."""
        return all_of(self._parts(host))

    def _parts(self, host: HostEvidence) -> Iterator[Truth]:
        if self.hypervisor:
            yield host.hypervisor in self.hypervisor if host.hypervisor else None
        if self.version_from:
            yield at_least(host.version, self.version_from)
        if self.version_before:
            yield negation(at_least(host.version, self.version_before))
        if self.manager:
            yield host.manager in self.manager if host.manager else None
        if self.manager_from:
            yield at_least(host.manager_version, self.manager_from)
        if self.manager_before:
            yield negation(at_least(host.manager_version, self.manager_before))
        for name, value in self.facts.items():
            known = host.facts.get(name)
            yield None if known is None else known is value


class Condition(Value, frozen=True, forbid_unknown_fields=True):
    """A condition; all that is given must hold, and an empty one always does.

    ``all``, ``any``, ``none``: of these conditions all, at least one, or none holds.  ``known``:
    this one is known to hold (what is not known counts as not).
    ``translatable``: the armed translator covers the lost feature.  ``exposed``: the guest does not
    defend itself against this vulnerability (an id of ``vulnerabilities.json``), which the
    destination's CPU has.
    """

    all: tuple["Condition", ...] = ()
    any: tuple["Condition", ...] = ()
    none: tuple["Condition", ...] = ()
    known: "Condition | None" = None
    born: CpuCondition | None = None
    shown: CpuCondition | None = None
    destination: CpuCondition | None = None
    source: CpuCondition | None = None
    guest: GuestCondition | None = None
    here: HostCondition | None = None
    there: HostCondition | None = None
    translatable: bool | None = None
    exposed: str = ""

    def holds(self, situation: Situation) -> Truth:
        """Judge it in a situation."""
        return all_of(truth for truth, _ in self.parts(situation))

    def parts(self, situation: Situation) -> Iterator[tuple[Truth, str]]:
        """Each of its parts judged, with a word for what it asks about."""
        for part in self.all:
            yield part.holds(situation), part.asks()
        if self.any:
            asks = " or ".join(sorted({part.asks() for part in self.any}))
            yield any_of(part.holds(situation) for part in self.any), asks
        for part in self.none:
            yield negation(part.holds(situation)), part.asks()
        if self.known is not None:
            yield self.known.holds(situation) is True, ""
        for name, cpu in (
            ("born", situation.guest.shown),
            ("shown", situation.shown),
            ("destination", situation.destination),
            ("source", situation.source),
        ):
            wanted: CpuCondition | None = getattr(self, name)
            if wanted is not None:
                yield wanted.holds(cpu), f"the {_WHO[name]} CPU"
        if self.guest is not None:
            yield self.guest.holds(situation.guest, situation.subject), _asks_guest(self.guest)
        if self.here is not None:
            yield self.here.holds(situation.here), _asks_host(self.here, "source")
        if self.there is not None:
            yield self.there.holds(situation.there), _asks_host(self.there, "destination")
        if self.translatable is not None:
            covered = situation.subject in situation.translatable
            yield covered is self.translatable, "the translator"
        if self.exposed:
            yield (
                exposed(self.exposed, situation.guest, situation.destination),
                f"the guest's defence against {self.exposed}",
            )

    def asks(self) -> str:
        """In words, what it asks about."""
        words = [part.asks() for part in (*self.all, *self.any, *self.none)]
        words += [f"the {_WHO[name]} CPU" for name in _WHO if getattr(self, name) is not None]
        if self.guest is not None:
            words.append(_asks_guest(self.guest))
        if self.here is not None:
            words.append(_asks_host(self.here, "source"))
        if self.there is not None:
            words.append(_asks_host(self.there, "destination"))
        if self.exposed:
            words.append(f"the guest's defence against {self.exposed}")
        return ", ".join(dict.fromkeys(words))


_WHO = {
    "born": "guest's", "shown": "then shown", "destination": "destination's", "source": "source's",
}  # fmt: skip


def _asks_guest(condition: GuestCondition) -> str:
    asked = {
        "its system": condition.system,
        "its kernel's version": condition.kernel_from or condition.kernel_before,
        "its command line": condition.word,
        "its memory": condition.memory_mib_from or condition.memory_mib_below,
        "what its programs use": condition.uses_it is not None,
    }
    return ", ".join([*(what for what, given in asked.items() if given), *condition.facts])


def _asks_host(condition: HostCondition, which: str) -> str:
    asked = {
        f"the {which}'s hypervisor": condition.hypervisor,
        f"its version on the {which}": condition.version_from or condition.version_before,
        f"what manages the {which}": condition.manager,
        f"the manager's version on the {which}": condition.manager_from or condition.manager_before,
    }
    return ", ".join([*(what for what, given in asked.items() if given), *condition.facts])
