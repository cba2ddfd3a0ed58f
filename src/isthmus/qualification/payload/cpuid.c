/* CPUID as it was at start, compared in every tick; each change of a register is told once.
 *
 * The thread that calls this stays on one vCPU, since some fields are that vCPU's own number
 * (leaf 1 EBX 31:24, 0xB, 0x1F, 0x8000001E EAX). */
#include "checks.h"

#include <stdio.h>
#include <string.h>

#define MOST 128

struct seen {
    uint32_t leaf, subleaf;
    struct cpuid_registers registers;
};

static struct seen seen[MOST];
static unsigned count;

struct cpuid_registers cpuid(uint32_t leaf, uint32_t subleaf)
{
    struct cpuid_registers r;
    __asm__ volatile("cpuid"
                     : "=a"(r.register_[0]), "=b"(r.register_[1]), "=c"(r.register_[2]),
                       "=d"(r.register_[3])
                     : "a"(leaf), "c"(subleaf));
    return r;
}

void cpuid_vendor(char vendor[13])
{
    struct cpuid_registers r = cpuid(0, 0);
    memcpy(vendor, &r.register_[1], 4);
    memcpy(vendor + 4, &r.register_[3], 4);
    memcpy(vendor + 8, &r.register_[2], 4);
    vendor[12] = 0;
}

static void remember(uint32_t leaf, uint32_t subleaf)
{
    if (count == MOST)
        return;
    struct seen *entry = &seen[count++];
    *entry = (struct seen){leaf, subleaf, cpuid(leaf, subleaf)};
    struct record record;
    record_begin(&record, "cpuid");
    record_add(&record, "leaf", "%x.%x", leaf, subleaf);
    record_add(&record, "eax", "%08x", entry->registers.register_[0]);
    record_add(&record, "ebx", "%08x", entry->registers.register_[1]);
    record_add(&record, "ecx", "%08x", entry->registers.register_[2]);
    record_add(&record, "edx", "%08x", entry->registers.register_[3]);
    record_commit(&record);
}

static unsigned subleaves(uint32_t leaf)
{
    switch (leaf) {
    case 4:
    case 0x8000001d:
        return 5;
    case 7:
        return 3;
    case 0xb:
    case 0x1f:
        return 2;
    case 0xd:
        return 10;
    default:
        return 1;
    }
}

void cpuid_setup(void)
{
    static const uint32_t starts[] = {0, 0x40000000u, 0x80000000u};
    for (unsigned i = 0; i < 3; i++) {
        uint32_t highest = cpuid(starts[i], 0).register_[0];
        if (highest < starts[i] || highest - starts[i] > 0x40)
            highest = starts[i];
        for (uint32_t leaf = starts[i]; leaf <= highest; leaf++)
            for (uint32_t subleaf = 0; subleaf < subleaves(leaf); subleaf++)
                remember(leaf, subleaf);
    }
}

uint64_t cpuid_check(void)
{
    static const char *const names[] = {"eax", "ebx", "ecx", "edx"};
    static uint64_t changes;
    for (unsigned i = 0; i < count; i++) {
        struct cpuid_registers now = cpuid(seen[i].leaf, seen[i].subleaf);
        for (unsigned r = 0; r < 4; r++) {
            if (now.register_[r] == seen[i].registers.register_[r])
                continue;
            struct record record;
            record_begin(&record, "event");
            record_add(&record, "kind", "cpuid");
            record_add(&record, "leaf", "%x.%x", seen[i].leaf, seen[i].subleaf);
            record_add(&record, "register", "%s", names[r]);
            record_add(&record, "old", "%08x", seen[i].registers.register_[r]);
            record_add(&record, "new", "%08x", now.register_[r]);
            record_commit(&record);
            seen[i].registers.register_[r] = now.register_[r];
            changes++;
        }
    }
    return changes;
}
