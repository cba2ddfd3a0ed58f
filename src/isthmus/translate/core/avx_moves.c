/* SPDX-License-Identifier: Apache-2.0 OR GPL-2.0-only */
/* AVX's moves: whole vectors and parts of them, to and from general registers, signs, MXCSR, and the
 * clearing of registers.  VEX forms only; the legacy ones every 64-bit CPU has.
 * Source: Intel SDM vol. 2, each instruction's pages, and 2.4 in vol. 2A (exception classes). */
#include "vector.h"

/* What a move does beyond copying its bytes. */
enum rule {
    STORES = 1,   /* from the register to r/m, else the other way */
    ALIGNED = 2,  /* memory must be, in any mode */
    SHORT = 4,    /* VEX.L must be 0 */
    UPPER = 8,    /* the memory's bytes are the upper quadword of the register */
    JOINS = 16,   /* what is not moved comes from VEX.vvvv */
    SCALAR = 32   /* it joins between registers, and clears the rest on loading */
};

static const struct move {
    uint8_t opcode, prefix;
    uint8_t bytes; /* 0: the whole vector */
    uint8_t rules;
    uint16_t with_memory, with_register; /* the names; NONE where there is no such form */
} moves[] = {
    {0x10, NP, 0, 0, ISTHMUS_MOVUPS, ISTHMUS_MOVUPS},
    {0x11, NP, 0, STORES, ISTHMUS_MOVUPS, ISTHMUS_MOVUPS},
    {0x10, P66, 0, 0, ISTHMUS_MOVUPD, ISTHMUS_MOVUPD},
    {0x11, P66, 0, STORES, ISTHMUS_MOVUPD, ISTHMUS_MOVUPD},
    {0x10, PF3, 4, SCALAR, ISTHMUS_MOVSS, ISTHMUS_MOVSS},
    {0x11, PF3, 4, SCALAR | STORES, ISTHMUS_MOVSS, ISTHMUS_MOVSS},
    {0x10, PF2, 8, SCALAR, ISTHMUS_MOVSD, ISTHMUS_MOVSD},
    {0x11, PF2, 8, SCALAR | STORES, ISTHMUS_MOVSD, ISTHMUS_MOVSD},
    {0x12, NP, 8, JOINS | SHORT, ISTHMUS_MOVLPS, ISTHMUS_MOVHLPS},
    {0x13, NP, 8, STORES | SHORT, ISTHMUS_MOVLPS, ISTHMUS_NONE},
    {0x12, P66, 8, JOINS | SHORT, ISTHMUS_MOVLPD, ISTHMUS_NONE},
    {0x13, P66, 8, STORES | SHORT, ISTHMUS_MOVLPD, ISTHMUS_NONE},
    {0x16, NP, 8, JOINS | UPPER | SHORT, ISTHMUS_MOVHPS, ISTHMUS_MOVLHPS},
    {0x17, NP, 8, STORES | UPPER | SHORT, ISTHMUS_MOVHPS, ISTHMUS_NONE},
    {0x16, P66, 8, JOINS | UPPER | SHORT, ISTHMUS_MOVHPD, ISTHMUS_NONE},
    {0x17, P66, 8, STORES | UPPER | SHORT, ISTHMUS_MOVHPD, ISTHMUS_NONE},
    {0x28, NP, 0, ALIGNED, ISTHMUS_MOVAPS, ISTHMUS_MOVAPS},
    {0x29, NP, 0, ALIGNED | STORES, ISTHMUS_MOVAPS, ISTHMUS_MOVAPS},
    {0x28, P66, 0, ALIGNED, ISTHMUS_MOVAPD, ISTHMUS_MOVAPD},
    {0x29, P66, 0, ALIGNED | STORES, ISTHMUS_MOVAPD, ISTHMUS_MOVAPD},
    {0x2b, NP, 0, ALIGNED | STORES, ISTHMUS_MOVNTPS, ISTHMUS_NONE},
    {0x2b, P66, 0, ALIGNED | STORES, ISTHMUS_MOVNTPD, ISTHMUS_NONE},
    {0xe7, P66, 0, ALIGNED | STORES, ISTHMUS_MOVNTDQ, ISTHMUS_NONE},
    {0x6f, P66, 0, ALIGNED, ISTHMUS_MOVDQA, ISTHMUS_MOVDQA},
    {0x7f, P66, 0, ALIGNED | STORES, ISTHMUS_MOVDQA, ISTHMUS_MOVDQA},
    {0x6f, PF3, 0, 0, ISTHMUS_MOVDQU, ISTHMUS_MOVDQU},
    {0x7f, PF3, 0, STORES, ISTHMUS_MOVDQU, ISTHMUS_MOVDQU},
    {0x7e, PF3, 8, SHORT, ISTHMUS_MOVQ, ISTHMUS_MOVQ},
    {0xd6, P66, 8, STORES | SHORT, ISTHMUS_MOVQ, ISTHMUS_MOVQ},
};

static bool begin(struct instruction *insn, uint32_t name)
{
    name_it(insn, vector_name(insn, name));
    return vex_usable(insn);
}

static void end(struct instruction *insn, uint32_t name)
{
    finish(insn, vector_name(insn, name));
}

/* What the destination register becomes. */
static struct vector moved(const struct instruction *insn, const struct move *move, bool joins,
                           const struct vector *from)
{
    struct vector result = {0};
    if (!move->bytes)
        return *from;
    if (joins)
        get_vector(insn, insn->vvvv, &result);
    union lane *to = &result.lane[0];
    if (move->rules & UPPER)
        to->q[1] = from->lane[0].q[0];
    else if (joins && !(move->rules & SCALAR) && !insn->is_memory)
        to->q[0] = from->lane[0].q[1]; /* VMOVHLPS */
    else if (move->bytes == 4)
        to->d[0] = from->lane[0].d[0];
    else
        to->q[0] = from->lane[0].q[0];
    return result;
}

static bool execute_move(struct instruction *insn)
{
    size_t i = 0, count = sizeof moves / sizeof *moves;
    while (i < count && (moves[i].opcode != insn->opcode || moves[i].prefix != insn->prefix))
        i++;
    if (i == count)
        return false;
    const struct move *move = &moves[i];
    bool whole = decode_operands(insn), stores = move->rules & STORES;
    bool joins = move->rules & JOINS || (move->rules & SCALAR && !insn->is_memory);
    uint32_t name = insn->is_memory ? move->with_memory : move->with_register;
    if (!whole || !name || (move->rules & SHORT && insn->long_vector) || (!joins && insn->vvvv)) {
        decline(insn);
        return true;
    }
    unsigned bytes = move->bytes ? move->bytes : vector_bytes(insn);
    struct vector value;
    if (!begin(insn, name))
        return true;
    if (stores && insn->is_memory) {
        get_vector(insn, insn->reg, &value);
        if (move->rules & UPPER)
            value.lane[0].q[0] = value.lane[0].q[1];
        insn->aligned = move->rules & ALIGNED;
        if (store(insn, (const uint8_t *)&value, bytes))
            end(insn, name);
        return true;
    }
    if (stores)
        get_vector(insn, insn->reg, &value);
    else if (!load_moved(insn, &value, bytes, move->rules & ALIGNED))
        return true;
    value = moved(insn, move, joins, &value);
    if (move->bytes)
        insn->long_vector = false; /* all above the lowest lane is cleared */
    set_vector(insn, stores ? insn->rm : insn->reg, &value);
    end(insn, name);
    return true;
}

/* VMOVD and VMOVQ from (66 0F 6E) and to (7E) a general register or memory: W chooses. */
static bool execute_general(struct instruction *insn)
{
    if (insn->prefix != P66 || (insn->opcode & 0xef) != 0x6e)
        return false;
    if (!decode_operands(insn) || insn->long_vector || insn->vvvv) {
        decline(insn);
        return true;
    }
    unsigned bits = insn->rex & 8 ? 64 : 32;
    uint32_t name = bits == 64 ? ISTHMUS_MOVQ : ISTHMUS_MOVD;
    struct vector value = {0};
    uint64_t number;
    if (!begin(insn, name))
        return true;
    if (insn->opcode == 0x6e) {
        if (!load_integer(insn, bits, &number))
            return true;
        value.lane[0].q[0] = number;
        set_vector(insn, insn->reg, &value);
    } else {
        get_vector(insn, insn->reg, &value);
        number = bits == 64 ? value.lane[0].q[0] : value.lane[0].d[0];
        if (!store_integer(insn, bits, number))
            return true;
    }
    end(insn, name);
    return true;
}

/* VMOVMSKPS and PD (0F 50), VPMOVMSKB (66 0F D7): the signs of all elements. */
static bool execute_signs(struct instruction *insn)
{
    bool bytes = insn->opcode == 0xd7;
    if (insn->prefix > P66 || (insn->opcode != 0x50 && !(bytes && insn->prefix == P66)))
        return false;
    if (!decode_operands(insn) || insn->is_memory || insn->vvvv) {
        decline(insn);
        return true;
    }
    uint32_t name = bytes                 ? ISTHMUS_PMOVMSKB
                    : insn->prefix == P66 ? ISTHMUS_MOVMSKPD
                                          : ISTHMUS_MOVMSKPS;
    unsigned width = bytes ? 1 : insn->prefix == P66 ? 8 : 4;
    struct vector from;
    uint32_t signs = 0;
    if (!begin(insn, name))
        return true;
    get_vector(insn, insn->rm, &from);
    for (unsigned i = 0; i < vector_bytes(insn) / width; i++) {
        unsigned top = (i + 1) * width - 1;
        signs |= (uint32_t)(from.lane[top / 16].b[top % 16] >> 7) << i;
    }
    set_gpr(insn, insn->reg, 32, signs);
    end(insn, name);
    return true;
}

/* VMASKMOVDQU (66 0F F7): the bytes whose mask has its sign go to DS:rDI, no other is touched. */
static bool execute_masked_bytes(struct instruction *insn)
{
    if (insn->prefix != P66 || insn->opcode != 0xf7)
        return false;
    if (!decode_operands(insn) || insn->is_memory || insn->long_vector || insn->vvvv) {
        decline(insn);
        return true;
    }
    struct vector value, mask;
    uint32_t signs = 0;
    int segment;
    if (!begin(insn, ISTHMUS_MASKMOVDQU))
        return true;
    get_vector(insn, insn->reg, &value);
    get_vector(insn, insn->rm, &mask);
    insn->base = RDI;
    insn->index = -1;
    uint64_t offset = effective_address(insn, &segment);
    for (unsigned i = 0; i < 16; i++)
        signs |= (uint32_t)(mask.lane[0].b[i] >> 7) << i;
    if (store_masked(insn, segment, offset, value.lane[0].b, signs, 1))
        end(insn, ISTHMUS_MASKMOVDQU);
    return true;
}

/* VLDMXCSR and VSTMXCSR (0F AE /2 and /3).  A reserved bit raises #GP; MXCSR.MM is one unless it is set
 * already, since only some CPUs have it and a destination may not. */
static bool execute_control(struct instruction *insn)
{
    if (insn->prefix != NP || insn->opcode != 0xae)
        return false;
    bool whole = decode_operands(insn), loads = (insn->reg & 7) == 2;
    if (!whole || !insn->is_memory || insn->long_vector || insn->vvvv ||
        (!loads && (insn->reg & 7) != 3)) {
        decline(insn);
        return true;
    }
    struct isthmus_machine *machine = insn->machine;
    uint32_t name = loads ? ISTHMUS_LDMXCSR : ISTHMUS_STMXCSR;
    uint64_t value;
    if (!begin(insn, name))
        return true;
    if (loads) {
        if (!load_integer(insn, 32, &value))
            return true;
        if (value & ~(uint64_t)(0xffff | (machine->mxcsr & MXCSR_MM))) {
            fault(insn, VECTOR_GP, true, 0);
            return true;
        }
        machine->mxcsr = (uint32_t)value;
        insn->outcome->touched |= ISTHMUS_WROTE_MXCSR;
    } else if (!store_integer(insn, 32, machine->mxcsr)) {
        return true;
    }
    end(insn, name);
    return true;
}

/* VZEROUPPER and, with VEX.L, VZEROALL (0F 77), of the registers that the mode can name. */
static bool execute_zero(struct instruction *insn)
{
    if (insn->prefix != NP || insn->opcode != 0x77)
        return false;
    if (insn->vvvv) {
        decline(insn);
        return true;
    }
    uint32_t name = insn->long_vector ? ISTHMUS_VZEROALL : ISTHMUS_VZEROUPPER;
    struct vector value = {0};
    bool all = insn->long_vector;
    if (!begin(insn, name))
        return true;
    insn->long_vector = false;
    for (unsigned i = 0; i < (insn->machine->mode == 64 ? 16 : 8); i++) {
        if (!all)
            get_vector(insn, i, &value);
        set_vector(insn, i, &value);
    }
    end(insn, name);
    return true;
}

bool execute_avx_moves(struct instruction *insn)
{
    static bool (*const members[])(struct instruction *) = {
        execute_move,         execute_general, execute_signs,
        execute_masked_bytes, execute_control, execute_zero,
    };
    for (size_t i = 0; insn->map == MAP_0F && i < sizeof members / sizeof *members; i++)
        if (members[i](insn))
            return true;
    return false;
}
