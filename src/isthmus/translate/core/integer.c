/* SPDX-License-Identifier: Apache-2.0 OR GPL-2.0-only */
/* Integer lanes: what SSSE3 and SSE4.1 added, and all that AVX encodes anew and AVX2 widened to 256
 * bits.  With them AVX's logic, interleaves and shuffles of floating-point numbers, which are the same
 * on bits.
 * Source: Intel SDM vol. 2, each instruction's pages. */
#include "vector.h"

#define LANE(name) \
    static void name(union lane *r, const union lane *a, const union lane *b, unsigned imm, \
                     unsigned n)
#define COUNT(field) (n / sizeof r->field[0])
/* One expression for each element; X and Y are the operands' elements. */
#define EACH(name, field, expression) \
    LANE(name) \
    { \
        (void)a, (void)b, (void)imm; \
        for (unsigned i = 0; i < COUNT(field); i++) \
            r->field[i] = (__typeof__(r->field[0]))(expression); \
    }
#define X(field) (a->field[i])
#define Y(field) (b->field[i])

static int32_t clamp(int32_t value, int32_t low, int32_t high)
{
    return value < low ? low : value > high ? high : value;
}

static int32_t word(int32_t value) { return clamp(value, -32768, 32767); }
static int32_t unsigned_word(int32_t value) { return clamp(value, 0, 65535); }
static int32_t byte(int32_t value) { return clamp(value, -128, 127); }
static int32_t unsigned_byte(int32_t value) { return clamp(value, 0, 255); }

EACH(paddb, b, X(b) + Y(b))
EACH(paddw, w, X(w) + Y(w))
EACH(paddd, d, X(d) + Y(d))
EACH(paddq, q, X(q) + Y(q))
EACH(psubb, b, X(b) - Y(b))
EACH(psubw, w, X(w) - Y(w))
EACH(psubd, d, X(d) - Y(d))
EACH(psubq, q, X(q) - Y(q))
EACH(paddsb, sb, byte(X(sb) + Y(sb)))
EACH(paddsw, sw, word(X(sw) + Y(sw)))
EACH(paddusb, b, unsigned_byte(X(b) + Y(b)))
EACH(paddusw, w, unsigned_word(X(w) + Y(w)))
EACH(psubsb, sb, byte(X(sb) - Y(sb)))
EACH(psubsw, sw, word(X(sw) - Y(sw)))
EACH(psubusb, b, unsigned_byte(X(b) - Y(b)))
EACH(psubusw, w, unsigned_word(X(w) - Y(w)))
EACH(pavgb, b, (X(b) + Y(b) + 1) >> 1)
EACH(pavgw, w, (X(w) + Y(w) + 1) >> 1)
EACH(pand, q, X(q) & Y(q))
EACH(pandn, q, ~X(q) & Y(q))
EACH(por, q, X(q) | Y(q))
EACH(pxor, q, X(q) ^ Y(q))
EACH(pcmpeqb, b, X(b) == Y(b) ? 0xff : 0)
EACH(pcmpeqw, w, X(w) == Y(w) ? 0xffff : 0)
EACH(pcmpeqd, d, X(d) == Y(d) ? 0xffffffff : 0)
EACH(pcmpeqq, q, X(q) == Y(q) ? ~UINT64_C(0) : 0)
EACH(pcmpgtb, b, X(sb) > Y(sb) ? 0xff : 0)
EACH(pcmpgtw, w, X(sw) > Y(sw) ? 0xffff : 0)
EACH(pcmpgtd, d, X(sd) > Y(sd) ? 0xffffffff : 0)
EACH(pcmpgtq, q, X(sq) > Y(sq) ? ~UINT64_C(0) : 0)
EACH(pminsb, sb, X(sb) < Y(sb) ? X(sb) : Y(sb))
EACH(pminsw, sw, X(sw) < Y(sw) ? X(sw) : Y(sw))
EACH(pminsd, sd, X(sd) < Y(sd) ? X(sd) : Y(sd))
EACH(pminub, b, X(b) < Y(b) ? X(b) : Y(b))
EACH(pminuw, w, X(w) < Y(w) ? X(w) : Y(w))
EACH(pminud, d, X(d) < Y(d) ? X(d) : Y(d))
EACH(pmaxsb, sb, X(sb) > Y(sb) ? X(sb) : Y(sb))
EACH(pmaxsw, sw, X(sw) > Y(sw) ? X(sw) : Y(sw))
EACH(pmaxsd, sd, X(sd) > Y(sd) ? X(sd) : Y(sd))
EACH(pmaxub, b, X(b) > Y(b) ? X(b) : Y(b))
EACH(pmaxuw, w, X(w) > Y(w) ? X(w) : Y(w))
EACH(pmaxud, d, X(d) > Y(d) ? X(d) : Y(d))
EACH(pmullw, w, (uint32_t)X(w) * Y(w))
EACH(pmulhw, sw, (X(sw) * Y(sw)) >> 16)
EACH(pmulhuw, w, ((uint32_t)X(w) * Y(w)) >> 16)
EACH(pmulhrsw, sw, ((X(sw) * Y(sw) >> 14) + 1) >> 1)
EACH(pmulld, d, X(d) * Y(d))
EACH(pmuludq, q, (X(q) & 0xffffffff) * (Y(q) & 0xffffffff))
EACH(pmuldq, sq, (int64_t)(int32_t)X(q) * (int32_t)Y(q))
EACH(pabsb, b, Y(sb) < 0 ? -Y(sb) : Y(sb))
EACH(pabsw, w, Y(sw) < 0 ? -Y(sw) : Y(sw))
EACH(pabsd, d, Y(sd) < 0 ? 0u - Y(d) : Y(d))
EACH(psignb, b, Y(sb) < 0 ? -X(b) : Y(sb) ? X(b) : 0)
EACH(psignw, w, Y(sw) < 0 ? -X(w) : Y(sw) ? X(w) : 0)
EACH(psignd, d, Y(sd) < 0 ? 0u - X(d) : Y(sd) ? X(d) : 0)
EACH(pmaddwd, d, (uint32_t)(a->sw[2 * i] * b->sw[2 * i]) +
                 (uint32_t)(a->sw[2 * i + 1] * b->sw[2 * i + 1]))
EACH(pmaddubsw, sw, word(a->b[2 * i] * b->sb[2 * i] + a->b[2 * i + 1] * b->sb[2 * i + 1]))
EACH(pshufb, b, Y(b) & 0x80 ? 0 : a->b[Y(b) & (n - 1)])
EACH(pshufd, d, b->d[imm >> 2 * i & 3])
EACH(pblendw, w, imm >> i & 1 ? Y(w) : X(w))
EACH(shufps, d, (i < 2 ? a : b)->d[imm >> 2 * i & 3])
EACH(shufpd, q, (i ? b : a)->q[imm >> i & 1])
EACH(vpermilps, d, a->d[Y(d) & 3])
EACH(vpermilpd, q, a->q[Y(q) >> 1 & 1])
EACH(permute_doubles, q, b->q[imm >> i & 1])

/* Element i of a horizontal operation: pairs of the first operand, then of the second. */
#define PAIR(field, k) (2 * i + k < COUNT(field) ? a->field[2 * i + k] \
                                                 : b->field[2 * i + k - COUNT(field)])
EACH(phaddw, w, PAIR(w, 0) + PAIR(w, 1))
EACH(phaddd, d, PAIR(d, 0) + PAIR(d, 1))
EACH(phaddsw, sw, word(PAIR(sw, 0) + PAIR(sw, 1)))
EACH(phsubw, w, PAIR(w, 0) - PAIR(w, 1))
EACH(phsubd, d, PAIR(d, 0) - PAIR(d, 1))
EACH(phsubsw, sw, word(PAIR(sw, 0) - PAIR(sw, 1)))

/* Element i of a pack: the first operand's elements, then the second's. */
#define PACKED(field) (i < COUNT(field) ? a->field[i] : b->field[i - COUNT(field)])
EACH(packsswb, sb, byte(PACKED(sw)))
EACH(packuswb, b, unsigned_byte(PACKED(sw)))
EACH(packssdw, sw, word(PACKED(sd)))
EACH(packusdw, w, unsigned_word(PACKED(sd)))

/* Element i of an interleave: of the low or the high halves, in turn. */
#define WOVEN(field, start) ((i & 1 ? b : a)->field[(start) + i / 2])
EACH(punpcklbw, b, WOVEN(b, 0))
EACH(punpcklwd, w, WOVEN(w, 0))
EACH(punpckldq, d, WOVEN(d, 0))
EACH(punpcklqdq, q, WOVEN(q, 0))
EACH(punpckhbw, b, WOVEN(b, COUNT(b) / 2))
EACH(punpckhwd, w, WOVEN(w, COUNT(w) / 2))
EACH(punpckhdq, d, WOVEN(d, COUNT(d) / 2))
EACH(punpckhqdq, q, WOVEN(q, COUNT(q) / 2))

LANE(pshuflw)
{
    (void)a, (void)n;
    r->q[1] = b->q[1];
    for (unsigned i = 0; i < 4; i++)
        r->w[i] = b->w[imm >> 2 * i & 3];
}

LANE(pshufhw)
{
    (void)a, (void)n;
    r->q[0] = b->q[0];
    for (unsigned i = 0; i < 4; i++)
        r->w[4 + i] = b->w[4 + (imm >> 2 * i & 3)];
}

LANE(psadbw)
{
    (void)imm;
    for (unsigned part = 0; part < n / 8; part++) {
        uint64_t sum = 0;
        for (unsigned i = 8 * part; i < 8 * part + 8; i++)
            sum += (uint64_t)(a->b[i] > b->b[i] ? a->b[i] - b->b[i] : b->b[i] - a->b[i]);
        r->q[part] = sum;
    }
}

LANE(palignr)
{
    for (unsigned i = 0; i < n; i++) {
        unsigned from = i + imm;
        r->b[i] = from < n ? b->b[from] : from < 2 * n ? a->b[from - n] : 0;
    }
}

LANE(phminposuw)
{
    (void)a, (void)imm, (void)n;
    unsigned least = 0;
    for (unsigned i = 1; i < 8; i++)
        if (b->w[i] < b->w[least])
            least = i;
    *r = (union lane){.w = {b->w[least], (uint16_t)least}};
}

/* Shifts by the low quadword of the second operand; too far leaves zero, or the sign. */
static uint64_t distance(const union lane *b, unsigned bits)
{
    return b->q[0] < bits ? b->q[0] : bits;
}

#define SHIFT(name, field, bits, operator) \
    LANE(name) \
    { \
        (void)imm; \
        uint64_t by = distance(b, bits); \
        for (unsigned i = 0; i < COUNT(field); i++) \
            r->field[i] = by < (bits) ? (__typeof__(r->field[0]))(a->field[i] operator by) : 0; \
    }
#define SHIFT_SIGNED(name, field, bits) \
    LANE(name) \
    { \
        (void)imm; \
        uint64_t by = distance(b, (bits) - 1); \
        for (unsigned i = 0; i < COUNT(field); i++) \
            r->field[i] = (__typeof__(r->field[0]))(a->field[i] >> by); \
    }
SHIFT(psllw, w, 16, <<)
SHIFT(pslld, d, 32, <<)
SHIFT(psllq, q, 64, <<)
SHIFT(psrlw, w, 16, >>)
SHIFT(psrld, d, 32, >>)
SHIFT(psrlq, q, 64, >>)
SHIFT_SIGNED(psraw, sw, 16)
SHIFT_SIGNED(psrad, sd, 32)

LANE(pslldq)
{
    (void)a;
    unsigned by = imm < n ? imm : n;
    for (unsigned i = 0; i < n; i++)
        r->b[i] = i < by ? 0 : b->b[i - by];
}

LANE(psrldq)
{
    (void)a;
    unsigned by = imm < n ? imm : n;
    for (unsigned i = 0; i < n; i++)
        r->b[i] = i + by < n ? b->b[i + by] : 0;
}

/* Dot products into the destination (AVX-VNNI): the third operand is `r` as it was. */
static int32_t sum_saturated(int64_t value)
{
    return value > INT32_MAX ? INT32_MAX : value < INT32_MIN ? INT32_MIN : (int32_t)value;
}

static int64_t bytes_dot(const union lane *a, const union lane *b, unsigned i)
{
    int64_t sum = 0;
    for (unsigned k = 4 * i; k < 4 * i + 4; k++)
        sum += a->b[k] * b->sb[k];
    return sum;
}

static int64_t words_dot(const union lane *a, const union lane *b, unsigned i)
{
    return (int64_t)a->sw[2 * i] * b->sw[2 * i] + (int64_t)a->sw[2 * i + 1] * b->sw[2 * i + 1];
}

EACH(vpdpbusd, d, r->d[i] + (uint32_t)bytes_dot(a, b, i))
EACH(vpdpbusds, sd, sum_saturated(r->sd[i] + bytes_dot(a, b, i)))
EACH(vpdpwssd, d, r->d[i] + (uint32_t)words_dot(a, b, i))
EACH(vpdpwssds, sd, sum_saturated(r->sd[i] + words_dot(a, b, i)))

#define OP(map, prefix, opcode, form, name, function) \
    {map, prefix, opcode, form, ISTHMUS_##name, function}
#define VEX(opcode, name, function) OP(MAP_0F, P66, opcode, F_V128 | F_V256, name, function)
#define FLOAT(opcode, name, singles, doubles) \
    OP(MAP_0F, NP, opcode, F_V128 | F_V256, name##PS, singles), \
        OP(MAP_0F, P66, opcode, F_V128 | F_V256, name##PD, doubles)
#define SSSE3(opcode, name, function) OP(MAP_0F38, P66, opcode, F_BOTH | F_MMX, name, function)
#define SSE41(opcode, name, function) OP(MAP_0F38, P66, opcode, F_BOTH, name, function)

static const struct lane_operation operations[] = {
    SSSE3(0x00, PSHUFB, pshufb), SSSE3(0x01, PHADDW, phaddw), SSSE3(0x02, PHADDD, phaddd),
    SSSE3(0x03, PHADDSW, phaddsw), SSSE3(0x04, PMADDUBSW, pmaddubsw),
    SSSE3(0x05, PHSUBW, phsubw), SSSE3(0x06, PHSUBD, phsubd), SSSE3(0x07, PHSUBSW, phsubsw),
    SSSE3(0x08, PSIGNB, psignb), SSSE3(0x09, PSIGNW, psignw), SSSE3(0x0a, PSIGND, psignd),
    SSSE3(0x0b, PMULHRSW, pmulhrsw),
    OP(MAP_0F38, P66, 0x1c, F_BOTH | F_MMX | F_UNARY, PABSB, pabsb),
    OP(MAP_0F38, P66, 0x1d, F_BOTH | F_MMX | F_UNARY, PABSW, pabsw),
    OP(MAP_0F38, P66, 0x1e, F_BOTH | F_MMX | F_UNARY, PABSD, pabsd),
    OP(MAP_0F3A, P66, 0x0f, F_BOTH | F_MMX | F_IMM, PALIGNR, palignr),
    SSE41(0x28, PMULDQ, pmuldq), SSE41(0x29, PCMPEQQ, pcmpeqq), SSE41(0x2b, PACKUSDW, packusdw),
    SSE41(0x37, PCMPGTQ, pcmpgtq), SSE41(0x38, PMINSB, pminsb), SSE41(0x39, PMINSD, pminsd),
    SSE41(0x3a, PMINUW, pminuw), SSE41(0x3b, PMINUD, pminud), SSE41(0x3c, PMAXSB, pmaxsb),
    SSE41(0x3d, PMAXSD, pmaxsd), SSE41(0x3e, PMAXUW, pmaxuw), SSE41(0x3f, PMAXUD, pmaxud),
    SSE41(0x40, PMULLD, pmulld),
    OP(MAP_0F38, P66, 0x41, F_LEGACY | F_V128 | F_UNARY, PHMINPOSUW, phminposuw),
    OP(MAP_0F3A, P66, 0x0e, F_BOTH | F_IMM, PBLENDW, pblendw),
    VEX(0x60, PUNPCKLBW, punpcklbw), VEX(0x61, PUNPCKLWD, punpcklwd),
    VEX(0x62, PUNPCKLDQ, punpckldq), VEX(0x63, PACKSSWB, packsswb),
    VEX(0x64, PCMPGTB, pcmpgtb), VEX(0x65, PCMPGTW, pcmpgtw), VEX(0x66, PCMPGTD, pcmpgtd),
    VEX(0x67, PACKUSWB, packuswb), VEX(0x68, PUNPCKHBW, punpckhbw),
    VEX(0x69, PUNPCKHWD, punpckhwd), VEX(0x6a, PUNPCKHDQ, punpckhdq),
    VEX(0x6b, PACKSSDW, packssdw), VEX(0x6c, PUNPCKLQDQ, punpcklqdq),
    VEX(0x6d, PUNPCKHQDQ, punpckhqdq),
    OP(MAP_0F, P66, 0x70, F_V128 | F_V256 | F_UNARY | F_IMM, PSHUFD, pshufd),
    OP(MAP_0F, PF3, 0x70, F_V128 | F_V256 | F_UNARY | F_IMM, PSHUFHW, pshufhw),
    OP(MAP_0F, PF2, 0x70, F_V128 | F_V256 | F_UNARY | F_IMM, PSHUFLW, pshuflw),
    VEX(0x74, PCMPEQB, pcmpeqb), VEX(0x75, PCMPEQW, pcmpeqw), VEX(0x76, PCMPEQD, pcmpeqd),
    VEX(0xd4, PADDQ, paddq), VEX(0xd5, PMULLW, pmullw), VEX(0xd8, PSUBUSB, psubusb),
    VEX(0xd9, PSUBUSW, psubusw), VEX(0xda, PMINUB, pminub), VEX(0xdb, PAND, pand),
    VEX(0xdc, PADDUSB, paddusb), VEX(0xdd, PADDUSW, paddusw), VEX(0xde, PMAXUB, pmaxub),
    VEX(0xdf, PANDN, pandn), VEX(0xe0, PAVGB, pavgb), VEX(0xe3, PAVGW, pavgw),
    VEX(0xe4, PMULHUW, pmulhuw), VEX(0xe5, PMULHW, pmulhw), VEX(0xe8, PSUBSB, psubsb),
    VEX(0xe9, PSUBSW, psubsw), VEX(0xea, PMINSW, pminsw), VEX(0xeb, POR, por),
    VEX(0xec, PADDSB, paddsb), VEX(0xed, PADDSW, paddsw), VEX(0xee, PMAXSW, pmaxsw),
    VEX(0xef, PXOR, pxor), VEX(0xf4, PMULUDQ, pmuludq), VEX(0xf5, PMADDWD, pmaddwd),
    VEX(0xf6, PSADBW, psadbw), VEX(0xf8, PSUBB, psubb), VEX(0xf9, PSUBW, psubw),
    VEX(0xfa, PSUBD, psubd), VEX(0xfb, PSUBQ, psubq), VEX(0xfc, PADDB, paddb),
    VEX(0xfd, PADDW, paddw), VEX(0xfe, PADDD, paddd),
    FLOAT(0x14, UNPCKL, punpckldq, punpcklqdq), FLOAT(0x15, UNPCKH, punpckhdq, punpckhqdq),
    FLOAT(0x54, AND, pand, pand), FLOAT(0x55, ANDN, pandn, pandn), FLOAT(0x56, OR, por, por),
    FLOAT(0x57, XOR, pxor, pxor),
    OP(MAP_0F, NP, 0xc6, F_V128 | F_V256 | F_IMM, SHUFPS, shufps),
    OP(MAP_0F, P66, 0xc6, F_V128 | F_V256 | F_IMM | F_IMM_PAIR, SHUFPD, shufpd),
    OP(MAP_0F38, P66, 0x0c, F_V128 | F_V256 | F_W0, VPERMILPS, vpermilps),
    OP(MAP_0F38, P66, 0x0d, F_V128 | F_V256 | F_W0, VPERMILPD, vpermilpd),
    OP(MAP_0F3A, P66, 0x04, F_V128 | F_V256 | F_W0 | F_UNARY | F_IMM, VPERMILPS, pshufd),
    OP(MAP_0F3A, P66, 0x05, F_V128 | F_V256 | F_W0 | F_UNARY | F_IMM | F_IMM_PAIR, VPERMILPD,
       permute_doubles),
    OP(MAP_0F38, P66, 0x50, F_V128 | F_V256 | F_W0, VPDPBUSD, vpdpbusd),
    OP(MAP_0F38, P66, 0x51, F_V128 | F_V256 | F_W0, VPDPBUSDS, vpdpbusds),
    OP(MAP_0F38, P66, 0x52, F_V128 | F_V256 | F_W0, VPDPWSSD, vpdpwssd),
    OP(MAP_0F38, P66, 0x53, F_V128 | F_V256 | F_W0, VPDPWSSDS, vpdpwssds),
};

/* Shifts of a whole vector, VEX forms: by an XMM register or 16 bytes of memory (D1 …), or by an
 * immediate (71 to 73, VEX.vvvv is the destination). */
struct shift {
    uint8_t opcode, group, extension;
    uint16_t mnemonic;
    lane_function *run;
};

static const struct shift shifts[] = {
    {0xd1, 0x71, 2, ISTHMUS_PSRLW, psrlw}, {0xe1, 0x71, 4, ISTHMUS_PSRAW, psraw},
    {0xf1, 0x71, 6, ISTHMUS_PSLLW, psllw}, {0xd2, 0x72, 2, ISTHMUS_PSRLD, psrld},
    {0xe2, 0x72, 4, ISTHMUS_PSRAD, psrad}, {0xf2, 0x72, 6, ISTHMUS_PSLLD, pslld},
    {0xd3, 0x73, 2, ISTHMUS_PSRLQ, psrlq}, {0xf3, 0x73, 6, ISTHMUS_PSLLQ, psllq},
    {0, 0x73, 3, ISTHMUS_PSRLDQ, psrldq},  {0, 0x73, 7, ISTHMUS_PSLLDQ, pslldq},
};

static void run_shift(struct instruction *insn, const struct shift *shift, bool immediate)
{
    struct vector from, by = {0}, result = {0};
    name_it(insn, shift->mnemonic | ISTHMUS_VEX_FORM);
    if (!vex_usable(insn))
        return;
    if (immediate)
        by.lane[0].q[0] = insn->immediate;
    else if (!load_vector(insn, &by, 16, false))
        return;
    get_vector(insn, immediate ? insn->rm : insn->vvvv, &from);
    for (unsigned i = 0; i < vector_bytes(insn) / 16; i++) {
        if (shift->opcode)
            shift->run(&result.lane[i], &from.lane[i], &by.lane[0], 0, 16);
        else
            shift->run(&result.lane[i], &from.lane[i], &from.lane[i], insn->immediate, 16);
    }
    set_vector(insn, immediate ? insn->vvvv : insn->reg, &result);
    finish(insn, shift->mnemonic | ISTHMUS_VEX_FORM);
}

static bool execute_shifts(struct instruction *insn)
{
    if (!insn->vex || insn->map != MAP_0F || insn->prefix != P66)
        return false;
    struct instruction attempt = *insn;
    for (size_t i = 0; i < sizeof shifts / sizeof *shifts; i++) {
        const struct shift *shift = &shifts[i];
        bool immediate = insn->opcode == shift->group;
        if (!immediate && (!shift->opcode || insn->opcode != shift->opcode))
            continue;
        attempt = *insn;
        if (!decode_operands(&attempt))
            break;
        if (immediate && ((attempt.reg & 7) != shift->extension || attempt.is_memory))
            continue;
        if (immediate)
            attempt.immediate = take_byte(&attempt);
        *insn = attempt;
        if (attempt.ended)
            decline(insn);
        else
            run_shift(insn, shift, immediate);
        return true;
    }
    insn->ended = attempt.ended;
    return attempt.ended;
}

bool execute_integer(struct instruction *insn)
{
    return execute_lanes(insn, operations, sizeof operations / sizeof *operations) ||
           execute_shifts(insn);
}
