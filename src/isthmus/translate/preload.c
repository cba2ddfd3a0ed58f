/* The placement inside one process: a SIGILL handler around the emulation core, for LD_PRELOAD.
 *
 * What it keeps to (all met by experiment, see docs/translation.md):
 * - a blocked or ignored SIGILL kills the process before any handler runs, and a program's own
 *   handler would replace ours: so sigaction, signal, sigprocmask and pthread_sigmask are interposed,
 *   SIGILL stays ours and open, and the program's own handler gets what we decline;
 * - coroutines have small stacks: the handler runs on an alternate stack, one for each thread;
 * - the frame's extended state is in the standard format; a component that is written must have its
 *   bit in XSTATE_BV set, or the kernel restores its initial state (Intel SDM vol. 1, 13.4);
 * - memory is reached by process_vm_readv and _writev, which say EFAULT where a touch would raise
 *   SIGSEGV at an address of ours; the fault is then raised at the program's own instruction;
 * - nothing here reads a clock by the C library: the vDSO may hold the very instruction.
 */
#define _GNU_SOURCE
#include <cpuid.h>
#include <dlfcn.h>
#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/auxv.h>
#include <sys/mman.h>
#include <sys/random.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <ucontext.h>
#include <unistd.h>

#include "core/machine.h"

#define EXPORTED __attribute__((visibility("default")))

enum { MOST_IN_ONE_TRAP = 64, GUARD = 4096, LONGEST = 15, WINDOW = 64 };
enum { MAGIC1 = 0x46505853, X87 = 1, SSE = 2, AVX = 4 };

static int (*real_sigaction)(int, const struct sigaction *, struct sigaction *);
static int (*real_sigmask)(int, const sigset_t *, sigset_t *);
static int (*real_create)(pthread_t *, const pthread_attr_t *, void *(*)(void *), void *);
static struct sigaction theirs = {.sa_handler = SIG_DFL};
static unsigned ymm_offset;
static char report[4096]; /* where counts go at the end, or "" */
static _Atomic uint64_t counts[ISTHMUS_MNEMONICS], refusals[ISTHMUS_FAMILIES];
static _Atomic uint64_t traps;

/* The kernel's layout of the frame (arch/x86/include/uapi/asm/sigcontext.h). */
struct frame {
    uint8_t head[24];
    uint32_t mxcsr, mxcsr_mask;
    uint8_t st[8][16];
    uint8_t xmm[16][16];
    uint8_t reserved[48];
    uint32_t magic1, size;
    uint64_t features;
    uint32_t state_size, padding[7];
    uint64_t present; /* XSTATE_BV, at 512 */
};

static const int order[16] = {
    REG_RAX, REG_RCX, REG_RDX, REG_RBX, REG_RSP, REG_RBP, REG_RSI, REG_RDI,
    REG_R8,  REG_R9,  REG_R10, REG_R11, REG_R12, REG_R13, REG_R14, REG_R15,
};

/* The program's code from `start` on, as far as it was read. */
struct window {
    uint64_t start;
    size_t available;
    uint8_t code[WINDOW];
};

static int move(void *context, int access, uint64_t address, uint8_t *bytes, uint32_t size,
                uint64_t *fault_address, uint32_t *error_code)
{
    if (access == ISTHMUS_WRITE && context)
        ((struct window *)context)->available = 0; /* it may write what comes next */
    struct iovec ours = {bytes, size}, guests = {(void *)address, size};
    int saved = errno;
    long call = access == ISTHMUS_WRITE ? SYS_process_vm_writev : SYS_process_vm_readv;
    long moved = syscall(call, getpid(), &ours, 1L, &guests, 1L, 0L);
    if (moved < 0 && errno != EFAULT) { /* forbidden here: touch it, come what may */
        memcpy(access == ISTHMUS_WRITE ? (void *)address : bytes,
               access == ISTHMUS_WRITE ? bytes : (void *)address, size);
        moved = size;
    }
    errno = saved;
    if (moved == (long)size)
        return ISTHMUS_OK;
    *fault_address = address + (moved > 0 ? (uint64_t)moved : 0);
    *error_code = access == ISTHMUS_WRITE ? 6 : 4;
    return ISTHMUS_PAGE_FAULT;
}

static void take_state(struct isthmus_machine *machine, const ucontext_t *context)
{
    const greg_t *registers = context->uc_mcontext.gregs;
    const struct frame *frame = (const struct frame *)context->uc_mcontext.fpregs;
    unsigned low, high;
    memset(machine, 0, sizeof *machine);
    for (unsigned i = 0; i < 16; i++)
        machine->gpr[i] = (uint64_t)registers[order[i]];
    machine->rip = (uint64_t)registers[REG_RIP];
    machine->rflags = (uint64_t)registers[REG_EFL];
    machine->mode = 64;
    machine->cpl = 3;
    /* OSFXSR, OSXMMEXCPT, OSXSAVE: what every Linux sets.  LA57, which it may have set: touching tells. */
    machine->cr4 = 0x41600;
    machine->mxcsr = frame->mxcsr;
    memcpy(machine->xmm, frame->xmm, sizeof machine->xmm);
    for (unsigned i = 0; i < 8; i++) /* by stack order; MMX code has the top at 0 */
        memcpy(machine->mmx[i], frame->st[i], 8);
    machine->has_ymm = ymm_offset && frame->magic1 == MAGIC1 && frame->features & AVX;
    if (machine->has_ymm && frame->present & AVX)
        memcpy(machine->ymm_high, (const uint8_t *)frame + ymm_offset, sizeof machine->ymm_high);
    __asm__ volatile("lfence; rdtsc" : "=a"(low), "=d"(high));
    machine->tsc = (uint64_t)high << 32 | low;
}

/* What only some instructions ask for, each at the price of a system call: the bases of FS and GS,
 * TSC_AUX as Linux fills it (RDTSCP, RDPID), random numbers. */
static void take_the_rest(struct isthmus_machine *machine, const uint8_t *code, size_t available)
{
    for (size_t i = 0; i + 1 < available; i++) {
        if (code[i] == 0x64 || code[i] == 0x65) {
            unsigned long base = 0;
            syscall(SYS_arch_prctl, code[i] == 0x64 ? 0x1003 : 0x1004, &base);
            machine->segment_base[code[i] == 0x64 ? ISTHMUS_FS : ISTHMUS_GS] = base;
        } else if (code[i] == 0x0f && (code[i + 1] == 0x01 || code[i + 1] == 0xc7)) {
            unsigned cpu = 0, node = 0;
            syscall(SYS_getcpu, &cpu, &node, NULL);
            machine->tsc_aux = node << 12 | cpu;
            machine->random_valid = syscall(SYS_getrandom, &machine->random, 8L, 1L) == 8;
        }
    }
}

static void give_state(const struct isthmus_machine *machine, const struct isthmus_outcome *all,
                       ucontext_t *context)
{
    greg_t *registers = context->uc_mcontext.gregs;
    struct frame *frame = (struct frame *)context->uc_mcontext.fpregs;
    for (unsigned i = 0; i < 16; i++)
        registers[order[i]] = (greg_t)machine->gpr[i];
    registers[REG_RIP] = (greg_t)machine->rip;
    registers[REG_EFL] = (greg_t)machine->rflags;
    if (all->touched & ISTHMUS_WROTE_MXCSR)
        frame->mxcsr = machine->mxcsr;
    bool extended = frame->magic1 == MAGIC1;
    if (all->xmm_written) {
        memcpy(frame->xmm, machine->xmm, sizeof machine->xmm);
        if (extended)
            frame->present |= SSE;
    }
    if (all->ymm_written) {
        memcpy((uint8_t *)frame + ymm_offset, machine->ymm_high, sizeof machine->ymm_high);
        frame->present |= AVX;
    }
    for (unsigned i = 0; i < 8; i++)
        if (all->mmx_written >> i & 1) {
            memcpy(frame->st[i], machine->mmx[i], 8);
            frame->st[i][8] = frame->st[i][9] = 0xff;
        }
    if (all->touched & (ISTHMUS_WROTE_MMX | ISTHMUS_EMPTIED_MMX)) {
        frame->head[4] = all->touched & ISTHMUS_EMPTIED_MMX ? 0 : 0xff; /* abridged tags */
        frame->head[3] &= (uint8_t)~0x38;                               /* TOP 0 */
        if (extended)
            frame->present |= X87;
    }
}

/* The bytes at an address, of which `available` can be read; asked of the kernel only where they are not
 * at hand: reading is the dearest thing in a trap. */
static const uint8_t *fetch(struct window *window, uint64_t address, size_t *available)
{
    uint64_t fault, offset = address - window->start;
    uint32_t error;
    if (offset < window->available && window->available - offset >= LONGEST) {
        *available = LONGEST;
        return window->code + offset;
    }
    size_t to_page_end = GUARD - address % GUARD, first = WINDOW < to_page_end ? WINDOW : to_page_end;
    window->start = address;
    window->available = 0;
    if (move(NULL, ISTHMUS_READ, address, window->code, (uint32_t)first, &fault, &error) ==
        ISTHMUS_OK)
        window->available = first;
    if (window->available && first < LONGEST &&
        move(NULL, ISTHMUS_READ, address + first, window->code + first,
             (uint32_t)(LONGEST - first), &fault, &error) == ISTHMUS_OK)
        window->available = LONGEST;
    *available = window->available < LONGEST ? window->available : LONGEST;
    return window->code;
}

/* Raise at the program's instruction what it would have raised itself. */
static void raise_fault(const struct isthmus_outcome *outcome)
{
    siginfo_t information = {0};
    information.si_signo = outcome->vector == 19 ? SIGFPE : outcome->vector == 17 ? SIGBUS : SIGSEGV;
    information.si_code = outcome->vector == 14   ? SEGV_MAPERR
                          : outcome->vector == 19 ? FPE_FLTINV
                          : outcome->vector == 17 ? BUS_ADRALN
                                                  : SI_KERNEL;
    information.si_addr = outcome->vector == 14 ? (void *)outcome->address : NULL;
    syscall(SYS_rt_tgsigqueueinfo, getpid(), syscall(SYS_gettid), information.si_signo,
            &information);
}

/* What we decline is the program's own: its handler, or the death that it would have died. */
static void decline_to_program(int number, siginfo_t *information, void *context)
{
    if (theirs.sa_flags & SA_SIGINFO) {
        theirs.sa_sigaction(number, information, context);
    } else if (theirs.sa_handler != SIG_DFL && theirs.sa_handler != SIG_IGN) {
        theirs.sa_handler(number);
    } else {
        struct sigaction standard = {.sa_handler = SIG_DFL};
        real_sigaction(SIGILL, &standard, NULL); /* the instruction raises it again */
    }
}

static void on_sigill(int number, siginfo_t *information, void *data)
{
    ucontext_t *context = data;
    struct isthmus_machine machine;
    struct isthmus_outcome outcome, all = {0};
    struct window window = {.available = 0};
    const struct isthmus_memory memory = {.move = move, .context = &window};
    unsigned done = 0;
    if (information->si_code == SI_USER || information->si_code == SI_TKILL) {
        decline_to_program(number, information, data);
        return;
    }
    take_state(&machine, context);
    /* A run of missing instructions is done in one trap: it costs a thousand times their work. */
    while (done < MOST_IN_ONE_TRAP) {
        size_t available;
        const uint8_t *code = fetch(&window, machine.rip, &available);
        take_the_rest(&machine, code, available);
        isthmus_execute(&machine, code, available, &memory, &outcome);
        if (outcome.kind != ISTHMUS_DONE)
            break;
        atomic_fetch_add_explicit(&counts[outcome.mnemonic & 0xffff], 1, memory_order_relaxed);
        all.touched |= outcome.touched;
        all.xmm_written |= outcome.xmm_written;
        all.ymm_written |= outcome.ymm_written;
        all.mmx_written |= outcome.mmx_written;
        done++;
        if (outcome.touched & (ISTHMUS_USED_TSC | ISTHMUS_USED_RANDOM))
            break; /* a second one needs a fresh reading */
    }
    if (done) {
        atomic_fetch_add_explicit(&traps, 1, memory_order_relaxed);
        give_state(&machine, &all, context);
    } else if (outcome.kind == ISTHMUS_FAULT) {
        all.touched = outcome.touched;
        give_state(&machine, &all, context);
        raise_fault(&outcome);
    } else {
        if (outcome.kind == ISTHMUS_REFUSED)
            atomic_fetch_add_explicit(&refusals[outcome.refused], 1, memory_order_relaxed);
        decline_to_program(number, information, data);
    }
}

/* An alternate stack for this thread, with a guard page below. */
static void lend_stack(void)
{
    stack_t old;
    if (sigaltstack(NULL, &old) == 0 && !(old.ss_flags & SS_DISABLE))
        return; /* the program has its own */
    size_t size = getauxval(AT_MINSIGSTKSZ) + 64 * 1024;
    uint8_t *memory = mmap(NULL, size + GUARD, PROT_READ | PROT_WRITE,
                           MAP_PRIVATE | MAP_ANONYMOUS | MAP_STACK, -1, 0);
    if (memory == MAP_FAILED)
        return;
    mprotect(memory, GUARD, PROT_NONE);
    stack_t stack = {.ss_sp = memory + GUARD, .ss_size = size};
    sigaltstack(&stack, NULL);
}

struct thread {
    void *(*run)(void *);
    void *argument;
};

static void *begin_thread(void *data)
{
    struct thread thread = *(struct thread *)data;
    free(data);
    lend_stack();
    return thread.run(thread.argument);
}

static void find_real(void)
{
    if (real_create)
        return;
    real_sigaction = dlsym(RTLD_NEXT, "sigaction");
    real_sigmask = dlsym(RTLD_NEXT, "pthread_sigmask");
    real_create = dlsym(RTLD_NEXT, "pthread_create");
}

EXPORTED int pthread_create(pthread_t *id, const pthread_attr_t *attributes, void *(*run)(void *),
                            void *argument)
{
    find_real();
    struct thread *thread = malloc(sizeof *thread);
    if (!thread)
        return EAGAIN;
    *thread = (struct thread){run, argument};
    int failed = real_create(id, attributes, begin_thread, thread);
    if (failed)
        free(thread);
    return failed;
}

EXPORTED int sigaction(int number, const struct sigaction *action, struct sigaction *old)
{
    find_real();
    if (number != SIGILL)
        return real_sigaction(number, action, old);
    struct sigaction before = theirs;
    if (action)
        theirs = *action;
    if (old)
        *old = before;
    return 0;
}

EXPORTED sighandler_t signal(int number, sighandler_t handler)
{
    struct sigaction action = {.sa_handler = handler, .sa_flags = SA_RESTART}, old;
    return sigaction(number, &action, &old) ? SIG_ERR : old.sa_handler;
}

static int masked(int how, const sigset_t *set, sigset_t *old)
{
    find_real();
    sigset_t open;
    if (set && how != SIG_UNBLOCK) {
        open = *set;
        sigdelset(&open, SIGILL);
        set = &open;
    }
    return real_sigmask(how, set, old);
}

EXPORTED int pthread_sigmask(int how, const sigset_t *set, sigset_t *old)
{
    return masked(how, set, old);
}

EXPORTED int sigprocmask(int how, const sigset_t *set, sigset_t *old)
{
    int failed = masked(how, set, old);
    if (failed)
        errno = failed;
    return failed ? -1 : 0;
}

static void put(char *line, size_t *at, const char *text)
{
    while (*text && *at < 200)
        line[(*at)++] = *text++;
}

static void put_number(char *line, size_t *at, uint64_t value)
{
    char digits[24];
    unsigned count = 0;
    do
        digits[count++] = (char)('0' + value % 10);
    while (value /= 10);
    while (count && *at < 200)
        line[(*at)++] = digits[--count];
}

static bool tell_line(int file, const char *before, const char *name, uint64_t count)
{
    char line[256];
    size_t at = 0;
    put(line, &at, before);
    put(line, &at, name);
    put(line, &at, " ");
    put_number(line, &at, count);
    put(line, &at, "\n");
    return write(file, line, at) >= 0;
}

/* At the end of the process: "traps N", then "MNEMONIC N" for each, then "refused FAMILY N" for what
 * is known and done by nobody, appended whole. */
__attribute__((destructor)) static void tell(void)
{
    uint64_t count, refused = 0;
    for (uint32_t i = 0; i < ISTHMUS_FAMILIES; i++)
        refused += atomic_load(&refusals[i]);
    if (!report[0] || (!atomic_load(&traps) && !refused))
        return;
    int file = (int)syscall(SYS_open, report, 02001 | 0100, 0600); /* append, write, create */
    if (file < 0)
        return;
    bool told = tell_line(file, "", "traps", atomic_load(&traps));
    for (uint32_t i = 1; told && i < ISTHMUS_MNEMONICS; i++)
        if ((count = atomic_load(&counts[i])))
            told = tell_line(file, "", isthmus_mnemonic_name(i), count);
    for (uint32_t i = 1; told && i < ISTHMUS_FAMILIES; i++)
        if ((count = atomic_load(&refusals[i])))
            told = tell_line(file, "refused ", isthmus_refused_name(i), count);
    close(file);
}

/* The linker runs this before every other library's constructors (-z initfirst), which may need it;
 * so the C library is not set up yet, and the environment comes as an argument. */
__attribute__((constructor)) static void begin(int count, char **arguments, char **environment)
{
    static const char name[] = "ISTHMUS_RUN_REPORT=";
    unsigned a, b, c, d;
    (void)count, (void)arguments;
    find_real();
    if (__get_cpuid_count(0xd, 2, &a, &b, &c, &d) && a)
        ymm_offset = b;
    for (; environment && *environment; environment++)
        if (!strncmp(*environment, name, sizeof name - 1) &&
            strlen(*environment) < sizeof name + sizeof report - 1)
            strcpy(report, *environment + sizeof name - 1);
    lend_stack();
    struct sigaction action = {.sa_sigaction = on_sigill,
                               .sa_flags = SA_SIGINFO | SA_ONSTACK | SA_NODEFER | SA_RESTART};
    /* Signals wait until the handler is done: a fault that it raises belongs to the instruction. */
    sigfillset(&action.sa_mask);
    real_sigaction(SIGILL, &action, &theirs);
    sigset_t open;
    sigemptyset(&open);
    sigaddset(&open, SIGILL);
    real_sigmask(SIG_UNBLOCK, &open, NULL);
}
