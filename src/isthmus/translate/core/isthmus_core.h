/* The emulation core: decode and execute one instruction on a register file that the caller supplies.
 *
 * Freestanding: no library, no global state, no allocation, so that the same files serve the debug
 * stub, a kernel module and a signal handler.  Memory is the caller's business: decoding says which
 * bytes the instruction reads or writes, the caller fetches or stores them.
 */
#ifndef ISTHMUS_CORE_H
#define ISTHMUS_CORE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* The part of a vCPU that the covered instructions read or write.  Register numbers are those of the
 * encoding (0 RAX, 1 RCX, 2 RDX, 3 RBX, 4 RSP ...). */
struct ic_cpu {
    uint64_t gpr[16];
    uint64_t rip;
    uint64_t rflags;
    uint64_t fs_base, gs_base;
    uint64_t tsc;     /* what RDTSC would read now; only used where ic_insn.needs_tsc */
    uint32_t tsc_aux; /* the TSC_AUX MSR */
    uint8_t mode;     /* 32 or 64: the code segment's width */
    uint8_t cpl;
    uint8_t xmm[16][16];
};

enum ic_op {
    IC_NOT_OURS, IC_RDTSCP, IC_MONITOR, IC_MWAIT, IC_POPCNT, IC_EXTRQ_IMM, IC_EXTRQ_REG,
    IC_INSERTQ_IMM, IC_INSERTQ_REG, IC_MOVNTSD, IC_MOVNTSS, IC_CRC32, IC_MOVBE_LOAD,
    IC_MOVBE_STORE, IC_LAHF, IC_SAHF, IC_OPS
};

/* One decoded instruction.  `address` is linear; `size` is the memory operand's size in bytes. */
struct ic_insn {
    uint8_t op;
    uint8_t length;
    uint8_t operand; /* operand size in bytes: 1, 2, 4, 8 */
    uint8_t reg, rm; /* register numbers with REX applied */
    uint8_t imm[2];
    bool loads, stores, needs_tsc, byte_high_registers;
    uint8_t size;
    uint64_t address;
};

/* Decode the instruction at `code`, of which `available` bytes could be read.  False: not one of
 * ours, or not whole. */
bool ic_decode(const uint8_t *code, size_t available, const struct ic_cpu *cpu,
               struct ic_insn *insn);

/* Execute a decoded instruction.  `data` holds the memory operand where it loads, and receives it
 * where it stores.  RIP is advanced.  False: it must raise #UD after all (wrong privilege). */
bool ic_execute(const struct ic_insn *insn, struct ic_cpu *cpu, uint8_t data[16]);

/* The name of an operation, for counters: "RDTSCP". */
const char *ic_name(unsigned op);

#endif
