"""The addresses of hosts choose who moves a guest, and nothing else is taken for an address."""

import pytest

from isthmus.errors import InputError
from isthmus.migration.platforms import load, platform_of


@pytest.mark.parametrize(
    ("address", "platform"),
    [
        ("qemu:///system", "libvirt"),
        ("qemu+ssh://root@host/system", "libvirt"),
        ("qemu+tls://host.example/system?no_verify=1", "libvirt"),
        ("xl+ssh://root@host", "xen"),
    ],
)
def test_the_scheme_chooses(address: str, platform: str) -> None:
    assert platform_of(address, address) == platform


@pytest.mark.parametrize("address", ["", "host", "http://host/", "qemu", "//[", "+ssh://host"])
def test_what_is_no_address_is_bad_input(address: str) -> None:
    with pytest.raises(InputError, match="not the address of a host"):
        platform_of(address, "qemu:///system")


def test_a_guest_stays_on_its_platform() -> None:
    with pytest.raises(InputError, match="from one platform to another"):
        platform_of("qemu:///system", "xl+ssh://host")


def test_a_record_of_an_unknown_platform_is_refused() -> None:
    with pytest.raises(InputError, match="newer Isthmus"):
        load("moon")
