/* SPDX-License-Identifier: Apache-2.0 OR GPL-2.0-only */
/* XOP, AMD's family 15h: rotates and shifts of elements, comparisons, horizontal sums,
 * multiply-accumulate, bit selection and byte permutation (AMD APM vol. 6 of its day, 43479). */
#include "vector.h"

static uint64_t get(const union lane *x, unsigned width, unsigned i)
{
    return width == 1 ? x->b[i] : width == 2 ? x->w[i] : width == 4 ? x->d[i] : x->q[i];
}

static int64_t get_signed(const union lane *x, unsigned width, unsigned i)
{
    return width == 1 ? x->sb[i] : width == 2 ? x->sw[i] : width == 4 ? x->sd[i] : x->sq[i];
}

static void put(union lane *x, unsigned width, unsigned i, uint64_t value)
{
    for (unsigned k = 0; k < width; k++)
        x->b[i * width + k] = (uint8_t)(value >> 8 * k);
}

static void finish_lane(struct instruction *insn, const union lane *result, uint32_t name)
{
    struct vector value = {.lane = {*result}};
    set_vector(insn, insn->reg, &value);
    finish(insn, name);
}

static uint64_t rotated(uint64_t value, int by, unsigned width)
{
    unsigned bits = 8 * width, left = (unsigned)by & (bits - 1);
    return left ? value << left | value >> (bits - left) : value;
}

/* A positive count shifts left, a negative one right, each modulo the element's width. */
static uint64_t shifted(const union lane *x, unsigned i, int by, unsigned width, bool arithmetic)
{
    unsigned mask = 8 * width - 1;
    if (by >= 0)
        return get(x, width, i) << ((unsigned)by & mask);
    unsigned right = (unsigned)-by & mask;
    return arithmetic ? (uint64_t)(get_signed(x, width, i) >> right) : get(x, width, i) >> right;
}

/* VPROT, VPSHL, VPSHA: map 9 90 to 9B by a register or memory, VPROT also map 8 C0 to C3 by an
 * immediate.  W exchanges the operands. */
static bool execute_shifts(struct instruction *insn)
{
    static const uint32_t names[3][4] = {
        {ISTHMUS_VPROTB, ISTHMUS_VPROTW, ISTHMUS_VPROTD, ISTHMUS_VPROTQ},
        {ISTHMUS_VPSHLB, ISTHMUS_VPSHLW, ISTHMUS_VPSHLD, ISTHMUS_VPSHLQ},
        {ISTHMUS_VPSHAB, ISTHMUS_VPSHAW, ISTHMUS_VPSHAD, ISTHMUS_VPSHAQ},
    };
    bool immediate = insn->map == MAP_XOP8 && (insn->opcode & 0xfc) == 0xc0;
    if (!immediate &&
        (insn->map != MAP_XOP9 || insn->opcode < 0x90 || insn->opcode > 0x9b))
        return false;
    bool whole = decode_operands(insn);
    unsigned kind = immediate ? 0 : (insn->opcode >> 2 & 3), width = 1u << (insn->opcode & 3);
    unsigned imm = immediate ? take_byte(insn) : 0;
    if (!whole || insn->ended || insn->long_vector || insn->prefix ||
        (immediate && (insn->wide || insn->vvvv))) {
        decline(insn);
        return true;
    }
    uint32_t name = names[kind][insn->opcode & 3];
    struct vector from, by;
    union lane result;
    name_it(insn, name);
    if (!vex_usable(insn) || !load_vector(insn, &from, 16, false))
        return true;
    get_vector(insn, insn->vvvv, &by);
    if (insn->wide) {
        struct vector swap = from;
        from = by;
        by = swap;
    }
    for (unsigned i = 0; i < 16 / width; i++) {
        int count = immediate ? (int8_t)imm : by.lane[0].sb[i * width];
        put(&result, width, i,
            kind == 0 ? rotated(get(&from.lane[0], width, i), count, width)
                      : shifted(&from.lane[0], i, count, width, kind == 2));
    }
    finish_lane(insn, &result, name);
    return true;
}

/* VPCOM: map 8 CC to CF signed, EC to EF unsigned. */
static bool execute_compare(struct instruction *insn)
{
    static const uint32_t names[2][4] = {
        {ISTHMUS_VPCOMB, ISTHMUS_VPCOMW, ISTHMUS_VPCOMD, ISTHMUS_VPCOMQ},
        {ISTHMUS_VPCOMUB, ISTHMUS_VPCOMUW, ISTHMUS_VPCOMUD, ISTHMUS_VPCOMUQ},
    };
    if (insn->map != MAP_XOP8 || (insn->opcode & 0xdc) != 0xcc)
        return false;
    bool whole = decode_operands(insn), plain = insn->opcode >> 5 & 1;
    unsigned imm = take_byte(insn) & 7, width = 1u << (insn->opcode & 3);
    if (!whole || insn->ended || insn->long_vector || insn->wide || insn->prefix) {
        decline(insn);
        return true;
    }
    uint32_t name = names[plain][insn->opcode & 3];
    struct vector a, b;
    union lane result;
    name_it(insn, name);
    if (!vex_usable(insn) || !load_vector(insn, &b, 16, false))
        return true;
    get_vector(insn, insn->vvvv, &a);
    for (unsigned i = 0; i < 16 / width; i++) {
        uint64_t x = get(&a.lane[0], width, i), y = get(&b.lane[0], width, i);
        bool less = plain ? x < y
                          : get_signed(&a.lane[0], width, i) < get_signed(&b.lane[0], width, i);
        bool equal = x == y, truth;
        switch (imm) {
        case 0: truth = less; break;
        case 1: truth = less || equal; break;
        case 2: truth = !less && !equal; break;
        case 3: truth = !less; break;
        case 4: truth = equal; break;
        case 5: truth = !equal; break;
        default: truth = imm == 7; break;
        }
        put(&result, width, i, truth ? ~UINT64_C(0) : 0);
    }
    finish_lane(insn, &result, name);
    return true;
}

/* VPHADDxy and VPHSUBxy: map 9 C1 to CB, D1 to DB (unsigned), E1 to E3. */
static bool execute_horizontal(struct instruction *insn)
{
    static const struct {
        uint8_t opcode, narrow, wide;
        bool plain, subtracts;
        uint32_t name;
    } kinds[] = {
        {0xc1, 1, 2, false, false, ISTHMUS_VPHADDBW}, {0xc2, 1, 4, false, false, ISTHMUS_VPHADDBD},
        {0xc3, 1, 8, false, false, ISTHMUS_VPHADDBQ}, {0xc6, 2, 4, false, false, ISTHMUS_VPHADDWD},
        {0xc7, 2, 8, false, false, ISTHMUS_VPHADDWQ}, {0xcb, 4, 8, false, false, ISTHMUS_VPHADDDQ},
        {0xd1, 1, 2, true, false, ISTHMUS_VPHADDUBW}, {0xd2, 1, 4, true, false, ISTHMUS_VPHADDUBD},
        {0xd3, 1, 8, true, false, ISTHMUS_VPHADDUBQ}, {0xd6, 2, 4, true, false, ISTHMUS_VPHADDUWD},
        {0xd7, 2, 8, true, false, ISTHMUS_VPHADDUWQ}, {0xdb, 4, 8, true, false, ISTHMUS_VPHADDUDQ},
        {0xe1, 1, 2, false, true, ISTHMUS_VPHSUBBW}, {0xe2, 2, 4, false, true, ISTHMUS_VPHSUBWD},
        {0xe3, 4, 8, false, true, ISTHMUS_VPHSUBDQ},
    };
    for (size_t k = 0; k < sizeof kinds / sizeof *kinds; k++) {
        if (insn->map != MAP_XOP9 || insn->opcode != kinds[k].opcode)
            continue;
        if (!decode_operands(insn) || insn->long_vector || insn->wide || insn->vvvv ||
            insn->prefix) {
            decline(insn);
            return true;
        }
        struct vector from;
        union lane result;
        unsigned narrow = kinds[k].narrow, wide = kinds[k].wide, parts = wide / narrow;
        name_it(insn, kinds[k].name);
        if (!vex_usable(insn) || !load_vector(insn, &from, 16, false))
            return true;
        for (unsigned i = 0; i < 16 / wide; i++) {
            uint64_t sum = 0;
            for (unsigned p = 0; p < parts; p++) {
                unsigned at = i * parts + p;
                uint64_t value = kinds[k].plain
                                     ? get(&from.lane[0], narrow, at)
                                     : (uint64_t)get_signed(&from.lane[0], narrow, at);
                sum += p && kinds[k].subtracts ? -value : value;
            }
            put(&result, wide, i, sum);
        }
        finish_lane(insn, &result, kinds[k].name);
        return true;
    }
    return false;
}

static int64_t saturated(int64_t value, int64_t low, int64_t high)
{
    return value < low ? low : value > high ? high : value;
}

/* A sum of two signed quadwords of which one is a product of doublewords. */
static uint64_t add_quads(int64_t a, int64_t b, bool saturates)
{
    int64_t sum;
    if (__builtin_add_overflow(a, b, &sum) && saturates)
        return b < 0 ? (uint64_t)INT64_MIN : (uint64_t)INT64_MAX;
    return (uint64_t)a + (uint64_t)b;
}

/* VPMACS… and VPMADCS…: map 8, with the addend in the immediate's register. */
static bool execute_accumulate(struct instruction *insn)
{
    static const struct {
        uint8_t opcode, factor, sum; /* widths */
        uint8_t first, step;         /* which elements are multiplied */
        bool saturates, pairs;
        uint32_t name;
    } kinds[] = {
        {0x85, 2, 2, 0, 1, true, false, ISTHMUS_VPMACSSWW},
        {0x86, 2, 4, 1, 2, true, false, ISTHMUS_VPMACSSWD},
        {0x87, 4, 8, 0, 2, true, false, ISTHMUS_VPMACSSDQL},
        {0x8e, 4, 4, 0, 1, true, false, ISTHMUS_VPMACSSDD},
        {0x8f, 4, 8, 1, 2, true, false, ISTHMUS_VPMACSSDQH},
        {0x95, 2, 2, 0, 1, false, false, ISTHMUS_VPMACSWW},
        {0x96, 2, 4, 1, 2, false, false, ISTHMUS_VPMACSWD},
        {0x97, 4, 8, 0, 2, false, false, ISTHMUS_VPMACSDQL},
        {0x9e, 4, 4, 0, 1, false, false, ISTHMUS_VPMACSDD},
        {0x9f, 4, 8, 1, 2, false, false, ISTHMUS_VPMACSDQH},
        {0xa6, 2, 4, 0, 2, true, true, ISTHMUS_VPMADCSSWD},
        {0xb6, 2, 4, 0, 2, false, true, ISTHMUS_VPMADCSWD},
    };
    for (size_t k = 0; k < sizeof kinds / sizeof *kinds; k++) {
        if (insn->map != MAP_XOP8 || insn->opcode != kinds[k].opcode)
            continue;
        bool whole = decode_operands(insn);
        unsigned imm = take_byte(insn);
        if (!whole || insn->ended || insn->long_vector || insn->wide || insn->prefix) {
            decline(insn);
            return true;
        }
        struct vector a, b, c;
        union lane result;
        unsigned factor = kinds[k].factor, sum = kinds[k].sum;
        name_it(insn, kinds[k].name);
        if (!vex_usable(insn) || !load_sources(insn, 16, imm, &a, &b, &c))
            return true;
        for (unsigned i = 0; i < 16 / sum; i++) {
            unsigned at = i * kinds[k].step + kinds[k].first;
            int64_t product = get_signed(&a.lane[0], factor, at) *
                              get_signed(&b.lane[0], factor, at);
            if (kinds[k].pairs)
                product += get_signed(&a.lane[0], factor, at + 1) *
                           get_signed(&b.lane[0], factor, at + 1);
            int64_t addend = get_signed(&c.lane[0], sum, i);
            uint64_t total;
            if (sum == 8)
                total = add_quads(addend, product, kinds[k].saturates);
            else if (sum == 4 && factor == 4 && kinds[k].saturates)
                total = (uint64_t)saturated(saturated(product, INT64_MIN / 2, INT64_MAX / 2) +
                                                addend,
                                            INT32_MIN, INT32_MAX);
            else if (kinds[k].saturates)
                total = (uint64_t)saturated(product + addend, sum == 2 ? INT16_MIN : INT32_MIN,
                                            sum == 2 ? INT16_MAX : INT32_MAX);
            else
                total = (uint64_t)product + (uint64_t)addend;
            put(&result, sum, i, total);
        }
        finish_lane(insn, &result, kinds[k].name);
        return true;
    }
    return false;
}

static uint8_t permuted(uint8_t control, const union lane *first, const union lane *second)
{
    uint8_t byte = (control & 0x10 ? second : first)->b[control & 15];
    uint8_t reversed = 0;
    for (unsigned i = 0; i < 8; i++)
        reversed |= (uint8_t)((byte >> i & 1) << (7 - i));
    switch (control >> 5) {
    case 0: return byte;
    case 1: return (uint8_t)~byte;
    case 2: return reversed;
    case 3: return (uint8_t)~reversed;
    case 4: return 0;
    case 5: return 0xff;
    case 6: return byte >> 7 ? 0xff : 0;
    default: return byte >> 7 ? 0 : 0xff;
    }
}

/* VPCMOV (A2, 128 and 256 bits) and VPPERM (A3): W exchanges the last two operands. */
static bool execute_select(struct instruction *insn)
{
    if (insn->map != MAP_XOP8 || (insn->opcode != 0xa2 && insn->opcode != 0xa3))
        return false;
    bool whole = decode_operands(insn), moves = insn->opcode == 0xa2;
    unsigned imm = take_byte(insn);
    if (!whole || insn->ended || insn->prefix || (!moves && insn->long_vector)) {
        decline(insn);
        return true;
    }
    uint32_t name = moves ? ISTHMUS_VPCMOV : ISTHMUS_VPPERM;
    struct vector a, b, c, result = {0};
    name_it(insn, name);
    if (!vex_usable(insn) || !load_sources(insn, vector_bytes(insn), imm, &a, &b, &c))
        return true;
    for (unsigned l = 0; l < 2; l++) {
        for (unsigned i = 0; moves && i < 2; i++)
            result.lane[l].q[i] = (a.lane[l].q[i] & c.lane[l].q[i]) |
                                  (b.lane[l].q[i] & ~c.lane[l].q[i]);
        for (unsigned i = 0; !moves && !l && i < 16; i++)
            result.lane[0].b[i] = permuted(c.lane[0].b[i], &a.lane[0], &b.lane[0]);
    }
    set_vector(insn, insn->reg, &result);
    finish(insn, name);
    return true;
}

/* VPERMIL2PS and PD (VEX, 0F3A 48 and 49): elements of two sources by a control with a bit that may
 * zero them; the immediate says which value of that bit does. */
static bool execute_permil2(struct instruction *insn)
{
    if (insn->xop || insn->map != MAP_0F3A || insn->prefix != P66 || (insn->opcode & 0xfe) != 0x48)
        return false;
    bool whole = decode_operands(insn), quads = insn->opcode & 1;
    unsigned imm = take_byte(insn);
    if (!whole || insn->ended) {
        decline(insn);
        return true;
    }
    uint32_t name = quads ? ISTHMUS_VPERMIL2PD : ISTHMUS_VPERMIL2PS;
    struct vector a, b, c, result = {0};
    name_it(insn, name);
    if (!vex_usable(insn) || !load_sources(insn, vector_bytes(insn), imm, &a, &b, &c))
        return true;
    unsigned width = quads ? 8 : 4;
    for (unsigned l = 0; l < vector_bytes(insn) / 16; l++)
        for (unsigned i = 0; i < 16 / width; i++) {
            uint64_t control = get(&c.lane[l], width, i);
            bool zeroes = imm & 2 && (control >> 3 & 1) != (imm & 1);
            unsigned from = quads ? control >> 1 & 1 : control & 3;
            put(&result.lane[l], width, i,
                zeroes ? 0 : get(&(control & 4 ? &b : &a)->lane[l], width, from));
        }
    set_vector(insn, insn->reg, &result);
    finish(insn, name);
    return true;
}

bool execute_xop(struct instruction *insn)
{
    if (execute_permil2(insn))
        return true;
    if (!insn->xop)
        return false;
    return execute_shifts(insn) || execute_compare(insn) || execute_horizontal(insn) ||
           execute_accumulate(insn) || execute_select(insn);
}
