"""What ``isthmus migrate`` refuses before it looks at any guest."""

import pytest
from click.testing import CliRunner

from isthmus.cli.migrate import migrate
from isthmus.errors import InputError


@pytest.mark.parametrize(
    ("words", "named"),
    [
        ("web --to Penryn --tls", "--tls: not for a guest that Isthmus has started"),
        ("web --to Penryn --peer qemu+ssh://b/system --postcopy", "--peer, --postcopy: not for"),
        ("web --from xen+ssh://a --to xen+ssh://b --watch 30m", "--watch: not for a guest of xen"),
        ("web --from xapi://a --to xapi://b --tls", "--tls: not for a guest of xapi"),
        ("web --from qemu:///a --to qemu:///b --through f", "--through: not for a guest of libv"),
        ("--qmp a --to-qmp b --through f", "--through: not for a guest that is named by its QMP"),
    ],
)
def test_a_wish_that_cannot_be_fulfilled_is_refused_not_ignored(words: str, named: str) -> None:
    """Who wants it encrypted is not to be moved in the clear, nor moved first and told then."""
    done = CliRunner().invoke(migrate, words.split())
    assert isinstance(done.exception, InputError)
    assert named in done.exception.message
    assert done.exception.remedy
