"""Cases on hosts that are brought up for them: the selftest; and a guest on each, as a trial."""

import asyncio
import contextlib
import shutil
import tempfile
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path

from isthmus.errors import IsthmusError
from isthmus.hypervisor.qemu.binary import QemuBinary
from isthmus.hypervisor.qemu.guests import GuestStore
from isthmus.hypervisor.qemu.monitor import Monitor
from isthmus.qualification.kvm import host as lab_host
from isthmus.qualification.kvm import together
from isthmus.qualification.kvm.cases.bench import Bench
from isthmus.qualification.kvm.cases.case import Case, Outcome, Part, Verdict
from isthmus.qualification.kvm.host import LabHost
from isthmus.qualification.kvm.pool import PREFIX, lab_folder, lab_hosts
from isthmus.qualification.lab.image import GuestImage, build_image
from isthmus.values import Value


class Ground(Value, frozen=True):
    """A lab host that cases ran on: its name, its KVM, and the versions of what it is made of."""

    name: str
    kvm: str
    kernel: str
    qemu: str
    cpu: str
    emulator: str
    seconds: float


class Report(Value, frozen=True):
    """A run of the selftest: on which hosts, when (Unix seconds), and what came of each case."""

    hosts: tuple[Ground, ...]
    guest_kernel: str
    at: float
    seconds: float
    outcomes: tuple[Outcome, ...]
    schema: int = 1

    @property
    def as_expected(self) -> bool:
        """Whether every case went as expected."""
        return all(outcome.as_expected for outcome in self.outcomes)


async def selftest(
    cases: Sequence[Case],
    qemu: QemuBinary,
    *,
    run: Path,
    cache: Path,
    progress: Callable[[str], None] = lambda _: None,
    so_far: Callable[[Report], None] = lambda _: None,
) -> Report:
    """Run the cases one after another on the lab hosts that they need.

    A lab host of this user that is up is used; one that is not is started, and ended afterwards.

    :param run: the folder of what runs (``isthmus.places.run_folder``).
    :param so_far: is told after each case, so that a run that is cut short leaves what it saw.
    :raises HypervisorError: a host does not come up.
    """
    begun = time.monotonic()
    at = time.time()
    own: list[LabHost] = []
    folder = _folder(run)
    try:
        hosts = await _ground(cases, qemu, cache, own, progress)
        store = GuestStore(folder / "s", folder)
        images: dict[str | None, GuestImage] = {}

        def image(kernel: str | None) -> GuestImage:
            if kernel not in images:
                images[kernel] = build_image(kernel, cache=cache, progress=progress)
            return images[kernel]

        pool = await lab_hosts(hosts, store)
        bench = Bench(pool, image, progress)
        report = Report(
            hosts=tuple(_told(host) for host in hosts.values()),
            guest_kernel=(await bench.image()).release,
            at=at,
            seconds=0.0,
            outcomes=(),
        )
        for case in cases:
            outcome = await _try(case, bench, progress)
            report = report.replace(
                outcomes=(*report.outcomes, outcome), seconds=time.monotonic() - begun
            )
            so_far(report)
    finally:
        for host in own:
            together.end(host)
        shutil.rmtree(folder, ignore_errors=True)
        with contextlib.suppress(OSError):
            lab_folder().rmdir()
    return report


class Lived(Value, frozen=True):
    """A guest that came up on a lab host: its kernel, under KVM or not, after how many seconds."""

    host: str
    guest_kernel: str
    kvm: bool
    seconds: float


async def boot_guests(
    hosts: Mapping[str, LabHost],
    *,
    run: Path,
    cache: Path,
    progress: Callable[[str], None] = lambda _: None,
) -> list[Lived]:
    """Boot a guest on each of these hosts, one after another, until it reports, and end it.

    :raises IsthmusError: one does not come up.
    """
    folder = _folder(run)
    try:
        image = await asyncio.to_thread(build_image, cache=cache, progress=progress)
        pool = await lab_hosts(hosts, GuestStore(folder / "s", folder))
        bench = Bench(pool, lambda _: image, progress)
        lived = []
        for name in hosts:
            begun = time.monotonic()
            async with bench.guest(PREFIX + name) as guest:
                seconds = time.monotonic() - begun
                async with Monitor.session(bench.read(guest).process.observe) as monitor:
                    kvm = await monitor.execute("query-kvm")
            lived.append(
                Lived(
                    host=PREFIX + name,
                    guest_kernel=image.release,
                    kvm=bool(kvm["enabled"]),
                    seconds=seconds,
                )
            )
        return lived
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _folder(run: Path) -> Path:
    """A folder of this run's own for its guests; short, since sockets' paths must be."""
    run.mkdir(mode=0o700, parents=True, exist_ok=True)
    return Path(tempfile.mkdtemp(prefix=".self-", dir=run))


async def _ground(
    cases: Sequence[Case],
    qemu: QemuBinary,
    cache: Path,
    own: list[LabHost],
    progress: Callable[[str], None],
) -> dict[str, LabHost]:
    needed = needed_hosts(cases)
    up = lab_host.started(lab_folder())
    missing = [name for name in needed if name not in up]
    own += await together.start(
        missing,
        qemu,
        run=lab_folder(),
        cache=cache,
        lives_with_parent=True,
        progress=progress,
    )
    both = up | {host.name: host for host in own}
    return {name: both[name] for name in needed}


def needed_hosts(cases: Collection[Case]) -> tuple[str, ...]:
    """The names of all lab hosts that these cases need, each once."""
    return tuple(dict.fromkeys(name for case in cases for name in case.hosts))


async def _try(case: Case, bench: Bench, progress: Callable[[str], None]) -> Outcome:
    progress(f"failure {case.number}: {case.title}")
    begun = time.monotonic()
    try:
        parts = tuple(await case.run(bench))
    except (IsthmusError, OSError) as error:
        parts = (
            Part(
                tried="all of it",
                expected="to be tried to its end",
                seen=str(error),
                verdict=Verdict.OTHERWISE,
            ),
        )
    outcome = Outcome(
        number=case.number, title=case.title, parts=parts, seconds=time.monotonic() - begun
    )
    for each in outcome.parts:
        progress(f"  {each.tried}: {each.seen}: {each.verdict}")
    return outcome


def _told(host: LabHost) -> Ground:
    return Ground(
        name=host.name,
        kvm=host.kvm,
        kernel=host.kernel,
        qemu=host.qemu,
        cpu=host.model.cpu,
        emulator=host.emulator,
        seconds=host.seconds,
    )
