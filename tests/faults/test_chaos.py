"""Random faults at random times, hundreds of them: one copy of the guest, whatever happens.

A guest goes there and back by the command line, levelled or translated and rewritten.  In each move
one to three faults are made, each at a random time after the journal has reached a random phase.
Then the operator's own commands put things right, and those are killed and run twice at once, too.

A campaign is repeated by its seed (it is printed), as far as the machine's own timing allows:
``ISTHMUS_CHAOS_SEED=7 ISTHMUS_CHAOS_MOVES=300 pytest -m slow -s tests/faults/test_chaos.py``.
"""

import asyncio
import os
import random
import signal
import tempfile
import threading
import time
from collections import Counter
from pathlib import Path

import chaos
import pytest

from isthmus.baseline.level import level
from isthmus.hypervisor.qemu import process
from isthmus.hypervisor.qemu.binary import find_qemu
from isthmus.hypervisor.qemu.engine import Accelerator
from isthmus.hypervisor.qemu.guests import Guest, GuestStore
from isthmus.hypervisor.qemu.models import read_cpus
from isthmus.hypervisor.qemu.monitor import Monitor
from isthmus.migration.hosts import Hosts, Machine
from isthmus.migration.phases import FINAL, Phase
from isthmus.migration.record import records
from isthmus.places import cache_folder
from isthmus.qualification.demo.listener import cpuid_bits
from isthmus.qualification.lab.image import build_image, command_line
from isthmus.qualification.payload.verdict import judge

MOVES = int(os.environ.get("ISTHMUS_CHAOS_MOVES", "40"))
SEED = int(os.environ.get("ISTHMUS_CHAOS_SEED", "0")) or random.SystemRandom().randrange(1, 1 << 31)
pytestmark = [pytest.mark.lab, pytest.mark.slow, pytest.mark.timeout(600 + 60 * MOVES)]

SOURCE, DESTINATION = "phenom", "Penryn"
TESTS = "rdtscp,sse4a,popcnt,lahf-lm,cx16"
HANG_S = 400.0
"""After which a command hangs: a monitor that is silent is given 30 s, and that a few times."""
PATIENCE_S = 180.0
DELAYS_S = {
    Phase.OBSERVED: 0.02, Phase.PREPARING: 0.4, Phase.PREPARED: 0.01, Phase.MOVING: 1.5,
    Phase.SWITCHED: 0.03, Phase.STARTING: 0.01, Phase.VERIFYING: 0.2, Phase.COMMITTING: 0.01,
}  # fmt: skip
"""By phase: how long after its begin a fault is made, at most."""
ORDER = list(DELAYS_S)
KINDS = [
    "kill mover", "kill mover", "kill source", "kill destination", "kill destination",
    "kill translator", "kill new translator", "stop mover", "stop source", "stop destination",
    "stop translator", "stop new translator", "fill run", "fill state", "no writing",
    "cut stream.sock", "cut qmp.sock of source", "cut qmp.sock of destination",
    "cut gdb.sock of source", "cut gdb.sock of destination", "second mover", "resume meanwhile",
    "interrupt",
]  # fmt: skip


class Campaign:
    """Guests that are moved and troubled, one after another."""

    def __init__(self, folder: Path, small: Path | None) -> None:
        self.folder = folder
        self.small = small
        self.random = random.Random(SEED)
        self.qemu = find_qemu(str(chaos.wrapped_qemu(folder)))
        self.cpus = asyncio.run(read_cpus(self.qemu, Accelerator.TCG))
        self.state = (small or folder) / "state"
        self.runs = [folder / "run", *([small / "run"] if small else [])]
        self.store = GuestStore(self.state, folder / "run")
        self.lives = chaos.Lives(self.store, self.runs)
        self.kept = folder / "kept"  # what a guest goes through
        self.image = build_image(cache=cache_folder())
        self.failures: list[str] = []
        self.counts: Counter[str] = Counter()
        self.timers: list[threading.Timer] = []
        self.others: list[chaos.Mover] = []
        self.number = 0
        self.serial = 0
        self.levelled = True
        self.disk: Path | None = None
        self.chosen = ""

    # What the operator does.

    def command(self, *words: str, run: Path | None = None) -> chaos.Mover:
        self.serial += 1
        environment = os.environ | {
            "ISTHMUS_STATE": str(self.state),
            "ISTHMUS_RUN": str(run or self.folder / "run"),
            "SAID": str(self.folder / f"said-{self.serial}"),
        }
        return chaos.Mover(self.store.journals, list(words), environment)

    def born(self) -> Guest:
        """A new guest that ticks."""
        self.number += 1
        self.levelled = self.random.random() < 0.5
        self.disk = self.folder / f"disk-{self.number}" if self.random.random() < 0.3 else None
        if self.disk is not None:
            self.disk.write_bytes(bytes(1 << 20))
        options = {"test": "all" if self.levelled else TESTS, "disk": int(self.disk is not None)}
        machine = Machine(
            kernel=self.image.kernel, initrd=self.image.initrd,
            command_line=command_line(options), disk=self.disk,
        )  # fmt: skip
        pool = [self.cpus.offered(host) for host in (SOURCE, DESTINATION)]
        hosts = Hosts(self.qemu, Accelerator.TCG, self.cpus, self.store)
        shown = level(pool).model if self.levelled else None
        guest = asyncio.run(hosts.start(f"g{self.number}", SOURCE, machine, shown=shown))
        assert chaos.wait_for(lambda: chaos.ticks(guest) >= 2, PATIENCE_S, 0.05)
        self.lives.qemu(guest.process.directory)
        return guest

    def end(self, guest: Guest) -> None:
        """Stop the guest; afterwards nothing of it is left."""
        stop = self.command("guest", "stop", guest.name)
        assert stop.ended(HANG_S) == 0, stop.text()
        for run in self.runs[1:]:
            for folder in (run / guest.name).glob("*"):
                if (left := self.lives.qemu(folder)) is not None:
                    left.kill()

    # What goes wrong.

    def fault(self, kind: str, guest: Guest, mover: chaos.Mover) -> str:
        """Make one fault; what was done, empty where there was nothing to do it to."""
        who = {"mover": mover.program.pid}
        folder = mover.destination()
        source = guest.process.identity
        destination = self.lives.qemu(folder) if folder else None
        words = kind.split()
        target = {
            "mover": process.ProcessIdentity.of(who["mover"]) if _lives(mover) else None,
            "source": source, "destination": destination,
            "translator": chaos.translator_of(guest.process.directory),
            "new translator": chaos.translator_of(folder) if folder else None,
        }.get(" ".join(words[1:]))  # fmt: skip
        match words[0]:
            case "kill" | "stop" | "interrupt" if kind != "interrupt" and target is None:
                return ""
            case "kill":
                assert target is not None
                chaos.send_signal(target, signal.SIGKILL)
            case "stop":
                assert target is not None
                # The last is longer than anybody waits for an answer of a monitor.
                (seconds,) = self.random.choices([0.05, 0.5, 2.0, 6.0, 45.0], [8, 8, 8, 4, 1])
                self.timers.append(chaos.stopped_for(target, seconds))
                return f"{kind} for {seconds} s"
            case "interrupt":
                mover.program.send_signal(self.random.choice([signal.SIGINT, signal.SIGTERM]))
            case "fill":
                if self.small is None or (words[1] == "run" and folder and folder.is_relative_to(
                    self.folder / "run")):  # fmt: skip
                    return ""
                chaos.fill(self.small)
            case "no":
                if destination is None or not _lives(mover):
                    return ""
                chaos.no_more_writing(process.ProcessIdentity.of(mover.program.pid))
            case "cut":
                end = source if kind.endswith("source") else destination
                if end is None or not chaos.cut(end, words[1]):
                    return ""
            case "second":
                self.others.append(self.command("migrate", guest.name, "--to", self.goal(guest)))
            case "resume":
                self.others.append(self.command("migrate", "--resume"))
        return kind

    def goal(self, guest: Guest) -> str:
        return DESTINATION if guest.host == SOURCE else SOURCE

    def troubled_move(self, guest: Guest) -> None:
        """One move with its faults, and all that is expected of it."""
        choose = self.random
        run = choose.choice(self.runs)
        words = ["migrate", guest.name, "--to", self.goal(guest), "--verify", "15"]
        words += ["--qemu", str(self.qemu.path)]
        if (rate := choose.choice([40, 80, 0])) != 0:
            words += ["--bandwidth", str(rate)]
        if choose.random() < 0.2:
            words += ["--through", str(self.kept)]
        faults = sorted(
            (
                ORDER.index(phase), choose.uniform(0, DELAYS_S[phase]), choose.choice(KINDS)
            )
            for phase in choose.choices(ORDER, k=choose.choice([1, 1, 1, 2, 2, 3]))
        )  # fmt: skip
        mover = self.command(*words, run=run)
        born = "levelled" if self.levelled else "unlevelled"
        born += " with a disk" if self.disk else ""
        way = " through a file" if "--through" in words else ""
        story = [f"{guest.name} {born} {words[3]}{way}"]
        made: list[tuple[str, Phase | None]] = []
        for wanted, delay, kind in faults:
            chaos.wait_for(lambda at=wanted: _reached(mover, at) or not _lives(mover), HANG_S)
            time.sleep(delay)
            phase = mover.phase()
            if phase in FINAL:
                break
            done = self.fault(kind, guest, mover)
            story.append(f"{done or f'({kind})'} at {phase}+{delay:.3f}")
            if done:
                made.append((kind, phase))
                self.counts[kind] += 1
        status = mover.ended(HANG_S)
        story.append(f"exit {status}")
        if (folder := mover.destination()) is not None:
            self.lives.qemu(folder)
        problems = self.after_the_move(guest, mover, status)
        if choose.random() < 0.5:
            self.let_go()
        self.recover(guest, mover, story, problems)
        torn = any(kind.startswith("fill") for kind, _ in made)
        now = self.judged(guest, made, problems, torn)
        text = "; ".join(story)
        print(f"  {text}" + (f"; {now}" if now else ""), flush=True)
        if problems:
            journal = mover.journal
            record = journal.read_text(errors="replace").rstrip("\0") if journal else ""
            steps = "\n".join(line for line in record.splitlines() if '"phase"' in line)
            said = "\n".join(one.text()[-1500:] for one in (mover, *self.others))
            self.failures.append("\n".join([text, *problems, said, steps]))
            print("FAILED\n" + self.failures[-1], flush=True)
        self.others.clear()
        if now:
            self.end(self.store.read(guest.name))

    def let_go(self) -> None:
        """Whatever was stopped goes on, the disk has space again."""
        for timer in self.timers:
            timer.cancel()
            timer.function(*timer.args)
        self.timers.clear()
        if self.small is not None:
            (self.small / "filler").unlink(missing_ok=True)

    def after_the_move(self, guest: Guest, mover: chaos.Mover, status: int | None) -> list[str]:
        """What is wrong with how the command ended, before anybody puts anything right."""
        problems = []
        if status is None:
            problems.append("the mover hangs")
            mover.program.kill()
            mover.program.wait()
        phase = mover.phase()
        if status == 0 and phase is not Phase.COMMITTED:
            problems.append(f"exit 0 in {phase}")
        if status == 4 and phase not in {Phase.ROLLED_BACK, Phase.ROLLING_BACK, None}:
            # Its record may be what is broken; then the truth is in the processes.
            (problems.append(f"exit 4 in {phase}") if "writ" not in mover.text() else None)
        if status not in {0, 1, 3, 4, 5, 6, 130, -9, None}:
            problems.append(f"exit {status}")
        return problems

    def recover(
        self, guest: Guest, mover: chaos.Mover, story: list[str], problems: list[str]
    ) -> None:
        """Put things right by the command line, and trouble that, too."""
        choose = self.random
        for other in self.others:
            if other.ended(HANG_S) is None:
                problems.append("a command beside the mover hangs")
                other.program.kill()
        troubled = []
        if chaos.pending(self.store):
            for _ in range(choose.choice([0, 0, 1, 2])):
                how = choose.choice(["two at once", "killed", "status killed"])
                first = self.command(*(["status"] if "status" in how else ["migrate", "--resume"]))
                if how == "two at once":
                    second = self.command(*choose.choice([["status"], ["migrate", "--resume"]]))
                    troubled.append(second)
                else:
                    time.sleep(choose.uniform(0.2, 2.0))
                    first.program.kill()
                troubled.append(first)
                story.append(f"resumer {how}")
                for one in troubled:
                    if one.ended(HANG_S) is None:
                        problems.append("a resumer hangs")
                        one.program.kill()
                        one.program.wait()
        self.let_go()
        last = self.command("status")
        if last.ended(HANG_S) != 0:
            problems.append(f"status: exit {last.program.returncode}: {last.text()[-1500:]}")
        self.others += [*troubled, last]
        self.chosen = ""
        if self.disk is not None and chaos.pending(self.store):
            self.choose(guest, mover, story, problems)

    def choose(
        self, guest: Guest, mover: chaos.Mover, story: list[str], problems: list[str]
    ) -> None:
        """Decide as an operator where a copy that is whole may be older than its disk."""
        folders = {"source": guest.process.directory, "destination": mover.destination()}
        alive = [name for name, folder in folders.items() if folder and self.lives.qemu(folder)]
        if not alive:
            return
        self.chosen = self.random.choice(alive)
        story.append(f"the operator chose the {self.chosen} of {alive}")
        using = self.command("migrate", "--resume", guest.name, "--use", self.chosen)
        if using.ended(HANG_S) != 0:
            problems.append(f"--use {self.chosen}: {using.text()[-1500:]}")
        self.others.append(using)

    def judged(
        self, guest: Guest, made: list[tuple[str, Phase | None]], problems: list[str], torn: bool
    ) -> str:
        """Look at everything; why the guest cannot go on, empty if it can."""
        store = self.store
        problems += [
            f"a traceback: {one.text()[-1500:]}" for one in self.others if "Traceback" in one.text()
        ]
        now = store.read(guest.name)
        living = [
            folder for folder in self.lives.folders(guest.name)
            if self.lives.qemu(folder) is not None
        ]  # fmt: skip
        if open_ones := chaos.pending(store):
            problems.append(f"not settled: {open_ones}")
        if (both := chaos.overlap_s(self.lives, self.folder / "events", guest.name)) > 0:
            problems.append(f"two copies ran at once for {both * 1000:.2f} ms")
        if not living:
            if not _may_be_lost(made):
                problems.append("the guest is lost")
            return "lost"
        if living != [now.process.directory]:
            problems.append(f"alive: {living}, the guest: {now.process.directory}")
        allowed = {one.pid for one in [self.lives.qemu(folder) for folder in living] if one}
        served = now.translator and chaos.translator_of(now.translator)
        allowed |= {served.pid} if served else set()
        if now.translator and not served:
            problems.append("its translator is missing")

        def left() -> list[process.ProcessIdentity]:
            return [one for one in process.mentioning(self.folder) if one.pid not in allowed]

        # One that was stopped while it started has yet to see that nobody needs it.
        if not chaos.wait_for(lambda: not left(), PATIENCE_S, 0.05):
            for one in left():
                command = Path(f"/proc/{one.pid}/cmdline").read_bytes().replace(b"\0", b" ")
                problems.append(f"left behind: {command[:300]!r}")
                one.kill()
        for folder in self.lives.folders(guest.name):
            sockets = [path.name for path in folder.iterdir() if path.is_socket()]
            if folder not in living and sockets:
                problems.append(f"left in {folder}: {sockets}")
        if self.kept.exists():
            problems.append("what the guest went through is still there")
            self.kept.unlink()
        if problems:
            return "not to be trusted any more"
        before = chaos.ticks(now)
        if not chaos.wait_for(lambda: chaos.ticks(now) >= before + 2, PATIENCE_S, 0.02):
            problems.append(f"the guest is {asyncio.run(_state(now))} and does not tick")
            return "silent"
        if self.chosen == "source":
            return "it may be older than its disk"
        if torn:
            return "its reports may be torn by a full disk"
        lost = self.cpus.offered(SOURCE).features - self.cpus.offered(DESTINATION).features
        verdict = judge(
            [path.read_bytes() for path in now.streams],
            cpuid_may_lose=None if self.levelled else cpuid_bits(lost),
        )
        if not verdict.ok:
            problems.append(f"judged: {verdict.faults[:5]}")
        return "long enough" if now.hops >= 8 or problems else ""


def _lives(mover: chaos.Mover) -> bool:
    return mover.program.poll() is None


def _reached(mover: chaos.Mover, wanted: int) -> bool:
    phase = mover.phase()
    if phase is None:
        return False
    return phase not in ORDER or ORDER.index(phase) >= wanted


def _may_be_lost(made: list[tuple[str, Phase | None]]) -> bool:
    """Whether the faults have killed the last whole copy, or may have."""
    killed = {kind for kind, _ in made}
    if {"kill source", "kill destination"} <= killed or "kill source" in killed:
        whole = {Phase.VERIFYING, Phase.COMMITTING, Phase.COMMITTED}
        return len(killed) > 1 or ("kill source", None) in made or not any(
            kind == "kill source" and phase in whole for kind, phase in made
        )  # fmt: skip
    return any(
        kind == "kill destination" and phase in {Phase.COMMITTING, Phase.COMMITTED}
        for kind, phase in made
    )


async def _state(guest: Guest) -> str:
    async with Monitor.session(guest.process.observe) as monitor:
        return await monitor.status()


def test_one_copy_lives_whatever_happens() -> None:
    # What is ignored here would be ignored by the commands, too, as it is in a job of a shell.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    print(f"\nISTHMUS_CHAOS_SEED={SEED} ISTHMUS_CHAOS_MOVES={MOVES}", flush=True)
    with tempfile.TemporaryDirectory(prefix="ic-") as name:
        folder = Path(name)
        with chaos.small_disk(folder / "d", 24) as small:
            campaign = Campaign(folder, small)
            try:
                done = 0
                while done < MOVES:
                    guest = campaign.born()
                    while done < MOVES and guest.name in campaign.store.names():
                        campaign.troubled_move(campaign.store.read(guest.name))
                        done += 1
                final = [record for _, record in records(campaign.store.journals)]
            finally:
                campaign.let_go()
                campaign.lives.close()
                for left in process.mentioning(folder):
                    left.kill()
    print(f"{done} moves, {dict(campaign.counts)}")
    print(Counter(str(record.phase) for record in final))
    failed = "\n\n".join([f"ISTHMUS_CHAOS_SEED={SEED}", *campaign.failures])
    assert campaign.failures == [], failed
