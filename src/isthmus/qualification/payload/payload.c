/* The payload's main program.  `payload` is the supervisor: it starts the program proper as a child,
 * waits, and reports its death in the same sequence of reports. */
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <setjmp.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/time.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "payload.h"

static struct options options = {
    .tick_ms = 100, .beat_ms = 20, .memory_mib = 32, .threads = 2, .tests = "all",
};

static int64_t nanoseconds(clockid_t clock)
{
    struct timespec now;
    clock_gettime(clock, &now);
    return now.tv_sec * 1000000000ll + now.tv_nsec;
}

static void nap(unsigned ms)
{
    struct timespec length = {ms / 1000, (long)(ms % 1000) * 1000000};
    while (nanosleep(&length, &length) && errno == EINTR)
        ;
}

/* ---- signals: each deliberate fault must arrive exactly as on bare metal ---- */

static __thread sigjmp_buf after_fault;
static __thread volatile sig_atomic_t expected;
static atomic_uint alarms;

static void on_fault(int number)
{
    if (expected == number) {
        expected = 0;
        siglongjmp(after_fault, 1);
    }
    /* Not ours: die of it as any program would.  Returning runs the instruction again. */
    signal(number, SIG_DFL);
}

static void on_alarm(int number)
{
    (void)number;
    atomic_fetch_add(&alarms, 1);
}

static bool arrives(int number)
{
    if (sigsetjmp(after_fault, 1))
        return true;
    expected = number;
    switch (number) {
    case SIGILL:
        __asm__ volatile("ud2");
        break;
    case SIGSEGV:
        __asm__ volatile("movl $1, (%0)" : : "r"(16ul) : "memory");
        break;
    case SIGFPE:
        __asm__ volatile("divl %0" : : "r"(0), "a"(1), "d"(0) : "cc");
        break;
    default:
        break;
    }
    expected = 0;
    report("wrong", "what=signal number=%d", number);
    return false;
}

static void catch_signals(void)
{
    struct sigaction fault = {.sa_handler = on_fault}, alarm = {.sa_handler = on_alarm};
    sigaction(SIGILL, &fault, NULL);
    sigaction(SIGSEGV, &fault, NULL);
    sigaction(SIGFPE, &fault, NULL);
    alarm.sa_flags = SA_RESTART;
    sigaction(SIGALRM, &alarm, NULL);
    struct itimerval every = {{0, 250000}, {0, 250000}};
    setitimer(ITIMER_REAL, &every, NULL);
}

/* ---- the heartbeat: short, frequent, with the guest's clocks ---- */

static void *beat(void *unused)
{
    (void)unused;
    int64_t mono_before = 0, real_before = 0;
    uint64_t tsc_before = 0;
    for (;;) {
        int64_t mono = nanoseconds(CLOCK_MONOTONIC), real = nanoseconds(CLOCK_REALTIME);
        uint64_t tsc = machine_tsc();
        if (mono < mono_before)
            report("wrong", "what=monotonic step=%lld", (long long)(mono - mono_before));
        if (tsc < tsc_before)
            report("wrong", "what=tsc step=-%llu", (unsigned long long)(tsc_before - tsc));
        report("beat", "mono=%lld real=%lld tsc=%llu step=%lld", (long long)mono, (long long)real,
               (unsigned long long)tsc,
               (long long)(real_before ? (real - real_before) - (mono - mono_before) : 0));
        mono_before = mono;
        real_before = real;
        tsc_before = tsc;
        nap(options.beat_ms);
    }
    return NULL;
}

/* ---- a number on the disk that only one copy of the guest can have written ---- */

static void check_disk(uint64_t round)
{
    static int disk = -2;
    static uint64_t *sector;
    if (disk == -2) {
        disk = open("/dev/vda", O_RDWR | O_DIRECT | O_SYNC | O_CLOEXEC);
        sector = aligned_alloc(4096, 4096);
        memset(sector, 0, 4096);
        if (disk < 0)
            report("wrong", "what=disk reason=open");
    }
    if (disk < 0)
        return;
    if (round > 1 && (pread(disk, sector, 4096, 0) != 4096 || sector[0] != round - 1))
        report("wrong", "what=disk value=%llu", (unsigned long long)sector[0]);
    sector[0] = round;
    if (pwrite(disk, sector, 4096, 0) != 4096)
        report("wrong", "what=disk reason=write");
}

static int payload(void)
{
    char cpu[96];
    pthread_t beats;
    machine_remember();
    machine_cpu(cpu, sizeof cpu);
    instructions_choose(options.tests);
    catch_signals();
    report("hello", "%s tests=%s tick=%u beat=%u memory=%u threads=%u cpus=%ld", cpu,
           instructions_chosen(), options.tick_ms, options.beat_ms, options.memory_mib,
           options.threads, sysconf(_SC_NPROCESSORS_ONLN));
    load_start(&options);
    if (pthread_create(&beats, NULL, beat, NULL))
        return 3;
    for (uint64_t round = 1;; round++) {
        uint32_t memory = 0;
        uint64_t sums = 0;
        unsigned checks = load_memory(round, &memory);
        checks += load_known_answers();
        checks += load_threads(&sums);
        checks += arrives(SIGILL);
        checks += arrives(SIGSEGV);
        checks += arrives(SIGFPE);
        unsigned instructions = instructions_run();
        machine_compare();
        if (options.disk)
            check_disk(round);
        report("tick", "round=%llu checks=%u instructions=%u memory=%08x threads=%016llx alarms=%u",
               (unsigned long long)round, checks, instructions, memory, (unsigned long long)sums,
               atomic_load(&alarms));
        nap(options.tick_ms);
    }
}

static void read_options(void)
{
    static char line[4096];
    FILE *file = fopen("/proc/cmdline", "r");
    if (!file || !fgets(line, sizeof line, file))
        return;
    fclose(file);
    for (char *word = strtok(line, " \n"); word; word = strtok(NULL, " \n")) {
        unsigned value;
        if (sscanf(word, "isthmus.tick=%u", &value) == 1)
            options.tick_ms = value;
        else if (sscanf(word, "isthmus.beat=%u", &value) == 1)
            options.beat_ms = value;
        else if (sscanf(word, "isthmus.memory=%u", &value) == 1)
            options.memory_mib = value;
        else if (sscanf(word, "isthmus.threads=%u", &value) == 1)
            options.threads = value;
        else if (sscanf(word, "isthmus.disk=%u", &value) == 1)
            options.disk = value;
        else
            sscanf(word, "isthmus.test=%511s", options.tests);
    }
}

int main(void)
{
    read_options();
    report_open();
    pid_t child = fork();
    if (child == 0)
        return payload();
    int status = 0;
    while (child > 0 && waitpid(child, &status, 0) < 0 && errno == EINTR)
        ;
    report_after_death();
    if (WIFSIGNALED(status))
        report("death", "signal=%d", WTERMSIG(status));
    else
        report("death", "status=%d", WEXITSTATUS(status));
    return 1;
}
