/* SPDX-License-Identifier: Apache-2.0 OR GPL-2.0-only */
/* AES-NI, PCLMULQDQ, SHA and GFNI, with VAES and VPCLMULQDQ as their 256-bit forms.
 * Sources: Intel SDM vol. 2 and vol. 1, 12.13; FIPS 197; FIPS 180-4; Intel, "Galois Field New
 * Instructions" (644497).  The fields' inverses are computed, not looked up: no table to leak. */
#include "vector.h"

#define LANE(name) \
    static void name(union lane *r, const union lane *a, const union lane *b, unsigned imm, \
                     unsigned n)

/* Multiplication in GF(2^8) modulo x^8 + x^4 + x^3 + x + 1. */
static uint8_t gf_times(uint8_t a, uint8_t b)
{
    unsigned product = 0;
    for (unsigned i = 0; i < 8; i++)
        product ^= (unsigned)(-(b >> i & 1) & (a << i));
    for (unsigned i = 15; i >= 8; i--)
        product ^= (unsigned)(-(int)(product >> i & 1) & (0x11b << (i - 8)));
    return (uint8_t)product;
}

/* a^254: the inverse, and 0 for 0. */
static uint8_t gf_inverse(uint8_t a)
{
    uint8_t square = gf_times(a, a), result = square;
    for (unsigned i = 0; i < 6; i++) {
        square = gf_times(square, square);
        result = gf_times(result, square);
    }
    return result;
}

static uint8_t rotated(uint8_t a, unsigned by) { return (uint8_t)(a << by | a >> (8 - by)); }

static uint8_t sub_byte(uint8_t a)
{
    uint8_t i = gf_inverse(a);
    return i ^ rotated(i, 1) ^ rotated(i, 2) ^ rotated(i, 3) ^ rotated(i, 4) ^ 0x63;
}

static uint8_t unsub_byte(uint8_t a)
{
    return gf_inverse((uint8_t)(rotated(a, 1) ^ rotated(a, 3) ^ rotated(a, 6) ^ 0x05));
}

static void mix(union lane *r, uint8_t m0, uint8_t m1, uint8_t m2, uint8_t m3)
{
    for (unsigned column = 0; column < 16; column += 4) {
        uint8_t in[4];
        for (unsigned i = 0; i < 4; i++)
            in[i] = r->b[column + i];
        for (unsigned i = 0; i < 4; i++)
            r->b[column + i] = gf_times(in[i], m0) ^ gf_times(in[(i + 1) & 3], m1) ^
                               gf_times(in[(i + 2) & 3], m2) ^ gf_times(in[(i + 3) & 3], m3);
    }
}

LANE(aesenclast)
{
    (void)imm, (void)n;
    for (unsigned i = 0; i < 16; i++)
        r->b[i] = sub_byte(a->b[(i + 4 * (i & 3)) & 15]) ^ b->b[i];
}

LANE(aesenc)
{
    (void)imm, (void)n;
    for (unsigned i = 0; i < 16; i++)
        r->b[i] = sub_byte(a->b[(i + 4 * (i & 3)) & 15]);
    mix(r, 2, 3, 1, 1);
    for (unsigned i = 0; i < 16; i++)
        r->b[i] ^= b->b[i];
}

LANE(aesdeclast)
{
    (void)imm, (void)n;
    for (unsigned i = 0; i < 16; i++)
        r->b[i] = unsub_byte(a->b[(i - 4 * (i & 3)) & 15]) ^ b->b[i];
}

LANE(aesdec)
{
    (void)imm, (void)n;
    for (unsigned i = 0; i < 16; i++)
        r->b[i] = unsub_byte(a->b[(i - 4 * (i & 3)) & 15]);
    mix(r, 14, 11, 13, 9);
    for (unsigned i = 0; i < 16; i++)
        r->b[i] ^= b->b[i];
}

LANE(aesimc)
{
    (void)a, (void)imm, (void)n;
    *r = *b;
    mix(r, 14, 11, 13, 9);
}

LANE(aeskeygenassist)
{
    (void)a, (void)n;
    for (unsigned part = 0; part < 2; part++) {
        uint32_t word = b->d[2 * part + 1], substituted = 0;
        for (unsigned i = 0; i < 4; i++)
            substituted |= (uint32_t)sub_byte((uint8_t)(word >> 8 * i)) << 8 * i;
        r->d[2 * part] = substituted;
        r->d[2 * part + 1] = (substituted >> 8 | substituted << 24) ^ (imm & 0xff);
    }
}

LANE(pclmulqdq)
{
    (void)n;
    uint64_t x = a->q[imm & 1], y = b->q[imm >> 4 & 1], low = 0, high = 0;
    for (unsigned i = 0; i < 64; i++) {
        uint64_t mask = -(y >> i & 1);
        low ^= mask & x << i;
        high ^= i ? mask & x >> (64 - i) : 0;
    }
    r->q[0] = low;
    r->q[1] = high;
}

LANE(gf2p8mulb)
{
    (void)imm, (void)n;
    for (unsigned i = 0; i < 16; i++)
        r->b[i] = gf_times(a->b[i], b->b[i]);
}

static uint8_t affine(uint64_t matrix, uint8_t x, unsigned constant)
{
    unsigned result = 0;
    for (unsigned i = 0; i < 8; i++) {
        unsigned row = (unsigned)(matrix >> 8 * (7 - i)) & x;
        row ^= row >> 4;
        row ^= row >> 2;
        row ^= row >> 1;
        result |= ((row & 1) ^ (constant >> i & 1)) << i;
    }
    return (uint8_t)result;
}

LANE(gf2p8affineqb)
{
    (void)n;
    for (unsigned i = 0; i < 16; i++)
        r->b[i] = affine(b->q[i / 8], a->b[i], imm);
}

LANE(gf2p8affineinvqb)
{
    (void)n;
    for (unsigned i = 0; i < 16; i++)
        r->b[i] = affine(b->q[i / 8], gf_inverse(a->b[i]), imm);
}

static uint32_t rotate(uint32_t x, unsigned by) { return x << by | x >> (32 - by); }

LANE(sha1nexte)
{
    (void)imm, (void)n;
    *r = *b;
    r->d[3] += rotate(a->d[3], 30);
}

LANE(sha1msg1)
{
    (void)imm, (void)n;
    r->d[3] = a->d[1] ^ a->d[3];
    r->d[2] = a->d[0] ^ a->d[2];
    r->d[1] = b->d[3] ^ a->d[1];
    r->d[0] = b->d[2] ^ a->d[0];
}

LANE(sha1msg2)
{
    (void)imm, (void)n;
    uint32_t w16 = rotate(a->d[3] ^ b->d[2], 1);
    r->d[3] = w16;
    r->d[2] = rotate(a->d[2] ^ b->d[1], 1);
    r->d[1] = rotate(a->d[1] ^ b->d[0], 1);
    r->d[0] = rotate(a->d[0] ^ w16, 1);
}

LANE(sha1rnds4)
{
    (void)n;
    static const uint32_t constants[4] = {0x5a827999, 0x6ed9eba1, 0x8f1bbcdc, 0xca62c1d6};
    uint32_t x = a->d[3], y = a->d[2], z = a->d[1], t = a->d[0], e = 0;
    unsigned kind = imm & 3;
    for (unsigned i = 0; i < 4; i++) {
        uint32_t f = kind == 0   ? (y & z) ^ (~y & t)
                     : kind == 2 ? (y & z) ^ (y & t) ^ (z & t)
                                 : y ^ z ^ t;
        /* The first word comes with E added already (SHA1NEXTE). */
        uint32_t next = f + rotate(x, 5) + b->d[3 - i] + constants[kind] + (i ? e : 0);
        e = t;
        t = z;
        z = rotate(y, 30);
        y = x;
        x = next;
    }
    r->d[3] = x;
    r->d[2] = y;
    r->d[1] = z;
    r->d[0] = t;
}

static uint32_t small_sigma0(uint32_t x) { return rotate(x, 25) ^ rotate(x, 14) ^ x >> 3; }
static uint32_t small_sigma1(uint32_t x) { return rotate(x, 15) ^ rotate(x, 13) ^ x >> 10; }

LANE(sha256msg1)
{
    (void)imm, (void)n;
    for (unsigned i = 0; i < 4; i++)
        r->d[i] = a->d[i] + small_sigma0(i < 3 ? a->d[i + 1] : b->d[0]);
}

LANE(sha256msg2)
{
    (void)imm, (void)n;
    r->d[0] = a->d[0] + small_sigma1(b->d[2]);
    r->d[1] = a->d[1] + small_sigma1(b->d[3]);
    r->d[2] = a->d[2] + small_sigma1(r->d[0]);
    r->d[3] = a->d[3] + small_sigma1(r->d[1]);
}

/* Two rounds on C D G H (a) and A B E F (b), with the words of XMM0. */
static void sha256rnds2(union lane *r, const union lane *cdgh, const union lane *abef,
                        const union lane *words)
{
    uint32_t a = abef->d[3], b = abef->d[2], c = cdgh->d[3], d = cdgh->d[2];
    uint32_t e = abef->d[1], f = abef->d[0], g = cdgh->d[1], h = cdgh->d[0];
    for (unsigned i = 0; i < 2; i++) {
        uint32_t one = ((e & f) ^ (~e & g)) + (rotate(e, 26) ^ rotate(e, 21) ^ rotate(e, 7)) +
                       words->d[i] + h;
        uint32_t two = ((a & b) ^ (a & c) ^ (b & c)) +
                       (rotate(a, 30) ^ rotate(a, 19) ^ rotate(a, 10));
        h = g;
        g = f;
        f = e;
        e = d + one;
        d = c;
        c = b;
        b = a;
        a = one + two;
    }
    r->d[3] = a;
    r->d[2] = b;
    r->d[1] = e;
    r->d[0] = f;
}

static void execute_sha256rnds2(struct instruction *insn)
{
    struct vector a, b, words, result;
    name_it(insn, ISTHMUS_SHA256RNDS2);
    if (!sse_usable(insn) || !load_vector(insn, &b, 16, false))
        return;
    get_vector(insn, insn->reg, &a);
    get_vector(insn, 0, &words);
    sha256rnds2(&result.lane[0], &a.lane[0], &b.lane[0], &words.lane[0]);
    set_vector(insn, insn->reg, &result);
    finish(insn, ISTHMUS_SHA256RNDS2);
}

#define OP(map, prefix, opcode, form, name, function) \
    {map, prefix, opcode, form, ISTHMUS_##name, function}

/* SHA's memory operand may be unaligned on AMD's CPUs (seen on a Zen 5), where Intel's raise #GP (SDM,
 * exception class 4): what ran at home runs here. */
static const struct lane_operation operations[] = {
    OP(MAP_0F38, P66, 0xdb, F_LEGACY | F_V128 | F_UNARY, AESIMC, aesimc),
    OP(MAP_0F38, P66, 0xdc, F_BOTH, AESENC, aesenc),
    OP(MAP_0F38, P66, 0xdd, F_BOTH, AESENCLAST, aesenclast),
    OP(MAP_0F38, P66, 0xde, F_BOTH, AESDEC, aesdec),
    OP(MAP_0F38, P66, 0xdf, F_BOTH, AESDECLAST, aesdeclast),
    OP(MAP_0F3A, P66, 0xdf, F_LEGACY | F_V128 | F_UNARY | F_IMM, AESKEYGENASSIST, aeskeygenassist),
    OP(MAP_0F3A, P66, 0x44, F_BOTH | F_IMM, PCLMULQDQ, pclmulqdq),
    OP(MAP_0F38, P66, 0xcf, F_BOTH | F_W0, GF2P8MULB, gf2p8mulb),
    OP(MAP_0F3A, P66, 0xce, F_BOTH | F_IMM | F_W1, GF2P8AFFINEQB, gf2p8affineqb),
    OP(MAP_0F3A, P66, 0xcf, F_BOTH | F_IMM | F_W1, GF2P8AFFINEINVQB, gf2p8affineinvqb),
    OP(MAP_0F38, NP, 0xc8, F_LEGACY | F_LOOSE, SHA1NEXTE, sha1nexte),
    OP(MAP_0F38, NP, 0xc9, F_LEGACY | F_LOOSE, SHA1MSG1, sha1msg1),
    OP(MAP_0F38, NP, 0xca, F_LEGACY | F_LOOSE, SHA1MSG2, sha1msg2),
    OP(MAP_0F38, NP, 0xcc, F_LEGACY | F_LOOSE, SHA256MSG1, sha256msg1),
    OP(MAP_0F38, NP, 0xcd, F_LEGACY | F_LOOSE, SHA256MSG2, sha256msg2),
    OP(MAP_0F3A, NP, 0xcc, F_LEGACY | F_LOOSE | F_IMM, SHA1RNDS4, sha1rnds4),
};

bool execute_crypto(struct instruction *insn)
{
    if (!insn->vex && insn->map == MAP_0F38 && insn->opcode == 0xcb && insn->prefix == NP) {
        if (decode_operands(insn))
            execute_sha256rnds2(insn);
        else
            decline(insn);
        return true;
    }
    return execute_lanes(insn, operations, sizeof operations / sizeof *operations);
}
