"""Looking at a running guest through a monitor: what is another guest, and strange monitors."""

import asyncio
import contextlib
import json

import pytest

from isthmus.translate.outside import Lookout, lookout
from isthmus.translate.outside.lookout import Seen
from isthmus.translate.tables import plugged, read_tables
from isthmus.translate.vectors import Vcpu, Vectors

GATE = bytes.fromhex("00081000008e0000ffffffff00000000")
OTHER = bytes.fromhex("00091000008e0000ffffffff00000000")
IDT, GDT = 0xFFFF_FE00_0000_0000, 0xFFFF_FE00_0000_1000


def cpu(number, *, idt=IDT, efer=0xD01):
    """As QEMU prints one vCPU; without long mode, a vCPU that was not started."""
    return (
        f"\nCPU#{number}\nRAX=0000000000000000\n"
        f"TR =0040 {GDT + 0x2000:016x} 00004087 00008b00 DPL=0 TSS64-busy\n"
        f"GDT=     {GDT + number:016x} 0000007f\nIDT=     {idt:016x} 00000fff\n"
        f"CR0=80050033 CR2=0 CR3=000000000000a000 CR4=000006f0\nEFER={efer:016x}\n"
    )


def vectors(*numbers, of=None):
    vcpus = tuple(
        Vcpu(number=number, idt=IDT, gdt=GDT + number, tsc_aux=number, gate=GATE)
        for number in numbers
    )
    return Vectors(
        entry=1, after=None, iretq=2, island=None, vcpus=vcpus, plugged=of or len(numbers)
    )


class Monitor:
    """A monitor of QEMU's that answers from what it is given, with events in between."""

    def __init__(self, text, gates=GATE, lines=None):
        self.text = text
        self.gates = gates if isinstance(gates, list) else [gates] * 8
        self.lines = lines
        self.asked = []
        self.running = True

    async def serve(self, reader, writer):
        with contextlib.suppress(OSError):
            writer.write(b'{"QMP": {"version": {}, "capabilities": []}}\n')
            while line := await reader.readline():
                request = json.loads(line)
                writer.write(b'{"event": "STOP"}\n{"event": "RESUME"}\n')
                writer.write(self.lines or json.dumps({"return": self.reply(request)}).encode())
                writer.write(b"\n")
                await writer.drain()
        writer.close()

    def reply(self, request):
        if request["execute"] == "qmp_capabilities":
            return {}
        if request["execute"] == "query-status":
            return {"running": self.running, "status": "running" if self.running else "paused"}
        arguments = request["arguments"]
        if arguments["command-line"] == "info registers -a":
            return self.text
        self.asked.append((arguments["cpu-index"], arguments["command-line"]))
        gate = self.gates[arguments["cpu-index"]]
        low, high = (int.from_bytes(gate[at : at + 8], "little") for at in (0, 8))
        return f"{IDT + 96:016x}: 0x{low:016x} 0x{high:016x}\r\n" if gate else "Cannot access"


async def look(path, monitor, known):
    server = await asyncio.start_unix_server(monitor.serve, str(path / "m"))
    try:
        return await Lookout(path / "m").look(known)
    finally:
        server.close()


@pytest.mark.parametrize(
    ("text", "gates", "known", "expected"),
    [
        (cpu(0) + cpu(1), GATE, vectors(0, 1), False),
        (cpu(0) + cpu(1, efer=0), GATE, vectors(0, of=2), False),
        (cpu(0, idt=IDT + 0x1000), GATE, vectors(0), True),  # another table
        (cpu(0), OTHER, vectors(0), True),  # another handler
        (cpu(0) + cpu(1), [GATE, OTHER], vectors(0, 1), True),  # ... of one vCPU
        (cpu(0) + cpu(1, efer=0), GATE, vectors(0), True),  # plugged in, not started
        (cpu(0) + cpu(1), GATE, vectors(0, of=2), True),  # started
        (cpu(0), GATE, vectors(0, 1), True),  # unplugged
        (cpu(0, efer=0), GATE, vectors(0), True),  # reset
        (cpu(0), b"", vectors(0), False),  # its table is not mapped just now
        (cpu(0, efer=0), GATE, None, False),  # firmware
        (cpu(0), GATE, None, True),
        (cpu(0), bytes(16), None, False),  # a table without that gate
        (cpu(0) + cpu(1), [GATE, OTHER], None, False),  # they do not agree
        (cpu(0) + cpu(1), [GATE, bytes(16)], None, True),
    ],
)
async def test_what_makes_it_another_guest(tmp_path, text, gates, known, expected):
    monitor = Monitor(text, gates)
    assert await look(tmp_path, monitor, known) == Seen(running=True, differs=expected)
    assert all(line == f"x /2gx {IDT + 96:#x}" for _, line in monitor.asked)


@pytest.mark.parametrize(
    "lines",
    [
        b"",
        b"{",
        b"[]",
        b"1",
        b'{"error": {"class": "GenericError", "desc": "no"}}',
        b'{"return": 5}',
        b'{"event": "STOP"}',
        b"x" * 200_000,
    ],
)
async def test_a_monitor_that_talks_nonsense_shows_nothing(tmp_path, monkeypatch, lines):
    monkeypatch.setattr(lookout, "LOOK_TIMEOUT_S", 0.3)
    monkeypatch.setattr(lookout, "LINE_LIMIT", 100_000)
    monitor = Monitor("", lines=lines or b"\n")
    seen = await look(tmp_path, monitor, None)
    assert seen in {None, Seen(running=False, differs=False)}


async def test_a_guest_that_stands_is_seen_to(tmp_path):
    monitor = Monitor(cpu(0))
    monitor.running = False
    assert await look(tmp_path, monitor, vectors(0)) == Seen(running=False, differs=False)


async def test_nobody_there_shows_nothing(tmp_path):
    assert await Lookout(tmp_path / "none").look(None) is None


def test_vcpus_are_counted_whether_started_or_not():
    text = cpu(0) + cpu(1, efer=0) + cpu(10)
    assert plugged(text) == 3
    assert [tables.number for tables in read_tables(text)] == [0, 10]
    (first, _) = read_tables(text)
    assert (first.idt, first.idt_limit, first.gdt, first.gdt_limit, first.tss) == (
        IDT, 0xFFF, GDT, 0x7F, GDT + 0x2000,
    )  # fmt: skip
    assert first.space.cr3 == 0xA000


@pytest.mark.parametrize("text", ["", "CPU#0", "CPU#0\nEFER=0000000000000d01", "CPU#99999\n" * 3])
def test_what_is_no_list_of_registers_has_no_vcpus(text):
    assert read_tables(text) == ()
