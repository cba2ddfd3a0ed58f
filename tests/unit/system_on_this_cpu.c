/* The emulation core beside this machine's CPU (or QEMU's user mode), for instructions whose operands are
 * addresses in registers, clocks, random numbers, or nothing; run by test_core_system.py.
 *
 * Reads lines "HEX CASES SETUP".  SETUP: letters for what the registers hold, else they are random:
 * a RAX an address, A RAX one or a line of 64 bytes, c ECX mostly small and EBX too, s RSI an address,
 * d RDI a line of 64 bytes or now and then not, w RCX a control of a wait.  Prints
 * "HEX TRIED WRONG FAULTS", or "HEX missing". */
#define _GNU_SOURCE
#include <sched.h>
#include <setjmp.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <ucontext.h>
#include <unistd.h>

#include "machine.h"

struct native {
    uint64_t gpr[15], flags; /* R15 holds the address of this structure while the code runs */
    void *code;              /* 128 */
};

void run_native(struct native *state);
__asm__(".globl run_native\nrun_native:\n"
        "push %rbx; push %rbp; push %r12; push %r13; push %r14; push %r15\n"
        "mov %rdi, %r15; push 120(%r15); popf\n"
        "mov 0(%r15), %rax; mov 8(%r15), %rcx; mov 16(%r15), %rdx; mov 24(%r15), %rbx\n"
        "mov 40(%r15), %rbp; mov 48(%r15), %rsi; mov 56(%r15), %rdi; mov 64(%r15), %r8\n"
        "mov 72(%r15), %r9; mov 80(%r15), %r10; mov 88(%r15), %r11; mov 96(%r15), %r12\n"
        "mov 104(%r15), %r13; mov 112(%r15), %r14\n"
        "call *128(%r15)\n"
        "pushf; pop 120(%r15)\n"
        "mov %rax, 0(%r15); mov %rcx, 8(%r15); mov %rdx, 16(%r15); mov %rbx, 24(%r15)\n"
        "mov %rbp, 40(%r15); mov %rsi, 48(%r15); mov %rdi, 56(%r15); mov %r8, 64(%r15)\n"
        "mov %r9, 72(%r15); mov %r10, 80(%r15); mov %r11, 88(%r15); mov %r12, 96(%r15)\n"
        "mov %r13, 104(%r15); mov %r14, 112(%r15)\n"
        "pop %r15; pop %r14; pop %r13; pop %r12; pop %rbp; pop %rbx; ret\n");

static sigjmp_buf escape;
static uint64_t trap, seed = 88172645463325252u;

static void on_signal(int number, siginfo_t *information, void *data)
{
    (void)information;
    trap = (uint64_t)((ucontext_t *)data)->uc_mcontext.gregs[REG_TRAPNO];
    siglongjmp(escape, number);
}

static uint64_t dice(void)
{
    seed ^= seed << 13;
    seed ^= seed >> 7;
    return seed ^= seed << 17;
}

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

static uint64_t clock_now(void)
{
    unsigned low, high;
    __asm__ volatile("lfence; rdtsc; lfence" : "=a"(low), "=d"(high));
    return (uint64_t)high << 32 | low;
}

static bool has(const char *setup, char letter)
{
    return strchr(setup, letter);
}

static uint8_t memory[1024] __attribute__((aligned(64))), before[1024], after[1024];

static void fill(struct native *native, const char *setup)
{
    uint64_t line = (uint64_t)memory + 64 * (1 + dice() % 8);
    for (unsigned i = 0; i < 15; i++)
        native->gpr[i] = dice();
    for (unsigned i = 0; i < sizeof memory; i++)
        memory[i] = (uint8_t)dice();
    if (has(setup, 'a') || has(setup, 'A'))
        native->gpr[0] = line + (has(setup, 'A') || dice() & 1 ? 0 : dice() % 64);
    if (has(setup, 'c')) {
        native->gpr[1] = (dice() & 3 ? 0 : dice() << 32) | (dice() & 1 ? 0 : dice() % 6);
        native->gpr[3] = dice() & 0xff;
    }
    if (has(setup, 's'))
        native->gpr[6] = line + dice() % 64;
    if (has(setup, 'd'))
        native->gpr[7] = (uint64_t)memory + 64 * (1 + dice() % 8) + (dice() & 7 ? 0 : dice() % 64);
    if (has(setup, 'w')) {
        native->gpr[1] = dice() & 1 ? dice() & 1 : dice() % 6;
        native->gpr[0] = native->gpr[2] = 0; /* a deadline long past */
    }
    native->flags = 0x202 | (dice() & 0x8d5);
}

static unsigned faults;
static bool missing;

static bool agrees(const uint8_t *code, unsigned length, uint8_t *page, const char *setup)
{
    struct native native;
    struct isthmus_machine machine = {.mode = 64, .cpl = 3, .rip = 0x1000, .cr0 = 0x80050033,
                                      .cr4 = 0x40600};
    struct isthmus_memory access = {.move = move};
    struct isthmus_outcome outcome;
    unsigned cpu, node;
    volatile int raised = 0;
    fill(&native, setup);
    native.code = page;
    memcpy(machine.gpr, native.gpr, sizeof native.gpr);
    machine.rflags = native.flags;
    memcpy(before, memory, sizeof memory);
    uint64_t earlier = clock_now();
    trap = 0;
    if ((raised = sigsetjmp(escape, 1)) == 0)
        run_native(&native);
    uint64_t later = clock_now();
    memcpy(after, memory, sizeof memory);
    memcpy(memory, before, sizeof memory);
    syscall(SYS_getcpu, &cpu, &node, NULL);
    /* What the core cannot know it is told: it must put it where the CPU put it. */
    bool random = code[length - 2] == 0xc7 && length < 5 && code[0] != 0xf3;
    bool clock = length == 3 && code[1] == 0x01 && code[2] == 0xf9;
    machine.tsc = native.gpr[2] << 32 | (uint32_t)native.gpr[0];
    machine.tsc_aux = node << 12 | cpu;
    machine.random = native.gpr[0];
    machine.random_valid = native.flags & 1;
    isthmus_execute(&machine, code, length, &access, &outcome);
    if (raised == SIGILL) {
        missing = true;
        return true;
    }
    if (raised) { /* a fault: the same vector, nothing changed */
        faults++;
        return outcome.kind == ISTHMUS_FAULT && outcome.vector == trap && machine.rip == 0x1000 &&
               !memcmp(memory, before, sizeof memory);
    }
    if (outcome.kind != ISTHMUS_DONE || outcome.length != length || machine.rip != 0x1000 + length)
        return false;
    if (clock && (machine.tsc < earlier || machine.tsc > later))
        return false;
    if (random && !machine.random_valid && (code[0] == 0x66 ? (uint16_t)native.gpr[0] : native.gpr[0]))
        return false;
    for (unsigned i = 0; i < 15; i++)
        if (i != 4 && machine.gpr[i] != native.gpr[i])
            return false;
    return !((machine.rflags ^ native.flags) & 0x8d5) && !memcmp(memory, after, sizeof memory);
}

int main(void)
{
    cpu_set_t here;
    uint8_t *page = mmap(NULL, 4096, PROT_READ | PROT_WRITE | PROT_EXEC,
                         MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    struct sigaction action = {.sa_sigaction = on_signal, .sa_flags = SA_SIGINFO | SA_NODEFER};
    char hex[40], setup[10];
    unsigned cases;
    sched_getaffinity(0, sizeof here, &here); /* one CPU: its number is compared */
    for (int i = 0, found = 0; i < CPU_SETSIZE; i++)
        if (CPU_ISSET(i, &here) && found++)
            CPU_CLR(i, &here);
    sched_setaffinity(0, sizeof here, &here);
    sigaction(SIGILL, &action, NULL);
    sigaction(SIGSEGV, &action, NULL);
    while (scanf("%39s %u %9s", hex, &cases, setup) == 3) {
        uint8_t code[16];
        unsigned length = (unsigned)strlen(hex) / 2, wrong = 0;
        for (unsigned i = 0; i < length; i++) {
            unsigned byte;
            sscanf(hex + 2 * i, "%2x", &byte);
            code[i] = (uint8_t)byte;
        }
        memcpy(page, code, length);
        page[length] = 0xc3;
        faults = 0;
        missing = false;
        for (unsigned i = 0; i < cases && !missing; i++)
            wrong += !agrees(code, length, page, setup);
        if (missing)
            printf("%s missing\n", hex);
        else
            printf("%s %u %u %u\n", hex, cases, wrong, faults);
        fflush(stdout);
    }
    return 0;
}
