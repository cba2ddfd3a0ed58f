/* A program with a missing instruction now and then.  Built by translate_program.py.
 *
 * paced SECONDS CODE RATE...: finds how much work (hashing) takes SECONDS without the instruction,
 * then does the same work with as many of the instruction CODE (hexadecimal) spread over it as make
 * RATE a second of that time.  Prints "paced RATE plain=SECONDS translated=SECONDS count=N end" for
 * each rate. */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>

static volatile uint64_t result;

static double now(void)
{
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return (double)time.tv_sec + (double)time.tv_nsec / 1e9;
}

/* One unit: some 50 ns natively. */
static uint64_t unit(uint64_t value)
{
    for (unsigned i = 0; i < 32; i++) {
        value ^= value << 13;
        value ^= value >> 7;
        value ^= value << 17;
    }
    return value;
}

static double work(uint64_t units, uint64_t every, void (*instruction)(void), uint64_t *count)
{
    double start = now();
    uint64_t value = 88172645463325252u, until = every;
    *count = 0;
    for (uint64_t i = 0; i < units; i++) {
        value = unit(value);
        if (i == until) {
            instruction();
            until += every;
            ++*count;
        }
    }
    result = value;
    return now() - start;
}

int main(int argc, char **argv)
{
    if (argc < 4)
        return 2;
    uint8_t *page = mmap(NULL, 4096, PROT_READ | PROT_WRITE | PROT_EXEC,
                         MAP_PRIVATE | MAP_ANONYMOUS, -1, 0), *at = page;
    if (page == MAP_FAILED)
        return 2;
    for (const char *text = argv[2]; text[0] && text[1] && at < page + 15; text += 2) {
        char digits[3] = {text[0], text[1], 0};
        *at++ = (uint8_t)strtoul(digits, NULL, 16);
    }
    memcpy(at, (const uint8_t[]){0x0f, 0x77, 0xc3}, 3); /* EMMS, RET */
    void (*instruction)(void) = (void (*)(void))page;
    double seconds = strtod(argv[1], NULL);
    uint64_t none, count, units = 1000;
    double spent = 0;
    while ((spent = work(units, UINT64_MAX, instruction, &none)) < seconds / 4)
        units *= 2;
    units = (uint64_t)((double)units * seconds / spent);
    for (int i = 3; i < argc; i++) {
        double rate = strtod(argv[i], NULL);
        double plain = work(units, UINT64_MAX, instruction, &none);
        uint64_t every = (uint64_t)((double)units / (plain * rate));
        double translated = work(units, every ? every : 1, instruction, &count);
        double again = work(units, UINT64_MAX, instruction, &none);
        printf("paced %s plain=%.6f translated=%.6f count=%llu end\n", argv[i], (plain + again) / 2,
               translated, (unsigned long long)count);
        fflush(stdout);
    }
    return 0;
}
