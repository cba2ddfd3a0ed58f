/* The instructions under test: what only some CPUs have, each with a known answer.
 *
 * A test is chosen if the CPU offered its feature when the program started, as programs do.  All are
 * written as assembly, so that the program itself is plain x86-64.
 */
#include <cpuid.h>
#include <stdio.h>
#include <string.h>

#include "payload.h"

typedef uint64_t pair[2] __attribute__((aligned(16)));
typedef uint32_t eight[8] __attribute__((aligned(32)));

static bool run_rdtscp(void)
{
    uint32_t low, high, aux;
    uint64_t before = machine_tsc();
    __asm__ volatile("rdtscp" : "=a"(low), "=d"(high), "=c"(aux));
    uint64_t value = (uint64_t)high << 32 | low;
    uint64_t after = machine_tsc();
    return before <= value && value <= after && (aux & 0xfff) < 256;
}

/* AMD APM vol. 4, EXTRQ and INSERTQ.  EXTRQ with immediates uses XMM0, since QEMU 7.2 executes it on
 * XMM0 whatever the operand says. */
static bool run_sse4a(void)
{
    pair in = {0x1122334455667788u, 0}, control = {(8u << 8) | 16u, 0}, out;
    __asm__ volatile("movdqa %1, %%xmm0; extrq $8, $16, %%xmm0; movdqa %%xmm0, %0"
                     : "=m"(out) : "m"(in) : "xmm0");
    /* operands in AT&T order: index, length */
    bool right = out[0] == 0x6677u;
    __asm__ volatile("movdqa %1, %%xmm1; movdqa %2, %%xmm2; extrq %%xmm2, %%xmm1;"
                     "movdqa %%xmm1, %0" : "=m"(out) : "m"(in), "m"(control) : "xmm1", "xmm2");
    right = right && out[0] == 0x6677u;
    pair base = {0xffffffffffffffffu, 0}, piece = {0xabcdu, 0};
    __asm__ volatile("movdqa %1, %%xmm3; movdqa %2, %%xmm4; insertq $8, $16, %%xmm4, %%xmm3;"
                     "movdqa %%xmm3, %0" : "=m"(out) : "m"(base), "m"(piece) : "xmm3", "xmm4");
    right = right && out[0] == 0xffffffffffabcdffu;
    pair piece_control = {0xabcdu, (8u << 8) | 16u};
    __asm__ volatile("movdqa %1, %%xmm5; movdqa %2, %%xmm6; insertq %%xmm6, %%xmm5;"
                     "movdqa %%xmm5, %0" : "=m"(out) : "m"(base), "m"(piece_control)
                     : "xmm5", "xmm6");
    right = right && out[0] == 0xffffffffffabcdffu;
    double stored = 0, value = 2.5;
    __asm__ volatile("movsd %1, %%xmm7; movntsd %%xmm7, %0; sfence"
                     : "=m"(stored) : "m"(value) : "xmm7", "memory");
    return right && stored == 2.5;
}

static bool run_popcnt(void)
{
    uint64_t in = 0xf0f0000000000001u, out;
    uint32_t small;
    __asm__ volatile("popcntq %2, %0; popcntl %3, %1" : "=&r"(out), "=r"(small)
                     : "m"(in), "r"(0x7u) : "cc");
    return out == 9 && small == 3;
}

/* Without ABM the same bytes run as BSR and give another answer; they never trap. */
static bool run_abm(void)
{
    uint64_t out;
    __asm__ volatile("lzcntq %1, %0" : "=r"(out) : "r"(0x100ul) : "cc");
    return out == 55;
}

static bool run_threednow(void)
{
    float in[2] = {1.5f, -2.0f}, out[2];
    __asm__ volatile("movq %1, %%mm0; pfadd %%mm0, %%mm0; movq %%mm0, %0; femms"
                     : "=m"(out) : "m"(in) : "mm0");
    return out[0] == 3.0f && out[1] == -4.0f;
}

static bool run_ssse3(void)
{
    pair in = {0x0706050403020100u, 0x0f0e0d0c0b0a0908u}, order = {0x08090a0b0c0d0e0fu, 0x80u}, out;
    __asm__ volatile("movdqa %1, %%xmm0; pshufb %2, %%xmm0; movdqa %%xmm0, %0"
                     : "=m"(out) : "m"(in), "m"(order) : "xmm0");
    return out[0] == 0x08090a0b0c0d0e0fu && out[1] == 0;
}

static bool run_sse41(void)
{
    pair in = {0x0000000300000002u, 0x0000000500000004u}, out;
    __asm__ volatile("movdqa %1, %%xmm0; pmulld %%xmm0, %%xmm0; movdqa %%xmm0, %0"
                     : "=m"(out) : "m"(in) : "xmm0");
    return out[0] == 0x0000000900000004u && out[1] == 0x0000001900000010u;
}

static bool run_sse42(void)
{
    uint64_t crc = 0;
    __asm__ volatile("crc32q %1, %0" : "+r"(crc) : "r"(0x3736353433323130ul));
    return crc == 0x200a91aau;
}

static bool run_movbe(void)
{
    uint64_t in = 0x0102030405060708u, out;
    __asm__ volatile("movbeq %1, %0" : "=r"(out) : "m"(in));
    return out == 0x0807060504030201u;
}

static bool run_avx(void)
{
    float in[8] __attribute__((aligned(32))) = {1, 2, 3, 4, 5, 6, 7, 8}, out[8];
    __asm__ volatile("vmovaps %1, %%ymm0; vaddps %%ymm0, %%ymm0, %%ymm1; vmovups %%ymm1, %0;"
                     "vzeroupper" : "=m"(out) : "m"(in) : "xmm0", "xmm1");
    return out[0] == 2 && out[7] == 16;
}

static bool run_avx2(void)
{
    eight in = {1, 2, 3, 4, 5, 6, 7, 0xffffffffu}, out;
    __asm__ volatile("vmovdqa %1, %%ymm0; vpaddd %%ymm0, %%ymm0, %%ymm1; vmovdqu %%ymm1, %0;"
                     "vzeroupper" : "=m"(out) : "m"(in) : "xmm0", "xmm1");
    return out[0] == 2 && out[7] == 0xfffffffeu;
}

static bool run_fma(void)
{
    double a = 3, b = 4, c = 5;
    __asm__ volatile("vfmadd213sd %2, %1, %0" : "+x"(a) : "x"(b), "x"(c));
    return a == 17;
}

static bool run_bmi1(void)
{
    uint64_t out;
    __asm__ volatile("andnq %2, %1, %0" : "=r"(out) : "r"(0xfful), "r"(0xff0ful) : "cc");
    return out == 0xff00u;
}

static bool run_bmi2(void)
{
    uint64_t out;
    __asm__ volatile("pdepq %2, %1, %0" : "=r"(out) : "r"(0x5ul), "r"(0xf0f0ul));
    return out == 0x50u;
}

static bool run_aes(void)
{
    pair in = {0, 0}, out;
    __asm__ volatile("movdqa %1, %%xmm0; aesenc %1, %%xmm0; movdqa %%xmm0, %0"
                     : "=m"(out) : "m"(in) : "xmm0");
    return out[0] == 0x6363636363636363u && out[1] == out[0];
}

static bool run_pclmulqdq(void)
{
    pair in = {0x3, 0}, out;
    __asm__ volatile("movdqa %1, %%xmm0; pclmulqdq $0, %%xmm0, %%xmm0; movdqa %%xmm0, %0"
                     : "=m"(out) : "m"(in) : "xmm0");
    return out[0] == 5 && out[1] == 0;
}

static bool run_adx(void)
{
    uint64_t sum = 1;
    __asm__ volatile("xorl %%eax, %%eax; adcxq %1, %0" : "+r"(sum) : "r"(41ul) : "rax", "cc");
    return sum == 42;
}

/* One bit of CPUID that promises the instructions (the register: 0 EAX .. 3 EDX). */
static struct test {
    const char *name;
    uint32_t leaf;
    int reg, bit;
    bool (*run)(void);
    bool chosen;
} tests[] = {
    {"rdtscp", 0x80000001u, 3, 27, run_rdtscp, false},   {"sse4a", 0x80000001u, 2, 6, run_sse4a, false},
    {"popcnt", 1, 2, 23, run_popcnt, false},             {"abm", 0x80000001u, 2, 5, run_abm, false},
    {"3dnow", 0x80000001u, 3, 31, run_threednow, false}, {"ssse3", 1, 2, 9, run_ssse3, false},
    {"sse4.1", 1, 2, 19, run_sse41, false},              {"sse4.2", 1, 2, 20, run_sse42, false},
    {"movbe", 1, 2, 22, run_movbe, false},               {"avx", 1, 2, 28, run_avx, false},
    {"avx2", 7, 1, 5, run_avx2, false},                  {"fma", 1, 2, 12, run_fma, false},
    {"bmi1", 7, 1, 3, run_bmi1, false},                  {"bmi2", 7, 1, 8, run_bmi2, false},
    {"aes", 1, 2, 25, run_aes, false},                   {"pclmulqdq", 1, 2, 1, run_pclmulqdq, false},
    {"adx", 7, 1, 19, run_adx, false},
};
#define TESTS (sizeof tests / sizeof *tests)

static bool offered(const struct test *test)
{
    uint32_t out[4], highest, b, c, d;
    __cpuid(test->leaf & 0x80000000u, highest, b, c, d);
    if (test->leaf > highest)
        return false;
    __cpuid_count(test->leaf, 0, out[0], out[1], out[2], out[3]);
    if (!(out[test->reg] >> test->bit & 1))
        return false;
    if (test->run != run_avx && test->run != run_avx2 && test->run != run_fma)
        return true;
    /* VEX needs OSXSAVE and the YMM state enabled (Intel SDM vol. 1, 14.3). */
    __cpuid(1, out[0], out[1], out[2], out[3]);
    if (!(out[2] >> 27 & 1))
        return false;
    __asm__ volatile("xgetbv" : "=a"(b), "=d"(d) : "c"(0));
    return (b & 6) == 6;
}

static bool listed(const char *names, const char *name)
{
    size_t length = strlen(name);
    for (const char *at = names; (at = strstr(at, name)); at += length)
        if ((at == names || at[-1] == ',') && (at[length] == ',' || at[length] == '\0'))
            return true;
    return false;
}

void instructions_choose(const char *names)
{
    bool all = !strcmp(names, "all");
    for (size_t i = 0; i < TESTS; i++)
        tests[i].chosen = (all || listed(names, tests[i].name)) && offered(&tests[i]);
}

const char *instructions_chosen(void)
{
    static char text[256];
    text[0] = '\0';
    for (size_t i = 0; i < TESTS; i++)
        if (tests[i].chosen) {
            if (text[0])
                strcat(text, ",");
            strcat(text, tests[i].name);
        }
    return text[0] ? text : "none";
}

unsigned instructions_run(void)
{
    unsigned right = 0;
    for (size_t i = 0; i < TESTS; i++) {
        if (!tests[i].chosen)
            continue;
        if (tests[i].run())
            right++;
        else
            report("wrong", "what=%s", tests[i].name);
    }
    return right;
}
