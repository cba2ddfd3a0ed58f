"""Error messages of hypervisors are recognised, and say what the real products say."""

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from isthmus.divergence.messages import MAX_FOUND, Message, catalogue, explain
from isthmus.divergence.messages_page import page
from isthmus.divergence.rules import rules
from isthmus.errors import EnvironmentLackError
from isthmus.hypervisor.qemu.binary import find_qemu
from isthmus.qualification.lab.packages import names, opened, required

EVERY = [
    pytest.param(product, message, id=message.id)
    for product in catalogue().values()
    for message in product.messages
]
RULES = {rule.id for rule in rules()}
DATA = Path(__file__).parent / "data"
ISTHMUS = [sys.executable, "-c", "from isthmus.cli.main import main; main()", "explain"]


@pytest.mark.parametrize(("product", "message"), EVERY)
def test_a_message_is_recognised_and_filled_in(product: object, message: Message) -> None:
    first, *others = explain(message.example)
    assert first.id == message.id
    assert others == [], "two messages speak of one line"
    assert not re.search(r"\{\w+\}", first.means + first.cause + first.cure)
    assert set(message.rules) <= RULES


def test_names_are_used_once() -> None:
    every = [message.id for product in catalogue().values() for message in product.messages]
    assert len(every) == len(set(every))


def test_the_page_is_current() -> None:
    committed = Path(__file__).parents[2] / "docs" / "messages.md"
    assert committed.read_text(encoding="utf-8") == page(), (
        "write it anew: python -m isthmus.divergence.messages_page docs/messages.md"
    )


def _in_packages(packages: tuple[str, ...], wanted: str, scratch: Path) -> Iterator[bytes]:
    for name in packages:
        with opened(required(name), scratch=scratch) as archive:
            for path in archive.names:
                if re.search(wanted, path):
                    yield archive.read(path)


@pytest.fixture(scope="module")
def binaries(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """What the products' own programs and libraries hold."""
    import gzip

    scratch = tmp_path_factory.mktemp("packages")
    try:
        libvirt = _in_packages(
            ("libvirt0", "libvirt-daemon-driver-qemu", "libvirt-daemon"),
            r"libvirt\.so\.0\.|libvirt_driver_qemu\.so",
            scratch,
        )
        xen = [
            gzip.decompress(content) if content[:2] == b"\x1f\x8b" else content
            for content in _in_packages(
                tuple(
                    max(n for n in names(prefix) if n.endswith(end) and (end or n[-1].isdigit()))
                    for prefix, end in (
                        ("xen-hypervisor-4", "-amd64"),
                        ("libxenmisc4", ""),
                        ("xen-utils-4", ""),
                    )
                ),
                r"boot/xen-.*\.gz$|libxen(guest|light)\.so\.|bin/xl$",
                scratch,
            )
        ]
        return {
            "qemu": Path(find_qemu().path).read_bytes(),
            "libvirt": b"".join(libvirt),
            "xen": b"".join(xen),
        }
    except EnvironmentLackError as error:
        pytest.skip(str(error))


@pytest.mark.lab
@pytest.mark.parametrize("name", ["qemu", "libvirt", "xen"])
def test_the_real_program_holds_the_words(binaries: dict[str, bytes], name: str) -> None:
    product = next(one for one in catalogue().values() if one.witness == name)
    told = [message for message in product.messages if message.literal]
    assert len(told) > 5
    absent = [m.id for m in told if m.literal.encode() not in binaries[name]]
    assert absent == []


@pytest.mark.lab
@pytest.mark.parametrize(
    ("cpu", "expected"),
    [
        ("Nehalem,+pcid,enforce", {"qemu-feature-unsupported", "qemu-features-enforced"}),
        ("host", {"qemu-host-model-needs-kvm"}),
        ("Nehalemm", {"qemu-no-such-model"}),
        ("Nehalem,+nonsense", {"qemu-no-such-property"}),
    ],
)
def test_what_qemu_says_itself_is_known(cpu: str, expected: set[str]) -> None:
    done = subprocess.run(
        [find_qemu().path, "-machine", "q35,accel=tcg", "-display", "none", "-S", "-cpu", cpu],
        capture_output=True, text=True, timeout=60, check=False, stdin=subprocess.DEVNULL,
    )  # fmt: skip
    assert done.returncode
    assert {one.id for one in explain(done.stderr)} == expected


def test_a_log_says_each_message_once() -> None:
    line = "qemu-system-x86_64: warning: host doesn't support requested feature: CPUID.01H:ECX.{}"
    text = "\n".join(line.format(name) for name in ("pcid", "movbe", "pcid"))
    assert [one.features for one in explain(text)] == [("pcid",), ("movbe",)]


def test_terminal_escapes_are_dropped_and_floods_are_cut() -> None:
    (found,) = explain("\x1b[31munable to find CPU model 'x\x07y'\x1b[0m")
    assert found.line == "unable to find CPU model 'xy'"
    flood = "\n".join(f"unable to find CPU model '{n}'" for n in range(5 * MAX_FOUND))
    assert len(explain(flood)) == MAX_FOUND


@given(st.text())
def test_any_text_is_taken(text: str) -> None:
    for one in explain(text):
        assert one.line


def run(*arguments: str, text: str = "") -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*ISTHMUS, *arguments], input=text, capture_output=True, text=True, check=False, timeout=60
    )


def test_the_command_explains_a_log() -> None:
    done = run(
        "--file", "-", text="error: Unsafe migration: Migration without shared storage is unsafe"
    )
    assert done.returncode == 0, done.stderr
    assert "copy it with the move" in done.stdout


def test_the_command_names_the_instruction_that_a_guest_died_of() -> None:
    console = DATA / "console-6.1-phenom-to-nehalem.txt"
    done = run("--json", "--file", str(console))
    assert done.returncode == 0, done.stderr
    answer = json.loads(done.stdout)
    assert "rdtscp" in answer["why"]
    assert {one["id"] for one in answer["messages"]} == {"linux-invalid-opcode"}


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["all is well"], 1, "no message in it is known"),
        ([], 2, "nothing to explain"),
        (["--file", "/nowhere/at/all"], 2, "/nowhere/at/all"),
    ],
)
def test_what_cannot_be_explained(arguments: list[str], code: int, words: str) -> None:
    done = run(*arguments)
    assert done.returncode == code
    assert words in done.stderr
    assert "Traceback" not in done.stderr
