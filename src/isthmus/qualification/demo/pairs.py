"""The pairs of hosts that the demo knows by name."""

from isthmus.errors import InputError

# classic: AMD's and Red Hat's demonstration of 2008 had a 45 nm Opteron and a Xeon E5420.
# modern: an EPYC and a Xeon of 2021; QEMU has had both models since 6.0.
PAIRS = {"classic": ("phenom", "Penryn"), "modern": ("EPYC-Milan", "Icelake-Server")}
DEFAULT = "classic"


def pair_of(text: str) -> tuple[str, str]:
    """The two CPU models of ``--pair``: a known name, or two models with a comma.

    :raises InputError: neither.
    """
    if text in PAIRS:
        return PAIRS[text]
    models = tuple(part.strip() for part in text.split(","))
    if len(models) != 2 or not all(models):
        raise InputError(
            f"--pair {text}: not a pair",
            remedy=f"give {' or '.join(PAIRS)}, or two CPU models of QEMU as A,B",
        )
    return models[0], models[1]
