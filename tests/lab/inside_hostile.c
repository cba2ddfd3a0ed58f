/* Programs that mean harm, in a guest whose CPU lacks POPCNT, MOVBE and SSE4a: each case prints one
 * line, "case NAME: WHAT HAPPENED".  A CPU that has the instructions, and one that lacks them with the
 * module in its kernel, must print the same.  Static; built by test_inside_hostile.py.
 *
 * Arguments: `invalid` for what no CPU executes, `missing` for the rest, `churn SECONDS` for a load
 * during which the module may come and go. */
#define _GNU_SOURCE
#include <asm/ldt.h>
#include <asm/prctl.h>
#include <fcntl.h>
#include <pthread.h>
#include <setjmp.h>
#include <signal.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/ptrace.h>
#include <sys/syscall.h>
#include <sys/user.h>
#include <sys/wait.h>
#include <time.h>
#include <ucontext.h>
#include <unistd.h>

enum { PAGE = 4096, TF = 0x100 };
static uint8_t *const code = (uint8_t *)0x10000000; /* four pages */
static uint8_t *const data = (uint8_t *)0x20000000; /* four pages */

static const char popcnt[] = "\xf3\x0f\xb8\xc1";          /* popcnt eax, ecx */
static const char swapped[] = "\x48\x0f\x38\xf0\x07";     /* movbe rax, [rdi] */
static const char store[] = "\x48\x0f\x38\xf1\x37";       /* movbe [rdi], rsi */
static const char wide_store[] = "\xf2\x0f\x2b\x07";      /* movntsd [rdi], xmm0 */
static const char extract[] = "\x66\x0f\x78\xc0\x10\x08"; /* extrq xmm0, 16, 8 */
#define BYTES(text) text, sizeof(text) - 1

static __thread sigjmp_buf back;
static __thread volatile int got, got_code;
static __thread volatile uint64_t got_address, got_trap, got_error, got_cr2;
static volatile int unexpected;

static void on_signal(int number, siginfo_t *info, void *context)
{
    const greg_t *registers = ((ucontext_t *)context)->uc_mcontext.gregs;
    got = number, got_code = info->si_code, got_address = (uint64_t)info->si_addr;
    got_trap = registers[REG_TRAPNO], got_error = registers[REG_ERR], got_cr2 = registers[REG_CR2];
    siglongjmp(back, 1);
}

static void handle(int number, void (*handler)(int, siginfo_t *, void *))
{
    struct sigaction action = {.sa_sigaction = handler, .sa_flags = SA_SIGINFO | SA_ONSTACK};
    sigaction(number, &action, NULL);
}

static void handle_all(void)
{
    static const int all[] = {SIGILL, SIGSEGV, SIGBUS, SIGFPE, SIGTRAP};
    for (unsigned i = 0; i < sizeof all / sizeof *all; i++)
        handle(all[i], on_signal);
}

/* Call the code with RDI, RSI and RCX; returns RAX. */
static uint64_t call(const void *where, uint64_t rdi, uint64_t rsi, uint64_t rcx)
{
    uint64_t rax = 0;
    __asm__ volatile("call *%[where]"
                     : "+a"(rax), "+D"(rdi), "+S"(rsi), "+c"(rcx)
                     : [where] "r"(where)
                     : "rdx", "r8", "r9", "r10", "r11", "xmm0", "xmm1", "memory", "cc");
    return rax;
}

static void *emit_at(uint8_t *where, const char *bytes, size_t size)
{
    memcpy(where, bytes, size);
    where[size] = 0xc3;
    return where;
}

/* One line: the result, or the signal as the handler was told of it.  Of a page fault's error code only
 * the kind of access: whether a page was present is the kernel's affair. */
static void attempt(const char *name, const void *where, uint64_t rdi, uint64_t rsi)
{
    got = 0;
    if (!sigsetjmp(back, 1)) {
        uint64_t result = call(where, rdi, rsi, 0xf0f);
        printf("case %s: result %llx\n", name, (unsigned long long)result);
        return;
    }
    printf("case %s: signal %d code %d address %llx trap %llu", name, got, got_code,
           (unsigned long long)got_address, (unsigned long long)got_trap);
    if (got_trap == 14)
        printf(" error %llx cr2 %llx", (unsigned long long)got_error & 6,
               (unsigned long long)got_cr2);
    printf("\n");
}

static void invalid(void)
{
    static const struct { const char *name, *bytes; size_t size; } all[] = {
        {"ud2", BYTES("\x0f\x0b")},
        {"ud1", BYTES("\x0f\xb9\xc0")},
        {"ud0", BYTES("\x0f\xff\xc0")},
        {"push-es", BYTES("\x06")},
        {"0f04", BYTES("\x0f\x04")},
        {"0f38ff", BYTES("\x0f\x38\xff\xc0")},
        {"lock-nop", BYTES("\xf0\x90")},
        {"lock-popcnt", BYTES("\xf0\xf3\x0f\xb8\xc1")},
        {"rsm", BYTES("\x0f\xaa")},
        {"mwait", BYTES("\x0f\x01\xc9")},
        {"vmcall", BYTES("\x0f\x01\xc1")},
        {"evex", BYTES("\x62\xf1\x7c\x48\x58\xc0")},
        {"vex-of-no-map", BYTES("\xc4\xff\x78\x10\xc0")},
        {"movbe-of-a-register", BYTES("\x0f\x38\xf0\xc1")},
        {"ud2-behind-prefixes", BYTES("\x66\x66\x66\x66\x66\x66\x66\x66\x0f\x0b")},
        {"too-long", BYTES("\x66\x66\x66\x66\x66\x66\x66\x66\x66\x66\x66\x66\x66\x0f\x0b")},
    };
    for (unsigned i = 0; i < sizeof all / sizeof *all; i++)
        attempt(all[i].name, emit_at(code + 64 * i, all[i].bytes, all[i].size), 0, 0);
    attempt("ud2-at-a-page's-end", emit_at(code + PAGE - 2, BYTES("\x0f\x0b")), 0, 0);
    mprotect(code + PAGE, PAGE, PROT_NONE);
    memcpy(code + PAGE - 2, "\x0f\x0b", 2);
    attempt("ud2-before-no-page", code + PAGE - 2, 0, 0);
    mprotect(code + PAGE, PAGE, PROT_READ | PROT_WRITE | PROT_EXEC);
    for (int ignored = 0; ignored < 2; ignored++) {
        pid_t child = fork();
        int status = 0;
        if (!child) {
            sigset_t set;
            sigemptyset(&set);
            sigaddset(&set, SIGILL);
            signal(SIGILL, ignored ? SIG_IGN : SIG_DFL);
            sigprocmask(ignored ? SIG_UNBLOCK : SIG_BLOCK, &set, NULL);
            call(emit_at(code, BYTES("\x0f\x0b")), 0, 0, 0);
            _exit(0);
        }
        waitpid(child, &status, 0);
        printf("case ud2-%s: status %x\n", ignored ? "ignored" : "blocked", status & 0x7f);
    }
}

static void pages(void)
{
    char name[64];
    /* Instructions cut at every byte by a page's end, the next page there or not. */
    static const struct { const char *name, *bytes; size_t size; } cut[] = {
        {"movbe", BYTES("\x48\x0f\x38\xf0\x87\x08\x00\x00\x00")}, {"extrq", BYTES(extract)},
        {"popcnt", BYTES(popcnt)},
    };
    for (unsigned i = 0; i < sizeof cut / sizeof *cut; i++)
        for (size_t before = 1; before < cut[i].size; before++) {
            uint8_t *at = code + PAGE - before;
            emit_at(at, cut[i].bytes, cut[i].size);
            snprintf(name, sizeof name, "%s-across-%zu", cut[i].name, before);
            attempt(name, at, (uint64_t)data, 0);
            attempt(name, at, (uint64_t)data, 0);
            mprotect(code + PAGE, PAGE, PROT_NONE);
            snprintf(name, sizeof name, "%s-cut-%zu", cut[i].name, before);
            attempt(name, at, (uint64_t)data, 0);
            mprotect(code + PAGE, PAGE, PROT_READ | PROT_WRITE | PROT_EXEC);
        }
    munmap(code + PAGE, PAGE);
    memcpy(code + PAGE - 3, popcnt, 3);
    attempt("popcnt-cut-unmapped", code + PAGE - 3, 0, 0);
    mmap(code + PAGE, PAGE, PROT_READ | PROT_WRITE | PROT_EXEC,
         MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0);
}

static void operands(void)
{
    static const uint64_t bad[] = {
        0, 0x30000000, 0xffffffff81000000, 0xffff888000000000, 0xffffffffff600000,
        0x7ffffffff000, 0x7fffffffeffc, 0x800000000000, 0x1234567812345678,
    };
    char name[64];
    uint8_t *load_it = emit_at(code, BYTES(swapped)), *store_it = emit_at(code + 32, BYTES(store));
    uint8_t *wide = emit_at(code + 64, BYTES(wide_store));
    for (unsigned i = 0; i < sizeof bad / sizeof *bad; i++) {
        snprintf(name, sizeof name, "load-%llx", (unsigned long long)bad[i]);
        attempt(name, load_it, bad[i], 0);
        snprintf(name, sizeof name, "store-%llx", (unsigned long long)bad[i]);
        attempt(name, store_it, bad[i], 0);
        snprintf(name, sizeof name, "movntsd-%llx", (unsigned long long)bad[i]);
        attempt(name, wide, bad[i], 0);
    }
    uint64_t *words = (uint64_t *)data;
    words[0] = 0x0102030405060708;
    mprotect(data, PAGE, PROT_READ);
    attempt("load-read-only", load_it, (uint64_t)data, 0);
    attempt("store-read-only", store_it, (uint64_t)data, 0);
    mprotect(data, PAGE, PROT_NONE);
    attempt("load-forbidden", load_it, (uint64_t)data, 0);
    mprotect(data, PAGE, PROT_READ | PROT_WRITE);
    /* Across pages: the second forbids it, so nothing of the first is written. */
    mprotect(data + PAGE, PAGE, PROT_READ);
    attempt("store-across", store_it, (uint64_t)data + PAGE - 4, 0x1111111111111111);
    printf("case store-across-left: %x\n", *(uint32_t *)(data + PAGE - 4));
    attempt("load-across", load_it, (uint64_t)data + PAGE - 4, 0);
    mprotect(data + PAGE, PAGE, PROT_NONE);
    attempt("load-across-forbidden", load_it, (uint64_t)data + PAGE - 4, 0);
    mprotect(data + PAGE, PAGE, PROT_READ | PROT_WRITE);
    attempt("store-across-good", store_it, (uint64_t)data + PAGE - 4, 0x1122334455667788);
    attempt("load-across-good", load_it, (uint64_t)data + PAGE - 4, 0);
    /* Pages that are not there yet: of no file, shared with a child, beyond a file's end. */
    madvise(data, 4 * PAGE, MADV_DONTNEED);
    attempt("load-fresh", load_it, (uint64_t)data + 2 * PAGE, 0);
    attempt("store-fresh", store_it, (uint64_t)data + 3 * PAGE, 0x55);
    pid_t child = fork();
    if (!child) {
        attempt("store-copied", store_it, (uint64_t)data + 3 * PAGE, 0x66);
        fflush(stdout);
        _exit(0);
    }
    waitpid(child, NULL, 0);
    attempt("load-own", load_it, (uint64_t)data + 3 * PAGE, 0);
    int file = open("/hostile/file", O_RDWR | O_CREAT | O_TRUNC, 0600);
    uint8_t *mapped = mmap((void *)0x28000000, PAGE, PROT_READ | PROT_WRITE,
                           MAP_SHARED | MAP_FIXED, file, 0);
    attempt("load-beyond-the-file", load_it, (uint64_t)mapped, 0);
    attempt("store-beyond-the-file", store_it, (uint64_t)mapped, 0);
    close(file);
}

static void segments(void)
{
    uint64_t *words = (uint64_t *)data;
    char name[64];
    for (unsigned i = 0; i < 64; i++)
        words[i] = i * 0x0101010101010101;
    uint8_t *by_gs = emit_at(code, BYTES("\x65\x48\x0f\x38\xf0\x07"));
    uint8_t *late = emit_at(code + 32, BYTES("\x2e\x3e\x2e\x3e\x2e\x3e\x65\x48\x0f\x38\xf0\x07"));
    uint8_t *narrow = emit_at(code + 64, BYTES("\x65\x67\x48\x0f\x38\xf0\x07"));
    static const uint64_t bases[] = {0x20000000, 0x20000003, 0x1fffffff, 0x7fffffffe000, 0x30000000};
    for (unsigned i = 0; i < sizeof bases / sizeof *bases; i++) {
        syscall(SYS_arch_prctl, ARCH_SET_GS, bases[i]);
        snprintf(name, sizeof name, "gs-%llx", (unsigned long long)bases[i]);
        attempt(name, by_gs, 8, 0);
        attempt(name, late, 8, 0);
        attempt(name, narrow, 0x100000008, 0);
        attempt(name, by_gs, -bases[i] + 0xffffffff81000000, 0);
        attempt(name, by_gs, 0x7fffffffffff, 0);
    }
    syscall(SYS_arch_prctl, ARCH_SET_GS, 0);
}

/* Jump to 32-bit code, which jumps back, with DS as given.  No far call: QEMU 7.2 pushes its return
 * address as the supervisor, which SMAP forbids. */
static uint64_t call32(unsigned selector, unsigned ds, uint32_t where)
{
    static struct { uint32_t offset; uint16_t selector; } __attribute__((packed)) target;
    uint64_t rax = 0;
    target.offset = where, target.selector = (uint16_t)selector;
    __asm__ volatile("mov %[ds], %%ds; mov %[ds], %%es; movl $1f, (%[back]); movw $0x33, 4(%[back]);"
                     "ljmp *%[target]; 1: xor %%edx, %%edx; mov %%edx, %%ds; mov %%edx, %%es"
                     : "+a"(rax)
                     : [ds] "r"(ds), [target] "m"(target), [back] "r"(code + 257), "D"(0x20000000),
                       "c"(0xff)
                     : "rdx", "r8", "r9", "r10", "r11", "rbx", "memory", "cc");
    return rax;
}

static void attempt32(const char *name, unsigned selector, unsigned ds, uint32_t where)
{
    got = 0;
    if (!sigsetjmp(back, 1))
        printf("case %s: result %llx\n", name, (unsigned long long)call32(selector, ds, where));
    else
        printf("case %s: signal %d code %d address %llx\n", name, got, got_code,
               (unsigned long long)got_address);
}

/* 32-bit code that goes on, when done, to the far jump back. */
static void emit32(uint8_t *at, const char *bytes, size_t size)
{
    memcpy(at, bytes, size);
    at[size] = 0xe9; /* jmp to code + 256 */
    int32_t distance = (int32_t)(code + 256 - (at + size + 5));
    memcpy(at + size + 1, &distance, 4);
}

static void *narrow_mode(void *unused)
{
    (void)unused;
    memset(data, 0x12, 16);
    handle_all();
    emit32(code, BYTES(popcnt));
    emit32(code + 32, BYTES("\x0f\x38\xf0\x07"));                 /* movbe eax, [edi] */
    emit32(code + 64, BYTES("\x67\x0f\x38\xf0\x05"));             /* movbe eax, [di] */
    emit32(code + 96, BYTES("\x0f\x38\xf0\x05\x00\x00\x00\x30")); /* movbe eax, [0x30000000] */
    code[256] = 0xea; /* jmp far 33:label, which call32() completes */
    attempt32("compat-popcnt", 0x23, 0x2b, 0x10000000);
    attempt32("compat-load", 0x23, 0x2b, 0x10000020);
    attempt32("compat-load-16", 0x23, 0x2b, 0x10000040);
    attempt32("compat-load-unmapped", 0x23, 0x2b, 0x10000060);
    struct user_desc own = {.entry_number = 0, .base_addr = 0x1000, .limit = 0xfffff,
                            .seg_32bit = 1, .contents = 2, .limit_in_pages = 1, .useable = 1};
    if (syscall(SYS_modify_ldt, 1, &own, sizeof own))
        printf("case ldt: none\n");
    attempt32("ldt-code-with-a-base", 7, 0x2b, 0x10000000 - 0x1000);
    own.entry_number = 1, own.contents = 0;
    syscall(SYS_modify_ldt, 1, &own, sizeof own);
    attempt32("ldt-data-with-a-base", 0x23, 15, 0x10000020);
    return NULL;
}

/* A stack below 4 GiB, for signals that come in 32-bit code. */
static void on_own_low_stack(void *(*function)(void *))
{
    void *stack = mmap((void *)0x40000000, 64 * PAGE, PROT_READ | PROT_WRITE,
                       MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0);
    pthread_attr_t attributes;
    pthread_t thread;
    pthread_attr_init(&attributes);
    pthread_attr_setstack(&attributes, stack, 64 * PAGE);
    pthread_create(&thread, &attributes, function, NULL);
    pthread_join(thread, NULL);
}

static uint64_t steps[64];
static unsigned stepped;

static void on_step(int number, siginfo_t *info, void *context)
{
    (void)number;
    uint64_t rip = (uint64_t)((ucontext_t *)context)->uc_mcontext.gregs[REG_RIP];
    if (rip >> 16 == (uint64_t)code >> 16 && stepped < 64)
        steps[stepped++] = (rip & 0xffff) | (uint64_t)info->si_code << 32 |
                           ((uint64_t)info->si_addr == rip ? 0 : UINT64_C(1) << 48);
}

static const char stepping[] =
    "\x9c\x81\x0c\x24\x00\x01\x00\x00\x9d"  /* pushf; or [rsp], TF; popf */
    "\x90\xf3\x0f\xb8\xc1\xf3\x0f\xb8\xc1\x66\x0f\x78\xc0\x10\x08\x90\x0f\x38\xf0\x07\x90"
    "\x9c\x81\x24\x24\xff\xfe\xff\xff\x9d"; /* the same without TF */

static void single_steps(void)
{
    handle(SIGTRAP, on_step);
    emit_at(code, BYTES(stepping));
    for (int twice = 0; twice < 2; twice++) { /* learnt, and met again */
        stepped = 0;
        call(code, (uint64_t)data, 0, 0xff);
        printf("case own-steps-%d:", twice);
        for (unsigned i = 0; i < stepped; i++)
            printf(" %llx", (unsigned long long)steps[i]);
        printf("\n");
    }
    handle_all();
    emit_at(code, BYTES("\x90\xf3\x0f\xb8\xc1\xf3\x0f\xb8\xc1\x0f\x38\xf0\x07\x90"));
    pid_t child = fork();
    if (!child) {
        ptrace(PTRACE_TRACEME, 0, 0, 0);
        raise(SIGSTOP);
        call(code, (uint64_t)data, 0, 0xff);
        _exit(0);
    }
    int status;
    waitpid(child, &status, 0);
    printf("case traced-steps:");
    for (unsigned n = 0; n < 20000; n++) {
        struct user_regs_struct registers;
        ptrace(PTRACE_SINGLESTEP, child, 0, 0);
        if (waitpid(child, &status, 0) != child || !WIFSTOPPED(status))
            break;
        ptrace(PTRACE_GETREGS, child, 0, &registers);
        if (registers.rip >> 16 == (uint64_t)code >> 16)
            printf(" %llx/%d", registers.rip & 0xffff, WSTOPSIG(status));
    }
    kill(child, SIGKILL);
    waitpid(child, &status, 0);
    printf("\n");
}

/* The handler of a page fault uses what is missing, and cures the fault; the instruction comes again. */
static volatile unsigned cured;

static void on_fault(int number, siginfo_t *info, void *context)
{
    (void)number, (void)context;
    if (call(code + 128, 0, 0, 0xff) != 8)
        unexpected++;
    mprotect((void *)((uint64_t)info->si_addr & ~UINT64_C(4095)), PAGE, PROT_READ | PROT_WRITE);
    cured++;
}

static void nested(void)
{
    static uint8_t other[1 << 16];
    stack_t alternate = {.ss_sp = other, .ss_size = sizeof other}, off = {.ss_flags = SS_DISABLE};
    emit_at(code + 128, BYTES(popcnt));
    emit_at(code, BYTES(swapped));
    sigaltstack(&alternate, NULL);
    handle(SIGSEGV, on_fault);
    for (unsigned i = 0; i < 8; i++) {
        mprotect(data, PAGE, PROT_NONE);
        call(code, (uint64_t)data + 8 * i, 0, 0);
    }
    sigaltstack(&off, NULL);
    handle_all();
    printf("case nested: cured %u unexpected %d\n", cured, unexpected);
    /* A handler that interrupts runs of missing instructions at any place. */
    pid_t child = fork();
    int status;
    if (!child) {
        signal(SIGSEGV, SIG_IGN);
        call(code, 0x30000000, 0, 0);
        _exit(0);
    }
    waitpid(child, &status, 0);
    printf("case fault-ignored: status %x\n", status & 0x7f);
}

/* Others change the code, its page or the operand's page while it runs.  What may come is one of what
 * the old and the new state gives; never a SIGILL for what was no UD2, nor a wrong result. */
static volatile bool over;
static volatile unsigned faults, undefined;

static void on_race(int number, siginfo_t *info, void *context)
{
    ucontext_t *at = context;
    (void)info;
    if (number == SIGILL) {
        undefined++;
        at->uc_mcontext.gregs[REG_RIP] += 4; /* UD2 and two NOPs */
    } else {
        faults++; /* and again */
    }
}

static void *rewrite(void *with)
{
    volatile uint32_t *where = (uint32_t *)code;
    const uint32_t *words = with;
    for (unsigned i = 0; !over; i++) {
        *where = words[i % 3];
        usleep(i % 128);
    }
    return NULL;
}

static void *protect(void *where)
{
    bool is_code = where == code + PAGE;
    while (!over) {
        mprotect(where, PAGE, PROT_NONE);
        mprotect(where, PAGE, PROT_READ | PROT_WRITE | (is_code ? PROT_EXEC : 0));
        usleep(20);
    }
    return NULL;
}

static void *replace(void *where)
{
    while (!over) {
        munmap(where, PAGE);
        mmap(where, PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0);
        usleep(20);
    }
    return NULL;
}

static void race(const char *name, void *(*other)(void *), void *with, unsigned rounds,
                 uint64_t (*one)(void), uint64_t first, uint64_t second, bool deadly)
{
    pthread_t thread;
    unsigned wrong = 0;
    over = false, faults = undefined = 0;
    pthread_create(&thread, NULL, other, with);
    for (unsigned i = 0; i < rounds; i++) {
        uint64_t result = one();
        if (result != first && result != second)
            wrong++;
    }
    over = true;
    pthread_join(thread, NULL);
    printf("case %s: wrong %u undefined %s\n", name, wrong,
           deadly ? "at will" : undefined ? "wrongly" : "never");
    printf("info %s: faults %u undefined %u\n", name, faults, undefined);
}

static uint64_t at_code(void) { return call(code, (uint64_t)data, 0, 0xff) & 0xff; }
static uint64_t at_second(void) { return call(code + PAGE, (uint64_t)data, 0, 0xff); }
static uint64_t at_operand(void) { return call(code, (uint64_t)data, 0, 0xff); }

static void races(void)
{
    /* popcnt eax, ecx; a NOP of four bytes; popcnt eax, eax of a zero: 8, 0, 0 */
    static uint32_t harmless[3] = {0xc1b80ff3, 0x00401f0f, 0xc0b80ff3};
    static uint32_t deadly[3] = {0xc1b80ff3, 0x90900b0f, 0x00401f0f};
    handle(SIGILL, on_race);
    handle(SIGSEGV, on_race);
    emit_at(code, BYTES(popcnt));
    race("code-rewritten", rewrite, harmless, 4000, at_code, 8, 0, false);
    emit_at(code, BYTES(popcnt));
    race("code-rewritten-to-ud2", rewrite, deadly, 4000, at_code, 8, 0, true);
    emit_at(code + PAGE, BYTES(popcnt));
    race("code-forbidden", protect, code + PAGE, 3000, at_second, 8, 8, false);
    emit_at(code, BYTES(swapped));
    memset(data, 0, PAGE);
    race("operand-forbidden", protect, data, 3000, at_operand, 0, 0, false);
    race("operand-replaced", replace, data, 3000, at_operand, 0, 0, false);
    handle_all();
}

/* Registers of many threads and processes stay their own. */
static void *crunch(void *seed)
{
    uint64_t state = (uint64_t)seed * 0x9e3779b97f4a7c15u + 1, wrong = 0;
    for (unsigned i = 0; i < 3000; i++) {
        state ^= state << 13, state ^= state >> 7, state ^= state << 17;
        uint64_t count, loaded, low, memory = state;
        __asm__ volatile("movq %[state], %%xmm0; movq %[state], %%xmm9;"
                         ".byte 0xf3,0x48,0x0f,0xb8,0xc1;" /* popcnt rax, rcx */
                         ".byte 0x66,0x0f,0x78,0xc0,16,8;" /* extrq xmm0, 16, 8 */
                         ".byte 0x48,0x0f,0x38,0xf0,0x17;" /* movbe rdx, [rdi] */
                         "movq %%xmm0, %[low]"
                         : "=&a"(count), "=&d"(loaded), [low] "=&r"(low)
                         : [state] "r"(state), "c"(state), "D"(&memory), "m"(memory)
                         : "xmm0", "xmm9", "cc");
        wrong += count != (uint64_t)__builtin_popcountll(state) ||
                 loaded != __builtin_bswap64(state) || low != (state >> 8 & 0xffff);
    }
    return (void *)wrong;
}

static void many(void)
{
    pthread_t threads[6];
    uint64_t wrong = 0;
    int status, bad = 0;
    for (uint64_t i = 0; i < 6; i++)
        pthread_create(&threads[i], NULL, crunch, (void *)i);
    for (unsigned i = 0; i < 6; i++) {
        void *one;
        pthread_join(threads[i], &one);
        wrong += (uint64_t)one;
    }
    printf("case threads: wrong %llu\n", (unsigned long long)wrong);
    fflush(stdout);
    for (unsigned i = 0; i < 12; i++) {
        pid_t child = fork();
        if (!child) {
            if (i % 3 == 0)
                _exit(crunch((void *)(uint64_t)i) != NULL);
            if (i % 3 == 1)
                execl("/proc/self/exe", "hostile", "crunch", NULL);
            for (;;)
                crunch((void *)(uint64_t)i);
        }
        usleep(3000);
        if (i % 3 == 2)
            kill(child, SIGKILL);
        waitpid(child, &status, 0);
        bad += i % 3 == 2 ? !WIFSIGNALED(status) : status != 0;
    }
    printf("case processes: wrong %d\n", bad);
}

/* While the module comes and goes: a SIGILL is tried again. */
static volatile uint64_t refused;

static void on_refusal(int number, siginfo_t *info, void *context)
{
    (void)number, (void)info, (void)context;
    refused++;
}

static void churn(time_t seconds)
{
    time_t end = time(NULL) + seconds;
    uint64_t rounds = 0, wrong = 0;
    handle(SIGILL, on_refusal);
    emit_at(code, BYTES(swapped));
    while (time(NULL) < end) {
        madvise(data, PAGE, MADV_DONTNEED); /* task work each time */
        wrong += call(code, (uint64_t)data, 0, 0) != 0;
        rounds++;
    }
    printf("case churn: wrong %llu\n", (unsigned long long)wrong);
    printf("info churn: rounds %llu refused %llu\n", (unsigned long long)rounds,
           (unsigned long long)refused);
}

int main(int count, char **arguments)
{
    setvbuf(stdout, NULL, _IOLBF, 0);
    mmap(code, 4 * PAGE, PROT_READ | PROT_WRITE | PROT_EXEC,
         MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0);
    mmap(data, 4 * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0);
    const char *what = count > 1 ? arguments[1] : "";
    handle_all();
    if (!strcmp(what, "crunch"))
        return crunch(NULL) != NULL;
    if (!strcmp(what, "invalid"))
        invalid();
    if (!strcmp(what, "churn"))
        churn(atoi(arguments[2]));
    if (strcmp(what, "missing"))
        return 0;
    pages();
    operands();
    segments();
    on_own_low_stack(narrow_mode);
    single_steps();
    nested();
    races();
    many();
    return 0;
}
