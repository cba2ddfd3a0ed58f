"""Moves of libvirt's guests whose new host lacks what they use: by hand, with the translator.

libvirt refuses such a move (:mod:`isthmus.hypervisor.libvirt.incoming`), so Isthmus makes it as it
does between two QEMUs of its own, by the same engine under the same rules: libvirt starts a paused
domain whose QEMU waits for a stream, QEMU is spoken to through libvirt's monitor passthrough, and
the source's domain is destroyed only after the guest has proved itself.  A guest that came in this
way also leaves in this way, since its domain has arguments that libvirt would copy.

The translator reaches the debug stub by a UNIX socket, so it serves where the destination's daemon
is on this machine.
"""

import contextlib
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from isthmus.errors import HypervisorError, IsthmusError
from isthmus.hypervisor.libvirt.connection import (
    Connection,
    DaemonGoneError,
    LibvirtError,
    binding,
    call,
    open_connection,
    session,
)
from isthmus.hypervisor.libvirt.incoming import QMP, hop_of, incoming_xml, settled_xml
from isthmus.hypervisor.libvirt.passthrough import DomainMonitor
from isthmus.hypervisor.qemu.guests import GuestStore
from isthmus.hypervisor.qemu.monitor import CommandRefusedError, Monitor, MonitorGoneError
from isthmus.hypervisor.qemu.stream import Transfer
from isthmus.migration import engine
from isthmus.migration.decision import Copy
from isthmus.migration.libvirt_guest import Facts, dialled
from isthmus.migration.options import Observer, Options
from isthmus.migration.phases import Phase
from isthmus.migration.platforms import Request
from isthmus.migration.preflight import Preflight
from isthmus.migration.record import MigrationRecord, Plan, Side, new_id
from isthmus.migration.sides import Destination, Source, copy_of
from isthmus.translate.placement import WARN_SHARE, Service, arrange

PLATFORM = "libvirt"
DEFINITION = "domain.xml"
KEPT = "definition.xml"
CERTIFICATES = "/etc/pki/qemu"
"""Where QEMU finds the host's certificates, on each host: libvirt's default for migrations, too
(``default_tls_x509_cert_dir`` in its qemu.conf)."""
_CREDENTIALS = "isthmus-tls"


async def move(
    request: Request,
    facts: Facts,
    verdict: Preflight,
    by: Service,
    store: GuestStore,
    observer: Observer,
) -> MigrationRecord:
    """Move the guest; the caller holds its lock, and preflight has been passed."""
    hops = int(facts.hop.folder.name.partition(".")[0]) if facts.hop is not None else 0
    folder = store.hop_folder(facts.uuid, hops + 1)
    options = request.options
    translation = arrange(
        by,
        verdict.translated,
        warn_share=WARN_SHARE if options.warn_share is None else options.warn_share,
        level=f"isthmus level {request.source} {request.destination}",
    )
    translated = translation is not None
    definition = incoming_xml(
        facts.moving,
        without=facts.shown.features - verdict.shown.features,
        vendor=facts.shown.vendor,
        folder=folder,
        translated=translated,
    )
    (folder / DEFINITION).write_text(definition, encoding="utf-8")
    if facts.persistent:
        (folder / KEPT).write_text(settled_xml(facts.xml, facts.definition), encoding="utf-8")
    earlier = facts.hop
    plan = Plan(
        id=new_id(),
        guest=facts.name,
        source=Side(
            qmp=earlier.folder / QMP if earlier is not None else None,
            address=request.source,
            domain=facts.uuid,
            translator=earlier.folder if earlier is not None and earlier.translated else None,
        ),
        destination=Side(
            qmp=folder / QMP,
            address=request.destination,
            domain=facts.uuid,
            directory=folder,
            translator=folder if translated else None,
        ),
        channel=_channel(request, folder),
        source_host=request.source,
        destination_host=request.destination,
        created=time.time(),
        translation=translation,
        platform=PLATFORM,
        tls=request.tls,
    )
    record = await engine.move(
        plan, journals=store.journals, options=options, observer=observer, ends=ends
    )
    await _settle_definitions(record)
    return record


async def recover(path: Path, observer: Observer, use: str) -> MigrationRecord:
    """Bring such a migration to its end whose process was killed; the caller holds its lock."""
    record = await engine.resume(path, options=Options(), observer=observer, use=use, ends=ends)
    await _settle_definitions(record)
    return record


def ends(record: MigrationRecord) -> tuple[Source, Destination]:
    """Both ends of such a migration."""
    plan = record.plan
    tls = plan.tls and plan.channel.startswith("tcp:")
    return (
        DomainSource(plan.source, tls=tls),
        DomainDestination(
            plan.destination,
            owned=record.phase not in {Phase.OBSERVED, Phase.PREPARING},
            tls=tls,
        ),
    )


def _channel(request: Request, folder: Path) -> str:
    """Where the destination listens: in the network it is reached by, or a file on this machine."""
    host = dialled(request)
    return f"tcp:{host}:0" if host else f"unix:{folder / 'stream.sock'}"


async def _settle_definitions(record: MigrationRecord) -> None:
    """A guest with a definition keeps it, at its new host; the old one forgets the guest."""
    plan = record.plan
    folder = plan.destination.directory
    if record.phase is not Phase.COMMITTED or folder is None:
        return
    kept = folder / KEPT
    if not kept.exists():
        return
    xml = kept.read_text(encoding="utf-8")
    async with session(plan.destination.address) as there:
        await call(there.handle.defineXML, xml)
    async with session(plan.source.address) as home:
        domain = await home.find(plan.source.domain)
        if domain is not None:
            await call(domain.undefine)


class _Domain:
    """What both ends share here: a domain of a daemon in place of a process."""

    side: Side
    _monitor: Any
    _connection: Connection | None = None

    async def connect(self) -> None:
        """Connect, or connect again after the connection was cut.

        :raises MonitorGoneError: the daemon or the domain is gone.
        """
        if self._monitor is not None:
            with contextlib.suppress(MonitorGoneError):
                await self._monitor.status()
                return
            await self._monitor.close()
            self._monitor = None
        if self.side.qmp is not None:
            self._monitor = await Monitor.connect(self.side.qmp)
            return
        domain = await self._found()
        if domain is None:
            raise MonitorGoneError(f"{self.side.address}: there is no such guest")
        assert self._connection is not None
        self._monitor = DomainMonitor(self._connection, domain)

    async def _found(self) -> Any | None:
        """The domain, None where the daemon has none; raises :class:`MonitorGoneError`."""
        try:
            if self._connection is not None:
                with contextlib.suppress(LibvirtError):
                    if await call(self._connection.handle.isAlive):
                        return await self._connection.find(self.side.domain)
                await self._connection.close()
            self._connection = await open_connection(self.side.address)
            return await self._connection.find(self.side.domain)
        except DaemonGoneError as error:
            raise MonitorGoneError(str(error)) from error

    async def state(self) -> Copy:
        """The state of this copy: as libvirt tells whether it exists, and QEMU what it does."""
        libvirt = binding()
        try:
            domain = await self._found()
            if domain is None:
                return Copy.DEAD
            if (await call(domain.state))[0] in {
                libvirt.VIR_DOMAIN_SHUTOFF,
                libvirt.VIR_DOMAIN_CRASHED,
            }:
                return Copy.DEAD
            await self.connect()
            return copy_of(await self._monitor.status())
        except MonitorGoneError:
            return Copy.UNREACHABLE
        except LibvirtError:
            return Copy.UNREACHABLE

    async def _let_go(self) -> None:
        if self._monitor is not None:
            await self._monitor.close()
        if self._connection is not None:
            await self._connection.close()

    async def _end(self) -> None:
        """Have libvirt end the domain for good.

        :raises HypervisorError: it does not.
        """
        domain = await self._found()
        if domain is not None:
            with contextlib.suppress(LibvirtError):
                await call(domain.destroy)
        if self._monitor is not None:
            await self._monitor.close()
            self._monitor = None
        if await self.state() is not Copy.DEAD:
            raise HypervisorError(f"{self.side.address}: that copy does not end")


async def _encrypt(monitor: Monitor, endpoint: str) -> None:
    """Have QEMU use TLS for the stream, with the hosts' certificates, both sides verified.

    (QEMU: docs/system/tls.rst; qapi/crypto.json, ``TlsCredsX509Properties``.)

    :raises CommandRefusedError: QEMU does not find or read them.
    """
    await _forget_encryption(monitor)
    await monitor.execute(
        "object-add",
        {
            "qom-type": "tls-creds-x509", "id": _CREDENTIALS, "dir": CERTIFICATES,
            "endpoint": endpoint, "verify-peer": True,
        },
    )  # fmt: skip
    await monitor.execute("migrate-set-parameters", {"tls-creds": _CREDENTIALS})


async def _forget_encryption(monitor: Monitor) -> None:
    """Leave QEMU as libvirt knows it."""
    with contextlib.suppress(CommandRefusedError):
        await monitor.execute("migrate-set-parameters", {"tls-creds": ""})
        await monitor.execute("object-del", {"id": _CREDENTIALS})


class DomainSource(_Domain, Source):
    """The domain that runs the guest before the move."""

    def __init__(self, side: Side, *, tls: bool = False) -> None:
        super().__init__(side)
        self._tls = tls

    async def send(self, uri: str, progress: Callable[[Transfer], None]) -> None:
        """Send the guest, see :meth:`Source.send`."""
        if self._tls:
            await _encrypt(self.monitor, "client")
        await super().send(uri, progress)

    async def resume(self) -> None:
        """Take the guest back, see :meth:`Source.resume`."""
        await super().resume()
        if self._tls:
            with contextlib.suppress(IsthmusError):
                await _forget_encryption(self.monitor)

    async def destroy(self) -> None:
        """End the domain for good; afterwards it can never run the guest."""
        await self._let_translator_go()
        await self._end()

    async def close(self) -> None:
        """Let go of the connections; changes nothing."""
        await self._let_translator_go()
        await self._let_go()

    async def _let_translator_go(self) -> None:
        if self.translator is not None:
            with contextlib.suppress(IsthmusError, OSError):
                await self.translator.close()
            self.translator = None


class DomainDestination(_Domain, Destination):
    """The domain that receives the guest; libvirt starts it from the XML in its folder."""

    def __init__(self, side: Side, *, owned: bool, tls: bool = False) -> None:
        super().__init__(side, owned=owned)
        self._tls = tls

    async def listen(self, uri: str) -> str:
        """Open the channel, see :meth:`Destination.listen`."""
        if self._tls:
            await _encrypt(self.monitor, "server")
        return await super().listen(uri)

    async def launch(self, plan: Plan, *, lives_with_parent: bool) -> Side:  # noqa: ARG002
        """Have libvirt start it, paused."""
        libvirt = binding()
        folder = plan.destination.directory
        assert folder is not None
        if await self._found() is not None:
            raise HypervisorError(
                f"{self.side.address} has a guest with that UUID", remedy="look at both"
            )
        assert self._connection is not None
        xml = (folder / DEFINITION).read_text(encoding="utf-8")
        await call(self._connection.handle.createXML, xml, libvirt.VIR_DOMAIN_START_PAUSED)
        self.owned = True
        return self.side

    async def destroy(self) -> None:
        """End the domain for good; afterwards it can never run the guest.

        Another's of the same UUID is left alone: that was there before, or has come since.

        :raises HypervisorError: there is another's although ours had been started.
        """
        if self.translator is not None:
            with contextlib.suppress(IsthmusError, OSError):
                await self.translator.close()
            self.translator = None
        if await self._is_anothers():
            if not self.owned:
                return
            raise HypervisorError(
                f"{self.side.address} has another guest with that UUID", remedy="look at both"
            )
        await self._end()

    async def _is_anothers(self) -> bool:
        """Whether the domain of that UUID is none that this move has started."""
        domain = await self._found()
        if domain is None:
            return False
        try:
            hop = hop_of((await call(domain.XMLDesc)).encode())
        except LibvirtError:
            if await self._found() is None:  # it has ended meanwhile
                return False
            raise
        return hop is None or hop.folder != self.side.directory

    async def close(self) -> None:
        """Let go of the connections."""
        if self.translator is not None:
            with contextlib.suppress(IsthmusError, OSError):
                await self.translator.close()
        if self._tls and self._monitor is not None:  # it may be a source one day
            with contextlib.suppress(IsthmusError):
                await _forget_encryption(self._monitor)
        await self._let_go()
