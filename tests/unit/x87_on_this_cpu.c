/* FISTTP, and an instruction of MMX, by the core and by this machine's CPU, with the whole x87 state.
 *
 * The argument says how many random states to try of each.  Prints "NAME TRIED WRONG WAITING UNMASKED":
 * how many states had an exception waiting, in how many the instruction raised an unmasked one.
 *
 * With PRELOAD defined it is not the core alone but the signal handler of `isthmus run` that does the
 * instruction: a breakpoint before it calls the handler, as if this CPU lacked what follows. */
#ifdef PRELOAD
#include "process/trap.c" /* its handler is static */
#else
#define _GNU_SOURCE
#endif
#include <setjmp.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "core/machine.h"

struct state { /* what FXSAVE64 stores (Intel SDM vol. 1, table 10-2) */
    uint16_t control, status;
    uint8_t tags, reserved;
    uint16_t opcode;
    uint64_t ip, data;
    uint32_t mxcsr, mask;
    uint8_t st[8][16];
    uint8_t rest[352];
} __attribute__((aligned(16)));


static sigjmp_buf trapped;
static uint64_t seed = 88172645463325252u;

static void on_sigfpe(int number)
{
    siglongjmp(trapped, number);
}

static uint64_t dice(void)
{
    seed ^= seed << 13;
    seed ^= seed >> 7;
    return seed ^= seed << 17;
}

static void fill_register(uint8_t *st)
{
    static const uint64_t edges[] = {0, 1, 1ull << 63, ~0ull, 1ull << 62, 3ull << 62,
        (3ull << 62) | 1, (1ull << 63) | 1, 0xffff800000000000, 0xffffffff00000000, 0xfffffffe00000000};
    static const uint16_t ends[] = {0, 1, 0x7fff, 0x7ffe, 0x3fff, 0x3ffe};
    uint64_t significand = dice() & 1 ? dice() : edges[dice() % 11];
    uint16_t high = dice() & 3 ? (uint16_t)(0x3ffd + dice() % 68) : ends[dice() % 6];
    if (dice() % 8)
        significand |= 1ull << 63;
    high |= (uint16_t)((dice() & 1) << 15);
    memset(st, 0, 16);
    memcpy(st, &significand, 8);
    memcpy(st + 8, &high, 2);
}

static void fill_state(struct state *state)
{
    __asm__ volatile("fninit; fxsave64 %0" : "=m"(*state));
    state->control = (uint16_t)(0x40 | (dice() & 3 ? 0x3f : dice() & 0x3f) | (dice() & 0xf00));
    state->status = (uint16_t)(dice() & 0x7f00);
    if (!(dice() % 4))
        state->status |= (uint16_t)(dice() & 0x7f);
    if (state->status & ~state->control & 0x3f)
        state->status |= 0x8080;
    state->tags = (uint8_t)(dice() | dice() | dice());
    for (unsigned i = 0; i < 8; i++)
        fill_register(state->st[i]);
}

static bool run_native(struct state *state, void *code, void *memory)
{
    if (sigsetjmp(trapped, 1))
        return false;
    __asm__ volatile("fxrstor64 (%0)\n call *%1\n fxsave64 (%0)\n fninit"
                     : : "r"(state), "r"(code), "S"(memory) : "memory");
    return true;
}

/* C0, C2, C3 are undefined after it; some CPUs keep the last instruction only for an exception. */
static const uint16_t undefined = 0x4500;

#ifdef PRELOAD
enum { BREAKPOINT = 64 }; /* where the same code stands behind INT3 */

static bool agrees(uint8_t *code, unsigned length, unsigned long *waiting, unsigned long *unmasked)
{
    static uint8_t memory[16] __attribute__((aligned(16))), original[16], after[16];
    struct state state, ours;
    (void)length;
    fill_state(&state);
    ours = state;
    for (unsigned i = 0; i < sizeof memory; i++)
        original[i] = memory[i] = (uint8_t)dice();
    bool translated = run_native(&ours, code + BREAKPOINT, memory);
    memcpy(after, memory, sizeof memory);
    memcpy(memory, original, sizeof memory);
    bool done = run_native(&state, code, memory);
    *waiting += !done;
    if (!done || !translated)
        return done == translated && !memcmp(after, memory, sizeof memory);
    bool raised = state.status & 0x80;
    *unmasked += raised;
    if (raised && (ours.ip != state.ip + BREAKPOINT + 1 || ours.data != state.data))
        return false;
    return !memcmp(after, memory, sizeof memory) && ours.tags == state.tags &&
           ours.control == state.control && !((ours.status ^ state.status) & ~undefined) &&
           !memcmp(ours.st, state.st, sizeof ours.st);
}
#else
static int move(void *context, int access, uint64_t address, uint8_t *bytes, uint32_t size,
                uint64_t *fault_address, uint32_t *error_code)
{
    (void)context, (void)fault_address, (void)error_code;
    if (access == ISTHMUS_WRITE)
        memcpy((void *)address, bytes, size);
    else
        memcpy(bytes, (void *)address, size);
    return ISTHMUS_OK;
}

static bool agrees(uint8_t *code, unsigned length, unsigned long *waiting, unsigned long *unmasked)
{
    static uint8_t memory[16] __attribute__((aligned(16))), original[16], after[16];
    struct state state;
    struct isthmus_machine machine = {.mode = 64, .cpl = 3, .cr4 = 0x200, .has_x87 = 1};
    struct isthmus_memory access = {.move = move};
    struct isthmus_outcome outcome;
    fill_state(&state);
    unsigned top = state.status >> 11 & 7;
    for (unsigned i = 0; i < 8; i++) {
        memcpy(machine.mmx[(i + top) & 7], state.st[i], 8);
        memcpy(&machine.x87_high[(i + top) & 7], state.st[i] + 8, 2);
    }
    machine.x87_control = state.control;
    machine.x87_status = state.status;
    machine.x87_tags = state.tags;
    machine.rip = (uint64_t)code;
    machine.gpr[6] = (uint64_t)memory;
    for (unsigned i = 0; i < sizeof memory; i++)
        memory[i] = (uint8_t)dice();
    memcpy(original, memory, sizeof memory);
    isthmus_execute(&machine, code, length, &access, &outcome);
    memcpy(after, memory, sizeof memory);
    memcpy(memory, original, sizeof memory);
    bool done = run_native(&state, code, memory);
    bool pending = outcome.kind == ISTHMUS_FAULT && outcome.vector == 16;
    *waiting += pending;
    if (pending || !done)
        return pending && !done && !memcmp(after, original, sizeof after) &&
               machine.rip == (uint64_t)code;
    bool raised = machine.x87_status & 0x80;
    *unmasked += raised;
    if (outcome.touched & ISTHMUS_WROTE_MMX) { /* what the caller has to do then */
        machine.x87_status &= (uint16_t)~0x3800;
        machine.x87_tags = 0xff;
        for (unsigned i = 0; i < 8; i++)
            if (outcome.mmx_written >> i & 1)
                machine.x87_high[i] = 0xffff;
    }
    top = state.status >> 11 & 7;
    for (unsigned i = 0; i < 8; i++)
        if (memcmp(machine.mmx[(i + top) & 7], state.st[i], 8) ||
            memcmp(&machine.x87_high[(i + top) & 7], state.st[i] + 8, 2))
            return false;
    if (raised && (machine.x87_ip != state.ip || machine.x87_dp != state.data ||
                   (state.opcode && machine.x87_opcode != state.opcode)))
        return false;
    return outcome.kind == ISTHMUS_DONE && machine.rip == (uint64_t)code + length &&
           !memcmp(after, memory, sizeof memory) && machine.x87_tags == state.tags &&
           machine.x87_control == state.control &&
           !((machine.x87_status ^ state.status) & ~undefined);
}
#endif

int main(int count, char **words)
{
    static const struct {
        const char *name;
        unsigned length;
        uint8_t code[4];
    } all[] = {
        {"FISTTP/16", 2, {0xdf, 0x0e}},
        {"FISTTP/32", 2, {0xdb, 0x0e}},
        {"FISTTP/64", 2, {0xdd, 0x0e}},
        {"PSHUFB", 4, {0x0f, 0x38, 0x00, 0xca}}, /* MM1, MM2 */
    };
    unsigned long cases = count > 1 ? strtoul(words[1], NULL, 10) : 1000;
    uint8_t *page = mmap(NULL, 4096, PROT_READ | PROT_WRITE | PROT_EXEC,
                         MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    struct sigaction action = {.sa_handler = on_sigfpe};
    sigaction(SIGFPE, &action, NULL);
#ifdef PRELOAD
    struct sigaction breakpoint = {.sa_sigaction = on_sigill, .sa_flags = SA_SIGINFO};
    sigaction(SIGTRAP, &breakpoint, NULL);
#endif
    for (unsigned k = 0; k < sizeof all / sizeof *all; k++) {
        unsigned long wrong = 0, waiting = 0, unmasked = 0;
        memcpy(page, all[k].code, 4);
        page[all[k].length] = 0xc3;
#ifdef PRELOAD
        page[BREAKPOINT] = 0xcc;
        memcpy(page + BREAKPOINT + 1, page, 5);
#endif
        for (unsigned long i = 0; i < cases; i++)
            wrong += !agrees(page, all[k].length, &waiting, &unmasked);
        printf("%s %lu %lu %lu %lu\n", all[k].name, cases, wrong, waiting, unmasked);
    }
    return 0;
}
