/* SPDX-License-Identifier: Apache-2.0 OR GPL-2.0-only */
/* Between the registers of the x87 as FXSAVE stores them and the core's, for callers that have such an
 * image: a signal's frame, or one of their own.
 *
 * The image has the registers in the order of the stack: ST(i) is physical register (TOP + i) mod 8,
 * and MMi is physical register i (Intel SDM vol. 1, 8.1.2 and 9.2.1; table 10-2 for the layout). */
#ifndef ISTHMUS_X87_IMAGE_H
#define ISTHMUS_X87_IMAGE_H

#include "machine.h"

struct x87_image {
    uint16_t control, status;
    uint8_t tags, reserved; /* abridged, by physical number */
    uint16_t opcode;
    uint64_t ip, data;
    uint32_t mxcsr, mxcsr_mask;
    uint8_t st[8][16];
};

enum { X87_TOP = 0x3800, X87_TOP_AT = 11 };

static inline void take_x87_image(struct isthmus_machine *machine, const struct x87_image *image)
{
    for (unsigned i = 0; i < 8; i++) {
        unsigned number = (i + (image->status >> X87_TOP_AT)) & 7;
        __builtin_memcpy(machine->mmx[number], image->st[i], 8);
        __builtin_memcpy(&machine->x87_high[number], image->st[i] + 8, 2);
    }
    machine->has_x87 = 1;
    machine->x87_control = image->control;
    machine->x87_status = image->status;
    machine->x87_tags = image->tags;
}

/* Write back what `all` says was touched: `machine` must have been taken from this very image. */
static inline void give_x87_image(const struct isthmus_machine *machine,
                                  const struct isthmus_outcome *all, struct x87_image *image)
{
    unsigned top = 0;
    if (all->touched & ISTHMUS_WROTE_X87) {
        top = machine->x87_status >> X87_TOP_AT & 7;
        image->status = machine->x87_status;
        image->tags = machine->x87_tags;
        image->opcode = machine->x87_opcode;
        image->ip = machine->x87_ip;
        image->data = machine->x87_dp;
    } else { /* MMX: the top is 0 */
        image->status &= (uint16_t)~X87_TOP;
        image->tags = all->touched & ISTHMUS_EMPTIED_MMX ? 0 : 0xff;
    }
    for (unsigned i = 0; i < 8; i++) {
        unsigned number = (i + top) & 7;
        uint16_t high = all->mmx_written >> number & 1 ? 0xffff : machine->x87_high[number];
        __builtin_memcpy(image->st[i], machine->mmx[number], 8);
        __builtin_memcpy(image->st[i] + 8, &high, 2);
    }
}

#endif
