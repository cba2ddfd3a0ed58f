"""Addresses of pools, and where their passwords come from: never from a command line."""

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from isthmus.errors import InputError
from isthmus.hypervisor.xapi.address import Address, parse
from isthmus.hypervisor.xapi.credentials import login_for

PIN = "ab" * 32


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("xapi://pool.example", Address(host="pool.example")),
        ("xapi://root@10.0.0.1/host2", Address(host="10.0.0.1", user="root", target="host2")),
        ("xapi://[fd00::1]:8443/", Address(host="fd00::1", port=8443)),
        ("xapi://h/two%20words", Address(host="h", target="two words")),
        ("xapi://h?cacert=/etc/ca.pem", Address(host="h", cacert=Path("/etc/ca.pem"))),
        (f"xapi://h?fingerprint=SHA256:{PIN.upper()}", Address(host="h", fingerprints=(PIN,))),
        ("xapi://h?fingerprint=" + ":".join(["AB"] * 32), Address(host="h", fingerprints=(PIN,))),
        (
            "xapi://h?sr=fast&network=LAN%201=LAN=x",
            Address(host="h", sr="fast", networks=(("LAN 1", "LAN=x"),)),
        ),
        ("xapi://h?password-file=/run/pw", Address(host="h", password_file=Path("/run/pw"))),
    ],
)
def test_what_an_operator_writes(text: str, address: Address) -> None:
    assert parse(text) == address
    assert parse(str(address)) == address, "a journal's address is read again"


@pytest.mark.parametrize(
    "text",
    [
        "", "xapi:", "xapi:///h", "http://h", "xapi://h:x", "xapi://h#f", "xapi://h?other=1",
        "xapi://h?cacert=", "xapi://h?fingerprint=12", "xapi://h?network=LAN", "xapi://a b",
        "xapi://[x", "xapi://h/\x00?verify=no",
    ],
)  # fmt: skip
def test_what_is_no_address(text: str) -> None:
    with pytest.raises(InputError) as told:
        parse(text)
    assert "\n" not in str(told.value)


@pytest.mark.parametrize("text", ["xapi://root:s3cret@h", "xapi://:s3cret@h", "xapi://s3cret@[x"])
def test_a_password_in_an_address_is_refused_and_not_repeated(text: str) -> None:
    with pytest.raises(InputError) as told:
        parse(text)
    assert "s3cret" not in str(told.value)


def test_there_is_no_way_to_verify_nothing() -> None:
    for key in ("no_verify", "insecure", "verify"):
        with pytest.raises(InputError, match="not known"):
            parse(f"xapi://h?{key}=1")


@given(st.text(max_size=60))
def test_any_text_is_read_or_refused(text: str) -> None:
    try:
        address = parse(f"xapi://{text}")
    except InputError:
        return
    assert parse(str(address)) == address


@pytest.fixture
def secret(tmp_path: Path) -> Path:
    path = tmp_path / "secret"
    path.write_text("from-file\n")
    path.chmod(0o600)
    return path


def netrc(folder: Path, text: str) -> dict[str, str]:
    path = folder / "netrc"
    path.write_text(text)
    path.chmod(0o600)
    return {"NETRC": str(path)}


def test_the_order_of_places(secret: Path, tmp_path: Path) -> None:
    everywhere = netrc(tmp_path, "machine h login root password from-netrc") | {
        "ISTHMUS_XAPI_PASSWORD": "from-environment"
    }
    assert login_for(Address(host="h"), everywhere).password == "from-environment"
    everywhere["ISTHMUS_XAPI_PASSWORD_FILE"] = str(secret)
    assert login_for(Address(host="h"), everywhere).password == "from-file"
    other = tmp_path / "other"
    other.write_text("from-address")
    other.chmod(0o600)
    address = Address(host="h", password_file=other)
    assert login_for(address, everywhere).password == "from-address"


def test_netrc_names_the_user_unless_the_address_does(tmp_path: Path) -> None:
    places = netrc(tmp_path, "machine h login admin password pw\nmachine i password x")
    login = login_for(Address(host="h"), places)
    assert (login.user, login.password) == ("admin", "pw")
    with pytest.raises(InputError, match="no password for root"):
        login_for(Address(host="h", user="root"), places)
    with pytest.raises(InputError, match="no password"):
        login_for(Address(host="elsewhere"), places)


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o622])
def test_a_password_that_others_can_read_is_refused(secret: Path, mode: int) -> None:
    secret.chmod(mode)
    with pytest.raises(InputError, match="others can read"):
        login_for(Address(host="h", password_file=secret), {})


@pytest.mark.parametrize("content", [b"", b"\n", b"a\nb\n", b"\xff\xfe", b"x" * 5000])
def test_a_file_that_is_no_password(secret: Path, content: bytes) -> None:
    secret.write_bytes(content)
    with pytest.raises(InputError) as told:
        login_for(Address(host="h", password_file=secret), {})
    assert "xxxx" not in str(told.value)


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="No such file"):
        login_for(Address(host="h", password_file=tmp_path / "none"), {})


def test_a_broken_netrc_is_told_without_its_content(tmp_path: Path) -> None:
    with pytest.raises(InputError) as told:
        login_for(Address(host="h"), netrc(tmp_path, "machine h pass s3cret"))
    assert "s3cret" not in str(told.value)


def test_nothing_given_tells_every_place(tmp_path: Path) -> None:
    with pytest.raises(InputError) as told:
        login_for(Address(host="h"), {"NETRC": os.devnull})
    for place in ("ISTHMUS_XAPI_PASSWORD", "password-file", "netrc"):
        assert place in (told.value.remedy or "")
