"""The stage: which engine, whose processes, and what the listener hears."""

import asyncio
import os
import subprocess
import sys
import zlib
from pathlib import Path
from typing import Self

import pytest

from isthmus.cpu.model import CpuModel
from isthmus.errors import EnvironmentLackError, InputError
from isthmus.hypervisor.qemu.binary import QemuBinary
from isthmus.hypervisor.qemu.engine import Accelerator, Trial
from isthmus.hypervisor.qemu.models import QemuCpus
from isthmus.qualification.demo import perform, plain, stage
from isthmus.qualification.demo.listener import Listener, cpuid_bits
from isthmus.qualification.demo.pace import EMULATED, QUICK, Pace
from isthmus.qualification.demo.pairs import KVM, PAIRS, pair_of
from isthmus.qualification.demo.result import Outcome

QEMU = QemuBinary(path=Path("qemu"), version=(7, 2, 0))


def cpus(accelerator: Accelerator, lacking: dict[str, frozenset[str]]) -> QemuCpus:
    model = CpuModel(name="a", source="test", vendor="AuthenticAMD", family=16, model=2, stepping=3)
    return QemuCpus(
        version="7.2.0",
        accelerator=accelerator,
        definitions={name: model.replace(name=name) for name in ("a", "b", "host")},
        unavailable={name: lacking.get(name, frozenset()) for name in ("a", "b", "host")},
    )


@pytest.mark.parametrize(
    ("kvm_runs", "lacking", "wanted", "chosen", "reason"),
    [
        (True, {}, "auto", "kvm", "a trial guest ran"),
        (True, {"b": frozenset({"sse4a"})}, "auto", "tcg", "b: sse4a"),
        (False, {}, "auto", "tcg", "emulation failure"),
        (True, {}, "tcg", "tcg", "asked for"),
    ],
)
async def test_the_engine_is_one_that_can_play_both_hosts(
    monkeypatch: pytest.MonkeyPatch,
    kvm_runs: bool,
    lacking: dict[str, frozenset[str]],
    wanted: str,
    chosen: str,
    reason: str,
) -> None:
    pretend(monkeypatch, kvm_runs, lacking)
    trial, found = await stage.choose_engine(QEMU, ("a", "b"), wanted)
    assert trial.accelerator == found.accelerator == chosen
    assert reason in trial.reason


def pretend(
    monkeypatch: pytest.MonkeyPatch, kvm_runs: bool, lacking: dict[str, frozenset[str]]
) -> None:
    def trial(_: QemuBinary, accelerator: Accelerator) -> Trial:
        reason = "a trial guest ran" if kvm_runs else "emulation failure"
        return Trial(accelerator=accelerator, works=kvm_runs, reason=reason)

    async def read(_: QemuBinary, accelerator: Accelerator) -> QemuCpus:
        return cpus(accelerator, lacking if accelerator == "kvm" else {})

    monkeypatch.setattr(stage, "try_accelerator", trial)
    monkeypatch.setattr(stage, "read_cpus", read)


async def test_kvm_that_was_asked_for_is_not_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    pretend(monkeypatch, kvm_runs=False, lacking={})
    with pytest.raises(EnvironmentLackError, match="emulation failure"):
        await stage.choose_engine(QEMU, ("a", "b"), "kvm")
    pretend(monkeypatch, kvm_runs=True, lacking={"a": frozenset({"3dnow"})})
    with pytest.raises(EnvironmentLackError, match="3dnow"):
        await stage.choose_engine(QEMU, ("a", "b"), "kvm")


async def test_hosts_must_be_real_models(monkeypatch: pytest.MonkeyPatch) -> None:
    pretend(monkeypatch, kvm_runs=False, lacking={})
    with pytest.raises(InputError, match="no CPU model"):
        await stage.choose_engine(QEMU, ("a", "nonesuch"))
    with pytest.raises(InputError, match="another CPU on every machine"):
        await stage.choose_engine(QEMU, ("a", "host"))


def test_only_our_own_processes_are_ended(tmp_path: Path) -> None:
    wait = "import sys; print(flush=True); sys.stdin.read()"
    ours = subprocess.Popen(
        [sys.executable, "-c", wait, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    # A process of somebody else that looks at the folder: its parent is not this process.
    start = (
        "import os, subprocess, sys\n"
        "child = subprocess.Popen([sys.executable, '-c', sys.argv[1], os.environ['LOOKS_AT']])\n"
        "print(child.pid, flush=True)\n"
        "child.wait()\n"
    )
    other = subprocess.Popen(
        [sys.executable, "-c", start, wait], env=os.environ | {"LOOKS_AT": str(tmp_path)},
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert other.stdout is not None
    theirs = int(next(line for line in other.stdout if line.strip()))
    stage.end_processes(tmp_path / "elsewhere")
    assert ours.poll() is None
    stage.end_processes(tmp_path)
    ours.wait(10)  # its input is still open: it did not end by itself
    os.kill(theirs, 0)  # it lives
    other.communicate("")


def record(number: int, body: str) -> bytes:
    line = f"isthmus1 {number} {body}".encode()
    return line + b" crc=%08x\n" % zlib.crc32(line)


async def test_the_listener_follows_a_guest_from_process_to_process(tmp_path: Path) -> None:
    def heard(hop: int) -> Path:
        (tmp_path / str(hop)).mkdir(exist_ok=True)
        return tmp_path / str(hop) / "payload.log"

    half = record(2, "beat n=1 mono=40000000 real=40000000 tsc=40 spin=0")
    heard(0).write_bytes(
        record(0, "start groups=sse4a beat_ms=20")
        + record(1, "beat n=0 mono=10000000 real=10000000 tsc=10 spin=0")
        + half[:9]
    )
    (tmp_path / "0" / "console.log").write_bytes(b"up\r\n")
    listener = Listener(tmp_path)
    await asyncio.sleep(0.05)
    assert listener.hop_times(1).guest_gap_ms is None
    heard(1).write_bytes(half[9:])
    (tmp_path / "1" / "console.log").write_bytes(b"\x1b[31mmoved\r\n")
    await asyncio.sleep(0.05)
    await listener.close()
    verdict = listener.verdict()
    assert verdict.ok, verdict.faults
    assert verdict.records == 3
    assert listener.hop_times(1).guest_gap_ms == 30.0
    assert listener.console() == ("up", "moved")


def test_bits_that_may_go_with_features() -> None:
    bits = cpuid_bits(frozenset({"sse4a", "rdtscp", "popcnt", "abm", "svm"}))
    assert bits[(0x80000001, 0, "ecx")] == 1 << 6 | 1 << 5 | 1 << 2
    assert bits[(0x80000001, 0, "edx")] == 1 << 27
    assert bits[(1, 0, "ecx")] == 1 << 23
    assert bits[(0x8000000A, 0, "edx")] == 0xFFFFFFFF
    assert cpuid_bits(frozenset()) == {}


class _Silent:
    """A guest that runs and says nothing, as its monitor sees it."""

    def __init__(self, state: str = "running") -> None:
        self.state = state

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        pass

    async def status(self) -> str:
        return self.state

    async def human(self, _: str) -> str:
        return "RIP=ffffffff81a01234 RFL=00000046"


async def test_a_guest_that_hangs_without_a_word_is_found_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from isthmus.hypervisor.qemu.process import ProcessIdentity, QemuProcess

    (tmp_path / "console.log").write_bytes(b"isthmus: guest is up\n")
    (tmp_path / "payload.log").touch()
    running = QemuProcess(identity=ProcessIdentity.of(os.getpid()), directory=tmp_path, command=())
    pace = Pace(hung_s=0.3, settle_s=0.01)
    listener = Listener(tmp_path)
    await listener.close()
    monkeypatch.setattr(plain.Monitor, "session", lambda _: _Silent())
    fate = await plain.watch_fate(running, listener, pace)
    assert fate.outcome is Outcome.HUNG
    assert "ffffffff81a01234" in fate.headline
    monkeypatch.setattr(plain.Monitor, "session", lambda _: _Silent("paused"))
    assert (await plain.watch_fate(running, listener, pace)).headline == "the guest is paused"


def test_pairs() -> None:
    assert pair_of("classic") == PAIRS["classic"] == ("phenom", "Penryn")
    assert pair_of(" EPYC , Nehalem ") == ("EPYC", "Nehalem")
    for text in ("", "phenom", "a,b,c", "a,", ",b"):
        with pytest.raises(InputError, match="not a pair"):
            pair_of(text)


def test_pairs_of_lab_hosts() -> None:
    assert pair_of(None) == PAIRS["classic"]
    assert pair_of(None, kvm=True) == KVM == ("phenom", "haswell")
    assert pair_of("epyc, kvm:opteron2", kvm=True) == ("epyc", "opteron2")
    for text, wrong in (
        ("classic", "not a pair"),
        ("", "not a pair"),
        ("phenom,Penryn", "Penryn: no such lab host"),
        ("phenom,kvm:phenom", "one lab host"),
    ):
        with pytest.raises(InputError, match=wrong):
            pair_of(text, kvm=True)


def test_emulated_hosts_are_given_more_time_in_everything() -> None:
    """A host in Bochs is a hundred times slower: no wait of the quick demo fits it."""
    for name in Pace.__struct_fields__:
        if name.endswith("_s"):
            assert getattr(EMULATED, name) >= 3 * getattr(QUICK, name), name


async def test_what_the_demo_on_lab_hosts_would_do_is_told_before_any_is_up(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(perform, "find_qemu", lambda _: QEMU)
    script = perform.Script(source="phenom", destination="haswell", kvm=True)
    plan = await perform.planned(script)
    assert (plan.source.name, plan.destination.name) == ("kvm:phenom", "kvm:haswell")
    assert (plan.source.vendor, plan.destination.vendor) == ("AuthenticAMD", "GenuineIntel")
    assert plan.engine == "kvm"
    assert "bochs" in plan.destination.brand
