/* What a missing instruction costs: traps N, EXTRQ, which Intel's CPUs lack.  Built by translate.py.
 *
 * traps empty N: with a handler that only skips the instruction; traps own N: with whatever handles
 * SIGILL (isthmus run).  Prints nanoseconds for each instruction. */
#define _GNU_SOURCE
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <ucontext.h>

static void skip(int number, siginfo_t *information, void *data)
{
    (void)number, (void)information;
    ((ucontext_t *)data)->uc_mcontext.gregs[REG_RIP] += 6;
}

int main(int argc, char **argv)
{
    long count = argc > 2 ? atol(argv[2]) : 10000;
    struct sigaction action = {.sa_sigaction = skip, .sa_flags = SA_SIGINFO};
    struct timespec start, end;
    if (argc > 1 && !strcmp(argv[1], "empty"))
        sigaction(SIGILL, &action, NULL);
    clock_gettime(CLOCK_MONOTONIC, &start);
    for (long i = 0; i < count; i++)
        __asm__ volatile(".byte 0x66,0x0f,0x78,0xc0,16,8; nop" : : : "xmm0");
    clock_gettime(CLOCK_MONOTONIC, &end);
    printf("%.1f\n", ((double)(end.tv_sec - start.tv_sec) * 1e9 +
                      (double)(end.tv_nsec - start.tv_nsec)) / (double)count);
    return 0;
}
