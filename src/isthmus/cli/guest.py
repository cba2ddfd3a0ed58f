"""`isthmus guest`: guests with the payload inside, on hosts that this machine's QEMU plays."""

import asyncio
import time

import click

from isthmus.cli import lab
from isthmus.errors import IsthmusError
from isthmus.hypervisor.qemu.process import QemuProcess


@click.group()
def guest() -> None:
    """Start, list, show and stop guests.

    \b
    Examples:
      isthmus guest start web --host phenom --level-with Penryn
      isthmus guest list
      isthmus migrate web --to Penryn
      isthmus guest stop web
    """


@guest.command()
@click.argument("name")
@click.option("--host", required=True, metavar="MODEL", help="The host: a CPU model of QEMU.")
@click.option(
    "--level-with", multiple=True, metavar="MODEL", help="Show the level of --host and these hosts."
)
@click.option(
    "--memory", default=256, show_default=True, metavar="MIB", type=click.IntRange(min=1),
    help="Memory in MiB.",
)  # fmt: skip
@click.option("--vcpus", default=1, show_default=True, type=click.IntRange(1, 16))
@click.option("--kernel", metavar="KERNEL", help="A series (6.12), a package or a vmlinuz.")
@click.option("--test", default="all", show_default=True, help="Instruction groups to test.")
@click.option("--blind", is_flag=True, help="Test these groups even where CPUID has them not.")
@click.option(
    "--clock", metavar="SOURCE", help="Its clock source; tsc, but on lab hosts kvm-clock."
)
@click.option(
    "--module", is_flag=True, help="Load the translator's module in its kernel (built for it)."
)
@lab.engine_option
@lab.qemu_option
@lab.json_option
def start(
    name: str,
    host: str,
    level_with: tuple[str, ...],
    memory: int,
    vcpus: int,
    kernel: str | None,
    test: str,
    blind: bool,
    clock: str | None,
    module: bool,
    engine: str,
    qemu: str,
    as_json: bool,
) -> None:
    """Start a guest that runs until it is stopped.

    \b
    Examples:
      isthmus guest start old --host phenom
      isthmus guest start served --host phenom --module
      isthmus guest start both --host EPYC --level-with Skylake-Server --vcpus 2
    """
    from isthmus.baseline.level import level
    from isthmus.migration import stopping
    from isthmus.migration.hosts import Machine
    from isthmus.migration.record import guest_lock
    from isthmus.places import cache_folder
    from isthmus.qualification.lab.image import build_image, command_line
    from isthmus.values import to_json

    async def work() -> None:
        image = await asyncio.to_thread(
            build_image,
            kernel,
            cache=cache_folder(),
            inside=module,
            progress=lambda text: click.echo(text, err=True),
        )
        hosts = await lab.hosts(qemu, lab.accelerator(engine), among=(host, *level_with))
        machine = Machine(
            kernel=image.kernel,
            initrd=image.initrd,
            # Hosts of two makers have time stamp counters of two speeds.
            command_line=command_line(
                {"test": test, "blind": blind},
                clock=clock or ("kvm-clock" if host.startswith(lab.LAB_PREFIX) else "tsc"),
            ),
            memory_mib=memory,
            vcpus=vcpus,
        )
        pool = [hosts.offered(model) for model in (host, *level_with)]
        shown = level(pool).model if level_with else None
        # Two that start one guest at once would share its folder, and its name.
        with guest_lock(hosts.store.locks, name):
            started = await hosts.start(name, host, machine, shown=shown, module=module)
        try:
            await _up(started.process)
        except asyncio.CancelledError:  # Ctrl-C: what was started is stopped
            stopping.stop(hosts.store, name)
            raise
        if as_json:
            click.echo(to_json(started))
        else:
            click.echo(f"{name} runs on {host}, console in {started.process.console}")

    lab.run(work())


async def _up(process: QemuProcess) -> None:
    """Wait until the payload has reported once."""
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        if not process.alive():
            break
        if process.payload.exists() and b" tick " in process.payload.read_bytes():
            return
        await asyncio.sleep(0.1)
    raise IsthmusError(
        "the guest does not come up",
        remedy=f"its console is in {process.console}; `isthmus guest stop` takes it away",
    )


@guest.command("list")
@lab.json_option
def list_guests(as_json: bool) -> None:
    """List the guests of this machine.

    \b
    Examples:
      isthmus guest list
      isthmus guest list --json
    """
    from isthmus.values import to_json

    guests, problems = lab.store().guests()
    if as_json:
        click.echo(to_json(guests))
    else:
        for each in guests:
            state = f"pid {each.process.identity.pid}" if each.process.alive() else "dead"
            click.echo(f"{each.name:16} {each.host:20} {each.hops:3} moves  {state}")
    lab.tell_damaged(problems)


@guest.command()
@click.argument("name")
def console(name: str) -> None:
    """Print what the guest has printed on its console.

    \b
    Examples:
      isthmus guest console web
    """
    process = lab.store().read(name).process
    try:
        data = process.console.read_bytes()
    except OSError as error:
        raise IsthmusError(f"{process.console}: {error.strerror}") from error
    # A guest may print terminal escapes to harm who reads it.
    click.echo(
        "".join(c if c.isprintable() or c in "\n\t" else "·" for c in data.decode(errors="replace"))
    )


@guest.command()
@click.argument("names", nargs=-1, required=True)
def stop(names: tuple[str, ...]) -> None:
    """Kill guests and remove all their files.

    \b
    Examples:
      isthmus guest stop web db
    """
    from isthmus.migration import stopping

    store = lab.store()
    for name in names:
        stopping.stop(store, name)
        click.echo(f"{name} is stopped", err=True)
