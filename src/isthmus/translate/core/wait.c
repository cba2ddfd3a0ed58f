/* SPDX-License-Identifier: Apache-2.0 OR GPL-2.0-only */
/* MONITOR, 0F 01 C8, and MWAIT, 0F 01 C9 (Intel SDM vol. 2B; AMD APM vol. 3).
 *
 * MWAIT may end for any reason, so returning at once is correct; a loop around it then polls.
 * At CPL above 0 both are a true #UD. */
#include "instruction.h"

bool execute_wait(struct instruction *insn)
{
    if (insn->map != MAP_0F || insn->opcode != 0x01)
        return false;
    uint8_t byte = take_byte(insn);
    if (!insn->ended && byte != 0xc8 && byte != 0xc9)
        return false;
    if (insn->ended || insn->repeat || insn->operand_size || insn->machine->cpl) {
        decline(insn);
        return true;
    }
    unsigned bits = insn->machine->mode == 64 ? 64 : 32;
    uint64_t extensions = get_gpr(insn, RCX, bits);
    if (byte == 0xc8) {
        name_it(insn, ISTHMUS_MONITOR);
        uint8_t watched;
        int segment = insn->segment >= 0 ? insn->segment : ISTHMUS_DS;
        if (extensions)
            fault(insn, VECTOR_GP, true, 0);
        else if (load_at(insn, segment, get_gpr(insn, RAX, address_bits(insn)), &watched, 1))
            finish(insn, ISTHMUS_MONITOR);
    } else {
        name_it(insn, ISTHMUS_MWAIT);
        if (extensions & ~UINT64_C(1)) {
            fault(insn, VECTOR_GP, true, 0);
        } else {
            insn->outcome->touched |= ISTHMUS_WAITED;
            finish(insn, ISTHMUS_MWAIT);
        }
    }
    return true;
}
