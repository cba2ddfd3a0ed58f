"""A small guest in QEMU: a firmware image of our own, commanded through its debug stub."""

import asyncio
import contextlib
import re
import subprocess
import time
from pathlib import Path

from isthmus.hypervisor.qemu.binary import find_qemu
from isthmus.hypervisor.qemu.monitor import Monitor
from isthmus.translate.outside import Lookout, Translator
from isthmus.translate.registers import Registers
from isthmus.translate.rsp import Stub, write_memory, write_register

SMALL_KERNEL = Path(__file__).with_name("small_kernel.S")
TRAP_GUEST = Path(__file__).parents[2] / "bench" / "trap_guest.S"
RBX = 1
PATIENCE_S = 120
REST = b"\xeb\xfe"  # a jump on the spot: where programs and handlers of the tests end


def assembled(source: Path, folder: Path) -> bytes:
    """The code of an assembler file."""
    subprocess.run(["gcc", "-c", "-o", folder / "o", source], check=True)
    subprocess.run(
        ["objcopy", "-O", "binary", "-j", ".text", folder / "o", folder / "bin"], check=True
    )
    return (folder / "bin").read_bytes()


def firmware(source: Path, folder: Path) -> Path:
    """Assemble a guest of one page into a firmware image."""
    path = folder / "rom"
    path.write_bytes(assembled(source, folder).ljust(0x1000, b"\0").rjust(64 << 10, b"\xf4"))
    return path


async def until(condition):
    """Wait until something holds, with more patience than a slow and busy machine needs."""
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < deadline
        await asyncio.sleep(0.002)


async def in_its_loop(home: Path, low: int, high: int) -> None:
    """Wait until the guest has walked into its loop, which is between these addresses."""
    await until((home / "look.sock").exists)
    deadline = time.monotonic() + PATIENCE_S
    async with Monitor.session(home / "qmp.sock") as monitor:
        while True:
            found = re.search(r"RIP=([0-9a-f]+)", await monitor.human("info registers"))
            if found and low <= int(found[1], 16) <= high:
                return
            assert time.monotonic() < deadline, "the guest does not come to its loop"
            await asyncio.sleep(0.02)


class SmallGuest:
    """One running small kernel, its stub and its translator."""

    FRAME, AREA = 0x9000, 0x10000
    DOOR = 0xFFFFF163  # where it waits for RBX
    USER, USER32, KERNEL = (0x2B, 0x23), (0x43, 0x23), (0x18, 0x10)

    def __init__(self, stub: Stub, lookout: Lookout) -> None:
        self.stub = stub
        self.translator = Translator(stub, lookout)

    async def write(self, address: int, data: bytes) -> None:
        for at in range(0, len(data), 0x200):
            (answer,) = await self.stub.ask(write_memory(address + at, data[at : at + 0x200]))
            assert answer == b"OK", hex(address)

    async def quad(self, address: int, *values: int) -> None:
        await self.write(address, b"".join(value.to_bytes(8, "little") for value in values))

    async def read(self, address: int) -> int:
        return int.from_bytes(await self.stub.memory(address, 8), "little")

    async def enter(self, rip: int, *, segments=USER, flags=2, rsp=0xF000) -> None:
        """Send the guest through its door; it has to be resumed."""
        code, stack = segments
        await self.quad(self.FRAME, rip, code, flags, rsp, stack)
        await self.register(RBX, 1)

    async def register(self, number: int, value: int) -> None:
        await self.stub.ask(write_register(number, value.to_bytes(8, "little")))

    async def registers(self) -> Registers:
        _, answer = await self.stub.ask(b"Hgp1.1", b"g")
        return Registers(bytes.fromhex(answer.decode()))

    async def run(self, *, until_traps=0, ends=True) -> None:
        """Let it run, served, and hold it again: after some traps, and when it rests if it ends."""
        tally = self.translator.tally
        wanted = tally.traps + until_traps
        resting = 0

        async def enough() -> bool:
            # Twice, since what is pending where it rests comes only when it goes on.
            nonlocal resting
            resting = resting + 1 if await self.rests() else 0
            return resting > 1 or not ends

        await self.run_until(enough, lambda: tally.traps >= wanted)
        assert not self.translator.problem

    async def run_until(self, condition, running=lambda: True) -> None:
        """Let it run, served, in slices until something holds that is asked of the held guest.

        It is held only when ``running`` has come true, which is asked while it runs.
        """
        deadline = time.monotonic() + PATIENCE_S
        while True:
            await self.translator.release()
            await until(running)
            await asyncio.sleep(0.1)
            async with asyncio.timeout(PATIENCE_S):
                await self.translator.hold()
            if await condition():
                return
            assert time.monotonic() < deadline, "what was waited for never came"

    async def rests(self) -> bool:
        """Whether it jumps on the spot."""
        return await self.stub.memory((await self.registers()).rip, len(REST)) == REST

    async def records(self) -> dict[str, int]:
        """What its handlers saw; ``vector`` is -1 if there was none but #UD."""
        names = ("ud", "ud_rip", "vector", "count", "cr2", "first", "second")
        values = [await self.read(0x7100 + 8 * index) for index in range(len(names))]
        found = dict(zip(names, values, strict=True))
        found["vector"] -= 1
        return found


@contextlib.asynccontextmanager
async def small_guest(image: Path, home: Path, *options: str, cpu: str = "Penryn"):
    """The kernel in its idle loop, stopped and armed."""
    qemu = subprocess.Popen(
        [
            find_qemu().path, "-accel", "tcg", "-cpu", cpu, "-M", "pc", "-m", "16",
            "-bios", image, "-nodefaults", "-no-user-config", "-display", "none",
            "-chardev", f"socket,id=gdb,path={home}/gdb.sock,server=on,wait=off",
            "-gdb", "chardev:gdb",
            "-chardev", f"socket,id=qmp,path={home}/qmp.sock,server=on,wait=off",
            "-mon", "chardev=qmp,mode=control",
            "-chardev", f"socket,id=look,path={home}/look.sock,server=on,wait=off",
            "-mon", "chardev=look,mode=control", *options,
        ],
    )  # fmt: skip
    try:
        await in_its_loop(home, SmallGuest.DOOR, SmallGuest.DOOR + 3)
        stub = await Stub.connect(home / "gdb.sock")
        guest = SmallGuest(stub, Lookout(home / "look.sock"))
        await guest.translator.arm()
        yield guest
        await guest.stub.close()
    finally:
        qemu.kill()
        qemu.wait()
