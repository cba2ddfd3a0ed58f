"""What several commands share: the guests of this machine, and the hosts that its QEMU plays."""

import asyncio
import signal
import threading
from collections.abc import Callable, Collection, Coroutine, Mapping
from typing import Any, TypeVar

import click

from isthmus.errors import InputError
from isthmus.hypervisor.qemu.binary import DEFAULT_NAME, QemuBinary, find_qemu
from isthmus.hypervisor.qemu.engine import Accelerator, choose_accelerator
from isthmus.hypervisor.qemu.guests import GuestStore
from isthmus.hypervisor.qemu.models import read_cpus
from isthmus.migration.hosts import Hosts
from isthmus.places import run_folder, state_folder

LAB_PREFIX = "kvm:"
"""What the name of an emulated host with KVM begins with (`isthmus lab kvm`)."""

T = TypeVar("T")
F = TypeVar("F", bound=Callable[..., Any])


def store() -> GuestStore:
    """The guests of this user on this machine."""
    return GuestStore(state_folder(), run_folder())


async def hosts(
    qemu_name: str, accelerator: Accelerator | None = None, *, among: Collection[str] = ()
) -> Hosts:
    """The hosts that QEMU plays here, or the lab hosts where ``among`` names one.

    The accelerator is chosen by trying unless it is given.

    :raises InputError: hosts of both kinds are named.
    """
    if any(name.startswith(LAB_PREFIX) for name in among):
        from isthmus.qualification.kvm.host import started
        from isthmus.qualification.kvm.pool import lab_folder, lab_hosts

        for name in among:
            if not name.startswith(LAB_PREFIX):
                raise InputError(
                    f"{name}: not a lab host, and a guest cannot go from one kind to the other",
                    remedy=f"lab hosts are named {LAB_PREFIX}NAME",
                )
        return await lab_hosts(started(lab_folder()), store())
    qemu: QemuBinary = await asyncio.to_thread(find_qemu, qemu_name)
    if accelerator is None:
        accelerator = (await asyncio.to_thread(choose_accelerator, qemu)).accelerator
    return Hosts(qemu, accelerator, await read_cpus(qemu, accelerator), store())


def tell_damaged(problems: Mapping[str, str]) -> None:
    """Tell of guests whose files cannot be read, after the others were shown.

    :raises InputError: there are any.
    """
    if problems:
        raise InputError(
            "; ".join(problems.values()),
            remedy=f"isthmus guest stop {' '.join(problems)} takes away what is left of them",
        )


def run(work: Coroutine[Any, Any, T]) -> T:
    """Run a command's work; Ctrl-C cancels it and waits until it has put things right.

    So do SIGTERM and SIGHUP: a lost terminal must not leave a guest standing still on both hosts.
    It often sends both, or one twice (the kernel and the shell), so only the first of them counts.
    """
    ended = False

    async def whole() -> T:
        task = asyncio.current_task()
        assert task is not None

        def end() -> None:
            nonlocal ended
            if not ended:
                ended = True
                task.cancel()

        loop = asyncio.get_running_loop()
        # A server's thread gets no signals.
        alone = threading.current_thread() is threading.main_thread()
        for number in (signal.SIGTERM, signal.SIGHUP) if alone else ():
            if signal.getsignal(number) is not signal.SIG_IGN:  # as under nohup
                loop.add_signal_handler(number, end)
        return await work

    try:
        return asyncio.run(whole())
    except asyncio.CancelledError:
        if ended:
            raise KeyboardInterrupt from None
        raise


def qemu_option(command: F) -> F:
    """The option --qemu."""
    return click.option(
        "--qemu",
        default=DEFAULT_NAME,
        show_default=True,
        metavar="PROGRAM",
        help="The QEMU to use: a name on PATH or a path.",
    )(command)


def engine_option(command: F) -> F:
    """The option --engine."""
    return click.option(
        "--engine",
        type=click.Choice(["auto", "kvm", "tcg"]),
        default="auto",
        show_default=True,
        help="The accelerator; auto takes KVM where a trial guest truly runs.",
    )(command)


def json_option(command: F) -> F:
    """The option --json."""
    return click.option("--json", "as_json", is_flag=True, help="Print JSON.")(command)


def accelerator(engine: str) -> Accelerator | None:
    """The accelerator of an --engine word, None for auto."""
    return None if engine == "auto" else Accelerator(engine)
