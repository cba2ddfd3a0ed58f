/* SPDX-License-Identifier: Apache-2.0 OR GPL-2.0-only */
/* Conversions between formats, and from and to integers.
 * Sources: Intel SDM vol. 1, 4.8.4 (NaNs) and 11.5; vol. 2A, CVTPS2DQ and kin; vol. 2C, VCVTPS2PH. */
#include "soft_number.h"

static uint64_t converted_nan(struct soft *soft, const struct format *from,
                              const struct format *to, uint64_t x, struct number n)
{
    if (n.class == SIGNALLING)
        soft->raised |= FLAG_IE;
    uint64_t fraction = x & field(from);
    fraction = to->fraction > from->fraction ? fraction << (to->fraction - from->fraction)
                                             : fraction >> (from->fraction - to->fraction);
    return (n.negative ? sign_bit(to) : 0) | exponents(to) | quiet_bit(to) | fraction;
}

static uint64_t converted(struct soft *soft, const struct format *from, const struct format *to,
                          uint64_t x, struct number n, bool flush)
{
    if (is_nan(n))
        return converted_nan(soft, from, to, x, n);
    uint64_t sign = n.negative ? sign_bit(to) : 0;
    if (n.class == ZERO)
        return sign;
    if (n.class == INFINITE)
        return sign | exponents(to);
    return soft_pack(soft, to, n.negative, n.exponent, (wide)n.digits << 64, flush);
}

static struct number source(struct soft *soft, const struct format *from, uint64_t x)
{
    struct number n = soft_unpack(from, x, soft->mxcsr & MXCSR_DAZ);
    if (n.denormal)
        soft->raised |= FLAG_DE;
    return n;
}

/* Half-precision denormals are numbers whatever MXCSR says, and raise no flag. */
uint64_t soft_half_to_single(struct soft *soft, uint64_t x)
{
    struct number n = soft_unpack(&half_format, x, false);
    return converted(soft, &half_format, &single_format, x, n, false);
}

/* Flush-to-zero does not count here. */
uint64_t soft_single_to_half(struct soft *soft, uint64_t x)
{
    struct number n = source(soft, &single_format, x);
    return converted(soft, &single_format, &half_format, x, n, false);
}

uint64_t soft_single_to_double(struct soft *soft, uint64_t x)
{
    struct number n = source(soft, &single_format, x);
    return converted(soft, &single_format, &double_format, x, n, false);
}

uint64_t soft_double_to_single(struct soft *soft, uint64_t x)
{
    struct number n = source(soft, &double_format, x);
    return converted(soft, &double_format, &single_format, x, n, flushes(soft));
}

uint64_t soft_number_to_integer(struct soft *soft, struct number n, unsigned bits)
{
    uint64_t least = UINT64_C(1) << (bits - 1), mask = least | (least - 1), whole = 0;
    bool inexact = false, fits = n.class <= NUMBER;
    if (n.class == NUMBER && n.exponent < (int)bits)
        whole = soft_top_bits((wide)n.digits << 64, n.exponent + 1, soft->rounding, n.negative,
                              &inexact);
    else if (n.class == NUMBER)
        fits = false;
    if (!fits || whole >= least + n.negative) {
        soft->raised |= FLAG_IE;
        return least;
    }
    if (inexact)
        soft->raised |= FLAG_PE;
    return (n.negative ? -whole : whole) & mask;
}

/* Denormals raise no flag of their own here. */
uint64_t soft_to_integer(struct soft *soft, const struct format *f, uint64_t x, unsigned bits)
{
    struct number n = soft_unpack(f, x, soft->mxcsr & MXCSR_DAZ);
    return soft_number_to_integer(soft, n, bits);
}

uint64_t soft_from_integer(struct soft *soft, const struct format *f, int64_t x)
{
    if (!x)
        return 0;
    uint64_t digits = x < 0 ? -(uint64_t)x : (uint64_t)x;
    int exponent = 63;
    while (!(digits >> 63)) {
        digits <<= 1;
        exponent--;
    }
    return soft_pack(soft, f, x < 0, exponent, (wide)digits << 64, false);
}
