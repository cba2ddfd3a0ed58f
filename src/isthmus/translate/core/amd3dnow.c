/* SPDX-License-Identifier: Apache-2.0 OR GPL-2.0-only */
/* 3DNow! and its extensions: FEMMS (0F 0E) and 0F 0F /r suffix.
 *
 * Sources: AMD 3DNow! Technology Manual (21928), AMD Extensions to the 3DNow! and MMX Instruction
 * Sets (22466), AMD APM vol. 5.  The arithmetic is done on integers, since the core may run where
 * floating point may not be used.  As the manuals say: one rounding mode (to nearest even), no
 * exceptions, denormals read and written as zero, overflow gives the largest normal number.
 * Infinities and NaNs are unsupported operands with undefined results there; here their
 * exponent is taken as if it were an ordinary one.
 *
 * PFRCP and PFRSQRT give the correctly rounded value, where silicon gives 14 or 15 bits; the
 * refinement steps then have nothing left to refine and return the estimate, as in QEMU.
 */
#include "instruction.h"

enum { BIAS = 127, SIGN = 31, FRACTION = 23 };
static const uint32_t SIGN_BIT = UINT32_C(1) << SIGN;
static const uint32_t LARGEST = UINT32_C(0x7f7fffff);

struct number {
    bool negative;
    int exponent;         /* of the fraction's top bit */
    uint64_t fraction;    /* 0, or 24 bits with the top one set */
};

static struct number unpack(uint32_t bits)
{
    struct number number = {.negative = bits >> SIGN, .exponent = (int)(bits >> FRACTION & 0xff)};
    if (number.exponent)
        number.fraction = (bits & 0x7fffff) | 0x800000;
    return number;
}

/* Round `fraction` * 2^`scale` to single precision; a set low bit may stand for all below it. */
static uint32_t pack(bool negative, uint64_t fraction, int scale)
{
    uint32_t sign = negative ? SIGN_BIT : 0;
    if (!fraction)
        return sign;
    int top = 63;
    while (!(fraction >> top))
        top--;
    int excess = top - FRACTION;
    if (excess > 0) {
        uint64_t half = UINT64_C(1) << (excess - 1), rest = fraction & (2 * half - 1);
        fraction >>= excess;
        if (rest > half || (rest == half && (fraction & 1)))
            fraction++;
        if (fraction >> (FRACTION + 1)) {
            fraction >>= 1;
            excess++;
        }
    } else {
        fraction <<= -excess;
    }
    int exponent = scale + excess + FRACTION + BIAS;
    if (exponent <= 0)
        return sign;
    if (exponent >= 255)
        return sign | LARGEST;
    return sign | (uint32_t)exponent << FRACTION | ((uint32_t)fraction & 0x7fffff);
}

static uint32_t add(uint32_t left, uint32_t right)
{
    struct number a = unpack(left), b = unpack(right);
    if (!a.fraction && !b.fraction)
        return a.negative && b.negative ? SIGN_BIT : 0;
    if (!b.fraction)
        return left;
    if (!a.fraction)
        return right;
    if (a.exponent < b.exponent || (a.exponent == b.exponent && a.fraction < b.fraction)) {
        struct number swap = a;
        a = b;
        b = swap;
    }
    int distance = a.exponent - b.exponent;
    uint64_t high = a.fraction << 36, low = b.fraction << 36, sum;
    if (distance > 50)
        low = 1;
    else if (distance)
        low = low >> distance | ((low & ((UINT64_C(1) << distance) - 1)) != 0);
    sum = a.negative == b.negative ? high + low : high - low;
    if (!sum)
        return 0;
    return pack(a.negative, sum, a.exponent - BIAS - FRACTION - 36);
}

static uint32_t negated(uint32_t value)
{
    return value ^ SIGN_BIT;
}

static uint32_t multiply(uint32_t left, uint32_t right)
{
    struct number a = unpack(left), b = unpack(right);
    return pack(a.negative != b.negative, a.fraction * b.fraction,
                a.exponent + b.exponent - 2 * (BIAS + FRACTION));
}

static uint32_t reciprocal(uint32_t value)
{
    struct number a = unpack(value);
    if (!a.fraction)
        return (value & SIGN_BIT) | LARGEST;
    uint64_t numerator = UINT64_C(1) << 62;
    uint64_t quotient = numerator / a.fraction;
    quotient = quotient << 1 | (numerator % a.fraction != 0);
    return pack(a.negative, quotient, -63 - (a.exponent - BIAS - FRACTION));
}

static uint32_t reciprocal_root(uint32_t value)
{
    struct number a = unpack(value);
    if (!a.fraction)
        return (value & SIGN_BIT) | LARGEST;
    /* value = m * 4^k with m of 24 or 25 bits; the root's 32 bits r are the largest with
     * r^2 * m <= 2^86, so that 1/sqrt(m) = r / 2^43. */
    int exponent = a.exponent - BIAS - FRACTION;
    uint64_t m = a.fraction;
    if (exponent & 1) {
        m <<= 1;
        exponent--;
    }
    const unsigned __int128 bound = (unsigned __int128)1 << 86;
    uint64_t root = 0;
    for (int bit = 32; bit >= 0; bit--) {
        uint64_t attempt = root | UINT64_C(1) << bit;
        if ((unsigned __int128)attempt * attempt * m <= bound)
            root = attempt;
    }
    bool exact = (unsigned __int128)root * root * m == bound;
    return pack(a.negative, root << 1 | !exact, -44 - exponent / 2);
}

/* Order of two numbers: negative, zero or positive; both zeros are equal. */
static int compare(uint32_t left, uint32_t right)
{
    struct number a = unpack(left), b = unpack(right);
    int64_t x = a.fraction ? (int64_t)(left & ~SIGN_BIT) : 0;
    int64_t y = b.fraction ? (int64_t)(right & ~SIGN_BIT) : 0;
    x = a.negative ? -x : x;
    y = b.negative ? -y : y;
    return x < y ? -1 : x > y;
}

static uint32_t without_negative_zero(uint32_t value)
{
    return unpack(value).fraction ? value : 0;
}

/* Truncate to a signed integer of `bits` bits, saturating. */
static uint32_t to_integer(uint32_t value, unsigned bits)
{
    struct number a = unpack(value);
    int64_t limit = INT64_C(1) << (bits - 1), result;
    int shift = a.exponent - BIAS - FRACTION;
    if (shift > 31)
        result = limit;
    else
        result = shift >= 0 ? (int64_t)(a.fraction << shift)
               : shift > -64 ? (int64_t)(a.fraction >> -shift) : 0;
    if (a.negative)
        result = result > limit ? -limit : -result;
    else if (result >= limit)
        result = limit - 1;
    return (uint32_t)result;
}

/* Integers that do not fit 24 bits are truncated (22466, PI2FD). */
static uint32_t from_integer(int32_t value)
{
    uint64_t magnitude = value < 0 ? (uint64_t)-(int64_t)value : (uint64_t)value;
    int scale = 0;
    while (magnitude >> (FRACTION + 1)) {
        magnitude >>= 1;
        scale++;
    }
    return pack(value < 0 && magnitude, magnitude, scale);
}

struct operation {
    uint8_t suffix;
    uint8_t mnemonic;
};

static const struct operation operations[] = {
    {0x0c, ISTHMUS_PI2FW},    {0x0d, ISTHMUS_PI2FD},    {0x1c, ISTHMUS_PF2IW},
    {0x1d, ISTHMUS_PF2ID},    {0x8a, ISTHMUS_PFNACC},   {0x8e, ISTHMUS_PFPNACC},
    {0x90, ISTHMUS_PFCMPGE},  {0x94, ISTHMUS_PFMIN},    {0x96, ISTHMUS_PFRCP},
    {0x97, ISTHMUS_PFRSQRT},  {0x9a, ISTHMUS_PFSUB},    {0x9e, ISTHMUS_PFADD},
    {0xa0, ISTHMUS_PFCMPGT},  {0xa4, ISTHMUS_PFMAX},    {0xa6, ISTHMUS_PFRCPIT1},
    {0xa7, ISTHMUS_PFRSQIT1}, {0xaa, ISTHMUS_PFSUBR},   {0xae, ISTHMUS_PFACC},
    {0xb0, ISTHMUS_PFCMPEQ},  {0xb4, ISTHMUS_PFMUL},    {0xb6, ISTHMUS_PFRCPIT2},
    {0xb7, ISTHMUS_PMULHRW},  {0xbb, ISTHMUS_PSWAPD},   {0xbf, ISTHMUS_PAVGUSB},
};

static uint32_t mnemonic_of(uint8_t suffix)
{
    for (size_t i = 0; i < sizeof operations / sizeof *operations; i++)
        if (operations[i].suffix == suffix)
            return operations[i].mnemonic;
    return ISTHMUS_NONE;
}

/* The operations that treat both halves alike. */
static uint32_t each_half(uint32_t mnemonic, uint32_t d, uint32_t s)
{
    switch (mnemonic) {
    case ISTHMUS_PI2FW: return from_integer((int16_t)(uint16_t)s);
    case ISTHMUS_PI2FD: return from_integer((int32_t)s);
    case ISTHMUS_PF2IW: return to_integer(s, 16);
    case ISTHMUS_PF2ID: return to_integer(s, 32);
    case ISTHMUS_PFCMPGE: return compare(d, s) >= 0 ? ~UINT32_C(0) : 0;
    case ISTHMUS_PFCMPGT: return compare(d, s) > 0 ? ~UINT32_C(0) : 0;
    case ISTHMUS_PFCMPEQ: return compare(d, s) == 0 ? ~UINT32_C(0) : 0;
    case ISTHMUS_PFMIN: return without_negative_zero(compare(s, d) < 0 ? s : d);
    case ISTHMUS_PFMAX: return without_negative_zero(compare(s, d) > 0 ? s : d);
    case ISTHMUS_PFADD: return add(d, s);
    case ISTHMUS_PFSUB: return add(d, negated(s));
    case ISTHMUS_PFSUBR: return add(s, negated(d));
    case ISTHMUS_PFMUL: return multiply(d, s);
    default: return s; /* PFRCPIT1, PFRCPIT2, PFRSQIT1: see the top of this file */
    }
}

static uint64_t multiply_words(uint64_t d, uint64_t s)
{
    uint64_t result = 0;
    for (unsigned i = 0; i < 64; i += 16) {
        int32_t product = (int16_t)(uint16_t)(d >> i) * (int16_t)(uint16_t)(s >> i);
        result |= (uint64_t)(((uint32_t)product + 0x8000u) >> 16 & 0xffff) << i;
    }
    return result;
}

static uint64_t average_bytes(uint64_t d, uint64_t s)
{
    uint64_t result = 0;
    for (unsigned i = 0; i < 64; i += 8)
        result |= (((d >> i & 0xff) + (s >> i & 0xff) + 1) >> 1) << i;
    return result;
}

static uint64_t halves(uint32_t low, uint32_t high)
{
    return (uint64_t)high << 32 | low;
}

static uint64_t compute(uint32_t mnemonic, uint64_t d, uint64_t s)
{
    uint32_t d0 = (uint32_t)d, d1 = (uint32_t)(d >> 32), s0 = (uint32_t)s, s1 = (uint32_t)(s >> 32);
    switch (mnemonic) {
    case ISTHMUS_PFACC: return halves(add(d0, d1), add(s0, s1));
    case ISTHMUS_PFNACC: return halves(add(d0, negated(d1)), add(s0, negated(s1)));
    case ISTHMUS_PFPNACC: return halves(add(d0, negated(d1)), add(s0, s1));
    case ISTHMUS_PFRCP: return halves(reciprocal(s0), reciprocal(s0));
    case ISTHMUS_PFRSQRT: return halves(reciprocal_root(s0), reciprocal_root(s0));
    case ISTHMUS_PMULHRW: return multiply_words(d, s);
    case ISTHMUS_PAVGUSB: return average_bytes(d, s);
    case ISTHMUS_PSWAPD: return halves(s1, s0);
    default: return halves(each_half(mnemonic, d0, s0), each_half(mnemonic, d1, s1));
    }
}

static uint64_t quad(const uint8_t bytes[8])
{
    uint64_t value = 0;
    for (unsigned i = 0; i < 8; i++)
        value |= (uint64_t)bytes[i] << (8 * i);
    return value;
}

static void execute_femms(struct instruction *insn)
{
    name_it(insn, ISTHMUS_FEMMS);
    if (insn->repeat || insn->operand_size) {
        decline(insn);
    } else if (mmx_usable(insn)) {
        insn->outcome->touched |= ISTHMUS_EMPTIED_MMX;
        finish(insn, ISTHMUS_FEMMS);
    }
}

bool execute_3dnow(struct instruction *insn)
{
    if (insn->map != MAP_0F || (insn->opcode & 0xfe) != 0x0e)
        return false;
    if (insn->opcode == 0x0e) {
        execute_femms(insn);
        return true;
    }
    if (!decode_operands(insn)) {
        decline(insn);
        return true;
    }
    uint32_t mnemonic = mnemonic_of(take_byte(insn));
    if (insn->ended || mnemonic == ISTHMUS_NONE || insn->repeat || insn->operand_size) {
        decline(insn);
        return true;
    }
    name_it(insn, mnemonic);
    uint8_t source[8], *target = insn->machine->mmx[insn->reg & 7]; /* REX does not reach MMX */
    if (!mmx_usable(insn))
        return true;
    if (!insn->is_memory) {
        for (unsigned i = 0; i < 8; i++)
            source[i] = insn->machine->mmx[insn->rm & 7][i];
    } else if (!load(insn, source, 8)) {
        return true;
    }
    uint64_t result = compute(mnemonic, quad(target), quad(source));
    for (unsigned i = 0; i < 8; i++)
        target[i] = (uint8_t)(result >> (8 * i));
    insn->outcome->mmx_written |= 1u << (insn->reg & 7);
    insn->outcome->touched |= ISTHMUS_WROTE_MMX;
    finish(insn, mnemonic);
    return true;
}
