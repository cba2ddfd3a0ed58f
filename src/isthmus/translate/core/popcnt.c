/* SPDX-License-Identifier: Apache-2.0 OR GPL-2.0-only */
/* POPCNT, F3 0F B8 /r (Intel SDM vol. 2B; AMD APM vol. 3). */
#include "instruction.h"

static void run_popcnt(struct instruction *insn)
{
    name_it(insn, ISTHMUS_POPCNT);
    unsigned bits = operand_bits(insn);
    uint64_t value, count = 0;
    if (!load_integer(insn, bits, &value))
        return;
    for (uint64_t rest = value; rest; rest &= rest - 1)
        count++;
    set_gpr(insn, insn->reg, bits, count);
    set_flags(insn, FLAG_CF | FLAG_PF | FLAG_AF | FLAG_ZF | FLAG_SF | FLAG_OF,
              value ? 0 : FLAG_ZF);
    step_over(insn);
}

bool execute_popcnt(struct instruction *insn)
{
    if (insn->map != MAP_0F || insn->opcode != 0xb8 || insn->repeat != 0xf3)
        return false;
    if (!decode_operands(insn)) {
        decline(insn);
        return true;
    }
    insn->lean = insn->is_memory ? 0 : LEAN_GENERAL;
    insn->run = run_popcnt;
    return true;
}
