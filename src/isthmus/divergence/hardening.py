"""Hardening: boot parameters that give a guest the defences of every host it may run on.

Linux defends itself against the flaws of the CPU it was shown (:mod:`isthmus.divergence.security`).
Parameters that force a defence, whatever the CPU, make up the difference; what no parameter can
force is named, so that an operator knows what stays open.
"""

from collections.abc import Sequence

import msgspec

from isthmus.cpu.model import CpuModel
from isthmus.divergence.evidence import GuestEvidence
from isthmus.divergence.security import Vulnerability, affected, exposed, vulnerabilities
from isthmus.values import Value


class Hardened(Value, frozen=True):
    """A flaw that some hosts have and the guest would not defend itself against.

    ``parameters`` close it; empty where none can.  ``sure`` is False where the evidence cannot tell
    whether the guest is exposed.
    """

    flaw: str
    title: str
    hosts: tuple[str, ...]
    missing: str
    parameters: tuple[str, ...]
    cost: str
    sure: bool
    source: str


class Hardening(Value, frozen=True):
    """What to add to the guest's kernel command line, and for which flaws."""

    parameters: tuple[str, ...]
    flaws: tuple[Hardened, ...]

    @property
    def open(self) -> tuple[Hardened, ...]:
        """The flaws that no parameter closes."""
        return tuple(flaw for flaw in self.flaws if not flaw.parameters)


def harden(guest: GuestEvidence, hosts: Sequence[CpuModel]) -> Hardening:
    """The defences that the guest lacks on some host, and the parameters that force them."""
    flaws = []
    for flaw in vulnerabilities().values():
        if flaw.scope != "guest":
            continue  # the host's own affair, or that of guests of the guest
        where = [host for host in hosts if exposed(flaw.id, guest, host) is not False]
        if not where:
            continue
        parameters = _closing(flaw, guest, where)
        flaws.append(
            Hardened(
                flaw=flaw.id,
                title=flaw.title,
                hosts=tuple(host.name for host in where),
                missing=flaw.missing,
                parameters=parameters,
                cost=flaw.cost,
                sure=any(
                    affected(flaw, host) is True and exposed(flaw.id, guest, host) is True
                    for host in where
                ),
                source=flaw.source,
            )
        )
    words = dict.fromkeys(word for flaw in flaws for word in flaw.parameters)
    return Hardening(parameters=tuple(words), flaws=tuple(flaws))


def _closing(
    flaw: Vulnerability, guest: GuestEvidence, hosts: Sequence[CpuModel]
) -> tuple[str, ...]:
    """The first parameter after which no host finds the guest open to the flaw."""
    for parameter in flaw.forced_by:
        told = msgspec.structs.replace(
            guest, command_line=f"{guest.command_line} {parameter.word}".strip()
        )
        if all(exposed(flaw.id, told, host) is False for host in hosts):
            return (parameter.word,)
    return ()
