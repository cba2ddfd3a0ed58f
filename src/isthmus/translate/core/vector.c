/* SPDX-License-Identifier: Apache-2.0 OR GPL-2.0-only */
/* Operands of vector instructions, and the walk over the tables of lane functions.
 * Sources: Intel SDM vol. 2A, 2.3 (VEX) and 2.4 (exception classes); AMD APM vol. 4, 1.4 and vol. 6
 * (XOP). */
#include "vector.h"

bool vex_usable(struct instruction *insn)
{
    const struct isthmus_machine *machine = insn->machine;
    if (!(machine->cr4 & CR4_OSXSAVE)) {
        decline(insn); /* the guest's own #UD */
        return false;
    }
    if (machine->cr0 & CR0_TS) {
        fault(insn, VECTOR_NM, false, 0);
        return false;
    }
    if (!machine->has_ymm) {
        insn->outcome->kind = ISTHMUS_LACKS_STATE;
        return false;
    }
    return true;
}

uint32_t vector_name(const struct instruction *insn, uint32_t mnemonic)
{
    return insn->vex ? mnemonic | ISTHMUS_VEX_FORM : mnemonic;
}

unsigned vector_bytes(const struct instruction *insn)
{
    return insn->vex && insn->long_vector ? 32 : 16;
}

void get_vector(const struct instruction *insn, unsigned number, struct vector *value)
{
    __builtin_memcpy(value->lane[0].b, insn->machine->xmm[number], 16);
    __builtin_memcpy(value->lane[1].b, insn->machine->ymm_high[number], 16);
}

/* Without VEX the upper half stays, with it a short result clears it. */
void set_vector(struct instruction *insn, unsigned number, const struct vector *value)
{
    __builtin_memcpy(insn->machine->xmm[number], value->lane[0].b, 16);
    insn->outcome->xmm_written |= 1u << number;
    if (!insn->vex)
        return;
    if (insn->long_vector)
        __builtin_memcpy(insn->machine->ymm_high[number], value->lane[1].b, 16);
    else
        __builtin_memset(insn->machine->ymm_high[number], 0, 16);
    insn->outcome->ymm_written |= 1u << number;
}

bool load_vector(struct instruction *insn, struct vector *value, unsigned bytes, bool aligned)
{
    /* AMD's misaligned mode (MXCSR.MM, APM vol. 1, 4.2.2) lifts the demand. */
    return load_moved(insn, value, bytes, aligned && !(insn->machine->mxcsr & MXCSR_MM));
}

bool load_moved(struct instruction *insn, struct vector *value, unsigned bytes, bool aligned)
{
    *value = (struct vector){0};
    if (!insn->is_memory) {
        get_vector(insn, insn->rm, value);
        return true;
    }
    insn->aligned = aligned;
    uint8_t copy[32];
    if (!load(insn, copy, bytes))
        return false;
    for (unsigned i = 0; i < bytes; i++)
        value->lane[i / 16].b[i % 16] = copy[i];
    return true;
}

bool load_sources(struct instruction *insn, unsigned bytes, unsigned immediate, struct vector *a,
                  struct vector *b, struct vector *c)
{
    unsigned fourth = immediate >> 4 & (insn->machine->mode == 64 ? 15 : 7);
    get_vector(insn, insn->vvvv, a);
    get_vector(insn, fourth, insn->wide ? b : c);
    return load_vector(insn, insn->wide ? c : b, bytes, false);
}

static bool fits(const struct instruction *insn, const struct lane_operation *operation)
{
    if (operation->map != insn->map || operation->opcode != insn->opcode)
        return false;
    if (!insn->vex && operation->prefix == P66 && insn->prefix == NP)
        return operation->form & F_MMX;
    if (operation->prefix != insn->prefix)
        return false;
    if (!insn->vex)
        return operation->form & F_LEGACY;
    if ((operation->form & F_W0 && insn->wide) || (operation->form & F_W1 && !insn->wide))
        return false;
    return operation->form & (insn->long_vector ? F_V256 : F_V128);
}

static void run_mmx(struct instruction *insn)
{
    const struct lane_operation *operation = insn->operation;
    union lane a = {0}, b = {0}, result = {0};
    insn->reg &= 7; /* REX.R and REX.B name no MMX register */
    unsigned immediate = operation->form & F_IMM ? insn->immediate : 0;
    name_it(insn, operation->mnemonic);
    if (!mmx_usable(insn))
        return;
    if (insn->is_memory) {
        if (!load(insn, b.b, 8))
            return;
    } else {
        insn->rm &= 7;
        for (unsigned i = 0; i < 8; i++)
            b.b[i] = insn->machine->mmx[insn->rm][i];
    }
    for (unsigned i = 0; i < 8; i++)
        a.b[i] = insn->machine->mmx[insn->reg][i];
    operation->run(&result, &a, &b, immediate, 8);
    for (unsigned i = 0; i < 8; i++)
        insn->machine->mmx[insn->reg][i] = result.b[i];
    insn->outcome->mmx_written |= 1u << insn->reg;
    insn->outcome->touched |= ISTHMUS_WROTE_MMX;
    finish(insn, operation->mnemonic);
}

static void run_vector(struct instruction *insn)
{
    const struct lane_operation *operation = insn->operation;
    struct vector a, b, result;
    unsigned bytes = vector_bytes(insn), immediate = insn->immediate;
    uint32_t name = vector_name(insn, operation->mnemonic);
    name_it(insn, name);
    if (insn->vex ? !vex_usable(insn) : !sse_usable(insn))
        return;
    if (!load_vector(insn, &b, bytes, !insn->vex && !(operation->form & F_LOOSE)))
        return;
    get_vector(insn, insn->vex && !(operation->form & F_UNARY) ? insn->vvvv : insn->reg, &a);
    get_vector(insn, insn->reg, &result); /* what it was: dot products add to it */
    unsigned shift = operation->form & F_IMM_PAIR ? 2 : 0;
    for (unsigned i = 0; i < bytes / 16; i++)
        operation->run(&result.lane[i], &a.lane[i], &b.lane[i], immediate >> shift * i, 16);
    set_vector(insn, insn->reg, &result);
    step_over(insn);
}

bool execute_lanes(struct instruction *insn, const struct lane_operation *table, size_t count)
{
    for (size_t i = 0; i < count; i++) {
        const struct lane_operation *operation = &table[i];
        if (!fits(insn, operation))
            continue;
        if (!decode_operands(insn) || (insn->vex && operation->form & F_UNARY && insn->vvvv)) {
            decline(insn);
            return true;
        }
        if (operation->form & F_IMM)
            insn->immediate = take_byte(insn);
        bool mmx = !insn->vex && operation->prefix == P66 && insn->prefix == NP;
        insn->operation = operation;
        insn->lean = mmx || insn->is_memory ? 0 : insn->vex ? LEAN_XMM | LEAN_YMM : LEAN_XMM;
        insn->run = mmx ? run_mmx : run_vector;
        return true;
    }
    return false;
}
