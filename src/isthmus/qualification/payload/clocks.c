/* The clocks: none may run backwards, on no vCPU, and none may leap.  They are read under one lock
 * and compared with the last reading of any thread. */
#include "checks.h"
#include "options.h"

#include <pthread.h>
#include <time.h>

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static struct clocks last;
static bool seen;

static int64_t nanoseconds(clockid_t clock)
{
    struct timespec now;
    clock_gettime(clock, &now);
    return (int64_t)now.tv_sec * 1000000000 + now.tv_nsec;
}

uint64_t tsc_read(void)
{
    uint32_t low, high;
    __asm__ volatile("lfence; rdtsc" : "=a"(low), "=d"(high)::"memory");
    return (uint64_t)high << 32 | low;
}

static void event(const char *clock, const char *kind, int64_t step)
{
    struct record record;
    record_begin(&record, "event");
    record_add(&record, "kind", "%s", kind);
    record_add(&record, "clock", "%s", clock);
    record_add(&record, "step", "%lld", (long long)step);
    record_commit(&record);
}

static void compare(const char *name, int64_t before, int64_t now)
{
    if (now < before)
        event(name, "backwards", now - before);
    else if (now - before > (int64_t)options.jump_ms * 1000000)
        event(name, "jump", now - before);
}

void clocks_setup(void)
{
    clocks_read();
}

struct clocks clocks_read(void)
{
    pthread_mutex_lock(&lock);
    struct clocks before = last, now;
    now.realtime_ns = nanoseconds(CLOCK_REALTIME);
    now.monotonic_ns = nanoseconds(CLOCK_MONOTONIC);
    now.tsc = tsc_read();
    last = now;
    bool compared = seen;
    seen = true;
    pthread_mutex_unlock(&lock);
    if (compared) {
        compare("realtime", before.realtime_ns, now.realtime_ns);
        compare("monotonic", before.monotonic_ns, now.monotonic_ns);
        if (now.tsc < before.tsc)
            event("tsc", "backwards", (int64_t)(now.tsc - before.tsc));
    }
    return now;
}
