/* SPDX-License-Identifier: Apache-2.0 OR GPL-2.0-only */
/* RDTSCP, 0F 01 F9 (Intel SDM vol. 2B; AMD APM vol. 3). */
#include "instruction.h"

static void run_clock(struct instruction *insn)
{
    name_it(insn, ISTHMUS_RDTSCP);
    if ((insn->machine->cr4 & CR4_TSD) && insn->machine->cpl) {
        fault(insn, VECTOR_GP, true, 0);
        return;
    }
    set_gpr(insn, RAX, 32, insn->machine->tsc);
    set_gpr(insn, RDX, 32, insn->machine->tsc >> 32);
    set_gpr(insn, RCX, 32, insn->machine->tsc_aux);
    insn->outcome->touched |= ISTHMUS_USED_TSC;
    step_over(insn);
}

bool execute_clock(struct instruction *insn)
{
    if (insn->map != MAP_0F || insn->opcode != 0x01)
        return false;
    uint8_t byte = take_byte(insn);
    if (!insn->ended && byte != 0xf9)
        return false;
    if (insn->ended || insn->repeat || insn->operand_size) {
        decline(insn);
        return true;
    }
    insn->lean = LEAN_GENERAL | LEAN_CLOCK;
    insn->run = run_clock;
    return true;
}
