"""QEMU: a level as its ``-cpu`` argument, from QEMU's own models or those that Isthmus carries."""

from collections.abc import Mapping

from isthmus.baseline.level import Baseline
from isthmus.cpu.features import FEATURES
from isthmus.cpu.model import CpuModel
from isthmus.cpu.named import qemu_models
from isthmus.hypervisor.qemu.render import cpu_argument
from isthmus.hypervisor.rendering import RenderedFile, Rendering, unspoken


def render(
    level: Baseline,
    name: str,  # noqa: ARG001 (every renderer takes one)
    named: Mapping[str, CpuModel] | None = None,
) -> Rendering:
    """The argument; features that no property of QEMU sets are left out, with a note.

    :param named: the models of the QEMU at hand.
    """
    model = level.model
    silent = frozenset(
        feature
        for feature in model.features
        if feature not in FEATURES or FEATURES[feature].qemu is None
    )
    plain = model.replace(features=model.features - silent)
    argument = cpu_argument(plain, named or qemu_models())
    return Rendering(
        platform="qemu",
        files=(RenderedFile(name="argument of QEMU", text=f"-cpu '{argument}'\n"),),
        notes=(
            *unspoken(silent, "QEMU"),
            "give the same machine type on every host (-machine pc-q35-7.2, not q35)",
        ),
    )
