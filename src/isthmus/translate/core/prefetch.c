/* SPDX-License-Identifier: Apache-2.0 OR GPL-2.0-only */
/* PREFETCH and PREFETCHW, 0F 0D with a memory operand: hints, so nothing is done.  They raise no
 * exception for any address (AMD APM vol. 3; Intel SDM vol. 2B). */
#include "instruction.h"

bool execute_prefetch(struct instruction *insn)
{
    if (insn->map != MAP_0F || insn->opcode != 0x0d)
        return false;
    if (!decode_operands(insn) || !insn->is_memory)
        decline(insn);
    else
        finish(insn, (insn->reg & 7) == 0 ? ISTHMUS_PREFETCH : ISTHMUS_PREFETCHW);
    return true;
}
