"""Which fields change on the way to a host of another maker: decisions on values, nothing else."""

from collections.abc import Callable, Iterable

from isthmus.translate.xen.knowledge import Rule, Structure
from isthmus.values import Value


class Change(Value, frozen=True):
    """One field that was rewritten.

    ``offset``: of the field in the stream; ``instance``: the vCPU; ``before`` and ``after`` are its
    values; ``rule``: the rule's name.
    """

    record: str
    field: str
    instance: int
    offset: int
    before: int
    after: int
    rule: str


def chosen(rules: Iterable[Rule], maker: str) -> tuple[Rule, ...]:
    """The rules for a destination host of ``maker`` (as CPUID names it)."""
    return tuple(rule for rule in rules if maker in rule.to)


def decide(rules: Iterable[Rule], record: str, field: str, value: int) -> tuple[int, str]:
    """The value that a field has to have, and the names of the rules that changed it."""
    changed = []
    for rule in rules:
        if rule.record == record and rule.field == field and value & ~rule.mask:
            value &= rule.mask
            changed.append(rule.id)
    return value, ",".join(changed)


def rewrite(
    rules: Iterable[Rule],
    structure: Structure,
    body: bytearray,
    *,
    end: int,
    instance: int,
    offset: int,
    report: Callable[[Change], None],
) -> None:
    """Rewrite the fields of one body in place; a field beyond ``end`` is not there.

    Older Xens send shorter structures, whose missing fields the destination takes for 0.
    """
    rules = tuple(rules)
    for field in structure.fields:
        start = structure.base + field.offset
        stop = start + field.bytes
        if stop > end:
            continue
        before = int.from_bytes(body[start:stop], "little")
        after, rule = decide(rules, structure.record, field.name, before)
        if after == before:
            continue
        body[start:stop] = after.to_bytes(field.bytes, "little")
        report(
            Change(
                record=structure.record,
                field=field.name,
                instance=instance,
                offset=offset + start,
                before=before,
                after=after,
                rule=rule,
            )
        )
