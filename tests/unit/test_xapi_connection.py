"""Calls to a pool, at the wire: verified, sent once, renewed, limited; and no secret is told."""

import time
import xmlrpc.client
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import fields
from xapi_pool import Pool, World, cpu_info
from xapi_server import Certificates, Fault, XapiServer

from isthmus.errors import HypervisorError, InputError, IsthmusError
from isthmus.hypervisor.xapi.address import parse
from isthmus.hypervisor.xapi.connection import Connection, typed
from isthmus.hypervisor.xapi.failures import (
    XapiFailureError,
    XapiGoneError,
    XapiNonsenseError,
)
from isthmus.hypervisor.xapi.inventory import find_guest, inventory
from isthmus.hypervisor.xapi.records import (
    HostRecord,
    PifRecord,
    PoolRecord,
    SrRecord,
    TaskRecord,
    VbdRecord,
    VmRecord,
)

INTEL = cpu_info("GenuineIntel", (0x178BFBFF, 0xF7FA3223, 0x2C100800, 0x121))
PASSWORD = "s3cr3t-passw0rd"


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    return Certificates(tmp_path_factory.mktemp("certificates"))


@pytest.fixture
def server(certificates: Certificates) -> Iterator[XapiServer]:
    pool = Pool(World(), "lab", {"one": INTEL, "two": INTEL}, password=PASSWORD)
    made = XapiServer(pool, certificates)
    yield made
    made.close()


@pytest.fixture
def environment(certificates: Certificates) -> dict[str, str]:
    return {
        "ISTHMUS_XAPI_PASSWORD": PASSWORD, "ISTHMUS_XAPI_CACERT": str(certificates.authority),
    }  # fmt: skip


def test_a_pool_is_read_with_all_types_of_the_wire(
    server: XapiServer, environment: dict[str, str]
) -> None:
    server.pool.guest("web", "one")
    with Connection.open(parse(server.address()), environment) as connection:
        pool = inventory(connection)
        guest = find_guest(connection, "web")
        assert find_guest(connection, guest.record.uuid).ref == guest.ref
    assert [host.record.name_label for host in pool.hosts] == ["one", "two"]
    assert pool.level.vendor == "GenuineIntel"
    assert pool.level.hvm == (0x178BFBFF, 0xF7FA3223, 0x2C100800, 0x121)
    assert guest.record.domid == 7  # an int is a text of digits on the wire
    assert guest.record.memory_target == 1 << 30
    assert guest.kind == "hvm"
    assert server.count("session.logout") == 1
    assert server.connections == 1, "all calls go through one connection"
    assert server.pool.sessions == set()


@pytest.mark.parametrize("name", ["nobody", ""])
def test_a_guest_that_is_not_there_is_bad_input(
    server: XapiServer, environment: dict[str, str], name: str
) -> None:
    with (
        Connection.open(parse(server.address()), environment) as connection,
        pytest.raises(InputError, match="no guest of that name"),
    ):
        find_guest(connection, name)


def test_two_guests_of_one_name_are_told_apart(
    server: XapiServer, environment: dict[str, str]
) -> None:
    server.pool.guest("web", "one")
    server.pool.guest("web", "two")
    with (
        Connection.open(parse(server.address()), environment) as connection,
        pytest.raises(InputError, match="several guests"),
    ):
        find_guest(connection, "web")


def test_the_bindings_own_client_talks_to_this_server(server: XapiServer) -> None:
    """What is tested here is our transport; the server is to be one that others know, too."""
    from XenAPI import XenAPI

    vm = server.pool.guest("web", "one")
    session = XenAPI.Session(f"https://127.0.0.1:{server.port}/", ignore_ssl=True)
    session.login_with_password("root", PASSWORD, "2.21", "test")
    record = session.xenapi.VM.get_record(vm)
    assert (record["name_label"], record["domid"], record["is_a_template"]) == ("web", "7", False)
    assert isinstance(record["snapshot_time"], xmlrpc.client.DateTime)
    with pytest.raises(XenAPI.Failure) as told:
        session.xenapi.VM.get_record("OpaqueRef:none")
    assert told.value.details == ["HANDLE_INVALID", "VM", "OpaqueRef:none"]
    for arguments, code in [
        ((vm,), "MESSAGE_PARAMETER_COUNT_MISMATCH"),
        ((vm, 5, {}), "FIELD_TYPE_ERROR"),
    ]:
        with pytest.raises(XenAPI.Failure) as told:
            session.xenapi.Async.VM.pool_migrate(*arguments)
        assert told.value.details[0] == code
    session.xenapi.session.logout()
    session("close")()


# --- whom to trust -----------------------------------------------------------------------------


def test_a_certificate_of_nobody_known_is_refused(server: XapiServer) -> None:
    with pytest.raises(HypervisorError, match="not trusted") as told:
        Connection.open(parse(server.address()), {"ISTHMUS_XAPI_PASSWORD": PASSWORD})
    assert "cacert" in (told.value.remedy or "")
    assert server.calls == [], "the password must not have been sent"


def test_a_pinned_certificate_is_enough(server: XapiServer, certificates: Certificates) -> None:
    address = parse(server.address(fingerprint=certificates.fingerprint))
    with Connection.open(address, {"ISTHMUS_XAPI_PASSWORD": PASSWORD}) as connection:
        assert len(connection.ask("host.get_all")) == 2


def test_another_certificate_than_the_pinned_one_is_refused(
    server: XapiServer, environment: dict[str, str], certificates: Certificates
) -> None:
    address = parse(server.address(fingerprint="0" * 64))
    with pytest.raises(HypervisorError, match=certificates.fingerprint):
        Connection.open(address, environment)
    assert server.calls == [], "the password must not have been sent"


def test_a_file_without_certificates_is_bad_input(server: XapiServer, tmp_path: Path) -> None:
    empty = tmp_path / "ca.pem"
    empty.write_text("nothing")
    with pytest.raises(InputError, match=r"ca\.pem"):
        Connection.open(
            parse(server.address(cacert=str(empty))), {"ISTHMUS_XAPI_PASSWORD": PASSWORD}
        )


# --- sessions ----------------------------------------------------------------------------------


def test_a_session_that_has_run_out_is_renewed(
    server: XapiServer, environment: dict[str, str]
) -> None:
    with Connection.open(parse(server.address()), environment) as connection:
        server.pool.sessions.clear()
        assert len(connection.ask("host.get_all")) == 2
    assert server.count("session.login_with_password") == 2


def test_a_wrong_password_is_told_without_it(
    server: XapiServer, environment: dict[str, str]
) -> None:
    environment["ISTHMUS_XAPI_PASSWORD"] = "wr0ng-passw0rd"
    with pytest.raises(InputError, match="the password of root is not taken") as told:
        Connection.open(parse(server.address()), environment)
    assert "wr0ng" not in str(told.value)


def test_a_member_names_its_coordinator(
    server: XapiServer, environment: dict[str, str], certificates: Certificates
) -> None:
    member = XapiServer(
        server.pool, certificates, at=("127.0.0.2", server.port), coordinator="127.0.0.1"
    )
    try:
        with Connection.open(parse(member.address()), environment) as connection:
            assert connection.address.host == "127.0.0.1"
            assert len(connection.ask("host.get_all")) == 2
    finally:
        member.close()


def test_members_that_name_each_other_are_not_followed_for_ever(
    server: XapiServer, environment: dict[str, str]
) -> None:
    server.coordinator = "127.0.0.1"
    with pytest.raises(XapiFailureError, match="HOST_IS_SLAVE"):
        Connection.open(parse(server.address()), environment)


@pytest.mark.parametrize("named", ["", "a b", "x/../y", "h" * 300, "user@evil"])
def test_a_coordinator_that_is_no_host_is_not_followed(
    server: XapiServer, environment: dict[str, str], named: str
) -> None:
    server.faults = [Fault("session.login_with_password", "fail", details=("HOST_IS_SLAVE", named))]
    with pytest.raises(XapiNonsenseError, match="names no coordinator"):
        Connection.open(parse(server.address()), environment)


# --- connections that break --------------------------------------------------------------------


@pytest.mark.parametrize("how", ["cut", "cut-after", "torn", "http"])
def test_a_question_is_asked_again(
    server: XapiServer, environment: dict[str, str], how: str
) -> None:
    with Connection.open(parse(server.address()), environment) as connection:
        server.faults = [Fault("host.get_all", how, times=2)]
        assert len(connection.ask("host.get_all")) == 2
    assert server.count("host.get_all") == 3


@pytest.mark.parametrize("how", ["cut", "cut-after", "torn", "http"])
def test_an_order_is_given_once(server: XapiServer, environment: dict[str, str], how: str) -> None:
    """xmlrpc.client itself would send it a second time after a cut."""
    vm = server.pool.guest("web", "one")
    with Connection.open(parse(server.address()), environment) as connection:
        server.faults = [Fault("Async.VM.pool_migrate", how)]
        with pytest.raises(XapiGoneError):
            connection.order("Async.VM.pool_migrate", vm, server.pool.hosts["two"], {})
        assert server.count("Async.VM.pool_migrate") == 1
        assert len(connection.ask("host.get_all")) == 2, "the connection is made anew"


def test_an_order_in_an_expired_session_is_given_once_in_a_new_one(
    server: XapiServer, environment: dict[str, str]
) -> None:
    vm = server.pool.guest("web", "one")
    with Connection.open(parse(server.address()), environment) as connection:
        server.faults = [Fault("Async.VM.pool_migrate", "expire")]
        connection.order("Async.VM.pool_migrate", vm, server.pool.hosts["two"], {})
    assert len(server.pool.tables["task"]) == 1


def test_nobody_there_is_told_after_some_patience(environment: dict[str, str]) -> None:
    begun = time.monotonic()
    with pytest.raises(XapiGoneError, match="no answer"):
        Connection.open(parse("xapi://127.0.0.1:1"), environment, patience_s=1.0)
    assert time.monotonic() - begun < 60


# --- hostile answers ---------------------------------------------------------------------------

BOMB = b"""<?xml version="1.0"?><!DOCTYPE a [<!ENTITY b "x"><!ENTITY c "&b;&b;">]>
<methodResponse><params><param><value>&c;</value></param></params></methodResponse>"""


@pytest.mark.parametrize(
    "body",
    [
        b"", b"<", b"<methodResponse/>", b"not xml", BOMB, b"\xff\xfe<\x00",
        xmlrpc.client.dumps(({},), methodresponse=True).encode(),
        xmlrpc.client.dumps(({"Status": "Success"},), methodresponse=True).encode(),
        xmlrpc.client.dumps(({"Status": "Failure"},), methodresponse=True).encode(),
        xmlrpc.client.dumps(
            ({"Status": "Failure", "ErrorDescription": []},), methodresponse=True
        ).encode(),
        xmlrpc.client.dumps(xmlrpc.client.Fault(1, "a\x1b[31mb")).encode(),
        xmlrpc.client.dumps((["x"],), methodresponse=True).encode(),
        b"<methodResponse><params><param><value><int>9</int><int>9",
        b"<methodResponse><params><param><value><odd/></value></param></params></methodResponse>",
    ],
)  # fmt: skip
def test_what_is_no_answer_is_one_clear_line(
    server: XapiServer, environment: dict[str, str], body: bytes
) -> None:
    with Connection.open(parse(server.address()), environment) as connection:
        server.faults = [Fault("host.get_all_records", "raw", body=body, times=-1)]
        with pytest.raises(IsthmusError) as told:
            inventory(connection)
        server.faults = []
    assert "\n" not in str(told.value)
    assert "\x1b" not in str(told.value)


XML_VALUES = st.recursive(
    st.text(st.characters(min_codepoint=32, max_codepoint=0x2FF), max_size=20)
    | st.booleans()
    | st.integers(-(2**31), 2**31 - 1)
    | st.floats(allow_nan=False, allow_infinity=False),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(
            st.sampled_from(["uuid", "name_label", "cpu_info", "features_hvm", "x"]),
            inner,
            max_size=4,
        )
    ),
    max_leaves=12,
)


def test_no_answer_of_any_shape_is_a_traceback(
    server: XapiServer, environment: dict[str, str]
) -> None:
    with Connection.open(parse(server.address()), environment) as connection:

        @settings(max_examples=200, deadline=None)
        @given(value=XML_VALUES)
        def ask(value: object) -> None:
            answer = ({"Status": "Success", "Value": value},)
            body = xmlrpc.client.dumps(answer, methodresponse=True).encode()
            server.faults = [Fault("host.get_all_records", "raw", body=body, times=-1)]
            with pytest.raises(IsthmusError):
                inventory(connection)

        ask()
        server.faults = []


RECORDS = [PoolRecord, HostRecord, VmRecord, TaskRecord, VbdRecord, SrRecord, PifRecord]
FIELD_NAMES = sorted({field.encode_name for kind in RECORDS for field in fields(kind)})


@given(
    kind=st.sampled_from(RECORDS),
    value=st.dictionaries(
        st.sampled_from(FIELD_NAMES), XML_VALUES | st.floats() | st.just("OpaqueRef:NULL")
    ),
)
def test_a_record_is_of_the_documented_types_or_none(kind: type, value: object) -> None:
    try:
        record = typed(value, kind, kind.__name__)
    except XapiNonsenseError as error:
        assert "\n" not in str(error)
        return
    if isinstance(record, TaskRecord):
        assert 0 <= record.percent <= 100


def test_secrets_are_not_told(server: XapiServer, environment: dict[str, str]) -> None:
    with Connection.open(parse(server.address()), environment) as connection:
        session = next(iter(server.pool.sessions))
        server.faults = [
            Fault("host.get_all", "fail", details=("INTERNAL_ERROR", f"{session} {PASSWORD}"))
        ]
        with pytest.raises(XapiFailureError) as told:
            connection.ask("host.get_all")
    for secret in (PASSWORD, session, session.removeprefix("OpaqueRef:")):
        assert secret not in str(told.value) + repr(told.value)
    assert PASSWORD not in repr(connection._login)
