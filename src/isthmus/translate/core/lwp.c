/* SPDX-License-Identifier: Apache-2.0 OR GPL-2.0-only */
/* Lightweight profiling, AMD's families 15h to 16h: LLWPCB, SLWPCB, LWPINS, LWPVAL, with profiling
 * never on.  That is what a CPU does whose LWP_CFG grants no event: the loaded control block is
 * never active, SLWPCB reads 0, and an inserted event is not stored, so CF is 0.
 * Source: AMD Lightweight Profiling Specification (43724) and AMD APM vol. 3, the four pages. */
#include "instruction.h"

bool execute_lwp(struct instruction *insn)
{
    bool insert = insn->map == MAP_XOPA; /* LWPINS and LWPVAL, with 32 immediate bits */
    if (!insn->xop || (insn->map != MAP_XOP9 && !insert) || insn->opcode != 0x12)
        return false;
    if (!decode_operands(insn)) {
        decline(insn);
        return true;
    }
    unsigned digit = insn->reg & 7;
    for (unsigned i = 0; insert && i < 4; i++)
        take_byte(insn);
    /* XOP.pp and L are 0.  In real mode these are undefined; `mode` cannot tell, and XOP needs
     * protected mode anyway. */
    if (insn->ended || digit > 1 || insn->long_vector || insn->prefix ||
        (!insert && (insn->is_memory || insn->vvvv))) {
        decline(insn);
        return true;
    }
    if (!insert) {
        uint32_t name = digit ? ISTHMUS_SLWPCB : ISTHMUS_LLWPCB;
        if (digit)
            set_gpr(insn, insn->rm, insn->wide && insn->machine->mode == 64 ? 64 : 32, 0);
        finish(insn, name);
        return true;
    }
    if (!digit)
        set_flags(insn, FLAG_CF, 0);
    finish(insn, digit ? ISTHMUS_LWPVAL : ISTHMUS_LWPINS);
    return true;
}
