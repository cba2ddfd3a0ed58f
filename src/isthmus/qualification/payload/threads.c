/* Several threads that add known sums under a mutex, woken and awaited through conditions, and
 * signals sent between threads. */
#include "checks.h"
#include "options.h"

#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

#define ROUNDS 2000u
#define PATIENCE_S 30

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t work = PTHREAD_COND_INITIALIZER, done;
static uint64_t wanted, sum;
static unsigned finished;
static pthread_t threads[64];
static uint64_t expected;
static _Atomic uint64_t signals_seen;

static void on_user(int number)
{
    (void)number;
    atomic_fetch_add(&signals_seen, 1);
}

static void *add(void *argument)
{
    uint64_t seed = (uint64_t)(uintptr_t)argument, mine = 0;
    for (;;) {
        pthread_mutex_lock(&lock);
        while (wanted == mine)
            pthread_cond_wait(&work, &lock);
        mine = wanted;
        pthread_mutex_unlock(&lock);
        uint64_t part = integer_answer(seed, ROUNDS);
        pthread_mutex_lock(&lock);
        sum += part;
        finished++;
        pthread_cond_signal(&done);
        pthread_mutex_unlock(&lock);
    }
    return NULL;
}

void threads_setup(void)
{
    pthread_condattr_t attributes;
    pthread_condattr_init(&attributes);
    pthread_condattr_setclock(&attributes, CLOCK_MONOTONIC);
    pthread_cond_init(&done, &attributes);
    struct sigaction action = {.sa_handler = on_user, .sa_flags = SA_RESTART};
    sigaction(SIGUSR1, &action, NULL);
    for (unsigned i = 0; i < options.threads; i++) {
        expected += integer_answer(i + 1, ROUNDS);
        if (pthread_create(&threads[i], NULL, add, (void *)(uintptr_t)(i + 1))) {
            perror("payload: pthread_create");
            exit(1);
        }
    }
}

static void event(const char *kind, uint64_t hoped, uint64_t got)
{
    struct record record;
    record_begin(&record, "event");
    record_add(&record, "kind", "%s", kind);
    record_add(&record, "test", "threads");
    record_add(&record, "expected", "%llx", (unsigned long long)hoped);
    record_add(&record, "got", "%llx", (unsigned long long)got);
    record_commit(&record);
}

uint64_t threads_check(void)
{
    static uint64_t runs;
    struct timespec deadline;
    clock_gettime(CLOCK_MONOTONIC, &deadline);
    deadline.tv_sec += PATIENCE_S;
    pthread_mutex_lock(&lock);
    sum = 0;
    finished = 0;
    wanted++;
    pthread_cond_broadcast(&work);
    while (finished < options.threads)
        if (pthread_cond_timedwait(&done, &lock, &deadline)) {
            unsigned so_far = finished;
            pthread_mutex_unlock(&lock);
            event("stuck", options.threads, so_far);
            pthread_mutex_lock(&lock);
            deadline.tv_sec += PATIENCE_S;
        }
    uint64_t got = sum;
    pthread_mutex_unlock(&lock);
    if (got != expected)
        event("wrong", expected, got);
    return ++runs;
}

uint64_t threads_signals(void)
{
    static uint64_t sent;
    for (unsigned i = 0; i < options.threads; i++) {
        pthread_kill(threads[i], SIGUSR1);
        sent++;
        for (unsigned tries = 0; atomic_load(&signals_seen) < sent; tries++) {
            struct timespec pause = {0, 1000000};
            nanosleep(&pause, NULL);
            if (tries == 1000u * PATIENCE_S) {
                event("signal-lost", sent, atomic_load(&signals_seen));
                sent = atomic_load(&signals_seen);
                break;
            }
        }
    }
    return atomic_load(&signals_seen);
}
