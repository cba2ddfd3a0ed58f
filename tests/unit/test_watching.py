"""What is seen of a guest after its move means life or death, and never the wrong one of them."""

import json
from collections.abc import Sequence
from pathlib import Path

import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from isthmus.cli.status import status
from isthmus.cli.watching import Duration, stay, unasked
from isthmus.cpu.named import qemu_models
from isthmus.divergence.evidence import GuestEvidence
from isthmus.errors import IsthmusError
from isthmus.guest.console import farewell, find_death
from isthmus.hypervisor.qemu.vcpus import Registers, positions
from isthmus.migration.death_notice import WatchRecord, describe
from isthmus.migration.preflight import preflight
from isthmus.migration.vigil import console_sample, keep_watch, qmp_event, read_watch, write_watch
from isthmus.migration.watching import (
    AGENT_S,
    STANDS_S,
    Event,
    Memory,
    Outlook,
    Sample,
    Sign,
    Verdict,
    step,
)

DATA = Path(__file__).parent / "data"
DEATH = (DATA / "console-6.1-phenom-to-nehalem.txt").read_bytes()


def vcpu(number: int = 0, at: str = "0x10", **more: object) -> Registers:
    spinning = Registers(number=number, at=at, ring=0, interrupts=False, halted=False)
    return spinning.replace(**more)


def watched(samples: Sequence[Sample], events: Sequence[Sequence[Event]] = ()) -> list[Verdict]:
    memory, verdicts = Memory(), []
    for number, sample in enumerate(samples):
        came = events[number] if number < len(events) else ()
        memory, verdict = step(memory, sample, came)
        verdicts.append(verdict)
    return verdicts


def looks(seconds: int, **what: object) -> list[Sample]:
    return [Sample(at=float(at), state="running").replace(**what) for at in range(0, seconds, 2)]


def last(samples: Sequence[Sample], *events: Event) -> Verdict:
    return watched(samples, [[]] * (len(samples) - 1) + [list(events)])[-1]


def test_a_guest_that_runs_lives() -> None:
    moving = [
        sample.replace(vcpus=(vcpu(at=hex(number)),)) for number, sample in enumerate(looks(600))
    ]
    assert {verdict.outlook for verdict in watched(moving)} == {Outlook.LIVES}


def test_a_vcpu_that_stands_in_its_kernel_with_interrupts_off_is_dead_after_a_while() -> None:
    verdicts = watched(looks(120, vcpus=(vcpu(),)))
    first = next(n for n, verdict in enumerate(verdicts) if verdict.outlook is Outlook.DIED)
    assert 2 * first == STANDS_S
    assert "vCPU 0 stands at 0x10" in verdicts[first].reason


@pytest.mark.parametrize(
    "innocent",
    [
        vcpu(ring=3),  # a program that loops
        vcpu(interrupts=True),  # idle=poll
        vcpu(halted=True, interrupts=True),  # idle
        vcpu(ring=3, interrupts=True),
    ],
)
def test_what_loops_or_idles_is_not_dead(innocent: Registers) -> None:
    assert last(looks(3600, vcpus=(innocent,))).outlook is Outlook.LIVES


def test_a_vcpu_that_moves_on_begins_anew() -> None:
    samples = looks(28, vcpus=(vcpu(),))
    samples.append(Sample(at=29, state="running", vcpus=(vcpu(at="0x14"),)))
    samples += [sample.replace(at=sample.at + 30) for sample in looks(28, vcpus=(vcpu(),))]
    assert last(samples).outlook is Outlook.LIVES


def test_a_parked_vcpu_is_no_death_but_all_of_them_are() -> None:
    parked = vcpu(number=1, halted=True)
    assert last(looks(120, vcpus=(vcpu(ring=3), parked))).outlook is Outlook.LIVES
    dead = last(looks(120, vcpus=(vcpu(halted=True), parked)))
    assert dead.outlook is Outlook.DIED and "every vCPU is halted" in dead.reason


def test_a_guest_that_somebody_holds_is_not_taken_for_a_standing_one() -> None:
    held = last(looks(120, vcpus=(vcpu(),), state="paused"))
    assert held.outlook is Outlook.HELD and not held.final
    assert last(looks(120, vcpus=(vcpu(),), state="debug")).outlook is Outlook.LIVES


def test_looks_that_failed_prove_nothing() -> None:
    blind = [Sample(at=float(at)) for at in range(600)]
    assert last(blind).outlook is Outlook.LIVES


@pytest.mark.parametrize(
    ("sample", "events", "outlook"),
    [
        (Sample(at=1, state="guest-panicked"), (), Outlook.DIED),
        (Sample(at=1, state="internal-error"), (), Outlook.DIED),
        (Sample(at=1, state="running"), (Event(at=1, sign=Sign.PANICKED),), Outlook.DIED),
        (Sample(at=1, state="running"), (Event(at=1, sign=Sign.WATCHDOG),), Outlook.DIED),
        (Sample(at=1, state="running", death="Kernel panic"), (), Outlook.DIED),
        (Sample(at=1, process_gone="killed"), (), Outlook.DIED),
        (Sample(at=1, state="shutdown"), (), Outlook.RESTARTED),
        (Sample(at=1, state="shutdown", farewell="shut-down"), (), Outlook.LEFT),
        (Sample(at=1, state="shutdown", farewell="restarted"), (), Outlook.LEFT),
        (Sample(at=1, state="running"), (Event(at=1, sign=Sign.RESTARTED),), Outlook.RESTARTED),
        (Sample(at=1), (Event(at=1, sign=Sign.STOPPED_BY_HOST),), Outlook.LEFT),
        (Sample(at=1, state="postmigrate"), (), Outlook.MOVED),
        (Sample(at=1), (Event(at=1, sign=Sign.MOVED),), Outlook.MOVED),
        (Sample(at=1, state="io-error"), (), Outlook.HELD),
        # A panic that restarts the guest is a death, not a restart.
        (Sample(at=1, death="Kernel panic"), (Event(at=1, sign=Sign.RESTARTED),), Outlook.DIED),
    ],
)
def test_every_end_has_its_name(
    sample: Sample, events: tuple[Event, ...], outlook: Outlook
) -> None:
    _, verdict = step(Memory(), sample, events)
    assert verdict.outlook is outlook
    assert verdict.final is (outlook not in {Outlook.LIVES, Outlook.HELD})


def test_a_silent_agent_is_a_warning_only_if_it_ever_answered() -> None:
    never = last(looks(600, agent=False))
    assert never.warnings == () and never.outlook is Outlook.LIVES
    once = [Sample(at=0, state="running", agent=True), *looks(600, agent=False)[1:]]
    verdicts = watched(once)
    assert not any(v.warnings for v in verdicts if once[verdicts.index(v)].at < AGENT_S)
    assert "silent" in verdicts[-1].warnings[0]
    assert verdicts[-1].outlook is Outlook.LIVES


def test_the_translator_is_heard() -> None:
    gone = last([Sample(at=0, state="running", translator_gone=True)])
    assert "isthmus status" in gone.warnings[0]
    met = [
        Sample(at=0, state="running", untranslated={"xop": 2}),
        Sample(at=2, state="running", untranslated={"xop": 5, "fma4": 1}),
    ]
    assert last(met).warnings == (
        "it met fma4 1 times, which nobody executes for it",
        "it met xop 3 times, which nobody executes for it",
    )


@given(
    st.lists(st.sampled_from(["0x1", "0x2", "0x3"]), min_size=1, max_size=400), st.integers(0, 1)
)
def test_memory_stays_small_and_moving_guests_live(places: list[str], ring: int) -> None:
    memory = Memory()
    for at, place in enumerate(places):
        sample = Sample(at=float(at), state="running", vcpus=(vcpu(at=place, ring=3 * ring),))
        memory, verdict = step(memory, sample)
        assert len(memory.standing) <= 2
        if ring:
            assert verdict.outlook is Outlook.LIVES


REGISTERS = """CPU#0
RAX=0000000000000000 RBX=0000000000000000 RCX=0 RDX=0
RIP=ffffffff81c0c8de RFL=00000246 [---Z-P-] CPL=0 II=0 A20=1 SMM=0 HLT=1
ES =0000 0000000000000000 ffffffff 00c00000
CPU#1
EIP=0000fff0 EFL=00000002 [-------] CPL=3 II=0 A20=1 SMM=0 HLT=0
"""


def test_the_registers_of_qemus_monitor_are_read() -> None:
    idle, other = positions(REGISTERS)
    assert idle == Registers(
        number=0, at="0xffffffff81c0c8de", ring=0, interrupts=True, halted=True
    )
    assert other == Registers(number=1, at="0xfff0", ring=3, interrupts=False, halted=False)
    assert positions("no registers") == ()


@pytest.mark.parametrize(
    ("console", "said"),
    [
        (b"[   12.0] reboot: Power down\r\n", "shut-down"),
        (b"reboot: System halted", "shut-down"),
        (b"reboot: Restarting system with command 'x'\n", "restarted"),
        (b"Kernel panic - not syncing: x\nRebooting in 10 seconds..", ""),
        (b"", ""),
    ],
)
def test_a_kernel_says_that_it_goes(console: bytes, said: str) -> None:
    assert farewell(console) == said


def test_the_console_tells_of_a_death_and_of_a_program_that_met_what_is_missing() -> None:
    assert console_sample(Sample(at=0), DEATH).death.startswith("Kernel panic")
    killed = b"traps: x[9] trap invalid opcode ip:1 sp:2 error:0 in x[1+2]\n"
    sample = console_sample(Sample(at=0), killed)
    assert not sample.death and "invalid opcode" in sample.casualty
    _, verdict = step(Memory(), sample.replace(state="running"))
    assert verdict.outlook is Outlook.LIVES and "a program in it died" in verdict.warnings[0]
    other = killed.replace(b"invalid opcode", b"divide error")
    assert not console_sample(Sample(at=0), other).casualty


@pytest.mark.parametrize(
    ("event", "sign"),
    [
        ({"event": "SHUTDOWN", "data": {"guest": True, "reason": ""}}, Sign.SHUT_DOWN),
        ({"event": "SHUTDOWN", "data": {"guest": True, "reason": "guest-reset"}}, Sign.RESTARTED),
        ({"event": "SHUTDOWN", "data": {"guest": False, "reason": "host-qmp-quit"}},
         Sign.STOPPED_BY_HOST),
        ({"event": "RESET", "data": {"guest": True, "reason": "guest-reset"}}, Sign.RESTARTED),
        ({"event": "RESET", "data": {"guest": False}}, Sign.STOPPED_BY_HOST),
        ({"event": "GUEST_PANICKED", "data": {"action": "pause"}}, Sign.PANICKED),
    ],
)  # fmt: skip
def test_qemus_events_become_signs(event: dict[str, object], sign: Sign) -> None:
    assert qmp_event(event, 1.0).sign is sign


class Script:
    """Eyes that see what a test says."""

    def __init__(self, samples: list[Sample], console: bytes = b"") -> None:
        self.samples = samples
        self.text = console

    async def look(self) -> tuple[Sample, tuple[Event, ...]]:
        return (self.samples.pop(0) if len(self.samples) > 1 else self.samples[0]), ()

    def console(self) -> bytes:
        return self.text


BEGUN = WatchRecord.begin("web", "Nehalem", "20261126-0000")


async def test_a_watch_ends_with_its_time_or_with_the_guest() -> None:
    ended, death = await keep_watch(
        Script([Sample(at=0, state="running")]), BEGUN, seconds=0.05, sample_s=0.01
    )
    assert ended.outlook is Outlook.LIVES and death is None and not ended.died
    gone, death = await keep_watch(
        Script([Sample(at=0, state="running"), Sample(at=1, death="Kernel panic")], DEATH),
        BEGUN, seconds=600, sample_s=0.01,
    )  # fmt: skip
    assert gone.died and death is not None
    assert any("read_tsc" in line for line in gone.console)


def phenom_dies_on_nehalem() -> tuple[WatchRecord, dict[str, object]]:
    shown, offer = qemu_models()["phenom"], qemu_models()["Nehalem"]
    verdict = preflight("web", GuestEvidence(shown=shown), "phenom", offer)
    known = {"shown": shown, "offer": offer, "findings": verdict.findings}
    return BEGUN.replace(outlook=Outlook.DIED, reason="Kernel panic"), known


def test_a_death_is_told_with_its_instruction_rule_and_cure() -> None:
    record, known = phenom_dies_on_nehalem()
    told = describe(
        record, death=find_death(DEATH), level_command="isthmus level phenom Nehalem", **known
    )
    assert "RDTSCP" in told.instruction
    assert told.rules[0].subject == "rdtscp" and told.rules[0].sure
    assert any("isthmus level phenom Nehalem" in line for line in told.advice)
    assert any("do not resume" in line for line in told.advice)


def test_a_death_without_a_word_names_what_preflight_had_warned_of() -> None:
    record, known = phenom_dies_on_nehalem()
    told = describe(record, death=None, **known)
    assert told.rules and not any(rule.sure for rule in told.rules)
    assert told.rules[-1].rule == "late-death"


async def test_a_death_ends_the_command_and_is_on_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("ISTHMUS_STATE", str(tmp_path))
    eyes = Script([Sample(at=1, state="running", death="Kernel panic - x")], DEATH)
    with pytest.raises(IsthmusError, match="died under watch"):
        await stay(eyes, BEGUN, seconds=60, as_json=True)
    printed = json.loads(capsys.readouterr().out)
    stored = read_watch(tmp_path / "migrations" / "20261126-0000.watch.json")
    assert printed["outlook"] == stored.outlook == Outlook.DIED
    assert stored.console


def test_status_tells_of_deaths_under_watch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ISTHMUS_STATE", str(tmp_path))
    monkeypatch.setenv("ISTHMUS_RUN", str(tmp_path / "run"))
    record, _ = phenom_dies_on_nehalem()
    write_watch(tmp_path / "migrations" / "1.watch.json", record)
    write_watch(tmp_path / "migrations" / "2.watch.json", BEGUN)
    (tmp_path / "migrations" / "3.watch.json").write_text("{")
    told = CliRunner().invoke(status, ["--no-recover"]).stdout
    assert told.count("under watch") == 1 and "Kernel panic" in told


def test_a_record_is_written_whole(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "x.watch.json"
    write_watch(path, BEGUN)
    assert read_watch(path) == BEGUN
    assert [entry.name for entry in path.parent.iterdir()] == ["x.watch.json"]


@pytest.mark.parametrize(
    ("word", "seconds"), [("90", 90), ("90s", 90), ("30m", 1800), ("1.5h", 5400), ("0", 0)]
)
def test_times_as_people_write_them(word: str, seconds: float) -> None:
    assert Duration().convert(word, None, None) == seconds


@pytest.mark.parametrize("word", ["", "soon", "-5m", "5 m", "9999h"])
def test_other_words_are_refused(word: str) -> None:
    import click

    with pytest.raises(click.BadParameter):
        Duration().convert(word, None, None)


def test_where_nothing_can_watch_a_move_that_succeeded_stays_a_success(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert unasked() is None
    assert "no virsh here" in capsys.readouterr().err
    virsh = tmp_path / "virsh"
    virsh.touch(mode=0o755)
    assert unasked() == 30 * 60
    assert not capsys.readouterr().err
