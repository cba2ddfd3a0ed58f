/* What the program asks for of SIGILL, kept from it and given back to it.
 *
 * SIGILL stays ours and open: a blocked or ignored one kills the process before any handler runs, and a
 * program's own handler would replace ours.  In masks another signal stands for it, the highest
 * real-time signal, taken from the program in the C library's own way (SIGRTMAX is one less): so a mask
 * that is saved, inherited or put back by a jump still says whether the program had SIGILL blocked, and
 * then a #UD that is its own kills it, as it should. */
#include "process.h"

#include <dlfcn.h>
#include <errno.h>
#include <poll.h>
#include <pthread.h>
#include <stdatomic.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/select.h>

static int (*real_sigaction)(int, const struct sigaction *, struct sigaction *);
static int (*real_sigmask)(int, const sigset_t *, sigset_t *);
static int (*real_suspend)(const sigset_t *);
static int (*real_ppoll)(struct pollfd *, nfds_t, const struct timespec *, const sigset_t *);
static int (*real_pselect)(int, fd_set *, fd_set *, fd_set *, const struct timespec *,
                           const sigset_t *);
static int (*real_epoll)(int, struct epoll_event *, int, int, const sigset_t *);
static int (*real_epoll2)(int, struct epoll_event *, int, const struct timespec *,
                          const sigset_t *);
static int (*real_attribute)(pthread_attr_t *, const sigset_t *);
static int stand_in_number = 64;

/* The action in force; older ones stay whole for handlers that are just reading them. */
static struct {
    struct sigaction shown;
    struct action used;
} actions[16];
static _Atomic unsigned current;

static void find_real(void)
{
    if (real_sigmask)
        return;
    real_sigaction = dlsym(RTLD_NEXT, "sigaction");
    real_suspend = dlsym(RTLD_NEXT, "sigsuspend");
    real_ppoll = dlsym(RTLD_NEXT, "ppoll");
    real_pselect = dlsym(RTLD_NEXT, "pselect");
    real_epoll = dlsym(RTLD_NEXT, "epoll_pwait");
    real_epoll2 = dlsym(RTLD_NEXT, "epoll_pwait2");
    real_attribute = dlsym(RTLD_NEXT, "pthread_attr_setsigmask_np");
    real_sigmask = dlsym(RTLD_NEXT, "pthread_sigmask");
}

const struct action *program_action(void)
{
    return &actions[atomic_load(&current) % 16].used;
}

uint64_t stand_in(void)
{
    return bit_of(stand_in_number);
}

uint64_t kernel_mask(uint64_t asked)
{
    uint64_t mask = asked & ~bit_of(SIGILL);
    return asked & bit_of(SIGILL) ? mask | stand_in() : mask;
}

/* A mask as the kernel shall have it; NULL stays NULL. */
static const sigset_t *for_kernel(const sigset_t *asked, sigset_t *copy)
{
    if (!asked)
        return NULL;
    *copy = *asked;
    sigdelset(copy, stand_in_number);
    if (sigismember(copy, SIGILL) == 1) {
        sigdelset(copy, SIGILL);
        sigaddset(copy, stand_in_number);
    }
    return copy;
}

/* And as the program shall see it. */
static void for_program(sigset_t *mask)
{
    if (sigismember(mask, stand_in_number) == 1) {
        sigdelset(mask, stand_in_number);
        sigaddset(mask, SIGILL);
    }
}

static void set_program_action(const struct sigaction *asked)
{
    unsigned next = atomic_load(&current) + 1;
    struct action *used = &actions[next % 16].used;
    actions[next % 16].shown = *asked;
    used->handler = (uint64_t)asked->sa_handler;
    used->flags = (uint64_t)(unsigned)asked->sa_flags & ~UINT64_C(0x04000000);
    memcpy(&used->mask, &asked->sa_mask, 8);
    atomic_store(&current, next);
}

void forget_program_action(void)
{
    struct sigaction standard = actions[atomic_load(&current) % 16].shown;
    standard.sa_handler = SIG_DFL;
    set_program_action(&standard);
}

EXPORTED int sigaction(int number, const struct sigaction *action, struct sigaction *old)
{
    find_real();
    if (number == SIGILL) {
        struct sigaction before = actions[atomic_load(&current) % 16].shown;
        if (action)
            set_program_action(action);
        if (old)
            *old = before;
        return 0;
    }
    struct sigaction open; /* its handler may need what is missing, whatever it blocks */
    if (action) {
        sigset_t mask;
        open = *action;
        open.sa_mask = *for_kernel(&action->sa_mask, &mask);
    }
    int failed = real_sigaction(number, action ? &open : NULL, old);
    if (!failed && old)
        for_program(&old->sa_mask);
    return failed;
}

EXPORTED int __sigaction(int number, const struct sigaction *action, struct sigaction *old)
{
    return sigaction(number, action, old);
}

static sighandler_t set_handler(int number, sighandler_t handler, int flags)
{
    struct sigaction action = {.sa_handler = handler, .sa_flags = flags}, old;
    if (handler == SIG_ERR || number < 1 || number >= _NSIG) {
        errno = EINVAL;
        return SIG_ERR;
    }
    if (!(flags & SA_NODEFER))
        sigaddset(&action.sa_mask, number);
    return sigaction(number, &action, &old) ? SIG_ERR : old.sa_handler;
}

EXPORTED sighandler_t signal(int number, sighandler_t handler)
{
    return set_handler(number, handler, SA_RESTART);
}

EXPORTED sighandler_t bsd_signal(int number, sighandler_t handler)
{
    return set_handler(number, handler, SA_RESTART);
}

EXPORTED sighandler_t ssignal(int number, sighandler_t handler)
{
    return set_handler(number, handler, SA_RESTART);
}

/* What `signal` is in programs that are compiled as plain ISO C. */
EXPORTED sighandler_t __sysv_signal(int number, sighandler_t handler)
{
    return set_handler(number, handler, (int)(SA_RESETHAND | SA_NODEFER));
}

EXPORTED sighandler_t sysv_signal(int number, sighandler_t handler)
{
    return __sysv_signal(number, handler);
}

static int masked(int how, const sigset_t *set, sigset_t *old)
{
    sigset_t copy;
    find_real();
    int failed = real_sigmask(how, for_kernel(set, &copy), old);
    if (!failed && old)
        for_program(old);
    return failed;
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

/* The older ways to the same: System V's and BSD's. */
static int mask_one(int how, int number)
{
    sigset_t one;
    sigemptyset(&one);
    return sigaddset(&one, number) ? -1 : sigprocmask(how, &one, NULL);
}

EXPORTED int sighold(int number)
{
    return mask_one(SIG_BLOCK, number);
}

EXPORTED int sigrelse(int number)
{
    return mask_one(SIG_UNBLOCK, number);
}

EXPORTED int sigignore(int number)
{
    return set_handler(number, SIG_IGN, 0) == SIG_ERR ? -1 : 0;
}

EXPORTED sighandler_t sigset(int number, sighandler_t handler)
{
    struct sigaction old;
    sigset_t before, one;
    if (sigaction(number, NULL, &old) || sigprocmask(SIG_BLOCK, NULL, &before))
        return SIG_ERR;
    if (handler == (sighandler_t)2) { /* SIG_HOLD */
        if (mask_one(SIG_BLOCK, number))
            return SIG_ERR;
    } else {
        struct sigaction action = {.sa_handler = handler};
        sigemptyset(&one);
        sigaddset(&one, number);
        if (sigaction(number, &action, NULL) || sigprocmask(SIG_UNBLOCK, &one, NULL))
            return SIG_ERR;
    }
    return sigismember(&before, number) ? (sighandler_t)2 : old.sa_handler;
}

static int mask_word(int how, int word)
{
    sigset_t set, old;
    uint64_t bits = (unsigned)word, before;
    sigemptyset(&set);
    memcpy(&set, &bits, 8);
    sigprocmask(how, &set, &old);
    memcpy(&before, &old, 8);
    return (int)before;
}

EXPORTED int sigblock(int mask)
{
    return mask_word(SIG_BLOCK, mask);
}

EXPORTED int sigsetmask(int mask)
{
    return mask_word(SIG_SETMASK, mask);
}

/* While these wait, handlers of other signals run under the mask that is given. */
EXPORTED int sigsuspend(const sigset_t *mask)
{
    sigset_t copy;
    find_real();
    return real_suspend(for_kernel(mask, &copy));
}

EXPORTED int ppoll(struct pollfd *files, nfds_t count, const struct timespec *limit,
                   const sigset_t *mask)
{
    sigset_t copy;
    find_real();
    return real_ppoll(files, count, limit, for_kernel(mask, &copy));
}

/* What ppoll is in programs that are compiled with -D_FORTIFY_SOURCE. */
EXPORTED int __ppoll_chk(struct pollfd *files, nfds_t count, const struct timespec *limit,
                         const sigset_t *mask, size_t size)
{
    if (size / sizeof *files < count)
        __builtin_trap();
    return ppoll(files, count, limit, mask);
}

EXPORTED int pselect(int count, fd_set *in, fd_set *out, fd_set *other,
                     const struct timespec *limit, const sigset_t *mask)
{
    sigset_t copy;
    find_real();
    return real_pselect(count, in, out, other, limit, for_kernel(mask, &copy));
}

EXPORTED int epoll_pwait(int file, struct epoll_event *events, int most, int limit,
                         const sigset_t *mask)
{
    sigset_t copy;
    find_real();
    return real_epoll(file, events, most, limit, for_kernel(mask, &copy));
}

EXPORTED int epoll_pwait2(int file, struct epoll_event *events, int most,
                          const struct timespec *limit, const sigset_t *mask)
{
    sigset_t copy;
    find_real();
    if (!real_epoll2) {
        errno = ENOSYS;
        return -1;
    }
    return real_epoll2(file, events, most, limit, for_kernel(mask, &copy));
}

EXPORTED int pthread_attr_setsigmask_np(pthread_attr_t *attributes, const sigset_t *mask)
{
    sigset_t copy;
    find_real();
    return real_attribute ? real_attribute(attributes, for_kernel(mask, &copy)) : ENOSYS;
}

void prepare_signals(void (*handler)(int, siginfo_t *, void *))
{
    int (*allocate)(int) = dlsym(RTLD_NEXT, "__libc_allocate_rtsig");
    int number = allocate ? allocate(0) : -1;
    struct sigaction action = {.sa_sigaction = handler,
                               .sa_flags = SA_SIGINFO | SA_ONSTACK | SA_NODEFER | SA_RESTART};
    struct sigaction before;
    sigset_t open;
    find_real();
    if (number > 0)
        stand_in_number = number;
    /* Signals wait until the handler is done: a fault that it raises belongs to the instruction. */
    sigfillset(&action.sa_mask);
    sigdelset(&action.sa_mask, SIGILL);
    real_sigaction(SIGILL, &action, &before);
    set_program_action(&before);
    /* Who executed us may have had it blocked. */
    real_sigmask(SIG_BLOCK, NULL, &open);
    if (sigismember(&open, SIGILL) == 1)
        masked(SIG_SETMASK, &open, NULL);
}
