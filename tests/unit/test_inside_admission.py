"""Whether a guest's kernel takes the module, by what its files say."""

import pytest

from isthmus.translate.inside.admission import obstacles, taints

OPEN = "[none] integrity confidentiality\n"
LOCKDOWN, ENFORCE = (
    "/sys/kernel/security/lockdown",
    "/sys/module/module/parameters/sig_enforce",
)


@pytest.mark.parametrize(
    ("lockdown", "sig_enforce", "signed", "sources"),
    [
        (OPEN, "N\n", False, []),
        ("", "", False, []),  # a kernel without either
        (OPEN, "Y\n", False, [ENFORCE]),
        ("none [integrity] confidentiality\n", "N\n", False, [LOCKDOWN]),
        ("none integrity [confidentiality]\n", "Y\n", False, [LOCKDOWN, ENFORCE]),
        ("none [integrity] confidentiality\n", "Y\n", True, []),
        ("none integrity\n", "N\n", True, [LOCKDOWN]),
        ("[" * 100_000, "perhaps\n", True, [LOCKDOWN, ENFORCE]),
    ],
)
def test_names_what_stands_in_the_way(lockdown, sig_enforce, signed, sources) -> None:
    found = obstacles(lockdown=lockdown, sig_enforce=sig_enforce, signed=signed)
    assert [one.source for one in found] == sources
    assert all(one.why and one.remedy for one in found)


@pytest.mark.parametrize(
    ("tainted", "expected"),
    [("0\n", True), ("4096", True), ("12288\n", False), ("x", True), ("9" * 50, True)],
)
def test_tells_whether_loading_taints(tainted: str, expected: bool) -> None:
    assert taints(tainted) is expected
