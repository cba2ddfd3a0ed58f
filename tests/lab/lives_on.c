/* The first process of a lab guest that changes under its translator: it executes instructions that
 * the CPU may lack, for ever, and does what the kernel's command line says (lives=WORD):
 *   reboot   resets the machine after a while, each time
 *   kexec    starts /vmlinuz with the initramfs /next, which is this program again
 *   plug     takes a vCPU that is plugged in into service, and goes on there (plug-late: after 3 s)
 *   module   loads /lives.ko, which executes them in the kernel
 * Static, no arguments; built by test_translate_lives_on.py. */
#define _GNU_SOURCE
#include <fcntl.h>
#include <sched.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/reboot.h>
#include <sys/syscall.h>
#include <unistd.h>

#define CPU1 "/sys/devices/system/cpu/cpu1/online"

static bool right(void)
{
    uint64_t value = 0x1122334455667788, got, count;

    asm volatile("movq %1, %%xmm0; extrq $8, $16, %%xmm0; movq %%xmm0, %0"
                 : "=r"(got) : "r"(value) : "xmm0");
    asm volatile("popcntq %1, %0" : "=r"(count) : "r"(value) : "cc");
    return got == 0x6677 && count == (uint64_t)__builtin_popcountll(value);
}

static void go_on(const char *where, int rounds)
{
    while (rounds-- != 0) {
        printf("lives %s %s\n", where, right() ? "ok" : "wrong");
        usleep(100000);
    }
}

static void next_kernel(void)
{
    static const char words[] = "console=ttyS0 loglevel=1 panic=-1 lives=on";
    int kernel = open("/vmlinuz", O_RDONLY), initrd = open("/next", O_RDONLY);

    if (syscall(SYS_kexec_file_load, kernel, initrd, sizeof(words), words, 0L) != 0)
        perror("lives kexec_file_load");
    reboot(RB_KEXEC);
    perror("lives kexec");
}

static void take_cpu1(int late)
{
    cpu_set_t set;
    int file;

    while ((file = open(CPU1, O_WRONLY)) < 0)
        usleep(10000);
    sleep(late);
    if (write(file, "1", 1) != 1)
        perror("lives online");
    close(file);
    CPU_ZERO(&set);
    CPU_SET(1, &set);
    while (sched_setaffinity(0, sizeof(set), &set) != 0)
        usleep(10000);
}

int main(void)
{
    char words[1024] = "";
    FILE *file;

    mount("none", "/proc", "proc", 0, NULL);
    mount("none", "/sys", "sysfs", 0, NULL);
    setvbuf(stdout, NULL, _IOLBF, 0);
    if ((file = fopen("/proc/cmdline", "r")) == NULL || fgets(words, sizeof(words), file) == NULL)
        perror("lives cmdline");
    printf("lives ready\n");
    if (strstr(words, "lives=wait")) /* until it is armed */
        sleep(2);
    if (strstr(words, "lives=reboot")) {
        sleep(2);
        go_on("here", 10);
        reboot(RB_AUTOBOOT);
    } else if (strstr(words, "lives=kexec")) {
        sleep(2);
        go_on("here", 10);
        next_kernel();
    } else if (strstr(words, "lives=plug")) {
        take_cpu1(strstr(words, "plug-late") ? 3 : 0);
        go_on("plugged", -1);
    } else if (strstr(words, "lives=module")) {
        sleep(2);
        go_on("here", 10);
        if (syscall(SYS_finit_module, open("/lives.ko", O_RDONLY), "", 0) != 0)
            perror("lives module");
    }
    go_on("on", -1);
    return 0;
}
