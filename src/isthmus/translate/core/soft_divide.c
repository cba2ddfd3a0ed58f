/* SPDX-License-Identifier: Apache-2.0 OR GPL-2.0-only */
/* Division and square root, bit by bit: a kernel has no division of 128 bits.
 * Sources: Intel SDM vol. 1, 4.9 (exceptions and their order) and 11.5; vol. 2B, RCPPS and RSQRTPS
 * (their special values). */
#include "soft_number.h"

uint64_t soft_divide(struct soft *soft, const struct format *f, uint64_t x, uint64_t y)
{
    bool daz = soft->mxcsr & MXCSR_DAZ;
    const uint64_t bits[2] = {x, y};
    struct number n[2] = {soft_unpack(f, x, daz), soft_unpack(f, y, daz)};
    uint64_t nan = soft_first_nan(soft, f, bits, n, 2);
    if (nan)
        return nan;
    uint64_t sign = n[0].negative != n[1].negative ? sign_bit(f) : 0;
    if (n[0].class == n[1].class && n[0].class != NUMBER) { /* 0/0, infinite/infinite */
        soft->raised |= FLAG_IE;
        return default_nan(f);
    }
    if (n[1].class == ZERO && n[0].class == NUMBER) {
        soft->raised |= FLAG_ZE;
        return sign | exponents(f);
    }
    if (n[0].denormal || n[1].denormal)
        soft->raised |= FLAG_DE;
    if (n[0].class == INFINITE || n[1].class == ZERO)
        return sign | exponents(f);
    if (n[0].class == ZERO || n[1].class == INFINITE)
        return sign;
    int exponent = n[0].exponent - n[1].exponent;
    wide rest = n[0].digits;
    if (n[0].digits < n[1].digits) {
        rest <<= 1;
        exponent--;
    }
    uint64_t quotient = 0;
    unsigned count = f->fraction + 3; /* one bit more than is kept, one for the half */
    for (unsigned i = 0; i < count; i++) {
        quotient <<= 1;
        if (rest >= n[1].digits) {
            rest -= n[1].digits;
            quotient |= 1;
        }
        rest <<= 1;
    }
    wide digits = (wide)quotient << (128 - count) | (rest != 0);
    return soft_pack(soft, f, sign, exponent, digits, flushes(soft));
}

/* The leading `count` bits of the root of `square`, from bit 63 on; the last bit of the result says
 * whether anything remains. */
static wide root_of(wide square, unsigned count)
{
    uint64_t root = 0;
    for (int i = 63; i > 63 - (int)count; i--) {
        wide step = (wide)root << (i + 1) | (wide)1 << 2 * i;
        if (square < step)
            continue;
        square -= step;
        root |= UINT64_C(1) << i;
    }
    return (wide)root << 64 | (square != 0);
}

uint64_t soft_square_root(struct soft *soft, const struct format *f, uint64_t x)
{
    struct number n = soft_unpack(f, x, soft->mxcsr & MXCSR_DAZ);
    uint64_t nan = soft_first_nan(soft, f, &x, &n, 1);
    if (nan)
        return nan;
    if (n.class == ZERO)
        return n.negative ? sign_bit(f) : 0;
    if (n.negative) {
        soft->raised |= FLAG_IE;
        return default_nan(f);
    }
    if (n.class == INFINITE)
        return x;
    if (n.denormal)
        soft->raised |= FLAG_DE;
    bool odd = n.exponent & 1;
    wide digits = root_of((wide)n.digits << (odd ? 64 : 63), f->fraction + 3);
    return soft_pack(soft, f, false, (n.exponent - odd) / 2, digits, flushes(soft));
}

/* Denormals are zero and tiny results are flushed, whatever MXCSR says. */
static struct soft approximate(void)
{
    return (struct soft){.mxcsr = 0x3f << MXCSR_MASKS | MXCSR_DAZ | MXCSR_FTZ,
                         .rounding = NEAREST};
}

static const uint64_t one = 0x3f800000;

uint64_t soft_reciprocal(uint64_t x)
{
    struct soft soft = approximate();
    return soft_divide(&soft, &single_format, one, x);
}

uint64_t soft_reciprocal_root(uint64_t x)
{
    struct soft soft = approximate();
    return soft_divide(&soft, &single_format, one, soft_square_root(&soft, &single_format, x));
}
