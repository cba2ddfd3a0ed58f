"""What XAPI answers when it does not do what it was asked, as errors of Isthmus.

A failure is a list of texts: a code, then its parameters (xen-api
``doc/content/xen-api/wire-protocol.md``; the codes and the names of their parameters:
``ocaml/idl/datamodel_errors.ml``).  What the codes about CPUs and moves mean is told by
``isthmus explain`` (``divergence/data/messages/xapi.json``).
"""

import re
from collections.abc import Collection, Iterable

from isthmus.divergence.messages import explain
from isthmus.errors import HypervisorError

HOST_IS_SLAVE = "HOST_IS_SLAVE"
HANDLE_INVALID = "HANDLE_INVALID"
INCOMPATIBLE = "VM_INCOMPATIBLE_WITH_THIS_HOST"
CANCELLED = "TASK_CANCELLED"
AUTHENTICATION = "SESSION_AUTHENTICATION_FAILED"
UUID_INVALID = "UUID_INVALID"

_MAX_TEXT = 300
# Control characters, and those that turn the direction of writing.
_CONTROL = re.compile("[\x00-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069]+")
# References mean nothing to people, and one of a session is as good as a password.
_REFERENCE = re.compile(r"OpaqueRef:[0-9A-Za-z-]+")


class XapiFailureError(HypervisorError):
    """XAPI refused a call or failed at it: ``code`` and ``parameters`` as it gave them."""

    def __init__(self, details: Iterable[object], *, secrets: Collection[str] = ()) -> None:
        texts = [printable(detail, secrets) for detail in details]
        self.code = texts[0] if texts else "INTERNAL_ERROR"
        self.parameters = tuple(texts[1:])
        told = [text for text in self.parameters if text and text != "…"]
        super().__init__(
            f"XAPI: {self.code}{': ' + ', '.join(told) if told else ''}",
            remedy=f"isthmus explain {self.code}" if explain(self.code) else None,
        )


class XapiGoneError(HypervisorError):
    """No answer came: whether the call was carried out is not known."""


class XapiNonsenseError(HypervisorError):
    """What came back is no answer of XAPI, or not of the documented type."""


def printable(value: object, secrets: Collection[str] = ()) -> str:
    """A text from the network for a message: one short line, with no reference and no secret."""
    text = value if isinstance(value, str) else repr(value)
    text = text[: 64 * _MAX_TEXT]
    for secret in secrets:
        if secret:
            text = text.replace(secret, "…")
    text = _CONTROL.sub(" ", _REFERENCE.sub("…", text)).strip()
    return text if len(text) <= _MAX_TEXT else f"{text[:_MAX_TEXT]}…"
