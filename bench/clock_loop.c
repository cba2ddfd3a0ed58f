/* Reads the clock through the vDSO without end, and says how often it could in each half second. */
#include <stdio.h>
#include <time.h>

int main(void)
{
    struct timespec begun, now;
    for (;;) {
        unsigned long count = 0;
        double spent;
        clock_gettime(CLOCK_MONOTONIC, &begun);
        do {
            for (int turn = 0; turn < 50; turn++)
                clock_gettime(CLOCK_MONOTONIC, &now);
            count += 50;
            spent = (double)(now.tv_sec - begun.tv_sec) + 1e-9 * (double)(now.tv_nsec - begun.tv_nsec);
        } while (spent < 0.5);
        printf("clock readings %.0f\n", (double)count / spent);
        fflush(stdout);
    }
}
