/* The emulation core beside this machine's CPU, with every register an instruction can touch.
 *
 * Reads lines "HEX CASES FLAGS SPECIAL" from the standard input: the instruction's bytes, how many
 * random states to try, which arithmetic flags are defined after it (hexadecimal), and the number
 * of the mask register of a gather, or one of `enum special`.  With the argument "ordinary" the core
 * is asked for what every CPU has, too.  Memory operands must be based on RSI alone (RDI is meant where
 * SPECIAL says so).
 *
 * Operands come aligned and not, and now and then reach over the end or the beginning of what is mapped;
 * exceptions of MXCSR are unmasked now and then.  Then both must raise the same exception, with the
 * same error code and page, and leave the same registers and memory.  Prints "HEX TRIED FAULTED
 * WRONG" for each, or "HEX missing" where this CPU raises SIGILL. */
#define _GNU_SOURCE
#include <immintrin.h>
#include <math.h>
#include <setjmp.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <ucontext.h>

#include "site.h"

struct native {
    uint64_t gpr[15]; /* 0: R15 holds the address of this structure while the code runs */
    uint64_t flags;   /* 120 */
    void *code;       /* 128 */
    uint8_t mmx[8][8]; /* 136 */
    uint32_t mxcsr;    /* 200 */
    uint8_t unused[52];
    uint8_t ymm[16][32]; /* 256 */
};

const uint32_t ordinary = 0x1f80;
void run_native(struct native *state);
__asm__(".globl run_native\nrun_native:\n"
        "push %rbx; push %rbp; push %r12; push %r13; push %r14; push %r15\n"
        "mov %rdi, %r15\n"
        ".set n, 0\n.rept 8\n .byte 0x41, 0x0f, 0x6f, 0x87 + 8 * n\n .long 136 + 8 * n\n"
        ".set n, n + 1\n.endr\n"
        ".irp n, 0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15\n vmovups 256+32*\\n(%r15), %ymm\\n\n.endr\n"
        "ldmxcsr 200(%r15); push 120(%r15); popf\n"
        "mov 0(%r15), %rax; mov 8(%r15), %rcx; mov 16(%r15), %rdx; mov 24(%r15), %rbx\n"
        "mov 40(%r15), %rbp; mov 48(%r15), %rsi; mov 56(%r15), %rdi; mov 64(%r15), %r8\n"
        "mov 72(%r15), %r9; mov 80(%r15), %r10; mov 88(%r15), %r11; mov 96(%r15), %r12\n"
        "mov 104(%r15), %r13; mov 112(%r15), %r14\n"
        "call *128(%r15)\n"
        "pushf; pop 120(%r15); stmxcsr 200(%r15); ldmxcsr ordinary(%rip)\n"
        "mov %rax, 0(%r15); mov %rcx, 8(%r15); mov %rdx, 16(%r15); mov %rbx, 24(%r15)\n"
        "mov %rbp, 40(%r15); mov %rsi, 48(%r15); mov %rdi, 56(%r15); mov %r8, 64(%r15)\n"
        "mov %r9, 72(%r15); mov %r10, 80(%r15); mov %r11, 88(%r15); mov %r12, 96(%r15)\n"
        "mov %r13, 104(%r15); mov %r14, 112(%r15)\n"
        ".irp n, 0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15\n vmovups %ymm\\n, 256+32*\\n(%r15)\n.endr\n"
        ".set n, 0\n.rept 8\n .byte 0x41, 0x0f, 0x7f, 0x87 + 8 * n\n .long 136 + 8 * n\n"
        ".set n, n + 1\n.endr\n"
        "emms; vzeroupper\n"
        "pop %r15; pop %r14; pop %r13; pop %r12; pop %rbp; pop %rbx; ret\n");

enum special {
    PLAIN = -1,
    UPPER_UNDEFINED = -2, /* XMM0's upper quadword is undefined after it */
    BY_RDI = -3,          /* VMASKMOVDQU: to RDI; a CPU may fault for bytes that are not stored */
    CONTROL = -4,         /* the operand is an MXCSR */
    INSIDE = -5,          /* no operand reaches over an edge: for emulators, which tell faults otherwise */
    ANY_ALIGNMENT = -6,   /* CPUs differ about it: where this one demands it the core need not */
    ANY_SINGLE_NAN = -7,  /* which NaN it gives where several meet is in no manual */
    ANY_DOUBLE_NAN = -8,
    APPROXIMATE = -10,    /* results within a bound */
    UNDEFINED = -9        /* neither the core nor the CPU may take it: "missing" is right */
};
enum { WINDOW = 512, PAGE = 4096, XM = 19 };

static struct native native __attribute__((aligned(64)));
static sigjmp_buf escape;
static bool has_mm;  /* whether this CPU knows MXCSR.MM */
static bool between; /* whether ordinary instructions are asked for as well */

static void on_sigill(int number)
{
    siglongjmp(escape, number);
}

/* What the CPU raised in place of finishing the instruction. */
static struct {
    long number, error, address;
} trap;
static uint8_t *page; /* the instruction, and a RET behind it */
static unsigned length;

static void on_fault(int number, siginfo_t *information, void *context)
{
    (void)information;
    greg_t *registers = ((ucontext_t *)context)->uc_mcontext.gregs;
    if ((uint64_t)registers[REG_RIP] != (uint64_t)page) {
        signal(number, SIG_DFL); /* not the instruction's: it comes again, and kills */
        return;
    }
    trap.number = registers[REG_TRAPNO];
    trap.error = registers[REG_ERR];
    trap.address = registers[REG_CR2];
    registers[REG_RIP] = (greg_t)page + length;
}

static uint64_t seed = 88172645463325252u;

static uint64_t dice(void)
{
    seed ^= seed << 13;
    seed ^= seed >> 7;
    return seed ^= seed << 17;
}

/* Half the bytes are edges: where signs, saturation and ends of strings lie. */
static uint8_t any_byte(void)
{
    static const uint8_t edges[] = {0, 1, 0x7f, 0x80, 0xff, 0xfe, 8, 0x10};
    uint64_t roll = dice();
    return roll & 0x100 ? (uint8_t)roll : edges[roll & 7];
}

static void fill(void *bytes, size_t size)
{
    bool edgy = dice() & 1;
    for (size_t i = 0; i < size; i++)
        ((uint8_t *)bytes)[i] = edgy ? any_byte() : (uint8_t)dice();
}

/* Where rounding, overflow, denormals and NaNs lie, and values near each other that cancel. */
static void fill_with_floats(void)
{
    static const uint64_t edges[] = {0, 1, 0x10000000000000, 0xfffffffffffff, 0x3ff0000000000000,
        0x7fefffffffffffff, 0x7ff0000000000000, 0x7ff0000000000001, 0x7ff8000000000123,
        0x4340000000000000, 0x3fe0000000000000, 0x3ff8000000000000, 0x0010000000000001};
    static const uint32_t singles[] = {0, 1, 0x800000, 0x7fffff, 0x3f800000, 0x7f7fffff, 0x7f800000,
        0x7f800001, 0x7fc00123, 0x4b000000, 0x3f000000, 0x3fc00000, 0x477fe000, 0x38800000,
        0x387fc000, 0x33000000, 0x00800001};
    bool wide = dice() & 1;
    uint64_t near = dice();
    for (int reg = 0; reg < 16; reg++)
        for (int i = 0; i < (wide ? 4 : 8); i++) {
            uint64_t roll = dice(), value = dice();
            uint64_t sign = roll >> 8 & 1;
            if (wide) {
                if ((roll & 3) == 0)
                    value = edges[(roll >> 16) % 13];
                else if ((roll & 3) == 1) /* exponents near each other */
                    value = (near & 0x7ff0000000000000) + ((roll >> 20 & 7) << 52) +
                            (value & 0xfffffffffffff);
                else if ((roll & 3) == 2)
                    value = (value & 0xfffffffffffff) | (0x3ff + (roll >> 20) % 128 - 64) << 52;
                value = (value & ~(1ull << 63)) | sign << 63;
                memcpy(native.ymm[reg] + 8 * i, &value, 8);
            } else {
                uint32_t single = (uint32_t)value;
                if ((roll & 3) == 0)
                    single = singles[(roll >> 16) % 17];
                else if ((roll & 3) == 1)
                    single = ((uint32_t)near & 0x7f800000) + ((roll >> 20 & 3) << 23) +
                             (single & 0x7fffff);
                else if ((roll & 3) == 2)
                    single = (single & 0x7fffff) | (uint32_t)(0x7f + (roll >> 20) % 64 - 32) << 23;
                single = (single & 0x7fffffff) | (uint32_t)sign << 31;
                memcpy(native.ymm[reg] + 4 * i, &single, 4);
            }
        }
}

/* Small offsets in every doubleword and quadword, signs in the mask. */
static void fill_for_gather(int mask)
{
    for (int reg = 0; reg < 16; reg++)
        for (int i = 0; i < 32; i++)
            native.ymm[reg][i] = reg == mask ? (uint8_t)dice() : i % 8 ? 0 : dice() & 15;
}

static uint8_t *mapped; /* one page between two that are not there */

/* Where RSI points: inside, or so that an operand behind it reaches over an edge.  `window` is what
 * is compared. */
static uint8_t *place(uint8_t **window, bool edges)
{
    unsigned roll = edges ? dice() & 7 : 0;
    unsigned at = (unsigned)(dice() & 63);
    if (roll == 7) {
        *window = mapped + PAGE - WINDOW;
        return mapped + PAGE - 0x20 - at;
    }
    if (roll == 6) {
        *window = mapped;
        return mapped - 0x20 - at % 40;
    }
    *window = mapped + PAGE / 2;
    return *window + 128 + (roll & 1 ? at : 0);
}

static int move(void *context, int access, uint64_t address, uint8_t *bytes, uint32_t size,
                uint64_t *fault_address, uint32_t *error_code)
{
    (void)context;
    if (address < (uint64_t)mapped || address + size > (uint64_t)mapped + PAGE) {
        *error_code = access == ISTHMUS_WRITE ? 6 : 4;
        *fault_address = address >= (uint64_t)mapped && address < (uint64_t)mapped + PAGE
                             ? (uint64_t)mapped + PAGE : address;
        return ISTHMUS_PAGE_FAULT;
    }
    if (access == ISTHMUS_WRITE)
        memcpy((void *)address, bytes, size);
    else
        memcpy(bytes, (void *)address, size);
    return ISTHMUS_OK;
}

static bool is_nan(const uint8_t *bytes, unsigned width)
{
    float one;
    double two;
    memcpy(&one, bytes, 4);
    if (width == 4)
        return one != one;
    memcpy(&two, bytes, 8);
    return two != two;
}

/* Take the CPU's NaN for the core's in each element where both have one. */
static void same_nans(struct isthmus_machine *machine, unsigned width)
{
    for (unsigned i = 0; i < 16 * 32; i += width) {
        unsigned number = i / 32, at = i % 32;
        uint8_t *ours = at < 16 ? &machine->xmm[number][at] : &machine->ymm_high[number][at - 16];
        const uint8_t *theirs = &native.ymm[number][at];
        if (is_nan(ours, width) && is_nan(theirs, width))
            memcpy(ours, theirs, width);
    }
}

/* RCPPS and kin: a relative error of 1.5 * 2^-12 (Intel SDM vol. 2B), where results at the edge of
 * what is flushed may be zero. */
static bool near(const void *theirs, const void *ours)
{
    const float *a = theirs, *b = ours;
    for (int i = 0; i < 4; i++) {
        double one = a[i], other = b[i], least = 0x1p-126;
        bool equal = !memcmp(a + i, b + i, 4);
        bool close = isfinite(one) && isfinite(other) && signbit(one) == signbit(other) &&
                     fabs(one - other) <= 1.501 * 0x1p-12 * fabs(other);
        bool edge = fabs(one) + fabs(other) <= least * 1.001 && signbit(one) == signbit(other) &&
                    (one == 0 || other == 0);
        if (!equal && !close && !edge)
            return false;
    }
    return true;
}

static bool same_vector(const void *theirs, const void *ours, int special)
{
    return !memcmp(theirs, ours, 16) || (special == APPROXIMATE && near(theirs, ours));
}

static bool same(const struct isthmus_machine *machine, uint64_t flags, int special)
{
    for (unsigned i = 0; i < 15; i++)
        if (i != 4 && native.gpr[i] != machine->gpr[i])
            return false;
    for (unsigned i = 0; i < 16; i++)
        if (!same_vector(native.ymm[i], machine->xmm[i], special) ||
            !same_vector(native.ymm[i] + 16, machine->ymm_high[i], special))
            return false;
    return !((native.flags ^ machine->rflags) & flags) &&
           native.mxcsr == machine->mxcsr && !memcmp(native.mmx, machine->mmx, sizeof machine->mmx);
}

/* Whether the core's exception is the CPU's.  Which byte of an operand a page fault tells is left open by
 * the manual: the page must be the same. */
static bool same_fault(const struct isthmus_outcome *outcome)
{
    if (outcome->kind != ISTHMUS_FAULT)
        return trap.number == 0;
    if (trap.number != outcome->vector)
        return false;
    if (trap.number != 14)
        return !outcome->has_error || trap.error == outcome->error_code;
    return trap.error == outcome->error_code &&
           (uint64_t)trap.address / PAGE == outcome->address / PAGE;
}

static bool agrees(const uint8_t *code, uint64_t flags, int special, unsigned *faulted)
{
    static uint8_t original[WINDOW], after[WINDOW];
    struct isthmus_machine machine = {.mode = 64, .cpl = 3, .rip = 0x1000, .cr4 = 0x40600,
                                      .has_ymm = 1, .ordinary = between};
    uint8_t *memory, *base = place(&memory, special < 0 && special != INSIDE && !between);
    fill(&native, sizeof native);
    if (dice() & 1)
        fill_with_floats();
    memcpy(memory, native.ymm, WINDOW);
    if (dice() & 1)
        fill(memory, WINDOW);
    /* Rounding, flush-to-zero, denormals-are-zero and flags as they come; mostly all is masked. */
    uint32_t unmasked = dice() & 3 ? 0 : (uint32_t)(dice() & 0x1f80);
    uint32_t free = has_mm && dice() & 1 ? 0x2e07f : 0xe07f;
    native.mxcsr = machine.mxcsr = (0x1f80 ^ unmasked) | (uint32_t)(dice() & free);
    if (special >= 0)
        fill_for_gather(special);
    if (special < 0 && dice() & 1) { /* a comparison finds what it looks for, now and then */
        memcpy(memory + 128, native.ymm[dice() & 15], 32);
        memcpy(native.ymm[dice() & 15], native.ymm[dice() & 15], 32);
        memcpy(&native.gpr[0], memory + 128, 8);
        memcpy(&native.gpr[2], memory + 136, 8);
    }
    if (dice() & 1) /* lengths of strings, shift counts, fields */
        for (unsigned i = 0; i < 15; i++)
            native.gpr[i] = (uint64_t)(int64_t)(int8_t)(dice() % 80 - 20);
    native.code = page;
    native.flags = 0x202 | (dice() & 0x8d5);
    native.gpr[6] = (uint64_t)base;
    if (special == BY_RDI)
        native.gpr[7] = (uint64_t)base + 0x20;
    uint8_t *control = base + code[length - 1];
    if (special == CONTROL && control >= memory && control + 4 <= memory + WINDOW) {
        uint32_t value = dice() & 1 ? (uint32_t)(dice() & 0xffff) : (uint32_t)dice() | 1u << 31;
        memcpy(control, &value, 4);
    }
    memcpy(machine.gpr, native.gpr, sizeof native.gpr);
    memcpy(machine.mmx, native.mmx, sizeof machine.mmx);
    for (unsigned i = 0; i < 16; i++) {
        memcpy(machine.xmm[i], native.ymm[i], 16);
        memcpy(machine.ymm_high[i], native.ymm[i] + 16, 16);
    }
    machine.rflags = native.flags;
    struct isthmus_memory access = {.move = move};
    struct isthmus_outcome outcome;
    memcpy(original, memory, WINDOW);
    /* Decoded anew, or as it was kept. */
    static struct instruction kept;
    static uint8_t kept_code[16];
    static bool keeps;
    if (dice() & 1) {
        isthmus_execute(&machine, code, length, &access, &outcome);
    } else if (keeps && !memcmp(kept_code, code, length)) {
        isthmus_again(&kept, &machine, &outcome);
    } else {
        keeps = isthmus_learn(&kept, &machine, code, length, &access, &outcome);
        memcpy(kept_code, code, length);
    }
    memcpy(after, memory, WINDOW);
    memcpy(memory, original, WINDOW);
    if (special == UNDEFINED) {
        if (outcome.kind == ISTHMUS_NOT_OURS || outcome.kind == ISTHMUS_REFUSED)
            run_native(&native);
        return false;
    }
    bool faults = outcome.kind == ISTHMUS_FAULT;
    if ((outcome.kind != ISTHMUS_DONE && !faults) || outcome.length != length ||
        machine.rip != 0x1000 + (faults ? 0 : length))
        return false;
    *faulted += faults;
    trap.number = 0;
    run_native(&native);
    if (special == UPPER_UNDEFINED)
        memcpy(machine.xmm[0] + 8, native.ymm[0] + 8, 8);
    if (special == ANY_SINGLE_NAN || special == ANY_DOUBLE_NAN)
        same_nans(&machine, special == ANY_SINGLE_NAN ? 4 : 8);
    if (special == BY_RDI && trap.number == 14 && !faults)
        return true;
    /* A store of what raises #XM, to a page that is not there: either may come first. */
    if (trap.number == XM && faults && outcome.vector == 14)
        return true;
    if (special == ANY_ALIGNMENT && trap.number == 13 && (uint64_t)base & 15)
        return true;
    return same_fault(&outcome) && same(&machine, flags, special) &&
           !memcmp(after, memory, WINDOW);
}

int main(int count, char **words)
{
    between = count > 1 && !strcmp(words[1], "ordinary");
    page = mmap(NULL, PAGE, PROT_READ | PROT_WRITE | PROT_EXEC, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    mapped = mmap(NULL, 3 * PAGE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    mapped += PAGE;
    mprotect(mapped, PAGE, PROT_READ | PROT_WRITE);
    static uint8_t image[512] __attribute__((aligned(64)));
    _fxsave(image);
    has_mm = image[30] >> 1 & 1; /* MXCSR_MASK, bit 17 */
    char hex[40];
    unsigned cases, wrong, faulted;
    unsigned long flags;
    int special;
    struct sigaction action = {.sa_sigaction = on_fault, .sa_flags = SA_SIGINFO};
    sigaction(SIGSEGV, &action, NULL);
    sigaction(SIGBUS, &action, NULL);
    sigaction(SIGFPE, &action, NULL);
    signal(SIGILL, on_sigill);
    setvbuf(stdout, NULL, _IOLBF, 0);
    while (scanf("%39s %u %lx %d", hex, &cases, &flags, &special) == 4) {
        uint8_t code[16];
        length = (unsigned)strlen(hex) / 2;
        for (unsigned i = 0; i < length; i++) {
            unsigned byte;
            sscanf(hex + 2 * i, "%2x", &byte);
            code[i] = (uint8_t)byte;
        }
        memcpy(page, code, length);
        page[length] = 0xc3;
        if (sigsetjmp(escape, 1)) {
            printf("%s missing\n", hex);
            continue;
        }
        wrong = faulted = 0;
        for (unsigned i = 0; i < cases; i++)
            wrong += !agrees(code, flags, special, &faulted);
        printf("%s %u %u %u\n", hex, cases, faulted, wrong);
    }
    return 0;
}
