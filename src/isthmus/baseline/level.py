"""Levelling: the best CPU model that every host of a pool can honour.

Features: the intersection (see :data:`isthmus.cpu.features.Merge` for the exceptions), less what
the rules below take away, closed over what each feature needs.  Removing only removes, so the
result does not depend on the order of hosts, and a further host never adds a feature, except a bit
that announces a restriction.

Rules between makers:

* Virtualisation of the CPU (SVM, VMX, SGX, SEV) goes: its state cannot move.
* Paravirtual features that call the hypervisor go: a guest patches VMCALL or VMMCALL in at boot,
  and the other maker's CPU does not know it (Linux ``arch/x86/include/asm/kvm_para.h``;
  KVM_X86_QUIRK_FIX_HYPERCALL_INSN in ``Documentation/virt/kvm/api.rst``).

* Features with XSAVE components of their own go unless every host's layout is known (below).

Rules between any hosts: a feature whose XSAVE component lies elsewhere on another host goes (a
guest reads the layout once, at boot; Intel SDM vol. 1, 13.2: PKRU is at 2688 on Intel's CPUs, at
2432 or 832 on AMD's), and so does a feature above the lowest maximum CPUID leaf.
"""

from collections.abc import Callable, Collection, Sequence
from typing import Literal

from isthmus.baseline.arriving import accepted
from isthmus.baseline.identity import identity, maker
from isthmus.cpu.features import FEATURES, close, closure_violations, find
from isthmus.cpu.model import NO_LEAVES, CpuModel
from isthmus.errors import InputError
from isthmus.values import Value

# Linux arch/x86/kernel/kvm.c: the features whose use is a kvm_hypercall.
HYPERCALLS = frozenset(
    {"kvm-pv-unhalt", "kvm-pv-ipi", "kvm-pv-sched-yield", "kvm-hc-map-gpa-range"}
)

# Intel SDM vol. 1, 13.1 and AMD APM vol. 2, 11.5: XSAVE components and whose state they hold.
_COMPONENT_FEATURES = {
    2: "avx", 3: "mpx", 4: "mpx", 5: "avx512f", 6: "avx512f", 7: "avx512f", 8: "intel-pt",
    9: "pku", 11: "shstk", 12: "shstk", 17: "amx-tile", 18: "amx-tile", 62: "lwp",
}  # fmt: skip


class Loss(Value, frozen=True):
    """What one host of the pool gives up."""

    host: str
    features: tuple[str, ...]


class Baseline(Value, frozen=True):
    """A levelled model, what it costs, and why it is as it is.

    ``reasons`` explains the identity and every removal that is not a plain intersection.
    ``arriving`` is the wider set that a guest from outside the pool may have and still move freely
    in it.  ``translated`` are features of the model that some hosts lack: a guest that uses them
    there needs the translator.  ``vendors`` are those of the hosts.
    """

    model: CpuModel
    losses: tuple[Loss, ...]
    reasons: tuple[str, ...]
    arriving: frozenset[str] = frozenset()
    translated: frozenset[str] = frozenset()
    vendors: tuple[str, ...] = ()

    @property
    def mixed(self) -> bool:
        """Whether the pool has hosts of several makers."""
        return len({maker(vendor) for vendor in self.vendors}) > 1


def level(
    hosts: Sequence[CpuModel],
    *,
    keep: Collection[str] = (),
    drop: Collection[str] = (),
    translate: Collection[str] = (),
) -> Baseline:
    """The levelled model of ``hosts``.

    :param keep: features that the rules between makers shall not take; every host must have them.
    :param drop: further features to give up.
    :param translate: features that stay although hosts lack them, since a translator does their
        work there; those that no host has, or whose needs are not met, do not appear.
    :raises InputError: no host, an unknown feature, one both kept and dropped, or one to keep that
        a host lacks.
    """
    if not hosts:
        raise InputError("no host to level", remedy="name at least one")
    kept = frozenset(find(name).name for name in keep)
    dropped = frozenset(find(name).name for name in drop)
    if both := sorted(kept & dropped):
        raise InputError(f"{', '.join(both)}: both kept and dropped", remedy="choose one")
    chosen, reasons = identity(hosts)
    notes = list(reasons)
    levels = _highest(hosts, "level"), _highest(hosts, "xlevel")
    features = _merged(hosts)
    somewhere = frozenset[str]().union(*(host.features for host in hosts))
    features |= frozenset(find(name).name for name in translate) & somewhere
    if missing := sorted(kept - features):
        lacks = [host.name for host in hosts if not kept <= host.features]
        raise InputError(
            f"cannot keep {', '.join(missing)}: {', '.join(lacks) or 'the pool'} lacks it",
            remedy="keep only what every host has",
        )
    for remove, why in _removals(hosts, levels, kept, dropped):
        if gone := sorted(name for name in features if remove(name)):
            features = features.difference(gone)
            notes.append(f"without {', '.join(gone)}: {why}")
    for name, needs in _closing(features).items():
        notes.append(f"without {name}: it needs {', '.join(needs)}")
    features = close(features)
    everywhere = frozenset.intersection(*(host.features for host in hosts))
    translated = frozenset(find(name).name for name in translate) & (features - everywhere)
    for name in sorted(translated):
        lacking = ", ".join(sorted({host.name for host in hosts if name not in host.features}))
        notes.append(f"with {name}, translated on {lacking}")
    if taken := sorted(kept - features):
        raise InputError(
            f"cannot keep {', '.join(taken)}: what it needs, or its leaf or state, is not common "
            "to all hosts",
            remedy="keep less",
        )
    names = ", ".join(sorted({host.name for host in hosts}))
    return Baseline(
        model=CpuModel(
            name=f"baseline of {names}" if len(hosts) > 1 else names,
            source="isthmus level",
            vendor=chosen.vendor,
            family=chosen.family,
            model=chosen.model,
            stepping=chosen.stepping,
            brand=chosen.brand,
            features=features,
            level=levels[0] or 0,
            xlevel=levels[1] or 0,
            phys_bits=_lowest([host.phys_bits for host in hosts]),
            linear_bits=_lowest([host.linear_bits for host in hosts]),
            xsave=tuple(
                component
                for component in chosen.xsave
                if all(component in host.xsave for host in hosts)
                and _COMPONENT_FEATURES.get(component.number) in features
            ),
            unknown=_unknown(hosts, levels),
        ),
        losses=tuple(
            Loss(host=host.name, features=tuple(sorted(host.features - features)))
            for host in sorted(hosts, key=lambda host: (host.name, sorted(host.features)))
        ),
        reasons=tuple(notes),
        arriving=accepted(hosts, features),
        translated=translated,
        vendors=tuple(sorted({host.vendor for host in hosts})),
    )


def _merged(hosts: Sequence[CpuModel]) -> frozenset[str]:
    everywhere = frozenset.intersection(*(host.features for host in hosts))
    anywhere = frozenset[str]().union(*(host.features for host in hosts))
    rule = {name: FEATURES[name].merge if name in FEATURES else "and" for name in anywhere}
    return frozenset(
        name
        for name in anywhere
        if rule[name] != "ignore" and (name in everywhere or rule[name] == "or")
    )


def _removals(
    hosts: Sequence[CpuModel],
    levels: tuple[int | None, int | None],
    keep: frozenset[str],
    drop: frozenset[str],
) -> list[tuple[Callable[[str], bool], str]]:
    rules: list[tuple[Callable[[str], bool], str]] = [
        (lambda name: name in drop, "given up by request"),
        (lambda name: _above(name, levels), "above the lowest maximum CPUID leaf of the hosts"),
        (
            (_moved(hosts) - keep).__contains__,
            "its XSAVE state lies elsewhere on another host",
        ),
    ]
    if len({maker(host.vendor) for host in hosts}) > 1:
        rules += [
            (
                lambda name: (
                    name in FEATURES and FEATURES[name].merge == "never" and name not in keep
                ),
                "its state cannot move between makers",
            ),
            (
                lambda name: name in HYPERCALLS and name not in keep,
                "the guest would call the hypervisor by an instruction of one maker only",
            ),
            (
                (_unlocated(hosts) - keep).__contains__,
                "makers place its XSAVE state differently, and not every host's layout is known",
            ),
        ]
    return rules


def _above(name: str, levels: tuple[int | None, int | None]) -> bool:
    leaf = FEATURES[name].leaf if name in FEATURES else None
    if leaf is None or 0x40000000 <= leaf < 0x80000000 or leaf >= 0xC0000000:
        return False  # MSR features; hypervisor leaves and Zhaoxin's have maxima of their own
    limit = levels[1] if leaf >= 0x80000000 else levels[0]
    return limit is not None and leaf > limit


def _moved(hosts: Sequence[CpuModel]) -> frozenset[str]:
    places: dict[int, set[tuple[int, int]]] = {}
    for host in hosts:
        for component in host.xsave:
            places.setdefault(component.number, set()).add((component.offset, component.size))
    return frozenset(
        _COMPONENT_FEATURES[number]
        for number, found in places.items()
        if len(found) > 1 and number in _COMPONENT_FEATURES
    )


def _unlocated(hosts: Sequence[CpuModel]) -> frozenset[str]:
    """Features with a component that some host does not locate; AVX's place is architectural."""
    located = [{component.number for component in host.xsave} for host in hosts]
    return frozenset(
        name
        for number, name in _COMPONENT_FEATURES.items()
        if name != "avx" and not all(number in numbers for numbers in located)
    )


def _closing(features: frozenset[str]) -> dict[str, tuple[str, ...]]:
    lost: dict[str, tuple[str, ...]] = {}
    while lacking := closure_violations(features):
        lost.update(lacking)
        features = features.difference(lacking)
    return lost


def _unknown(hosts: Sequence[CpuModel], levels: tuple[int | None, int | None]) -> tuple[str, ...]:
    facts = {fact for host in hosts for fact in host.unknown}
    return tuple(sorted(facts if None in levels else facts - {NO_LEAVES}))


def _highest(hosts: Sequence[CpuModel], leaves: Literal["level", "xlevel"]) -> int | None:
    """The highest leaf that all hosts have; None where no source could tell."""
    known = [highest for host in hosts if (highest := host.highest(leaves)) is not None]
    return min(known, default=None)


def _lowest(widths: Sequence[int | None]) -> int | None:
    known = [width for width in widths if width is not None]
    return min(known) if len(known) == len(widths) else None
