"""The two copies of a guest of Xen in mid-move: what the hosts say of them, what is done to them.

Their names tell how far ``xl`` came with each: ``GUEST--incoming`` has not been given the
permission to start, ``GUEST--migratedaway`` is the source's copy once it has given it
(tools/xl/xl_migrate.c).
"""

import asyncio
import contextlib
import shlex
import time

from isthmus.errors import HypervisorError, IsthmusError
from isthmus.hypervisor.xen import host as xen
from isthmus.hypervisor.xen.host import AWAY, INCOMING
from isthmus.hypervisor.xen.runner import Runner
from isthmus.migration.decision import Copy
from isthmus.migration.phases import MAY_HAVE_RUN, Phase

DESTROY_TIMEOUT_S = 60.0
"""How long a host may take to destroy a guest for which it has been asked to."""

# xl has a command for it since 4.20 (tools/xl/xl_cmdtable.c); older hosts have bindings of libxc
# and xenstore, which Debian keeps with its release of Xen.  As libxl does (libxl__domain_resume),
# xenstored is told, too: it would not notice the guest's next suspend otherwise.
_RESUME = """
for p in /usr/lib/xen*/lib/python; do PYTHONPATH=$p:$PYTHONPATH; done
export PYTHONPATH
xl resume {number} 2>/dev/null || python3 -c \
 'import xen.lowlevel.xc as x, xen.lowlevel.xs as s
x.xc().domain_resume({number}, 1)
s.xs().resume_domain({number})'
"""


def reached(phase: Phase, arrived: Copy) -> Phase:
    """The phase that a move really came to: who is still named as it came has never run.

    ``xl migrate-receive`` gives the guest its own name before it lets it go.
    """
    return Phase.SWITCHED if arrived is Copy.PARTIAL and phase in MAY_HAVE_RUN else phase


async def diskless(runner: Runner, name: str) -> bool:
    """Whether a guest has no disk that its destination could have written to."""
    for each in (name, name + AWAY):
        with contextlib.suppress(IsthmusError):
            return (await xen.read_guest(runner, each)).disks == 0
    return False


async def left(runner: Runner, name: str) -> Copy:
    """The state of the copy at the source."""
    try:
        listed = await xen.domains(runner)
    except HypervisorError:
        return Copy.UNREACHABLE
    domain = listed.get(name) or listed.get(name + AWAY)
    if domain is None or domain.gone or domain.down:
        return Copy.DEAD
    return Copy.HELD if domain.suspended or domain.paused else Copy.RUNNING


async def arrived(runner: Runner, name: str) -> Copy:
    """The state of the copy at the destination."""
    try:
        listed = await xen.domains(runner)
    except HypervisorError:
        return Copy.UNREACHABLE
    domain = listed.get(name)
    if domain is None or domain.gone:
        return Copy.PARTIAL if name + INCOMING in listed else Copy.DEAD
    if domain.down:
        return Copy.DEAD
    return Copy.HELD if domain.paused else Copy.RUNNING


async def destroy(runner: Runner, names: tuple[str, ...], *, running: bool = True) -> None:
    """Destroy the copies of these names, and make sure that they are gone.

    :param running: also those that run.
    :raises UnreachedError: the host does not answer.
    :raises HypervisorError: one is still there.
    """
    deadline = time.monotonic() + DESTROY_TIMEOUT_S
    while True:
        listed = await xen.domains(runner)
        there = [listed[name] for name in names if name in listed]
        there = [one for one in there if running or one.suspended or one.down or one.gone]
        if not there:
            return
        if time.monotonic() > deadline:
            raise HypervisorError(f"{there[0].name} cannot be destroyed on {runner.address}")
        for one in there:
            if not one.gone:
                await runner.ask(f"xl destroy {one.number}")
        await asyncio.sleep(0.3)


async def resume(runner: Runner, name: str) -> None:
    """Let the source's copy go on if it stands still, under its own name.

    :raises HypervisorError: there is none, or it does not.
    """
    listed = await xen.domains(runner)
    if (away := listed.get(name + AWAY)) is not None:
        await runner.told(f"xl rename {away.number} {shlex.quote(name)}")
    domain = away or listed.get(name)
    if domain is None:
        raise HypervisorError(f"{runner.address} has no copy of {name} left")
    if domain.suspended:
        try:
            await runner.told(_RESUME.format(number=domain.number))
        except HypervisorError:
            # Its own xl, which has lost its transport, may have been quicker.
            now = (await xen.domains(runner)).get(name)
            if now is None or now.suspended:
                raise
    elif domain.paused:
        await runner.told(f"xl unpause {domain.number}")


async def unpause(runner: Runner, name: str) -> None:
    """Let the destination's copy run if it does not.

    :raises HypervisorError: there is none.
    """
    domain = (await xen.domains(runner)).get(name)
    if domain is None:
        raise HypervisorError(f"{runner.address} has no guest {name}")
    if domain.paused:
        await runner.told(f"xl unpause {domain.number}")
