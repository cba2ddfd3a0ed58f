/* SPDX-License-Identifier: Apache-2.0 OR GPL-2.0-only */
/* SSE3 and SSE4 beyond plain lanes: widening moves, inserts and extracts, blends by a mask, PTEST,
 * MPSADBW and the string comparisons (Intel SDM vol. 2; strings: vol. 2B, 4.1). */
#include "vector.h"

enum { STATUS = FLAG_CF | FLAG_PF | FLAG_AF | FLAG_ZF | FLAG_SF | FLAG_OF };

static bool begin(struct instruction *insn, uint32_t name)
{
    name_it(insn, vector_name(insn, name));
    return insn->vex ? vex_usable(insn) : sse_usable(insn);
}

static void end(struct instruction *insn, uint32_t name)
{
    finish(insn, vector_name(insn, name));
}

/* PMOVSX (20 to 25) and PMOVZX (30 to 35): from `narrow` bytes to `wide`. */
static bool execute_widening(struct instruction *insn)
{
    static const uint8_t narrow[6] = {1, 1, 1, 2, 2, 4}, wide[6] = {2, 4, 8, 4, 8, 8};
    static const uint32_t names[2][6] = {
        {ISTHMUS_PMOVSXBW, ISTHMUS_PMOVSXBD, ISTHMUS_PMOVSXBQ, ISTHMUS_PMOVSXWD, ISTHMUS_PMOVSXWQ,
         ISTHMUS_PMOVSXDQ},
        {ISTHMUS_PMOVZXBW, ISTHMUS_PMOVZXBD, ISTHMUS_PMOVZXBQ, ISTHMUS_PMOVZXWD, ISTHMUS_PMOVZXWQ,
         ISTHMUS_PMOVZXDQ},
    };
    unsigned kind = insn->opcode & 15, zero = (insn->opcode >> 4) - 2u;
    if (insn->map != MAP_0F38 || insn->prefix != P66 || zero > 1 || kind > 5)
        return false;
    uint32_t name = names[zero][kind];
    if (!decode_operands(insn) || insn->vvvv) {
        decline(insn);
        return true;
    }
    unsigned total = vector_bytes(insn), count = total / wide[kind];
    struct vector from, result = {0};
    if (!begin(insn, name) || !load_vector(insn, &from, count * narrow[kind], false))
        return true;
    for (unsigned i = 0; i < count; i++) {
        uint64_t value = 0, sign = UINT64_C(1) << (8 * narrow[kind] - 1);
        for (unsigned k = 0; k < narrow[kind]; k++) /* at most 16 bytes: the first lane */
            value |= (uint64_t)from.lane[0].b[i * narrow[kind] + k] << 8 * k;
        if (!zero)
            value = (value ^ sign) - sign;
        for (unsigned k = 0; k < wide[kind]; k++) {
            unsigned at = i * wide[kind] + k;
            result.lane[at / 16].b[at % 16] = (uint8_t)(value >> 8 * k);
        }
    }
    set_vector(insn, insn->reg, &result);
    end(insn, name);
    return true;
}

/* MOVDDUP, MOVSLDUP, MOVSHDUP (0F 12, 0F 16), LDDQU (F2 0F F0), MOVNTDQA (66 0F 38 2A). */
static bool execute_moves(struct instruction *insn)
{
    uint32_t name = 0;
    if (insn->map == MAP_0F && insn->opcode == 0x12)
        name = insn->prefix == PF2 ? ISTHMUS_MOVDDUP : insn->prefix == PF3 ? ISTHMUS_MOVSLDUP : 0;
    else if (insn->map == MAP_0F && insn->opcode == 0x16 && insn->prefix == PF3)
        name = ISTHMUS_MOVSHDUP;
    else if (insn->map == MAP_0F && insn->opcode == 0xf0 && insn->prefix == PF2 && !insn->vex)
        name = ISTHMUS_LDDQU;
    else if (insn->map == MAP_0F38 && insn->opcode == 0x2a && insn->prefix == P66)
        name = ISTHMUS_MOVNTDQA;
    if (!name || (insn->vex && (name != ISTHMUS_MOVNTDQA || !insn->long_vector)))
        return false; /* the other VEX forms are AVX's */
    bool memory_only = name == ISTHMUS_LDDQU || name == ISTHMUS_MOVNTDQA;
    if (!decode_operands(insn) || insn->vvvv || (memory_only && !insn->is_memory)) {
        decline(insn);
        return true;
    }
    struct vector from, result = {0};
    unsigned bytes = name == ISTHMUS_MOVDDUP ? 8 : vector_bytes(insn);
    if (!begin(insn, name))
        return true;
    if (!load_vector(insn, &from, bytes, name != ISTHMUS_LDDQU && bytes > 8))
        return true;
    result = from;
    union lane *r = &result.lane[0];
    if (name == ISTHMUS_MOVDDUP)
        r->q[1] = r->q[0];
    else if (name == ISTHMUS_MOVSLDUP)
        r->d[1] = r->d[0], r->d[3] = r->d[2];
    else if (name == ISTHMUS_MOVSHDUP)
        r->d[0] = r->d[1], r->d[2] = r->d[3];
    set_vector(insn, insn->reg, &result);
    end(insn, name);
    return true;
}

/* PEXTRx and EXTRACTPS (0F3A 14 to 17), PINSRx and INSERTPS (20 to 22): legacy forms; AVX has the
 * others. */
static bool execute_elements(struct instruction *insn)
{
    uint8_t op = insn->opcode;
    if (insn->vex || insn->map != MAP_0F3A || insn->prefix != P66 ||
        !((op >= 0x14 && op <= 0x17) || (op >= 0x20 && op <= 0x22)))
        return false;
    bool whole = decode_operands(insn), wide = insn->rex & 8 && insn->machine->mode == 64;
    unsigned imm = take_byte(insn);
    if (!whole || insn->ended) {
        decline(insn);
        return true;
    }
    struct vector v;
    union lane *x = &v.lane[0];
    uint64_t value;
    static const uint32_t names[9] = {ISTHMUS_PEXTRB, ISTHMUS_PEXTRW, ISTHMUS_PEXTRD,
                                      ISTHMUS_EXTRACTPS, ISTHMUS_PINSRB, ISTHMUS_INSERTPS,
                                      ISTHMUS_PINSRD, ISTHMUS_PEXTRQ, ISTHMUS_PINSRQ};
    unsigned kind = op < 0x20 ? op - 0x14u : op - 0x20u + 4;
    uint32_t name = wide && kind == 2 ? names[7] : wide && kind == 6 ? names[8] : names[kind];
    if (!begin(insn, name))
        return true;
    if (op < 0x20) {
        static const uint8_t widths[4] = {8, 16, 32, 32};
        unsigned bits = kind == 2 && wide ? 64 : widths[kind];
        get_vector(insn, insn->reg, &v);
        value = bits == 8    ? x->b[imm & 15]
                : bits == 16 ? x->w[imm & 7]
                : bits == 32 ? x->d[imm & 3]
                             : x->q[imm & 1];
        if (!insn->is_memory)
            set_gpr(insn, insn->rm, 64, value);
        else if (!store_integer(insn, bits, value))
            return true;
        end(insn, name);
        return true;
    }
    get_vector(insn, insn->reg, &v);
    if (op == 0x21) {
        struct vector from;
        if (!load_vector(insn, &from, 4, false))
            return true;
        x->d[imm >> 4 & 3] = from.lane[0].d[insn->is_memory ? 0 : imm >> 6];
        for (unsigned i = 0; i < 4; i++)
            if (imm >> i & 1)
                x->d[i] = 0;
    } else {
        unsigned bits = op == 0x20 ? 8 : wide ? 64 : 32;
        if (!insn->is_memory)
            value = insn->machine->gpr[insn->rm]; /* of the register's low part, never AH and kin */
        else if (!load_integer(insn, bits, &value))
            return true;
        if (bits == 8)
            x->b[imm & 15] = (uint8_t)value;
        else if (bits == 32)
            x->d[imm & 3] = (uint32_t)value;
        else
            x->q[imm & 1] = value;
    }
    set_vector(insn, insn->reg, &v);
    end(insn, name);
    return true;
}

/* BLENDPS, BLENDPD by an immediate; PBLENDVB, BLENDVPS, BLENDVPD by XMM0's signs, legacy; and
 * VPBLENDVB of 256 bits by a register in the immediate. */
static bool execute_blends(struct instruction *insn)
{
    bool avx2 = insn->vex && insn->long_vector && insn->map == MAP_0F3A && insn->opcode == 0x4c;
    uint32_t name = 0;
    if (insn->prefix != P66 || (insn->vex && (!avx2 || insn->wide)))
        return false;
    if (avx2)
        name = ISTHMUS_PBLENDVB;
    else if (insn->map == MAP_0F3A && insn->opcode == 0x0c)
        name = ISTHMUS_BLENDPS;
    else if (insn->map == MAP_0F3A && insn->opcode == 0x0d)
        name = ISTHMUS_BLENDPD;
    else if (insn->map == MAP_0F38 && insn->opcode == 0x10)
        name = ISTHMUS_PBLENDVB;
    else if (insn->map == MAP_0F38 && insn->opcode == 0x14)
        name = ISTHMUS_BLENDVPS;
    else if (insn->map == MAP_0F38 && insn->opcode == 0x15)
        name = ISTHMUS_BLENDVPD;
    else
        return false;
    bool whole = decode_operands(insn);
    unsigned imm = insn->map == MAP_0F3A ? take_byte(insn) : 0;
    if (!whole || insn->ended) {
        decline(insn);
        return true;
    }
    struct vector a, b, mask, result;
    unsigned bytes = vector_bytes(insn);
    if (!begin(insn, name) || !load_vector(insn, &b, bytes, !insn->vex))
        return true;
    get_vector(insn, insn->vex ? insn->vvvv : insn->reg, &a);
    get_vector(insn, avx2 ? imm >> 4 & (insn->machine->mode == 64 ? 15 : 7) : 0, &mask);
    unsigned width = name == ISTHMUS_BLENDPS || name == ISTHMUS_BLENDVPS   ? 4
                     : name == ISTHMUS_BLENDPD || name == ISTHMUS_BLENDVPD ? 8
                                                                           : 1;
    bool immediate = name == ISTHMUS_BLENDPS || name == ISTHMUS_BLENDPD;
    result = a;
    for (unsigned i = 0; i < bytes; i++) {
        unsigned element = i / width, sign = (element + 1) * width - 1;
        bool take = immediate ? imm >> element & 1 : mask.lane[sign / 16].b[sign % 16] >> 7;
        if (take)
            result.lane[i / 16].b[i % 16] = b.lane[i / 16].b[i % 16];
    }
    set_vector(insn, insn->reg, &result);
    end(insn, name);
    return true;
}

static bool execute_ptest(struct instruction *insn) /* legacy; the VEX forms are AVX's */
{
    if (insn->vex || insn->map != MAP_0F38 || insn->opcode != 0x17 || insn->prefix != P66)
        return false;
    if (!decode_operands(insn)) {
        decline(insn);
        return true;
    }
    struct vector a, b;
    if (!begin(insn, ISTHMUS_PTEST) || !load_vector(insn, &b, 16, true))
        return true;
    get_vector(insn, insn->reg, &a);
    const union lane *x = &a.lane[0], *y = &b.lane[0];
    bool zero = !((x->q[0] & y->q[0]) | (x->q[1] & y->q[1]));
    bool carry = !((~x->q[0] & y->q[0]) | (~x->q[1] & y->q[1]));
    set_flags(insn, STATUS, (zero ? FLAG_ZF : 0) | (carry ? FLAG_CF : 0));
    end(insn, ISTHMUS_PTEST);
    return true;
}

/* MPSADBW, and AVX2's 256-bit form, whose upper lane has its own bits of the immediate. */
static bool execute_mpsadbw(struct instruction *insn)
{
    if (insn->map != MAP_0F3A || insn->opcode != 0x42 || insn->prefix != P66)
        return false;
    bool whole = decode_operands(insn);
    unsigned imm = take_byte(insn);
    if (!whole || insn->ended) {
        decline(insn);
        return true;
    }
    struct vector a, b, result = {0};
    unsigned bytes = vector_bytes(insn);
    if (!begin(insn, ISTHMUS_MPSADBW) || !load_vector(insn, &b, bytes, !insn->vex))
        return true;
    get_vector(insn, insn->vex ? insn->vvvv : insn->reg, &a);
    for (unsigned l = 0; l < bytes / 16; l++, imm >>= 3) {
        unsigned first = (imm >> 2 & 1) * 4, block = (imm & 3) * 4;
        for (unsigned i = 0; i < 8; i++) {
            unsigned sum = 0;
            for (unsigned k = 0; k < 4; k++) {
                int gap = a.lane[l].b[first + i + k] - b.lane[l].b[block + k];
                sum += (unsigned)(gap < 0 ? -gap : gap);
            }
            result.lane[l].w[i] = (uint16_t)sum;
        }
    }
    set_vector(insn, insn->reg, &result);
    end(insn, ISTHMUS_MPSADBW);
    return true;
}

/* The strings' elements as signed or unsigned numbers. */
static int element(const union lane *x, unsigned imm, unsigned i)
{
    switch (imm & 3) {
    case 0: return x->b[i];
    case 1: return x->w[i];
    case 2: return x->sb[i];
    default: return x->sw[i];
    }
}

static unsigned implicit_length(const union lane *x, unsigned imm, unsigned count)
{
    unsigned length = 0;
    while (length < count && element(x, imm, length))
        length++;
    return length;
}

/* An explicit length counts by its absolute value, at most all. */
static unsigned explicit_length(uint64_t value, bool wide, unsigned count)
{
    int64_t length = wide ? (int64_t)value : (int32_t)value;
    uint64_t size = length < 0 ? 0 - (uint64_t)length : (uint64_t)length;
    return size < count ? (unsigned)size : count;
}

/* SDM vol. 2B, table 4-7: what a comparison with an invalid element gives. */
static unsigned aggregate(const union lane *a, const union lane *b, unsigned imm, unsigned la,
                          unsigned lb, unsigned count)
{
    unsigned result = 0;
    for (unsigned j = 0; j < count; j++) {
        bool bit = false;
        switch (imm >> 2 & 3) {
        case 0: /* equal any */
            for (unsigned i = 0; i < la && j < lb; i++)
                bit |= element(a, imm, i) == element(b, imm, j);
            break;
        case 1: /* ranges */
            for (unsigned i = 0; i + 1 < la && j < lb; i += 2)
                bit |= element(a, imm, i) <= element(b, imm, j) &&
                       element(b, imm, j) <= element(a, imm, i + 1);
            break;
        case 2: /* equal each */
            bit = j < la && j < lb ? element(a, imm, j) == element(b, imm, j)
                                   : j >= la && j >= lb;
            break;
        default: /* equal ordered */
            bit = true;
            for (unsigned i = 0; i < la && i + j < count; i++)
                bit &= i + j < lb && element(a, imm, i) == element(b, imm, i + j);
            break;
        }
        result |= (unsigned)bit << j;
    }
    return result;
}

static bool execute_strings(struct instruction *insn) /* legacy; the VEX forms are AVX's */
{
    static const uint32_t names[4] = {ISTHMUS_PCMPESTRM, ISTHMUS_PCMPESTRI, ISTHMUS_PCMPISTRM,
                                      ISTHMUS_PCMPISTRI};
    if (insn->vex || insn->map != MAP_0F3A || (insn->opcode & 0xfc) != 0x60 ||
        insn->prefix != P66)
        return false;
    uint32_t name = names[insn->opcode & 3];
    bool whole = decode_operands(insn), wide = insn->rex & 8 && insn->machine->mode == 64;
    unsigned imm = take_byte(insn);
    if (!whole || insn->ended) {
        decline(insn);
        return true;
    }
    struct vector va, vb;
    if (!begin(insn, name) || !load_vector(insn, &vb, 16, false))
        return true;
    get_vector(insn, insn->reg, &va);
    const union lane *a = &va.lane[0], *b = &vb.lane[0];
    bool implicit = insn->opcode & 2, index = insn->opcode & 1;
    unsigned count = imm & 1 ? 8 : 16;
    unsigned la = implicit ? implicit_length(a, imm, count)
                           : explicit_length(insn->machine->gpr[RAX], wide, count);
    unsigned lb = implicit ? implicit_length(b, imm, count)
                           : explicit_length(insn->machine->gpr[RDX], wide, count);
    unsigned bits = aggregate(a, b, imm, la, lb, count);
    if (imm & 0x10) /* negative, of valid elements only if bit 5 is set */
        bits ^= imm & 0x20 ? (1u << lb) - 1 : (1u << count) - 1;
    if (index) {
        unsigned found = count;
        for (unsigned i = 0; i < count; i++)
            if (bits >> i & 1 && (imm & 0x40 || found == count))
                found = i;
        set_gpr(insn, RCX, 32, found);
    } else {
        struct vector result = {0};
        for (unsigned i = 0; i < 16; i++) {
            if (!(imm & 0x40))
                result.lane[0].b[i] = i < 2 ? (uint8_t)(bits >> 8 * i) : 0;
            else
                result.lane[0].b[i] = bits >> (imm & 1 ? i / 2 : i) & 1 ? 0xff : 0;
        }
        set_vector(insn, 0, &result);
    }
    set_flags(insn, STATUS, (bits ? FLAG_CF : 0) | (lb < count ? FLAG_ZF : 0) |
                                (la < count ? FLAG_SF : 0) | (bits & 1 ? FLAG_OF : 0));
    end(insn, name);
    return true;
}

bool execute_sse4(struct instruction *insn)
{
    if (insn->xop)
        return false;
    static bool (*const members[])(struct instruction *) = {
        execute_widening, execute_moves,   execute_elements, execute_blends,
        execute_ptest,    execute_mpsadbw, execute_strings,
    };
    bool narrow = insn->vex && !insn->long_vector; /* 128 bits under VEX are AVX's own */
    for (size_t i = 0; !narrow && i < sizeof members / sizeof *members; i++)
        if (members[i](insn))
            return true;
    return false;
}
