/* An alternate stack for every thread: coroutines and little threads have no room for a signal frame.
 *
 * A program's own alternate stack is used if it is large enough for our handler; a smaller one is kept
 * as the program sees it, and the lent one serves. */
#include "process.h"

#include <dlfcn.h>
#include <errno.h>
#include <pthread.h>
#include <stdlib.h>
#include <sys/auxv.h>
#include <sys/mman.h>

enum { ROOM = 16 * 1024, LENT = 256 * 1024, SMALLEST = 2048 };
static const uint64_t MAGIC = UINT64_C(0x737468736d755321);

static __thread struct lent *mine;

static size_t lent_size(void)
{
    size_t frame = getauxval(AT_MINSIGSTKSZ);
    return LENT + (frame + PAGE - 1) / PAGE * PAGE;
}

const struct lent *lent_at(const stack_t *stack)
{
    const struct lent *lent = stack->ss_sp;
    bool fits = lent && (uint64_t)lent % PAGE == 0 && stack->ss_size >= LENT;
    return fits && lent->magic == (MAGIC ^ (uint64_t)lent) ? lent : NULL;
}

static long real_stack(const stack_t *asked, stack_t *old)
{
    return RAW(SYS_sigaltstack, asked, old, 0, 0, 0, 0);
}

static void use_mine(void)
{
    stack_t stack = {.ss_sp = mine, .ss_size = lent_size()};
    real_stack(&stack, NULL);
}

void lend_stack(void)
{
    uint8_t *memory = mmap(NULL, lent_size() + PAGE, PROT_READ | PROT_WRITE,
                           MAP_PRIVATE | MAP_ANONYMOUS | MAP_STACK | MAP_NORESERVE, -1, 0);
    if (memory == MAP_FAILED)
        return;
    mprotect(memory, PAGE, PROT_NONE);
    mine = (struct lent *)(memory + PAGE);
    *mine = (struct lent){.magic = MAGIC ^ (uint64_t)mine, .theirs = {.ss_flags = SS_DISABLE}};
    use_mine();
}

static void take_back(void *unused)
{
    stack_t now, none = {.ss_flags = SS_DISABLE};
    (void)unused;
    if (!mine || real_stack(NULL, &now) || now.ss_flags & SS_ONSTACK)
        return; /* the thread ends on it */
    if (lent_at(&now))
        real_stack(&none, NULL);
    munmap((uint8_t *)mine - PAGE, lent_size() + PAGE);
    mine = NULL;
}

EXPORTED int sigaltstack(const stack_t *asked, stack_t *old)
{
    stack_t now;
    long failed = real_stack(NULL, &now);
    struct lent *lent = (struct lent *)lent_at(&now);
    stack_t seen = lent ? lent->theirs : now;
    if (lent && !(seen.ss_flags & SS_DISABLE))
        seen.ss_flags |= now.ss_flags & SS_ONSTACK;
    if (asked && !failed) {
        unsigned flags = (unsigned)asked->ss_flags & ~(1u << 31); /* SS_AUTODISARM */
        bool off = flags == SS_DISABLE;
        if (!mine || (!off && asked->ss_size >= getauxval(AT_MINSIGSTKSZ) + ROOM))
            failed = real_stack(asked, NULL);
        else if (now.ss_flags & SS_ONSTACK)
            failed = -EPERM;
        else if (flags > SS_DISABLE)
            failed = -EINVAL;
        else if (!off && asked->ss_size < SMALLEST)
            failed = -ENOMEM;
        else {
            mine->theirs = (stack_t){.ss_sp = off ? NULL : asked->ss_sp,
                                     .ss_flags = off ? SS_DISABLE : 0,
                                     .ss_size = off ? 0 : asked->ss_size};
            use_mine();
        }
    }
    if (failed) {
        errno = (int)-failed;
        return -1;
    }
    if (old)
        *old = seen;
    return 0;
}

struct thread {
    void *(*run)(void *);
    void *argument;
};

static void *begin_thread(void *data)
{
    struct thread thread = *(struct thread *)data;
    void *answer;
    free(data);
    lend_stack();
    pthread_cleanup_push(take_back, NULL);
    answer = thread.run(thread.argument);
    pthread_cleanup_pop(1);
    return answer;
}

EXPORTED int pthread_create(pthread_t *id, const pthread_attr_t *attributes, void *(*run)(void *),
                            void *argument)
{
    static int (*real)(pthread_t *, const pthread_attr_t *, void *(*)(void *), void *);
    if (!real)
        real = dlsym(RTLD_NEXT, "pthread_create");
    struct thread *thread = malloc(sizeof *thread);
    if (!thread)
        return EAGAIN;
    *thread = (struct thread){run, argument};
    int failed = real(id, attributes, begin_thread, thread);
    if (failed)
        free(thread);
    return failed;
}
