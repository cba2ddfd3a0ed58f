/* SPDX-License-Identifier: Apache-2.0 OR GPL-2.0-only */
/* SSE4a: EXTRQ, INSERTQ, MOVNTSS, MOVNTSD (AMD APM vol. 4, chapter 2).
 *
 * Length and index count modulo 64.  A length of 0 means 64 where the index is 0; length 0 with
 * another index, and a length and index whose sum passes 64, are undefined there.  We do what
 * QEMU, Bochs and a Zen 5 do: length 0 is 64, and bits beyond 63 read as zero or are dropped.  The
 * upper quadword of the destination is undefined too; it is cleared, as a Zen 5 does in every case
 * that was tried, where QEMU and Bochs keep it: what counts is the CPU that the program comes from.
 */
#include "instruction.h"

static uint64_t mask_of(unsigned length)
{
    return length == 0 ? ~UINT64_C(0) : (UINT64_C(1) << length) - 1;
}

static uint64_t extract(uint64_t value, unsigned length, unsigned index)
{
    return value >> index & mask_of(length);
}

static uint64_t insert(uint64_t into, uint64_t value, unsigned length, unsigned index)
{
    uint64_t mask = mask_of(length);
    return (into & ~(mask << index)) | (value & mask) << index;
}

static void set_field(struct instruction *insn, unsigned target, uint64_t value)
{
    static const uint64_t none;
    set_xmm_low(insn, target, value);
    __builtin_memcpy(&insn->machine->xmm[target][8], &none, 8);
}

/* The immediate form of EXTRQ names its register in ModRM.rm, with ModRM.reg as opcode extension. */
static void run_extrq(struct instruction *insn)
{
    struct isthmus_machine *machine = insn->machine;
    bool immediate = insn->opcode == 0x78;
    name_it(insn, ISTHMUS_EXTRQ);
    if (!sse_usable(insn))
        return;
    unsigned target = immediate ? insn->rm : insn->reg;
    uint64_t control = immediate ? insn->immediate : xmm_quad(machine, insn->rm, 0);
    uint64_t value = xmm_quad(machine, target, 0);
    set_field(insn, target, extract(value, control & 63, control >> 8 & 63));
    step_over(insn);
}

static void run_insertq(struct instruction *insn)
{
    struct isthmus_machine *machine = insn->machine;
    name_it(insn, ISTHMUS_INSERTQ);
    if (!sse_usable(insn))
        return;
    uint64_t control = insn->opcode == 0x78 ? insn->immediate : xmm_quad(machine, insn->rm, 1);
    uint64_t value = xmm_quad(machine, insn->rm, 0);
    uint64_t into = xmm_quad(machine, insn->reg, 0);
    set_field(insn, insn->reg, insert(into, value, control & 63, control >> 8 & 63));
    step_over(insn);
}

static void execute_store(struct instruction *insn, uint32_t mnemonic, uint32_t size)
{
    name_it(insn, mnemonic);
    if (sse_usable(insn) && store(insn, insn->machine->xmm[insn->reg], size))
        finish(insn, mnemonic);
}

bool execute_sse4a(struct instruction *insn)
{
    if (insn->map != MAP_0F || (insn->opcode & 0xfe) != 0x78) {
        /* 0F 2B without F2 or F3 is MOVNTPS or MOVNTPD, which are everywhere. */
        if (insn->map != MAP_0F || insn->opcode != 0x2b || !insn->repeat)
            return false;
        if (!decode_operands(insn) || !insn->is_memory)
            decline(insn);
        else if (insn->repeat == 0xf3)
            execute_store(insn, ISTHMUS_MOVNTSS, 4);
        else
            execute_store(insn, ISTHMUS_MOVNTSD, 8);
        return true;
    }
    bool immediate = insn->opcode == 0x78;
    bool extracts = !insn->repeat && insn->operand_size;
    bool inserts = insn->repeat == 0xf2;
    if (!decode_operands(insn) || insn->is_memory || (!extracts && !inserts) ||
        (extracts && immediate && (insn->reg & 7) != 0)) {
        decline(insn);
        return true;
    }
    if (immediate) { /* length, then index */
        insn->immediate = take_byte(insn);
        insn->immediate |= (unsigned)take_byte(insn) << 8;
    }
    insn->lean = LEAN_XMM;
    insn->run = extracts ? run_extrq : run_insertq;
    return true;
}
