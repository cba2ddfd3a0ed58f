/* SPDX-License-Identifier: Apache-2.0 OR GPL-2.0-only */
/* Inside the core: one decoded instruction, and what the groups of instructions share. */
#ifndef ISTHMUS_INSTRUCTION_H
#define ISTHMUS_INSTRUCTION_H

#include "machine.h"

enum { FLAG_CF = 1, FLAG_PF = 4, FLAG_AF = 0x10, FLAG_ZF = 0x40, FLAG_SF = 0x80, FLAG_OF = 0x800 };
enum { FLAG_VM = 0x20000, FLAG_AC = 0x40000 };
enum { CR0_EM = 4, CR0_TS = 8, CR0_AM = 0x40000 };
enum { CR4_TSD = 4, CR4_OSFXSR = 0x200, CR4_LA57 = 0x1000, CR4_OSXSAVE = 0x40000 };
enum { MXCSR_MM = 0x20000 };
enum { VECTOR_NM = 7, VECTOR_SS = 12, VECTOR_GP = 13, VECTOR_PF = 14 };
enum { VECTOR_MF = 16, VECTOR_AC = 17 };
enum { PAGE_FAULT_WRITE = 2 }; /* of its error code: SDM vol. 3A, 4.7 */
enum { LONGEST = 15 }; /* a longer instruction raises #GP, never #UD */
enum { RAX, RCX, RDX, RBX, RSP, RBP, RSI, RDI };
enum { MAP_ONE_BYTE, MAP_0F, MAP_0F38, MAP_0F3A, MAP_XOP8 = 8, MAP_XOP9, MAP_XOPA };

/* What the work of a decoded instruction touches beyond RIP, CR0, CR4, mode and CPL; never MMX nor MXCSR. */
enum lean {
    LEAN_XMM = 1,      /* those of reg, r/m and vvvv, and XMM0 to XMM7 */
    LEAN_YMM = 2,      /* all of them, with LEAN_XMM */
    LEAN_GENERAL = 4,  /* and the flags */
    LEAN_CLOCK = 8     /* the TSC and its TSC_AUX, which have to be read freshly */
};

struct instruction {
    struct isthmus_machine *machine;
    const struct isthmus_memory *memory;
    struct isthmus_outcome *outcome;
    const uint8_t *code;
    size_t available;
    size_t at;              /* the next byte to take */
    size_t modrm_at;
    bool ended;             /* bytes were wanted beyond the end */
    bool lock, operand_size, address_size;
    uint8_t repeat;         /* 0, 0xF2 or 0xF3: the last one given */
    uint8_t rex;
    int segment;            /* override, or -1 */
    uint8_t map, opcode;
    uint8_t mod, reg, rm;   /* reg and rm with the bits of REX */
    bool is_memory;
    int base, index, scale; /* registers of the address, or -1; base 16 = RIP */
    uint64_t displacement;
    bool vex, xop;          /* encoded by VEX or XOP (vex is set for both) */
    bool wide, long_vector; /* VEX.W, VEX.L */
    uint8_t vvvv;           /* its register, not inverted */
    uint8_t prefix;         /* of enum prefix: 66, F3 or F2 as part of the opcode */
    unsigned immediate;
    bool aligned;           /* a memory operand must be aligned to its size */
    bool vsib;              /* the index is a vector register: the address is made by the group */
    /* A group that has decoded all of its instruction may leave the work to `run`, with what it
     * chose in `operation`: then the decoded instruction can be kept and run again. */
    void (*run)(struct instruction *insn);
    const void *operation;
    uint8_t lean; /* of enum lean: all that the work touches; 0: anything, memory too */
};

/* decode.c */
bool decode_opcode(struct instruction *insn);   /* prefixes and opcode */
bool decode_operands(struct instruction *insn); /* ModRM, SIB, displacement */
uint8_t take_byte(struct instruction *insn);
unsigned address_bits(const struct instruction *insn);
unsigned operand_bits(const struct instruction *insn); /* 16, 32 or 64 */

/* operands.c: each returns false after having written the outcome */
bool load(struct instruction *insn, uint8_t *bytes, uint32_t size);
bool store(struct instruction *insn, const uint8_t *bytes, uint32_t size);
uint64_t effective_address(const struct instruction *insn, int *segment);
bool load_at(struct instruction *insn, int segment, uint64_t offset, uint8_t *bytes, uint32_t size);
bool store_at(struct instruction *insn, int segment, uint64_t offset, const uint8_t *bytes,
              uint32_t size);
/* A load by what writes there in any case: a page fault tells of the write. */
bool load_to_store(struct instruction *insn, int segment, uint64_t offset, uint8_t *bytes,
                   uint32_t size);
/* Of elements of `width` bytes those whose bit is set in `mask`.  The ends are looked at first, so that a
 * page that is not there leaves all unwritten; a read-only second one does not. */
bool store_masked(struct instruction *insn, int segment, uint64_t offset, const uint8_t *bytes,
                  uint32_t mask, unsigned width);
bool store_integer(struct instruction *insn, unsigned bits, uint64_t value);
bool load_integer(struct instruction *insn, unsigned bits, uint64_t *value); /* r/m */
uint64_t get_gpr(const struct instruction *insn, unsigned number, unsigned bits);
void set_gpr(struct instruction *insn, unsigned number, unsigned bits, uint64_t value);
void set_flags(struct instruction *insn, uint64_t affected, uint64_t value);

/* outcomes; each is the last thing a group does */
void decline(struct instruction *insn);
void fault(struct instruction *insn, uint32_t vector, bool has_error, uint32_t error_code);

/* What every vector instruction does, inline: inside a guest's kernel each call counts. */
static inline uint64_t xmm_quad(const struct isthmus_machine *machine, unsigned number,
                                unsigned half)
{
    uint64_t value;
    __builtin_memcpy(&value, &machine->xmm[number][8 * half], 8);
    return value;
}

static inline void set_xmm_low(struct instruction *insn, unsigned number, uint64_t value)
{
    __builtin_memcpy(insn->machine->xmm[number], &value, 8);
    insn->outcome->xmm_written |= 1u << number;
}

/* The name of what is under way, for faults that may follow. */
static inline void name_it(struct instruction *insn, uint32_t mnemonic)
{
    struct isthmus_outcome *outcome = insn->outcome;
    outcome->mnemonic = mnemonic;
    outcome->length = (uint32_t)insn->at;
}

/* What has its name is done. */
static inline void step_over(struct instruction *insn)
{
    struct isthmus_machine *machine = insn->machine;
    insn->outcome->kind = ISTHMUS_DONE;
    uint64_t next = machine->rip + insn->at;
    machine->rip = machine->mode == 64 ? next : next & 0xffffffff;
}

static inline void finish(struct instruction *insn, uint32_t mnemonic)
{
    name_it(insn, mnemonic);
    step_over(insn);
}

/* Whether SSE instructions are legal, else the outcome is written.  EM or no OSFXSR is a true #UD, TS
 * is the operating system's lazy switching of the registers (Intel SDM vol. 3A, table 13-1; AMD APM
 * vol. 4, 1.6). */
static inline bool sse_usable(struct instruction *insn)
{
    const struct isthmus_machine *machine = insn->machine;
    if ((machine->cr0 & CR0_EM) || !(machine->cr4 & CR4_OSFXSR)) {
        decline(insn);
        return false;
    }
    if (machine->cr0 & CR0_TS) {
        fault(insn, VECTOR_NM, false, 0);
        return false;
    }
    return true;
}

/* The same for MMX. */
bool mmx_usable(struct instruction *insn);
/* Whether no x87 exception is waiting, which MMX and x87 instructions then raise. */
bool none_waiting(struct instruction *insn);

/* The groups, one file each.  Called with the opcode decoded; return false if not theirs, and true
 * after having written the outcome. */
bool execute_clock(struct instruction *insn);
bool execute_sse4a(struct instruction *insn);
bool execute_popcnt(struct instruction *insn);
bool execute_crc32(struct instruction *insn);
bool execute_movbe(struct instruction *insn);
bool execute_flags(struct instruction *insn);
bool execute_prefetch(struct instruction *insn);
bool execute_wait(struct instruction *insn);
bool execute_3dnow(struct instruction *insn);
bool execute_integer(struct instruction *insn);
bool execute_crypto(struct instruction *insn);
bool execute_sse4(struct instruction *insn);
bool execute_avx2(struct instruction *insn);
bool execute_avx_moves(struct instruction *insn);
bool execute_bits(struct instruction *insn);
bool execute_xop(struct instruction *insn);
bool execute_floats(struct instruction *insn);
bool execute_x87(struct instruction *insn);
bool execute_avx_arithmetic(struct instruction *insn);
bool execute_avx_compare(struct instruction *insn);
bool execute_avx_convert(struct instruction *insn);
bool execute_system(struct instruction *insn);
bool execute_lwp(struct instruction *insn);

/* refused.c: for an opcode that no group took; the outcome says so if its name is known */
void name_refused(struct instruction *insn);

/* simple.c: not a group of missing instructions, see there. */
bool execute_ordinary(struct instruction *insn);

#endif
