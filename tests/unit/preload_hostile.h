/* What the hostile programs of test_preload_hostile.py share: a note of the last signal. */
#define _GNU_SOURCE
#include <errno.h>
#include <pthread.h>
#include <setjmp.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <ucontext.h>
#include <unistd.h>

#define FAIL(condition) do { if (condition) { printf("%d: %s\n", __LINE__, #condition); return 1; } } while (0)

/* PFADD MM0, MM1; PFADD MM0, [RAX]: missing on every CPU since AMD's Bulldozer and on all of Intel's. */
#define PFADD ".byte 0x0f,0x0f,0xc1,0x9e\n"
#define PFADD_RAX ".byte 0x0f,0x0f,0x00,0x9e\n"

struct note {
    int times;
    int number, code;
    uint64_t address, rip, trap, error, cr2, rax, rbx, r15, xmm, sp, flags;
    uint64_t mask;
};
static volatile struct note note; /* written behind the compiler's back */
static int skipped;                    /* bytes to pass over */
static void (*cure)(void);             /* or what makes another attempt succeed */

static void take_note(int number, siginfo_t *information, void *data)
{
    ucontext_t *context = data;
    greg_t *registers = context->uc_mcontext.gregs;
    sigset_t mask;
    note.times++;
    note.number = number;
    note.code = information->si_code;
    note.address = (uint64_t)information->si_addr;
    note.rip = (uint64_t)registers[REG_RIP];
    note.trap = (uint64_t)registers[REG_TRAPNO];
    note.error = (uint64_t)registers[REG_ERR];
    note.cr2 = (uint64_t)registers[REG_CR2];
    note.rax = (uint64_t)registers[REG_RAX];
    note.rbx = (uint64_t)registers[REG_RBX];
    note.r15 = (uint64_t)registers[REG_R15];
    note.flags = (uint64_t)registers[REG_EFL];
    memcpy((void *)&note.xmm, &context->uc_mcontext.fpregs->_xmm[7], 8);
    note.sp = (uint64_t)&mask;
    sigprocmask(SIG_BLOCK, NULL, &mask);
    memcpy((void *)&note.mask, &mask, 8);
    if (cure)
        cure();
    registers[REG_RIP] += skipped;
}

static void expect(int number, int flags, int skip)
{
    struct sigaction action = {.sa_sigaction = take_note, .sa_flags = SA_SIGINFO | flags};
    sigemptyset(&action.sa_mask);
    sigaction(number, &action, NULL);
    memset((void *)&note, 0, sizeof note);
    skipped = skip;
    cure = NULL;
}

/* How a child ends that does it: its exit code, or 128 and the signal. */
static int end_of(void (*what)(void))
{
    int status;
    pid_t child = fork();
    if (!child) {
        what();
        _exit(0);
    }
    waitpid(child, &status, 0);
    return WIFSIGNALED(status) ? 128 + WTERMSIG(status) : WEXITSTATUS(status);
}

struct test {
    const char *name;
    int (*run)(void);
};

static int run_test(const struct test *tests, size_t count, const char *name)
{
    for (size_t i = 0; i < count; i++)
        if (!strcmp(tests[i].name, name)) {
            if (!tests[i].run())
                puts("ok");
            return 0;
        }
    return 2;
}
