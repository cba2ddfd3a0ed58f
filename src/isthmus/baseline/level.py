"""Levelling: the CPU that every host of a pool can honour, and what each host gives up for it.

The baseline is the intersection of what the hosts truly offer, with three corrections:

- it is closed: a feature goes when something it requires has gone (no AVX2 without AVX);
- across makers, what cannot be carried over goes too: nested virtualisation (its state cannot
  move), paravirtual features that make the guest patch VMCALL or VMMCALL into itself, and state
  that the makers lay out differently (PKU, AVX-512);
- bits that say "this CPU may misbehave" are kept when any host has them.

The identity (vendor, family, model, stepping) is one host's, whole, never a mixture: guests choose
workarounds and mitigations by it.
"""

from collections.abc import Collection, Sequence

from isthmus.cpu.features import Kind, closed, features, of_kind
from isthmus.cpu.model import CpuModel
from isthmus.errors import InputError
from isthmus.values import Value

SCHEMA_VERSION = 1


class Loss(Value, frozen=True):
    """What one host offers and the baseline does not: features by name, sorted."""

    host: str
    features: tuple[str, ...]


class Baseline(Value, frozen=True):
    """A levelled CPU model, the price each host pays, and why it is as it is."""

    model: CpuModel
    losses: tuple[Loss, ...]
    reasons: tuple[str, ...]
    schema: int = SCHEMA_VERSION

    @property
    def costliest(self) -> str:
        """The host that gives up most."""
        return max(self.losses, key=lambda loss: (len(loss.features), loss.host)).host


def level(
    hosts: Sequence[CpuModel], *, keep: Collection[str] = (), drop: Collection[str] = ()
) -> Baseline:
    """Level ``hosts``.

    :param keep: features that stay although the makers differ, if every host has them.
    :param drop: features to leave out in any case.
    :raises InputError: no host, or ``keep`` names what some host lacks.
    """
    if not hosts:
        raise InputError("no host to level", remedy="name at least one")
    reasons: list[str] = []
    common = frozenset.intersection(*(host.features for host in hosts))
    table = features()
    either = frozenset(
        name
        for host in hosts
        for name in host.features
        if name in table and table[name].merge == "or"
    )
    if missing := set(keep) - common:
        name = min(missing)
        lacking = next(host.name for host in hosts if name not in host.features)
        raise InputError(f"--keep {name}: {lacking} lacks it", remedy="leave it out")
    vendors = sorted({host.vendor for host in hosts})
    removed = set(drop)
    if len(vendors) > 1:
        nested = of_kind(common, Kind.NESTED) - set(keep)
        calls = {name for name in common if name in table and table[name].hypercall} - set(keep)
        if nested:
            reasons.append(
                f"{_list(nested)}: left out, nested virtualisation cannot move between makers"
            )
        if calls:
            reasons.append(
                f"{_list(calls)}: left out, the guest would patch one maker's hypercall"
                " instruction into its text"
            )
        moved = {name for name in common if name in table and table[name].layout_differs} - set(
            keep
        )
        if moved:
            reasons.append(
                f"{_list(moved)}: left out, the makers save this state at different places"
            )
        removed |= nested | calls | moved
    wanted = (common | either) - removed
    kept = closed(wanted)
    if fallen := wanted - kept:
        reasons.append(f"{_list(fallen)}: left out, something they require is missing")
    shown = identity(hosts)
    reasons.insert(0, _identity_reason(shown, vendors))
    widths = [host.phys_bits for host in hosts if host.phys_bits is not None]
    model = shown.replace(
        name="+".join(sorted({host.name for host in hosts})),
        source="level of " + ", ".join(sorted({host.name for host in hosts})),
        features=kept,
        level=min(host.level for host in hosts),
        xlevel=min(host.xlevel for host in hosts),
        phys_bits=min(widths, default=None),
        leaves=(),
        unknown=(),
    )
    losses = tuple(
        Loss(host=host.name, features=tuple(sorted(host.features - kept))) for host in hosts
    )
    return Baseline(model=model, losses=losses, reasons=tuple(reasons))


def identity(hosts: Sequence[CpuModel]) -> CpuModel:
    """The host whose identity the pool shows: the one with the fewest features.

    It is the oldest as far as features tell, so that software which goes by the model expects no
    more than there is.  Between equals an AMD host is taken: a guest that was booted as AMD avoids
    SYSENTER in 64-bit mode, which Intel permits and AMD does not (AMD APM vol. 3, SYSENTER); the
    last tie is broken by name, so that the order of hosts never matters.
    """
    return min(
        hosts,
        key=lambda host: (
            len(host.features),
            host.vendor != "AuthenticAMD",
            host.family,
            host.model,
            host.stepping,
            host.name,
        ),
    )


def _identity_reason(shown: CpuModel, vendors: list[str]) -> str:
    text = (
        f"shown as {shown.name} ({shown.vendor}, family {shown.family}, model {shown.model}):"
        " it offers the fewest features, so nothing that goes by the model expects more"
    )
    if len(vendors) > 1:
        text += "; the maker shown stays the same on every host, since guests look only at boot"
    return text


def _list(names: Collection[str]) -> str:
    return ", ".join(sorted(names))
