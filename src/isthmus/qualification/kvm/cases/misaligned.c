/* Turns on MXCSR.MM, as a program may that has found AMD's misaligned SSE mode in CPUID (AMD APM
 * vol. 1, 4.2.2: bit 17), and keeps the vCPU busy with it, before all others, so that it is on when a
 * move stops the guest.  It runs beside the payload, and tells whether the bit stays. */
#include <stdint.h>
#include <stdio.h>
#include <sys/resource.h>
#include <time.h>

#define MM (1u << 17)

static uint32_t mxcsr(void)
{
    uint32_t value;
    __asm__ volatile("stmxcsr %0" : "=m"(value));
    return value;
}

int main(void)
{
    uint32_t with = mxcsr() | MM;
    if (setpriority(PRIO_PROCESS, 0, -15))
        return 1;
    __asm__ volatile("ldmxcsr %0" : : "m"(with));
    for (unsigned rounds = 1;; rounds++) {
        time_t begun = time(NULL);
        while (time(NULL) < begun + 2)
            if (!(mxcsr() & MM)) {
                printf("misaligned: lost\n");
                fflush(stdout);
                return 1;
            }
        printf("misaligned: on, %u\n", rounds);
        fflush(stdout);
    }
}
