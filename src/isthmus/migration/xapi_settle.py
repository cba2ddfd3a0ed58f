"""What is seen of a guest that XAPI has moved, and what it means: looking, and a pure judgement.

A guest that stays in its pool has one record, which says where it runs.  One that changes its pool
has a record in each while it moves: XAPI makes the one at the destination ``Halted``, and destroys
the one at the source when the other runs (xen-api ``ocaml/xapi/import.ml`` and
``xapi_vm_migrate.ml``).
"""

from isthmus.hypervisor.xapi.address import parse
from isthmus.hypervisor.xapi.connection import Connection
from isthmus.hypervisor.xapi.failures import XapiGoneError
from isthmus.hypervisor.xapi.inventory import Guest, guest_of, inventory
from isthmus.hypervisor.xapi.records import NULL, PowerState
from isthmus.migration.decision import Copy, Decision, Situation
from isthmus.migration.phases import Phase
from isthmus.migration.record import Plan
from isthmus.migration.xapi_ends import Ends
from isthmus.values import Value


class Seen(Value, frozen=True):
    """What a pool says: whether it answered, its record of the guest, the UUID of its host."""

    answered: bool = True
    guest: Guest | None = None
    resident: str = ""

    @property
    def copy(self) -> Copy:
        """The state of what this pool has.

        A record that is halted is no copy: nothing runs, and no memory is kept.
        """
        if not self.answered:
            return Copy.UNREACHABLE
        if self.guest is None or self.guest.record.power_state is PowerState.HALTED:
            return Copy.DEAD
        if self.guest.record.power_state is PowerState.RUNNING:
            return Copy.RUNNING
        return Copy.HELD


class Look(Value, frozen=True):
    """Both ends at one time.  ``away`` is None where the guest stays in its pool.

    ``source`` and ``destination`` are the UUIDs of the hosts.
    """

    source: str
    destination: str
    home: Seen
    away: Seen | None = None

    @property
    def arrived(self) -> Seen:
        """What the destination's pool says."""
        return self.home if self.away is None else self.away

    @property
    def moving(self) -> bool:
        """Whether XAPI is moving it right now."""
        return any(
            seen.guest is not None and bool(seen.guest.record.moves)
            for seen in (self.home, self.arrived)
        )

    @property
    def copies(self) -> tuple[Copy, Copy]:
        """The state of the copy on the source and of that on the destination."""
        if self.away is not None:
            return self.home.copy, self.away.copy
        state = self.home.copy
        if state in {Copy.DEAD, Copy.UNREACHABLE}:
            return state, state
        # A suspended guest is on no host: it is where it was.
        if self.home.resident in {self.source, ""}:
            return state, Copy.DEAD
        if self.home.resident == self.destination:
            return Copy.DEAD, state
        return Copy.UNREACHABLE, Copy.UNREACHABLE

    @property
    def runs(self) -> tuple[bool, bool]:
        """Whether it runs on the source, and whether on the destination."""
        home, away = self.copies
        return home is Copy.RUNNING, away is Copy.RUNNING


def look(ends: Ends, plan: Plan) -> Look:
    """Ask both pools for the guest of a plan."""
    source, destination = parse(plan.source.address).target, parse(plan.destination.address).target
    home = _seen(ends.source, plan.source.domain)
    away = None if ends.one_pool else _seen(ends.destination, plan.destination.domain)
    return Look(source=source, destination=destination, home=home, away=away)


def situation(phase: Phase, seen: Look) -> Situation:
    """What :func:`isthmus.migration.decision.decide` judges.

    ``traceless``: XAPI lets the source go on only when the destination's domain is gone.
    """
    home, away = seen.copies
    return Situation(phase=phase, source=home, destination=away, traceless=True)


def told(seen: Look, decision: Decision | None = None) -> str:
    """What is seen, in words for the record and the operator."""
    if seen.away is None:
        words = f"the guest is {_state(seen.home)}" if seen.home.answered else _state(seen.home)
        if seen.home.resident and seen.home.resident not in {seen.source, seen.destination}:
            words += " on a third host"
    else:
        words = f"at the source {_state(seen.home)}, at the destination {_state(seen.away)}"
    return f"{words}: {decision.reason}" if decision else words


def _state(seen: Seen) -> str:
    if not seen.answered:
        return "the pool does not answer"
    return seen.guest.record.power_state.lower() if seen.guest else "gone"


def _seen(connection: Connection, uuid: str) -> Seen:
    try:
        guest = guest_of(connection, uuid)
        if guest is None or guest.record.resident_on == NULL:
            return Seen(guest=guest)
        host = inventory(connection).by_ref(guest.record.resident_on)
    except XapiGoneError:
        return Seen(answered=False)
    return Seen(guest=guest, resident=host.record.uuid)
