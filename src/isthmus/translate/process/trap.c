/* The placement inside one process: a SIGILL handler around the emulation core, for LD_PRELOAD.
 *
 * One trap: the registers come from the signal frame, the code and the operands through memory.c, the
 * core executes, the frame is written, and what the instruction raises is delivered as the kernel would.
 * Of the rest see signals.c, deliver.c, stacks.c; what was met by experiment is in docs/translation.md. */
#include "process.h"

#include <asm/prctl.h>
#include <cpuid.h>
#include <string.h>
#include <sys/prctl.h>

enum { MOST_IN_ONE_TRAP = 64 };
enum { TF = 0x100, RF = 0x10000, AC = 0x40000, TSD = 4, TRACED = 2 };
enum { DB = 1, SS = 12, GP = 13, PF = 14, MF = 16, ALIGNMENT = 17, XM = 19, FETCH = 0x10 };
enum { USER32 = 0x23, USER64 = 0x33 };

static unsigned ymm_offset;
static bool has_keys; /* OSPKE: Linux keeps memory that may only be executed under a key of its own */

static const int order[16] = {
    REG_RAX, REG_RCX, REG_RDX, REG_RBX, REG_RSP, REG_RBP, REG_RSI, REG_RDI,
    REG_R8,  REG_R9,  REG_R10, REG_R11, REG_R12, REG_R13, REG_R14, REG_R15,
};

static void take_state(struct isthmus_machine *machine, const ucontext_t *context)
{
    const greg_t *registers = context->uc_mcontext.gregs;
    const struct frame *frame = (const struct frame *)context->uc_mcontext.fpregs;
    memset(machine, 0, sizeof *machine);
    for (unsigned i = 0; i < 16; i++)
        machine->gpr[i] = (uint64_t)registers[order[i]];
    machine->rip = (uint64_t)registers[REG_RIP];
    machine->rflags = (uint64_t)registers[REG_EFL];
    machine->mode = (registers[REG_CSGSFS] & 0xffff) == USER32 ? 32 : 64;
    machine->cpl = 3;
    machine->cr0 = 0x80050033; /* AM among them: EFLAGS.AC counts */
    /* OSFXSR, OSXMMEXCPT, OSXSAVE: what every Linux sets.  LA57, which it may have set: reaching tells. */
    machine->cr4 = 0x41600;
    machine->mxcsr = frame->x87.mxcsr;
    memcpy(machine->xmm, frame->xmm, sizeof machine->xmm);
    take_x87_image(machine, &frame->x87);
    machine->has_ymm = ymm_offset && frame->magic1 == MAGIC1 && frame->features & AVX;
    if (machine->has_ymm && frame->present & AVX)
        memcpy(machine->ymm_high, (const uint8_t *)frame + ymm_offset, sizeof machine->ymm_high);
}

/* What only some instructions ask for, each at the price of a system call: the bases of FS and GS,
 * TSC_AUX as Linux fills it (RDTSCP, RDPID), random numbers, the TSC if the program may read it. */
static void take_the_rest(struct isthmus_machine *machine, const uint8_t *code, size_t available)
{
    for (size_t i = 0; i + 1 < available; i++) {
        if (code[i] == 0x64 || code[i] == 0x65) {
            uint64_t base = 0;
            RAW(SYS_arch_prctl, code[i] == 0x64 ? ARCH_GET_FS : ARCH_GET_GS, &base, 0, 0, 0, 0);
            machine->segment_base[code[i] == 0x64 ? ISTHMUS_FS : ISTHMUS_GS] = base;
        } else if (code[i] == 0x0f && (code[i + 1] == 0x01 || code[i + 1] == 0xc7)) {
            unsigned cpu = 0, node = 0, low = 0, high = 0;
            int allowed = PR_TSC_ENABLE;
            RAW(SYS_getcpu, &cpu, &node, 0, 0, 0, 0);
            machine->tsc_aux = node << 12 | cpu;
            machine->random_valid = RAW(SYS_getrandom, &machine->random, 8, 1, 0, 0, 0) == 8;
            RAW(SYS_prctl, PR_GET_TSC, &allowed, 0, 0, 0, 0);
            if (allowed == PR_TSC_SIGSEGV)
                machine->cr4 |= TSD;
            else
                __asm__ volatile("lfence; rdtsc" : "=a"(low), "=d"(high));
            machine->tsc = (uint64_t)high << 32 | low;
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
        frame->x87.mxcsr = machine->mxcsr;
    if (all->xmm_written) {
        memcpy(frame->xmm, machine->xmm, sizeof machine->xmm);
        if (frame->magic1 == MAGIC1)
            frame->present |= SSE;
    }
    if (all->ymm_written) {
        memcpy((uint8_t *)frame + ymm_offset, machine->ymm_high, sizeof machine->ymm_high);
        frame->present |= AVX;
    }
    if (all->touched & (ISTHMUS_WROTE_MMX | ISTHMUS_EMPTIED_MMX | ISTHMUS_WROTE_X87)) {
        give_x87_image(machine, all, &frame->x87);
        if (frame->magic1 == MAGIC1)
            frame->present |= X87;
    }
}

static void set_keys(uint32_t rights) /* WRPKRU; the program's own rights are in the frame */
{
    __asm__ volatile(".byte 0x0f, 0x01, 0xef" : : "a"(rights), "c"(0), "d"(0) : "memory");
}

/* Memory that may be executed and not read: only a protection key keeps a CPU from reading it. */
static bool fetch_unreadable(struct window *window, uint64_t address, size_t size)
{
    struct region region = region_at(address);
    uint32_t rights = 0, high;
    if (!region.executable || region.readable)
        return false;
    if (has_keys) {
        __asm__ volatile(".byte 0x0f, 0x01, 0xee" : "=a"(rights), "=d"(high) : "c"(0)); /* RDPKRU */
        set_keys(0);
    }
    memcpy(window->code, (const void *)address, size);
    if (has_keys)
        set_keys(rights);
    return true;
}

/* The bytes at an address up to the end of its page; asked of the kernel only where they are not at
 * hand: reading is the dearest thing in a trap. */
static const uint8_t *fetch(struct window *window, uint64_t address, size_t *available)
{
    uint64_t fault, offset = address - window->start;
    uint32_t error;
    size_t to_page_end = PAGE - address % PAGE, first = WINDOW < to_page_end ? WINDOW : to_page_end;
    if (offset < window->available &&
        window->available - offset >= (LONGEST < to_page_end ? LONGEST : to_page_end)) {
        *available = window->available - offset;
        return window->code + offset;
    }
    window->start = address;
    window->available = 0;
    if (reach(NULL, ISTHMUS_READ, address, window->code, (uint32_t)first, &fault, &error) ==
            ISTHMUS_OK ||
        fetch_unreadable(window, address, first))
        window->available = first;
    *available = window->available;
    return window->code;
}

/* The rest of an instruction that goes on in the next page; false if that cannot be executed. */
static bool fetch_beyond(struct window *window, uint64_t address, size_t *available)
{
    size_t first = PAGE - address % PAGE;
    uint64_t fault;
    uint32_t error;
    if (first >= LONGEST || !region_at(address + first).executable)
        return false;
    fetch(window, address, available);
    memmove(window->code, window->code + (address - window->start), first);
    window->start = address;
    window->available = 0; /* not for what follows: the page may change its rights */
    if (reach(NULL, ISTHMUS_READ, address + first, window->code + first,
              (uint32_t)(LONGEST - first), &fault, &error) != ISTHMUS_OK)
        return false;
    *available = LONGEST;
    return true;
}

/* The page fault of an operand or a fetch, as Linux tells it (arch/x86/mm/fault.c). */
static void raise_page_fault(uint64_t address, uint64_t error, ucontext_t *context)
{
    struct region region = region_at(address);
    bool allowed = error & FETCH ? region.executable : error & 2 ? region.writable : region.readable;
    bool kernels = address >> 63;
    struct exception exception = {SIGSEGV, region.mapped ? SEGV_ACCERR : SEGV_MAPERR, address, PF,
                                  error, address};
    if (kernels || (region.mapped && region.readable))
        exception.error |= 1; /* a page is there */
    if (region.mapped && allowed) /* and yet not to be had: a file that ends before */
        exception = (struct exception){SIGBUS, BUS_ADRERR, address, PF, error, address};
    deliver_exception(&exception, context);
}

/* The code of SIGFPE (arch/x86/kernel/fpu/core.c, fpu__exception_code). */
static int floating_code(uint32_t flags, uint32_t masks)
{
    uint32_t raised = flags & ~masks;
    return raised & 1 ? FPE_FLTINV : raised & 4 ? FPE_FLTDIV : raised & 8 ? FPE_FLTOVF
         : raised & 0x12 ? FPE_FLTUND : raised & 0x20 ? FPE_FLTRES : 0;
}

/* Raise at the program's instruction what it would have raised itself (arch/x86/kernel/traps.c). */
static void raise_fault(const struct isthmus_outcome *outcome, const struct isthmus_machine *machine,
                  ucontext_t *context)
{
    struct exception exception = {SIGSEGV, SI_KERNEL, 0, outcome->vector, outcome->error_code, 0};
    switch (outcome->vector) {
    case PF:
        if (!beyond_canonical(outcome->address)) {
            raise_page_fault(outcome->address, outcome->error_code, context);
            return;
        }
        exception.trap = GP;
        exception.error = 0;
        break;
    case SS:
        exception.number = SIGBUS;
        break;
    case ALIGNMENT:
        exception.number = SIGBUS;
        exception.code = BUS_ADRALN;
        break;
    case XM:
        exception.number = SIGFPE;
        exception.code = floating_code(machine->mxcsr, machine->mxcsr >> 7);
        exception.address = machine->rip;
        break;
    case MF:
        exception.number = SIGFPE;
        exception.code = floating_code(machine->x87_status, machine->x87_control);
        exception.address = machine->rip;
        break;
    default:
        break;
    }
    deliver_exception(&exception, context);
}

/* UD0, UD1, UD2, whatever their prefixes: meant as they are. */
static bool meant(const uint8_t *code, size_t available)
{
    size_t i = 0;
    while (i < available && (code[i] == 0x66 || code[i] == 0xf2 || code[i] == 0xf3 ||
                             code[i] == 0x67 || (code[i] & 0xf0) == 0x40))
        i++;
    return i + 1 < available && code[i] == 0x0f &&
           (code[i + 1] == 0x0b || code[i + 1] == 0xb9 || code[i + 1] == 0xff);
}

/* Whether a #UD that is not ours is worth another attempt: another thread may have written the code anew
 * between the trap and our look at it.  Bytes that trap ENOUGH times in a row at one place mean it; they
 * are remembered, so that this is paid once. */
enum { PLACES = 256, ENOUGH = 64 };
static uint64_t doubted[PLACES]; /* a print of place and bytes, and in the low byte how often */

static uint64_t *doubt_of(uint64_t rip)
{
    return &doubted[(rip ^ rip >> 8) % PLACES];
}

static bool try_again(uint64_t rip, const uint8_t *code, size_t available)
{
    uint64_t print = rip * UINT64_C(0x9e3779b97f4a7c15), *place = doubt_of(rip);
    if (meant(code, available))
        return false;
    for (size_t i = 0; i < available && i < LONGEST; i++)
        print = (print ^ code[i]) * UINT64_C(0x100000001b3);
    print |= 0xff;
    uint64_t before = __atomic_load_n(place, __ATOMIC_RELAXED);
    unsigned times = (before | 0xff) == print ? before & 0xff : 0;
    if (times == ENOUGH)
        return false;
    __atomic_store_n(place, (print & ~UINT64_C(0xff)) + times + 1, __ATOMIC_RELAXED);
    return true;
}

/* The code is such that something else may stand there by and by. */
static void forget_doubt(uint64_t rip)
{
    if (__atomic_load_n(doubt_of(rip), __ATOMIC_RELAXED))
        __atomic_store_n(doubt_of(rip), 0, __ATOMIC_RELAXED);
}

/* One instruction; false where its code is no more there, or goes on where nothing can be executed. */
static bool execute(struct isthmus_machine *machine, struct window *window, const uint8_t **code,
                    size_t *available, struct isthmus_outcome *outcome)
{
    const struct isthmus_memory memory = {.move = reach, .context = window};
    uint64_t rip = machine->rip;
    *code = fetch(window, rip, available);
    if (!*available)
        return false;
    take_the_rest(machine, *code, *available < LONGEST ? *available : LONGEST);
    isthmus_execute(machine, *code, *available, &memory, outcome);
    if (outcome->kind != ISTHMUS_MORE_BYTES || *available >= LONGEST)
        return true;
    if (!fetch_beyond(window, rip, available))
        return false;
    *code = window->code;
    take_the_rest(machine, *code, LONGEST);
    isthmus_execute(machine, *code, LONGEST, &memory, outcome);
    return true;
}

static void not_done(bool readable, struct isthmus_outcome *outcome, siginfo_t *information,
                     const struct isthmus_machine *machine, const uint8_t *code, size_t available,
                     ucontext_t *context)
{
    if (!readable && !available) {
        struct region region = region_at(machine->rip);
        if (region.executable && !region.readable)
            deliver_sigill(information, context);
        return; /* else the page has gone: the CPU tells, in a second attempt */
    }
    if (!readable) {
        raise_page_fault((machine->rip | (PAGE - 1)) + 1, 4 | FETCH, context);
    } else if (outcome->kind == ISTHMUS_FAULT) {
        give_state(machine, outcome, context);
        raise_fault(outcome, machine, context);
    } else if (!try_again(machine->rip, code, available)) {
        if (outcome->kind == ISTHMUS_REFUSED)
            count_refused(outcome->refused);
        deliver_sigill(information, context);
    }
}

static void on_sigill(int number, siginfo_t *information, void *data)
{
    ucontext_t *context = data;
    struct isthmus_machine machine;
    struct isthmus_outcome outcome, all = {0};
    struct window window = {.available = 0};
    const uint8_t *code;
    size_t available;
    unsigned done = 0;
    bool readable = true;
    (void)number;
    /* The program's flag of alignment checks is still set; it is not for us. */
    __builtin_ia32_writeeflags_u64(__builtin_ia32_readeflags_u64() & ~(unsigned long long)AC);
    uint64_t selector = (uint64_t)context->uc_mcontext.gregs[REG_CSGSFS] & 0xffff;
    if (information->si_code <= 0 || !context->uc_mcontext.fpregs ||
        (selector != USER32 && selector != USER64)) {
        deliver_sigill(information, context);
        return;
    }
    take_state(&machine, context);
    uint64_t page = machine.rip / PAGE;
    /* A run of missing instructions is done in one trap: it costs a thousand times their work. */
    do {
        readable = execute(&machine, &window, &code, &available, &outcome);
        if (!readable || outcome.kind != ISTHMUS_DONE)
            break;
        count_done(outcome.mnemonic);
        all.touched |= outcome.touched;
        all.xmm_written |= outcome.xmm_written;
        all.ymm_written |= outcome.ymm_written;
        all.mmx_written |= outcome.mmx_written;
        if (outcome.touched & (ISTHMUS_WROTE_MMX | ISTHMUS_EMPTIED_MMX))
            machine.has_x87 = 0; /* the tags are no longer those that were taken */
        done++;
        /* A second reading of a clock must be a fresh one; a step is reported by itself; another
         * page may not be executable. */
    } while (done < MOST_IN_ONE_TRAP && !(machine.rflags & TF) && machine.rip / PAGE == page &&
             !(outcome.touched & (ISTHMUS_USED_TSC | ISTHMUS_USED_RANDOM | ISTHMUS_WROTE_X87)));
    if (!done) {
        not_done(readable, &outcome, information, &machine, code, available, context);
        return;
    }
    count_trap();
    forget_doubt((uint64_t)context->uc_mcontext.gregs[REG_RIP]);
    machine.rflags &= ~(uint64_t)RF; /* set by the fault, so that the instruction be tried again */
    give_state(&machine, &all, context);
    if (machine.rflags & TF) {
        const struct exception step = {SIGTRAP, TRACED, machine.rip, DB, 0, 0};
        deliver_exception(&step, context);
    }
}

/* The linker runs this before every other library's constructors (-z initfirst), which may need it;
 * so the C library is not set up yet, and the environment comes as an argument. */
__attribute__((constructor)) static void begin(int count, char **arguments, char **environment)
{
    unsigned a, b, c, d;
    (void)count, (void)arguments;
    if (__get_cpuid_count(0xd, 2, &a, &b, &c, &d) && a)
        ymm_offset = b;
    has_keys = __get_cpuid_count(7, 0, &a, &b, &c, &d) && c & 1u << 4;
    prepare_report(environment);
    lend_stack();
    prepare_signals(on_sigill);
}
