/* SPDX-License-Identifier: GPL-2.0-only */
/* The kernel has no C library; its own types and limits under the names that the core uses. */
#ifndef ISTHMUS_STDINT_H
#define ISTHMUS_STDINT_H
#include <linux/limits.h>
#include <linux/types.h>
#define UINT32_C(value) value##U
#define UINT64_C(value) value##ULL
#define INT64_C(value) value##LL
#define INT8_MIN S8_MIN
#define INT8_MAX S8_MAX
#define UINT8_MAX U8_MAX
#define INT16_MIN S16_MIN
#define INT16_MAX S16_MAX
#define UINT16_MAX U16_MAX
#define INT32_MIN S32_MIN
#define INT32_MAX S32_MAX
#define UINT32_MAX U32_MAX
#define INT64_MIN S64_MIN
#define INT64_MAX S64_MAX
#define UINT64_MAX U64_MAX
#endif
