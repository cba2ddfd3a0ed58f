/* SPDX-License-Identifier: Apache-2.0 OR GPL-2.0-only */
/* Sources: Intel SDM vol. 1, 4.8 (formats), 4.9 (exceptions and their order), 11.5 (SSE's), 14.5
 * (FMA's NaNs).  Tininess is detected after rounding. */
#include "soft_number.h"

const struct format half_format = {16, 10, 15};
const struct format single_format = {32, 23, 127};
const struct format double_format = {64, 52, 1023};

struct number soft_unpack(const struct format *f, uint64_t bits, bool denormals_are_zero)
{
    struct number n = {.negative = bits & sign_bit(f)};
    int exponent = (int)((bits & exponents(f)) >> f->fraction);
    uint64_t fraction = bits & field(f);
    if (exponent == 2 * f->bias + 1) {
        n.class = !fraction ? INFINITE : fraction & quiet_bit(f) ? QUIET : SIGNALLING;
        return n;
    }
    if (!exponent && (!fraction || denormals_are_zero))
        return n;
    n.class = NUMBER;
    n.denormal = !exponent;
    n.exponent = (exponent ? exponent : 1) - f->bias;
    n.digits = (exponent ? fraction | (UINT64_C(1) << f->fraction) : fraction)
               << (63 - f->fraction);
    while (!(n.digits >> 63)) {
        n.digits <<= 1;
        n.exponent--;
    }
    return n;
}

static bool rounds_up(unsigned rounding, bool negative, bool odd, bool half, bool below)
{
    switch (rounding) {
    case NEAREST: return half && (below || odd);
    case DOWN: return negative && (half || below);
    case UP: return !negative && (half || below);
    default: return false;
    }
}

/* The top `keep` bits of `digits`, rounded; keep may be 0 or less. */
uint64_t soft_top_bits(wide digits, int keep, unsigned rounding, bool negative, bool *inexact)
{
    uint64_t kept = keep > 0 ? (uint64_t)(digits >> (128 - keep)) : 0;
    wide rest = keep > 0 ? digits << keep : keep == 0 ? digits : digits != 0;
    bool half = rest >> 127, below = (rest << 1) != 0;
    *inexact = half || below;
    return kept + rounds_up(rounding, negative, kept & 1, half, below);
}

/* Round `digits` (leading bit 127) * 2^exponent into the format. */
uint64_t soft_pack(struct soft *soft, const struct format *f, bool negative, int exponent,
                   wide digits, bool flush)
{
    uint64_t sign = negative ? sign_bit(f) : 0;
    int precision = (int)f->fraction + 1, least = 1 - f->bias;
    bool inexact, tiny;
    uint64_t kept = soft_top_bits(digits, precision, soft->rounding, negative, &inexact);
    bool carried = kept >> precision;
    tiny = exponent + carried < least;
    if (tiny) {
        bool masked = soft->mxcsr & FLAG_UE << MXCSR_MASKS;
        if (flush && masked) {
            soft->raised |= FLAG_UE | FLAG_PE;
            return sign;
        }
        bool rounded = inexact; /* unmasked, the exponent is made to fit, and this is the answer */
        kept = soft_top_bits(digits, precision - (least - exponent), soft->rounding, negative,
                             &inexact);
        if (inexact || !masked)
            soft->raised |= FLAG_UE;
        if (masked ? inexact : rounded)
            soft->raised |= FLAG_PE;
        return sign | kept; /* a carry into the exponent makes the least normal number */
    }
    if (inexact)
        soft->raised |= FLAG_PE;
    exponent += carried;
    kept >>= carried;
    if (exponent > f->bias) {
        /* Unmasked, what is inexact is the number with its exponent made to fit. */
        soft->raised |= FLAG_OE | (soft->mxcsr & FLAG_OE << MXCSR_MASKS ? FLAG_PE : 0);
        bool to_infinity = soft->rounding == NEAREST || (soft->rounding == UP && !negative) ||
                           (soft->rounding == DOWN && negative);
        return sign | (to_infinity ? exponents(f) : exponents(f) - 1);
    }
    return sign | (uint64_t)(exponent + f->bias) << f->fraction | (kept & field(f));
}

/* The NaN of the first operand that is one, quieted; 0 if none is. */
uint64_t soft_first_nan(struct soft *soft, const struct format *f, const uint64_t *bits,
                          const struct number *numbers, unsigned count)
{
    uint64_t result = 0;
    for (unsigned i = 0; i < count; i++) {
        if (numbers[i].class == SIGNALLING)
            soft->raised |= FLAG_IE;
        if (!result && is_nan(numbers[i]))
            result = bits[i] | quiet_bit(f);
    }
    return result;
}

static wide shifted_down(wide digits, int by)
{
    if (by >= 128)
        return digits != 0;
    return by ? digits >> by | ((digits << (128 - by)) != 0) : digits;
}

static uint64_t zero(const struct soft *soft, const struct format *f, bool one, bool other)
{
    bool negative = one == other ? one : soft->rounding == DOWN;
    return negative ? sign_bit(f) : 0;
}

/* The rounded sum of two numbers, each with leading bit 127. */
static uint64_t sum(struct soft *soft, const struct format *f, bool negative, int exponent,
                    wide digits, bool negative_z, int exponent_z, wide digits_z)
{
    if (exponent < exponent_z || (exponent == exponent_z && digits < digits_z)) {
        wide d = digits;
        digits = digits_z, digits_z = d;
        int e = exponent;
        exponent = exponent_z, exponent_z = e;
        bool n = negative;
        negative = negative_z, negative_z = n;
    }
    /* One bit of room for the carry; what falls off only matters as "not zero". */
    wide large = shifted_down(digits, 1);
    wide small = shifted_down(digits_z, exponent - exponent_z + 1);
    wide total = negative == negative_z ? large + small : large - small;
    if (!total)
        return zero(soft, f, negative, negative_z);
    exponent++;
    while (!(total >> 127)) {
        total <<= 1;
        exponent--;
    }
    return soft_pack(soft, f, negative, exponent, total, flushes(soft));
}

static void product(struct number x, struct number y, int *exponent, wide *digits)
{
    *digits = (wide)x.digits * y.digits;
    *exponent = x.exponent + y.exponent + 1;
    if (!(*digits >> 127)) {
        *digits <<= 1;
        --*exponent;
    }
}

uint64_t soft_multiply_add(struct soft *soft, const struct format *f, uint64_t x, uint64_t y,
                           uint64_t z, bool negate_product, bool negate_z)
{
    bool daz = soft->mxcsr & MXCSR_DAZ;
    const uint64_t bits[3] = {x, y, z};
    struct number n[3];
    for (unsigned i = 0; i < 3; i++)
        n[i] = soft_unpack(f, bits[i], daz);
    bool undefined = (n[0].class == INFINITE && n[1].class == ZERO) ||
                     (n[0].class == ZERO && n[1].class == INFINITE);
    uint64_t nan = soft_first_nan(soft, f, bits, n, 3);
    if (nan)
        return nan;
    bool negative = n[0].negative ^ n[1].negative ^ negate_product;
    bool negative_z = n[2].negative ^ negate_z;
    bool infinite = n[0].class == INFINITE || n[1].class == INFINITE;
    if (undefined || (infinite && n[2].class == INFINITE && negative != negative_z)) {
        soft->raised |= FLAG_IE;
        return default_nan(f);
    }
    if (n[0].denormal || n[1].denormal || n[2].denormal)
        soft->raised |= FLAG_DE;
    if (infinite || n[2].class == INFINITE)
        return exponents(f) | ((infinite ? negative : negative_z) ? sign_bit(f) : 0);
    if (n[0].class == ZERO || n[1].class == ZERO) {
        if (n[2].class == ZERO)
            return zero(soft, f, negative, negative_z);
        return soft_pack(soft, f, negative_z, n[2].exponent, (wide)n[2].digits << 64, flushes(soft));
    }
    int exponent;
    wide digits;
    product(n[0], n[1], &exponent, &digits);
    if (n[2].class == ZERO)
        return soft_pack(soft, f, negative, exponent, digits, flushes(soft));
    return sum(soft, f, negative, exponent, digits, negative_z, n[2].exponent,
               (wide)n[2].digits << 64);
}

uint64_t soft_add(struct soft *soft, const struct format *f, uint64_t x, uint64_t y, bool subtract)
{
    bool daz = soft->mxcsr & MXCSR_DAZ;
    const uint64_t bits[2] = {x, y};
    struct number n[2] = {soft_unpack(f, x, daz), soft_unpack(f, y, daz)};
    uint64_t nan = soft_first_nan(soft, f, bits, n, 2);
    if (nan)
        return nan;
    bool negative_y = n[1].negative ^ subtract;
    if (n[0].class == INFINITE && n[1].class == INFINITE && n[0].negative != negative_y) {
        soft->raised |= FLAG_IE;
        return default_nan(f);
    }
    if (n[0].denormal || n[1].denormal)
        soft->raised |= FLAG_DE;
    if (n[0].class == INFINITE)
        return exponents(f) | (n[0].negative ? sign_bit(f) : 0);
    if (n[1].class == INFINITE)
        return exponents(f) | (negative_y ? sign_bit(f) : 0);
    if (n[0].class == ZERO && n[1].class == ZERO)
        return zero(soft, f, n[0].negative, negative_y);
    if (n[0].class == ZERO)
        return soft_pack(soft, f, negative_y, n[1].exponent, (wide)n[1].digits << 64, flushes(soft));
    if (n[1].class == ZERO)
        return soft_pack(soft, f, n[0].negative, n[0].exponent, (wide)n[0].digits << 64, flushes(soft));
    return sum(soft, f, n[0].negative, n[0].exponent, (wide)n[0].digits << 64, negative_y,
               n[1].exponent, (wide)n[1].digits << 64);
}

uint64_t soft_multiply(struct soft *soft, const struct format *f, uint64_t x, uint64_t y)
{
    bool daz = soft->mxcsr & MXCSR_DAZ;
    const uint64_t bits[2] = {x, y};
    struct number n[2] = {soft_unpack(f, x, daz), soft_unpack(f, y, daz)};
    uint64_t nan = soft_first_nan(soft, f, bits, n, 2);
    if (nan)
        return nan;
    uint64_t sign = n[0].negative != n[1].negative ? sign_bit(f) : 0;
    bool infinite = n[0].class == INFINITE || n[1].class == INFINITE;
    bool nothing = n[0].class == ZERO || n[1].class == ZERO;
    if (infinite && nothing) {
        soft->raised |= FLAG_IE;
        return default_nan(f);
    }
    if (n[0].denormal || n[1].denormal)
        soft->raised |= FLAG_DE;
    if (infinite)
        return sign | exponents(f);
    if (nothing)
        return sign;
    int exponent;
    wide digits;
    product(n[0], n[1], &exponent, &digits);
    return soft_pack(soft, f, sign, exponent, digits, flushes(soft));
}

/* ROUNDPS and kin: only invalid and inexact are flagged, the latter unless `quiet`. */
uint64_t soft_to_integral(struct soft *soft, const struct format *f, uint64_t x, bool quiet)
{
    struct number n = soft_unpack(f, x, soft->mxcsr & MXCSR_DAZ);
    uint64_t nan = soft_first_nan(soft, f, &x, &n, 1), sign = x & sign_bit(f);
    if (nan)
        return nan;
    if (n.class == ZERO)
        return sign;
    if (n.class == INFINITE || n.exponent >= (int)f->fraction)
        return x;
    bool inexact;
    uint64_t whole =
        soft_top_bits((wide)n.digits << 64, n.exponent + 1, soft->rounding, n.negative, &inexact);
    if (inexact && !quiet)
        soft->raised |= FLAG_PE;
    if (!whole)
        return sign;
    int exponent = 63;
    while (!(whole >> 63)) {
        whole <<= 1;
        exponent--;
    }
    return sign | (uint64_t)(exponent + f->bias) << f->fraction |
           (whole << 1 >> (64 - f->fraction));
}

/* VFRCZ: what remains after truncation, exactly. */
uint64_t soft_fraction(struct soft *soft, const struct format *f, uint64_t x)
{
    struct number n = soft_unpack(f, x, soft->mxcsr & MXCSR_DAZ);
    uint64_t nan = soft_first_nan(soft, f, &x, &n, 1);
    if (nan)
        return nan;
    if (n.class == INFINITE || n.class == ZERO) {
        if (n.class == INFINITE)
            soft->raised |= FLAG_IE;
        return n.class == INFINITE ? default_nan(f) : 0;
    }
    if (n.denormal)
        soft->raised |= FLAG_DE;
    if (n.exponent >= 0)
        n.digits = n.exponent < 63 ? n.digits << (n.exponent + 1) : 0, n.exponent = -1;
    if (!n.digits)
        return 0;
    while (!(n.digits >> 63)) {
        n.digits <<= 1;
        n.exponent--;
    }
    return soft_pack(soft, f, n.negative, n.exponent, (wide)n.digits << 64, flushes(soft));
}
