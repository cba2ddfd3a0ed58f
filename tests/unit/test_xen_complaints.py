"""Of what xl says when a move fails, the cause is kept and not only what follows from it."""

from isthmus.hypervisor.xen.transfer import _complaints

# As a real Xen 4.17 said it in the lab.
REFUSED = """\
migration target: Ready to receive domain.
Loading new save file <incoming migration stream> (new xl fmt info 0x3/0x0/2469)
 Savefile contains xl domain config in JSON format
Parsing config from <saved>
xc: info: Found x86 PV domain from Xen 4.17
xc: info: Restoring domain
xc: error: Failed to set CPUID policy: leaf 80000000, subleaf ffffffff, msr ffffffff (22 = Invalid)
xc: error: Restore failed (22 = Invalid argument): Internal error
libxl: error: libxl_stream_read.c:850:libxl__xc_domain_restore_done: restoring domain: Invalid
libxl: error: libxl_create.c:1640:domcreate_rebuild_done: Domain 1:cannot (re-)build domain: -3
libxl: error: libxl_domain.c:1183:libxl__destroy_domid: Domain 1:Non-existant domain
libxl: error: libxl_domain.c:1137:domain_destroy_callback: Domain 1:Unable to destroy guest
libxl: error: libxl_domain.c:1064:domain_destroy_cb: Domain 1:Destruction of domain failed
migration target: Domain creation failed (code -3).
"""


def test_the_cause_comes_first() -> None:
    first, *others = _complaints(REFUSED)
    assert first.startswith("xc: error: Failed to set CPUID policy: leaf 80000000")
    assert not any("destroy" in line for line in others)


def test_a_move_that_went_well_complains_of_nothing() -> None:
    fine = REFUSED.partition("xc: error")[0] + "\r\nmigration target: Domain started successsfully."
    assert _complaints(fine) == []
