/* The emulation core beside this machine's own CPU: random instructions, registers, flags and memory.
 * Prints "NAME CASES MISMATCHES" for each instruction that this CPU has.  Built by test_core.py. */
#include <cpuid.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "machine.h"

#define ARITHMETIC 0x8d5u /* OF SF ZF AF PF CF */

struct native {
    uint64_t gpr[15]; /* R15 holds the address of this structure while the code runs */
    uint64_t flags;
    void *code;
};

void run_native(struct native *state);
__asm__(".globl run_native\nrun_native:\n"
        "push %rbx; push %rbp; push %r12; push %r13; push %r14; push %r15\n"
        "mov %rdi, %r15\n"
        "push 120(%r15); popf\n"
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

static uint64_t seed = 88172645463325252u;

static uint64_t dice(void)
{
    seed ^= seed << 13;
    seed ^= seed >> 7;
    return seed ^= seed << 17;
}

static uint64_t value(void)
{
    static const uint64_t edges[] = {0, 1, ~0ull, 1ull << 63, 0x7fffffff, 0x80000000u, 0xff, 0x8000};
    return dice() % 4 ? dice() : edges[dice() % (sizeof edges / sizeof *edges)];
}

struct form {
    const char *name;
    uint8_t prefix;     /* F2, F3 or 0 */
    uint8_t opcode[3];
    uint8_t opcodes;
    bool takes_registers, takes_memory, no_modrm, byte;
};

static const struct form forms[] = {
    {"POPCNT", 0xf3, {0x0f, 0xb8}, 2, true, true, false, false},
    {"CRC32", 0xf2, {0x0f, 0x38, 0xf1}, 3, true, true, false, false},
    {"CRC32B", 0xf2, {0x0f, 0x38, 0xf0}, 3, true, true, false, true},
    {"MOVBE", 0, {0x0f, 0x38, 0xf0}, 3, false, true, false, false},
    {"MOVBE-STORE", 0, {0x0f, 0x38, 0xf1}, 3, false, true, false, false},
    {"LAHF", 0, {0x9f}, 1, false, false, true, false},
    {"SAHF", 0, {0x9e}, 1, false, false, true, false},
};

/* Registers that a random instruction may name: not RSP (4), not RSI (6, the memory operand's base),
 * not R15 (the harness's). */
static unsigned any_register(void)
{
    static const unsigned usable[] = {0, 1, 2, 3, 5, 7, 8, 9, 10, 11, 12, 13, 14};
    return usable[dice() % 13];
}

static unsigned build(const struct form *form, uint8_t *code)
{
    unsigned at = 0;
    if (dice() % 3 == 0 && !form->no_modrm)
        code[at++] = 0x66;
    if (form->prefix)
        code[at++] = form->prefix;
    bool memory = form->takes_memory && (!form->takes_registers || dice() % 2);
    unsigned reg = any_register(), rm = memory ? 6 : any_register();
    uint8_t rex = (uint8_t)(0x40 | (dice() & 1) << 3 | (reg >> 3) << 2 | rm >> 3);
    if (!form->no_modrm && (rex != 0x40 || form->byte))
        code[at++] = rex;
    memcpy(code + at, form->opcode, form->opcodes);
    at += form->opcodes;
    if (form->no_modrm)
        return at;
    if (memory) {
        code[at++] = (uint8_t)(0x40 | (reg & 7) << 3 | 6); /* [RSI + disp8] */
        code[at++] = (uint8_t)(dice() & 0x3f);
    } else {
        code[at++] = (uint8_t)(0xc0 | (reg & 7) << 3 | (rm & 7));
    }
    return at;
}

/* The core's memory is ours. */
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

static bool differs(const struct form *form, uint8_t *page)
{
    uint8_t memory[80], after[80], code[16];
    unsigned length = build(form, code);
    memcpy(page, code, length);
    page[length] = 0xc3;
    for (unsigned i = 0; i < sizeof memory; i++)
        memory[i] = (uint8_t)dice();
    struct native native = {.code = page, .flags = 0x202 | (dice() & ARITHMETIC)};
    struct isthmus_machine machine = {.mode = 64, .cpl = 3, .rip = 0x1000};
    for (unsigned i = 0; i < 15; i++)
        native.gpr[i] = value();
    native.gpr[6] = (uint64_t)memory;
    memcpy(machine.gpr, native.gpr, sizeof native.gpr);
    machine.rflags = native.flags;
    struct isthmus_memory access = {.move = move};
    struct isthmus_outcome outcome;
    uint8_t original[sizeof memory];
    memcpy(original, memory, sizeof memory);
    isthmus_execute(&machine, code, length, &access, &outcome);
    memcpy(after, memory, sizeof memory);
    memcpy(memory, original, sizeof memory);
    if (outcome.kind != ISTHMUS_DONE || outcome.length != length)
        return true;
    run_native(&native);
    for (unsigned i = 0; i < 15; i++)
        if (i != 4 && native.gpr[i] != machine.gpr[i])
            return true;
    return (native.flags ^ machine.rflags) & ARITHMETIC || memcmp(after, memory, sizeof memory)
           || machine.rip != 0x1000 + length;
}

int main(int argc, char **argv)
{
    unsigned cases = argc > 1 ? (unsigned)atoi(argv[1]) : 10000, a, b, c, d;
    uint8_t *page = mmap(NULL, 4096, PROT_READ | PROT_WRITE | PROT_EXEC,
                         MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    __cpuid(1, a, b, c, d);
    for (unsigned f = 0; f < sizeof forms / sizeof *forms; f++) {
        const struct form *form = &forms[f];
        unsigned bit = form->prefix == 0xf3 ? 23 : form->prefix == 0xf2 ? 20 : 22;
        if (!form->no_modrm && !(c >> bit & 1))
            continue;
        unsigned wrong = 0;
        for (unsigned i = 0; i < cases; i++)
            wrong += differs(form, page);
        printf("%s %u %u\n", form->name, cases, wrong);
    }
    return 0;
}
