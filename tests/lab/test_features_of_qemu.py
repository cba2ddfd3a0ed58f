"""Every feature that the installed QEMU's CPU models use is in the table, and needs no more than
those models have."""

import pytest

from isthmus.cpu.features import FEATURES, closure_violations
from isthmus.hypervisor.qemu.binary import find_qemu
from isthmus.hypervisor.qemu.engine import Accelerator
from isthmus.hypervisor.qemu.models import read_cpus

pytestmark = pytest.mark.lab


async def test_every_feature_of_the_named_models_is_known() -> None:
    cpus = await read_cpus(find_qemu(), Accelerator.TCG)
    assert len(cpus.definitions) > 50
    for name, model in cpus.definitions.items():
        assert model.features <= FEATURES.keys(), name
        assert not closure_violations(model.features), name
        assert not closure_violations(cpus.offered(name).features), name
