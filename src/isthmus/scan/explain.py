"""Why a guest died of an instruction: which one, where, and what made the guest believe in it.

Decoding and each instruction's CPUID features come from iced-x86; ``data/decoder_features.json``
says in canonical names what those features are, and which processors of this field always have.
The source's CPU model is what the guest was shown at boot; kernels and C libraries choose code by
it once (Linux: ``arch/x86/kernel/alternative.c``; glibc: IFUNC) and never look again.
"""

import functools
from importlib import resources
from typing import Protocol

import msgspec
from iced_x86 import CpuidFeature, Decoder, FlowControl, Formatter, FormatterSyntax

from isthmus.cpu.model import CpuModel
from isthmus.errors import InputError
from isthmus.values import Value, from_json

MAX_LENGTH = 15
"""The longest instruction in bytes (Intel SDM vol. 2A, 2.3.11; AMD APM vol. 3, 1.1)."""


class Instruction(Value, frozen=True):
    """One decoded instruction.

    ``text`` is Intel syntax; ``length`` in bytes; ``needs`` holds for each requirement the features
    of which a processor must have one, in canonical names.  ``deliberate``: UD0, UD1 or UD2, made
    to fault on every processor.
    """

    text: str
    mnemonic: str
    length: int
    needs: tuple[frozenset[str], ...] = ()
    deliberate: bool = False

    @property
    def features(self) -> frozenset[str]:
        """Every feature that ``needs`` names."""
        return frozenset().union(*self.needs)

    def missing(self, model: CpuModel) -> frozenset[str]:
        """The features for want of which ``model`` cannot execute this; empty if it can."""
        return frozenset().union(*(any_of for any_of in self.needs if not any_of & model.features))


class FatalSite(Protocol):
    """What is told of a death, as :class:`isthmus.guest.console.Death` has it.

    ``code[offset:]`` begins with the faulting instruction, ``bits`` is its mode; ``user`` tells
    user mode from kernel mode.  What is not known is empty or None.
    """

    @property
    def headline(self) -> str: ...
    @property
    def code(self) -> bytes: ...
    @property
    def offset(self) -> int: ...
    @property
    def bits(self) -> int: ...
    @property
    def ip(self) -> int | None: ...
    @property
    def symbol(self) -> str: ...
    @property
    def user(self) -> bool: ...
    @property
    def program(self) -> str: ...
    @property
    def kernel(self) -> str: ...


class _Special(msgspec.Struct, frozen=True):
    any: list[str]
    bits: int
    source: str


class _Names(Value, frozen=True):
    schema: int
    source: str
    features: dict[str, list[str]]
    always: list[str]
    instructions: dict[str, _Special]


@functools.cache
def _names() -> _Names:
    data = resources.files("isthmus.scan").joinpath("data/decoder_features.json").read_bytes()
    return from_json(data, _Names, where="decoder_features.json")


@functools.cache
def _canonical() -> dict[int, frozenset[str]]:
    """The decoder's feature numbers with the canonical names that satisfy each."""
    return {
        getattr(CpuidFeature, name): frozenset(names) for name, names in _names().features.items()
    }


def instruction(code: bytes, bits: int = 64) -> Instruction:
    """Decode the first instruction of ``code`` (at most :data:`MAX_LENGTH` bytes are used).

    :raises InputError: these bytes are no instruction of any processor the decoder knows.
    """
    decoded = Decoder(bits, code[:MAX_LENGTH]).decode()
    if decoded.is_invalid:
        raise InputError(
            f"{code[:MAX_LENGTH].hex(' ') or 'no bytes'}: not a whole x86 instruction",
            remedy="give the bytes from the first of the instruction on",
        )
    formatter = Formatter(FormatterSyntax.INTEL)
    mnemonic = formatter.format_mnemonic(decoded).split()[-1]
    needs = [_canonical()[number] for number in decoded.cpuid_features() if number in _canonical()]
    special = _names().instructions.get(mnemonic.upper())
    if special is not None and special.bits == bits:
        needs.append(frozenset(special.any))
    return Instruction(
        text=formatter.format(decoded),
        mnemonic=mnemonic,
        length=decoded.len,
        needs=tuple(needs),
        deliberate=decoded.flow_control == FlowControl.EXCEPTION,
    )


def explain(death: FatalSite, source: CpuModel, destination: CpuModel) -> str:
    """One paragraph: which instruction killed the guest, where, and why the guest believed in it.

    Where the console does not show the instruction's bytes (a killed program before its code was
    read), the caller may put them into ``death.code`` from the program's file.

    :param source: what the guest was shown when it booted.
    :param destination: what the host that it died on offers.
    """
    who = _who(death)
    if not death.code:
        return f"{who}: {death.headline}. The console does not show the instruction."
    try:
        found = instruction(death.code[death.offset :], death.bits)
    except InputError as error:
        return f"{who}: {death.headline}. What stands there cannot be decoded: {error.message}."
    begin = f"{who} died at {found.text.upper()}{_where(death)}"
    if found.deliberate:
        return f"{begin}. This instruction is there to fault: software stopped itself (BUG, abort)."
    missing = found.missing(destination)
    if not missing:
        return f"{begin}. {destination.name} has what it needs, so the cause lies elsewhere."
    names = " or ".join(sorted(missing))
    lack = f"{destination.name} ({destination.vendor}) lacks {names} and raises #UD on it"
    believed = sorted(missing & source.features)
    if believed:
        why = (
            f"the guest believed in it because {source.name} ({source.vendor}) offered"
            f" {', '.join(believed)} in CPUID when it booted, and it does not look again"
        )
    else:
        why = f"nothing offered it to the guest: {source.name} ({source.vendor}) lacks it as well"
    return f"{begin}. {lack}; {why}."


def _who(death: FatalSite) -> str:
    if death.user:
        return f"The program {death.program}" if death.program else "A program"
    return f"The guest kernel {death.kernel}".rstrip()


def _where(death: FatalSite) -> str:
    if death.symbol:
        return f" in {death.symbol}"
    return f" at {death.ip:#x}" if death.ip is not None else ""
