"""Serving one guest, holding it between two instructions, and leaving it as it was."""

import asyncio
import time
from collections import Counter

from isthmus.translate.outside.lookout import Lookout
from isthmus.translate.outside.operand import Pages
from isthmus.translate.outside.status import Tally, TranslatorStatus
from isthmus.translate.outside.trap import TrapReader, full, read_registers
from isthmus.translate.outside.work import Work
from isthmus.translate.registers import RIP
from isthmus.translate.rsp import (
    SIGINT,
    SIGTRAP,
    Stop,
    Stub,
    StubGoneError,
    write_memory,
    write_register,
)
from isthmus.translate.vectors import (
    Island,
    NoEntryError,
    Vectors,
    find_vectors,
    unchanged,
)

SPURIOUS_LIMIT = 1000
HOLD_TRIES, HOLD_DOUBLINGS = 500, 12
_STAND_S, _UNHEARD_S = 0.25, 2.0
# Between two looks at a guest without traps, and at one without an entry: where they do not stop
# it, where they do.
LOOK_S, LOST_S = 1.0, 0.2
STOP_LOOK_S, STOP_LOST_S = 5.0, 0.5
SETTLED_S = 30.0  # a kernel that has just come replaces its first table by another
TRUST_S = 0.25  # how long a look is good for


class Translator:
    """Serves one guest through one stub connection; ``lookout`` looks without stopping it."""

    def __init__(self, stub: Stub, lookout: Lookout | None = None) -> None:
        self.stub = stub
        self._lookout = lookout
        self.vectors: Vectors | None = None
        self.tally = Tally()
        self.problem = ""
        self.standing = 0
        self._pages = Pages(stub)
        self._reader = TrapReader(stub, self._pages)
        self._work = Work(stub, self.tally, self._pages)
        self._padding = b""
        self._inserted = False
        self._loop: asyncio.Task[None] | None = None
        self._holding = False
        self._busy = False
        self._lost = False  # it was armed, and the entry went away
        self._overstepped = False  # a step over IRETQ ends only at the next trap
        self._looking = False  # we have interrupted the guest for a look
        self._looked = 0.0
        self._stops = 0  # that were reported
        self._changed = -SETTLED_S  # when it was found to take #UD elsewhere
        self._failures = 0  # to find an entry, since

    async def arm(self) -> Vectors:
        """Find the #UD entry of the stopped guest and break there; does not resume it.

        :raises NoEntryError: the guest has none that can be used.
        :raises StubGoneError: QEMU went away, or refuses.
        """
        if self._loop is not None:
            await self.hold()
        await self._remove()
        # Breakpoints of a translator that was killed would be reported as ours: "?" clears them.
        await self.stub.ask(b"?")
        self._forget()
        self.vectors = await find_vectors(self.stub)
        await self._insert()
        self._looked, self._lost = time.monotonic(), False
        self.problem = ""
        return self.vectors

    def resume(self) -> None:
        """Let the guest run and serve it until :meth:`hold`."""
        self._holding = False
        self.standing = 0
        self._reader.thread = b""
        self.stub.go()
        if self._loop is None or self._loop.done():
            self._loop = asyncio.create_task(self._serve())

    async def hold(self) -> None:
        """Stop the guest between two instructions and promise not to resume it.

        What was written into the guest is taken out, so that it can leave as it came.  The guest is
        left in QEMU's run state "paused", since one in "debug" cannot be loaded anywhere.

        :raises StubGoneError: QEMU went away, or the guest cannot be stopped outside a trap.
        """
        for attempt in range(HOLD_TRIES):
            await self._stop()
            if self.problem or not await self._in_between():
                break
            # Let it get out of there: run it for a moment, longer each time, since on a slow host
            # the order to stop arrives with that to run, and nothing is executed.
            self.stub.go()
            self._loop = asyncio.create_task(self._serve())
            await asyncio.sleep(0.0002 * 2 ** (attempt % HOLD_DOUBLINGS))
        else:
            raise StubGoneError("the guest does not leave its #UD entry")
        await self._remove()

    async def detach(self) -> None:
        """Leave the guest for good, running if it ran."""
        await self._notice()
        running = self.running
        await self.hold()
        self.vectors = None
        if running:
            self.stub.go()
        await self.stub.close()

    async def release(self) -> None:
        """Let a held guest go on: break and write again, then run.

        :raises NoEntryError: it was never armed.
        """
        if self.vectors is None and not self._lost:
            raise NoEntryError("the translator is not armed", remedy="arm it first")
        if self.vectors is not None and not self._inserted:
            await self._insert()
        self.resume()

    @property
    def translated(self) -> Counter[str]:
        """Instructions done, by mnemonic."""
        return self.tally.translated

    @property
    def running(self) -> bool:
        """Whether the guest runs and is served."""
        return self._loop is not None and not self._loop.done() and not self.standing

    def status(self) -> TranslatorStatus:
        """The counters."""
        tally = self.tally
        rate, share = tally.recent()
        return TranslatorStatus(
            armed=self.vectors is not None,
            running=self.running,
            traps=tally.traps,
            translated=dict(tally.translated),
            passed=tally.passed,
            lacking=dict(tally.lacking),
            refused=dict(tally.refused),
            us_per_instruction=tally.us_per_instruction,
            problem=self.problem,
            faulted=tally.faulted,
            spurious=tally.spurious,
            standing=self.standing,
            sites=tally.sites.shown(),
            processes=tally.processes.shown(),
            rate_hz=round(rate, 3),
            busy_share=round(share, 6),
            busy_s=round(tally.busy_s, 6),
            stop_us=tally.stop_ns / 1000,
            entry=f"{self.vectors.entry:#x}" if self.vectors else "",
            since=round(tally.since, 3),
        )

    async def _stop(self) -> None:
        """End the serving loop with the guest stopped."""
        if self._loop is None:
            return
        self._holding = True
        if not self._busy:
            self.stub.interrupt()
        while not self._loop.done():
            patience_s = _STAND_S if self.standing else _UNHEARD_S
            await asyncio.wait({self._loop}, timeout=patience_s)
            # Where it stands the interrupt goes unheard.
            heard = self._loop.done() or self._busy
            if not heard and (self.standing or await self._stands()):
                self._loop.cancel()
                await asyncio.wait({self._loop})
                await self.stub.settle()
        if not self._loop.cancelled():
            self._loop.result()
        self._loop = None

    async def _stands(self) -> bool:
        """Whether somebody else has stopped it, and nobody told us: QEMU 8.1 and later do not."""
        if self._lookout is None or self._busy:
            return False
        seen = await self._lookout.look(self.vectors)
        return seen is not None and not seen.running and not self._busy

    async def _in_between(self) -> bool:
        """Whether some vCPU was stopped where it cannot be left.

        That is at the #UD entry, with an exception on its stack that only we can end, or on the
        bytes that we have written into the guest.
        """
        if self.vectors is None:
            return False
        self._reader.thread = b""
        for vcpu in self.vectors.vcpus:
            answers = await self.stub.ask(b"Hgp1.%x" % (vcpu.number + 1), b"g")
            rip = read_registers(answers[-1]).rip
            if self.vectors.ours(rip):
                return True
        return False

    async def _insert(self) -> None:
        vectors = self._known()
        island = vectors.island
        if island is not None:
            content = island.content()
            self._padding = island.padding(await self.stub.memory(island.address, len(content)))
            (answer,) = await self.stub.ask(write_memory(island.address, content))
            if answer != b"OK":
                raise StubGoneError("the stub does not write the guest's memory")
        (answer,) = await self.stub.ask(b"Z1,%x,1" % vectors.entry)
        if answer != b"OK":
            raise StubGoneError("the stub sets no breakpoint at the guest's #UD entry")
        self._inserted = True

    async def _remove(self) -> None:
        if self.vectors is None or not self._inserted:
            return
        requests = [b"z1,%x,1" % self.vectors.entry]
        island = self.vectors.island
        if island is not None and self._padding:
            content = island.content()
            # Where another kernel has come since, those bytes are not ours any more.
            if await self.stub.memory(island.address, len(content)) == content:
                requests.append(write_memory(island.address, self._padding))
        await self.stub.ask(*requests)
        self._inserted = False

    def _forget(self) -> None:
        """The guest is another one, or was elsewhere."""
        self._reader.forget()
        self._work.forget()
        self._pages.forget()

    async def _look(self) -> bool:
        """Whether the stopped guest takes #UD where it did; else find out where it does now.

        While it has no entry, between a reboot and the new kernel, it is looked at often.
        """
        self._looked, self._looking = time.monotonic(), False
        if self.vectors is not None and await unchanged(self.stub, self.vectors):
            self._reader.thread = b""
            self._pages.doubt()
            return True
        self._forget()
        await self._remove()
        self.vectors, self._lost = None, True
        try:
            self.vectors = await find_vectors(self.stub)
            await self._insert()
        except NoEntryError as error:
            self.problem = str(error)
            self._failures += 1
        else:
            self.problem, self._lost, self._failures = "", False, 0
            self._changed = time.monotonic()
        self._reader.thread = b""
        return False

    async def _watch(self) -> None:
        """Look at the guest now and then: it may be another one by now.

        Only for one that has changed, or without a lookout, the guest is interrupted.
        """
        while True:
            await asyncio.sleep(self._pause_s())
            if self._holding:
                continue
            if self._lookout is not None:
                if not await self._notice():
                    continue
            elif time.monotonic() - self._looked < self._pause_s():
                continue
            if not (self._looking or self._busy or self._holding or self.standing):
                self._looking = True
                self.stub.interrupt()

    async def _notice(self) -> bool:
        """Look without stopping it; whether it runs, and takes #UD elsewhere than is known.

        One that was stopped by somebody and let go on again tells nobody of the latter.
        """
        stops = self._stops
        seen = await self._lookout.look(self.vectors) if self._lookout is not None else None
        if seen is None or not seen.running:
            return False
        if stops == self._stops:
            self.standing = 0
        return seen.differs

    def _pause_s(self) -> float:
        """How long not to look.

        One that has an entry, but none that can be used, is stopped for that ever more rarely.
        """
        look_s, lost_s = (LOOK_S, LOST_S) if self._lookout else (STOP_LOOK_S, STOP_LOST_S)
        if self._lost:
            return float(min(lost_s * 2 ** min(self._failures, 8), STOP_LOOK_S))
        return lost_s if time.monotonic() - self._changed < SETTLED_S else look_s

    def _known(self) -> Vectors:
        assert self.vectors is not None
        return self.vectors

    async def _serve(self) -> None:
        """Serve stops until told to hold."""
        in_a_row = 0
        watch = asyncio.create_task(self._watch())
        try:
            while True:
                stop = await self.stub.stopped()
                self._stops += 1
                if stop.signal != SIGTRAP:
                    if self._looking and stop.signal == SIGINT and not self._holding:
                        self._busy = True
                        await self._look()
                        self._busy = False
                        if not self._holding:
                            self.stub.go()
                            continue
                    self._looking = False
                    self.standing = stop.signal
                    if self._holding:
                        return
                    continue  # somebody else's stop: whoever made it may end it
                self.standing = 0
                begun = time.perf_counter_ns()
                self._busy = True
                translated = await self._trap(stop)
                self._busy = False
                if translated is not None:
                    self.tally.spent(time.perf_counter_ns() - begun, translated=translated)
                in_a_row = in_a_row + 1 if translated is None else 0
                if in_a_row > SPURIOUS_LIMIT:
                    self.problem = "the guest stops without a #UD, again and again"
                    return
                if self._holding:
                    if self.standing:
                        return
                    # Stop again, this time not in a trap.
                    self.stub.interrupt()
        except StubGoneError as error:
            self.problem = str(error)
        finally:
            watch.cancel()

    async def _trap(self, stop: Stop) -> bool | None:
        """Serve one stop and resume; whether an instruction was translated, None if no #UD."""
        if self._looking:  # the interrupt came too late to be one
            self._looking, self._looked = False, 0.0
        trap = await self._reader.read(stop, self.vectors) if self.vectors else None
        if trap is None:
            if not self.vectors:
                await self._look()
            self.tally.spurious += 1
            self.stub.go()
            return None
        believable = trap.believable
        if (not believable or time.monotonic() - self._looked > TRUST_S) and not await self._look():
            # Found anew: if it was a #UD all the same, the vCPU stops here again.
            self.tally.spurious += 1
            self.stub.go()
            return None
        if self._reader.thread != stop.thread:  # the look has selected another vCPU
            await self.stub.ask(b"Hg" + full(stop.thread))
            self._reader.thread = stop.thread
        self.tally.traps += 1
        requests = await self._work.do(trap, self._known(), stop.thread) if believable else None
        if requests is None:
            self.tally.passed += 1
            await self._pass(stop)
            return False
        if self._holding:
            await self._step_out(requests)
        elif self.tally.wants_stop:
            await self._step_timed(requests)
        else:
            self.stub.go(*requests)
        return True

    async def _step_timed(self, requests: list[bytes]) -> None:
        """Complete a trap by one single step, and count how long QEMU takes to resume and stop."""
        begun = time.perf_counter_ns()
        stepped = await self.stub.step(full(self._reader.thread), *requests)
        if stepped.signal == SIGTRAP:
            self.tally.stop(time.perf_counter_ns() - begun)
            self.stub.go()
        else:  # somebody else stopped the guest in the middle
            self.standing = stepped.signal

    async def _step_out(self, requests: list[bytes]) -> None:
        """Complete a trap by single steps, so that the vCPU stands in the guest's own code.

        Run freely towards a stop it would be stopped on its way out, or in its next trap: on a slow
        host always, where a guest executes a few instructions between two traps of 40 ms.
        """
        if self._overstepped and self._work.after is not None:
            stopped = await self.stub.run_to(self._work.after, *requests)
            self._reader.thread = b""  # it may be another vCPU's
            if stopped.signal != SIGTRAP:
                self.standing = stopped.signal
                return
            self.stub.pause()
            return
        for _ in range(len(Island.PIECES)):
            stepped = await self.stub.step(full(self._reader.thread), *requests)
            requests = []
            if stepped.signal != SIGTRAP:
                self.standing = stepped.signal
                return
            (answer,) = await self.stub.ask(b"g")
            rip = read_registers(answer).rip
            # KVM steps by TF, which IRETQ takes from the frame: it is in its next trap by now.
            self._overstepped = self._overstepped or rip == self._known().entry
            if not self._leaving(rip):
                break
        self.stub.pause()

    def _leaving(self, rip: int) -> bool:
        vectors = self._known()
        return rip == vectors.iretq or (vectors.island is not None and vectors.island.covers(rip))

    async def _pass(self, stop: Stop) -> None:
        """Let the guest's own handler run: past the breakpoint at its first instruction."""
        vectors = self._known()
        if vectors.after is not None:
            self.stub.go(write_register(RIP, vectors.after.to_bytes(8, "little")))
            return
        entry = vectors.entry
        stepped = await self.stub.step(full(stop.thread), b"z1,%x,1" % entry)
        if stepped.signal == SIGTRAP:
            self.stub.go(b"Z1,%x,1" % entry)
        else:  # somebody else stopped the guest in the middle
            await self.stub.ask(b"Z1,%x,1" % entry)
            self.standing = stepped.signal
