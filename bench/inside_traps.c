/* How many guest instructions a missing instruction takes: EXTRQ in a loop, counted by the TSC, which
 * under `-icount shift=0` advances by one with each.  Built by translate_inside.py.
 *
 * Prints the least of 50 batches of 200, less the loop's own: timer interrupts fall into some. */
#include <stdint.h>
#include <stdio.h>

static uint64_t now(void)
{
    uint32_t low, high;
    __asm__ volatile("lfence; rdtsc" : "=a"(low), "=d"(high));
    return (uint64_t)high << 32 | low;
}

int main(void)
{
    uint64_t least = ~UINT64_C(0);
    for (int batch = 0; batch < 50; batch++) {
        uint64_t begun = now();
        for (int i = 0; i < 200; i++)
            __asm__ volatile(".byte 0x66,0x0f,0x78,0xc0,16,8; nop" : : : "xmm0");
        uint64_t spent = now() - begun;
        if (spent < least)
            least = spent;
    }
    printf("instructions %.1f\n", (double)least / 200);
    return 0;
}
