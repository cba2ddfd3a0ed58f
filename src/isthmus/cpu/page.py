"""The page ``docs/features.md``: every feature of the catalogue, for people to read.

``python -m isthmus.cpu.page FILE`` writes it anew; a test holds the committed page to the data.
"""

import sys
from pathlib import Path

from isthmus.cpu.features import FEATURES, Feature

_HEAD = """# Features

Every feature that Isthmus knows, with the place of its bit, its names, what it needs and how a
pool's bit follows from its hosts'. Generated from `src/isthmus/cpu/data/features.json`
(`python -m isthmus.cpu.page docs/features.md`); each entry there names its source.

*Kind*: instruction (programs run it), state (of XSAVE or FXSAVE), kernel, mitigation, hint (speed
only), hypervisor. *Merge*: `and` (every host must have it), `or` (the bit announces a restriction,
so one host is enough), `never` (its state cannot move between makers), `ignore` (the operating
system sets it).

| feature | bit | kind | merge | needs | QEMU | libvirt | Linux | Xen | VMware |
|---|---|---|---|---|---|---|---|---|---|
"""


def _place(feature: Feature) -> str:
    if feature.leaf is not None:
        return f"{feature.leaf:#x}.{feature.subleaf or 0} {feature.register}[{feature.bit}]"
    if feature.msr is not None:
        return f"MSR {feature.msr:#x}[{feature.bit}]"
    return ""


def _row(feature: Feature) -> str:
    names = (feature.qemu, feature.libvirt, feature.linux, feature.xen, feature.vmware)
    cells = (
        f"`{feature.name}`", _place(feature), feature.kind, feature.merge,
        " ".join(feature.requires), *(name or "" for name in names),
    )  # fmt: skip
    return "| " + " | ".join(cells) + " |\n"


def page() -> str:
    """The whole page, as Markdown."""
    return _HEAD + "".join(_row(FEATURES[name]) for name in sorted(FEATURES))


if __name__ == "__main__":
    Path(sys.argv[1]).write_text(page(), encoding="utf-8")
