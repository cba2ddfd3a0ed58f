/* The instructions that a program may use because its CPU offered them at start, each with a
 * known answer.  Sources: AMD APM vol. 3 to 5, Intel SDM vol. 2; CPUID bits from their chapters on
 * CPUID.  A program that asked CPUID once goes on using what it was told; that is what a move to
 * another CPU breaks. */
#include "checks.h"
#include "options.h"

#include <stdio.h>
#include <string.h>

enum { EAX, EBX, ECX, EDX };
enum { PLAIN, NEEDS_AVX };


static uint64_t low_of(const uint64_t pair[2], uint64_t expected)
{
    return pair[0] == expected;
}

/* SSE4a.  The immediate form uses XMM0: QEMU 7.2 takes XMM0 whatever the operand says. */
static bool extrq_register(void)
{
    uint64_t value[2] = {UINT64_C(0x123456789abcdef0), 0}, control[2] = {16 | 8 << 8, 0};
    __asm__ volatile("movdqu %0, %%xmm0; movdqu %1, %%xmm1; extrq %%xmm1, %%xmm0; movdqu %%xmm0, %0"
                     : "+m"(value)
                     : "m"(control)
                     : "xmm0", "xmm1");
    return low_of(value, 0xbcde);
}

static bool extrq_immediate(void)
{
    uint64_t value[2] = {UINT64_C(0x123456789abcdef0), 0};
    __asm__ volatile("movdqu %0, %%xmm0; extrq $8, $16, %%xmm0; movdqu %%xmm0, %0"
                     : "+m"(value)
                     :
                     : "xmm0");
    return low_of(value, 0xbcde);
}

static bool insertq_register(void)
{
    uint64_t value[2] = {UINT64_C(0x1111111111111111), 0};
    uint64_t field[2] = {UINT64_C(0xabcd), 16 | 8 << 8};
    __asm__ volatile(
        "movdqu %0, %%xmm0; movdqu %1, %%xmm1; insertq %%xmm1, %%xmm0; movdqu %%xmm0, %0"
        : "+m"(value)
        : "m"(field)
        : "xmm0", "xmm1");
    return low_of(value, UINT64_C(0x1111111111abcd11));
}

static bool insertq_immediate(void)
{
    uint64_t value[2] = {UINT64_C(0x1111111111111111), 0}, field[2] = {UINT64_C(0xabcd), 0};
    __asm__ volatile(
        "movdqu %0, %%xmm0; movdqu %1, %%xmm1; insertq $8, $16, %%xmm1, %%xmm0; movdqu %%xmm0, %0"
        : "+m"(value)
        : "m"(field)
        : "xmm0", "xmm1");
    return low_of(value, UINT64_C(0x1111111111abcd11));
}

static bool movntsd(void)
{
    uint64_t from = UINT64_C(0x0123456789abcdef), to = 0;
    __asm__ volatile("movq %1, %%xmm0; movntsd %%xmm0, %0" : "=m"(to) : "m"(from) : "xmm0");
    return to == from;
}

static bool movntss(void)
{
    uint32_t from = 0x89abcdef, to = 0;
    __asm__ volatile("movd %1, %%xmm0; movntss %%xmm0, %0" : "=m"(to) : "m"(from) : "xmm0");
    return to == from;
}

static bool rdtscp(void)
{
    uint32_t low, high, number;
    uint64_t before = tsc_read();
    __asm__ volatile("rdtscp" : "=a"(low), "=d"(high), "=c"(number));
    uint64_t after = tsc_read(), now = (uint64_t)high << 32 | low;
    /* Linux keeps node << 12 | cpu in TSC_AUX; this thread stays on vCPU 0. */
    return before <= now && now <= after && number == 0;
}

static bool popcnt(void)
{
    uint64_t result;
    __asm__ volatile("popcnt %1, %0" : "=r"(result) : "r"(UINT64_C(0xf0f00000000000f1)) : "cc");
    return result == 13;
}

/* Without the feature these two run as BSR and BSF, which answer 63 - n, and nothing for 0. */
static bool lzcnt(void)
{
    uint64_t result, of_zero;
    __asm__ volatile("lzcnt %1, %0" : "=r"(result) : "r"(UINT64_C(1) << 40) : "cc");
    __asm__ volatile("lzcnt %1, %0" : "=r"(of_zero) : "r"(UINT64_C(0)) : "cc");
    return result == 23 && of_zero == 64;
}

static bool tzcnt(void)
{
    uint64_t result, of_zero;
    __asm__ volatile("tzcnt %1, %0" : "=r"(result) : "r"(UINT64_C(1) << 40) : "cc");
    __asm__ volatile("tzcnt %1, %0" : "=r"(of_zero) : "r"(UINT64_C(0)) : "cc");
    return result == 40 && of_zero == 64;
}

static bool andn(void)
{
    uint64_t result;
    __asm__ volatile("andn %2, %1, %0" : "=r"(result) : "r"(UINT64_C(0xff00)), "r"(UINT64_C(0xfff)) : "cc");
    return result == 0xff;
}

static bool pdep(void)
{
    uint64_t result;
    __asm__ volatile("pdep %2, %1, %0" : "=r"(result) : "r"(UINT64_C(5)), "r"(UINT64_C(0xf0)));
    return result == 0x50;
}

static bool pext(void)
{
    uint64_t result;
    __asm__ volatile("pext %2, %1, %0" : "=r"(result) : "r"(UINT64_C(0xab)), "r"(UINT64_C(0xf0)));
    return result == 0xa;
}

static bool mulx(void)
{
    uint64_t low, high;
    __asm__ volatile("mulx %3, %0, %1"
                     : "=r"(low), "=r"(high)
                     : "d"(UINT64_C(1) << 63), "r"(UINT64_C(6)));
    return low == 0 && high == 3;
}

static bool pfadd(void)
{
    float left[2] = {1.5f, -2.0f}, right[2] = {2.25f, 0.5f};
    __asm__ volatile("movq %0, %%mm0; pfadd %1, %%mm0; movq %%mm0, %0; femms"
                     : "+m"(left)
                     : "m"(right)
                     : "mm0");
    return left[0] == 3.75f && left[1] == -1.5f;
}

static bool pfmul(void)
{
    float left[2] = {1.5f, -2.0f}, right[2] = {2.0f, 0.5f};
    __asm__ volatile("movq %0, %%mm0; pfmul %1, %%mm0; movq %%mm0, %0; femms"
                     : "+m"(left)
                     : "m"(right)
                     : "mm0");
    return left[0] == 3.0f && left[1] == -1.0f;
}

static bool pswapd(void)
{
    uint32_t value[2] = {1, 2}, result[2];
    __asm__ volatile("pswapd %1, %%mm0; movq %%mm0, %0; emms" : "=m"(result) : "m"(value) : "mm0");
    return result[0] == 2 && result[1] == 1;
}

static bool haddps(void)
{
    float value[4] = {1, 2, 3, 4};
    __asm__ volatile("movups %0, %%xmm0; haddps %%xmm0, %%xmm0; movups %%xmm0, %0"
                     : "+m"(value)
                     :
                     : "xmm0");
    return value[0] == 3 && value[1] == 7;
}

static bool pshufb(void)
{
    uint8_t value[16], order[16];
    for (unsigned i = 0; i < 16; i++) {
        value[i] = (uint8_t)(i * 3);
        order[i] = (uint8_t)(15 - i);
    }
    order[0] = 0x80;
    __asm__ volatile("movdqu %0, %%xmm0; movdqu %1, %%xmm1; pshufb %%xmm1, %%xmm0; movdqu %%xmm0, %0"
                     : "+m"(value)
                     : "m"(order)
                     : "xmm0", "xmm1");
    return value[0] == 0 && value[1] == 42 && value[15] == 0 && value[14] == 3;
}

static bool pmulld(void)
{
    uint32_t left[4] = {3, 0x10001, 0xffffffff, 7}, right[4] = {5, 0x10001, 2, 0};
    __asm__ volatile("movdqu %0, %%xmm0; movdqu %1, %%xmm1; pmulld %%xmm1, %%xmm0; movdqu %%xmm0, %0"
                     : "+m"(left)
                     : "m"(right)
                     : "xmm0", "xmm1");
    return left[0] == 15 && left[1] == 0x20001 && left[2] == 0xfffffffe && left[3] == 0;
}

static bool crc32c(void)
{
    uint64_t crc = 0xffffffff;
    __asm__ volatile("crc32q %1, %0" : "+r"(crc) : "r"(UINT64_C(0)));
    return (uint32_t)~crc == 0x8c28b28au; /* CRC-32C of eight zero bytes */
}

static bool movbe(void)
{
    uint64_t from = UINT64_C(0x0123456789abcdef), to;
    __asm__ volatile("movbe %1, %0" : "=r"(to) : "m"(from));
    return to == UINT64_C(0xefcdab8967452301);
}

static bool aesenc(void)
{
    /* AES of an all-zero state: SubBytes gives 0x63 everywhere, MixColumns leaves it. */
    uint64_t state[2] = {0, 0};
    __asm__ volatile("movdqu %0, %%xmm0; pxor %%xmm1, %%xmm1; aesenc %%xmm1, %%xmm0; movdqu %%xmm0, %0"
                     : "+m"(state)
                     :
                     : "xmm0", "xmm1");
    return state[0] == UINT64_C(0x6363636363636363) && state[1] == state[0];
}

static bool pclmulqdq(void)
{
    uint64_t left[2] = {7, 0}, right[2] = {5, 0};
    __asm__ volatile(
        "movdqu %0, %%xmm0; movdqu %1, %%xmm1; pclmulqdq $0, %%xmm1, %%xmm0; movdqu %%xmm0, %0"
        : "+m"(left)
        : "m"(right)
        : "xmm0", "xmm1");
    return left[0] == 27 && left[1] == 0; /* (x2+x+1)(x2+1) = x4+x3+x+1 */
}

static bool cmpxchg16b(void)
{
    uint64_t value[2] __attribute__((aligned(16))) = {1, 2};
    uint64_t low = 1, high = 2;
    uint8_t equal;
    __asm__ volatile("lock cmpxchg16b %0; sete %1"
                     : "+m"(value), "=q"(equal), "+a"(low), "+d"(high)
                     : "b"(UINT64_C(3)), "c"(UINT64_C(4))
                     : "cc");
    return equal && value[0] == 3 && value[1] == 4;
}

static bool lahf(void)
{
    uint64_t flags = 0;
    __asm__ volatile("movl $0xd500, %%eax; sahf; movl $0, %%eax; lahf" : "=a"(flags)::"cc");
    return (flags & 0xd700) == 0xd700; /* SF ZF AF PF CF, and bit 1 always 1 */
}

static bool adcx(void)
{
    uint64_t left = ~UINT64_C(0);
    __asm__ volatile("stc; adcx %1, %0" : "+r"(left) : "r"(UINT64_C(5)) : "cc");
    return left == 5;
}

static bool vaddps(void)
{
    float left[8], right[8];
    for (int i = 0; i < 8; i++) {
        left[i] = (float)i;
        right[i] = 0.5f;
    }
    __asm__ volatile("vmovups %0, %%ymm0; vaddps %1, %%ymm0, %%ymm0; vmovups %%ymm0, %0; vzeroupper"
                     : "+m"(left)
                     : "m"(right)
                     : "xmm0");
    return left[0] == 0.5f && left[7] == 7.5f;
}

static bool vpaddd(void)
{
    uint32_t left[8], right[8];
    for (unsigned i = 0; i < 8; i++) {
        left[i] = i;
        right[i] = 0xffffffff;
    }
    __asm__ volatile("vmovdqu %0, %%ymm0; vpaddd %1, %%ymm0, %%ymm0; vmovdqu %%ymm0, %0; vzeroupper"
                     : "+m"(left)
                     : "m"(right)
                     : "xmm0");
    return left[0] == 0xffffffff && left[7] == 6;
}

static bool vfmadd(void)
{
    /* (1+e)(1-e) - 1 = -e*e exactly; with two roundings it would be 0. */
    double left = 1.0 + 0x1p-30, right = 1.0 - 0x1p-30, sum = -1.0;
    __asm__ volatile("vmovsd %0, %%xmm0; vmovsd %1, %%xmm1; vmovsd %2, %%xmm2;"
                     "vfmadd213sd %%xmm2, %%xmm1, %%xmm0; vmovsd %%xmm0, %0"
                     : "+m"(left)
                     : "m"(right), "m"(sum)
                     : "xmm0", "xmm1", "xmm2");
    return left == -0x1p-60;
}

static bool vcvtph2ps(void)
{
    uint16_t half[4] = {0x3c00, 0xc000, 0x3555, 0x7bff};
    float result[4];
    __asm__ volatile("vmovq %1, %%xmm0; vcvtph2ps %%xmm0, %%xmm0; vmovups %%xmm0, %0"
                     : "=m"(result)
                     : "m"(half)
                     : "xmm0");
    return result[0] == 1.0f && result[1] == -2.0f && result[3] == 65504.0f;
}

static bool sha1rnds4(void)
{
    /* Four rounds of an all-zero state: each adds K0 and rotates (FIPS 180-4). */
    uint32_t state[4] = {0, 0, 0, 0};
    __asm__ volatile("movdqu %0, %%xmm0; pxor %%xmm1, %%xmm1; sha1rnds4 $0, %%xmm1, %%xmm0; movdqu %%xmm0, %0"
                     : "+m"(state)
                     :
                     : "xmm0", "xmm1");
    uint32_t a = 0, b = 0, c = 0, d = 0, e = 0;
    for (int i = 0; i < 4; i++) {
        uint32_t next = (a << 5 | a >> 27) + ((b & c) | (~b & d)) + e + 0x5a827999u;
        e = d;
        d = c;
        c = b << 30 | b >> 2;
        b = a;
        a = next;
    }
    return state[3] == a && state[2] == b && state[1] == c && state[0] == d;
}

static struct instruction {
    const char *name, *group;
    uint32_t leaf;
    int where, bit, needs;
    bool (*run)(void);
    bool on;
    uint64_t count;
} instructions[] = {
    {"extrq", "sse4a", 0x80000001u, ECX, 6, PLAIN, extrq_register, false, 0},
    {"extrqi", "sse4a", 0x80000001u, ECX, 6, PLAIN, extrq_immediate, false, 0},
    {"insertq", "sse4a", 0x80000001u, ECX, 6, PLAIN, insertq_register, false, 0},
    {"insertqi", "sse4a", 0x80000001u, ECX, 6, PLAIN, insertq_immediate, false, 0},
    {"movntsd", "sse4a", 0x80000001u, ECX, 6, PLAIN, movntsd, false, 0},
    {"movntss", "sse4a", 0x80000001u, ECX, 6, PLAIN, movntss, false, 0},
    {"rdtscp", "rdtscp", 0x80000001u, EDX, 27, PLAIN, rdtscp, false, 0},
    {"lzcnt", "abm", 0x80000001u, ECX, 5, PLAIN, lzcnt, false, 0},
    {"pfadd", "3dnow", 0x80000001u, EDX, 31, PLAIN, pfadd, false, 0},
    {"pfmul", "3dnow", 0x80000001u, EDX, 31, PLAIN, pfmul, false, 0},
    {"pswapd", "3dnowext", 0x80000001u, EDX, 30, PLAIN, pswapd, false, 0},
    {"lahf", "lahf-lm", 0x80000001u, ECX, 0, PLAIN, lahf, false, 0},
    {"cmpxchg16b", "cx16", 1, ECX, 13, PLAIN, cmpxchg16b, false, 0},
    {"popcnt", "popcnt", 1, ECX, 23, PLAIN, popcnt, false, 0},
    {"haddps", "pni", 1, ECX, 0, PLAIN, haddps, false, 0},
    {"pshufb", "ssse3", 1, ECX, 9, PLAIN, pshufb, false, 0},
    {"pmulld", "sse4.1", 1, ECX, 19, PLAIN, pmulld, false, 0},
    {"crc32", "sse4.2", 1, ECX, 20, PLAIN, crc32c, false, 0},
    {"movbe", "movbe", 1, ECX, 22, PLAIN, movbe, false, 0},
    {"aesenc", "aes", 1, ECX, 25, PLAIN, aesenc, false, 0},
    {"pclmulqdq", "pclmulqdq", 1, ECX, 1, PLAIN, pclmulqdq, false, 0},
    {"vaddps", "avx", 1, ECX, 28, NEEDS_AVX, vaddps, false, 0},
    {"vfmadd", "fma", 1, ECX, 12, NEEDS_AVX, vfmadd, false, 0},
    {"vcvtph2ps", "f16c", 1, ECX, 29, NEEDS_AVX, vcvtph2ps, false, 0},
    {"tzcnt", "bmi1", 7, EBX, 3, PLAIN, tzcnt, false, 0},
    {"andn", "bmi1", 7, EBX, 3, PLAIN, andn, false, 0},
    {"pdep", "bmi2", 7, EBX, 8, PLAIN, pdep, false, 0},
    {"pext", "bmi2", 7, EBX, 8, PLAIN, pext, false, 0},
    {"mulx", "bmi2", 7, EBX, 8, PLAIN, mulx, false, 0},
    {"vpaddd", "avx2", 7, EBX, 5, NEEDS_AVX, vpaddd, false, 0},
    {"adcx", "adx", 7, EBX, 19, PLAIN, adcx, false, 0},
    {"sha1rnds4", "sha-ni", 7, EBX, 29, PLAIN, sha1rnds4, false, 0},
};

#define COUNT (sizeof instructions / sizeof instructions[0])

/* The system enables AVX state: CPUID.1:ECX.OSXSAVE and XCR0 bits 1 and 2 (SDM vol. 1, 14.3). */
static bool avx_enabled(void)
{
    uint32_t low, high;
    if (!(cpuid(1, 0).register_[ECX] & 1u << 27))
        return false;
    __asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
    return (low & 6) == 6;
}

static bool offered(const struct instruction *one)
{
    if (cpuid(one->leaf & 0x80000000u, 0).register_[EAX] < one->leaf)
        return false;
    if (!(cpuid(one->leaf, 0).register_[one->where] >> one->bit & 1))
        return false;
    return one->needs != NEEDS_AVX || avx_enabled();
}

void instructions_setup(void)
{
    for (unsigned i = 0; i < COUNT; i++)
        instructions[i].on =
            test_wanted(instructions[i].group) && (options.blind || offered(&instructions[i]));
}

uint64_t instructions_check(void)
{
    static uint64_t total;
    for (unsigned i = 0; i < COUNT; i++) {
        struct instruction *one = &instructions[i];
        bool right;
        if (!one->on)
            continue;
        if (!guarded(one->name, one->run, &right)) {
            one->on = false;
            continue;
        }
        one->count++;
        total++;
        if (!right) {
            struct record record;
            record_begin(&record, "event");
            record_add(&record, "kind", "wrong");
            record_add(&record, "test", "%s", one->name);
            record_commit(&record);
        }
    }
    return total;
}

void instructions_report(void)
{
    struct record record;
    record_begin(&record, "counts");
    for (unsigned i = 0; i < COUNT; i++)
        if (instructions[i].count)
            record_add(&record, instructions[i].name, "%llu",
                       (unsigned long long)instructions[i].count);
    record_commit(&record);
}

void instructions_names(struct record *record)
{
    char list[256] = "";
    size_t length = 0;
    const char *last = "";
    for (unsigned i = 0; i < COUNT; i++)
        if (instructions[i].on && strcmp(last, instructions[i].group)) {
            last = instructions[i].group;
            length += (size_t)snprintf(list + length, sizeof list - length, "%s%s",
                                       length ? "," : "", last);
        }
    record_add(record, "groups", "%s", length ? list : "none");
}
