"""Programs that mean harm, and missing instructions in the kernel, with the module loaded.

The oracle is the same program in the same kernel on a CPU that has the instructions: every result,
signal, code and address has to be the same.  What no CPU executes has to be as without the module.
"""

import re
import subprocess
from collections import defaultdict
from pathlib import Path

import pytest

from isthmus.errors import EnvironmentLackError
from isthmus.hypervisor.qemu.binary import find_qemu
from isthmus.places import cache_folder
from isthmus.qualification.lab.headers import kernel_module
from isthmus.qualification.lab.image import build_image, command_line
from isthmus.qualification.lab.initramfs import file, folder
from isthmus.qualification.lab.kernel import fetch_kernel
from isthmus.translate.inside import build

pytestmark = [pytest.mark.lab, pytest.mark.timeout(900)]

HERE = Path(__file__).parent
HAS = "Haswell,+smap,+sse4a"
LACKS = "Haswell,+smap,-popcnt,-movbe"
BOOT_S = 300

INIT = b"""#!/bin/sh
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs devtmpfs /dev
mount -t debugfs debugfs /sys/kernel/debug
if [ "$inside" = 1 ]; then
    echo "phase without"
    /hostile/hostile invalid
    insmod /hostile/isthmus_translate.ko
fi
echo "phase invalid"
/hostile/hostile invalid
echo "phase missing"
/hostile/hostile missing
echo "phase kernel"
echo 7 > /proc/sys/kernel/printk
insmod /hostile/inside_kernel.ko
echo 4 > /proc/sys/kernel/printk
if [ "$inside" = 1 ]; then
    echo "phase churn"
    /hostile/hostile churn 5 &
    /hostile/hostile churn 5 &
    for n in 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15; do
        rmmod isthmus_translate
        insmod /hostile/isthmus_translate.ko
    done
    wait
    echo "phase counters"
    cat /sys/kernel/debug/isthmus/counters
fi
echo "phase done"
poweroff -f
"""

_LINE = re.compile(r"(?:^|\] )case ([^:\r\n]+): ([^\r\n]*)")

# A 32-bit program whose segments have bases of its own is told #UD: see docs/translation.md.
DECLINED = {
    "ldt-code-with-a-base": "signal 4 code 2 address ffff000",
    "ldt-data-with-a-base": "signal 4 code 2 address 10000020",
}


class Said:
    """What one guest said: the lines of each case by phase, in their order, and everything."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.phases: dict[str, dict[str, list[str]]] = {}
        for line in text.splitlines():
            if line.startswith("phase "):
                self.phases[line.removeprefix("phase ").strip()] = defaultdict(list)
            elif (match := _LINE.search(line)) and self.phases:
                list(self.phases.values())[-1][match[1]].append(match[2])


def boot(image, cpu: str, console: Path, words: str = "") -> Said:
    subprocess.run(
        [
            find_qemu().path, "-accel", "tcg", "-cpu", cpu, "-smp", "2", "-m", "256",
            "-kernel", image.kernel, "-initrd", image.initrd,
            "-append", f"{command_line()} rdinit=/hostile/init {words}",
            "-nodefaults", "-no-user-config", "-display", "none", "-no-reboot",
            "-serial", f"file:{console}",
        ],
        check=True, timeout=BOOT_S, stdin=subprocess.DEVNULL, capture_output=True,
    )  # fmt: skip
    said = Said(console.read_text(errors="replace"))
    assert "done" in said.phases, said.text[-3000:]
    return said


SLOW = pytest.mark.slow
KERNELS = [
    pytest.param((None, True), id="default"),
    pytest.param((None, False), id="nothing exported", marks=SLOW),
    pytest.param(("5.10", True), id="5.10", marks=SLOW),
    pytest.param(("6.12", True), id="6.12", marks=SLOW),
]


def as_elsewhere(sources: dict[str, bytes]) -> dict[str, bytes]:
    """The module's sources as a kernel builds them that does not export what Debian's does."""
    flag = b" += -DTASK_WORK_IS_EXPORTED"
    assert flag in sources["Kbuild"]
    return {**sources, "Kbuild": sources["Kbuild"].replace(flag, b" +=")}


@pytest.fixture(scope="module", params=KERNELS)
def image(request, tmp_path_factory):
    cache = cache_folder()
    selector, exported = request.param
    try:
        release = fetch_kernel(selector, cache=cache, progress=lambda _: None).release
    except EnvironmentLackError as error:
        pytest.skip(str(error))
    program = tmp_path_factory.mktemp("hostile") / "hostile"
    flags = ["-O1", "-static", "-no-pie", "-pthread", "-Wall", "-Werror"]
    subprocess.run(["gcc", *flags, "-o", program, HERE / "inside_hostile.c"], check=True)
    kernel = {
        "inside_kernel.c": (HERE / "inside_kernel.c").read_bytes(),
        # Linux before 5.18 is compiled as C89.
        "Kbuild": b"obj-m := inside_kernel.o\nccflags-y := -std=gnu11\n",
    }
    sources = build.sources() if exported else as_elsewhere(build.sources())
    return build_image(
        selector,
        cache=cache,
        more=[
            folder("hostile"),
            file("hostile/init", INIT, executable=True),
            file("hostile/hostile", program.read_bytes(), executable=True),
            *(
                file(f"hostile/{name}.ko", kernel_module(release, parts, name, cache=cache))
                for name, parts in (("inside_kernel", kernel), (build.NAME, sources))
            ),
        ],
    )


@pytest.fixture(scope="module")
def native(image, tmp_path_factory) -> Said:
    return boot(image, HAS, tmp_path_factory.mktemp("native") / "console")


@pytest.fixture(scope="module")
def inside(image, tmp_path_factory) -> Said:
    return boot(image, LACKS, tmp_path_factory.mktemp("inside") / "console", "inside=1")


def test_what_is_invalid_on_purpose_is_as_without_the_module(inside: Said) -> None:
    """Signal, code, address and trap number, at a page's end, blocked and ignored."""
    assert len(inside.phases["without"]) > 15
    assert inside.phases["invalid"] == inside.phases["without"]


def test_programs_that_mean_harm_see_what_the_cpu_would_do(native: Said, inside: Said) -> None:
    """Pages that end, go away or forbid; addresses of the kernel; single steps; races; segments."""
    expected = dict(native.phases["missing"])
    assert len(expected) > 80
    for name, line in DECLINED.items():
        expected[name] = [line]
    found = inside.phases["missing"]
    assert {name: lines for name, lines in found.items() if lines != expected.get(name)} == {}
    assert found.keys() == expected.keys()


def test_the_kernels_own_text_is_served_with_interrupts_off(native: Said, inside: Said) -> None:
    assert len(native.phases["kernel"]) == 9
    assert inside.phases["kernel"] == native.phases["kernel"]


def test_the_module_may_go_while_it_is_used(inside: Said) -> None:
    """Fifteen times, under programs whose every instruction needs task work."""
    assert inside.phases["churn"] == {"churn": ["wrong 0", "wrong 0"]}
    rounds = [int(n) for n in re.findall(r"info churn: rounds (\d+)", inside.text)]
    assert len(rounds) == 2
    assert min(rounds) > 20


def test_the_kernel_has_nothing_to_complain_of(inside: Said) -> None:
    """But for the warning that the test's module gives on purpose."""
    for word in ("BUG:", "Oops", "Kernel panic", "rcu:", "general protection", "stack guard"):
        assert word not in inside.text, word
    assert inside.text.count("WARNING:") == 1
