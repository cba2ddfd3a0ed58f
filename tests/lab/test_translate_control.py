"""Commanding a translator: hold and resume under fire, other people's stops, crashes.

The guest is the small one of the bench: 64-bit code in a loop, up within milliseconds.
"""

import asyncio
import contextlib
import subprocess
import sys
import time
from pathlib import Path

import pytest
from msgspec.structs import replace
from small_guest import PATIENCE_S, in_its_loop, until

from isthmus.hypervisor.qemu.binary import find_qemu
from isthmus.hypervisor.qemu.monitor import Monitor
from isthmus.translate.outside import Lookout, Translator
from isthmus.translate.outside import lookout as lookout_module
from isthmus.translate.outside import translator as translator_module
from isthmus.translate.registers import Registers
from isthmus.translate.rsp import SIGINT, Stub
from isthmus.translate.service import TranslatorClient, TranslatorError, spawn
from isthmus.translate.vectors import NoEntryError

pytestmark = [pytest.mark.lab, pytest.mark.timeout(400)]

SOURCE = Path(__file__).parents[2] / "bench" / "trap_guest.S"
IDLE, EXTRQ, RDTSCP, UD2 = 0, 1, 2, 3
RBX = 1


@pytest.fixture(scope="module")
def rom(tmp_path_factory):
    folder = tmp_path_factory.mktemp("rom")
    subprocess.run(["gcc", "-c", "-o", folder / "o", SOURCE], check=True)
    subprocess.run(
        ["objcopy", "-O", "binary", "-j", ".text", folder / "o", folder / "bin"], check=True
    )
    path = folder / "rom"
    path.write_bytes((folder / "bin").read_bytes().ljust(0x1000, b"\0").rjust(64 << 10, b"\xf4"))
    return path


@pytest.fixture
async def folder(rom, tmp_path_factory):
    """The folder of a running small guest."""
    home = tmp_path_factory.mktemp("s")
    qemu = subprocess.Popen(
        [
            find_qemu().path, "-accel", "tcg", "-cpu", "Penryn", "-M", "pc", "-m", "16",
            "-bios", rom, "-nodefaults", "-no-user-config", "-display", "none",
            "-chardev", f"socket,id=gdb,path={home}/gdb.sock,server=on,wait=off",
            "-gdb", "chardev:gdb",
            "-chardev", f"socket,id=qmp,path={home}/qmp.sock,server=on,wait=off",
            "-mon", "chardev=qmp,mode=control",
            "-chardev", f"socket,id=look,path={home}/look.sock,server=on,wait=off",
            "-mon", "chardev=look,mode=control",
        ],
    )  # fmt: skip
    (home / "pid").write_text(str(qemu.pid))
    try:
        await in_its_loop(home, *loop_of(rom))
        yield home
    finally:
        qemu.kill()
        qemu.wait()


def loop_of(rom):
    """Where the guest's idle loop is: from its first comparison to its jump back."""
    code = rom.read_bytes()
    begin = code.index(b"\x83\xfb\x01")
    base = (1 << 32) - len(code)
    return base + begin, base + code.index(b"\x90\xeb", begin) + 2


@contextlib.asynccontextmanager
async def armed(home, mode):
    stub = await Stub.connect(home / "gdb.sock")
    await stub.ask(b"P%x=%s" % (RBX, mode.to_bytes(8, "little").hex().encode()))
    translator = Translator(stub, Lookout(home / "look.sock"))
    await translator.arm()
    try:
        yield translator
    finally:
        await stub.close()


def done(translator):
    return sum(translator.translated.values())


async def memory(monitor, home, address, length):
    path = home / "seen"
    command = f'memsave {address:#x} {length} "{path}"'
    await monitor.execute("human-monitor-command", {"command-line": command})
    return path.read_bytes()


@pytest.mark.parametrize("overstepped", [False, True])
@pytest.mark.parametrize("mode", [EXTRQ, RDTSCP])
async def test_holds_between_two_instructions(folder, mode, overstepped):
    """Under KVM as well, where a step over IRETQ ends only at the next trap."""
    async with armed(folder, mode) as translator, Monitor.session(folder / "qmp.sock") as monitor:
        translator._overstepped = overstepped
        vectors = translator.vectors
        assert vectors.island is not None
        for _ in range(30):
            before = done(translator)
            await translator.release()
            await until(lambda before=before: done(translator) > before + 3)
            await translator.hold()
            assert not translator.problem
            assert await monitor.status() == "paused"
            found = await memory(monitor, folder, vectors.island.address, 13)
            assert found == b"\xcc" * 13
            (answer,) = await translator.stub.ask(b"g")
            assert not vectors.ours(Registers(bytes.fromhex(answer.decode())).rip)
            held = done(translator)
            await asyncio.sleep(0.005)
            assert done(translator) == held


async def test_a_clock_goes_only_forward(folder):
    async with armed(folder, RDTSCP) as translator:
        await translator.release()
        values = []
        for _ in range(20):
            before = done(translator)
            await until(lambda before=before: done(translator) > before + 2)
            await translator.hold()
            (answer,) = await translator.stub.ask(b"g")
            registers = Registers(bytes.fromhex(answer.decode())).general
            values.append(registers[3] << 32 | registers[0])
            await translator.release()
        assert values == sorted(set(values))


async def test_somebody_elses_stop_is_not_answered(folder):
    async with armed(folder, EXTRQ) as translator, Monitor.session(folder / "qmp.sock") as monitor:
        await translator.release()
        await until(lambda: done(translator) > 3)
        while not translator.standing:
            # In the middle of a trap QEMU takes no notice of a "stop"; see docs/translation.md.
            await monitor.execute("stop")
            await asyncio.sleep(0.01)
        assert translator.standing == SIGINT
        before = done(translator)
        await asyncio.sleep(0.2)
        assert (done(translator), await monitor.status()) == (before, "paused")
        assert not translator.running
        await monitor.execute("cont")
        await until(lambda: done(translator) > before + 3)
        assert not translator.problem


async def test_a_look_swallows_nobodys_stop(folder, monkeypatch):
    """It is looked at all the time here; each stop and each "cont" of the operator has to count."""
    monkeypatch.setattr(translator_module, "LOOK_S", 0.0)
    monkeypatch.setattr(lookout_module, "LOOK_TIMEOUT_S", 60.0)  # a busy machine is no fault
    looks = []
    real = Lookout.look

    async def look(self, vectors):
        looks.append(await real(self, vectors))
        return looks[-1]

    monkeypatch.setattr(Lookout, "look", look)
    async with armed(folder, IDLE) as translator, Monitor.session(folder / "qmp.sock") as monitor:
        await translator.release()
        for _ in range(40):
            await monitor.execute("stop")
            await until(lambda: not translator.running)
            await asyncio.sleep(0.01)
            assert (await monitor.status(), translator.running) == ("paused", False)
            await monitor.execute("cont")
            await until(lambda: translator.running)  # nobody tells, so it has to be seen
            assert await monitor.status() == "running"
        assert len(looks) > 80
        assert not any(seen is None or seen.differs for seen in looks)
        await translator.hold()
        assert not translator.problem


async def test_a_guest_that_somebody_let_go_on_goes_on_when_it_is_left(folder):
    """Detaching leaves a guest as it is: running, though the last that was told is its stop."""
    async with armed(folder, IDLE) as translator, Monitor.session(folder / "qmp.sock") as monitor:
        await translator.release()
        await monitor.execute("stop")
        await until(lambda: translator.standing)
        await monitor.execute("cont")
        await translator.detach()
        assert await monitor.status() == "running"


async def test_holds_what_somebody_else_has_stopped_without_a_word(folder):
    """QEMU from 8.1 on reports a stop only to whoever had let the guest run."""
    async with armed(folder, IDLE) as translator, Monitor.session(folder / "qmp.sock") as monitor:
        told = translator.stub.stopped

        async def stopped():
            while (stop := await told()).signal == SIGINT:
                pass
            return stop

        translator.stub.stopped = stopped
        await translator.release()
        await monitor.execute("stop")
        await asyncio.sleep(0.1)
        assert translator.running, "it has not been told"
        async with asyncio.timeout(PATIENCE_S):
            await translator.hold()
        assert await monitor.status() == "paused"


async def test_looks_at_a_monitor_that_is_none(tmp_path, folder):
    """Nobody there, or somebody else in it: nothing is seen, and nothing stalls."""
    assert await Lookout(tmp_path / "none").look(None) is None
    async with asyncio.timeout(PATIENCE_S), Monitor.session(folder / "look.sock"):
        assert await Lookout(folder / "look.sock").look(None) is None
    async with asyncio.timeout(PATIENCE_S):
        while (seen := await Lookout(folder / "look.sock").look(None)) is None:
            await asyncio.sleep(0.05)
    assert seen.differs


async def test_holds_what_somebody_else_has_stopped(folder):
    async with armed(folder, EXTRQ) as translator, Monitor.session(folder / "qmp.sock") as monitor:
        await translator.release()
        while not translator.standing:
            await monitor.execute("stop")
            await asyncio.sleep(0.01)
        await translator.hold()
        assert await monitor.status() == "paused"
        await translator.release()
        before = done(translator)
        await until(lambda: done(translator) > before + 3)
        await translator.hold()


async def test_a_guest_without_padding_is_served_too(folder):
    async with armed(folder, RDTSCP) as translator:
        await translator.hold()
        translator.vectors = replace(translator.vectors, island=None)
        await translator.release()
        await until(lambda: done(translator) > 20)
        await translator.hold()
        assert not translator.problem
        (answer,) = await translator.stub.ask(b"m%x,2" % translator.vectors.iretq)
        assert answer == b"48cf"


@pytest.mark.parametrize("nop", [True, False])
async def test_what_is_not_ours_is_passed_on(folder, nop):
    """UD2: the small guest's handler never returns, so it is passed exactly once."""
    async with armed(folder, UD2) as translator:
        if not nop:
            translator.vectors = replace(translator.vectors, after=None)
        assert (translator.vectors.after is None) != nop
        await translator.release()
        await until(lambda: translator.tally.passed == 1)
        await asyncio.sleep(0.1)
        assert (translator.tally.passed, done(translator), translator.problem) == (1, 0, "")
        await translator.hold()
        (answer,) = await translator.stub.ask(b"g")
        rip = Registers(bytes.fromhex(answer.decode())).rip
        assert translator.vectors.entry < rip <= translator.vectors.entry + 4


async def test_service_starts_fast_serves_and_leaves(folder):
    begun = time.monotonic()
    bare = [sys.executable, "-c", "import isthmus.translate.service"]
    await asyncio.to_thread(subprocess.run, bare, check=True)
    python = time.monotonic() - begun
    begun = time.monotonic()
    client = await spawn(folder / "gdb.sock", folder)
    took = time.monotonic() - begun
    assert took < 2 + 4 * python, f"{python:.1f} s is what Python takes for itself here"
    with pytest.raises(TranslatorError):
        await client.resume()  # not armed
    report = await client.arm()
    assert report.entry == 0x5000
    await client.resume()
    status = await client.status()
    assert (status.armed, status.running, status.problem) == (True, True, "")
    # A second one is refused, by whatever way it comes.
    other = subprocess.run(
        [sys.executable, "-m", "isthmus.translate.service", "--gdb", folder / "gdb.sock",
         "--directory", folder],
        check=False, capture_output=True, text=True,
    )  # fmt: skip
    assert other.returncode == 1
    assert "another translator" in other.stderr
    await client.detach()
    await client.close()
    async with Monitor.session(folder / "qmp.sock") as monitor:
        assert await monitor.status() == "running"
    await until(lambda: not (folder / "translator.sock").exists())
    with pytest.raises(TranslatorError):
        await TranslatorClient.connect(folder)


async def test_service_ends_with_qemu(folder):
    client = await spawn(folder / "gdb.sock", folder)
    await client.arm()
    await client.resume()
    subprocess.run(["kill", "-KILL", (folder / "pid").read_text()], check=True)
    await until(lambda: not (folder / "translator.sock").exists())


async def test_a_guest_that_is_not_up_yet_is_a_clear_error(tmp_path_factory):
    home = tmp_path_factory.mktemp("e")
    qemu = subprocess.Popen(
        [
            find_qemu().path, "-accel", "tcg", "-M", "pc", "-m", "16", "-nodefaults", "-S",
            "-display", "none", "-gdb", f"unix:{home}/gdb.sock,server=on,wait=off",
        ]
    )  # fmt: skip
    try:
        await until((home / "gdb.sock").exists)
        stub = await Stub.connect(home / "gdb.sock")
        with pytest.raises(NoEntryError, match="0 entries"):
            await Translator(stub).arm()
    finally:
        qemu.kill()
        qemu.wait()


async def test_a_guest_that_does_nothing_else_is_seen_to_stand_all_the_time(folder):
    """Without QEMU's own time for a stop the share would miss a third of it.

    Other work on this machine takes its time from both, so the best of some spans counts.
    """
    async with armed(folder, EXTRQ) as translator:
        await translator.release()
        await until(lambda: done(translator) > 20)
        found = []
        for _ in range(20):
            begun, before = time.monotonic(), translator.status()
            await asyncio.sleep(3)
            after, took = translator.status(), time.monotonic() - begun
            share = (after.busy_s - before.busy_s) / took
            own = (after.traps - before.traps) * after.stop_us / 1e6 / took
            found.append(f"{share:.2f}, {own:.2f} QEMU's own ({after.stop_us:.0f} µs a stop)")
            # Seen from 0.67 to 1.16 on two cores shared with other work.
            if 0.45 < share < 1.8 and 0.1 < own < 1:
                break
        else:
            pytest.fail(f"not once: {found}")
        await translator.hold()
        assert not translator.problem
