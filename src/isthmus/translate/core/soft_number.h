/* SPDX-License-Identifier: Apache-2.0 OR GPL-2.0-only */
/* Inside the arithmetic by integers: a number taken apart, and put together again. */
#ifndef ISTHMUS_SOFT_NUMBER_H
#define ISTHMUS_SOFT_NUMBER_H

#include "soft.h"

__extension__ typedef unsigned __int128 wide;

enum class { ZERO, NUMBER, INFINITE, QUIET, SIGNALLING };

struct number {
    enum class class;
    bool negative;
    int exponent;   /* of the leading bit */
    uint64_t digits; /* the leading bit is bit 63 */
    bool denormal;
};

static inline uint64_t field(const struct format *f) { return (UINT64_C(1) << f->fraction) - 1; }
static inline uint64_t sign_bit(const struct format *f) { return UINT64_C(1) << (f->width - 1); }
static inline uint64_t exponents(const struct format *f) { return (sign_bit(f) - 1) & ~field(f); }
static inline uint64_t quiet_bit(const struct format *f) { return UINT64_C(1) << (f->fraction - 1); }
static inline uint64_t default_nan(const struct format *f)
{
    return sign_bit(f) | exponents(f) | quiet_bit(f);
}

static inline bool is_nan(struct number n) { return n.class >= QUIET; }

static inline bool flushes(const struct soft *soft) { return soft->mxcsr & MXCSR_FTZ; }

struct number soft_unpack(const struct format *f, uint64_t bits, bool denormals_are_zero);
/* The top `keep` bits of `digits`, rounded; keep may be 0 or less. */
uint64_t soft_top_bits(wide digits, int keep, unsigned rounding, bool negative, bool *inexact);
/* Round `digits` (leading bit 127) * 2^exponent into the format. */
uint64_t soft_pack(struct soft *soft, const struct format *f, bool negative, int exponent,
                   wide digits, bool flush);
/* The NaN of the first operand that is one, quieted; 0 if none is. */
uint64_t soft_first_nan(struct soft *soft, const struct format *f, const uint64_t *bits,
                        const struct number *numbers, unsigned count);
/* See soft_to_integer(). */
uint64_t soft_number_to_integer(struct soft *soft, struct number n, unsigned bits);

#endif
