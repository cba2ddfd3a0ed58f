/* Counts of what was done, told at the end of the process. */
#include "process.h"

#include <stdatomic.h>
#include <string.h>
#include <unistd.h>

static char report[4096]; /* where counts go at the end, or "" */
static _Atomic uint64_t traps, counts[ISTHMUS_MNEMONICS], refusals[ISTHMUS_FAMILIES];

void count_trap(void)
{
    atomic_fetch_add_explicit(&traps, 1, memory_order_relaxed);
}

void count_done(uint32_t mnemonic)
{
    atomic_fetch_add_explicit(&counts[mnemonic & 0xffff], 1, memory_order_relaxed);
}

void count_refused(uint32_t family)
{
    atomic_fetch_add_explicit(&refusals[family], 1, memory_order_relaxed);
}

void prepare_report(char **environment)
{
    static const char name[] = "ISTHMUS_RUN_REPORT=";
    for (; environment && *environment; environment++)
        if (!strncmp(*environment, name, sizeof name - 1) &&
            strlen(*environment) < sizeof name + sizeof report - 1)
            strcpy(report, *environment + sizeof name - 1);
}

static void put(char *line, size_t *at, const char *text)
{
    while (*text && *at < 200)
        line[(*at)++] = *text++;
}

static void put_number(char *line, size_t *at, uint64_t value)
{
    char digits[24];
    unsigned count = 0;
    do
        digits[count++] = (char)('0' + value % 10);
    while (value /= 10);
    while (count && *at < 200)
        line[(*at)++] = digits[--count];
}

static bool tell_line(int file, const char *before, const char *name, uint64_t count)
{
    char line[256];
    size_t at = 0;
    put(line, &at, before);
    put(line, &at, name);
    put(line, &at, " ");
    put_number(line, &at, count);
    put(line, &at, "\n");
    return write(file, line, at) >= 0;
}

/* At the end of the process: "traps N", then "MNEMONIC N" for each, then "refused FAMILY N" for what
 * is known and done by nobody, appended whole. */
__attribute__((destructor)) static void tell(void)
{
    uint64_t count, refused = 0;
    for (uint32_t i = 0; i < ISTHMUS_FAMILIES; i++)
        refused += atomic_load(&refusals[i]);
    if (!report[0] || (!atomic_load(&traps) && !refused))
        return;
    int file = (int)syscall(SYS_open, report, 02001 | 0100, 0600); /* append, write, create */
    if (file < 0)
        return;
    bool told = tell_line(file, "", "traps", atomic_load(&traps));
    for (uint32_t i = 1; told && i < ISTHMUS_MNEMONICS; i++)
        if ((count = atomic_load(&counts[i])))
            told = tell_line(file, "", isthmus_mnemonic_name(i), count);
    for (uint32_t i = 1; told && i < ISTHMUS_FAMILIES; i++)
        if ((count = atomic_load(&refusals[i])))
            told = tell_line(file, "refused ", isthmus_refused_name(i), count);
    close(file);
}
