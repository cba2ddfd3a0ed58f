/* Programs that use undefined instructions on purpose.  Every one of these is right on a bare CPU, so
 * test_preload_hostile.py runs each alone and under `isthmus run`. */
#include "preload_hostile.h"

static sigjmp_buf back;

#define AT_LABEL(name) ({ uint64_t at; __asm__("lea " #name "(%%rip), %0" : "=r"(at)); at; })

static int registers(void)
{
    uint64_t here = (uint64_t)&here;
    expect(SIGILL, 0, 2);
    __asm__ volatile("mov $0x1122334455667788, %%rax; mov $0x99, %%rbx; mov $-5, %%r15\n"
                     "movq %%rax, %%xmm7; .globl the_ud2; the_ud2: ud2"
                     ::: "rax", "rbx", "r15", "xmm7");
    FAIL(note.times != 1 || note.code != ILL_ILLOPN || note.trap != 6 || note.error != 0);
    FAIL(note.rip != AT_LABEL(the_ud2) || note.address != note.rip);
    FAIL(note.rax != 0x1122334455667788 || note.rbx != 0x99 || note.r15 != (uint64_t)-5);
    FAIL(note.xmm != note.rax);
    FAIL(here - note.sp > 65536);                    /* on the program's stack */
    FAIL(note.mask != UINT64_C(1) << (SIGILL - 1)); /* and nothing else blocked */
    return 0;
}

static int every_form(void)
{
    expect(SIGILL, 0, 2);
    __asm__ volatile("ud2");
    FAIL(note.times != 1);
    skipped = 3;
    __asm__ volatile(".byte 0x0f,0xb9,0xc0"); /* UD1 EAX, EAX */
    FAIL(note.times != 2);
    __asm__ volatile(".byte 0x0f,0xff,0xc0"); /* UD0 */
    FAIL(note.times != 3);
    __asm__ volatile(".byte 0x67,0x0f,0x0b"); /* the kernel's way to mark an UBSAN trap */
    FAIL(note.times != 4);
    skipped = 1;
    __asm__ volatile(".byte 0x06"); /* PUSH ES, invalid in 64-bit mode */
    FAIL(note.times != 5 || note.code != ILL_ILLOPN);
    for (int i = 0; i < 100; i++) {
        skipped = 3;
        __asm__ volatile(".byte 0xf0,0x89,0xc0"); /* LOCK MOV */
    }
    FAIL(note.times != 105);
    return 0;
}

static void just_ud2(void)
{
    __asm__ volatile("ud2");
}

static void blocked_ud2(void)
{
    sigset_t mask;
    expect(SIGILL, 0, 2);
    sigfillset(&mask);
    sigprocmask(SIG_SETMASK, &mask, NULL);
    __asm__ volatile("ud2");
}

static void ignored_ud2(void)
{
    signal(SIGILL, SIG_IGN);
    __asm__ volatile("ud2");
}

static void again(int number)
{
    (void)number;
    __asm__ volatile("ud2");
}

static void ud2_in_handler(void)
{
    signal(SIGILL, again);
    __asm__ volatile("ud2");
}

static int deaths(void)
{
    FAIL(end_of(just_ud2) != 128 + SIGILL);
    FAIL(end_of(blocked_ud2) != 128 + SIGILL);
    FAIL(end_of(ignored_ud2) != 128 + SIGILL);
    FAIL(end_of(ud2_in_handler) != 128 + SIGILL);
    return 0;
}

static void deeper(int number)
{
    (void)number;
    if (++note.times == 3)
        _exit(33);
    __asm__ volatile("ud2");
}

static void with_nodefer(void)
{
    struct sigaction action = {.sa_handler = deeper, .sa_flags = SA_NODEFER};
    sigaction(SIGILL, &action, NULL);
    __asm__ volatile("ud2");
}

static void with_reset(void)
{
    expect(SIGILL, SA_RESETHAND, 2);
    __asm__ volatile("ud2");
    struct sigaction now;
    sigaction(SIGILL, NULL, &now);
    if (note.times != 1 || now.sa_handler != SIG_DFL)
        _exit(1);
    __asm__ volatile("ud2");
}

static int flags_of_actions(void)
{
    FAIL(end_of(with_nodefer) != 33);
    FAIL(end_of(with_reset) != 128 + SIGILL);
    return 0;
}

static int own_stack(void)
{
    static uint8_t memory[256 * 1024];
    stack_t stack = {.ss_sp = memory, .ss_size = sizeof memory}, now;
    FAIL(sigaltstack(&stack, NULL));
    expect(SIGILL, SA_ONSTACK, 2);
    __asm__ volatile("ud2");
    FAIL(note.times != 1 || note.sp - (uint64_t)memory > sizeof memory);
    FAIL(sigaltstack(NULL, &now) || now.ss_sp != memory || now.ss_flags);
    expect(SIGILL, 0, 2);
    __asm__ volatile("ud2");
    FAIL(note.times != 1 || note.sp - (uint64_t)memory <= sizeof memory);
    return 0;
}

static int small_stack_is_seen(void)
{
    static uint8_t memory[8192];
    stack_t none = {.ss_flags = SS_DISABLE}, now, stack = {.ss_sp = memory, .ss_size = 8192};
    FAIL(sigaltstack(NULL, &now) || now.ss_flags != SS_DISABLE);
    FAIL(sigaltstack(&stack, NULL) || sigaltstack(NULL, &now));
    FAIL(now.ss_sp != memory || now.ss_size != 8192 || now.ss_flags);
    FAIL(sigaltstack(&none, NULL) || sigaltstack(NULL, &now) || now.ss_flags != SS_DISABLE);
    stack.ss_size = 1000;
    FAIL(sigaltstack(&stack, NULL) != -1 || errno != ENOMEM);
    return 0;
}

static void old_handler(int number)
{
    (void)number;
}

static int views(void)
{
    struct sigaction action = {.sa_sigaction = take_note, .sa_flags = SA_SIGINFO | SA_RESTART}, old;
    sigset_t mask, before;
    FAIL(signal(SIGILL, old_handler) != SIG_DFL || signal(SIGILL, SIG_IGN) != old_handler);
    sigaddset(&action.sa_mask, SIGUSR2);
    FAIL(sigaction(SIGILL, &action, &old) || old.sa_handler != SIG_IGN);
    FAIL(sigaction(SIGILL, NULL, &old) || old.sa_sigaction != take_note);
    FAIL(sigismember(&old.sa_mask, SIGUSR2) != 1 || !(old.sa_flags & SA_SIGINFO));
    sigemptyset(&mask);
    sigaddset(&mask, SIGILL);
    FAIL(sigprocmask(SIG_BLOCK, &mask, NULL) || sigprocmask(SIG_BLOCK, NULL, &before));
    FAIL(sigismember(&before, SIGILL) != 1);
    FAIL(sigprocmask(SIG_UNBLOCK, &mask, NULL) || pthread_sigmask(SIG_BLOCK, NULL, &before));
    FAIL(sigismember(&before, SIGILL) != 0);
    sigfillset(&mask);
    sigdelset(&mask, SIGILL);
    FAIL(sigprocmask(SIG_SETMASK, &mask, NULL) || sigprocmask(SIG_BLOCK, NULL, &before));
    FAIL(sigismember(&before, SIGILL) != 0);
    action.sa_mask = mask;
    sigaddset(&action.sa_mask, SIGILL);
    FAIL(sigaction(SIGUSR1, &action, NULL) || sigaction(SIGUSR1, NULL, &old));
    FAIL(sigismember(&old.sa_mask, SIGILL) != 1 || sigismember(&old.sa_mask, SIGTERM) != 1);
    FAIL(sighold(SIGILL) || sigprocmask(SIG_BLOCK, NULL, &before));
    FAIL(sigismember(&before, SIGILL) != 1);
    return 0;
}

static void sent_to_default(void)
{
    kill(getpid(), SIGILL);
}

static void sent_to_ignored(void)
{
    signal(SIGILL, SIG_IGN);
    kill(getpid(), SIGILL);
    raise(SIGILL);
    _exit(44);
}

static int sent(void)
{
    FAIL(end_of(sent_to_default) != 128 + SIGILL);
    FAIL(end_of(sent_to_ignored) != 44);
    expect(SIGILL, 0, 0);
    kill(getpid(), SIGILL);
    FAIL(note.times != 1 || note.code != SI_USER);
    raise(SIGILL);
    FAIL(note.times != 2 || note.code != SI_TKILL);
    return 0;
}

static void jump_out(int number)
{
    siglongjmp(back, number);
}

static int jumps(void)
{
    volatile int times = 0;
    sigset_t mask;
    signal(SIGILL, jump_out);
    while (times < 5000) {
        if (!sigsetjmp(back, 1))
            __asm__ volatile("ud2");
        times++;
    }
    sigprocmask(SIG_BLOCK, NULL, &mask);
    FAIL(times != 5000 || sigismember(&mask, SIGILL) || sigismember(&mask, SIGTERM));
    return 0;
}

int main(int argc, char **argv)
{
    static const struct test tests[] = {
        {"registers", registers}, {"every-form", every_form}, {"deaths", deaths},
        {"flags-of-actions", flags_of_actions}, {"own-stack", own_stack},
        {"small-stack-is-seen", small_stack_is_seen}, {"views", views}, {"sent", sent},
        {"jumps", jumps},
    };
    return argc == 2 ? run_test(tests, sizeof tests / sizeof *tests, argv[1]) : 2;
}
