/* Sets MXCSR.MM, which lets SSE take operands from any address and which only AMD has (AMD APM
 * vol. 1, 4.8.2), and says so whenever it finds it clear. */
#include <stdio.h>
#include <time.h>

#define MM (1u << 17)

int main(void)
{
    unsigned lost = 0, begun = 0;
    for (time_t told = 0;;) {
        unsigned value = __builtin_ia32_stmxcsr();
        if (!(value & MM)) {
            lost += begun;
            begun = 1;
            __builtin_ia32_ldmxcsr(value | MM);
        }
        for (volatile unsigned spin = 0; spin < 100000; spin++)
            ;
        if (time(NULL) >= told + 2) {
            told = time(NULL);
            printf("mxcsr: misaligned mode, lost %u times\n", lost);
            fflush(stdout);
        }
    }
}
