/* Patterns over many pages.  Every word is a function of its page and of the page's generation,
 * so that a page that was lost, stale, or put in another's place cannot look right. */
#include "checks.h"
#include "options.h"

#include <stdlib.h>
#include <sys/mman.h>

#define PAGE_WORDS 512u
#define PIECE_KIB 1024u /* checked in each tick */

static uint64_t *memory;
static uint32_t *generations;
static uint64_t pages, check_at, write_at;

static uint64_t mix(uint64_t value)
{
    value ^= value >> 31;
    value *= UINT64_C(0x7fb5d329728ea185);
    return value ^ value >> 27;
}

static void fill(uint64_t page, uint32_t generation)
{
    uint64_t start = mix(page << 32 | generation);
    for (uint64_t i = 0; i < PAGE_WORDS; i++)
        memory[page * PAGE_WORDS + i] = start + i * UINT64_C(0x9e3779b97f4a7c15);
    generations[page] = generation;
}

static bool check(uint64_t page)
{
    uint64_t start = mix(page << 32 | generations[page]);
    for (uint64_t i = 0; i < PAGE_WORDS; i++) {
        uint64_t expected = start + i * UINT64_C(0x9e3779b97f4a7c15);
        uint64_t got = memory[page * PAGE_WORDS + i];
        if (got != expected) {
            struct record record;
            record_begin(&record, "event");
            record_add(&record, "kind", "memory");
            record_add(&record, "page", "%llu", (unsigned long long)page);
            record_add(&record, "word", "%llu", (unsigned long long)i);
            record_add(&record, "expected", "%llx", (unsigned long long)expected);
            record_add(&record, "got", "%llx", (unsigned long long)got);
            record_commit(&record);
            fill(page, generations[page]);
            return false;
        }
    }
    return true;
}

bool memory_setup(void)
{
    pages = (uint64_t)options.memory_mib * 256;
    memory = mmap(NULL, pages * 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    generations = calloc(pages, sizeof *generations);
    if (memory == MAP_FAILED || !generations)
        return false;
    for (uint64_t page = 0; page < pages; page++)
        fill(page, 0);
    return true;
}

uint64_t memory_check(uint64_t tick)
{
    static uint64_t checked;
    for (unsigned i = 0; i < PIECE_KIB / 4; i++, check_at = (check_at + 1) % pages)
        checked += check(check_at);
    for (unsigned i = 0; i < options.rewrite_kib / 4; i++, write_at = (write_at + 1) % pages)
        fill(write_at, (uint32_t)tick + 1);
    return checked;
}
