/* SPDX-License-Identifier: Apache-2.0 OR GPL-2.0-only */
/* LAHF and SAHF in 64-bit mode, which early 64-bit processors lacked (CPUID LAHF_LM).
 * Elsewhere both are always there, so a #UD on them is not ours. */
#include "instruction.h"

bool execute_flags(struct instruction *insn)
{
    if (insn->map != MAP_ONE_BYTE || (insn->opcode & 0xfe) != 0x9e)
        return false;
    if (insn->machine->mode != 64) {
        decline(insn);
        return true;
    }
    const uint64_t affected = FLAG_SF | FLAG_ZF | FLAG_AF | FLAG_PF | FLAG_CF;
    uint64_t rax = insn->machine->gpr[RAX];
    if (insn->opcode == 0x9f) {
        uint64_t ah = (insn->machine->rflags & affected) | 2;
        set_gpr(insn, RAX, 64, (rax & ~UINT64_C(0xff00)) | ah << 8);
        finish(insn, ISTHMUS_LAHF);
    } else {
        set_flags(insn, affected, rax >> 8);
        finish(insn, ISTHMUS_SAHF);
    }
    return true;
}
