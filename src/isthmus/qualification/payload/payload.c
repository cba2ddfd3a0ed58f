/* The payload of a lab guest: works, checks itself, and reports (docs/payload.md).
 *
 * Two processes: the worker computes and may die as any program does; the supervisor, which uses
 * no instruction under test, alone writes to the port, and tells of the worker's death.  As PID 1
 * the supervisor never ends; elsewhere (`payload --port FILE NAME=VALUE ...`) it ends with the
 * worker. */
#include "checks.h"
#include "options.h"
#include "report.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/utsname.h>
#include <sys/wait.h>
#include <termios.h>
#include <time.h>
#include <unistd.h>

#define PORT_NAME "org.isthmus.payload"
#define COUNTS_EVERY 10

static _Atomic uint64_t largest_spin; /* TSC ticks */

static void pause_ms(unsigned milliseconds)
{
    struct timespec time = {milliseconds / 1000, (long)(milliseconds % 1000) * 1000000};
    while (clock_nanosleep(CLOCK_MONOTONIC, 0, &time, &time) == EINTR)
        ;
}

static void add_clocks(struct record *record, struct clocks now)
{
    record_add(record, "mono", "%lld", (long long)now.monotonic_ns);
    record_add(record, "real", "%lld", (long long)now.realtime_ns);
    record_add(record, "tsc", "%llu", (unsigned long long)now.tsc);
}

static void *beat(void *unused)
{
    (void)unused;
    for (uint64_t number = 0;; number++) {
        struct record record;
        struct clocks now = clocks_read();
        record_begin(&record, "beat");
        record_add(&record, "n", "%llu", (unsigned long long)number);
        add_clocks(&record, now);
        if (options.spin)
            record_add(&record, "spin", "%llu",
                       (unsigned long long)atomic_exchange(&largest_spin, 0));
        record_commit(&record);
        pause_ms(options.beat_ms);
    }
    return NULL;
}

static void *spin(void *unused)
{
    (void)unused;
    for (uint64_t last = tsc_read();;) {
        uint64_t now = tsc_read();
        if (now > last && now - last > atomic_load_explicit(&largest_spin, memory_order_relaxed))
            atomic_store(&largest_spin, now - last);
        last = now;
    }
    return NULL;
}

static void start_thread(void *(*run)(void *))
{
    pthread_t thread;
    if (pthread_create(&thread, NULL, run, NULL)) {
        perror("payload: pthread_create");
        exit(1);
    }
}

static void first_line(const char *path, char *text, size_t size)
{
    FILE *file = fopen(path, "r");
    if (!file || !fgets(text, (int)size, file))
        snprintf(text, size, "-");
    if (file)
        fclose(file);
    text[strcspn(text, " \n")] = 0;
}

static void report_start(unsigned unknown_options)
{
    struct record record;
    struct utsname name;
    struct cpuid_registers signature = cpuid(1, 0);
    char vendor[13];
    uname(&name);
    cpuid_vendor(vendor);
    vendor[strcspn(vendor, " =")] = 0;
    record_begin(&record, "start");
    record_add(&record, "kernel", "%s", name.release);
    record_add(&record, "vcpus", "%ld", sysconf(_SC_NPROCESSORS_ONLN));
    record_add(&record, "vendor", "%s", vendor[0] ? vendor : "-");
    record_add(&record, "signature", "%08x", signature.register_[0]);
    record_add(&record, "tick_ms", "%u", options.tick_ms);
    record_add(&record, "beat_ms", "%u", options.beat_ms);
    record_add(&record, "memory_mib", "%u", options.memory_mib);
    record_add(&record, "rewrite_kib", "%u", options.rewrite_kib);
    record_add(&record, "threads", "%u", options.threads);
    record_add(&record, "fault", "%s", options.report_faults ? "report" : "die");
    record_add(&record, "disk", "%d", options.disk);
    record_add(&record, "unknown_options", "%u", unknown_options);
    instructions_names(&record);
    record_commit(&record);
}

/* The kernel may change its clock source, also because a move made it distrust the TSC. */
static void report_clock_source(void)
{
    static char last[64];
    char now[64];
    struct record record;
    first_line("/sys/devices/system/clocksource/clocksource0/current_clocksource", now, sizeof now);
    if (!strcmp(last, now))
        return;
    record_begin(&record, "clocksource");
    record_add(&record, "old", "%s", last[0] ? last : "-");
    record_add(&record, "new", "%s", now);
    record_commit(&record);
    memcpy(last, now, sizeof last);
}

static void tick(uint64_t number)
{
    struct record record;
    struct clocks now = clocks_read();
    record_begin(&record, "tick");
    record_add(&record, "n", "%llu", (unsigned long long)number);
    add_clocks(&record, now);
#define COUNT(key, value) record_add(&record, key, "%llu", (unsigned long long)(value))
    COUNT("insn", instructions_check());
    COUNT("math", arithmetic_check());
    COUNT("pages", memory_check(number));
    COUNT("sums", threads_check());
    COUNT("usr1", threads_signals());
    struct fault_counts faults = faults_check();
    COUNT("ud2", faults.ud2);
    COUNT("int3", faults.int3);
    COUNT("fpe", faults.division);
    COUNT("segv", faults.segment);
    COUNT("timer", faults.timer);
    COUNT("cpuid", cpuid_check());
    COUNT("disk", disk_check(number));
    COUNT("dropped", report_dropped());
#undef COUNT
    record_commit(&record);
    if (number % COUNTS_EVERY == 0) {
        instructions_report();
        report_clock_source();
    }
}

static int work(unsigned unknown_options)
{
    instructions_setup();
    report_start(unknown_options);
    /* Only this thread stays on one vCPU, for CPUID's and RDTSCP's sake. */
    cpu_set_t everywhere, first;
    sched_getaffinity(0, sizeof everywhere, &everywhere);
    CPU_ZERO(&first);
    CPU_SET(0, &first);
    sched_setaffinity(0, sizeof first, &first);
    cpuid_setup();
    sched_setaffinity(0, sizeof everywhere, &everywhere);
    if (!memory_setup()) {
        fprintf(stderr, "payload: no memory for the patterns\n");
        return 1;
    }
    disk_setup();
    clocks_setup();
    threads_setup();
    if (options.beat_ms)
        start_thread(beat);
    if (options.spin)
        start_thread(spin);
    faults_setup();
    sched_setaffinity(0, sizeof first, &first);
    for (uint64_t number = 0; !options.ticks || number < options.ticks; number++) {
        tick(number);
        pause_ms(options.tick_ms);
    }
    instructions_report();
    struct record record;
    record_begin(&record, "end");
    record_add(&record, "ticks", "%u", options.ticks);
    record_commit(&record);
    fflush(NULL);
    _exit(0);
}

/* ---- the supervisor ---- */

static void on_child(int number)
{
    int before = errno;
    uint64_t one = 1;
    (void)number;
    if (write(report_wakeup(), &one, sizeof one) < 0)
        errno = before;
    errno = before;
}

static int open_virtio_port(void)
{
    char path[300], name[64];
    int port = -1;
    DIR *folder = opendir("/sys/class/virtio-ports");
    for (struct dirent *entry; folder && port < 0 && (entry = readdir(folder));) {
        snprintf(path, sizeof path, "/sys/class/virtio-ports/%s/name", entry->d_name);
        first_line(path, name, sizeof name);
        snprintf(path, sizeof path, "/dev/%s", entry->d_name);
        if (!strcmp(name, PORT_NAME))
            port = open(path, O_WRONLY | O_NONBLOCK | O_CLOEXEC);
    }
    if (folder)
        closedir(folder);
    return port;
}

static int open_serial_port(void)
{
    struct termios mode;
    int port = open("/dev/ttyS1", O_WRONLY | O_NONBLOCK | O_NOCTTY | O_CLOEXEC);
    if (port >= 0 && tcgetattr(port, &mode)) {
        close(port);
        return -1;
    }
    if (port >= 0) {
        cfmakeraw(&mode);
        tcsetattr(port, TCSANOW, &mode);
    }
    return port;
}

static int open_port(void)
{
    for (int tries = 0; tries < 100; tries++) {
        int port = open_virtio_port();
        if (port >= 0)
            return port;
        pause_ms(20);
    }
    return open_serial_port();
}

/* Writes what waits; false when the port takes nothing now. */
static bool drain(int port)
{
    const char *bytes;
    for (size_t count; (count = report_waiting(&bytes));) {
        ssize_t written = write(port, bytes, count > 4096 ? 4096 : count);
        if (written <= 0)
            return false;
        report_written((size_t)written);
    }
    return true;
}

static void report_death(pid_t worker, int status)
{
    char doing[64];
    struct record record;
    report_last_doing(doing, sizeof doing);
    record_begin(&record, "death");
    record_add(&record, "pid", "%d", (int)worker);
    record_add(&record, "signal", "%d", WIFSIGNALED(status) ? WTERMSIG(status) : 0);
    record_add(&record, "exit", "%d", WIFEXITED(status) ? WEXITSTATUS(status) : -1);
    record_add(&record, "doing", "%s", doing);
    record_commit(&record);
}

static int supervise(pid_t worker, int port, bool first_process)
{
    int result = 0;
    bool ended = false;
    struct pollfd wakeup = {.fd = report_wakeup(), .events = POLLIN};
    for (;;) {
        bool open = drain(port);
        const char *bytes;
        if (ended && !first_process && (!open || !report_waiting(&bytes)))
            return result;
        /* A closed port is tried again soon, never waited for. */
        poll(&wakeup, 1, open ? 500 : 20);
        uint64_t ignored;
        while (read(wakeup.fd, &ignored, sizeof ignored) > 0)
            ;
        int status;
        for (pid_t child; (child = waitpid(-1, &status, WNOHANG)) > 0;)
            if (child == worker) {
                ended = true;
                result = WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
                if (result)
                    report_death(worker, status);
            }
    }
}

int main(int argc, char **argv)
{
    bool first_process = getpid() == 1;
    unsigned unknown = 0;
    int port = -1;
    if (first_process)
        unknown = options_from_kernel("/proc/cmdline");
    for (int i = 1; i < argc; i++) {
        if (!strcmp(argv[i], "--port") && i + 1 < argc) {
            port = open(argv[++i], O_WRONLY | O_NONBLOCK | O_CREAT | O_APPEND | O_CLOEXEC, 0600);
            if (port < 0) {
                perror(argv[i]);
                return 1;
            }
        } else if (!option_read(argv[i])) {
            fprintf(stderr, "payload: not an option: %s\n", argv[i]);
            return 2;
        }
    }
    report_setup();
    struct sigaction action = {.sa_handler = on_child};
    sigaction(SIGCHLD, &action, NULL);
    signal(SIGPIPE, SIG_IGN);
    pid_t worker = fork();
    if (worker == 0) {
        prctl(PR_SET_PDEATHSIG, SIGKILL);
        signal(SIGCHLD, SIG_DFL);
        return work(unknown);
    }
    if (worker < 0)
        perror("payload: fork");
    if (port < 0)
        port = open_port();
    if (port < 0) {
        fprintf(stderr, "payload: no port %s and no /dev/ttyS1: reporting here\n", PORT_NAME);
        port = STDOUT_FILENO;
    }
    return supervise(worker, port, first_process);
}
