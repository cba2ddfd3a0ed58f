/* The placement inside one process, for LD_PRELOAD: what its files share.
 *
 * The handler runs in the middle of a program of which nothing may be assumed: its FS base may be its
 * own, so nothing of the C library may be called that knows of threads, errno included; the library's
 * copies of strings may hold the very instruction that is missing here.  So whatever the handler does
 * it does by itself: raw system calls (below) and its own copying (bytes.c).  The files are compiled
 * without stack protector, which reads a secret through FS. */
#ifndef ISTHMUS_PROCESS_H
#define ISTHMUS_PROCESS_H

#define _GNU_SOURCE
#include <signal.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/syscall.h>
#include <ucontext.h>

#include "../core/machine.h"
#include "../core/x87_image.h"

#define EXPORTED __attribute__((visibility("default")))

enum { PAGE = 4096, LONGEST = 15, WINDOW = 64 };
enum { MAGIC1 = 0x46505853, X87 = 1, SSE = 2, AVX = 4, PKRU_STATE = 0x200 };

/* The kernel's layout of the registers in a signal frame (arch/x86/include/uapi/asm/sigcontext.h).  The
 * extended state is in the standard format; a component that is written must have its bit in XSTATE_BV
 * (`present`) set, or the kernel restores its initial state (Intel SDM vol. 1, 13.4). */
struct frame {
    struct x87_image x87; /* MXCSR is in it, too */
    uint8_t xmm[16][16];
    uint8_t reserved[48];
    uint32_t magic1, size; /* size: with what follows, of the whole area */
    uint64_t features;
    uint32_t state_size, padding[7];
    uint64_t present; /* XSTATE_BV, at 512 */
};

/* The kernel's own form of a signal's action (x86-64: with restorer). */
struct action {
    uint64_t handler, flags, restorer, mask;
};

/* A stack lent to a thread for handlers; this stands at its lowest bytes. */
struct lent {
    uint64_t magic;
    stack_t theirs; /* what the program asked for where that is too little, or SS_DISABLE */
};

static inline long raw_call(long number, uint64_t a, uint64_t b, uint64_t c, uint64_t d, uint64_t e,
                            uint64_t f)
{
    long answer;
    register uint64_t r10 __asm__("r10") = d, r8 __asm__("r8") = e, r9 __asm__("r9") = f;
    __asm__ volatile("syscall"
                     : "=a"(answer)
                     : "a"(number), "D"(a), "S"(b), "d"(c), "r"(r10), "r"(r8), "r"(r9)
                     : "rcx", "r11", "memory");
    return answer; /* or an error's number, negative */
}

#define RAW(number, a, b, c, d, e, f)                                                            \
    raw_call(number, (uint64_t)(a), (uint64_t)(b), (uint64_t)(c), (uint64_t)(d), (uint64_t)(e),  \
             (uint64_t)(f))

static inline uint64_t bit_of(int number)
{
    return UINT64_C(1) << (number - 1);
}

/* memory.c: the program's memory, reached without touching it */
struct window { /* its code from `start` on, as far as it was read */
    uint64_t start;
    size_t available;
    uint8_t code[WINDOW];
};
struct region {
    bool mapped, readable, writable, executable;
    bool grows; /* not mapped, but a touch would enlarge the stack */
};
int reach(void *window, int access, uint64_t address, uint8_t *bytes, uint32_t size,
          uint64_t *fault_address, uint32_t *error_code);
bool put_bytes(uint64_t address, const void *bytes, size_t size);
struct region region_at(uint64_t address);
bool beyond_canonical(uint64_t address);

/* deliver.c: signals as the kernel would deliver them */
struct exception {
    int number, code;
    uint64_t address;             /* si_addr */
    uint64_t trap, error, cr2;    /* what the handler finds in its context */
};
void deliver_exception(const struct exception *exception, ucontext_t *context);
void deliver_sigill(siginfo_t *information, ucontext_t *context);

/* signals.c: what the program asked for */
const struct action *program_action(void);
void forget_program_action(void);    /* SA_RESETHAND */
uint64_t stand_in(void);             /* in masks: the bit that stands for a blocked SIGILL */
uint64_t kernel_mask(uint64_t asked);
void prepare_signals(void (*handler)(int, siginfo_t *, void *));

/* stacks.c: alternate stacks, one for each thread */
void lend_stack(void);
const struct lent *lent_at(const stack_t *stack); /* NULL if the program's own */

/* report.c */
void count_trap(void);
void count_done(uint32_t mnemonic);
void count_refused(uint32_t family);
void prepare_report(char **environment);

#endif
