/* SPDX-License-Identifier: Apache-2.0 OR GPL-2.0-only */
/* Vector instructions inside the core: lanes of 16 bytes (8 of an MMX register), and the tables that
 * say which function does which opcode. */
#ifndef ISTHMUS_VECTOR_H
#define ISTHMUS_VECTOR_H

#include "instruction.h"

union lane {
    uint8_t b[16];
    int8_t sb[16];
    uint16_t w[8];
    int16_t sw[8];
    uint32_t d[4];
    int32_t sd[4];
    uint64_t q[2];
    int64_t sq[2];
};

struct vector {
    union lane lane[2];
};

/* One lane of `bytes` bytes: `result` overlaps neither operand. */
typedef void lane_function(union lane *result, const union lane *a, const union lane *b,
                           unsigned immediate, unsigned bytes);

enum prefix { NP, P66, PF3, PF2 };

/* How an opcode may be encoded, and what it takes. */
enum form {
    F_LEGACY = 1,  /* without VEX, on XMM; memory must be aligned */
    F_MMX = 2,     /* without 66, on MMX registers */
    F_V128 = 4, F_V256 = 8,
    F_UNARY = 16,  /* one source: VEX.vvvv must be 1111 */
    F_IMM = 32,
    F_W0 = 64, F_W1 = 128,
    F_LOOSE = 512,    /* without VEX memory need not be aligned either */
    F_IMM_PAIR = 256, /* two bits of the immediate belong to each lane */
    F_BOTH = F_LEGACY | F_V128 | F_V256
};

struct lane_operation {
    uint8_t map, prefix, opcode;
    uint16_t form;
    uint16_t mnemonic;
    lane_function *run;
};

/* vector.c */
bool execute_lanes(struct instruction *insn, const struct lane_operation *table, size_t count);
bool vex_usable(struct instruction *insn); /* VEX and XOP are legal (true), else the outcome is there */
void get_vector(const struct instruction *insn, unsigned number, struct vector *value);
void set_vector(struct instruction *insn, unsigned number, const struct vector *value);
bool load_vector(struct instruction *insn, struct vector *value, unsigned bytes, bool aligned);
/* The same for moves, whose demand stands whatever MXCSR.MM says. */
bool load_moved(struct instruction *insn, struct vector *value, unsigned bytes, bool aligned);
/* The three sources of four-operand instructions: vvvv, then r/m and the immediate's register, which W
 * exchanges.  False after having written the outcome. */
bool load_sources(struct instruction *insn, unsigned bytes, unsigned immediate, struct vector *a,
                  struct vector *b, struct vector *c);
uint32_t vector_name(const struct instruction *insn, uint32_t mnemonic);
unsigned vector_bytes(const struct instruction *insn);

#endif
