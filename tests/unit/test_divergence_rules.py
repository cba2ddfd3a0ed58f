"""Each rule of the catalogue, executed: it speaks in its example and not in its counterexample."""

import ast
from collections import Counter
from pathlib import Path

import pytest

from isthmus.cpu.features import FEATURES
from isthmus.divergence.evidence import facts
from isthmus.divergence.examples import Example, reference_cpus
from isthmus.divergence.finding import Finding, Severity
from isthmus.divergence.relations import RELATIONS
from isthmus.divergence.rules import GROUPS, Rule, findings, groups, rules
from isthmus.divergence.security import vulnerabilities

ROOT = Path(__file__).resolve().parents[2]
RULES = rules()


def judged(example: Example) -> list[Finding]:
    situation = example.situation()
    return list(
        findings(
            situation.guest,
            situation.destination,
            situation.shown,
            translatable=situation.translatable,
            source=situation.source,
            here=situation.here,
            there=situation.there,
        )
    )


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.id)
def test_it_speaks_in_its_example(rule: Rule) -> None:
    found = [finding for finding in judged(rule.example) if finding.rule == rule.id]
    assert found, f"silent: {rule.example.words()}"
    assert {finding.severity for finding in found} == {rule.severity}, found[0].evidence
    assert all(finding.evidence for finding in found)


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.id)
def test_it_is_silent_in_its_counterexample(rule: Rule) -> None:
    found = [finding for finding in judged(rule.counterexample) if finding.rule == rule.id]
    assert not found, f"{rule.counterexample.words()}: {found[0].evidence}"


@pytest.mark.parametrize("rule", [r for r in RULES if r.translates], ids=lambda rule: rule.id)
def test_what_can_be_translated_is(rule: Rule) -> None:
    subjects = {f.subject for f in judged(rule.example) if f.rule == rule.id}
    example = rule.example.situation()
    found = findings(
        example.guest, example.destination, example.shown, source=example.source,
        here=example.here, there=example.there, translatable=frozenset(subjects),
    )  # fmt: skip
    severities = {f.severity for f in found if f.rule == rule.id and f.subject in subjects}
    assert severities == {Severity.TRANSLATE}


def test_the_catalogue_is_large_enough_and_its_names_are_its_own() -> None:
    assert len(RULES) >= 160
    assert [name for name, count in Counter(rule.id for rule in RULES).items() if count > 1] == []
    assert tuple(groups()) == GROUPS
    assert RULES[-1].id == "lost"


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.id)
def test_it_is_written_in_full(rule: Rule) -> None:
    for text in (rule.notice, rule.remedy, rule.source):
        assert len(text) > 5
        assert not text.endswith(".")
    assert (rule.lost is not None) + bool(rule.relation) + bool(rule.subject) == 1
    assert not rule.relation or rule.relation in RELATIONS
    if rule.lost is not None:
        assert set(rule.lost.features) <= FEATURES.keys()
    # What an armed translator covers is a feature; a relation that translates names one.
    subjects = (
        {hit.subject for hit in RELATIONS[rule.relation](rule.example.situation())}
        if (rule.relation)
        else set()
    )
    assert (
        not rule.translates or rule.lost is not None or (subjects and subjects <= FEATURES.keys())
    )


def test_every_fact_that_rules_ask_for_can_be_stated() -> None:
    asked: dict[str, set[str]] = {"guest": set(), "host": set()}
    for name in GROUPS:
        for rule in groups()[name].rules:
            asked["guest"] |= _named_in(rule, "guest")
            asked["host"] |= _named_in(rule, "here") | _named_in(rule, "there")
    for of, names in asked.items():
        known = {name for name, fact in facts().items() if fact.of == of}
        assert names <= known


def _named_in(rule: Rule, who: str) -> set[str]:
    found: set[str] = set()
    waiting = [rule.when]
    while waiting:
        condition = waiting.pop()
        waiting += [*condition.all, *condition.any, *condition.none]
        if condition.known is not None:
            waiting.append(condition.known)
        part = getattr(condition, who)
        if part is not None:
            found |= set(part.facts)
    return found


def test_every_flaw_has_a_rule_or_needs_none() -> None:
    asked = {rule.when.exposed for rule in RULES} - {""}
    assert asked == vulnerabilities().keys() - {"old_microcode", "ghostwrite"}


@pytest.mark.parametrize("rule", [r for r in RULES if r.test], ids=lambda rule: rule.id)
def test_the_further_test_it_names_exists(rule: Rule) -> None:
    file, _, function = rule.test.partition("::")
    path = ROOT / file if "/" in file else ROOT / "tests" / "unit" / file
    assert path.is_file(), rule.test
    names = {n.name for n in ast.walk(ast.parse(path.read_text())) if hasattr(n, "name")}
    assert not function or function in names


def test_reference_cpus_are_made_of_known_features() -> None:
    for cpu in reference_cpus().values():
        assert cpu.features <= FEATURES.keys(), cpu.name
