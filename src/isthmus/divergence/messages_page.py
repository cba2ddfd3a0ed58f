"""The page ``docs/messages.md``: every error message that ``isthmus explain`` knows.

``python -m isthmus.divergence.messages_page FILE`` writes it anew; a test holds the committed page
to the data.
"""

import sys
from pathlib import Path

from isthmus.divergence.messages import Message, Messages, catalogue, explain

_HEAD = """# Error messages explained

What QEMU, libvirt, Xen, XenServer, VMware, Hyper-V, KVM and Linux say when a CPU does not fit:
`isthmus explain "the message"` finds these in any text, and so does a failed `isthmus migrate` by
itself. This page is generated from `src/isthmus/divergence/data/messages`
(`python -m isthmus.divergence.messages_page docs/messages.md`).

Those of QEMU, libvirt and Xen are held against the words in the programs of Debian 12, and four of
QEMU's are provoked, in `tests/unit/test_messages.py`. Those of XenServer, VMware and Hyper-V are
from documents and code of their makers: **not yet seen on the real products**.
"""


def _entry(message: Message) -> str:
    (filled,) = explain(message.example)
    rules = "".join(f" [{name}](divergences.md#{name})" for name in message.rules)
    return "\n".join(
        [
            f'### <a id="{message.id}"></a>{message.id}\n',
            f"    {message.example}\n",
            f"- **Means** {filled.means}.",
            f"- **Cause** {filled.cause}.",
            f"- **Cure** {filled.cure}.",
            f"- **Source** {message.source} ({message.basis})."
            + (f" Rules:{rules}." * bool(rules)),
            "",
        ]
    )


def _section(messages: Messages) -> str:
    return f"## {messages.title}\n\n" + "\n".join(map(_entry, messages.messages))


def page() -> str:
    """The whole page, as Markdown."""
    return "\n".join([_HEAD, *map(_section, catalogue().values())])


if __name__ == "__main__":
    Path(sys.argv[1]).write_text(page(), encoding="utf-8")
