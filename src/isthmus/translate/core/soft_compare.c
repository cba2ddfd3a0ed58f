/* SPDX-License-Identifier: Apache-2.0 OR GPL-2.0-only */
/* Comparisons, the lesser and the greater.
 * Sources: Intel SDM vol. 1, 4.9 and 11.5; vol. 2A, CMPPS, MAXPS, MINPS. */
#include "soft_number.h"

/* The number as an integer of the same order; both zeros are 0. */
static int64_t ordered(const struct format *f, uint64_t bits, const struct number *n)
{
    int64_t size = n->class == ZERO ? 0 : (int64_t)(bits & ~sign_bit(f));
    return n->negative ? -size : size;
}

enum relation soft_compare(struct soft *soft, const struct format *f, uint64_t x, uint64_t y,
                           bool signalling)
{
    bool daz = soft->mxcsr & MXCSR_DAZ;
    struct number a = soft_unpack(f, x, daz), b = soft_unpack(f, y, daz);
    if (is_nan(a) || is_nan(b)) {
        if (signalling || a.class == SIGNALLING || b.class == SIGNALLING)
            soft->raised |= FLAG_IE;
        return UNORDERED;
    }
    if (a.denormal || b.denormal)
        soft->raised |= FLAG_DE;
    int64_t left = ordered(f, x, &a), right = ordered(f, y, &b);
    return left < right ? LESS : left > right ? GREATER : EQUAL;
}

/* What a source is worth where denormals are zero. */
static uint64_t seen(const struct soft *soft, const struct format *f, uint64_t bits)
{
    bool zero = soft->mxcsr & MXCSR_DAZ && !(bits & exponents(f));
    return zero ? bits & sign_bit(f) : bits;
}

/* The second operand, unless the first is truly beyond it: so it is with NaNs, and with two zeros. */
uint64_t soft_least(struct soft *soft, const struct format *f, uint64_t x, uint64_t y)
{
    return seen(soft, f, soft_compare(soft, f, x, y, true) == LESS ? x : y);
}

uint64_t soft_greatest(struct soft *soft, const struct format *f, uint64_t x, uint64_t y)
{
    return seen(soft, f, soft_compare(soft, f, x, y, true) == GREATER ? x : y);
}
