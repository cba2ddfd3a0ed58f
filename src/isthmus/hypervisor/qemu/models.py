"""What the installed QEMU really offers: its named CPU models under one accelerator.

``query-cpu-model-expansion`` gives a model's every property but is not filtered by the accelerator;
``query-cpu-definitions`` names what the accelerator lacks (``unavailable-features``).  A host of a
named model offers the one less the other.  (QEMU: target/i386/cpu.c,
``x86_cpu_class_check_missing_features`` and ``qmp_query_cpu_model_expansion``.)
"""

import asyncio
import tempfile
from collections.abc import Collection, Mapping
from pathlib import Path

from isthmus.cpu.model import CpuModel
from isthmus.cpu.readers.qemu import canonical, model_from_properties
from isthmus.errors import InputError
from isthmus.hypervisor.qemu.binary import QemuBinary
from isthmus.hypervisor.qemu.engine import Accelerator
from isthmus.hypervisor.qemu.monitor import CommandRefusedError, Monitor
from isthmus.hypervisor.qemu.process import start_bare
from isthmus.values import Value


class QemuCpus(Value, frozen=True):
    """All CPU models of one QEMU under one accelerator.

    ``definitions`` is each model as QEMU defines it; ``unavailable`` what the accelerator lacks.
    """

    version: str
    accelerator: Accelerator
    definitions: Mapping[str, CpuModel]
    unavailable: Mapping[str, frozenset[str]]

    def offered(self, name: str) -> CpuModel:
        """What a host of the named model truly offers here.

        :raises InputError: QEMU has no model of that name.
        """
        model = self.definition(name)
        return model.replace(features=model.features - self.unavailable[name])

    def definition(self, name: str) -> CpuModel:
        """The named model as QEMU defines it; raises :class:`InputError` for an unknown name."""
        model = self.definitions.get(name)
        if model is None:
            near = [known for known in self.definitions if known.lower() == name.lower()]
            raise InputError(
                f"{name}: QEMU {self.version} has no CPU model of that name",
                remedy=f"did you mean {near[0]}?"
                if near
                else "`qemu-system-x86_64 -cpu help` lists them",
            )
        return model

    @property
    def named(self) -> Mapping[str, CpuModel]:
        """Every real model's full definition by name, as bases to render a CPU from.

        "host" and "max" mean another CPU on every machine, so they are no base.
        """
        return {
            name: model for name, model in self.definitions.items() if name not in {"host", "max"}
        }


async def read_cpus(
    qemu: QemuBinary, accelerator: Accelerator, names: Collection[str] | None = None
) -> QemuCpus:
    """Ask QEMU for its CPU models (all, or only ``names``); about a third of a second.

    :raises HypervisorError: QEMU does not start or does not answer.
    """
    with tempfile.TemporaryDirectory(prefix="isthmus-cpus-") as folder:
        process = await start_bare(qemu, accelerator, Path(folder))
        try:
            async with Monitor.session(process.qmp) as monitor:
                definitions = await monitor.execute("query-cpu-definitions")
                models: dict[str, CpuModel] = {}
                unavailable: dict[str, frozenset[str]] = {}
                for definition in definitions:
                    name = str(definition["name"])
                    if names is not None and name not in names:
                        continue
                    model = await _expand(monitor, name, qemu)
                    if model is not None:
                        models[name] = model
                        unavailable[name] = frozenset(
                            canonical(item) for item in definition.get("unavailable-features", ())
                        )
        finally:
            await asyncio.to_thread(process.kill)
    return QemuCpus(
        version=qemu.version_text,
        accelerator=accelerator,
        definitions=models,
        unavailable=unavailable,
    )


async def _expand(monitor: Monitor, name: str, qemu: QemuBinary) -> CpuModel | None:
    try:
        answer = await monitor.execute(
            "query-cpu-model-expansion", {"type": "full", "model": {"name": name}}
        )
    except CommandRefusedError:
        return None  # "host" without KVM, for one
    return model_from_properties(
        name, answer["model"]["props"], source=f"QEMU {qemu.version_text} query-cpu-model-expansion"
    )
