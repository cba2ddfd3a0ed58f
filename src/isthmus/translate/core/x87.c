/* SPDX-License-Identifier: Apache-2.0 OR GPL-2.0-only */
/* FISTTP, which SSE3 added to the x87: the only instruction here that needs the register stack.
 *
 * An unmasked exception does not fault where it arises: it is noted in the status word, and the next
 * waiting instruction raises #MF (Intel SDM vol. 1, 8.5 to 8.7; vol. 2A, FISTTP).  Of those that FISTTP
 * can raise, an invalid operation then leaves memory and stack as they are; an inexact result is
 * stored and popped all the same. */
#include "soft_number.h"

#include "instruction.h"

enum { STATUS_SF = 0x40, STATUS_ES = 0x80, STATUS_C1 = 0x200, STATUS_TOP = 11, STATUS_BUSY = 0x8000 };
enum { EXCEPTIONS = 0x3f };

/* As a number; what is no encoding of one (an "unnormal") is invalid like a signalling NaN. */
static struct number unpack_extended(uint64_t significand, uint16_t high)
{
    unsigned exponent = high & 0x7fff;
    struct number n = {.negative = high >> 15};
    if (exponent == 0x7fff || (exponent && !(significand >> 63))) {
        n.class = SIGNALLING;
        return n;
    }
    if (!significand)
        return n;
    n.class = NUMBER;
    n.digits = significand;
    n.exponent = (int)(exponent ? exponent : 1) - 16383;
    while (!(n.digits >> 63)) {
        n.digits <<= 1;
        n.exponent--;
    }
    return n;
}

/* Whether the x87 may be used, else the outcome is written. */
static bool x87_usable(struct instruction *insn)
{
    const struct isthmus_machine *machine = insn->machine;
    if (machine->cr0 & (CR0_EM | CR0_TS)) {
        fault(insn, VECTOR_NM, false, 0);
        return false;
    }
    if (!none_waiting(insn))
        return false;
    if (!machine->has_x87)
        insn->outcome->kind = ISTHMUS_LACKS_STATE;
    return machine->has_x87;
}

static void pop(struct isthmus_machine *machine, unsigned top)
{
    machine->x87_tags &= (uint8_t)~(1u << top);
    machine->x87_status &= (uint16_t)~(7u << STATUS_TOP);
    machine->x87_status |= (uint16_t)(((top + 1) & 7) << STATUS_TOP);
}

/* The value that is stored, in `bits` bits; flags of the status word in `raised`. */
static uint64_t truncated(const struct isthmus_machine *machine, unsigned top, unsigned bits,
                          unsigned *raised)
{
    struct number n = {.class = SIGNALLING};
    struct soft soft = {.rounding = TO_ZERO};
    if (machine->x87_tags >> top & 1) {
        uint64_t significand;
        __builtin_memcpy(&significand, machine->mmx[top], 8);
        n = unpack_extended(significand, machine->x87_high[top]);
    } else {
        *raised |= STATUS_SF; /* the stack has nothing there */
    }
    uint64_t value = soft_number_to_integer(&soft, n, bits);
    *raised |= soft.raised;
    return value;
}

/* DF /1 stores 16 bits, DB /1 stores 32, DD /1 stores 64. */
bool execute_x87(struct instruction *insn)
{
    if (insn->map != MAP_ONE_BYTE ||
        (insn->opcode != 0xdb && insn->opcode != 0xdd && insn->opcode != 0xdf))
        return false;
    if (!decode_operands(insn) || !insn->is_memory || (insn->reg & 7) != 1) {
        decline(insn);
        return true;
    }
    struct isthmus_machine *machine = insn->machine;
    unsigned bits = insn->opcode == 0xdf ? 16 : insn->opcode == 0xdb ? 32 : 64;
    unsigned top = machine->x87_status >> STATUS_TOP & 7, raised = 0;
    name_it(insn, ISTHMUS_FISTTP);
    if (!x87_usable(insn))
        return true;
    uint64_t value = truncated(machine, top, bits, &raised);
    bool invalid = raised & FLAG_IE && !(machine->x87_control & FLAG_IE);
    uint8_t bytes[8];
    for (unsigned i = 0; i < bits / 8; i++)
        bytes[i] = (uint8_t)(value >> 8 * i);
    int segment;
    uint64_t offset = effective_address(insn, &segment);
    uint8_t present[8];
    /* A page fault comes first, also where nothing will be stored (seen on a Zen 5). */
    if (invalid ? !load_to_store(insn, segment, offset, present, bits / 8)
                : !store_at(insn, segment, offset, bytes, bits / 8))
        return true;
    machine->x87_ip = machine->rip;
    machine->x87_dp = offset;
    machine->x87_opcode = (uint16_t)((insn->opcode & 7) << 8 | insn->code[insn->modrm_at]);
    machine->x87_status &= (uint16_t)~STATUS_C1;
    machine->x87_status |= (uint16_t)raised;
    if (raised & ~machine->x87_control & EXCEPTIONS)
        machine->x87_status |= STATUS_ES | STATUS_BUSY;
    if (!invalid)
        pop(machine, top);
    insn->outcome->touched |= ISTHMUS_WROTE_X87;
    finish(insn, ISTHMUS_FISTTP);
    return true;
}
