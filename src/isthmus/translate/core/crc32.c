/* SPDX-License-Identifier: Apache-2.0 OR GPL-2.0-only */
/* CRC32, F2 0F 38 F0 and F1: CRC-32C, polynomial 11EDC6F41h, bits reflected (Intel SDM vol. 2A). */
#include "instruction.h"

bool execute_crc32(struct instruction *insn)
{
    if (insn->map != MAP_0F38 || (insn->opcode & 0xfe) != 0xf0 || insn->repeat != 0xf2)
        return false;
    if (!decode_operands(insn)) {
        decline(insn);
        return true;
    }
    name_it(insn, ISTHMUS_CRC32);
    unsigned bits = insn->opcode == 0xf0 ? 8 : operand_bits(insn);
    uint64_t value;
    if (!load_integer(insn, bits, &value))
        return true;
    uint32_t crc = (uint32_t)insn->machine->gpr[insn->reg];
    for (unsigned i = 0; i < bits; i++, value >>= 1)
        crc = crc >> 1 ^ ((crc ^ (uint32_t)value) & 1 ? UINT32_C(0x82f63b78) : 0);
    set_gpr(insn, insn->reg, 64, crc); /* both sizes of the destination end up zero-extended */
    finish(insn, ISTHMUS_CRC32);
    return true;
}
