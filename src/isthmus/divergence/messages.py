"""What hypervisors say when a CPU does not fit, recognised and explained.

The catalogue is data (``data/messages``, one file for each product): a pattern, what it means, why
it comes and what to do.  Text to be explained is hostile (a console, a log): it is cut to
:data:`MAX_BYTES`, lines to :data:`MAX_LINE`, and control characters are dropped.
"""

import re
from functools import cache
from importlib import resources

from isthmus.cpu.features import find
from isthmus.divergence.rules import Basis
from isthmus.errors import InputError
from isthmus.values import Value, from_json

PRODUCTS = ("qemu", "libvirt", "xen", "xapi", "vmware", "hyperv", "linux")
"""The files of the catalogue, in the order in which they are tried."""
MAX_BYTES = 4 << 20
MAX_LINE = 4096
MAX_FOUND = 100
_CONTROL = re.compile(r"\x1b\[[0-9;?]*[ -/]*[@-~]|[\x00-\x08\x0b-\x1f\x7f-\x9f]")
_PLACE = re.compile(r"\{(\w+)\}")


class Message(Value, frozen=True, forbid_unknown_fields=True):
    """One message of a product.

    ``pattern`` finds it in a line; its named groups may stand in the texts in braces, and the group
    ``features`` holds names of CPU features.  ``literal`` is a piece of the format string as it
    stands in the product's own binary.  ``rules`` are those of the catalogue of divergences.
    """

    id: str
    pattern: str
    means: str
    cause: str
    cure: str
    source: str
    basis: Basis
    example: str
    literal: str = ""
    rules: tuple[str, ...] = ()


class Messages(Value, frozen=True, forbid_unknown_fields=True):
    """The messages of one product; ``witness`` names the binaries that hold their literals."""

    schema: int
    title: str
    witness: str
    messages: tuple[Message, ...]


class Explanation(Value, frozen=True):
    """A message that was found: the ``line`` it stands in, and its texts with the values filled in.

    ``features`` are canonical names where they are known, else as the message has them.
    """

    id: str
    product: str
    line: str
    means: str
    cause: str
    cure: str
    source: str
    features: tuple[str, ...] = ()
    rules: tuple[str, ...] = ()


@cache
def catalogue() -> dict[str, Messages]:
    """The messages of every product."""
    folder = resources.files("isthmus.divergence").joinpath("data/messages")
    return {
        name: from_json(folder.joinpath(f"{name}.json").read_bytes(), Messages, where=name)
        for name in PRODUCTS
    }


@cache
def _patterns() -> tuple[tuple[str, Message, re.Pattern[str]], ...]:
    return tuple(
        (messages.title, message, re.compile(message.pattern))
        for messages in catalogue().values()
        for message in messages.messages
    )


def explain(text: str) -> tuple[Explanation, ...]:
    """Every known message in ``text``, in its order, each said once; at most :data:`MAX_FOUND`."""
    found: dict[tuple[str, str], Explanation] = {}
    for raw in text[-MAX_BYTES:].splitlines():
        line = _CONTROL.sub("", raw)[:MAX_LINE].strip()
        for title, message, pattern in _patterns():
            match = pattern.search(line)
            if match is None or len(found) >= MAX_FOUND:
                continue
            # The same message with other values is another one; repeated word for word it is not.
            found.setdefault((message.id, match[0]), _explanation(title, message, match, line))
    return tuple(found.values())


def _explanation(title: str, message: Message, match: re.Match[str], line: str) -> Explanation:
    values = {name: value or "?" for name, value in match.groupdict().items()}

    def filled(text: str) -> str:
        return _PLACE.sub(lambda place: values.get(place[1], place[0]), text)

    return Explanation(
        id=message.id,
        product=title,
        line=line,
        means=filled(message.means),
        cause=filled(message.cause),
        cure=filled(message.cure),
        source=message.source,
        features=_features(values.get("features", "")),
        rules=message.rules,
    )


def _features(text: str) -> tuple[str, ...]:
    names = []
    for name in re.split(r"[,\s]+", text.strip(" ,.")):
        try:
            names.append(find(name).name)
        except InputError:
            names.append(name)
    return tuple(dict.fromkeys(name for name in names if name))
