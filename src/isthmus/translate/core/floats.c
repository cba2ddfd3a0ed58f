/* SPDX-License-Identifier: Apache-2.0 OR GPL-2.0-only */
/* Floating-point instructions: SSE3's sums, SSE4.1's rounding and dot products, F16C, FMA3, FMA4,
 * XOP's VFRCZ (Intel SDM vol. 2; AMD APM vol. 4 and vol. 6 of its day, 43479). */
#include "float.h"

/* ADDSUBPx (0F D0), HADDPx (7C), HSUBPx (7D): 66 doubles, F2 singles. */
static bool execute_sums(struct instruction *insn)
{
    static const uint32_t names[3][2] = {{ISTHMUS_ADDSUBPS, ISTHMUS_ADDSUBPD},
                                         {ISTHMUS_HADDPS, ISTHMUS_HADDPD},
                                         {ISTHMUS_HSUBPS, ISTHMUS_HSUBPD}};
    unsigned kind = insn->opcode == 0xd0 ? 0 : insn->opcode == 0x7c ? 1 : 2;
    bool wide = insn->prefix == P66;
    if (insn->map != MAP_0F || (!wide && insn->prefix != PF2) ||
        (kind == 2 && insn->opcode != 0x7d))
        return false;
    if (!decode_operands(insn)) {
        decline(insn);
        return true;
    }
    uint32_t name = names[kind][wide];
    struct vector a, b, result;
    if (!begin(insn, name) || !load_vector(insn, &b, vector_bytes(insn), !insn->vex))
        return true;
    get_first(insn, &a);
    result = a;
    struct soft soft = start(insn);
    unsigned lane = wide ? 2 : 4, count = vector_bytes(insn) / 16 * lane;
    for (unsigned i = 0; i < count; i++) {
        const struct vector *from = i % lane < lane / 2 ? &a : &b;
        unsigned pair = i / lane * lane + 2 * i % lane;
        put(&result, wide, i,
            kind ? soft_add(&soft, format_of(wide), get(from, wide, pair),
                            get(from, wide, pair + 1), kind == 2)
                 : soft_add(&soft, format_of(wide), get(&a, wide, i), get(&b, wide, i), !(i & 1)));
    }
    end(insn, &soft, insn->reg, &result, name);
    return true;
}

/* ROUNDPS, PD, SS, SD (0F3A 08 to 0B). */
static bool execute_rounding(struct instruction *insn)
{
    static const uint32_t names[4] = {ISTHMUS_ROUNDPS, ISTHMUS_ROUNDPD, ISTHMUS_ROUNDSS,
                                      ISTHMUS_ROUNDSD};
    bool wide = insn->opcode & 1, scalar = insn->opcode & 2;
    if (insn->map != MAP_0F3A || insn->prefix != P66 || (insn->opcode & 0xfc) != 0x08)
        return false;
    bool whole = decode_operands(insn);
    unsigned imm = take_byte(insn);
    if (!whole || insn->ended || (insn->vex && !scalar && insn->vvvv)) {
        decline(insn);
        return true;
    }
    uint32_t name = names[insn->opcode & 3];
    struct vector from, result;
    unsigned size = wide ? 8 : 4, bytes = scalar ? size : vector_bytes(insn);
    if (!begin(insn, name) || !load_vector(insn, &from, bytes, !insn->vex && !scalar))
        return true;
    get_first(insn, &result);
    struct soft soft = start(insn);
    if (!(imm & 4))
        soft.rounding = imm & 3;
    for (unsigned i = 0; i < bytes / size; i++)
        put(&result, wide, i,
            soft_to_integral(&soft, format_of(wide), get(&from, wide, i), imm & 8));
    if (scalar)
        insn->long_vector = false;
    end(insn, &soft, insn->reg, &result, name);
    return true;
}

/* Dot products in lanes of `lane` elements, step by step: a step with an unmasked exception is the last
 * one.  Every element of a lane's result is the same number; which NaN it is, where several come
 * together, goes by the element and by the maker (no manual says so: here it is as a Sapphire Rapids
 * does it). */
static void dot(struct soft *soft, bool wide, unsigned count, unsigned imm, const struct vector *a,
                const struct vector *b, struct vector *result)
{
    const struct format *format = format_of(wide);
    unsigned lane = wide ? 2 : 4;
    uint64_t terms[8] = {0}, low[8], high[8];
    for (unsigned i = 0; i < count; i++)
        if (imm >> (4 + i % lane) & 1)
            terms[i] = soft_multiply(soft, format, get(a, wide, i), get(b, wide, i));
    if (!proceed(soft))
        return;
    for (unsigned i = 0; i < count; i++) {
        const uint64_t *here = terms + i / lane * lane;
        unsigned first = wide ? i & 1 : !(i & 1);
        low[i] = soft_add(soft, format, here[first], here[!first], false);
        if (!wide)
            high[i] = soft_add(soft, format, here[2 + first], here[2 + !first], false);
    }
    if (!proceed(soft))
        return;
    for (unsigned i = 0; i < count; i++) {
        uint64_t total = wide             ? low[i]
                         : i % lane < 2 ? soft_add(soft, format, low[i], high[i], false)
                                        : soft_add(soft, format, high[i], low[i], false);
        put(result, wide, i, imm >> i % lane & 1 ? total : 0);
    }
}

/* DPPS, DPPD (0F3A 40, 41). */
static bool execute_dots(struct instruction *insn)
{
    bool wide = insn->opcode & 1;
    if (insn->map != MAP_0F3A || insn->prefix != P66 || (insn->opcode & 0xfe) != 0x40)
        return false;
    bool whole = decode_operands(insn);
    unsigned imm = take_byte(insn);
    if (!whole || insn->ended || (insn->vex && wide && insn->long_vector)) {
        decline(insn);
        return true;
    }
    uint32_t name = wide ? ISTHMUS_DPPD : ISTHMUS_DPPS;
    struct vector a, b, result;
    if (!begin(insn, name) || !load_vector(insn, &b, vector_bytes(insn), !insn->vex))
        return true;
    get_first(insn, &a);
    result = a;
    struct soft soft = start(insn);
    dot(&soft, wide, vector_bytes(insn) / (wide ? 8 : 4), imm, &a, &b, &result);
    end(insn, &soft, insn->reg, &result, name);
    return true;
}

/* VCVTPH2PS (0F38 13) and VCVTPS2PH (0F3A 1D). */
static bool execute_halves(struct instruction *insn)
{
    bool widens = insn->map == MAP_0F38 && insn->opcode == 0x13;
    bool narrows = insn->map == MAP_0F3A && insn->opcode == 0x1d;
    if (!insn->vex || insn->prefix != P66 || (!widens && !narrows))
        return false;
    bool whole = decode_operands(insn);
    unsigned imm = narrows ? take_byte(insn) : 4;
    if (!whole || insn->ended || insn->wide || insn->vvvv) {
        decline(insn);
        return true;
    }
    uint32_t name = widens ? ISTHMUS_VCVTPH2PS : ISTHMUS_VCVTPS2PH;
    unsigned count = insn->long_vector ? 8 : 4;
    struct vector from, result = {0};
    if (!begin(insn, name))
        return true;
    struct soft soft = start(insn);
    if (!(imm & 4))
        soft.rounding = imm & 3;
    if (widens) {
        if (!load_vector(insn, &from, 2 * count, false))
            return true;
        for (unsigned i = 0; i < count; i++)
            put(&result, false, i, soft_half_to_single(&soft, from.lane[0].w[i]));
        end(insn, &soft, insn->reg, &result, name);
        return true;
    }
    get_vector(insn, insn->reg, &from);
    for (unsigned i = 0; i < count; i++)
        result.lane[0].w[i] = (uint16_t)soft_single_to_half(&soft, get(&from, false, i));
    if (!insn->is_memory) {
        insn->long_vector = false; /* the upper half is cleared */
        end(insn, &soft, insn->rm, &result, name);
    } else {
        /* A page fault comes before #XM (SDM vol. 3A, table 6-2). */
        int segment;
        uint64_t offset = effective_address(insn, &segment);
        uint8_t present[16];
        bool done = proceed(&soft);
        if (done ? !store_at(insn, segment, offset, result.lane[0].b, 2 * count)
                 : !load_to_store(insn, segment, offset, present, 2 * count))
            return true;
        if (settle(insn, &soft))
            finish(insn, name);
    }
    return true;
}

/* What the four kinds of a multiply-add negate; the alternating ones add in even or odd elements. */
struct kind {
    bool negates_product, negates_addend, alternates;
};

static const struct kind multiply_adds[6] = {
    {false, true, true},   /* FMADDSUB: subtracts in even elements, adds in odd ones */
    {false, false, true},  /* FMSUBADD */
    {false, false, false}, /* FMADD */
    {false, true, false},  /* FMSUB */
    {true, false, false},  /* FNMADD */
    {true, true, false},   /* FNMSUB */
};

static void multiply_add(struct soft *soft, const struct kind *kind, bool wide, unsigned count,
                         const struct vector *x, const struct vector *y, const struct vector *z,
                         struct vector *result)
{
    for (unsigned i = 0; i < count; i++) {
        bool negates = kind->alternates ? kind->negates_addend == !(i & 1) : kind->negates_addend;
        put(result, wide, i,
            soft_multiply_add(soft, format_of(wide), get(x, wide, i), get(y, wide, i),
                              get(z, wide, i), kind->negates_product, negates));
    }
}

/* FMA3: 0F38 x6 to xF, with x 9, A or B for the order of operands. */
static bool execute_fma3(struct instruction *insn)
{
    unsigned order = (insn->opcode >> 4) - 9u, low = insn->opcode & 15;
    if (!insn->vex || insn->map != MAP_0F38 || insn->prefix != P66 || order > 2 || low < 6)
        return false;
    bool scalar = low >= 8 && low & 1, wide = insn->wide;
    if (!decode_operands(insn)) {
        decline(insn);
        return true;
    }
    unsigned which = low < 8 ? low - 6 : 2 + (low - 8) / 2, size = wide ? 8 : 4;
    uint32_t name = ISTHMUS_VFMADDSUB132PS + ((low - 6) * 3 + order) * 2 + wide;
    unsigned bytes = scalar ? size : vector_bytes(insn);
    struct vector one, two, three, result;
    if (!begin(insn, name) || !load_vector(insn, &three, bytes, false))
        return true;
    get_vector(insn, insn->reg, &one);
    get_vector(insn, insn->vvvv, &two);
    result = one;
    struct soft soft = start(insn);
    const struct kind *kind = &multiply_adds[which];
    if (order == 0)
        multiply_add(&soft, kind, wide, bytes / size, &one, &three, &two, &result);
    else if (order == 1)
        multiply_add(&soft, kind, wide, bytes / size, &two, &one, &three, &result);
    else
        multiply_add(&soft, kind, wide, bytes / size, &two, &three, &one, &result);
    if (scalar)
        insn->long_vector = false;
    end(insn, &soft, insn->reg, &result, name);
    return true;
}

/* FMA4: 0F3A 5C to 5F, 68 to 6F, 78 to 7F; the fourth operand lies in the immediate. */
static bool execute_fma4(struct instruction *insn)
{
    static const struct {
        uint8_t opcode, which;
        uint32_t name;
    } kinds[] = {
        {0x5c, 0, ISTHMUS_VFMADDSUBPS}, {0x5e, 1, ISTHMUS_VFMSUBADDPS},
        {0x68, 2, ISTHMUS_VFMADDPS},    {0x6a, 2, ISTHMUS_VFMADDSS},
        {0x6c, 3, ISTHMUS_VFMSUBPS},    {0x6e, 3, ISTHMUS_VFMSUBSS},
        {0x78, 4, ISTHMUS_VFNMADDPS},   {0x7a, 4, ISTHMUS_VFNMADDSS},
        {0x7c, 5, ISTHMUS_VFNMSUBPS},   {0x7e, 5, ISTHMUS_VFNMSUBSS},
    };
    for (size_t k = 0; k < sizeof kinds / sizeof *kinds; k++) {
        if (!insn->vex || insn->map != MAP_0F3A || insn->prefix != P66 ||
            (insn->opcode & 0xfe) != kinds[k].opcode)
            continue;
        bool whole = decode_operands(insn), wide = insn->opcode & 1;
        unsigned imm = take_byte(insn);
        if (!whole || insn->ended) {
            decline(insn);
            return true;
        }
        bool scalar = insn->opcode >= 0x60 && insn->opcode & 2;
        uint32_t name = kinds[k].name + wide;
        unsigned size = wide ? 8 : 4, bytes = scalar ? size : vector_bytes(insn);
        struct vector one, two, three, result = {0};
        if (!begin(insn, name) || !load_sources(insn, bytes, imm, &one, &two, &three))
            return true;
        struct soft soft = start(insn);
        multiply_add(&soft, &multiply_adds[kinds[k].which], wide, bytes / size, &one, &two, &three,
                     &result);
        if (scalar)
            insn->long_vector = false; /* all bits above the element are cleared */
        end(insn, &soft, insn->reg, &result, name);
        return true;
    }
    return false;
}

/* VFRCZPS, PD, SS, SD: XOP map 9, 80 to 83. */
static bool execute_fractions(struct instruction *insn)
{
    static const uint32_t names[4] = {ISTHMUS_VFRCZPS, ISTHMUS_VFRCZPD, ISTHMUS_VFRCZSS,
                                      ISTHMUS_VFRCZSD};
    if (!insn->xop || insn->map != MAP_XOP9 || (insn->opcode & 0xfc) != 0x80)
        return false;
    bool wide = insn->opcode & 1, scalar = insn->opcode & 2;
    if (!decode_operands(insn) || insn->wide || insn->vvvv || insn->prefix ||
        (scalar && insn->long_vector)) {
        decline(insn);
        return true;
    }
    uint32_t name = names[insn->opcode & 3];
    unsigned size = wide ? 8 : 4, bytes = scalar ? size : vector_bytes(insn);
    struct vector from, result = {0};
    if (!begin(insn, name) || !load_vector(insn, &from, bytes, false))
        return true;
    struct soft soft = start(insn);
    for (unsigned i = 0; i < bytes / size; i++)
        put(&result, wide, i, soft_fraction(&soft, format_of(wide), get(&from, wide, i)));
    end(insn, &soft, insn->reg, &result, name);
    return true;
}

bool execute_floats(struct instruction *insn)
{
    if (insn->xop)
        return execute_fractions(insn);
    return execute_sums(insn) || execute_rounding(insn) || execute_dots(insn) ||
           execute_halves(insn) || execute_fma3(insn) || execute_fma4(insn);
}
