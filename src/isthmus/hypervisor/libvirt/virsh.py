"""libvirt through its own command, ``virsh``: definitions and documents of one connection.

Whoever manages libvirt has ``virsh``, of the version that fits their daemons, and URIs that work
with it; nothing has to be built against a library.  Names go in as arguments of their own, never
through a shell, and XML through the standard input.
"""

import os
import re
import shlex
import subprocess
from collections.abc import Sequence
from pathlib import Path

from isthmus.divergence.messages import explain
from isthmus.errors import EnvironmentLackError, HypervisorError, InputError
from isthmus.values import Value

TIMEOUT_S = 120.0
"""How long one command may take: the first after a start asks each QEMU what it can do."""
MAX_OUTPUT = 64 << 20
_NAME = re.compile(r"[^\x00-\x1f/]{1,255}")


class DomainState(Value, frozen=True):
    """What ``virsh dominfo`` says: whether the domain runs, has a definition, a saved memory."""

    active: bool
    persistent: bool
    managed_save: bool


class Virsh:
    """The connection of one URI; None leaves it to virsh (``LIBVIRT_DEFAULT_URI`` or its own)."""

    def __init__(self, uri: str | None = None, *, program: Sequence[str] = ("virsh",)) -> None:
        self.uri = uri
        self._program = tuple(program)

    def names(self) -> tuple[str, ...]:
        """The names of all domains, running or not."""
        return tuple(line for line in self.run("list", "--all", "--name").splitlines() if line)

    def state(self, domain: str) -> DomainState:
        """How a domain stands.

        :raises HypervisorError: there is no such domain, or libvirt does not answer.
        """
        facts = {
            key.strip().lower(): value.strip().lower()
            for line in self.run("dominfo", "--domain", _named(domain)).splitlines()
            for key, colon, value in [line.partition(":")]
            if colon
        }
        return DomainState(
            active=facts.get("id", "-") != "-",
            persistent=facts.get("persistent") == "yes",
            managed_save=facts.get("managed save") == "yes",
        )

    def definition(self, domain: str) -> str:
        """The XML that the domain starts with, with its passwords: what may be defined anew."""
        return self.run("dumpxml", "--inactive", "--security-info", "--domain", _named(domain))

    def live(self, domain: str) -> str:
        """The XML of the domain as it runs (as it is defined, if it does not)."""
        return self.run("dumpxml", "--domain", _named(domain))

    def define(self, xml: str) -> None:
        """Define a domain; a running one keeps what it has until it is started anew.

        :raises HypervisorError: libvirt does not take it.
        """
        self.run("define", "/dev/stdin", stdin=xml)

    def capabilities(self) -> str:
        """The host's capabilities."""
        return self.run("capabilities")

    def domain_capabilities(self, *, kind: str = "") -> str:
        """What guests can be shown there.

        :param kind: the type of domain: ``kvm`` or ``qemu``; libvirt's own choice where empty.
        """
        return self.run("domcapabilities", *(("--virttype", kind) if kind else ()))

    def run(self, *words: str, stdin: str | None = None, timeout: float = TIMEOUT_S) -> str:
        """Run one command and return what it prints.

        :raises HypervisorError: libvirt refused; carries its own words and what is known of them.
        :raises EnvironmentLackError: there is no virsh.
        """
        command = [*self.command(), *words]
        try:
            done = subprocess.run(
                command,
                input=stdin,
                capture_output=True,
                text=True,
                errors="replace",
                timeout=timeout,
                check=False,
                env=_environment(),
            )
        except FileNotFoundError as error:
            raise EnvironmentLackError(
                f"{command[0]}: no such program", remedy="apt-get install libvirt-clients"
            ) from error
        except subprocess.TimeoutExpired as error:
            raise HypervisorError(
                f"virsh {words[0]}: no answer within {timeout:g} s",
                remedy=f"see whether `{' '.join(self.command())} version` answers",
            ) from error
        if done.returncode != 0:
            said = _said(done.stderr) or f"virsh {words[0]} failed"
            cure = next((one.cure for one in explain(said)), None)
            raise HypervisorError(said, remedy=cure)
        if len(done.stdout) > MAX_OUTPUT:
            raise HypervisorError(f"virsh {words[0]}: more than {MAX_OUTPUT >> 20} MiB")
        return done.stdout.strip("\n") + "\n"

    def command(self) -> list[str]:
        """The begin of the command line."""
        return [*self._program, "--quiet", *(("--connect", self.uri) if self.uri else ())]

    def put_back(self, path: Path) -> str:
        """The command by which an operator defines the domain of a file."""
        return shlex.join(
            ["virsh", *(("--connect", self.uri) if self.uri else ()), "define", str(path)]
        )


def _named(domain: str) -> str:
    if not _NAME.fullmatch(domain):
        raise InputError(f"{domain[:80]!r}: not a domain's name", remedy="`virsh list --all`")
    return domain


def _said(errors: str) -> str:
    """Virsh's own error as one line: it says first what it could not do, then why."""
    lines = [line.removeprefix("error:").strip() for line in errors.splitlines() if line.strip()]
    return "; ".join(dict.fromkeys(line for line in lines if line))[:1000]


def _environment() -> dict[str, str]:
    return {**os.environ, "LC_ALL": "C"}
