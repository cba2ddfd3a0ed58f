/* Hostile programs around an instruction that no CPU of today has (PFADD; FMA4 and TBM where their operands
 * are needed); run under `isthmus run` by test_preload_hostile.py. */
#include "preload_hostile.h"

#include <asm/prctl.h>
#include <fcntl.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <poll.h>
#include <spawn.h>
#include <sys/ptrace.h>
#include <sys/user.h>

extern char **environ;
static const float one[2] = {1, 2}, two[2] = {0.5f, 4};
static uint8_t *place; /* where the test works */
static volatile float result[2];

static int wrong(void)
{
    int bad = result[0] != 1.5f || result[1] != 6;
    result[0] = 0;
    return bad;
}

static int pfadd(void)
{
    __asm__ volatile("movq %1, %%mm0; movq %2, %%mm1\n" PFADD "movq %%mm0, %0; emms"
                     : "=m"(result) : "m"(one), "m"(two) : "mm0", "mm1");
    return wrong();
}

static int pfadd_from(const void *address)
{
    __asm__ volatile("movq %1, %%mm0\n" PFADD_RAX "movq %%mm0, %0; emms"
                     : "=m"(result) : "m"(one), "a"(address) : "mm0");
    return wrong();
}

static uint8_t *pages(size_t count, int rights)
{
    return mmap(NULL, count * 4096, rights, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
}

/* --- operands that cannot be reached */

static void allow(void)
{
    mprotect(place, 8192, PROT_READ | PROT_WRITE | PROT_EXEC);
    memcpy(place, two, 8);
}

static void map_it(void)
{
    mmap(place, 8192, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0);
    memcpy(place, two, 8);
}

static int noted(int number, int code, uint64_t address, uint64_t trap, uint64_t error)
{
    FAIL(note.number != number || note.code != code || note.address != address);
    FAIL(note.trap != trap || note.error != error);
    return 0;
}

static int unmapped_operand(void)
{
    place = pages(2, PROT_NONE);
    expect(SIGSEGV, 0, 0);
    cure = allow;
    FAIL(pfadd_from(place) || note.times != 1 || note.cr2 != (uint64_t)place);
    FAIL(noted(SIGSEGV, SEGV_ACCERR, (uint64_t)place, 14, 4));
    munmap(place, 8192);
    cure = map_it;
    FAIL(pfadd_from(place) || note.times != 2 || note.cr2 != (uint64_t)place);
    return noted(SIGSEGV, SEGV_MAPERR, (uint64_t)place, 14, 4);
}

static int operand_across_pages(void)
{
    place = pages(2, PROT_READ | PROT_WRITE);
    mprotect(place + 4096, 4096, PROT_NONE);
    expect(SIGSEGV, 0, 4);
    pfadd_from(place + 4092);
    FAIL(note.times != 1);
    FAIL(noted(SIGSEGV, SEGV_ACCERR, (uint64_t)place + 4096, 14, 4));
    mprotect(place + 4096, 4096, PROT_READ | PROT_WRITE);
    memcpy(place + 4092, two, 8);
    FAIL(pfadd_from(place + 4092) || note.times != 1);
    return 0;
}

static int operands_of_the_kernel(void)
{
    uint64_t kernel = 0xffff888000000000;
    expect(SIGSEGV, 0, 4);
    pfadd_from((void *)kernel);
    FAIL(noted(SIGSEGV, SEGV_MAPERR, kernel, 14, 5));
    pfadd_from((void *)0x8000000000000000); /* no address: #GP */
    FAIL(noted(SIGSEGV, SI_KERNEL, 0, 13, 0));
    pfadd_from((void *)0x1234);
    FAIL(noted(SIGSEGV, SEGV_MAPERR, 0x1234, 14, 4));
    FAIL(note.times != 3);
    return 0;
}

static int beyond_a_file(void)
{
    int file = memfd_create("short", 0);
    FAIL(ftruncate(file, 4096));
    place = mmap(NULL, 8192, PROT_READ, MAP_SHARED, file, 0);
    expect(SIGBUS, 0, 4);
    pfadd_from(place + 4096);
    FAIL(note.times != 1 || note.code != BUS_ADRERR || note.address != (uint64_t)place + 4096);
    return 0;
}

static void blocked_fault(void)
{
    sigset_t all;
    expect(SIGSEGV, 0, 4);
    sigfillset(&all);
    sigprocmask(SIG_BLOCK, &all, NULL);
    pfadd_from((void *)0x1234);
}

static void ignored_fault(void)
{
    signal(SIGSEGV, SIG_IGN);
    pfadd_from((void *)0x1234);
}

static void plain_fault(void)
{
    pfadd_from((void *)0x1234);
}

static int faults_kill(void)
{
    FAIL(end_of(plain_fault) != 128 + SIGSEGV);
    FAIL(end_of(blocked_fault) != 128 + SIGSEGV);
    FAIL(end_of(ignored_fault) != 128 + SIGSEGV);
    return 0;
}

static int stack_grows(void) /* a big array whose first touch is a missing instruction's */
{
    uint64_t here = (uint64_t)&here - 1024 * 1024;
    float sum[2];
    __asm__ volatile("movq %1, %%mm0\n" PFADD_RAX "movq %%mm0, %0; emms"
                     : "=m"(sum) : "m"(one), "a"(here & ~7ul) : "mm0");
    FAIL(sum[0] != 1 || sum[1] != 2);
    return 0;
}

static int other_exceptions(void)
{
    float big[4] = {3e38f, 3e38f, 3e38f, 3e38f}, zero[4] = {0};
    uint32_t mxcsr = 0x1f80 & ~0x400; /* overflow unmasked */
    uint64_t pair[2] = {1, 2};
    expect(SIGFPE, 0, 6);
    __asm__ volatile("ldmxcsr %0; vmovups %1, %%xmm1; vmovups %2, %%xmm3; .globl the_fma4\n"
                     "the_fma4: .byte 0xc4,0xe3,0x71,0x68,0xc1,0x30" /* XMM1 * XMM1 + XMM3 */
                     :: "m"(mxcsr), "m"(big), "m"(zero) : "xmm0", "xmm1", "xmm3");
    uint64_t at;
    __asm__("lea the_fma4(%%rip), %0" : "=r"(at));
    FAIL(note.times != 1 || noted(SIGFPE, FPE_FLTOVF, at, 19, 0) || note.rip != at);
    expect(SIGBUS, 0, 5);
    __asm__ volatile("pushfq; orl $0x40000, (%%rsp); popfq\n"
                     ".byte 0x8f,0xe9,0xf8,0x01,0x09\n" /* BLCFILL RAX, [RCX] */
                     "pushfq; andl $~0x40000, (%%rsp); popfq"
                     :: "c"((uint8_t *)pair + 1) : "rax", "cc");
    FAIL(note.times != 1 || noted(SIGBUS, BUS_ADRALN, 0, 17, 0));
    FAIL(!(note.flags & 0x40000));
    return 0;
}

/* --- code that does not stay */

static const uint8_t code[] = {0x0f, 0x0f, 0xc1, 0x9e, 0xc3}; /* PFADD MM0, MM1; RET */

static int call(const uint8_t *at)
{
    __asm__ volatile("movq %1, %%mm0; movq %2, %%mm1; call *%3; movq %%mm0, %0; emms"
                     : "=m"(result) : "m"(one), "m"(two), "r"(at) : "mm0", "mm1", "memory");
    return wrong();
}

static void leave(int number, siginfo_t *information, void *data)
{
    ucontext_t *context = data; /* as if the code had returned */
    uint64_t **sp = (uint64_t **)&context->uc_mcontext.gregs[REG_RSP];
    note.times++;
    note.number = number;
    note.code = information->si_code;
    note.address = (uint64_t)information->si_addr;
    context->uc_mcontext.gregs[REG_RIP] = (greg_t) * (*sp)++;
}

static int code_across_pages(void)
{
    struct sigaction action = {.sa_sigaction = leave, .sa_flags = SA_SIGINFO};
    place = pages(2, PROT_READ | PROT_WRITE | PROT_EXEC);
    for (int split = 1; split < 4; split++) {
        mprotect(place, 8192, PROT_READ | PROT_WRITE | PROT_EXEC);
        uint8_t *at = place + 4096 - split;
        memcpy(at, code, sizeof code);
        FAIL(call(at));
        sigaction(SIGSEGV, &action, NULL);
        mprotect(place + 4096, 4096, PROT_READ); /* there, and not for execution */
        memset((void *)&note, 0, sizeof note);
        call(at);
        FAIL(note.times != 1 || note.code != SEGV_ACCERR || note.address != (uint64_t)place + 4096);
        munmap(place + 4096, 4096);
        memset((void *)&note, 0, sizeof note);
        call(at);
        FAIL(note.times != 1 || note.code != SEGV_MAPERR || note.address != (uint64_t)place + 4096);
        mmap(place + 4096, 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED,
             -1, 0);
    }
    return 0;
}

static int code_at_a_pages_end(void) /* nothing behind it */
{
    place = pages(2, PROT_READ | PROT_WRITE | PROT_EXEC);
    memcpy(place + 4096 - sizeof code, code, sizeof code);
    munmap(place + 4096, 4096);
    FAIL(call(place + 4096 - sizeof code));
    return 0;
}

static int only_for_execution(void)
{
    place = pages(1, PROT_READ | PROT_WRITE);
    memcpy(place, code, sizeof code);
    mprotect(place, 4096, PROT_EXEC);
    FAIL(call(place));
    return 0;
}

static volatile int stop;

static void *rewrite(void *unused)
{
    static const uint8_t nops[] = {0x0f, 0x1f, 0x40, 0x00};
    for (int i = 0; !stop; i++) /* NOPs that every CPU has, and back: in one store */
        __atomic_store_n((uint32_t *)place, *(const uint32_t *)(i & 1 ? nops : code),
                         __ATOMIC_SEQ_CST);
    return unused;
}

static int code_is_rewritten(void)
{
    pthread_t other;
    place = pages(1, PROT_READ | PROT_WRITE | PROT_EXEC);
    memcpy(place, code, sizeof code);
    pthread_create(&other, NULL, rewrite, NULL);
    for (int i = 0; i < 20000; i++)
        call(place);
    stop = 1;
    pthread_join(other, NULL);
    return 0;
}

static void *protect(void *unused)
{
    while (!stop) {
        mprotect(place, 4096, PROT_NONE);
        mprotect(place, 4096, PROT_READ | PROT_EXEC);
    }
    return unused;
}

static void *unmap(void *unused)
{
    while (!stop) {
        mmap(place, 4096, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0);
        mmap(place, 4096, PROT_READ | PROT_EXEC, MAP_PRIVATE | MAP_FIXED, *(int *)unused, 0);
    }
    return unused;
}

static void count(int number, siginfo_t *information, void *context)
{
    (void)context;
    if (number == SIGSEGV && (uint64_t)information->si_addr - (uint64_t)place < 4096)
        note.times++; /* again, until the page is back */
    else
        _exit(9);
}

static int code_goes_away(void)
{
    struct sigaction action = {.sa_sigaction = count, .sa_flags = SA_SIGINFO};
    int file = memfd_create("code", 0);
    FAIL(write(file, code, sizeof code) != sizeof code);
    place = pages(1, PROT_READ | PROT_WRITE);
    memcpy(place, code, sizeof code);
    sigaction(SIGSEGV, &action, NULL);
    sigaction(SIGILL, &action, NULL);
    for (int how = 0; how < 2; how++) {
        pthread_t other;
        stop = 0;
        pthread_create(&other, NULL, how ? unmap : protect, &file);
        for (int i = 0; i < 5000; i++)
            FAIL(call(place));
        stop = 1;
        pthread_join(other, NULL);
    }
    return 0;
}

/* --- segments, flags, registers */

static int wrong_bases(void) /* FS is the C library's: nothing of it may be called meanwhile */
{
    uint64_t before, base = (uint64_t)two - 64, none = 0;
    syscall(SYS_arch_prctl, ARCH_GET_FS, &before);
    __asm__ volatile("mov %[base], %%rsi; mov $0x1002, %%edi; mov $158, %%eax; syscall\n"
                     "movq %[one], %%mm0; .byte 0x64,0x0f,0x0f,0x04,0x25,64,0,0,0,0x9e\n"
                     "movq %%mm0, %[result]; emms\n" /* PFADD MM0, FS:[64] */
                     "mov %[none], %%rsi; mov $0x1002, %%edi; mov $158, %%eax; syscall\n"
                     "movq %[one], %%mm0; movq %[two], %%mm1\n" PFADD "emms\n"
                     "mov %[before], %%rsi; mov $0x1002, %%edi; mov $158, %%eax; syscall"
                     : [result] "=m"(result)
                     : [base] "r"(base), [before] "r"(before), [none] "r"(none), [one] "m"(one),
                       [two] "m"(two)
                     : "rax", "rcx", "r11", "rdi", "rsi", "mm0", "mm1", "memory");
    FAIL(wrong());
    syscall(SYS_arch_prctl, ARCH_SET_GS, base);
    __asm__ volatile("movq %1, %%mm0; .byte 0x65,0x0f,0x0f,0x04,0x25,64,0,0,0,0x9e\n"
                     "movq %%mm0, %0; emms" : "=m"(result) : "m"(one) : "mm0");
    FAIL(wrong());
    return 0;
}

/* Below 4 GiB: a far call into a 32-bit code segment, as translators of 32-bit programs do it. */
extern const uint8_t far_start[], far_end[];
__asm__("far_start: mov %rsp, 2f(%rip); lea 4f(%rip), %rsp; lea 1f(%rip), %eax; mov %eax, 3f(%rip)\n"
        "lcall *3f(%rip); mov 2f(%rip), %rsp; ret\n"
        "1: .byte 0x0f,0x0f,0xc1,0x9e, 0x48, 0x40, 0xcb\n" /* PFADD; DEC EAX; INC EAX; far return */
        "2: .quad 0\n3: .long 0\n.word 0x23\n.space 512\n4: far_end:");

static int segment_of_32_bits(void)
{
    place = mmap(NULL, 4096, PROT_READ | PROT_WRITE | PROT_EXEC,
                 MAP_PRIVATE | MAP_ANONYMOUS | MAP_32BIT, -1, 0);
    FAIL(place == MAP_FAILED);
    memcpy(place, far_start, (size_t)(far_end - far_start));
    __asm__ volatile("movq %1, %%mm0; movq %2, %%mm1; call *%3; movq %%mm0, %0; emms"
                     : "=m"(result) : "m"(one), "m"(two), "r"(place)
                     : "rax", "mm0", "mm1", "memory");
    return wrong();
}

static uint64_t steps[64];

static void on_step(int number, siginfo_t *information, void *data)
{
    ucontext_t *context = data;
    if (number != SIGTRAP || note.times >= 64)
        _exit(8);
    steps[note.times++] = (uint64_t)context->uc_mcontext.gregs[REG_RIP];
    if (information->si_code != TRAP_TRACE ||
        (uint64_t)information->si_addr != steps[note.times - 1])
        _exit(7);
}

static int single_steps(void) /* one SIGTRAP after every instruction, missing ones included */
{
    struct sigaction action = {.sa_sigaction = on_step, .sa_flags = SA_SIGINFO};
    uint64_t start;
    sigaction(SIGTRAP, &action, NULL);
    __asm__ volatile("lea 1f(%%rip), %0; movq %1, %%mm0; movq %2, %%mm1\n"
                     "pushfq; orl $0x100, (%%rsp); popfq\n"
                     "1: nop\n" PFADD PFADD "nop\n" PFADD
                     "pushfq; andl $~0x100, (%%rsp); popfq; emms"
                     : "=&r"(start) : "m"(one), "m"(two) : "mm0", "mm1", "cc");
    static const unsigned ends[] = {1, 5, 9, 10, 14};
    FAIL(note.times != 8); /* and PUSHFQ, AND, POPFQ */
    for (unsigned i = 0; i < 5; i++)
        FAIL(steps[i] != start + ends[i]);
    return 0;
}

static int traced(void) /* a tracer that steps goes through our handler, and comes out right */
{
    int status, ills = 0;
    pid_t child = fork();
    if (!child) {
        ptrace(PTRACE_TRACEME, 0, 0, 0);
        kill(getpid(), SIGSTOP);
        _exit(pfadd());
    }
    waitpid(child, &status, 0);
    ptrace(PTRACE_SINGLESTEP, child, 0, 0);
    for (long i = 0; i < 3000000 && waitpid(child, &status, 0) == child && WIFSTOPPED(status); i++) {
        int number = WSTOPSIG(status) == SIGTRAP ? 0 : WSTOPSIG(status);
        ills += number == SIGILL;
        ptrace(PTRACE_SINGLESTEP, child, 0, number);
    }
    FAIL(!WIFEXITED(status) || WEXITSTATUS(status) || ills != 1);
    return 0;
}

static int x87_top(void) /* two values on the x87's stack: MM0 is ST(2) */
{
    double left[2] = {0, 0};
    uint16_t status;
    __asm__ volatile("fninit; movq %3, %%mm0; movq %4, %%mm1; emms; fld1; fldpi\n"
                     ".byte 0x0f,0x0f,0xc1,0x9e\n" /* reads MM0 and MM1 by their numbers */
                     "fnstsw %1; movq %%mm0, %0; movq %%mm7, %2; emms"
                     : "=m"(result), "=m"(status), "=m"(left[0])
                     : "m"(one), "m"(two) : "mm0", "mm1", "mm7");
    uint64_t significand;
    memcpy(&significand, &left[0], 8);
    FAIL(status & 0x3800 || wrong());
    FAIL(significand != 0x8000000000000000); /* the first pushed 1.0 lies in register 7 */
    return 0;
}

static int no_clock(void) /* a process that may not read the TSC */
{
    prctl(PR_SET_TSC, PR_TSC_SIGSEGV);
    FAIL(pfadd());
    return 0;
}

/* --- handlers, stacks, threads, processes */

static volatile int in_handler;

static void with_pfadd(int number)
{
    (void)number;
    in_handler = pfadd() ? -1 : 1;
}

static int inside_handlers(void)
{
    static uint8_t memory[8192];
    struct sigaction action = {.sa_handler = with_pfadd, .sa_flags = SA_ONSTACK};
    stack_t small = {.ss_sp = memory, .ss_size = sizeof memory};
    sigset_t all, none;
    sigfillset(&action.sa_mask);
    sigfillset(&all);
    sigemptyset(&none);
    sigaction(SIGUSR1, &action, NULL);
    raise(SIGUSR1);
    FAIL(in_handler != 1);
    FAIL(sigaltstack(&small, NULL));
    in_handler = 0;
    raise(SIGUSR1);
    FAIL(in_handler != 1);
    sigprocmask(SIG_BLOCK, &all, NULL);
    sigdelset(&all, SIGUSR1);
    for (int way = 0; way < 3; way++) { /* handlers run under the mask of what waits */
        in_handler = 0;
        kill(getpid(), SIGUSR1);
        if (way == 0)
            sigsuspend(&all);
        else if (way == 1)
            ppoll(NULL, 0, NULL, &all);
        else
            pselect(0, NULL, NULL, NULL, NULL, &all);
        FAIL(in_handler != 1);
    }
    return 0;
}

static int old_ways(void) /* every way that the C library has to take SIGILL away */
{
    extern sighandler_t __sysv_signal(int, sighandler_t);
    sigset_t all;
    signal(SIGILL, SIG_IGN);
    __sysv_signal(SIGILL, SIG_DFL);
    sigignore(SIGILL);
    sighold(SIGILL);
    sigset(SIGILL, SIG_IGN);
    sigfillset(&all);
    sigprocmask(SIG_SETMASK, &all, NULL);
    pthread_sigmask(SIG_BLOCK, &all, NULL);
    FAIL(pfadd());
    return 0;
}

static void *nothing(void *unused)
{
    return pfadd() ? "wrong" : unused;
}

static int mappings(void)
{
    int lines = 0;
    FILE *maps = fopen("/proc/self/maps", "r");
    for (int byte; (byte = getc(maps)) != EOF;)
        lines += byte == '\n';
    fclose(maps);
    return lines;
}

static int many_threads(void) /* their alternate stacks are given back */
{
    pthread_attr_t little;
    pthread_attr_init(&little);
    pthread_attr_setstacksize(&little, 16384);
    int before = mappings();
    for (int i = 0; i < 500; i++) {
        pthread_t id;
        void *answer;
        FAIL(pthread_create(&id, i & 1 ? &little : NULL, nothing, NULL));
        FAIL(pthread_join(id, &answer) || answer);
    }
    FAIL(mappings() > before + 50);
    return 0;
}

static int processes(void)
{
    char self[4096] = "";
    int status;
    pid_t child = vfork();
    if (!child)
        _exit(pfadd());
    waitpid(child, &status, 0);
    FAIL(status);
    FAIL(readlink("/proc/self/exe", self, sizeof self - 1) < 0);
    sigset_t all;
    sigfillset(&all);
    sigprocmask(SIG_BLOCK, &all, NULL); /* inherited by what is executed */
    char *words[] = {self, "one", NULL};
    FAIL(posix_spawn(&child, self, NULL, NULL, words, environ));
    waitpid(child, &status, 0);
    FAIL(status);
    child = fork();
    if (!child)
        execv(self, words);
    waitpid(child, &status, 0);
    FAIL(status);
    child = fork();
    if (!child) { /* nothing left of the environment: the library is not loaded (documented) */
        char *none[] = {NULL};
        execve(self, words, none);
    }
    waitpid(child, &status, 0);
    FAIL(!WIFSIGNALED(status) || WTERMSIG(status) != SIGILL);
    return 0;
}

/* --- what only the kernel hears of */

static void raw_action(void)
{
    struct {
        void *handler;
        uint64_t flags, restorer, mask;
    } action = {SIG_DFL, 0, 0, 0};
    syscall(SYS_rt_sigaction, SIGILL, &action, NULL, 8);
    pfadd();
}

static void raw_mask(void)
{
    uint64_t all = ~0ull;
    syscall(SYS_rt_sigprocmask, SIG_BLOCK, &all, NULL, 8);
    pfadd();
}

static void strict(void)
{
    prctl(PR_SET_SECCOMP, SECCOMP_MODE_STRICT);
    pfadd();
    syscall(SYS_exit, 0);
}

static void filtered(void) /* a container's filter that knows nothing of process_vm_readv */
{
    struct sock_filter lines[] = {
        {BPF_LD | BPF_W | BPF_ABS, 0, 0, 0},
        {BPF_JMP | BPF_JEQ | BPF_K, 0, 1, SYS_process_vm_readv},
        {BPF_RET | BPF_K, 0, 0, SECCOMP_RET_ERRNO | EPERM},
        {BPF_RET | BPF_K, 0, 0, SECCOMP_RET_ALLOW},
    };
    struct sock_fprog program = {4, lines};
    prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0);
    if (prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program))
        _exit(0);
    place = pages(2, PROT_NONE);
    expect(SIGSEGV, 0, 0);
    cure = allow;
    _exit(pfadd() || pfadd_from(two) || pfadd_from(place) || note.times != 1 ||
          note.address != (uint64_t)place);
}

static int past_the_library(void) /* documented outcomes: the death that it would be without us */
{
    FAIL(end_of(raw_action) != 128 + SIGILL);
    FAIL(end_of(raw_mask) != 128 + SIGILL);
    FAIL(end_of(strict) != 128 + SIGKILL);
    FAIL(end_of(filtered) != 0);
    return 0;
}

static int simply_one(void)
{
    _exit(pfadd() ? 3 : 0); /* silent: others count on the exit code alone */
}

int main(int argc, char **argv)
{
    static const struct test tests[] = {
        {"one", simply_one},
        {"unmapped-operand", unmapped_operand},
        {"operand-across-pages", operand_across_pages},
        {"operands-of-the-kernel", operands_of_the_kernel}, {"beyond-a-file", beyond_a_file},
        {"faults-kill", faults_kill}, {"stack-grows", stack_grows},
        {"other-exceptions", other_exceptions}, {"code-across-pages", code_across_pages},
        {"code-at-a-pages-end", code_at_a_pages_end}, {"only-for-execution", only_for_execution},
        {"code-is-rewritten", code_is_rewritten}, {"code-goes-away", code_goes_away},
        {"wrong-bases", wrong_bases}, {"single-steps", single_steps},
        {"segment-of-32-bits", segment_of_32_bits}, {"traced", traced},
        {"x87-top", x87_top}, {"no-clock", no_clock}, {"inside-handlers", inside_handlers},
        {"old-ways", old_ways}, {"many-threads", many_threads}, {"processes", processes},
        {"past-the-library", past_the_library},
    };
    return argc == 2 ? run_test(tests, sizeof tests / sizeof *tests, argv[1]) : 2;
}
