/* SPDX-License-Identifier: Apache-2.0 OR GPL-2.0-only */
/* The whole face of the core: the register file that the caller lends, the memory it lends by
 * callbacks, and what became of one instruction.
 *
 * The core is freestanding C11: no libc, no allocation, no static state, so that a Python
 * extension, a kernel module and a signal handler can compile the very same files.  Lines that
 * begin with '#' are left out when cffi reads this file, so it keeps to plain declarations.
 */
#ifndef ISTHMUS_MACHINE_H
#define ISTHMUS_MACHINE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* Numbers of the segment registers as instructions encode them (Intel SDM vol. 2A, table 2-1). */
enum isthmus_segment {
    ISTHMUS_ES, ISTHMUS_CS, ISTHMUS_SS, ISTHMUS_DS, ISTHMUS_FS, ISTHMUS_GS
};

struct isthmus_machine {
    uint64_t gpr[16];          /* in the order of the encoding: rax rcx rdx rbx rsp rbp rsi rdi r8.. */
    uint64_t rip;
    uint64_t rflags;
    uint64_t segment_base[6];  /* es cs ss ds fs gs; only fs and gs count in 64-bit mode */
    uint64_t cr0;
    uint64_t cr4;
    uint64_t tsc;              /* what a clock read at this point returns */
    uint32_t tsc_aux;          /* the TSC_AUX MSR: RDTSCP's third result */
    uint32_t mxcsr;
    uint8_t mode;              /* 16, 32 or 64: the size of the code segment in force */
    uint8_t cpl;
    uint8_t has_ymm;           /* whether the caller lends the upper halves, to read and to write */
    uint8_t random_valid;      /* whether `random` holds fresh entropy */
    uint8_t ordinary;          /* whether a run goes on here: what every CPU has may be done too */
    uint64_t random;           /* what RDRAND and RDSEED give */
    uint8_t xmm[16][16];
    uint8_t ymm_high[16][16];  /* bits 255:128; they count if has_ymm */
    uint8_t mmx[8][8];         /* the significands of the physical x87 registers R0 to R7 */
    uint16_t x87_control;      /* with the status it tells whether an exception is waiting (#MF) */
    uint16_t x87_status;
    /* The rest of the x87, which FISTTP asks for. */
    uint8_t has_x87;           /* whether the caller lends it, to read and to write */
    uint8_t x87_tags;          /* abridged, as FXSAVE has them: bit n is set if Rn is not empty */
    uint16_t x87_high[8];      /* signs and exponents of R0 to R7 */
    uint16_t x87_opcode;       /* of the last instruction, with its address and that of its operand: */
    uint64_t x87_ip, x87_dp;   /* written only */
};

enum isthmus_kind {
    ISTHMUS_DONE,       /* executed: registers and RIP are those after the instruction */
    ISTHMUS_NOT_OURS,   /* unknown, or truly undefined here: the #UD belongs to the guest */
    ISTHMUS_FAULT,      /* the instruction raises another exception: nothing was changed, but MXCSR
                         * if touched, and what a gather has done so far if xmm_written says so;
                         * a caller that drops the latter has it gathered again */
    ISTHMUS_MORE_BYTES, /* the bytes given end inside the instruction: nothing was changed */
    ISTHMUS_LACKS_STATE, /* ours, but it needs registers that the caller does not lend */
    ISTHMUS_PENDING,    /* a callback had no answer yet: nothing was changed, execute again */
    ISTHMUS_REFUSED     /* known by name and done by nobody, see `refused`: the #UD is the guest's */
};

/* What the execution leant on or changed beyond general registers. */
enum isthmus_touched {
    ISTHMUS_USED_TSC = 1,       /* rax and rdx hold the caller's tsc */
    ISTHMUS_WROTE_MMX = 2,      /* x87 state: TOP 0, all tags valid, exponents all ones */
    ISTHMUS_EMPTIED_MMX = 4,    /* FEMMS: all tags empty */
    ISTHMUS_WAITED = 8,         /* MWAIT returned at once */
    ISTHMUS_WROTE_MXCSR = 32,   /* also where the outcome is a fault: #XM shows its flags */
    ISTHMUS_WROTE_X87 = 64,     /* x87 status, tags and last instruction; the registers stay.  It ends
                                 * a run: what comes next needs the state anew */
    ISTHMUS_USED_RANDOM = 16    /* `random` was given away: it must not be given twice */
};

struct isthmus_outcome {
    uint32_t kind;
    uint32_t mnemonic;     /* one of enum isthmus_mnemonic, also for a fault; 0 if not ours, or ordinary */
    uint32_t length;       /* bytes of the instruction */
    uint32_t touched;      /* of enum isthmus_touched */
    uint32_t gpr_written;  /* bit n: gpr[n] was written */
    uint32_t xmm_written;  /* bit n: xmm[n] was written */
    uint32_t mmx_written;  /* bit n: mmx[n] was written */
    uint32_t flags_written;
    uint32_t vector;       /* of a fault */
    uint32_t has_error;    /* whether that vector pushes an error code */
    uint32_t error_code;
    uint32_t ymm_written;  /* bit n: ymm_high[n] was written */
    uint64_t address;      /* of a page fault: the linear address for CR2 */
    uint32_t refused;      /* one of enum isthmus_family */
};

enum isthmus_access { ISTHMUS_READ, ISTHMUS_WRITE };

/* A callback's answer.  A write must not take effect unless the callback says OK; each instruction
 * here writes memory last, and at most once but for masked and bulk stores. */
enum isthmus_answer { ISTHMUS_OK, ISTHMUS_PAGE_FAULT, ISTHMUS_UNANSWERED };

struct isthmus_memory {
    /* Move `size` bytes at a linear address.  For a page fault set *fault_address (the first byte
     * that cannot be reached) and *error_code (Intel SDM vol. 3A, 4.7). */
    int (*move)(void *context, int access, uint64_t address, uint8_t *bytes, uint32_t size,
                uint64_t *fault_address, uint32_t *error_code);
    void *context;
};

/* With this bit a mnemonic is named as its VEX form: VPADDB for PADDB. */
enum isthmus_form { ISTHMUS_VEX_FORM = 0x10000 };

enum isthmus_mnemonic {
    ISTHMUS_NONE,
#define ISTHMUS_M(name) ISTHMUS_##name,
#include "mnemonics.inc"
#undef ISTHMUS_M
    ISTHMUS_MNEMONICS
};

/* Families of instructions that are recognised only to tell the operator of them. */
enum isthmus_family {
    ISTHMUS_REFUSED_NONE,
#define ISTHMUS_R(name) ISTHMUS_REFUSED_##name,
#include "refused.inc"
#undef ISTHMUS_R
    ISTHMUS_FAMILIES
};

/* Execute the one instruction whose first `available` bytes (at most 15 count) are `code`. */
void isthmus_execute(struct isthmus_machine *machine, const uint8_t *code, size_t available,
                     const struct isthmus_memory *memory, struct isthmus_outcome *outcome);

/* The mnemonic in upper case; "" for numbers that name none. */
const char *isthmus_mnemonic_name(uint32_t mnemonic);

/* A family in lower case; "" for numbers that name none. */
const char *isthmus_refused_name(uint32_t family);

#endif
