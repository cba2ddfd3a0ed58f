"""The cases that there are: one module ``failure_N_SUBJECT`` each, found by its name."""

import importlib
import pkgutil
from collections.abc import Collection

from isthmus.errors import InputError
from isthmus.qualification.kvm import cases
from isthmus.qualification.kvm.cases.case import Case


def all_cases() -> tuple[Case, ...]:
    """All cases in the order of their numbers."""
    names = (module.name for module in pkgutil.iter_modules(cases.__path__))
    found: list[Case] = [
        importlib.import_module(f"{cases.__name__}.{name}").CASE
        for name in names
        if name.startswith("failure_")
    ]
    return tuple(sorted(found, key=lambda case: case.number))


def chosen(numbers: Collection[int]) -> tuple[Case, ...]:
    """The cases of these numbers; all of them if none is given.

    :raises InputError: there is no case of a number.
    """
    known = {case.number: case for case in all_cases()}
    if unknown := sorted(set(numbers) - set(known)):
        raise InputError(
            f"{unknown[0]}: no failure of that number",
            remedy=f"there are {', '.join(str(number) for number in known)}",
        )
    return tuple(case for case in known.values() if not numbers or case.number in numbers)
