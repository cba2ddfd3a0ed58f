/* Makes a kernel call its hypervisor.  Threads on all CPUs fight for one spinlock of the kernel: a
 * futex wait whose value is not the expected one takes the lock of the futex's bucket, compares and
 * gives up (Linux kernel/futex/waitwake.c, futex_wait_setup).  Where vCPUs share a CPU, a holder is
 * preempted, the others halt in pv_wait, and who unlocks kicks them by hypercall (kvm_kick_cpu).
 * It fights for a while out of every period, and then says so; it runs beside the payload.
 * Then a membarrier, which sends an interrupt to all other CPUs at once: with kvm-pv-ipi by a
 * hypercall as well (kvm_send_ipi_mask).  Which of the two: isthmus.contend=lock|ipi|both.
 * Where in its kernel such calls are, it tells first: who dies of one may not come to its name. */
#include <linux/futex.h>
#include <linux/membarrier.h>
#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#define PERIOD_MS 400
#define FIGHT_MS 120
#define MOST 16

static uint32_t word;
static _Atomic uint64_t tries[MOST];
static bool locks = true, interrupts = true;

static uint64_t now_ms(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000 + (uint64_t)now.tv_nsec / 1000000;
}

static void sleep_ms(uint64_t ms)
{
    struct timespec pause = {(time_t)(ms / 1000), (long)(ms % 1000) * 1000000};
    nanosleep(&pause, NULL);
}

static void *fight(void *argument)
{
    unsigned number = (unsigned)(uintptr_t)argument;
    cpu_set_t own;
    CPU_ZERO(&own);
    CPU_SET(number, &own);
    sched_setaffinity(0, sizeof own, &own);
    for (;;) {
        uint64_t into = now_ms() % PERIOD_MS;
        if (into >= FIGHT_MS) {
            sleep_ms(PERIOD_MS - into);
            continue;
        }
        for (unsigned n = 0; n < 64; n++)
            if (locks)
                syscall(SYS_futex, &word, FUTEX_WAIT_PRIVATE, 1, NULL, NULL, 0);
        /* The others must be in this program, not idle: a membarrier passes over idle CPUs. */
        if (interrupts && !number)
            syscall(SYS_membarrier, MEMBARRIER_CMD_PRIVATE_EXPEDITED, 0, 0);
        atomic_fetch_add(&tries[number], 1);
    }
    return NULL;
}

static void choose(void)
{
    char line[4096] = "";
    FILE *file = fopen("/proc/cmdline", "r");
    if (file && !fgets(line, sizeof line, file))
        line[0] = 0;
    if (file)
        fclose(file);
    locks = !strstr(line, "contend=ipi");
    interrupts = !strstr(line, "contend=lock");
}

static void tell_callers(void)
{
    static const char *const callers[] = {
        "kvm_kick_cpu", "kvm_smp_send_call_func_ipi", "kvm_send_ipi_mask", "__send_ipi_mask",
    };
    char line[512], name[256];
    unsigned long long address;
    FILE *file = fopen("/proc/kallsyms", "r");
    while (file && fgets(line, sizeof line, file))
        if ((strstr(line, "kick_cpu") || strstr(line, "_ipi")) &&
            sscanf(line, "%llx %*c %255s", &address, name) == 2)
            for (unsigned n = 0; n < sizeof callers / sizeof *callers; n++)
                if (!strcmp(name, callers[n]))
                    printf("contend has %s at %016llx\n", name, address);
    if (file)
        fclose(file);
    fflush(stdout);
}

int main(void)
{
    long cpus = sysconf(_SC_NPROCESSORS_ONLN);
    unsigned count = cpus < 1 ? 1 : cpus > MOST ? MOST : (unsigned)cpus;
    choose();
    tell_callers();
    syscall(SYS_membarrier, MEMBARRIER_CMD_REGISTER_PRIVATE_EXPEDITED, 0, 0);
    for (unsigned n = 0; n < count; n++) {
        pthread_t thread;
        if (pthread_create(&thread, NULL, fight, (void *)(uintptr_t)n))
            return 1;
    }
    for (;;) {
        uint64_t sum = 0;
        sleep_ms(2000);
        for (unsigned n = 0; n < count; n++)
            sum += atomic_load(&tries[n]);
        printf("contend: %u CPUs, %llu rounds\n", count, (unsigned long long)sum);
        fflush(stdout);
    }
}
