/* SPDX-License-Identifier: Apache-2.0 OR GPL-2.0-only */
/* Instructions that are met again and again: decoded once, run again from what was decoded.
 *
 * For callers that count every instruction of their own (a kernel's trap handler), so what is hot is
 * inline.  Such a caller keeps the decoded instruction with the bytes it was decoded from, and
 * compares them each time: code changes. */
#ifndef ISTHMUS_SITE_H
#define ISTHMUS_SITE_H

#include "instruction.h"

/* As isthmus_execute; true if `insn` may be kept for isthmus_again.  It must not be given to another
 * execution while it is in one. */
bool isthmus_learn(struct instruction *insn, struct isthmus_machine *machine, const uint8_t *code,
                   size_t available, const struct isthmus_memory *memory,
                   struct isthmus_outcome *outcome);

/* Run it once more, on a machine of which only that is filled in which `insn->lean` names; no memory is
 * asked for.  Of the outcome only the kind, the mnemonic, the length, and what was touched and written
 * is set. */
static inline void isthmus_again(struct instruction *insn, struct isthmus_machine *machine,
                                 struct isthmus_outcome *outcome)
{
    outcome->kind = ISTHMUS_NOT_OURS;
    outcome->mnemonic = outcome->length = outcome->touched = 0;
    outcome->gpr_written = outcome->xmm_written = outcome->ymm_written = outcome->mmx_written = 0;
    outcome->flags_written = 0;
    insn->machine = machine;
    insn->outcome = outcome;
    insn->run(insn);
}

#endif
