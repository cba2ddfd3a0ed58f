"""The two copies of a guest of Xen in mid-move: what the hosts say of them, what is done to them.

Their names tell how far ``xl`` came with each: ``GUEST--incoming`` has not been given the
permission to start, ``GUEST--migratedaway`` is the source's copy once it has given it
(tools/xl/xl_migrate.c).  That a domain of such a name is the guest, and not another that was given
its name since, its UUID tells, which it takes along.
"""

import asyncio
import contextlib
import shlex
import time

from isthmus.errors import HypervisorError, IsthmusError
from isthmus.hypervisor.xen import host as xen
from isthmus.hypervisor.xen.host import AWAY, INCOMING, Domain
from isthmus.hypervisor.xen.runner import Runner, UnreachedError
from isthmus.migration.decision import Copy
from isthmus.migration.phases import MAY_HAVE_RUN, Phase
from isthmus.values import Value

TELLING_S = 20.0
"""For how long a host is asked again that is reached and does not tell: a tool of its dom0 may fail
once, and a guest that comes has no name at first."""

DESTROY_TIMEOUT_S = 180.0
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


class One(Value, frozen=True):
    """The guest that moves; ``uuid`` is empty where libxl told none."""

    name: str
    uuid: str = ""


async def found(runner: Runner, guest: One) -> dict[str, Domain]:
    """What a host has of the guest, by name.

    :raises HypervisorError: the host is not reached or does not tell for certain.
    """
    deadline = time.monotonic() + TELLING_S
    while True:
        try:
            return _of(await xen.domains(runner), guest, runner.address)
        except UnreachedError:
            raise
        except HypervisorError:
            if time.monotonic() > deadline:
                raise
        await asyncio.sleep(0.5)


def _of(listed: dict[str, Domain], guest: One, where: str) -> dict[str, Domain]:
    mine = {}
    for name, domain in listed.items():
        if domain.uuid and guest.uuid and domain.uuid != guest.uuid:
            continue
        if name in {guest.name, guest.name + AWAY, guest.name + INCOMING}:
            mine[name] = domain
        elif domain.uuid and domain.uuid == guest.uuid and not domain.gone:
            # Not yet named, or renamed by somebody: nobody may conclude that it is not there.
            raise HypervisorError(
                f"{where} has {guest.name} under another name: {name}",
                remedy=f"xl rename {domain.number} {guest.name}",
            )
    return mine


async def diskless(runner: Runner, guest: One) -> bool:
    """Whether a guest has no disk that its destination could have written to."""
    for each in (guest.name, guest.name + AWAY):
        with contextlib.suppress(IsthmusError):
            told = await xen.read_guest(runner, each)
            return told.disks == 0 and guest.uuid in {"", told.uuid}
    return False


async def left(runner: Runner, guest: One) -> Copy:
    """The state of the copy at the source."""
    try:
        listed = await found(runner, guest)
    except HypervisorError:
        return Copy.UNREACHABLE
    domain = listed.get(guest.name) or listed.get(guest.name + AWAY)
    if domain is None or domain.gone or domain.down:
        return Copy.DEAD
    return Copy.HELD if domain.suspended or domain.paused else Copy.RUNNING


async def arrived(runner: Runner, guest: One) -> Copy:
    """The state of the copy at the destination."""
    try:
        listed = await found(runner, guest)
    except HypervisorError:
        return Copy.UNREACHABLE
    domain = listed.get(guest.name)
    if domain is None or domain.gone:
        return Copy.PARTIAL if guest.name + INCOMING in listed else Copy.DEAD
    if domain.down:
        return Copy.DEAD
    return Copy.HELD if domain.paused else Copy.RUNNING


async def destroy(
    runner: Runner, guest: One, suffixes: tuple[str, ...], *, running: bool = True
) -> None:
    """Destroy the copies whose names have these suffixes, and make sure that they are gone.

    :param running: also those that run.
    :raises UnreachedError: the host does not answer.
    :raises HypervisorError: one is still there, or the host does not tell.
    """
    deadline = time.monotonic() + DESTROY_TIMEOUT_S
    while True:
        listed = await found(runner, guest)
        there = [listed[name] for end in suffixes if (name := guest.name + end) in listed]
        there = [one for one in there if running or one.suspended or one.down or one.gone]
        if not there:
            return
        if time.monotonic() > deadline:
            raise HypervisorError(f"{there[0].name} cannot be destroyed on {runner.address}")
        for one in there:
            if not one.gone:
                await runner.ask(f"xl destroy {one.number}")
        await asyncio.sleep(0.3)


async def resume(runner: Runner, guest: One) -> None:
    """Let the source's copy go on if it stands still, under its own name.

    :raises HypervisorError: there is none, or it does not.
    """
    listed = await found(runner, guest)
    if (away := listed.get(guest.name + AWAY)) is not None:
        await runner.told(f"xl rename {away.number} {shlex.quote(guest.name)}")
    domain = away or listed.get(guest.name)
    if domain is None:
        raise HypervisorError(f"{runner.address} has no copy of {guest.name} left")
    if domain.suspended:
        try:
            await runner.told(_RESUME.format(number=domain.number))
        except HypervisorError:
            # Its own xl, which has lost its transport, may have been quicker.
            now = (await found(runner, guest)).get(guest.name)
            if now is None or now.suspended:
                raise
    elif domain.paused:
        await runner.told(f"xl unpause {domain.number}")


async def unpause(runner: Runner, guest: One) -> None:
    """Let the destination's copy run if it does not.

    :raises HypervisorError: there is none.
    """
    domain = (await found(runner, guest)).get(guest.name)
    if domain is None:
        raise HypervisorError(f"{runner.address} has no guest {guest.name}")
    if domain.paused:
        await runner.told(f"xl unpause {domain.number}")


def abandoned(error: UnreachedError, name: str) -> str:
    """What is left to do at a host that did not answer."""
    return f"{error}; if it still has {name} when it comes back: xl destroy {name}"
