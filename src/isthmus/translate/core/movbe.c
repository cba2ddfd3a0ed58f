/* SPDX-License-Identifier: Apache-2.0 OR GPL-2.0-only */
/* MOVBE, 0F 38 F0 (load) and F1 (store), without F2 or F3 (Intel SDM vol. 2B). */
#include "instruction.h"

bool execute_movbe(struct instruction *insn)
{
    if (insn->map != MAP_0F38 || (insn->opcode & 0xfe) != 0xf0 || insn->repeat)
        return false;
    if (!decode_operands(insn) || !insn->is_memory) {
        decline(insn);
        return true;
    }
    name_it(insn, ISTHMUS_MOVBE);
    unsigned size = operand_bits(insn) / 8;
    uint8_t bytes[8];
    if (insn->opcode == 0xf0) {
        uint64_t value = 0;
        if (!load(insn, bytes, size))
            return true;
        for (unsigned i = 0; i < size; i++)
            value = value << 8 | bytes[i];
        set_gpr(insn, insn->reg, size * 8, value);
    } else {
        uint64_t value = insn->machine->gpr[insn->reg];
        for (unsigned i = size; i-- > 0; value >>= 8)
            bytes[i] = (uint8_t)value;
        if (!store(insn, bytes, size))
            return true;
    }
    finish(insn, ISTHMUS_MOVBE);
    return true;
}
