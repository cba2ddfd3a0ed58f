"""The destination of a move of a libvirt guest by hand: what is ended there, and what is not."""

from pathlib import Path
from typing import Any

import pytest

from isthmus.errors import HypervisorError
from isthmus.hypervisor.libvirt.incoming import QMP, hop_of, incoming_xml
from isthmus.migration import libvirt_translated
from isthmus.migration.decision import Copy
from isthmus.migration.libvirt_translated import ends
from isthmus.migration.phases import Phase
from isthmus.migration.record import MigrationRecord, Plan, Side, Step

XML = b"""<domain type="qemu"><name>web</name><uuid>c7a5fdbd-edaf-9455-926a-d65c16db1809</uuid>
<cpu mode="custom" match="exact"><model>qemu64</model></cpu><devices/></domain>"""


class Domain:
    """A domain of the daemon at the destination."""

    def __init__(self, xml: str) -> None:
        self.xml = xml
        self.destroyed = False

    def XMLDesc(self) -> str:  # noqa: N802
        return self.xml

    def destroy(self) -> None:
        self.destroyed = True


def destination(folder: Path, phase: Phase, domain: Domain, monkeypatch: pytest.MonkeyPatch) -> Any:
    plan = Plan(
        id="m",
        guest="web",
        source=Side(address="qemu:///a", domain="u"),
        destination=Side(qmp=folder / QMP, address="qemu:///b", domain="u", directory=folder),
        channel="",
    )
    steps = (Step(phase=Phase.OBSERVED, at=0), Step(phase=phase, at=0))
    end = ends(MigrationRecord(plan=plan, steps=steps))[1]

    async def call(method: Any, *arguments: Any) -> Any:
        return method(*arguments)

    async def found() -> Domain | None:
        return None if domain.destroyed else domain

    monkeypatch.setattr(libvirt_translated, "call", call)
    monkeypatch.setattr(libvirt_translated, "binding", lambda: None)
    monkeypatch.setattr(end, "_found", found)

    async def state() -> Copy:
        return Copy.DEAD if domain.destroyed else Copy.RUNNING

    monkeypatch.setattr(end, "state", state)
    return end


def ours(folder: Path) -> str:
    return incoming_xml(XML, without=frozenset(), vendor="AMD", folder=folder, translated=False)


async def test_a_guest_that_was_there_before_is_not_ended_with_the_move(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The move is refused because of it: to end it then would end somebody's guest."""
    for xml in (XML.decode(), ours(tmp_path / "another")):
        domain = Domain(xml)
        await destination(tmp_path, Phase.PREPARING, domain, monkeypatch).destroy()
        assert not domain.destroyed


async def test_what_a_killed_mover_has_started_is_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for phase in (Phase.PREPARING, Phase.MOVING):
        domain = Domain(ours(tmp_path))
        assert hop_of(domain.xml.encode()) is not None
        end = destination(tmp_path, phase, domain, monkeypatch)
        await end.destroy()
        assert domain.destroyed


async def test_the_source_does_not_go_on_beside_another_of_that_uuid(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    domain = Domain(XML.decode())
    with pytest.raises(HypervisorError, match="another guest with that UUID"):
        await destination(tmp_path, Phase.MOVING, domain, monkeypatch).destroy()
    assert not domain.destroyed
