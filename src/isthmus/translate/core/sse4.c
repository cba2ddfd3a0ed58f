/* SPDX-License-Identifier: Apache-2.0 OR GPL-2.0-only */
/* SSE3 and SSE4 beyond plain lanes, with their VEX forms: widening moves, inserts and extracts, blends
 * by a mask, tests, MPSADBW and the string comparisons (Intel SDM vol. 2; strings: vol. 2B, 4.1). */
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
    else if (insn->map == MAP_0F && insn->opcode == 0xf0 && insn->prefix == PF2)
        name = ISTHMUS_LDDQU;
    else if (insn->map == MAP_0F38 && insn->opcode == 0x2a && insn->prefix == P66)
        name = ISTHMUS_MOVNTDQA;
    if (!name)
        return false;
    bool memory_only = name == ISTHMUS_LDDQU || name == ISTHMUS_MOVNTDQA;
    if (!decode_operands(insn) || insn->vvvv || (memory_only && !insn->is_memory)) {
        decline(insn);
        return true;
    }
    struct vector from, result = {0};
    unsigned bytes = vector_bytes(insn);
    bool doubles = name == ISTHMUS_MOVDDUP, aligned = !insn->vex && !memory_only && !doubles;
    if (doubles && bytes == 16)
        bytes = 8;
    if (!begin(insn, name) || !(memory_only ? load_moved(insn, &from, bytes, name == ISTHMUS_MOVNTDQA)
                                            : load_vector(insn, &from, bytes, aligned)))
        return true;
    result = from;
    for (unsigned i = 0; i < vector_bytes(insn) / 16; i++) {
        union lane *r = &result.lane[i];
        if (doubles)
            r->q[1] = r->q[0];
        else if (name == ISTHMUS_MOVSLDUP)
            r->d[1] = r->d[0], r->d[3] = r->d[2];
        else if (name == ISTHMUS_MOVSHDUP)
            r->d[0] = r->d[1], r->d[2] = r->d[3];
    }
    set_vector(insn, insn->reg, &result);
    end(insn, name);
    return true;
}

/* PEXTRx and EXTRACTPS (0F3A 14 to 17), PINSRx and INSERTPS (20 to 22); the VEX forms of PINSRW and
 * PEXTRW in map 0F (C4, C5).  W chooses between D and Q and is ignored elsewhere. */
static bool execute_elements(struct instruction *insn)
{
    static const struct {
        uint8_t map, opcode, bits;
        uint32_t name;
    } kinds[] = {
        {MAP_0F3A, 0x14, 8, ISTHMUS_PEXTRB},      {MAP_0F3A, 0x15, 16, ISTHMUS_PEXTRW},
        {MAP_0F3A, 0x16, 32, ISTHMUS_PEXTRD},     {MAP_0F3A, 0x17, 32, ISTHMUS_EXTRACTPS},
        {MAP_0F, 0xc5, 16, ISTHMUS_PEXTRW},       {MAP_0F3A, 0x20, 8, ISTHMUS_PINSRB},
        {MAP_0F3A, 0x22, 32, ISTHMUS_PINSRD},     {MAP_0F, 0xc4, 16, ISTHMUS_PINSRW},
        {MAP_0F3A, 0x21, 32, ISTHMUS_INSERTPS},
    };
    size_t k = 0;
    while (k < sizeof kinds / sizeof *kinds &&
           (kinds[k].map != insn->map || kinds[k].opcode != insn->opcode))
        k++;
    if (k == sizeof kinds / sizeof *kinds || insn->prefix != P66 ||
        (!insn->vex && insn->map == MAP_0F))
        return false;
    bool whole = decode_operands(insn), extracts = k < 5;
    unsigned imm = take_byte(insn), bits = kinds[k].bits;
    uint32_t name = kinds[k].name;
    if (!whole || insn->ended || insn->long_vector || (extracts && insn->vvvv) ||
        (insn->opcode == 0xc5 && insn->is_memory)) {
        decline(insn);
        return true;
    }
    if ((name == ISTHMUS_PEXTRD || name == ISTHMUS_PINSRD) && insn->rex & 8) {
        name = extracts ? ISTHMUS_PEXTRQ : ISTHMUS_PINSRQ;
        bits = 64;
    }
    struct vector v;
    union lane *x = &v.lane[0];
    uint64_t value;
    if (!begin(insn, name))
        return true;
    if (extracts) {
        bool to_reg = insn->opcode == 0xc5;
        get_vector(insn, to_reg ? insn->rm : insn->reg, &v);
        value = bits == 8    ? x->b[imm & 15]
                : bits == 16 ? x->w[imm & 7]
                : bits == 32 ? x->d[imm & 3]
                             : x->q[imm & 1];
        if (!insn->is_memory)
            set_gpr(insn, to_reg ? insn->reg : insn->rm, 64, value);
        else if (!store_integer(insn, bits, value))
            return true;
        end(insn, name);
        return true;
    }
    get_vector(insn, insn->vex ? insn->vvvv : insn->reg, &v);
    if (name == ISTHMUS_INSERTPS) {
        struct vector from;
        if (!load_vector(insn, &from, 4, false))
            return true;
        x->d[imm >> 4 & 3] = from.lane[0].d[insn->is_memory ? 0 : imm >> 6];
        for (unsigned i = 0; i < 4; i++)
            if (imm >> i & 1)
                x->d[i] = 0;
    } else {
        if (!insn->is_memory)
            value = insn->machine->gpr[insn->rm]; /* of the register's low part, never AH and kin */
        else if (!load_integer(insn, bits, &value))
            return true;
        if (bits == 8)
            x->b[imm & 15] = (uint8_t)value;
        else if (bits == 16)
            x->w[imm & 7] = (uint16_t)value;
        else if (bits == 32)
            x->d[imm & 3] = (uint32_t)value;
        else
            x->q[imm & 1] = value;
    }
    set_vector(insn, insn->reg, &v);
    end(insn, name);
    return true;
}

/* BLENDPS, BLENDPD by an immediate; PBLENDVB, BLENDVPS, BLENDVPD by the signs of XMM0, their VEX
 * forms by a register in the immediate. */
static bool execute_blends(struct instruction *insn)
{
    static const struct {
        uint8_t map, opcode, width;
        bool vex, legacy;
        uint32_t name;
    } kinds[] = {
        {MAP_0F3A, 0x0c, 4, true, true, ISTHMUS_BLENDPS},
        {MAP_0F3A, 0x0d, 8, true, true, ISTHMUS_BLENDPD},
        {MAP_0F38, 0x10, 1, false, true, ISTHMUS_PBLENDVB},
        {MAP_0F38, 0x14, 4, false, true, ISTHMUS_BLENDVPS},
        {MAP_0F38, 0x15, 8, false, true, ISTHMUS_BLENDVPD},
        {MAP_0F3A, 0x4a, 4, true, false, ISTHMUS_BLENDVPS},
        {MAP_0F3A, 0x4b, 8, true, false, ISTHMUS_BLENDVPD},
        {MAP_0F3A, 0x4c, 1, true, false, ISTHMUS_PBLENDVB},
    };
    size_t k = 0;
    while (k < sizeof kinds / sizeof *kinds &&
           (kinds[k].map != insn->map || kinds[k].opcode != insn->opcode ||
            !(insn->vex ? kinds[k].vex : kinds[k].legacy)))
        k++;
    if (k == sizeof kinds / sizeof *kinds || insn->prefix != P66)
        return false;
    bool whole = decode_operands(insn), by_immediate = k < 2;
    unsigned imm = insn->map == MAP_0F3A ? take_byte(insn) : 0, width = kinds[k].width;
    if (!whole || insn->ended || (insn->wide && !by_immediate)) {
        decline(insn);
        return true;
    }
    struct vector a, b, mask, result;
    unsigned bytes = vector_bytes(insn);
    if (!begin(insn, kinds[k].name) || !load_vector(insn, &b, bytes, !insn->vex))
        return true;
    get_vector(insn, insn->vex ? insn->vvvv : insn->reg, &a);
    get_vector(insn, insn->vex ? imm >> 4 & (insn->machine->mode == 64 ? 15 : 7) : 0, &mask);
    result = a;
    for (unsigned i = 0; i < bytes; i++) {
        unsigned element = i / width, sign = (element + 1) * width - 1;
        bool take = by_immediate ? imm >> element & 1 : mask.lane[sign / 16].b[sign % 16] >> 7;
        if (take)
            result.lane[i / 16].b[i % 16] = b.lane[i / 16].b[i % 16];
    }
    set_vector(insn, insn->reg, &result);
    end(insn, kinds[k].name);
    return true;
}

/* PTEST (0F38 17) of all bits; VTESTPS and VTESTPD (0E, 0F) of the signs. */
static bool execute_tests(struct instruction *insn)
{
    uint8_t op = insn->opcode;
    bool signs = insn->vex && (op == 0x0e || op == 0x0f);
    if (insn->map != MAP_0F38 || insn->prefix != P66 || (op != 0x17 && !signs))
        return false;
    if (!decode_operands(insn) || insn->vvvv || (signs && insn->wide)) {
        decline(insn);
        return true;
    }
    uint32_t name = op == 0x17 ? ISTHMUS_PTEST : op == 0x0e ? ISTHMUS_VTESTPS : ISTHMUS_VTESTPD;
    uint64_t counts = op == 0x17   ? ~UINT64_C(0)
                      : op == 0x0e ? UINT64_C(0x8000000080000000)
                                   : UINT64_C(0x8000000000000000);
    struct vector a, b;
    unsigned bytes = vector_bytes(insn);
    if (!begin(insn, name) || !load_vector(insn, &b, bytes, !insn->vex))
        return true;
    get_vector(insn, insn->reg, &a);
    uint64_t both = 0, only = 0;
    for (unsigned i = 0; i < bytes / 8; i++) {
        both |= a.lane[i / 2].q[i % 2] & b.lane[i / 2].q[i % 2] & counts;
        only |= ~a.lane[i / 2].q[i % 2] & b.lane[i / 2].q[i % 2] & counts;
    }
    set_flags(insn, STATUS, (both ? 0 : FLAG_ZF) | (only ? 0 : FLAG_CF));
    end(insn, name);
    return true;
}

/* MPSADBW; the upper lane of its 256-bit form has its own bits of the immediate. */
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

static bool execute_strings(struct instruction *insn)
{
    static const uint32_t names[4] = {ISTHMUS_PCMPESTRM, ISTHMUS_PCMPESTRI, ISTHMUS_PCMPISTRM,
                                      ISTHMUS_PCMPISTRI};
    if (insn->map != MAP_0F3A || (insn->opcode & 0xfc) != 0x60 || insn->prefix != P66)
        return false;
    uint32_t name = names[insn->opcode & 3];
    bool whole = decode_operands(insn), wide = insn->rex & 8 && insn->machine->mode == 64;
    unsigned imm = take_byte(insn);
    if (!whole || insn->ended || insn->long_vector || insn->vvvv) {
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
        execute_tests,    execute_mpsadbw, execute_strings,
    };
    for (size_t i = 0; i < sizeof members / sizeof *members; i++)
        if (members[i](insn))
            return true;
    return false;
}
