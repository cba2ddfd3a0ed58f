/* SPDX-License-Identifier: Apache-2.0 OR GPL-2.0-only */
/* Floating-point instructions: SSE3's sums, SSE4.1's rounding and dot products, F16C, FMA3, FMA4,
 * XOP's VFRCZ (Intel SDM vol. 2; AMD APM vol. 4 and vol. 6 of its day, 43479). */
#include "soft.h"
#include "vector.h"

enum { CR4_OSXMMEXCPT = 0x400, VECTOR_XM = 19, STATUS_FLAGS = 0x3f };

static struct soft start(const struct instruction *insn)
{
    uint32_t mxcsr = insn->machine->mxcsr;
    return (struct soft){.mxcsr = mxcsr, .rounding = mxcsr >> MXCSR_ROUNDING & 3};
}

/* Note the flags in MXCSR; false if one of them is unmasked, and the exception is in the outcome. */
static bool settle(struct instruction *insn, const struct soft *soft)
{
    uint32_t unmasked = soft->raised & ~(soft->mxcsr >> MXCSR_MASKS) & STATUS_FLAGS;
    if (unmasked && !(insn->machine->cr4 & CR4_OSXMMEXCPT)) {
        decline(insn); /* the CPU raises #UD here, and the guest has asked for that */
        return false;
    }
    uint32_t after = insn->machine->mxcsr | soft->raised;
    if (after != insn->machine->mxcsr) {
        insn->machine->mxcsr = after;
        insn->outcome->touched |= ISTHMUS_WROTE_MXCSR;
    }
    if (unmasked)
        fault(insn, VECTOR_XM, false, 0);
    return !unmasked;
}

static bool begin(struct instruction *insn, uint32_t name)
{
    name_it(insn, vector_name(insn, name));
    return insn->vex ? vex_usable(insn) : sse_usable(insn);
}

static void end(struct instruction *insn, const struct soft *soft, unsigned reg,
                const struct vector *result, uint32_t name)
{
    if (!settle(insn, soft))
        return;
    set_vector(insn, reg, result);
    finish(insn, vector_name(insn, name));
}

static uint64_t get(const struct vector *v, bool wide, unsigned i)
{
    return wide ? v->lane[i / 2].q[i % 2] : v->lane[i / 4].d[i % 4];
}

static void put(struct vector *v, bool wide, unsigned i, uint64_t value)
{
    if (wide)
        v->lane[i / 2].q[i % 2] = value;
    else
        v->lane[i / 4].d[i % 4] = (uint32_t)value;
}

static const struct format *format_of(bool wide) { return wide ? &double_format : &single_format; }

/* ADDSUBPx (0F D0), HADDPx (7C), HSUBPx (7D): 66 doubles, F2 singles; legacy forms. */
static bool execute_sums(struct instruction *insn)
{
    static const uint32_t names[3][2] = {{ISTHMUS_ADDSUBPS, ISTHMUS_ADDSUBPD},
                                         {ISTHMUS_HADDPS, ISTHMUS_HADDPD},
                                         {ISTHMUS_HSUBPS, ISTHMUS_HSUBPD}};
    unsigned kind = insn->opcode == 0xd0 ? 0 : insn->opcode == 0x7c ? 1 : 2;
    bool wide = insn->prefix == P66;
    if (insn->vex || insn->map != MAP_0F || (!wide && insn->prefix != PF2) ||
        (kind == 2 && insn->opcode != 0x7d))
        return false;
    if (!decode_operands(insn)) {
        decline(insn);
        return true;
    }
    uint32_t name = names[kind][wide];
    struct vector a, b, result;
    if (!begin(insn, name) || !load_vector(insn, &b, 16, true))
        return true;
    get_vector(insn, insn->reg, &a);
    result = a;
    struct soft soft = start(insn);
    unsigned count = wide ? 2 : 4;
    for (unsigned i = 0; i < count; i++) {
        const struct vector *from = i < count / 2 ? &a : &b;
        unsigned pair = 2 * i % count;
        put(&result, wide, i,
            kind ? soft_add(&soft, format_of(wide), get(from, wide, pair),
                            get(from, wide, pair + 1), kind == 2)
                 : soft_add(&soft, format_of(wide), get(&a, wide, i), get(&b, wide, i), !(i & 1)));
    }
    end(insn, &soft, insn->reg, &result, name);
    return true;
}

/* The sums of a dot product.  Every element of the result is the same number; which NaN it is, where
 * several come together, goes by the element (no manual says so: seen on a Sapphire Rapids). */
static uint64_t sum_of_two(struct soft *soft, const uint64_t *terms, unsigned i)
{
    return soft_add(soft, &double_format, terms[i], terms[!i], false);
}

static uint64_t sum_of_four(struct soft *soft, const uint64_t *terms, unsigned i)
{
    unsigned first = !(i & 1);
    uint64_t low = soft_add(soft, &single_format, terms[first], terms[!first], false);
    uint64_t high = soft_add(soft, &single_format, terms[2 + first], terms[2 + !first], false);
    return i < 2 ? soft_add(soft, &single_format, low, high, false)
                 : soft_add(soft, &single_format, high, low, false);
}

/* ROUNDPS, PD, SS, SD (0F3A 08 to 0B) and DPPS, DPPD (40, 41): legacy forms. */
static bool execute_sse41(struct instruction *insn)
{
    static const uint32_t names[4] = {ISTHMUS_ROUNDPS, ISTHMUS_ROUNDPD, ISTHMUS_ROUNDSS,
                                      ISTHMUS_ROUNDSD};
    bool dots = (insn->opcode & 0xfe) == 0x40, wide = insn->opcode & 1;
    if (insn->vex || insn->map != MAP_0F3A || insn->prefix != P66 ||
        !(dots || (insn->opcode & 0xfc) == 0x08))
        return false;
    bool whole = decode_operands(insn), scalar = !dots && insn->opcode & 2;
    unsigned imm = take_byte(insn);
    if (!whole || insn->ended) {
        decline(insn);
        return true;
    }
    uint32_t name = dots ? wide ? ISTHMUS_DPPD : ISTHMUS_DPPS : names[insn->opcode & 3];
    struct vector a, b, result;
    unsigned bytes = scalar ? wide ? 8 : 4 : 16, count = bytes / (wide ? 8 : 4);
    if (!begin(insn, name) || !load_vector(insn, &b, bytes, !scalar))
        return true;
    get_vector(insn, insn->reg, &a);
    result = a;
    struct soft soft = start(insn);
    const struct format *format = format_of(wide);
    if (!dots) {
        if (!(imm & 4))
            soft.rounding = imm & 3;
        for (unsigned i = 0; i < count; i++)
            put(&result, wide, i, soft_to_integral(&soft, format, get(&b, wide, i), imm & 8));
    } else {
        uint64_t terms[4] = {0, 0, 0, 0};
        for (unsigned i = 0; i < count; i++)
            if (imm >> (4 + i) & 1)
                terms[i] = soft_multiply(&soft, format, get(&a, wide, i), get(&b, wide, i));
        for (unsigned i = 0; i < count; i++) {
            uint64_t total = wide ? sum_of_two(&soft, terms, i) : sum_of_four(&soft, terms, i);
            put(&result, wide, i, imm >> i & 1 ? total : 0);
        }
    }
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
        uint32_t unmasked = soft.raised & ~(soft.mxcsr >> MXCSR_MASKS) & STATUS_FLAGS;
        if (!unmasked && !store(insn, result.lane[0].b, 2 * count))
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
    return execute_sums(insn) || execute_sse41(insn) || execute_halves(insn) ||
           execute_fma3(insn) || execute_fma4(insn);
}
