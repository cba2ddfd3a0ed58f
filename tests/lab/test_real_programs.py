"""Real programs that chose their code before the move: OpenSSL, OpenBLAS, glibc, Go's runtime.

They come out of Debian's packages, run in an unlevelled guest since it was booted, and go on over
the move and after the return.  What they compute is compared with a guest that stayed at home, and
where this machine can run the same with what it computes itself.  With ``ISTHMUS_CROSSINGS=FILE``
each crossing is appended to that file as a line of JSON.
"""

import asyncio
import re
import shutil
import subprocess
from pathlib import Path, PurePosixPath

import pytest

from isthmus.hypervisor.qemu.binary import find_qemu
from isthmus.hypervisor.qemu.engine import Accelerator
from isthmus.hypervisor.qemu.guests import GuestStore
from isthmus.hypervisor.qemu.models import read_cpus
from isthmus.migration.hosts import Hosts
from isthmus.places import cache_folder
from isthmus.qualification.exercise.crossing import Pair, journey, stay
from isthmus.qualification.exercise.record import Programs, Row, append
from isthmus.qualification.lab import packages
from isthmus.qualification.lab.image import build_image
from isthmus.qualification.lab.initramfs import Entry, file, folder, link
from isthmus.qualification.store import Made, key_of, obtain

pytestmark = [
    pytest.mark.lab,
    pytest.mark.timeout(900),
    pytest.mark.skipif(shutil.which("gcc") is None, reason="no C compiler"),
]

SOURCE = Path(__file__).with_name("real_programs.c")
LIBRARIES = "lib/x86_64-linux-gnu"
# A package, what of it is wanted (a pattern for the file's name), and its name in the guest.
WANTED = (
    ("libc6", r"ld-linux-x86-64\.so\.2", "ld-linux-x86-64.so.2"),
    ("libc6", r"libc\.so\.6", "libc.so.6"),
    ("libc6", r"libm\.so\.6", "libm.so.6"),
    ("libssl3", r"libcrypto\.so\.3", "libcrypto.so.3"),
    ("libopenblas0-serial", r"libopenblas-r[\d.]+\.so", "libopenblas.so.0"),
    ("libgfortran5", r"libgfortran\.so\.5\.\d.*", "libgfortran.so.5"),
    ("libquadmath0", r"libquadmath\.so\.0\.\d.*", "libquadmath.so.0"),
    ("libgcc-s1", r"libgcc_s\.so\.1", "libgcc_s.so.1"),
    ("gron", r"gron", "gron"),
)
# Go's runtime hashes the keys of maps with AES where the CPU has it; gron makes maps of what it
# reads.
GO = b"""#!/bin/sh
n=0
while :; do
    echo '{"n":'$n',"list":[1,2,{"deep":"the quick brown fox '$n'"}],"more":{"a":'$n',"b":true}}'
    n=$((n + 1))
    sleep 0.2
done | /bin/gron --stream | while read -r line; do
    case $line in
    *deep*)
        n=${line#json[} value=${line##* = }
        echo "real go ${n%%]*} ${value//[!a-z0-9]/_} end" ;;
    esac
done
"""
LINE = re.compile(r"real (\w+) (\d+) (\w+) end\r?$")


def of_packages() -> dict[str, bytes]:
    """The files of ``WANTED`` by their names in the guest."""
    found: dict[str, bytes] = {}
    for name in dict.fromkeys(package for package, _, _ in WANTED):
        package = packages.required(name)
        patterns = [(pattern, to) for of, pattern, to in WANTED if of == name]

        def make(scratch: Path, package=package, patterns=patterns) -> Made:
            files = {}
            with packages.opened(package, scratch=scratch) as opened:
                for path in opened.names:
                    for pattern, to in patterns:
                        if re.fullmatch(pattern, PurePosixPath(path).name) and "/doc/" not in path:
                            files[to] = opened.read(path)
            assert len(files) == len(patterns), f"{package.name} has not all of {patterns}"
            return Made(files=files)

        stored = obtain(cache_folder(), "witnesses", key_of(package.sha256, str(patterns)), make)
        found |= {to: stored.read(to) for _, to in patterns}
    return found


def entries(program: bytes, names: tuple[str, ...]) -> list[Entry]:
    made = [folder("beside"), folder("lib64"), folder(LIBRARIES), folder("usr")]
    made.append(link("lib64/ld-linux-x86-64.so.2", f"../{LIBRARIES}/ld-linux-x86-64.so.2"))
    for name, data in of_packages().items():
        if name == "gron":
            made.append(file("bin/gron", data, executable=True))
        elif "blas" in names or not re.search("blas|gfortran|quadmath|gcc_s", name):
            made.append(file(f"{LIBRARIES}/{name}", data, executable=True))
    made.append(file("bin/real", program, executable=True))
    for name in names:
        script = GO if name == "go" else f"#!/bin/sh\nexec /bin/real {name}\n".encode()
        made.append(file(f"beside/{name}", script, executable=True))
    return made


@pytest.fixture(scope="module")
def program(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("real") / "real"
    subprocess.run(
        ["gcc", "-O1", "-fno-builtin", "-march=x86-64", "-o", path, SOURCE, "-ldl", "-lm"],
        check=True,
    )
    return path


@pytest.fixture
def hosts(tmp_path_factory) -> Hosts:
    home = tmp_path_factory.mktemp("r")
    cpus = asyncio.run(read_cpus(find_qemu(), Accelerator.TCG))
    store = GuestStore(home / "state", home / "run")
    return Hosts(find_qemu(), Accelerator.TCG, cpus, store)


def said(text: str) -> dict[tuple[str, int], str]:
    """The values by program and round."""
    found = {}
    for line in text.split("\n"):
        if match := LINE.search(line):
            found[match[1], int(match[2])] = match[3]
    return found


def here(program: Path, name: str, rounds: int) -> dict[tuple[str, int], str]:
    """What this machine computes; empty if it lacks the library or the program is none of C."""
    if name == "go":
        return {}
    done = subprocess.run(
        [program, name, str(rounds)], capture_output=True, text=True, check=False, timeout=300
    )
    return said(done.stdout)


async def stays_right(hosts, program, pair, names, expected, memory_mib=256) -> None:
    """Cross and return with these programs at work; ``expected`` mnemonics were translated."""
    image = build_image(cache=cache_folder(), more=entries(program.read_bytes(), names))

    def enough(text: str) -> bool:
        values = said(text)
        assert "real missing" not in text, text[-500:]
        assert "Illegal instruction" not in text, text[-800:]
        return all(sum(name == of for of, _ in values) >= 3 for name in names)

    went = await journey(hosts, image, pair, enough, memory_mib)
    run = said("".join(went.consoles))
    last = {name: max(number for of, number in run if of == name) for name in names}
    for name in names:  # none is left out
        assert {number for of, number in run if of == name} == set(range(last[name] + 1))

    def as_far(text: str) -> bool:
        return set(last.items()) <= set(said(text))

    stayed = said(await stay(hosts, image, pair.home, as_far, memory_mib))
    assert {key: stayed[key] for key in run} == run
    for name in names:
        ours = here(program, name, min(last[name] + 1, 40))
        assert {key: run[key] for key in ours} == ours
    rounds = tuple(len(said(text)) for text in went.consoles)
    row = Programs(names=names, home=pair.home, abroad=pair.abroad, rounds=rounds,
                   translated=went.translated)  # fmt: skip
    append(Row(programs=row))
    assert expected <= set(went.translated), went.translated


async def test_openssl_and_glibc_go_on(hosts, program) -> None:
    await stays_right(
        hosts, program, Pair("Westmere", "phenom"), ("strings", "crypto"),
        {"AESENC", "PCLMULQDQ", "PSHUFB", "PCMPISTRI"},
    )  # fmt: skip


async def test_a_numeric_library_goes_on(hosts, program) -> None:
    await stays_right(
        hosts, program, Pair("Westmere", "Opteron_G1"), ("blas",), {"INSERTPS"}, memory_mib=512
    )


async def test_go_goes_on(hosts, program) -> None:
    await stays_right(hosts, program, Pair("Westmere", "Opteron_G2"), ("go",), {"AESENC"})


@pytest.mark.slow
@pytest.mark.parametrize(
    ("home", "abroad", "names", "expected"),
    [
        ("Conroe", "phenom", ("strings", "crypto"), {"PSHUFB", "PALIGNR"}),
        ("Nehalem", "Conroe", ("strings", "crypto", "blas"), {"PCMPISTRI", "INSERTPS"}),
        ("Westmere", "Nehalem", ("crypto", "go"), {"AESENC", "PCLMULQDQ"}),
        ("Westmere", "Opteron_G3", ("strings", "crypto", "blas", "go"), {"AESENC", "INSERTPS"}),
    ],
)
async def test_programs_go_on_everywhere(hosts, program, home, abroad, names, expected) -> None:
    await stays_right(hosts, program, Pair(home, abroad), names, expected, memory_mib=512)
