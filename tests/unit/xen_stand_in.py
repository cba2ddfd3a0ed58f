"""A stand-in for the toolstack of a Xen host: ``xl`` as tools/xl/xl_migrate.c has it.

A host is a folder (FAKE_XEN); each guest is a file in it that holds its state letters.  Files
named ``do-…`` make it misbehave: ``do-refuse`` (the receiver takes no guest), ``do-not-start`` (it
has the guest and cannot start it), ``do-die`` (the guest crashes when it starts), ``do-logdirty``
(the source cannot send), ``do-no-config`` (it does not even begin), ``do-stay`` (a guest cannot be
destroyed), ``do-vanish`` (the host is not reached), ``do-spin`` (the guest spins when it starts),
``do-stumble`` (as many listings fail as it has bytes).
"""

import sys
from pathlib import Path

from isthmus.hypervisor.xen.runner import Runner
from isthmus.qualification.lab import xen_stream

XL = r"""#!@PYTHON@ -SE
import os, subprocess, sys
root = os.environ["FAKE_XEN"]
BANNER, READY, GO = @MESSAGES@
BADLY = "** Migration failed during final handshake **"
REPORT = b"my copy unpause results are as follows\0"
words = sys.argv[1:]

def path(name): return os.path.join(root, name)
def does(what): return os.path.exists(path("do-" + what))
def guests(): return sorted(n for n in os.listdir(root) if n.startswith("guest-"))
def number(name): return open(path("guest-" + name)).read().split()[1]
def put(name, state, n=None):
    n = n or (number(name) if os.path.exists(path("guest-" + name)) else str(len(guests()) + 7))
    with open(path("guest-" + name + ".new"), "w") as file: file.write(state + " " + n)
    os.rename(path("guest-" + name + ".new"), path("guest-" + name))
def stumbles():
    left = os.path.getsize(path("do-stumble")) if does("stumble") else 0
    if left: os.truncate(path("do-stumble"), left - 1)
    return left
def uuid(name):
    return open(path("uuid-" + name)).read() if os.path.exists(path("uuid-" + name)) else "@UUID@"
def rename(old, new): os.rename(path("guest-" + old), path("guest-" + new))
def called(n): return next(g[6:] for g in guests() if number(g[6:]) == n or g[6:] == n)
def exactly(file, message, what):
    got = b""
    while len(got) < len(message):
        part = os.read(file, len(message) - len(got))
        if not part: return False
        got += part
    return got == message

if words[0] == "info":
    print(open(path("info")).read(), end="")
elif words[:2] == ["list", "-l"]:
    if not os.path.exists(path("guest-" + words[2])): sys.exit("no such domain")
    print('[{"domid": %s, "config": {"c_info": {"type": "%s", "name": "%s", "uuid": "%s"},'
          ' "b_info": {"max_vcpus": 1, "max_memkb": 65536}, "disks": %s}}]'
          % (number(words[2]), open(path("type")).read(), words[2], uuid(words[2]),
             open(path("disks")).read()))
elif words[0] == "list":
    if stumbles(): sys.exit(139)
    print("Name ID Mem VCPUs State Time(s)\nDomain-0 0 560 1 r----- 9.1", "0" * 8 + "-0000" * 3
          + "-" + "0" * 12, "- -" if "-v" in words else "")
    for guest in guests():
        state, n = open(path(guest)).read().split()
        print(guest[6:], n, 64, 1, state, 1.0, uuid(guest[6:]) + " - -" if "-v" in words else "")
elif words[0] == "destroy":
    if not does("stay"): os.remove(path("guest-" + called(words[1])))
elif words[0] == "unpause": put(called(words[1]), "-b----")
elif words[0] == "resume": put(called(words[1]), "-b----")
elif words[0] == "rename": rename(called(words[1]), words[2])
elif words[0] == "migrate-receive":
    os.write(1, BANNER)
    if does("refuse"): sys.exit("xc: error: Failed to set CPUID policy: leaf 80000000, subleaf"
                                " ffffffff, msr ffffffff (22 = Invalid argument): Internal error")
    length, got = int(open(path("length")).read()), b""
    put("web--incoming", "--p---")
    while len(got) < length:
        part = os.read(0, length - len(got))
        if not part:
            os.remove(path("guest-web--incoming"))
            sys.exit("migration target: Domain creation failed (code -3).")
        got += part
    open(path("arrived"), "wb").write(got)
    os.write(1, READY)
    status = 0
    if not exactly(0, GO, "GO"): status = 3
    elif does("not-start"): status = 5
    if status == 0:
        rename("web--incoming", "web")
        put("web", "---sc-" if does("die") else "r-----" if does("spin") else "-b----")
        os.write(1, REPORT + b"\0")
    else:
        os.remove(path("guest-web--incoming"))
        os.write(1, REPORT + bytes([status]) + GO)
elif words[0] == "migrate":
    name, rune = words[3:5]
    if does("no-config"): sys.exit("No config file stored for running domain and none supplied")
    child = subprocess.Popen(["sh", "-c", rune], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    out, back = child.stdin.fileno(), child.stdout.fileno()
    def resumed(why):
        child.stdin.close()
        put(name, "-b----")
        sys.exit(why + "\nMigration failed, resuming at sender.")
    import signal; signal.signal(signal.SIGPIPE, signal.SIG_IGN)
    if not exactly(back, BANNER, "banner"): sys.exit("no banner")
    if does("logdirty"): resumed("xc: error: Failed to enable logdirty: 95,22,0")
    data = open(path("stream"), "rb").read()
    try:
        while data: data = data[os.write(out, data):]
    except BrokenPipeError: resumed("migration stream: Broken pipe")
    put(name, "---ss-")
    if not exactly(back, READY, "ready"): resumed("migration receiver stream: unexpected EOF")
    rename(name, name + "--migratedaway")
    name += "--migratedaway"
    os.write(out, GO)
    if not exactly(back, REPORT, "report"): sys.exit(BADLY)
    if os.read(back, 1) == b"\0":
        os.remove(path("guest-" + name))
        sys.exit(0)
    if not exactly(back, GO, "permission"): sys.exit(BADLY)
    rename(name, name[:-14])
    put(name[:-14], "-b----")
    sys.exit("migration sender: Resumed OK.\nMigration failed due to problems at target.")
else: sys.exit("xl: " + words[0])
"""

UUID = "0b3c5f52-8a3e-4a1f-9d0e-5d1c0a7f2e11"
"""That of each guest, where no file ``uuid-NAME`` has another."""

CTX = """#!/bin/sh
[ ! -e "$FAKE_XEN/do-spin" ] || echo rip: ffffffff81000010
"""

CPUID = """#!/bin/sh
if [ -n "$2" ]; then sed "s/^PV Default/Domain $2/;/^HVM/,\\$d" "$FAKE_XEN/policies"
else cat "$FAKE_XEN/policies"; fi
"""


class FakeHost:
    """A host, its address and the way to it."""

    def __init__(self, folder: Path, address: str, info: str, policies: str) -> None:
        self.folder = folder
        self.address = address
        programs = folder / "bin"
        programs.mkdir(parents=True)
        messages = (xen_stream.BANNER, xen_stream.READY, xen_stream.GO)
        text = XL.replace("@PYTHON@", sys.executable).replace("@MESSAGES@", repr(messages))
        text = text.replace("@UUID@", UUID)
        for name, content in (
            ("xl", text), ("xen-cpuid", CPUID), ("xenctx", CTX),
        ):  # fmt: skip
            (programs / name).write_text(content)
            (programs / name).chmod(0o755)
        data = xen_stream.pv_stream()
        (folder / "stream").write_bytes(data)
        (folder / "length").write_text(str(len(data)))
        (folder / "info").write_text(info)
        (folder / "policies").write_text(policies)
        (folder / "disks").write_text("[]")
        (folder / "type").write_text("pv")

    @property
    def runner(self) -> Runner:
        """The way to it."""
        words = (
            f"[ -e {self.folder}/do-vanish ] && {{ echo no route >&2; exit 255; }};"
            f" PATH={self.folder / 'bin'}:$PATH FAKE_XEN={self.folder}; export PATH FAKE_XEN"
        )
        return Runner(address=self.address, program=("/bin/sh", "-c", f'{words}; eval "$1"', "sh"))

    def guests(self) -> dict[str, str]:
        """The state letters of each guest."""
        return {
            path.name.removeprefix("guest-"): path.read_text().split()[0]
            for path in self.folder.glob("guest-*")
        }

    def start(self, name: str = "web", uuid: str = UUID, state: str = "-b----") -> None:
        """A guest that runs."""
        (self.folder / f"uuid-{name}").write_text(uuid)
        (self.folder / f"guest-{name}").write_text(f"{state} 1")

    def does(self, what: str, times: int = 0) -> None:
        """Make it misbehave."""
        (self.folder / f"do-{what}").write_bytes(bytes(times))
