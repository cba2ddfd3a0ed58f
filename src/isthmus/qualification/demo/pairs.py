"""The pairs of hosts that the demo knows by name."""

from isthmus.errors import InputError

# 2008: AMD's and Red Hat's demonstration, a 45 nm Opteron and a Xeon E5420.
# modern: the newest two whose difference QEMU 7.2's emulation can show.
PAIRS = {"2008": ("phenom", "Penryn"), "modern": ("EPYC", "Skylake-Server")}
DEFAULT = "2008"


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
            remedy=f"give {', '.join(sorted(PAIRS))}, or two CPU models as A,B",
        )
    return models[0], models[1]
