"""Moves by XAPI, at the wire: whatever breaks, one copy runs and the journal tells which."""

import asyncio
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from xapi_lab import PASSWORD, Lab, environment, until
from xapi_server import Certificates, Fault

from isthmus.errors import (
    EnvironmentLackError,
    InputError,
    IsthmusError,
    RefusedError,
    RolledBackError,
    UndecidedError,
)
from isthmus.hypervisor.xapi import connection
from isthmus.migration import xapi
from isthmus.migration.options import Options, Progress
from isthmus.migration.phases import Phase
from isthmus.migration.xapi import check, move, recover

ON_THE_WAY = [
    Phase.OBSERVED, Phase.PREPARING, Phase.PREPARED, Phase.MOVING, Phase.STARTING,
    Phase.VERIFYING, Phase.COMMITTING, Phase.COMMITTED,
]  # fmt: skip


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    return Certificates(tmp_path_factory.mktemp("certificates"))


@pytest.fixture
def lab(
    tmp_path: Path, certificates: Certificates, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Lab]:
    environment(monkeypatch, certificates)
    monkeypatch.setattr(xapi, "SETTLED_S", 0.5)
    monkeypatch.setattr(xapi, "SAMPLE_S", 0.05)
    monkeypatch.setattr(xapi, "RECOVERED", Options(verify_s=0.0))
    monkeypatch.setattr(connection, "PATIENCE_S", 30.0)
    made = Lab(tmp_path, certificates)
    yield made
    made.close()


@pytest.fixture
def web(lab: Lab) -> str:
    """A running guest; its UUID."""
    return lab.pool.uuid(lab.pool.guest("web", "sky1"))


def one_copy(lab: Lab, web: str, host: str) -> None:
    """Exactly one copy runs, there; and never have two run."""
    assert lab.where(web) == {host}
    assert max(lab.world.seen) == 1


# --- the way through ---------------------------------------------------------------------------


async def test_within_a_pool(lab: Lab, web: str) -> None:
    record = await move(lab.request("intel/sky2"), lab.store, lab.observe)
    one_copy(lab, web, "sky2")
    assert [step.phase for step in record.steps] == ON_THE_WAY
    assert record.plan.source_host == "sky1"
    assert record.plan.destination_host == "sky2"
    server = lab.servers["intel"]
    assert server.count("Async.VM.pool_migrate") == 1
    assert server.count("VM.assert_can_boot_here") == 1
    assert lab.pool.tables["task"] == {}, "XAPI may forget the task"
    assert lab.pool.sessions == set()
    shares = [told.transfer.remaining for told in lab.told if told.transfer]
    assert shares == sorted(shares, reverse=True)


async def test_there_and_back(lab: Lab, web: str) -> None:
    await move(lab.request("intel/sky2"), lab.store, lab.observe)
    await move(lab.request("intel/sky1"), lab.store, lab.observe)
    one_copy(lab, web, "sky1")


async def test_to_another_pool(lab: Lab, web: str) -> None:
    record = await move(lab.request("more/sky9"), lab.store, lab.observe)
    one_copy(lab, web, "sky9")
    assert record.phase is Phase.COMMITTED
    assert lab.servers["intel"].count("VM.assert_can_migrate") == 1
    assert lab.servers["intel"].count("Async.VM.migrate_send") == 1
    assert lab.servers["more"].pool.sessions == set(), "the move's own session is ended, too"


async def test_to_other_storage_of_the_same_pool(lab: Lab, web: str) -> None:
    lab.pool.add("SR", name_label="fast", shared=False, type="ext")
    request = lab.request("intel/sky2")
    await move(
        request.replace(destination=f"{request.destination}?sr=fast"), lab.store, lab.observe
    )
    one_copy(lab, web, "sky2")
    sent = next(a for name, a in lab.servers["intel"].calls if name == "Async.VM.migrate_send")
    assert [lab.pool.tables["SR"][sr]["name_label"] for sr in sent[4].values()] == ["fast"]
    assert sent[5] == {}, "a network may not be mapped within a pool"


async def test_the_only_host_need_not_be_named(lab: Lab, web: str) -> None:
    verdict = await check(lab.request("more"))
    assert verdict.destination_host == "sky9"


# --- what is refused beforehand ----------------------------------------------------------------


async def test_the_other_maker_is_refused_with_xapis_own_reason(lab: Lab, web: str) -> None:
    with pytest.raises(RefusedError):
        await move(lab.request("amd/rome1"), lab.store, lab.observe)
    verdict = await check(lab.request("amd/rome1"))
    assert "xapi-forbids" in {finding.rule for finding in verdict.blocking}
    assert lab.servers["intel"].count("Async.VM.migrate_send") == 0
    assert lab.servers["amd"].pool.sessions == set(), "the token of the check is given back"
    one_copy(lab, web, "sky1")


async def test_an_accepted_risk_is_forced_and_nothing_else(lab: Lab, web: str) -> None:
    verdict = await check(lab.request("amd/rome1"))
    rules = tuple({finding.rule for finding in verdict.blocking})
    with pytest.raises(RefusedError):
        await move(
            lab.request("amd/rome1", accepted=tuple(set(rules) - {"xapi-forbids"})),
            lab.store,
            lab.observe,
        )
    record = await move(lab.request("amd/rome1", accepted=rules), lab.store, lab.observe)
    assert record.phase is Phase.COMMITTED
    sent = next(a for name, a in lab.servers["intel"].calls if name == "Async.VM.migrate_send")
    assert sent[6] == {"force": "true"}
    one_copy(lab, web, "rome1")


async def test_features_that_a_host_lacks_are_refused_by_name(lab: Lab) -> None:
    """The guest was started before the older host had lowered the pool's level."""
    sky = lab.pool.tables["host"][lab.pool.hosts["sky1"]]["cpu_info"]
    flags = {"vendor": "GenuineIntel", "features": sky["features_hvm"]}
    vm = lab.pool.guest("big", "sky1", last_boot_CPU_flags=flags)
    verdict = await check(lab.request("intel/old", name="big"))
    features = [f for f in verdict.blocking if f.rule == "xapi-features"]
    assert "avx512f" in features[0].subject
    assert (await check(lab.request("intel/sky2", name="big"))).blocking == ()
    assert lab.where(lab.pool.uuid(vm)) == {"sky1"}


async def test_a_guest_above_its_new_pools_level_is_warned_of(lab: Lab, web: str) -> None:
    """It fits the host, but not the level that the pool gives its guests."""
    more = lab.servers["more"].pool
    level = more.tables["pool"][more.ref]["cpu_info"]
    more.change("pool", more.ref, cpu_info=level | {"features_hvm_host": "0" * 8})
    verdict = await check(lab.request("more/sky9"))
    assert "xapi-island" in {finding.rule for finding in verdict.findings}
    assert verdict.blocking == ()


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({"enabled": False}, "HOST_DISABLED"),
        ({"live": False}, "HOST_OFFLINE"),
        ({"memory_free": 0}, "HOST_NOT_ENOUGH_FREE_MEMORY"),
    ],
)
async def test_what_xapi_itself_refuses_cannot_be_forced(
    lab: Lab, web: str, change: dict[str, object], code: str
) -> None:
    host = lab.pool.hosts["sky2"]
    kind = "host" if "enabled" in change else "host_metrics"
    ref = host if kind == "host" else lab.pool.tables["host"][host]["metrics"]
    lab.pool.change(kind, ref, **change)
    verdict = await check(lab.request("intel/sky2", force=True))
    assert code in {finding.subject for finding in verdict.blocking}


@pytest.mark.parametrize(
    ("to", "message"),
    [
        ("intel/sky1", "already"),
        ("intel/moon", "no host of that name"),
        ("intel", "which host"),
    ],
)
async def test_a_destination_that_is_none_is_bad_input(
    lab: Lab, web: str, to: str, message: str
) -> None:
    with pytest.raises(InputError, match=message):
        await check(lab.request(to))


@pytest.mark.parametrize(
    ("wish", "error"),
    [
        ({"translate": True}, RefusedError),
        ({"bandwidth": 1}, InputError),
        ({"downtime_limit_ms": 1}, InputError),
    ],
)
async def test_what_xapi_has_no_way_to_do_is_not_promised(
    lab: Lab, web: str, wish: dict[str, int], error: type[IsthmusError]
) -> None:
    request = lab.request("intel/sky2", options=Options(verify_s=0.0, **wish))
    for ask in (check(request), move(request, lab.store, lab.observe)):
        with pytest.raises(error):
            await ask
    one_copy(lab, web, "sky1")


async def test_a_halted_guest_is_not_moved_live(lab: Lab) -> None:
    lab.pool.guest("off", "sky1", power_state="Halted")
    with pytest.raises(InputError, match="halted, not running"):
        await check(lab.request("intel/sky2", name="off"))


async def test_without_a_network_of_the_name_one_must_be_named(lab: Lab, web: str) -> None:
    more = lab.servers["more"].pool
    more.change("network", more.network, name_label="other")
    with pytest.raises(InputError, match="network of that name"):
        await check(lab.request("more/sky9"))
    request = lab.request("more/sky9")
    named = f"{request.destination}?network=Pool-wide%20network=other"
    assert (await check(request.replace(destination=named))).blocking == ()


# --- what goes wrong on the way ----------------------------------------------------------------


async def test_a_task_that_fails_leaves_the_guest_where_it_was(lab: Lab, web: str) -> None:
    lab.world.fails = (0.5, ["VM_MIGRATE_FAILED", web, "a", "b", "Xenops_interface.Internal"])
    with pytest.raises(RolledBackError, match="VM_MIGRATE_FAILED"):
        await move(lab.request("intel/sky2"), lab.store, lab.observe)
    one_copy(lab, web, "sky1")
    assert lab.journal().phase is Phase.ROLLED_BACK
    assert "VM_MIGRATE_FAILED" in lab.journal().error


async def test_a_failed_move_between_pools_leaves_nothing_there(lab: Lab, web: str) -> None:
    lab.world.fails = (0.5, ["MIRROR_FAILED", "OpaqueRef:disk"])
    with pytest.raises(RolledBackError, match="MIRROR_FAILED"):
        await move(lab.request("more/sky9"), lab.store, lab.observe)
    one_copy(lab, web, "sky1")
    assert lab.servers["more"].pool.sessions == set()


async def test_a_guest_that_xapi_has_lost_is_told_as_lost(lab: Lab, web: str) -> None:
    lab.world.loses = True
    lab.world.fails = (0.5, ["INTERNAL_ERROR", "End_of_file"])
    with pytest.raises(UndecidedError, match="neither copy is left"):
        await move(lab.request("intel/sky2"), lab.store, lab.observe)
    assert lab.where(web) == set()
    assert lab.journal().phase is Phase.UNDECIDED


async def test_interrupted_it_is_cancelled(lab: Lab, web: str) -> None:
    lab.world.hold_at = 0.3
    moving = asyncio.ensure_future(move(lab.request("intel/sky2"), lab.store, lab.observe))
    await asyncio.to_thread(until, lab.journal_task, "a task")
    moving.cancel()
    with pytest.raises(RolledBackError, match="interrupted"):
        await moving
    one_copy(lab, web, "sky1")
    assert lab.servers["intel"].count("task.cancel") == 1


async def test_interrupted_too_late_it_arrives(lab: Lab, web: str) -> None:
    """XAPI need not follow a wish to cancel; the guest is where it is."""
    lab.world.hold_at = 0.3
    lab.servers["intel"].faults = [Fault("task.cancel", "fail", details=("OPERATION_NOT_ALLOWED",))]
    moving = asyncio.ensure_future(move(lab.request("intel/sky2"), lab.store, lab.observe))
    await asyncio.to_thread(until, lab.journal_task, "a task")
    moving.cancel()
    await asyncio.to_thread(until, lambda: lab.servers["intel"].count("task.cancel"), "a wish")
    lab.world.release()
    await moving
    one_copy(lab, web, "sky2")
    assert lab.journal().phase is Phase.COMMITTED


async def test_an_order_whose_answer_is_lost_is_found_again(lab: Lab, web: str) -> None:
    lab.servers["intel"].faults = [Fault("Async.VM.pool_migrate", "cut-after")]
    record = await move(lab.request("intel/sky2"), lab.store, lab.observe)
    assert record.phase is Phase.COMMITTED
    assert lab.servers["intel"].count("Async.VM.pool_migrate") == 1
    one_copy(lab, web, "sky2")


async def test_an_order_that_did_not_arrive_is_not_given_again(lab: Lab, web: str) -> None:
    lab.servers["intel"].faults = [Fault("Async.VM.pool_migrate", "cut")]
    with pytest.raises(RolledBackError, match="no answer"):
        await move(lab.request("intel/sky2"), lab.store, lab.observe)
    assert lab.servers["intel"].count("Async.VM.pool_migrate") == 1
    one_copy(lab, web, "sky1")


@pytest.mark.parametrize("how", ["cut", "cut-after", "torn", "http", "expire"])
async def test_questions_on_the_way_may_break(lab: Lab, web: str, how: str) -> None:
    lab.servers["intel"].faults = [
        Fault(method, how) for method in ("task.get_record", "event.from", "VM.get_record")
    ]
    record = await move(lab.request("intel/sky2"), lab.store, lab.observe)
    assert record.phase is Phase.COMMITTED
    one_copy(lab, web, "sky2")


async def test_answers_that_are_none_leave_the_move_to_be_asked_for_later(
    lab: Lab, web: str
) -> None:
    lab.world.hold_at = 0.5

    def nonsense(progress: Progress) -> None:
        if progress.transfer and progress.transfer.remaining < 60:
            lab.servers["intel"].faults = [Fault("*", "raw", body=b"<html>", times=-1)]

    lab.on_progress = nonsense
    with pytest.raises(UndecidedError, match="not an answer of XAPI") as told:
        await move(lab.request("intel/sky2"), lab.store, lab.observe)
    assert "\n" not in str(told.value)
    assert not lab.journal().final
    lab.on_progress = lambda _: None
    lab.servers["intel"].faults = []
    lab.world.release()
    record = await recover(lab.journal_path(), lab.store, lab.observe, "")
    assert record.phase is Phase.COMMITTED
    one_copy(lab, web, "sky2")


async def test_xapi_restarts_on_the_way(lab: Lab, web: str) -> None:
    """The task is forgotten; the guest tells where it is."""
    lab.world.hold_at = 0.5
    vm = next(iter(lab.pool.tables["VM"].values()))

    def restart(progress: Progress) -> None:
        if progress.transfer and progress.transfer.remaining < 60 and lab.world.hold_at:
            lab.world.release()
            until(lambda: vm["resident_on"] == lab.pool.hosts["sky2"], "a guest that has moved")
            lab.pool.restart()

    lab.on_progress = restart
    record = await move(lab.request("intel/sky2"), lab.store, lab.observe)
    assert record.phase is Phase.COMMITTED
    one_copy(lab, web, "sky2")


@pytest.mark.parametrize("to", ["intel/sky2", "more/sky9"])
async def test_a_pool_that_goes_silent_is_asked_again_later(
    lab: Lab, web: str, monkeypatch: pytest.MonkeyPatch, to: str
) -> None:
    """Meanwhile the move goes on, in the name of the sessions that ordered it."""
    monkeypatch.setattr(connection, "PATIENCE_S", 1.0)
    lab.world.hold_at = 0.5
    host = to.partition("/")[2]
    server = lab.servers["intel"]

    def silence(progress: Progress) -> None:
        if progress.transfer and progress.transfer.remaining < 60:
            server.faults = [Fault("*", "cut", times=-1)]

    lab.on_progress = silence
    with pytest.raises(UndecidedError, match="does not answer"):
        await move(lab.request(to), lab.store, lab.observe)
    assert not lab.journal().final
    server.faults = []
    lab.world.release()
    until(lambda: lab.where(web) == {host}, "a guest that has moved")
    record = await recover(lab.journal_path(), lab.store, lab.observe, "")
    assert record.phase is Phase.COMMITTED
    one_copy(lab, web, host)


async def test_a_guest_that_dies_on_arrival_is_told(lab: Lab, web: str) -> None:
    """It is started anew by XAPI (actions_after_crash), which shows by its domain's number."""

    def crash(progress: Progress) -> None:
        if progress.phase is Phase.VERIFYING:
            vm = next(iter(lab.pool.tables["VM"]))
            threading.Timer(0.3, lab.pool.change, ("VM", vm), {"domid": 99}).start()

    lab.on_progress = crash
    request = lab.request("intel/sky2", options=Options(verify_s=60.0))
    with pytest.raises(UndecidedError, match="has died on its destination"):
        await move(request, lab.store, lab.observe)
    assert lab.journal().phase is Phase.UNDECIDED


async def test_a_full_disk_moves_nothing(
    lab: Lab, web: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    import os

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(EnvironmentLackError, match="nothing was moved"):
        await move(lab.request("intel/sky2"), lab.store, lab.observe)
    assert lab.servers["intel"].count("Async.VM.pool_migrate") == 0


# --- afterwards --------------------------------------------------------------------------------


async def test_a_move_under_way_is_not_ordered_again(lab: Lab, web: str) -> None:
    """Whoever asks while XAPI still moves it is told so, and nothing is changed."""
    lab.world.hold_at = 0.5
    moving = asyncio.ensure_future(move(lab.request("intel/sky2"), lab.store, lab.observe))
    await asyncio.to_thread(until, lab.journal_task, "a task")
    with pytest.raises(IsthmusError, match="being moved by another process"):
        await move(lab.request("intel/sky2"), lab.store, lab.observe)
    lab.world.release()
    await moving
    one_copy(lab, web, "sky2")


async def test_recovery_waits_only_so_long(
    lab: Lab, web: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(xapi, "RESUME_S", 0.2)
    lab.world.hold_at = 0.5
    lab.servers["intel"].faults = [Fault("event.from", "raw", body=b"<")]
    with pytest.raises(UndecidedError):
        # A server that answers nonsense ends the command; XAPI itself goes on.
        await asyncio.wait_for(_abandoned(lab), 60)
    with pytest.raises(IsthmusError, match=r"XAPI still moves it \(\d+ %\)"):
        await recover(lab.journal_path(), lab.store, lab.observe, "")
    lab.world.release()
    monkeypatch.setattr(xapi, "RESUME_S", 60.0)
    record = await recover(lab.journal_path(), lab.store, lab.observe, "")
    assert record.phase is Phase.COMMITTED
    one_copy(lab, web, "sky2")


async def _abandoned(lab: Lab, to: str = "intel/sky2") -> None:
    """A move whose process ends before it could settle what has become of it."""

    async def dead(*_: object, **__: object) -> None:
        raise UndecidedError("this process has ended")

    with pytest.MonkeyPatch.context() as context:
        context.setattr(xapi._Run, "settle", dead)
        await move(lab.request(to), lab.store, lab.observe)


@pytest.mark.parametrize(("use", "stays"), [("source", "sky1"), ("destination", "sky9")])
async def test_two_copies_are_for_the_operator(lab: Lab, web: str, use: str, stays: str) -> None:
    """XAPI promises that it cannot be; should it be, nothing is ended without being told."""
    lab.servers["intel"].faults = [Fault("Async.VM.migrate_send", "cut")]
    with pytest.raises(UndecidedError):
        await _abandoned(lab, "more/sky9")
    more = lab.servers["more"].pool
    more.change("VM", more.guest("web", "sky9"), uuid=web)
    lab.world.domains = {web: {lab.pool.hosts["sky1"], more.hosts["sky9"]}}
    with pytest.raises(UndecidedError, match="the source runs although"):
        await recover(lab.journal_path(), lab.store, lab.observe, "")
    assert lab.where(web) == {"sky1", "sky9"}
    record = await recover(lab.journal_path(), lab.store, lab.observe, use)
    assert record.phase is (Phase.ROLLED_BACK if use == "source" else Phase.COMMITTED)
    assert lab.where(web) == {stays}


async def test_secrets_are_in_no_journal(lab: Lab, web: str) -> None:
    tokens: set[str] = set()

    def remember(_: Progress) -> None:
        for server in lab.servers.values():
            tokens.update(server.pool.sessions)

    lab.on_progress = remember
    await move(lab.request("more/sky9"), lab.store, lab.observe)
    written = b"".join(
        path.read_bytes() for path in lab.store.journals.rglob("*") if path.is_file()
    ).decode()
    assert tokens
    for secret in (PASSWORD, *tokens):
        assert secret not in written
