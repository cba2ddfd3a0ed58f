"""Whether a guest lives on a Xen host: what the hypervisor says, its vCPUs, its console's log.

A guest can crash, can print its death, or can spin without a word where its kernel met an
instruction it lacks (RDTSCP after a move to Nehalem: seen in the lab, in ``oops_begin``).  So a
vCPU that is never blocked and stays within one cache line or two is taken for stuck, and the
console is read where xenconsoled keeps a log of it (``xenconsoled --log=guest``).
"""

import asyncio
import re
import time

from isthmus.errors import HypervisorError
from isthmus.guest.console import Kind, find_death
from isthmus.hypervisor.xen.host import INCOMING, Domain, parse_list
from isthmus.hypervisor.xen.runner import Runner, UnreachedError
from isthmus.values import Value

SAMPLES = 8
"""How many looks at its vCPUs a verdict needs at least."""

NEAR = 128
"""Within how many bytes the instructions of a loop that waits for ever lie."""

FAILED_LOOKS = 3
"""How many looks may fail in a watch before the host is taken for one that does not tell."""

CONSOLE_TAIL = 64 << 10
_RIP = re.compile(r"^rip: (?:[0-9a-f]{4}:)?([0-9a-f]{8,16})", re.MULTILINE)

# What a listing that failed does not name may be there all the same.
_LOOK = """
xl list || exit $?
echo --- ; n=0
while [ $n -lt {vcpus} ]; do xenctx {number} $n 2>/dev/null | grep '^rip:'; n=$((n+1)); done
echo ---
tail -c +$(({skip} + 1)) {log} 2>/dev/null | tail -c {tail}
"""

# xenconsoled names the log when the guest comes, and it comes under that name.
_LOG = "/var/log/xen/console/guest-{name}" + INCOMING + ".log"
_SIZE = "stat -c %s {log} 2>/dev/null || echo 0"


class Look(Value, frozen=True):
    """One look at a guest.

    Its row of ``xl list`` (None: there is none), where each vCPU stands, and what its console has
    said since it came.
    """

    domain: Domain | None
    positions: tuple[int, ...]
    console: str


class Evidence(Value, frozen=True):
    """What a watch found: whether the guest lives, how long it was watched (s), and why not."""

    alive: bool
    watched_s: float
    reason: str = ""


async def look(runner: Runner, name: str, number: int, vcpus: int, *, skip: int = 0) -> Look:
    """Look at a guest once.

    :param vcpus: of how many vCPUs to ask where they stand; the guest is paused for that.
    :param skip: how many bytes of its console's log are older than the guest's arrival.
    :raises HypervisorError: the host does not tell.
    """
    script = _LOOK.format(
        number=number, vcpus=vcpus, log=_LOG.format(name=name), skip=skip, tail=CONSOLE_TAIL
    )
    return look_from(await runner.told(script), name, number)


def look_from(text: str, name: str, number: int) -> Look:
    """Read what the script of :func:`look` says.

    A domain of that name with another number is not the guest: it was started anew.

    :raises HypervisorError: it is not what the script says.
    """
    listed, _, rest = text.partition("---\n")
    registers, _, console = rest.partition("---\n")
    domain = parse_list(listed).get(name)
    return Look(
        domain=domain if domain is not None and domain.number == number else None,
        positions=tuple(int(match[1], 16) for match in _RIP.finditer(registers)),
        console=console,
    )


async def console_size(runner: Runner, name: str) -> int:
    """How large the log is that the console of a guest of that name will go on with."""
    said = (await runner.told(_SIZE.format(log=_LOG.format(name=name)))).strip()
    return int(said) if said.isdigit() else 0


async def watch(
    runner: Runner, name: str, number: int, vcpus: int, *, seconds: float, skip: int = 0
) -> Evidence:
    """Watch a guest for ``seconds``, and until there were enough looks.

    It ends early once the console shows the guest at work: three looks with something new.  Where
    its vCPUs stand is asked only of a guest whose console is silent, since xenctx(8) pauses it.

    :raises HypervisorError: the host does not tell.
    """
    begun = time.monotonic()
    looks: list[Look] = []
    news = failed = 0
    speaks = True  # until it has had the time to
    while True:
        try:
            one = await look(runner, name, number, 0 if speaks else vcpus, skip=skip)
        except UnreachedError:
            raise
        except HypervisorError:
            # A tool of dom0 that fails tells nothing of the guest: look again, for a while.
            failed += 1
            if failed > FAILED_LOOKS:
                raise
            await asyncio.sleep(0.2)
            continue
        elapsed = time.monotonic() - begun
        if reason := dead(one):
            return Evidence(alive=False, watched_s=elapsed, reason=reason)
        speaks = bool(looks) and len(one.console) != len(looks[-1].console)
        news += speaks
        looks.append(one)
        if news >= 3:
            return Evidence(alive=True, watched_s=elapsed)
        if elapsed >= seconds and len(looks) > SAMPLES:
            reason = stuck(looks)
            return Evidence(alive=not reason, watched_s=elapsed, reason=reason)
        await asyncio.sleep(0.2)


def dead(one: Look) -> str:
    """Why the guest is dead by one look; empty if it does not show that."""
    death = find_death(one.console.encode())
    # That some program was killed may be its own affair, unless it met an instruction it lacks.
    if death is not None and (death.kind is not Kind.KILLED_BY_SIGNAL or "opcode" in death.trap):
        return death.headline
    if one.domain is None or one.domain.gone:
        return "the guest is gone"
    if one.domain.down:
        return f"the guest has {one.domain.down}"
    return ""


def stuck(looks: list[Look]) -> str:
    """Which vCPU stands in a loop without an end; empty if none does.

    A vCPU that waits in the hypervisor stands at one place, too, so only a guest that is never
    blocked, and uses up its time, is suspected.
    """
    seen = [one for one in looks if one.domain is not None and one.positions]
    if len(seen) < SAMPLES or any(one.domain.state[1] == "b" for one in seen if one.domain):
        return ""
    for vcpu, places in enumerate(zip(*(one.positions for one in seen), strict=False)):
        if len(places) >= SAMPLES and max(places) - min(places) < NEAR:
            return f"vCPU {vcpu} stays at {min(places):#x} and is never idle"
    return ""
