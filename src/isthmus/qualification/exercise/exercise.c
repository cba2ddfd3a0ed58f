/* Executes every instruction of its table that the CPU says it has, and prints sums of the results.
 *
 * `exercise [ROUNDS [PAUSE_MS [FIRST_ROUND]]]`: in each round every chosen instruction runs once on
 * registers, flags and memory that are drawn from the round's number and the instruction's place, so
 * that two runs of one round are equal to the bit wherever they ran.  A line each round:
 *
 *     exercise ROUND ran=COUNT FEATURE=SUM ... end
 *
 * What the CPU has is asked by CPUID once, at the start.  `--each` prints a line for every
 * instruction as well, to find which one differs; `--all` runs those, too, that the lab's emulator
 * is known to do wrong.  Built with ISTHMUS_CORE, `--core` lets the
 * emulation core do the instructions instead of the CPU, all of them; it is the same otherwise.
 *
 * Not summed, since it is not defined or differs between makers: flags that the manuals leave
 * undefined (the table's mask), the x87 pointers and the exponents of MMX registers, MXCSR.DE
 * (QEMU's TCG raises it only with DAZ), clocks and random numbers, which are checked instead. */
#include <cpuid.h>
#include <errno.h>
#include <sched.h>
#include <signal.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>
#include <ucontext.h>
#include <unistd.h>

enum shape { ANY, SINGLES, DOUBLES, STRINGS, FIELD, GATHER, LINE, CLOCK, RANDOM, NUMBER, COMPARE,
             INTEGERS, HALVES, POWERS, EMPTIES, TARGET, CONTROL };

struct feature {
    const char *name;
    uint32_t leaf, subleaf;
    uint8_t register_, bit;
};

struct encoding {
    uint8_t code[15], length;
    uint8_t shape, group, mask, lab;
    uint16_t flags;
    uint64_t needs[2]; /* of each set that is not empty, one feature */
    const char *name;
};

#include "table.inc" /* features[], encodings[], FEATURES, ENCODINGS, AVX */

/* The layout is known to the code below by numbers. */
struct state {
    uint64_t gpr[16];        /* 0; number 4 is not loaded */
    uint64_t flags;          /* 128 */
    uint8_t unused[120];     /* 136 */
    uint8_t fxsave[512];     /* 256; x87, MMX, MXCSR, XMM: Intel SDM vol. 1, 10.5.1 */
    uint64_t target;         /* 768: the code to run */
    uint64_t has_avx;        /* 776 */
    uint8_t ymm[16][32];     /* 784; loaded if has_avx, else their lower halves come by fxsave */
};

struct state state __attribute__((aligned(64)));
static uint8_t clean[512] __attribute__((aligned(64)));
void *const clean_image = clean;
/* At a place that no build changes, since an address may be a result. */
static uint8_t *const memory = (uint8_t *)0x20000000;
enum { MEMORY = 256 };
static uint8_t slots[ENCODINGS][16] __attribute__((aligned(4096)));

void run(void);
__asm__(".text\n.globl run\nrun:\n"
        "push %rbx; push %rbp; push %r12; push %r13; push %r14; push %r15\n"
        "fxrstor64 state+256\n"
        "cmpq $0, state+776; je 1f\n"
        ".irp n, 0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15\n vmovups state+784+32*\\n, %ymm\\n\n.endr\n"
        "1: push state+128; popf\n"
        "mov state+0, %rax; mov state+8, %rcx; mov state+16, %rdx; mov state+24, %rbx\n"
        "mov state+40, %rbp; mov state+48, %rsi; mov state+56, %rdi; mov state+64, %r8\n"
        "mov state+72, %r9; mov state+80, %r10; mov state+88, %r11; mov state+96, %r12\n"
        "mov state+104, %r13; mov state+112, %r14; mov state+120, %r15\n"
        "call *state+768\n"
        "mov %rax, state+0; mov %rcx, state+8; mov %rdx, state+16; mov %rbx, state+24\n"
        "mov %rbp, state+40; mov %rsi, state+48; mov %rdi, state+56; mov %r8, state+64\n"
        "mov %r9, state+72; mov %r10, state+80; mov %r11, state+88; mov %r12, state+96\n"
        "mov %r13, state+104; mov %r14, state+112; mov %r15, state+120\n"
        "pushf; pop state+128\n"
        "cmpq $0, state+776; je 2f\n"
        ".irp n, 0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15\n vmovups %ymm\\n, state+784+32*\\n\n.endr\n"
        "vzeroupper\n"
        "2: fxsave64 state+256\n"
        "mov clean_image, %rax; fxrstor64 (%rax)\n"
        "pop %r15; pop %r14; pop %r13; pop %r12; pop %rbp; pop %rbx; ret\n");

/* ---- what goes in ---- */

static uint64_t seed;

static uint64_t dice(void)
{
    seed ^= seed << 13;
    seed ^= seed >> 7;
    return seed ^= seed << 17;
}

static void fill(uint8_t *bytes, size_t size, enum shape shape)
{
    for (size_t i = 0; i < size; i += 8) {
        uint64_t roll = dice(), value = roll;
        /* Exponents near each other, so that sums round and cancel; nothing that overflows. */
        if (shape == SINGLES)
            value = (roll & 0x807fffff807fffff) + ((uint64_t)(117 + (roll >> 33) % 20) << 23) +
                    ((uint64_t)(117 + (roll >> 5) % 20) << 55);
        else if (shape == DOUBLES)
            value = (roll & 0x800fffffffffffff) + ((uint64_t)(1013 + (roll >> 9) % 20) << 52);
        else if (shape == INTEGERS)
            value = roll & 0x0000ffff0000ffff;
        else if (shape == HALVES)
            value = (roll & 0x83ff83ff83ff83ff) + 0x3800340030002c00;
        else if (shape == POWERS)
            value = ((uint64_t)(97 + roll % 30 * 2) << 23) + ((uint64_t)(97 + (roll >> 8) % 30 * 2) << 55);
        else if (shape == CONTROL)
            value = (roll & 0x0000607f0000607f) | 0x00001f8000001f80;
        else if (shape == STRINGS)
            value = roll & 0x0301020003010203;
        else if (shape == GATHER)
            value = roll & 0xf;
        memcpy(bytes + i, &value, 8);
    }
}

static void prepare(const struct encoding *encoding, unsigned place, unsigned round)
{
    seed = 0x9e3779b97f4a7c15u * (round + 1) + 0xd1b54a32d192ed03u * (place + 1);
    for (unsigned i = 0; i < 8; i++)
        dice();
    enum shape shape = (enum shape)encoding->shape;
    uint16_t top = (uint16_t)(dice() & 1 && shape != EMPTIES ? dice() & 7 : 0);
    memset(&state.fxsave, 0, sizeof state.fxsave);
    fill((uint8_t *)state.gpr, sizeof state.gpr, ANY);
    fill((uint8_t *)state.ymm, sizeof state.ymm, shape);
    fill(memory, MEMORY, shape);
    if (shape == STRINGS || dice() & 1) { /* lengths, shift counts, fields */
        for (unsigned i = 0; i < 16; i++)
            state.gpr[i] = (uint64_t)(int64_t)(int8_t)(dice() % 80 - 20);
    }
    if (shape == FIELD) { /* the control: of EXTRQ in the low word, of INSERTQ in the upper quadword */
        uint64_t length = dice() % 63 + 1, index = dice() % (65 - length);
        uint64_t control = length | index << 8;
        memcpy(state.ymm[encoding->mask] + (encoding->name[0] == 'I' ? 8 : 0), &control, 8);
    }
    if (shape == GATHER)
        for (unsigned i = 0; i < 32; i++)
            state.ymm[encoding->mask][i] = (uint8_t)dice();
    state.gpr[6] = (uint64_t)memory + 64;
    if (shape == TARGET)
        state.gpr[7] = (uint64_t)memory + 64 + dice() % 64;
    if (shape == LINE)
        state.gpr[0] = (uint64_t)memory + 64 + dice() % 64;
    if (shape == COMPARE && dice() & 1) {
        memcpy(&state.gpr[0], memory + 96, 8);
        memcpy(&state.gpr[2], memory + 104, 8);
    }
    state.flags = 0x202 | (dice() & 0x8d5);
    state.target = (uint64_t)slots[place];
    /* x87: control word, TOP, all tags valid or all empty; MXCSR: rounding as it comes. */
    state.fxsave[0] = 0x7f, state.fxsave[1] = 3;
    state.fxsave[3] = (uint8_t)(top << 3);
    state.fxsave[4] = dice() & 1 ? 0xff : 0;
    uint32_t mxcsr = 0x1f80 | (uint32_t)(dice() & 0x6000);
    memcpy(state.fxsave + 24, &mxcsr, 4);
    for (unsigned i = 0; i < 8; i++) {
        fill(state.fxsave + 32 + 16 * i, 8, shape);
        state.fxsave[32 + 16 * i + 8] = 0xff, state.fxsave[32 + 16 * i + 9] = 0xff;
    }
    for (unsigned i = 0; i < 16; i++)
        memcpy(state.fxsave + 160 + 16 * i, state.ymm[i], 16);
}

/* ---- what comes out ---- */

static uint64_t mix(uint64_t sum, const void *bytes, size_t size)
{
    for (size_t i = 0; i < size; i += 8) {
        uint64_t value = 0;
        memcpy(&value, (const uint8_t *)bytes + i, size - i < 8 ? size - i : 8);
        sum = (sum ^ value) * 0x9e3779b97f4a7c15u;
        sum ^= sum >> 29;
    }
    return sum;
}

static uint64_t clock_now(void)
{
    uint32_t a, d;
    __asm__ volatile("lfence; rdtsc; lfence" : "=a"(a), "=d"(d) : : "memory");
    return a | (uint64_t)d << 32;
}

/* Clocks, random numbers and the processor's number are checked, and a verdict is summed. */
static void judge(const struct encoding *encoding, uint64_t before, const struct state *given)
{
    uint64_t after = clock_now(), verdict = 1;
    if (encoding->shape == CLOCK) {
        uint64_t read = state.gpr[0] | state.gpr[2] << 32;
        if (state.gpr[0] >> 32 || state.gpr[2] >> 32 || read < before || read > after)
            verdict = 0xbad;
        if (state.gpr[1]) /* the program stays on the first processor of the first node */
            verdict = 0xbad1;
        state.gpr[0] = state.gpr[1] = state.gpr[2] = verdict;
    } else if (encoding->shape == NUMBER || encoding->shape == RANDOM) {
        for (unsigned i = 0; i < 16; i++)
            if (state.gpr[i] != given->gpr[i]) {
                if (encoding->shape == NUMBER && state.gpr[i])
                    verdict = 0xbad;
                state.gpr[i] = verdict;
            }
        /* A CPU that has run dry gives 0 and clears CF; nothing but that may be. */
        if (encoding->shape == RANDOM && (state.flags & 0x8d5) > 1)
            state.gpr[0] ^= 0xbad;
        if (encoding->shape == RANDOM)
            state.flags = 0;
    }
}

/* EXTRQ and INSERTQ leave the upper quadword of their destination undefined (AMD APM vol. 4): Zen 5
 * and the core clear it, QEMU and Bochs keep it. */
static void drop_undefined(const uint8_t *code)
{
    unsigned at = 0;
    while (code[at] != 0x0f)
        at++;
    unsigned rex = at && (code[at - 1] & 0xf0) == 0x40 ? code[at - 1] : 0;
    unsigned reg = (rex & 4) << 1 | (code[at + 2] >> 3 & 7);
    if (code[0] == 0x66 && code[at + 1] == 0x78)
        reg = (rex & 1) << 3 | (code[at + 2] & 7);
    memset(state.fxsave + 160 + 16 * reg + 8, 0, 8);
}

static uint64_t result(const struct encoding *encoding, uint64_t sum)
{
    static const uint8_t top = 0x38;
    uint32_t mxcsr;
    uint64_t flags = state.flags & encoding->flags;
    uint8_t status = state.fxsave[3] & top;
    memcpy(&mxcsr, state.fxsave + 24, 4);
    mxcsr &= ~2u;
    state.gpr[4] = 0;
    if (encoding->shape == FIELD)
        drop_undefined(encoding->code);
    sum = mix(sum, state.gpr, sizeof state.gpr);
    sum = mix(sum, &flags, 8);
    sum = mix(sum, &mxcsr, 4);
    sum = mix(sum, &status, 1);
    sum = mix(sum, state.fxsave + 4, 1);
    for (unsigned i = 0; i < 8; i++)
        sum = mix(sum, state.fxsave + 32 + 16 * i, 8);
    sum = mix(sum, state.fxsave + 160, 256);
    if (state.has_avx)
        for (unsigned i = 0; i < 16; i++)
            sum = mix(sum, state.ymm[i] + 16, 16);
    return mix(sum, memory, MEMORY);
}

/* ---- the core in the CPU's place ---- */
#ifdef ISTHMUS_CORE
#include "machine.h"

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

static void run_on_core(const struct encoding *encoding)
{
    struct isthmus_machine machine = {.mode = 64, .cpl = 3, .cr4 = 0x40200, .has_ymm = 1,
                                      .random = 1, .random_valid = 1};
    struct isthmus_memory access = {.move = move};
    struct isthmus_outcome outcome;
    unsigned top = state.fxsave[3] >> 3 & 7;
    machine.tsc = clock_now();
    machine.rflags = state.flags;
    memcpy(machine.gpr, state.gpr, sizeof state.gpr);
    memcpy(&machine.mxcsr, state.fxsave + 24, 4);
    for (unsigned i = 0; i < 8; i++) /* the image has ST(i), MMX registers are physical ones */
        memcpy(machine.mmx[(top + i) & 7], state.fxsave + 32 + 16 * i, 8);
    for (unsigned i = 0; i < 16; i++) {
        memcpy(machine.xmm[i], state.ymm[i], 16);
        memcpy(machine.ymm_high[i], state.ymm[i] + 16, 16);
    }
    isthmus_execute(&machine, encoding->code, encoding->length, &access, &outcome);
    if (outcome.kind != ISTHMUS_DONE || outcome.length != encoding->length) {
        printf("exercise: the core does not do %s (%u)\n", encoding->name, outcome.kind);
        exit(1);
    }
    state.flags = machine.rflags;
    memcpy(state.gpr, machine.gpr, sizeof state.gpr);
    memcpy(state.fxsave + 24, &machine.mxcsr, 4);
    if (outcome.touched & (ISTHMUS_WROTE_MMX | ISTHMUS_EMPTIED_MMX)) {
        top = 0;
        state.fxsave[3] &= 0xc7;
        state.fxsave[4] = outcome.touched & ISTHMUS_EMPTIED_MMX ? 0 : 0xff;
    }
    for (unsigned i = 0; i < 8; i++)
        memcpy(state.fxsave + 32 + 16 * i, machine.mmx[(top + i) & 7], 8);
    for (unsigned i = 0; i < 16; i++) {
        memcpy(state.fxsave + 160 + 16 * i, machine.xmm[i], 16);
        memcpy(state.ymm[i] + 16, machine.ymm_high[i], 16);
    }
}
#endif

/* ---- the rounds ---- */

static const struct encoding *current;
static bool by_core, each, all;

static void on_death(int number, siginfo_t *information, void *context)
{
    char line[160];
    (void)context;
    int size = snprintf(line, sizeof line, "exercise died signal=%d name=%s place=%u at=%p\n",
                        number, current ? current->name : "-",
                        current ? (unsigned)(current - encodings) : 0, information->si_addr);
    if (write(1, line, (size_t)size) < 0)
        _exit(2);
    _exit(1);
}

static bool shown(const struct feature *feature)
{
    uint32_t word[4] = {0};
    if (!__get_cpuid_count(feature->leaf, feature->subleaf, &word[0], &word[1], &word[2], &word[3]))
        return false;
    return word[feature->register_] >> feature->bit & 1;
}

static bool chosen(const struct encoding *encoding, uint64_t has)
{
    return (encoding->lab || all) && !(encoding->needs[0] && !(encoding->needs[0] & has)) &&
           !(encoding->needs[1] && !(encoding->needs[1] & has));
}

static uint64_t execute(unsigned place, unsigned round, uint64_t sum)
{
    const struct encoding *encoding = current = &encodings[place];
    prepare(encoding, place, round);
    struct state given = state;
    uint64_t before = clock_now();
#ifdef ISTHMUS_CORE
    if (by_core)
        run_on_core(encoding);
    else
#endif
        run();
    judge(encoding, before, &given);
    sum = result(encoding, sum);
    if (each) {
        printf("exercise each %s %u ", encoding->name, place);
        for (unsigned i = 0; i < encoding->length; i++)
            printf("%02x", encoding->code[i]);
        printf(" %016llx\n", (unsigned long long)result(encoding, 0));
    }
    return sum;
}

static void round_of(unsigned round, uint64_t has)
{
    static char line[2048];
    uint64_t sums[FEATURES] = {0};
    bool used[FEATURES] = {false};
    unsigned ran = 0;
    for (unsigned i = 0; i < ENCODINGS; i++)
        if (chosen(&encodings[i], has)) {
            sums[encodings[i].group] = execute(i, round, sums[encodings[i].group]);
            used[encodings[i].group] = true;
            ran++;
        }
    current = NULL;
    size_t size = (size_t)snprintf(line, sizeof line, "exercise %u ran=%u", round, ran);
    for (unsigned i = 0; i < FEATURES; i++)
        if (used[i])
            size += (size_t)snprintf(line + size, sizeof line - size, " %s=%016llx",
                                     features[i].name, (unsigned long long)sums[i]);
    size += (size_t)snprintf(line + size, sizeof line - size, " end\n");
    fflush(stdout);
    if (write(1, line, size) < 0)
        _exit(2);
}

int main(int argc, char **argv)
{
    uint64_t has = 0;
    while (argc > 1 && !strncmp(argv[1], "--", 2)) {
        by_core |= !strcmp(argv[1], "--core");
        each |= !strcmp(argv[1], "--each");
        all |= !strcmp(argv[1], "--all");
        argc--, argv++;
    }
    unsigned long rounds = argc > 1 ? strtoul(argv[1], NULL, 10) : 0;
    unsigned long pause_ms = argc > 2 ? strtoul(argv[2], NULL, 10) : 100;
    unsigned long first = argc > 3 ? strtoul(argv[3], NULL, 10) : 0;
    struct sigaction action = {.sa_sigaction = on_death, .sa_flags = SA_SIGINFO};
    for (const int *number = (const int[]){SIGILL, SIGSEGV, SIGBUS, SIGFPE, 0}; *number; number++)
        sigaction(*number, &action, NULL);
    cpu_set_t first_cpu;
    CPU_ZERO(&first_cpu);
    CPU_SET(0, &first_cpu);
    sched_setaffinity(0, sizeof first_cpu, &first_cpu);
    for (unsigned i = 0; i < FEATURES; i++)
        if (by_core || shown(&features[i]))
            has |= 1ull << i;
    state.has_avx = shown(&features[AVX]);
    for (unsigned i = 0; i < ENCODINGS; i++) {
        memcpy(slots[i], encodings[i].code, encodings[i].length);
        slots[i][encodings[i].length] = 0xc3;
    }
    if (mmap(memory, 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE,
             -1, 0) != memory ||
        mprotect(slots, (sizeof slots + 4095) & ~4095ul, PROT_READ | PROT_WRITE | PROT_EXEC)) {
        perror("exercise");
        return 1;
    }
    clean[0] = 0x7f, clean[1] = 3;
    clean[24] = 0x80, clean[25] = 0x1f;
    for (unsigned long round = first; !rounds || round < first + rounds; round++) {
        round_of((unsigned)round, has);
        struct timespec time = {(time_t)(pause_ms / 1000), (long)(pause_ms % 1000) * 1000000};
        while (nanosleep(&time, &time) && errno == EINTR)
            ;
    }
    return 0;
}
