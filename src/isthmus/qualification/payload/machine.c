/* The machine as the guest sees it: CPUID, and whether it changes under us. */
#include <cpuid.h>
#include <stdio.h>
#include <string.h>

#include "payload.h"

/* Leaf, subleaf, and the bits that differ between CPUs of one machine or change by themselves:
 * the initial APIC ID in leaf 1 EBX (Intel SDM vol. 2A, CPUID), and OSXSAVE/OSPKE, which mirror CR4.
 */
static const struct leaf {
    uint32_t leaf, subleaf;
    uint32_t ignored[4];
} leaves[] = {
    {0x0, 0, {0}}, {0x1, 0, {0, 0xff000000u, 1u << 27, 0}}, {0x7, 0, {0, 0, 1u << 4, 0}},
    {0x7, 1, {0}}, {0xd, 1, {0, ~0u, 0, 0}}, {0x80000000u, 0, {0}}, {0x80000001u, 0, {0}},
    {0x80000007u, 0, {0}}, {0x80000008u, 0, {0}}, {0x8000000au, 0, {0}},
};
#define LEAVES (sizeof leaves / sizeof *leaves)

static uint32_t seen[LEAVES][4];

static void read_leaf(size_t index, uint32_t out[4])
{
    const struct leaf *leaf = &leaves[index];
    uint32_t highest, b, c, d;
    memset(out, 0, 16);
    __cpuid(leaf->leaf & 0x80000000u, highest, b, c, d);
    if (leaf->leaf > highest)
        return;
    __cpuid_count(leaf->leaf, leaf->subleaf, out[0], out[1], out[2], out[3]);
    for (int i = 0; i < 4; i++)
        out[i] &= ~leaf->ignored[i];
}

void machine_remember(void)
{
    for (size_t i = 0; i < LEAVES; i++)
        read_leaf(i, seen[i]);
}

void machine_compare(void)
{
    static const char *const registers[4] = {"eax", "ebx", "ecx", "edx"};
    for (size_t i = 0; i < LEAVES; i++) {
        uint32_t now[4];
        read_leaf(i, now);
        for (int r = 0; r < 4; r++) {
            if (now[r] == seen[i][r])
                continue;
            report("cpuid", "leaf=%x subleaf=%x register=%s old=%08x new=%08x", leaves[i].leaf,
                   leaves[i].subleaf, registers[r], seen[i][r], now[r]);
            seen[i][r] = now[r];
        }
    }
}

uint64_t machine_tsc(void)
{
    uint32_t low, high;
    __asm__ volatile("lfence; rdtsc" : "=a"(low), "=d"(high) : : "memory");
    return (uint64_t)high << 32 | low;
}

void machine_cpu(char *text, size_t size)
{
    uint32_t highest, vendor[3], version, b, c, d;
    __cpuid(0, highest, vendor[0], vendor[2], vendor[1]);
    __cpuid(1, version, b, c, d);
    snprintf(text, size, "vendor=%.12s signature=%08x", (const char *)vendor, version);
}
