/* SPDX-License-Identifier: Apache-2.0 OR GPL-2.0-only */
/* What the groups of floating-point instructions share: elements of vectors, and how an instruction
 * begins and ends with MXCSR (Intel SDM vol. 1, 11.5). */
#ifndef ISTHMUS_FLOAT_H
#define ISTHMUS_FLOAT_H

#include "soft.h"
#include "vector.h"

enum { CR4_OSXMMEXCPT = 0x400, VECTOR_XM = 19, STATUS_FLAGS = 0x3f };

static inline struct soft start(const struct instruction *insn)
{
    uint32_t mxcsr = insn->machine->mxcsr;
    return (struct soft){.mxcsr = mxcsr, .rounding = mxcsr >> MXCSR_ROUNDING & 3};
}

/* The end of a step, which takes all elements together: false if it raises an unmasked exception, so
 * that no other step follows.  What is found in operands comes before anything is computed. */
static inline bool proceed(struct soft *soft)
{
    const uint32_t before = FLAG_IE | FLAG_DE | FLAG_ZE;
    uint32_t open = ~(soft->mxcsr >> MXCSR_MASKS) & STATUS_FLAGS;
    if (soft->raised & open & before)
        soft->raised &= before;
    bool unmasked = soft->raised & open;
    soft->shown |= soft->raised;
    soft->raised = 0;
    return !unmasked;
}

/* Note the flags in MXCSR; false if one of them is unmasked, and the exception is in the outcome. */
static inline bool settle(struct instruction *insn, struct soft *soft)
{
    proceed(soft);
    bool unmasked = soft->shown & ~(soft->mxcsr >> MXCSR_MASKS) & STATUS_FLAGS;
    if (unmasked && !(insn->machine->cr4 & CR4_OSXMMEXCPT)) {
        decline(insn); /* the CPU raises #UD here, and the guest has asked for that */
        return false;
    }
    uint32_t after = insn->machine->mxcsr | soft->shown;
    if (after != insn->machine->mxcsr) {
        insn->machine->mxcsr = after;
        insn->outcome->touched |= ISTHMUS_WROTE_MXCSR;
    }
    if (unmasked)
        fault(insn, VECTOR_XM, false, 0);
    return !unmasked;
}

static inline bool begin(struct instruction *insn, uint32_t name)
{
    name_it(insn, vector_name(insn, name));
    return insn->vex ? vex_usable(insn) : sse_usable(insn);
}

static inline void end(struct instruction *insn, struct soft *soft, unsigned reg,
                       const struct vector *result, uint32_t name)
{
    if (!settle(insn, soft))
        return;
    set_vector(insn, reg, result);
    finish(insn, vector_name(insn, name));
}

/* The first source of a VEX instruction with three operands, else the destination. */
static inline void get_first(const struct instruction *insn, struct vector *value)
{
    get_vector(insn, insn->vex ? insn->vvvv : insn->reg, value);
}

static inline uint64_t get(const struct vector *v, bool wide, unsigned i)
{
    return wide ? v->lane[i / 2].q[i % 2] : v->lane[i / 4].d[i % 4];
}

static inline void put(struct vector *v, bool wide, unsigned i, uint64_t value)
{
    if (wide)
        v->lane[i / 2].q[i % 2] = value;
    else
        v->lane[i / 4].d[i % 4] = (uint32_t)value;
}

static inline const struct format *format_of(bool wide)
{
    return wide ? &double_format : &single_format;
}

#endif
