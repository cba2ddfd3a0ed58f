"""The image's parts: the archive, the modules' order, the cache, the kernel's own name."""

import io
import lzma
import struct
import tarfile
import threading
from pathlib import Path

import pytest

from isthmus.errors import EnvironmentLackError, InputError
from isthmus.qualification.lab import initramfs, kernel, packages
from isthmus.qualification.lab.image import command_line, is_static
from isthmus.qualification.lab.modules import decompress, depends, load_order
from isthmus.qualification.store import Made, key_of, obtain


def module(needs=""):
    """The least ELF64 file with a .modinfo section."""
    info = b"license=GPL\0depends=" + needs.encode() + b"\0name=x\0"
    names = b"\0.modinfo\0.shstrtab\0"
    at = 64
    table = at + len(info) + len(names)
    headers = b"".join(
        struct.pack("<IIQQQQIIQQ", name, kind, 0, 0, offset, size, 0, 0, 1, 0)
        for name, kind, offset, size in (
            (0, 0, 0, 0), (1, 1, at, len(info)), (10, 3, at + len(info), len(names)),
        )
    )  # fmt: skip
    head = b"\x7fELF\x02\x01\x01" + bytes(9)
    head += struct.pack("<HHIQQQIHHHHHH", 1, 62, 1, 0, 0, table, 0, 64, 0, 0, 64, 3, 2)
    return head + info + names + headers


def members(data):
    """Read an archive back, by the format's own description."""
    found, at = {}, 0
    while True:
        assert data[at : at + 6] == b"070701"
        fields = [int(data[at + 6 + 8 * i : at + 14 + 8 * i], 16) for i in range(13)]
        name = data[at + 110 : at + 110 + fields[11] - 1].decode()
        at = -(-(at + 110 + fields[11]) // 4) * 4
        if name == "TRAILER!!!":
            assert at == len(data)
            return found
        found[name] = (fields[1], data[at : at + fields[6]])
        at = -(-(at + fields[6]) // 4) * 4


def test_archive_can_be_read_back_and_is_the_same_each_time():
    entries = [
        initramfs.folder("bin"), initramfs.file("bin/a", b"12345", executable=True),
        initramfs.file("b", b""), initramfs.link("c", "bin/a"),
    ]  # fmt: skip
    data = initramfs.archive(entries)
    assert data == initramfs.archive(entries)
    assert members(data) == {
        "bin": (0o040755, b""), "bin/a": (0o100755, b"12345"), "b": (0o100644, b""),
        "c": (0o120777, b"bin/a"),
    }  # fmt: skip


def test_modules_load_after_those_they_need():
    modules = {"top": module("mid,low"), "mid": module("low"), "low": module(), "other": module()}
    assert load_order(modules, ("top", "absent")) == ["low", "mid", "top"]
    assert depends(modules["top"]) == ["mid", "low"]


def test_modules_in_a_circle_are_refused():
    with pytest.raises(InputError, match="circle"):
        load_order({"a": module("b"), "b": module("a")}, ("a",))


@pytest.mark.parametrize("cut", [0, 1, 40, 64, 70, 120, 200])
def test_damaged_module_needs_nothing(cut):
    assert isinstance(depends(module("a,b")[:cut]), list)


def test_modules_are_unpacked():
    plain = module("a")
    assert decompress("x.ko", plain) == plain
    assert decompress("x.ko.xz", lzma.compress(plain, check=lzma.CHECK_CRC32)) == plain
    for name, data in (("x.ko", b"rubbish"), ("x.ko.xz", b"rubbish"), ("x.ko.xz", b"")):
        with pytest.raises(InputError):
            decompress(name, data)


def test_zstd_module_without_the_program(monkeypatch):
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(EnvironmentLackError, match="zstd"):
        decompress("x.ko.zst", b"")


def made(content, calls):
    def make(_scratch):
        calls.append(1)
        return Made(files={"data": content}, facts={"fact": "1"})

    return make


def test_store_makes_once_and_again_after_damage(tmp_path):
    calls = []
    first = obtain(tmp_path, "kind", "key", made(b"right", calls))
    again = obtain(tmp_path, "kind", "key", made(b"right", calls))
    assert (first, len(calls)) == (again, 1)
    (first.folder / "data").write_bytes(b"wrong")
    assert obtain(tmp_path, "kind", "key", made(b"right", calls)).read("data") == b"right"
    (first.folder / "manifest.json").write_bytes(b"{")
    assert obtain(tmp_path, "kind", "key", made(b"right", calls)).read("data") == b"right"
    (first.folder / "data").unlink()
    assert obtain(tmp_path, "kind", "key", made(b"right", calls)).read("data") == b"right"
    assert len(calls) == 4


def test_store_leaves_nothing_when_making_fails(tmp_path):
    def fail(_scratch):
        raise InputError("no")

    with pytest.raises(InputError):
        obtain(tmp_path, "kind", "key", fail)
    assert [path.name for path in (tmp_path / "kind").iterdir()] == [".key.lock"]


def test_store_with_many_makers_at_once(tmp_path):
    calls, seen = [], []
    threads = [
        threading.Thread(
            target=lambda: seen.append(
                obtain(tmp_path, "kind", "key", made(b"x" * 100_000, calls)).read("data")
            )
        )
        for _ in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert seen == [b"x" * 100_000] * 8
    assert len(calls) == 1


def test_store_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(EnvironmentLackError, match="ISTHMUS_CACHE"):
        obtain(tmp_path / "file", "kind", "key", made(b"", []))


def test_keys_do_not_shift():
    assert key_of("ab", "c") != key_of("a", "bc")
    assert key_of("ab") == key_of(b"ab")


def bzimage(text):
    header = bytearray(0x300)
    header[0x202:0x206] = b"HdrS"
    header[0x20E:0x210] = (0x80).to_bytes(2, "little")
    return bytes(header[:0x280]) + text + bytes(300)


def test_release_of_a_kernel():
    image = bzimage(b"6.1.0-56-cloud-amd64 (build@host) #1\0")
    assert kernel.kernel_release(image, where="k") == "6.1.0-56-cloud-amd64"
    for bad in (b"", b"MZ" * 500, bzimage(b"\0"), bzimage(b"../../etc \0")):
        with pytest.raises(InputError):
            kernel.kernel_release(bad, where="k")


def test_own_kernel_with_its_modules_beside(tmp_path):
    (tmp_path / "vmlinuz").write_bytes(bzimage(b"9.9.9-own x\0"))
    folder = tmp_path / "modules" / "drivers"
    folder.mkdir(parents=True)
    (folder / "virtio-pci.ko").write_bytes(module("virtio_ring"))
    (folder / "virtio_ring.ko.xz").write_bytes(lzma.compress(module()))
    (folder / "unwanted.ko").write_bytes(b"rubbish")
    found = kernel.fetch_kernel(str(tmp_path / "vmlinuz"), cache=tmp_path, progress=print)
    assert found.release == "9.9.9-own"
    assert [name for name, _ in found.modules] == ["virtio_ring", "virtio_pci"]


@pytest.mark.parametrize("selector", ["six", "6.x", "6.1;rm", "-6.1", ""])
def test_selectors_that_name_nothing(selector, tmp_path):
    with pytest.raises(InputError):
        kernel.fetch_kernel(selector, cache=tmp_path, progress=print)


def test_series_without_package_lists(monkeypatch, tmp_path):
    monkeypatch.setattr(packages, "find", lambda name, lists: None)
    monkeypatch.setattr(packages, "names", lambda prefix, lists=packages.HERE: ())
    monkeypatch.setattr(packages, "of_suite", lambda suite, cache: None)
    with pytest.raises(EnvironmentLackError, match="apt-get update"):
        kernel.fetch_kernel("6.1", cache=tmp_path, progress=print)


def test_series_is_not_taken_from_a_default_of_another(monkeypatch):
    known = {
        "linux-image-cloud-amd64": ("linux-image-6.1.0-56-cloud-amd64",),
        "linux-image-6.1.0-56-cloud-amd64": (),
        "linux-image-6.12-cloud-amd64": ("linux-image-6.12.9-cloud-amd64",),
        "linux-image-6.12.9-cloud-amd64": (),
    }
    lists = {
        name: packages.Package(name=name, version="1", sha256="0" * 64, depends=depends)
        for name, depends in known.items()
    }
    monkeypatch.setattr(packages, "find", lambda name, _: lists.get(name))
    monkeypatch.setattr(
        packages, "names", lambda prefix, _: tuple(n for n in lists if n.startswith(prefix))
    )
    assert kernel.choose_packages("6.12")[0].name == "linux-image-6.12.9-cloud-amd64"
    assert kernel.choose_packages("6.1")[0].name == "linux-image-6.1.0-56-cloud-amd64"
    assert kernel.choose_packages(None)[0].name == "linux-image-6.1.0-56-cloud-amd64"


@pytest.mark.parametrize(
    ("kernel_named", "suite"),
    [
        ("5.10", "bullseye"),
        ("5.10.0-32-cloud-amd64", "bullseye"),
        ("linux-image-5.10.0-32-cloud-amd64", "bullseye"),
        ("5.1", None),
        ("6.12.9", "trixie"),
        ("6.6", None),  # this machine's own lists have it
        ("linux-image-cloud-amd64", None),
        ("", None),
    ],
)
def test_a_series_that_is_not_in_the_lists_here_is_looked_for_in_its_debian(
    kernel_named, suite, monkeypatch, tmp_path
):
    monkeypatch.setattr(packages, "names", lambda prefix: ("x",) if prefix.endswith("6.6") else ())
    monkeypatch.setattr(
        packages, "of_suite", lambda name, cache: packages.Lists(options=(name, str(cache)))
    )
    options = (suite, str(tmp_path)) if suite else ()
    assert kernel.lists_with(kernel_named, tmp_path).options == options


@pytest.mark.parametrize("name", ["../etc/passwd", "/etc/passwd", "a/../../b"])
def test_package_members_that_point_outside_are_refused(name):
    data = io.BytesIO()
    with tarfile.open(fileobj=data, mode="w") as tar:
        tar.addfile(tarfile.TarInfo(name), io.BytesIO(b""))
    data.seek(0)
    with tarfile.open(fileobj=data) as tar, pytest.raises(InputError, match="out of the package"):
        packages.Archive(tar, "test")


def test_command_line_carries_options():
    line = command_line(tick_ms=50, disk=True, test="sse4a,rdtscp")
    assert line.startswith("console=ttyS0 ")
    assert line.endswith(" isthmus.tick_ms=50 isthmus.disk=1 isthmus.test=sse4a,rdtscp")
    for bad in ("a b", 'a"', "a\n"):
        with pytest.raises(InputError):
            command_line(test=bad)


def test_a_static_program_names_no_interpreter():
    dynamic = Path("/proc/self/exe").read_bytes()
    assert not is_static(b"#!/bin/sh")
    assert is_static(module())  # it has no program headers at all
    assert is_static(dynamic) == (b"/ld-linux" not in dynamic)
