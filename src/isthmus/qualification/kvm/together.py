"""Several lab hosts started at once, with the images that they and their guests boot from."""

import asyncio
import shutil
from collections.abc import Callable, Collection
from pathlib import Path

from isthmus.hypervisor.qemu.binary import QemuBinary
from isthmus.qualification.kvm import host as lab_host
from isthmus.qualification.kvm.host import HostModel, LabHost
from isthmus.qualification.kvm.image import build_host_image
from isthmus.qualification.lab.hosts import starting
from isthmus.qualification.lab.image import build_image


async def start(
    names: Collection[str],
    qemu: QemuBinary,
    *,
    run: Path,
    cache: Path,
    kernel: str | None = None,
    lives_with_parent: bool = False,
    progress: Callable[[str], None] = lambda _: None,
) -> list[LabHost]:
    """Start the hosts of these names below ``run``, all at once; returns them in their order.

    Where one fails, those that had come up are ended again.

    :param kernel: the guests' kernel, which every host gets beforehand.
    :raises InputError: there is no host of a name, or one is up or being started already.
    :raises HypervisorError: one does not come up.
    """
    models = [lab_host.host_model(name) for name in dict.fromkeys(names)]
    with starting(run, names):
        return await _start_all(models, qemu, run, cache, kernel, lives_with_parent, progress)


async def _start_all(
    models: Collection[HostModel],
    qemu: QemuBinary,
    run: Path,
    cache: Path,
    kernel: str | None,
    lives_with_parent: bool,
    progress: Callable[[str], None],
) -> list[LabHost]:
    guest = await asyncio.to_thread(build_image, kernel, cache=cache, progress=progress)
    images = {
        emulator: await asyncio.to_thread(
            build_host_image,
            emulator,
            cache=cache,
            guests=(guest.kernel, guest.initrd),
            progress=progress,
        )
        for emulator in sorted({model.emulator for model in models})
    }
    under_way = [
        asyncio.ensure_future(
            lab_host.up(
                model,
                images[model.emulator],
                qemu,
                run=run,
                cache=cache,
                progress=progress,
                lives_with_parent=lives_with_parent,
            )
        )
        for model in models
    ]
    try:
        return list(await asyncio.gather(*under_way))
    except BaseException:
        for one in under_way:
            one.cancel()
        ended = await asyncio.gather(*under_way, return_exceptions=True)
        for host in ended:
            if isinstance(host, LabHost):
                await asyncio.to_thread(end, host)
        raise


def end(host: LabHost) -> None:
    """End one lab host with everything that runs in it, and remove its files."""
    host.process.kill()
    shutil.rmtree(host.folder, ignore_errors=True)
