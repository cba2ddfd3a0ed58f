"""Every size and offset that the stream's parser believes, from Xen's own headers.

Debian's package ``libxen-dev`` is opened, not installed; a C program that includes its headers
prints what the compiler makes of them.
"""

import struct
import subprocess
from pathlib import Path

import pytest

from isthmus.qualification.lab import packages
from isthmus.qualification.lab import xen_stream as made
from isthmus.translate.xen import bodies, hvm_context
from isthmus.translate.xen.knowledge import by_number, structures

HEADERS = "usr/include/xen/"
PROGRAM = """
#include <stdint.h>
#include <stddef.h>
#include <stdio.h>
#define __XEN_TOOLS__ 1
#include <xen/xen.h>
#include <xen/domctl.h>
#include <xen/hvm/save.h>
#define SIZE(type) printf("sizeof " #type " %zu\\n", sizeof(struct type));
#define CODE(name) printf("code " #name " %zu\\n", HVM_SAVE_CODE(name));
#define AT(type, field) printf("at " #type " " #field " %zu %zu\\n", \\
    offsetof(struct type, field), sizeof(((struct type *)0)->field));
#define VALUE(name) printf("value " #name " %llu\\n", (unsigned long long)(name));
int main(void) {
"""


@pytest.fixture(scope="module")
def headers(tmp_path_factory: pytest.TempPathFactory) -> Path:
    package = packages.find("libxen-dev")
    if package is None:
        pytest.skip("apt's lists have no libxen-dev")
    folder = tmp_path_factory.mktemp("xen-headers")
    with packages.opened(package, scratch=folder) as archive:
        for name in archive.names:
            if name.startswith(HEADERS) and name.endswith(".h"):
                path = folder / name
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(archive.read(name))
    return folder / "usr" / "include"


def said(headers: Path, statements: list[str], folder: Path) -> list[list[str]]:
    """What the program prints, by words."""
    source = folder / "sizes.c"
    source.write_text(PROGRAM + "\n".join(statements) + "\n    return 0;\n}\n")
    program = folder / "sizes"
    subprocess.run(["gcc", f"-I{headers}", "-o", program, source], check=True)
    text = subprocess.run([program], check=True, capture_output=True, text=True).stdout
    return [line.split()[1:] for line in text.splitlines()]


def test_hvm_entries_have_the_numbers_and_sizes_of_xen_s_headers(
    headers: Path, tmp_path: Path
) -> None:
    kinds = [kind for kind in by_number("hvm").values() if kind.structure]
    assert len(kinds) == 19, "all but END and CPU_MSR, whose size is not fixed"
    sizes = said(headers, [f"SIZE({kind.structure})" for kind in kinds], tmp_path)
    for kind, (_, size) in zip(kinds, sizes, strict=True):
        if kind.variable:
            assert int(size) == kind.least, kind.name
        else:
            assert kind.least <= int(size) <= kind.most, kind.name
            # 4.17's LAPIC lacks pending_esr, which later headers have.
            assert int(size) == kind.most or kind.name == "LAPIC", kind.name
    declared = [kind for kind in kinds if kind.name != "CPU_XSAVE"]
    codes = said(headers, [f"CODE({kind.name})" for kind in declared], tmp_path)
    assert [int(code) for _, code in codes] == [kind.type for kind in declared]
    [(_, xsave), (_, msr), (_, most)] = said(
        headers,
        ["VALUE(CPU_XSAVE_CODE)", "VALUE(CPU_MSR_CODE)", "VALUE(HVM_SAVE_CODE_MAX)"],
        tmp_path,
    )
    known = {kind.name: kind.type for kind in by_number("hvm").values()}
    assert (int(xsave), int(msr)) == (known["CPU_XSAVE"], known["CPU_MSR"])
    assert int(most) == max(by_number("hvm"))


def test_fields_lie_where_the_compiler_puts_them(headers: Path, tmp_path: Path) -> None:
    for structure in structures().values():
        statements = [f"AT({structure.structure}, {field.name})" for field in structure.fields]
        for field, words in zip(structure.fields, said(headers, statements, tmp_path), strict=True):
            assert [int(word) for word in words[2:]] == [field.offset, field.bytes], field.name


def test_contexts_and_entries_of_the_stream_have_xen_s_sizes(headers: Path, tmp_path: Path) -> None:
    names = ["vcpu_guest_context", "xen_cpuid_leaf", "xen_msr_entry", "xen_domctl_vcpu_msr",
             "hvm_save_descriptor", "xen_domctl_ext_vcpucontext"]  # fmt: skip
    printed = said(headers, [f"SIZE({name})" for name in names], tmp_path)
    sizes = {name: int(size) for name, size in printed}
    kinds = {kind.name: kind for kind in by_number("libxc").values()}
    assert sizes["vcpu_guest_context"] == bodies._BASIC_BYTES[8]
    assert sizes["xen_cpuid_leaf"] == kinds["X86_CPUID_POLICY"].each
    assert sizes["xen_msr_entry"] == kinds["X86_MSR_POLICY"].each
    assert sizes["xen_domctl_vcpu_msr"] == kinds["X86_PV_VCPU_MSRS"].each
    assert sizes["hvm_save_descriptor"] == len(made.HVM_END)
    assert sizes["xen_domctl_ext_vcpucontext"] + 8 <= kinds["X86_PV_VCPU_EXTENDED"].most
    values = said(headers, ["VALUE(HVM_FILE_MAGIC)", "VALUE(HVM_FILE_VERSION)"], tmp_path)
    assert [int(value) for _, value in values] == [hvm_context.MAGIC, hvm_context.VERSION]


def test_page_types_are_xen_s(headers: Path, tmp_path: Path) -> None:
    names = ["NOTAB", "L1TAB", "L4TAB", "LPINTAB", "BROKEN", "XALLOC", "XTAB"]
    values = said(headers, [f"VALUE(XEN_DOMCTL_PFINFO_{name})" for name in names], tmp_path)
    types = {name: int(value) >> 28 for name, (_, value) in zip(names, values, strict=True)}
    assert [types[name] for name in ("NOTAB", "L1TAB", "L4TAB")] == [0, 1, 4]
    assert types["L1TAB"] | types["LPINTAB"] == 9
    for name in ("BROKEN", "XALLOC", "XTAB"):
        pfns = struct.pack("<Q", types[name] << 60)
        assert bodies.data_pages(16, 1, pfns) == 0, name


def test_a_32_bit_guest_s_context_has_the_size_of_its_headers(
    headers: Path, tmp_path: Path
) -> None:
    source = tmp_path / "narrow.c"
    source.write_text(
        "#include <stdint.h>\n#include <stddef.h>\n#define __XEN_TOOLS__ 1\n"
        "#include <xen/xen.h>\n"
        f'_Static_assert(sizeof(struct vcpu_guest_context) == {bodies._BASIC_BYTES[4]}, "");\n'
    )
    done = subprocess.run(
        ["gcc", "-m32", "-ffreestanding", "-fsyntax-only", f"-I{headers}", source],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    if "No such file" in done.stderr:
        pytest.skip("no headers of a 32-bit C library here")
    assert done.returncode == 0, done.stderr
