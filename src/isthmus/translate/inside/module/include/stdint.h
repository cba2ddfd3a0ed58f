/* SPDX-License-Identifier: GPL-2.0-only */
/* The kernel has no C library; its own types under the names that the core uses, and the limits (the
 * kernel's are not always in linux/limits.h). */
#ifndef ISTHMUS_STDINT_H
#define ISTHMUS_STDINT_H
#include <linux/types.h>
#define UINT32_C(value) value##U
#define UINT64_C(value) value##ULL
#define INT64_C(value) value##LL
#define INT8_MAX 0x7f
#define INT8_MIN (-INT8_MAX - 1)
#define UINT8_MAX 0xff
#define INT16_MAX 0x7fff
#define INT16_MIN (-INT16_MAX - 1)
#define UINT16_MAX 0xffff
#define INT32_MAX 0x7fffffff
#define INT32_MIN (-INT32_MAX - 1)
#define UINT32_MAX 0xffffffffU
#define INT64_MAX 0x7fffffffffffffffLL
#define INT64_MIN (-INT64_MAX - 1)
#define UINT64_MAX 0xffffffffffffffffULL
#endif
