/* 3DNow!'s estimates and FEMMS, beside what runs this program (QEMU's user mode): PFRCP, PFRSQRT over CASES
 * normal numbers of either sign.  Prints how many differ, and by how many units in the last place at most,
 * then the x87's tags (FXSAVE's) and TOP after FEMMS, and what the core says of it. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "machine.h"

static uint64_t seed = 88172645463325252u;

static uint64_t dice(void)
{
    seed ^= seed << 13;
    seed ^= seed >> 7;
    return seed ^= seed << 17;
}

static void of_core(uint8_t suffix, uint64_t value, uint64_t *result)
{
    uint8_t code[] = {0x0f, 0x0f, 0xc1, suffix};
    struct isthmus_machine machine = {.mode = 64, .cr4 = 0x40600};
    struct isthmus_memory none = {0};
    struct isthmus_outcome outcome;
    memcpy(machine.mmx[1], &value, 8);
    isthmus_execute(&machine, code, sizeof code, &none, &outcome);
    memcpy(result, machine.mmx[0], 8);
}

int main(int count, char **words)
{
    int cases = count > 1 ? atoi(words[1]) : 1000;
    for (int which = 0; which < 2; which++) {
        unsigned differ = 0, most = 0;
        for (int i = 0; i < cases; i++) {
            uint64_t value = dice(), here, ours;
            uint32_t low = ((uint32_t)value & 0x807fffff) | (uint32_t)(40 + dice() % 170) << 23;
            value = (value & ~UINT64_C(0xffffffff)) | low;
            if (which)
                __asm__ volatile("movq %1, %%mm1; .byte 0x0f,0x0f,0xc1,0x97; movq %%mm0, %0; emms"
                                 : "=m"(here) : "m"(value) : "mm0", "mm1");
            else
                __asm__ volatile("movq %1, %%mm1; .byte 0x0f,0x0f,0xc1,0x96; movq %%mm0, %0; emms"
                                 : "=m"(here) : "m"(value) : "mm0", "mm1");
            of_core(which ? 0x97 : 0x96, value, &ours);
            unsigned distance = (unsigned)labs((long)(uint32_t)here - (long)(uint32_t)ours);
            unsigned high = (unsigned)labs((long)(here >> 32) - (long)(ours >> 32));
            distance = distance > high ? distance : high;
            differ += distance != 0;
            most = distance > most ? distance : most;
        }
        printf("%s %u %u\n", which ? "PFRSQRT" : "PFRCP", differ, most);
    }
    static uint8_t area[512] __attribute__((aligned(16)));
    const uint8_t femms[] = {0x0f, 0x0e};
    struct isthmus_machine machine = {.mode = 64};
    struct isthmus_memory none = {0};
    struct isthmus_outcome outcome;
    __asm__ volatile("movq %%mm0, %%mm1; .byte 0x0f,0x0e; fxsave %0; emms" : "=m"(area) : : "mm1");
    isthmus_execute(&machine, femms, 2, &none, &outcome);
    printf("FEMMS %u %u %u\n", area[4], area[3] >> 3 & 7,
           outcome.kind == ISTHMUS_DONE && outcome.touched == ISTHMUS_EMPTIED_MMX);
    return 0;
}
