/* What a missing instruction costs.  Built by translate_preload.py.
 *
 * traps which: names the first instruction of the table below that this CPU raises SIGILL for.
 * traps empty N NAME: N of them with a handler that only skips the instruction; traps own N NAME:
 * with whatever handles SIGILL (isthmus run); prints nanoseconds for each.  NAME is EXTRQ if left out.
 * traps eight N NAME: N rows of eight with nothing between. */
#define _GNU_SOURCE
#include <setjmp.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>
#include <ucontext.h>

/* One maker dropped each of the first four or never had it, so no CPU of today has all. */
static const struct {
    const char *name;
    uint8_t code[8];
    unsigned length;
} table[] = {
    {"PFADD", {0x0f, 0x0f, 0xc1, 0x9e}, 4},                  /* mm0, mm1: 3DNow! */
    {"BLCFILL", {0x8f, 0xe9, 0x78, 0x01, 0xc8}, 5},          /* eax, eax: TBM */
    {"VPHADDBW", {0x8f, 0xe9, 0x78, 0xc1, 0xc1}, 5},         /* xmm0, xmm1: XOP */
    {"VFMADDPS", {0xc4, 0xe3, 0xf9, 0x68, 0xc1, 0x20}, 6},   /* xmm0, xmm0, xmm1, xmm2: FMA4 */
    {"EXTRQ", {0x66, 0x0f, 0x78, 0xc0, 16, 8}, 6},           /* xmm0: SSE4a */
};
enum { NAMES = sizeof table / sizeof *table };

static unsigned length;
static sigjmp_buf escape;

static void skip(int number, siginfo_t *information, void *data)
{
    (void)number, (void)information;
    ((ucontext_t *)data)->uc_mcontext.gregs[REG_RIP] += length;
}

static void leave(int number)
{
    siglongjmp(escape, number);
}

/* REPEATS times the instruction, NOP, DEC RDI, JNZ back, EMMS, RET. */
static void (*emit(unsigned which, unsigned repeats))(uint64_t)
{
    uint8_t *page = mmap(NULL, 4096, PROT_READ | PROT_WRITE | PROT_EXEC,
                         MAP_PRIVATE | MAP_ANONYMOUS, -1, 0), *at = page;
    if (page == MAP_FAILED)
        exit(2);
    for (unsigned i = 0; i < repeats; i++, at += table[which].length)
        memcpy(at, table[which].code, table[which].length);
    static const uint8_t tail[] = {0x90, 0x48, 0xff, 0xcf, 0x0f, 0x85};
    memcpy(at, tail, sizeof tail);
    at += sizeof tail;
    int32_t back = (int32_t)(page - (at + 4));
    memcpy(at, &back, 4);
    memcpy(at + 4, (const uint8_t[]){0x0f, 0x77, 0xc3}, 3);
    return (void (*)(uint64_t))page;
}

static int which(void)
{
    signal(SIGILL, leave);
    for (volatile unsigned i = 0; i < NAMES; i++)
        if (sigsetjmp(escape, 1))
            return puts(table[i].name) < 0;
        else
            emit(i, 1)(1);
    return 1;
}

int main(int argc, char **argv)
{
    if (argc == 2 && !strcmp(argv[1], "which"))
        return which();
    const char *name = argc == 4 ? argv[3] : "EXTRQ";
    unsigned chosen = 0;
    while (chosen < NAMES && strcmp(name, table[chosen].name))
        chosen++;
    if (argc < 3 || chosen == NAMES)
        return 2;
    struct sigaction action = {.sa_sigaction = skip, .sa_flags = SA_SIGINFO};
    struct timespec start, end;
    uint64_t count = strtoull(argv[2], NULL, 10);
    length = table[chosen].length;
    if (!strcmp(argv[1], "empty"))
        sigaction(SIGILL, &action, NULL);
    void (*run)(uint64_t) = emit(chosen, strcmp(argv[1], "eight") ? 1 : 8);
    clock_gettime(CLOCK_MONOTONIC, &start);
    run(count);
    clock_gettime(CLOCK_MONOTONIC, &end);
    printf("%.1f\n", ((double)(end.tv_sec - start.tv_sec) * 1e9 +
                      (double)(end.tv_nsec - start.tv_nsec)) / (double)count);
    return 0;
}
