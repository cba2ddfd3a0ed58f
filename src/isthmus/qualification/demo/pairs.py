"""The pairs of hosts that the demo knows by name."""

from isthmus.errors import InputError
from isthmus.qualification.kvm.host import host_model, host_models
from isthmus.qualification.kvm.pool import PREFIX

# classic: AMD's and Red Hat's demonstration of 2008 had a 45 nm Opteron and a Xeon E5420.
# modern: an EPYC and a Xeon of 2021; QEMU has had both models since 6.0.
PAIRS = {"classic": ("phenom", "Penryn"), "modern": ("EPYC-Milan", "Icelake-Server")}
DEFAULT = "classic"

KVM = ("phenom", "haswell")
"""The pair of lab hosts: an old AMD with 3DNow! and SSE4a, and an Intel on which the translator
outside works (docs/kvm-lab.md)."""


def pair_of(text: str | None, *, kvm: bool = False) -> tuple[str, str]:
    """The two hosts of ``--pair``: a known name, or two CPU models with a comma; None: the default.

    :param kvm: they are lab hosts with real KVM.
    :raises InputError: neither; or there is no such lab host.
    """
    if kvm and text is None:
        return KVM
    text = DEFAULT if text is None else text
    if text in PAIRS and not kvm:
        return PAIRS[text]
    pair = tuple(part.strip().removeprefix(PREFIX if kvm else "") for part in text.split(","))
    if len(pair) != 2 or not all(pair):
        known = f"two lab hosts ({', '.join(host_models())})" if kvm else "two CPU models of QEMU"
        names = "" if kvm else f"{' or '.join(PAIRS)}, or "
        raise InputError(f"--pair {text}: not a pair", remedy=f"give {names}{known} as A,B")
    if kvm:
        for name in pair:
            host_model(name)
        if pair[0] == pair[1]:
            raise InputError(f"--pair {text}: one lab host", remedy="name two")
    return pair[0], pair[1]
