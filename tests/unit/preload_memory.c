/* The handler's memory (process/memory.c) by itself: stores, for which no CPU at hand lacks an instruction. */
#define _GNU_SOURCE
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "process.h"

#define FAIL(condition) do { if (condition) { printf("%d: %s\n", __LINE__, #condition); return 1; } } while (0)

int main(void)
{
    uint64_t fault;
    uint32_t error;
    uint8_t line[64], here[64], *place;
    memset(line, 0x5a, sizeof line);
    place = mmap(NULL, 3 * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    uint64_t edge = (uint64_t)place + PAGE - 32;

    /* A store into two pages, of which the second cannot be written, changes nothing. */
    mprotect(place + PAGE, PAGE, PROT_READ);
    FAIL(reach(NULL, ISTHMUS_WRITE, edge, line, 64, &fault, &error) != ISTHMUS_PAGE_FAULT);
    FAIL(fault != (uint64_t)place + PAGE || error != 6 || place[PAGE - 1] || place[PAGE - 32]);
    /* Nor one of which the first cannot. */
    mprotect(place, PAGE, PROT_READ);
    mprotect(place + PAGE, PAGE, PROT_READ | PROT_WRITE);
    FAIL(reach(NULL, ISTHMUS_WRITE, edge, line, 64, &fault, &error) != ISTHMUS_PAGE_FAULT);
    FAIL(fault != edge || place[PAGE]);
    mprotect(place, PAGE, PROT_READ | PROT_WRITE);
    FAIL(reach(NULL, ISTHMUS_WRITE, edge, line, 64, &fault, &error) != ISTHMUS_OK);
    FAIL(memcmp((void *)edge, line, 64));
    munmap(place + PAGE, PAGE);
    FAIL(reach(NULL, ISTHMUS_READ, edge, here, 64, &fault, &error) != ISTHMUS_PAGE_FAULT);
    FAIL(fault != (uint64_t)place + PAGE || error != 4);

    /* A store below the stack makes it grow, within its limit. */
    uint64_t deep = (uint64_t)&fault - (1 << 20);
    FAIL(region_at(deep).mapped || !region_at(deep).grows);
    FAIL(reach(NULL, ISTHMUS_WRITE, deep, line, 64, &fault, &error) != ISTHMUS_OK);
    FAIL(!region_at(deep).mapped || memcmp((void *)deep, line, 64));
    FAIL(region_at((uint64_t)&fault - (UINT64_C(1) << 40)).grows);

    /* What is written is not kept as code. */
    struct window window = {.start = 0, .available = 20};
    FAIL(reach(&window, ISTHMUS_READ, edge, here, 8, &fault, &error) || window.available != 20);
    FAIL(reach(&window, ISTHMUS_WRITE, edge, here, 8, &fault, &error) || window.available);

    struct region text = region_at((uint64_t)main);
    FAIL(!text.mapped || !text.executable || text.writable);
    FAIL(beyond_canonical((uint64_t)main) || beyond_canonical(0xffff888000000000));
    FAIL(!beyond_canonical(0x8000000000000000));
    puts("ok");
    return 0;
}
