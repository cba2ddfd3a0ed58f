"""Python in a lab host's dom0, with Xen's bindings, as Debian's xen-utils bring it to a real dom0.

The lab's dom0 does without; the hosts of users have it, and ``xl`` before 4.20 resumes nothing.
"""

import asyncio
import io
import re
import tarfile
from pathlib import Path

import pytest
from xen_lab import Lab

from isthmus.qualification.lab import packages
from isthmus.qualification.xen.host import started

_WANTED = re.compile(
    r"usr/bin/python3\.\d+|usr/lib/python3\.\d+/.*\.py|usr/lib/xen-[\d.]+/lib/python/xen/.*"
    r"|(?:usr/)?lib/x86_64-linux-gnu/lib(?:expat|z|m)\.so\.[\d.]+"
)


def files(scratch: Path) -> dict[str, bytes]:
    """The interpreter, the modules that it starts with, and Xen's bindings."""
    minimal = newest(r"python3\.\d+-minimal")
    utils = newest(r"xen-utils-[\d.]+")
    names = (minimal, f"lib{minimal}", utils, "libexpat1", "zlib1g", "libc6")
    found = {}
    chosen = [packages.required(name) for name in names]
    for _, archive in packages.each_opened(chosen, scratch=scratch):
        for name in archive.names:
            if _WANTED.fullmatch(name):
                found[name] = archive.read(name)
    return found


def newest(pattern: str) -> str:
    """The package of that kind with the highest number; the test is skipped if there is none."""
    prefix = re.split(r"[\\\[]", pattern)[0]
    matching = [name for name in packages.names(prefix) if re.fullmatch(pattern, name)]
    if not matching:
        pytest.skip(f"apt's lists have no {pattern}")
    return max(matching, key=lambda name: [int(n) for n in re.findall(r"\d+", name)])


def give(lab: Lab, host: str, content: dict[str, bytes]) -> None:
    """Put it into a host's dom0 that is up."""
    spool = io.BytesIO()
    with tarfile.open(fileobj=spool, mode="w") as tar:
        for name, data in content.items():
            member = tarfile.TarInfo(name)
            member.size, member.mode = len(data), 0o755
            tar.addfile(member, io.BytesIO(data))
    channel = started(lab.folder / "run" / ".xen")[host].channel()
    asyncio.run(channel.put("/python.tar", spool.getvalue()))
    lab.xl(
        host,
        "tar -xf /python.tar -C / && rm /python.tar && /sbin/ldconfig"
        " && ln -sf /usr/bin/python3.* /bin/python3 && python3 -c 'import re'",
    )
