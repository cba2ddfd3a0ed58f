"""The process that has ordered a move is killed at any call: the move is found and settled."""

import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from xapi_lab import PATIENCE_S, Lab, environment, until
from xapi_server import Certificates

from isthmus.migration import xapi
from isthmus.migration.hosts import recover, unfinished
from isthmus.migration.options import Options
from isthmus.migration.phases import Phase
from isthmus.migration.record import records

ISTHMUS = [sys.executable, "-c", "from isthmus.cli.main import main; main()"]
OUT, AWAY = ("intel", "sky2"), ("more", "sky9")


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    return Certificates(tmp_path_factory.mktemp("certificates"))


@pytest.fixture
def lab(
    tmp_path: Path, certificates: Certificates, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Lab]:
    environment(monkeypatch, certificates)
    monkeypatch.setenv("ISTHMUS_STATE", str(tmp_path / "state"))
    monkeypatch.setenv("ISTHMUS_RUN", str(tmp_path / "run"))
    monkeypatch.setattr(xapi, "SETTLED_S", 1.0)
    monkeypatch.setattr(xapi, "SAMPLE_S", 0.05)
    monkeypatch.setattr(xapi, "RECOVERED", Options(verify_s=0.0))
    made = Lab(tmp_path, certificates)
    yield made
    made.close()


def isthmus(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*ISTHMUS, *arguments],
        capture_output=True, text=True, timeout=PATIENCE_S, check=False, env=dict(os.environ),
    )  # fmt: skip


def mover(lab: Lab, to: tuple[str, str]) -> subprocess.Popen[bytes]:
    server = lab.servers[to[0]]
    return subprocess.Popen(
        [
            *ISTHMUS, "migrate", "web", "--from", lab.servers["intel"].address(),
            "--to", server.address(to[1]), "--verify", "0",
        ],
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip


def killed_at(lab: Lab, to: tuple[str, str], *, method: str = "", nth: int = 0) -> bool:
    """Kill a mover when a call arrives, which is then carried out; False if it ended before."""
    seen = 0
    process: list[subprocess.Popen[bytes]] = []
    known = threading.Event()

    def arrived(name: str) -> None:
        nonlocal seen
        seen += 1
        assert known.wait(PATIENCE_S)
        if (name == method or seen == nth) and process[0].poll() is None:
            process[0].kill()
            process[0].wait(PATIENCE_S)

    for server in lab.servers.values():
        server.on_call = arrived
    process.append(mover(lab, to))
    known.set()
    code = process[0].wait(PATIENCE_S)
    for server in lab.servers.values():
        server.on_call = lambda _: None
    return code < 0


async def settled(lab: Lab, guest: str, to: tuple[str, str]) -> None:
    """After recovery every journal has its end, and one copy runs where the last one says."""
    for path in unfinished(lab.store):
        await recover(lab.store, path)
    assert unfinished(lab.store) == []
    assert max(lab.world.seen) == 1
    kept = records(lab.store.journals)
    arrived = bool(kept) and kept[-1][1].phase is Phase.COMMITTED
    assert lab.where(guest) == {to[1] if arrived else "sky1"}


@pytest.mark.parametrize(
    ("method", "to", "arrives"),
    [
        ("session.login_with_password", OUT, False),
        ("VM.assert_can_boot_here", OUT, False),
        ("Async.VM.pool_migrate", OUT, True),
        ("event.from", OUT, True),
        ("task.destroy", OUT, True),
        ("host.migrate_receive", AWAY, False),
        ("Async.VM.migrate_send", AWAY, True),
    ],
)
async def test_killed_at_a_call(lab: Lab, method: str, to: tuple[str, str], arrives: bool) -> None:
    guest = lab.pool.uuid(lab.pool.guest("web", "sky1"))
    assert killed_at(lab, to, method=method), "it was not killed"
    if arrives:
        until(lambda: lab.where(guest) == {to[1]}, "a guest that has arrived")
    await settled(lab, guest, to)
    assert lab.where(guest) == {to[1] if arrives else "sky1"}
    orders = ("Async.VM.pool_migrate", "Async.VM.migrate_send")
    assert sum(lab.servers["intel"].count(order) for order in orders) == int(arrives)


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("to", [OUT, AWAY])
async def test_killed_at_every_call(
    to: tuple[str, str], certificates: Certificates, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    environment(monkeypatch, certificates)
    monkeypatch.setattr(xapi, "SETTLED_S", 1.0)
    monkeypatch.setattr(xapi, "SAMPLE_S", 0.05)
    monkeypatch.setattr(xapi, "RECOVERED", Options(verify_s=0.0))
    nth = 0
    killed = True
    while killed:
        nth += 1
        folder = tmp_path / str(nth)
        monkeypatch.setenv("ISTHMUS_STATE", str(folder / "state"))
        monkeypatch.setenv("ISTHMUS_RUN", str(folder / "run"))
        lab = Lab(folder, certificates)
        try:
            guest = lab.pool.uuid(lab.pool.guest("web", "sky1"))
            killed = killed_at(lab, to, nth=nth)
            until(
                lambda lab=lab: (
                    not any(vm["current_operations"] for vm in lab.pool.tables["VM"].values())
                ),
                "a pool at rest",
            )
            await settled(lab, guest, to)
        finally:
            lab.close()
    assert nth > 15, "too few calls for a whole move"


def test_the_command_finds_a_killed_move_again(lab: Lab) -> None:
    guest = lab.pool.uuid(lab.pool.guest("web", "sky1"))
    lab.world.hold_at = 0.5
    process = mover(lab, OUT)
    until(lab.journal_task, "a task in the journal")
    process.kill()
    process.wait(PATIENCE_S)
    told = isthmus("status", "--no-recover")
    assert "starting" in told.stdout
    lab.world.release()
    done = isthmus("migrate", "--resume", "web")
    assert done.returncode == 0, done.stderr
    assert "web from sky1 to sky2: committed" in done.stdout
    assert lab.where(guest) == {"sky2"}


def test_the_command_moves_and_tells(lab: Lab) -> None:
    guest = lab.pool.uuid(lab.pool.guest("web", "sky1"))
    home, there = lab.servers["intel"].address(), lab.servers["amd"].address("rome1")
    done = isthmus("migrate", "web", "--from", home, "--to", there)
    assert done.returncode == 3, done.stderr
    assert "Traceback" not in done.stderr
    done = isthmus("migrate", "web", "--from", home, "--to", f"{home}sky2", "--verify", "0")
    assert done.returncode == 0, done.stderr
    assert "moving: " in done.stderr
    assert "0 MiB" not in done.stderr + done.stdout
    assert lab.where(guest) == {"sky2"}
    lab.world.fails = (0.5, ["VM_MIGRATE_FAILED", guest, "a", "b", "no memory"])
    done = isthmus("migrate", "web", "--from", home, "--to", f"{home}sky1", "--verify", "0")
    assert done.returncode == 4, done.stderr
    assert "VM_MIGRATE_FAILED" in done.stderr


def test_the_command_shows_a_pool(lab: Lab) -> None:
    home = lab.servers["intel"].address()
    done = isthmus("xapi", "pool", home, "--join", lab.servers["amd"].address())
    assert done.returncode == 0, done.stderr
    assert "host old: GenuineIntel" in done.stdout
    assert "without old new guests would have" in done.stdout
    assert "avx512f" in done.stdout
    assert "rome1 cannot join: HOSTS_NOT_HOMOGENEOUS" in done.stdout
    done = isthmus("xapi", "pool", home, "--json", "--join", lab.servers["more"].address())
    assert done.returncode == 0, done.stderr
    assert '"lowered_by":[{' in done.stdout


@pytest.mark.parametrize("address", ["xapi://host?x=1", "xapi://root:secret@host"])
def test_a_bad_address_is_one_clear_line(lab: Lab, address: str) -> None:
    done = isthmus("xapi", "pool", address)
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr
    assert "secret" not in done.stderr + done.stdout


def test_names_from_the_pool_do_not_write_to_the_terminal(lab: Lab) -> None:
    vm = lab.pool.guest("web", "sky1")
    lab.pool.change("VM", vm, name_label="web\x9b31m\u202e\nno")
    host = lab.pool.hosts["sky2"]
    lab.pool.change("host", host, name_label="h\x85\nost")
    home = lab.servers["intel"].address()
    for told in (
        isthmus("xapi", "pool", home),
        isthmus("migrate", lab.pool.uuid(vm), "--from", home, "--to", f"{home}old"),
        isthmus("migrate", lab.pool.uuid(vm), "--from", home, "--to", home),
    ):
        assert "Traceback" not in told.stderr
        assert not set(told.stdout + told.stderr) & set("\x9b\x85\u202e\x1b")
