"""The page of the rules is what the data says."""

from pathlib import Path

from isthmus.divergence.page import page
from isthmus.divergence.rules import groups

PAGE = Path(__file__).parents[2] / "docs" / "divergences.md"


def test_the_page_is_current() -> None:
    assert PAGE.read_text(encoding="utf-8") == page(), (
        "write it anew: python -m isthmus.divergence.page docs/divergences.md"
    )


def test_every_rule_is_on_it_with_its_source() -> None:
    text = page()
    for group in groups().values():
        for rule in group.rules:
            assert f"</a>`{rule.id}` |" in text


def test_the_tests_that_rules_name_exist() -> None:
    named = {rule.test for group in groups().values() for rule in group.rules if rule.test}
    assert named
    for name in named:
        file, _, function = name.partition("::")
        assert f"def {function}" in (PAGE.parents[1] / file).read_text(encoding="utf-8")
