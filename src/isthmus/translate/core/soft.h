/* SPDX-License-Identifier: Apache-2.0 OR GPL-2.0-only */
/* Floating point by integers, as SSE rounds and flags it: the core may run where the floating-point
 * unit may not be used, and must not disturb the guest's. */
#ifndef ISTHMUS_SOFT_H
#define ISTHMUS_SOFT_H

#include <stdbool.h>
#include <stdint.h>

/* Flags of MXCSR; each has its mask seven bits above (Intel SDM vol. 1, 10.2.3). */
enum { FLAG_IE = 1, FLAG_DE = 2, FLAG_ZE = 4, FLAG_OE = 8, FLAG_UE = 16, FLAG_PE = 32 };
enum { MXCSR_DAZ = 0x40, MXCSR_MASKS = 7, MXCSR_ROUNDING = 13, MXCSR_FTZ = 0x8000 };
enum rounding { NEAREST, DOWN, UP, TO_ZERO };

struct format {
    unsigned width, fraction; /* bits in all, bits of the fraction field */
    int bias;
};

extern const struct format half_format, single_format, double_format;

/* One instruction's arithmetic: its control, and the flags that it has raised: in the step under way,
 * and those of the steps behind it that are shown. */
struct soft {
    uint32_t mxcsr;
    unsigned rounding;
    uint32_t raised, shown;
};

uint64_t soft_multiply_add(struct soft *soft, const struct format *format, uint64_t x, uint64_t y,
                           uint64_t z, bool negate_product, bool negate_z);
uint64_t soft_add(struct soft *soft, const struct format *format, uint64_t x, uint64_t y,
                  bool subtract);
uint64_t soft_multiply(struct soft *soft, const struct format *format, uint64_t x, uint64_t y);
uint64_t soft_divide(struct soft *soft, const struct format *format, uint64_t x, uint64_t y);
uint64_t soft_square_root(struct soft *soft, const struct format *format, uint64_t x);
/* RCPSS and RSQRTSS, for which any result near enough will do; these are right to the last bit or one
 * beside it, and raise no flag. */
uint64_t soft_reciprocal(uint64_t x);
uint64_t soft_reciprocal_root(uint64_t x);

enum relation { LESS, EQUAL, GREATER, UNORDERED };

/* `signalling`: a quiet NaN is invalid as well. */
enum relation soft_compare(struct soft *soft, const struct format *format, uint64_t x, uint64_t y,
                           bool signalling);
uint64_t soft_least(struct soft *soft, const struct format *format, uint64_t x, uint64_t y);
uint64_t soft_greatest(struct soft *soft, const struct format *format, uint64_t x, uint64_t y);

uint64_t soft_to_integral(struct soft *soft, const struct format *format, uint64_t x, bool quiet);
uint64_t soft_half_to_single(struct soft *soft, uint64_t x);
uint64_t soft_single_to_half(struct soft *soft, uint64_t x);
uint64_t soft_single_to_double(struct soft *soft, uint64_t x);
uint64_t soft_double_to_single(struct soft *soft, uint64_t x);
/* To a signed integer of 32 or 64 bits, zero-extended; what does not fit gives the least one. */
uint64_t soft_to_integer(struct soft *soft, const struct format *format, uint64_t x, unsigned bits);
uint64_t soft_from_integer(struct soft *soft, const struct format *format, int64_t x);
uint64_t soft_fraction(struct soft *soft, const struct format *format, uint64_t x);

#endif
