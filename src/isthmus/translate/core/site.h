/* SPDX-License-Identifier: Apache-2.0 OR GPL-2.0-only */
/* Instructions that are met again and again: decoded once, executed from what was kept.
 *
 * For callers that count every instruction of their own (a kernel's trap handler): what is hot is
 * inline.  A site is found by its bytes, never by its address alone, since code changes. */
#ifndef ISTHMUS_SITE_H
#define ISTHMUS_SITE_H

#include "instruction.h"

/* All zero at first: nothing is kept.  One that is being executed must not be given to another
 * execution meanwhile. */
struct isthmus_site {
    uint64_t bytes[2];
    uint64_t mask[2]; /* which of them belong to the instruction */
    uint8_t mode;     /* 0: nothing is kept */
    uint8_t lean;     /* it needs vector registers only, see `struct instruction` */
    uint8_t length;
    struct instruction decoded;
};

/* As isthmus_execute, with at least 16 readable bytes at `code`; keeps what it decoded if that can be run
 * again. */
void isthmus_learn(struct isthmus_site *site, struct isthmus_machine *machine, const uint8_t *code,
                   size_t available, const struct isthmus_memory *memory,
                   struct isthmus_outcome *outcome);

/* Whether `site` holds the instruction at `code`, of which 16 bytes must be readable. */
static inline bool isthmus_knows(const struct isthmus_site *site, uint8_t mode, const uint8_t *code,
                                 size_t available)
{
    uint64_t low, high;
    __builtin_memcpy(&low, code, 8);
    if (site->mode != mode || (low & site->mask[0]) != site->bytes[0] || site->length > available)
        return false;
    if (site->length <= 8)
        return true;
    __builtin_memcpy(&high, code + 8, 8);
    return (high & site->mask[1]) == site->bytes[1];
}

/* Execute what `site` holds.  If it is lean, `machine` needs only vector registers, MXCSR, RIP, CR0,
 * CR4, mode and CPL. */
static inline void isthmus_again(struct isthmus_site *site, struct isthmus_machine *machine,
                                 const struct isthmus_memory *memory,
                                 struct isthmus_outcome *outcome)
{
    struct instruction *insn = &site->decoded;
    *outcome = (struct isthmus_outcome){.kind = ISTHMUS_NOT_OURS};
    insn->machine = machine;
    insn->memory = memory;
    insn->outcome = outcome;
    insn->run(insn);
}

#endif
