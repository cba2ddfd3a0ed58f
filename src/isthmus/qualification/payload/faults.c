/* Deliberate faults whose signal must arrive, at the right address and of the right kind: a
 * translator that takes a foreign #UD for its own, or a debug stub that takes the guest's INT3,
 * is caught here.  Handlers stand only while a deliberate fault is made; at any other time an
 * unexpected fault kills this program as it kills any other. */
#include "checks.h"
#include "options.h"

#include <stdatomic.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>
#include <ucontext.h>

struct deliberate {
    const char *name;
    int signal, code;
    int code_too;            /* a second code that is right, too */
    unsigned length;         /* of the faulting instruction, to step over it; 0 for a trap */
    volatile uintptr_t site; /* its address */
};

static volatile struct deliberate *current;
static volatile sig_atomic_t arrived;
static volatile int got_signal, got_code;
static volatile uintptr_t got_site;
static sigjmp_buf way_out;
static volatile sig_atomic_t guarding;
static volatile char *forbidden;
static _Atomic uint64_t timer_signals;

extern const char fault_ud2[], fault_int3_after[], fault_divide[], fault_load[];

static void on_fault(int number, siginfo_t *info, void *context)
{
    ucontext_t *state = context;
    uintptr_t site = (uintptr_t)state->uc_mcontext.gregs[REG_RIP];
    got_signal = number;
    got_code = info->si_code;
    got_site = site;
    if (current && site == current->site && number == current->signal) {
        arrived = 1;
        state->uc_mcontext.gregs[REG_RIP] += current->length;
        return;
    }
    if (guarding)
        siglongjmp(way_out, 1);
    signal(number, SIG_DFL); /* the instruction runs again and kills us, with the kernel's message */
}

static void on_timer(int number)
{
    (void)number;
    atomic_fetch_add(&timer_signals, 1);
}

static void handle(int number, bool on)
{
    struct sigaction action = {.sa_flags = SA_SIGINFO};
    action.sa_sigaction = on_fault;
    if (!on)
        action = (struct sigaction){.sa_handler = SIG_DFL};
    sigaction(number, &action, NULL);
}

void faults_setup(void)
{
    forbidden = mmap(NULL, 4096, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    struct sigaction action = {.sa_handler = on_timer, .sa_flags = SA_RESTART};
    sigaction(SIGRTMIN, &action, NULL);
    timer_t timer;
    struct sigevent event = {.sigev_notify = SIGEV_SIGNAL, .sigev_signo = SIGRTMIN};
    struct itimerspec period = {{0, 100000000}, {0, 100000000}};
    if (timer_create(CLOCK_MONOTONIC, &event, &timer) == 0)
        timer_settime(timer, 0, &period, NULL);
}

static void report(const struct deliberate *fault)
{
    struct record record;
    record_begin(&record, "event");
    record_add(&record, "kind", "signal-lost");
    record_add(&record, "test", "%s", fault->name);
    record_add(&record, "expected", "%d", fault->signal);
    record_add(&record, "got", "%d", got_signal);
    record_add(&record, "code", "%d", got_code);
    record_add(&record, "offset", "%lld", (long long)(got_site - fault->site));
    record_commit(&record);
}

static bool happens(struct deliberate *fault, void (*run)(void))
{
    got_signal = got_code = 0;
    got_site = 0;
    arrived = 0;
    handle(fault->signal, true);
    current = fault;
    report_doing(fault->name);
    run();
    report_doing("");
    current = NULL;
    handle(fault->signal, false);
    bool right = arrived && (got_code == fault->code || got_code == fault->code_too);
    if (!right)
        report(fault);
    return right;
}

static void run_ud2(void)
{
    __asm__ volatile(".globl fault_ud2\nfault_ud2: ud2" ::: "memory");
}

static void run_int3(void)
{
    __asm__ volatile("int3\n.globl fault_int3_after\nfault_int3_after: nop" ::: "memory");
}

static void run_divide(void)
{
    uint64_t high = 0, low = 1;
    __asm__ volatile(".globl fault_divide\nfault_divide: div %2"
                     : "+a"(low), "+d"(high)
                     : "r"(UINT64_C(0))
                     : "cc", "memory");
}

static void run_load(void)
{
    uint8_t value = 0;
    __asm__ volatile(".globl fault_load\nfault_load: movb (%1), %0"
                     : "+a"(value)
                     : "d"(forbidden)
                     : "memory");
}

struct fault_counts faults_check(void)
{
    static struct fault_counts counts;
    /* Codes: Linux, include/uapi/asm-generic/siginfo.h.  The kernel gives ILL_ILLOPN for #UD
     * (arch/x86/kernel/traps.c, handle_invalid_op) and SI_KERNEL for INT3 (do_int3_user). */
    struct deliberate ud2 = {"ud2", SIGILL, ILL_ILLOPN, ILL_ILLOPN, 2, (uintptr_t)fault_ud2};
    struct deliberate int3 = {"int3", SIGTRAP, SI_KERNEL, TRAP_BRKPT, 0,
                              (uintptr_t)fault_int3_after};
    struct deliberate divide = {"divide", SIGFPE, FPE_INTDIV, FPE_INTDIV, 0,
                                (uintptr_t)fault_divide};
    struct deliberate load = {"load", SIGSEGV, SEGV_ACCERR, SEGV_ACCERR, 0, (uintptr_t)fault_load};
    /* The lengths of "div r64" (REX.W F7 /6) and "mov al, [rdx]" (8A 02), or with a REX prefix. */
    divide.length = 3;
    load.length = (*(const uint8_t *)fault_load & 0xf0) == 0x40 ? 3 : 2;
    counts.ud2 += happens(&ud2, run_ud2);
    counts.int3 += happens(&int3, run_int3);
    counts.division += happens(&divide, run_divide);
    counts.segment += happens(&load, run_load);
    counts.timer = atomic_load(&timer_signals);
    return counts;
}

bool guarded(const char *what, bool (*run)(void), bool *right)
{
    report_doing(what);
    *right = true;
    if (!options.report_faults) {
        *right = run();
    } else {
        handle(SIGILL, true);
        handle(SIGSEGV, true);
        guarding = 1;
        bool clean = sigsetjmp(way_out, 1) == 0;
        if (clean)
            *right = run();
        guarding = 0;
        handle(SIGILL, false);
        handle(SIGSEGV, false);
        if (!clean) {
            report_doing("");
            struct record record;
            record_begin(&record, "event");
            record_add(&record, "kind", "signal");
            record_add(&record, "test", "%s", what);
            record_add(&record, "signal", "%d", got_signal);
            record_add(&record, "code", "%d", got_code);
            record_add(&record, "ip", "%llx", (unsigned long long)got_site);
            record_commit(&record);
            return false;
        }
    }
    report_doing("");
    return true;
}
