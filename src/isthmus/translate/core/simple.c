/* SPDX-License-Identifier: Apache-2.0 OR GPL-2.0-only */
/* Ordinary instructions that stand between missing ones, so that a run of them is done in one trap.
 *
 * Every CPU has these, so a #UD on one is never ours: only a caller that goes on after an instruction
 * of ours asks for them (machine.h, `ordinary`).  None touches memory, none raises an exception, and
 * none leaves a flag undefined, but for AF after logical ones, which every maker's CPU clears.
 * Their mnemonic is ISTHMUS_NONE.  Source: Intel SDM vol. 2A and 2B, appendix A of 2D (opcode map). */
#include "instruction.h"

enum { ARITHMETIC = FLAG_CF | FLAG_PF | FLAG_AF | FLAG_ZF | FLAG_SF | FLAG_OF };
enum { OP_ADD, OP_OR, OP_ADC, OP_SBB, OP_AND, OP_SUB, OP_XOR, OP_CMP };
enum { NO_PREFIX, PREFIX_66, PREFIX_F3, PREFIX_F2 };

static uint64_t masked(uint64_t value, unsigned bits)
{
    return bits == 64 ? value : value & ((UINT64_C(1) << bits) - 1);
}

static uint64_t result_flags(uint64_t result, unsigned bits)
{
    uint8_t parity = (uint8_t)result;
    parity ^= parity >> 4, parity ^= parity >> 2, parity ^= parity >> 1;
    return (masked(result, bits) ? 0 : FLAG_ZF) | (result >> (bits - 1) & 1 ? FLAG_SF : 0) |
           (parity & 1 ? 0 : FLAG_PF);
}

/* One of the eight, with the flags it gives. */
static uint64_t combine(unsigned operation, uint64_t a, uint64_t b, unsigned bits, uint64_t *flags)
{
    uint64_t carry = *flags & FLAG_CF, result, out, sign = UINT64_C(1) << (bits - 1);
    switch (operation) {
    case OP_OR: result = a | b, out = 0; break;
    case OP_AND: result = a & b, out = 0; break;
    case OP_XOR: result = a ^ b, out = 0; break;
    case OP_ADD: case OP_ADC:
        carry = operation == OP_ADC ? carry : 0;
        result = masked(a + b + carry, bits);
        out = (((a & b) | ((a | b) & ~result)) & sign ? FLAG_CF : 0) |
              (~(a ^ b) & (a ^ result) & sign ? FLAG_OF : 0) | ((a ^ b ^ result) & FLAG_AF);
        break;
    default:
        carry = operation == OP_SBB ? carry : 0;
        result = masked(a - b - carry, bits);
        out = (((~a & b) | ((~a | b) & result)) & sign ? FLAG_CF : 0) |
              ((a ^ b) & (a ^ result) & sign ? FLAG_OF : 0) | ((a ^ b ^ result) & FLAG_AF);
    }
    *flags = out | result_flags(result, bits);
    return masked(result, bits);
}

static void put(struct instruction *insn, unsigned number, unsigned bits, uint64_t value)
{
    if (bits != 8) {
        set_gpr(insn, number, bits, value);
        return;
    }
    unsigned shift = !insn->rex && number >= 4 ? 8 : 0;
    number -= shift ? 4 : 0; /* AH, CH, DH, BH */
    uint64_t *gpr = &insn->machine->gpr[number];
    *gpr = (*gpr & ~(UINT64_C(0xff) << shift)) | (value & 0xff) << shift;
    insn->outcome->gpr_written |= 1u << number;
}

static uint64_t immediate(struct instruction *insn, unsigned bytes)
{
    uint64_t value = 0, sign = UINT64_C(1) << (8 * bytes - 1);
    for (unsigned i = 0; i < bytes; i++)
        value |= (uint64_t)take_byte(insn) << (8 * i);
    return bytes == 8 ? value : (value ^ sign) - sign;
}

static unsigned immediate_bytes(unsigned bits)
{
    return bits == 8 ? 1 : bits == 16 ? 2 : 4;
}

static bool condition(const struct instruction *insn)
{
    uint64_t flags = insn->machine->rflags;
    bool sign = !(flags & FLAG_SF) != !(flags & FLAG_OF), holds = false;
    switch (insn->opcode >> 1 & 7) {
    case 0: holds = flags & FLAG_OF; break;
    case 1: holds = flags & FLAG_CF; break;
    case 2: holds = flags & FLAG_ZF; break;
    case 3: holds = flags & (FLAG_CF | FLAG_ZF); break;
    case 4: holds = flags & FLAG_SF; break;
    case 5: holds = flags & FLAG_PF; break;
    case 6: holds = sign; break;
    default: holds = sign || (flags & FLAG_ZF);
    }
    return holds != (insn->opcode & 1);
}

static bool done(struct instruction *insn)
{
    if (insn->ended) /* the bytes ended inside: nothing may have been changed */
        return true;
    finish(insn, ISTHMUS_NONE);
    return true;
}

/* a OP b into the first register; CMP writes none. */
static bool arithmetic(struct instruction *insn, unsigned operation, unsigned to, uint64_t b,
                       unsigned bits)
{
    if (insn->ended)
        return true;
    uint64_t flags = insn->machine->rflags;
    uint64_t result = combine(operation, get_gpr(insn, to, bits), masked(b, bits), bits, &flags);
    set_flags(insn, ARITHMETIC, flags);
    if (operation != OP_CMP)
        put(insn, to, bits, result);
    return done(insn);
}

static bool logical_test(struct instruction *insn, uint64_t a, uint64_t b, unsigned bits)
{
    if (insn->ended)
        return true;
    set_flags(insn, ARITHMETIC, result_flags(a & masked(b, bits), bits));
    return done(insn);
}

static bool jump(struct instruction *insn, unsigned bytes, bool taken)
{
    struct isthmus_machine *machine = insn->machine;
    uint64_t displacement = immediate(insn, bytes);
    uint64_t target = machine->rip + insn->at + displacement, top = target >> 47;
    /* With an operand-size prefix the makers differ; a bad target's fault is the CPU's to raise. */
    if (insn->operand_size || (machine->mode == 64 && top != 0 && top != 0x1ffff))
        return false;
    done(insn);
    if (!insn->ended && taken)
        machine->rip = machine->mode == 64 ? target : target & 0xffffffff;
    return true;
}

static bool step_by_one(struct instruction *insn, unsigned to, unsigned bits, unsigned operation)
{
    uint64_t flags = insn->machine->rflags;
    uint64_t result = combine(operation, get_gpr(insn, to, bits), 1, bits, &flags);
    set_flags(insn, ARITHMETIC & ~FLAG_CF, flags);
    put(insn, to, bits, result);
    return done(insn);
}

static bool exchange(struct instruction *insn, unsigned a, unsigned b, unsigned bits)
{
    uint64_t first = get_gpr(insn, a, bits), second = get_gpr(insn, b, bits);
    put(insn, a, bits, second);
    put(insn, b, bits, first);
    return done(insn);
}

static bool one_operand(struct instruction *insn, unsigned bits)
{
    uint64_t value = get_gpr(insn, insn->rm, bits), flags = 0;
    switch (insn->reg & 7) {
    case 0:
        return logical_test(insn, value, immediate(insn, immediate_bytes(bits)), bits);
    case 2:
        put(insn, insn->rm, bits, masked(~value, bits));
        return done(insn);
    case 3:
        value = combine(OP_SUB, 0, value, bits, &flags);
        set_flags(insn, ARITHMETIC, flags);
        put(insn, insn->rm, bits, value);
        return done(insn);
    default:
        return false; /* MUL and DIV leave flags undefined, or fault */
    }
}

static bool move_immediate(struct instruction *insn, unsigned to, unsigned bits, unsigned bytes)
{
    uint64_t value = immediate(insn, bytes);
    if (!insn->ended)
        put(insn, to, bits, masked(value, bits));
    return done(insn);
}

static bool with_modrm(struct instruction *insn, unsigned bits)
{
    uint8_t opcode = insn->opcode;
    if (!decode_operands(insn))
        return true;
    if (opcode == 0x8d) {
        int segment;
        if (!insn->is_memory)
            return false;
        put(insn, insn->reg, bits, masked(effective_address(insn, &segment), bits));
        return done(insn);
    }
    if (insn->is_memory)
        return false;
    unsigned reg = insn->reg, rm = insn->rm;
    if (opcode < 0x40)
        return opcode & 2 ? arithmetic(insn, opcode >> 3, reg, get_gpr(insn, rm, bits), bits)
                          : arithmetic(insn, opcode >> 3, rm, get_gpr(insn, reg, bits), bits);
    switch (opcode) {
    case 0x63:
        if (insn->machine->mode != 64)
            return false;
        put(insn, reg, bits, masked((uint64_t)(int64_t)(int32_t)insn->machine->gpr[rm], bits));
        return done(insn);
    case 0x80: case 0x81: case 0x83:
        return arithmetic(insn, reg & 7, rm,
                          immediate(insn, opcode == 0x81 ? immediate_bytes(bits) : 1), bits);
    case 0x84: case 0x85:
        return logical_test(insn, get_gpr(insn, rm, bits), get_gpr(insn, reg, bits), bits);
    case 0x86: case 0x87:
        return exchange(insn, rm, reg, bits);
    case 0x88: case 0x89:
        put(insn, rm, bits, get_gpr(insn, reg, bits));
        return done(insn);
    case 0x8a: case 0x8b:
        put(insn, reg, bits, get_gpr(insn, rm, bits));
        return done(insn);
    case 0xc6: case 0xc7:
        return (reg & 7) == 0 && move_immediate(insn, rm, bits, immediate_bytes(bits));
    case 0xf6: case 0xf7:
        return one_operand(insn, bits);
    case 0xfe: case 0xff:
        return (reg & 7) < 2 && step_by_one(insn, rm, bits, (reg & 7) ? OP_SUB : OP_ADD);
    default:
        return false;
    }
}

static bool one_byte(struct instruction *insn)
{
    uint8_t opcode = insn->opcode;
    unsigned bits = opcode & 1 ? operand_bits(insn) : 8, low = (opcode & 7) | (insn->rex & 1) << 3;
    if (opcode < 0x40 && (opcode & 7) >= 6)
        return false; /* pushes, pops and decimal adjustment */
    if (opcode < 0x40 && (opcode & 7) >= 4)
        return arithmetic(insn, opcode >> 3, RAX, immediate(insn, immediate_bytes(bits)), bits);
    if (opcode >= 0x40 && opcode < 0x50 && insn->machine->mode != 64)
        return step_by_one(insn, opcode & 7, operand_bits(insn), opcode & 8 ? OP_SUB : OP_ADD);
    if (opcode >= 0x70 && opcode < 0x80)
        return jump(insn, 1, condition(insn));
    if (opcode >= 0x90 && opcode < 0x98)
        return low == 0 ? done(insn) : exchange(insn, RAX, low, operand_bits(insn));
    if (opcode >= 0xb0 && opcode < 0xb8)
        return move_immediate(insn, low, 8, 1);
    if (opcode >= 0xb8 && opcode < 0xc0)
        return move_immediate(insn, low, operand_bits(insn), operand_bits(insn) / 8);
    switch (opcode) {
    case 0xa8: case 0xa9:
        return logical_test(insn, get_gpr(insn, RAX, bits),
                            immediate(insn, immediate_bytes(bits)), bits);
    case 0xe9: return jump(insn, 4, true);
    case 0xeb: return jump(insn, 1, true);
    case 0x63: case 0x8d: case 0x81: case 0x83:
        return with_modrm(insn, operand_bits(insn));
    default:
        return with_modrm(insn, bits);
    }
}

static bool move_vector(struct instruction *insn, unsigned to, unsigned from, bool whole)
{
    struct isthmus_machine *machine = insn->machine;
    for (unsigned i = 0; i < 16; i++)
        machine->xmm[to][i] = whole || i < 8 ? machine->xmm[from][i] : 0;
    insn->outcome->xmm_written |= 1u << to;
    return done(insn);
}

/* Between registers, and only where nothing but the registers can be meant. */
static bool vectors(struct instruction *insn)
{
    struct isthmus_machine *machine = insn->machine;
    unsigned reg = insn->reg, rm = insn->rm, width = insn->rex & 8 ? 64 : 32;
    if ((machine->cr0 & (CR0_EM | CR0_TS)) || !(machine->cr4 & CR4_OSFXSR))
        return false; /* the fault is the CPU's to raise */
    bool plain = insn->prefix == NO_PREFIX, p66 = insn->prefix == PREFIX_66;
    switch (insn->opcode) {
    case 0x10: case 0x28:
        return (plain || p66) && move_vector(insn, reg, rm, true);
    case 0x11: case 0x29:
        return (plain || p66) && move_vector(insn, rm, reg, true);
    case 0x6f:
        return (p66 || insn->prefix == PREFIX_F3) && move_vector(insn, reg, rm, true);
    case 0x7f:
        return (p66 || insn->prefix == PREFIX_F3) && move_vector(insn, rm, reg, true);
    case 0xd6:
        return p66 && move_vector(insn, rm, reg, false);
    case 0x57: case 0xef:
        if (!p66 && (insn->opcode == 0xef || !plain))
            return false;
        for (unsigned i = 0; i < 16; i++)
            machine->xmm[reg][i] ^= machine->xmm[rm][i];
        insn->outcome->xmm_written |= 1u << reg;
        return done(insn);
    case 0x6e:
        if (!p66)
            return false;
        set_xmm_low(insn, reg, masked(machine->gpr[rm], width));
        for (unsigned i = 8; i < 16; i++)
            machine->xmm[reg][i] = 0;
        return done(insn);
    case 0x7e:
        if (insn->prefix == PREFIX_F3)
            return move_vector(insn, reg, rm, false);
        if (!p66)
            return false;
        set_gpr(insn, rm, width, masked(xmm_quad(machine, reg, 0), width));
        return done(insn);
    default:
        return false;
    }
}

static bool two_bytes(struct instruction *insn)
{
    uint8_t opcode = insn->opcode;
    if (opcode >= 0x80 && opcode < 0x90)
        return !insn->repeat && jump(insn, 4, condition(insn));
    if (!decode_operands(insn))
        return true;
    if (opcode == 0x1f) /* names an address, and does not touch it */
        return !insn->repeat && done(insn);
    if (insn->is_memory)
        return false;
    if (insn->repeat || (opcode < 0x40 || (opcode >= 0x50 && opcode < 0x90)) || opcode >= 0xd0)
        return vectors(insn);
    unsigned bits = operand_bits(insn), from = opcode & 1 ? 16 : 8;
    uint64_t value;
    if (opcode < 0x50) { /* a 32-bit CMOV clears the upper half also where it moves nothing */
        value = get_gpr(insn, condition(insn) ? insn->rm : insn->reg, bits);
        put(insn, insn->reg, bits, value);
        return done(insn);
    }
    if (opcode < 0xa0) {
        put(insn, insn->rm, 8, condition(insn));
        return done(insn);
    }
    if ((opcode & 0xf6) != 0xb6)
        return false;
    value = get_gpr(insn, insn->rm, from);
    if (opcode & 8) {
        uint64_t sign = UINT64_C(1) << (from - 1);
        value = (value ^ sign) - sign;
    }
    put(insn, insn->reg, bits, masked(value, bits));
    return done(insn);
}

bool execute_ordinary(struct instruction *insn)
{
    if (insn->machine->mode == 16 || insn->vex)
        return false;
    if (insn->map == MAP_0F)
        return two_bytes(insn);
    return insn->map == MAP_ONE_BYTE && !insn->repeat && one_byte(insn);
}
