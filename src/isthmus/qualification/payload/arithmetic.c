/* Known answers.  All of these operations are exact by definition (integers) or correctly rounded
 * (IEEE 754 add, multiply, divide, square root), so every x86 must give the same bits; the
 * reciprocal approximations RCPPS and RSQRTPS, which differ between makers (Intel SDM vol. 2,
 * AMD APM vol. 4: only a bound of the error is given), are compared with their own first result
 * and a change is told as a note. */
#include "checks.h"

#include <string.h>
#include <xmmintrin.h>

#define X87_MANTISSA UINT64_C(0xf97fbe32fee876d1)
#define X87_EXPONENT 0x4007
#define SSE_ANSWER UINT64_C(0x407f2ff7c65fdd0f)

uint64_t integer_answer(uint64_t seed, unsigned rounds)
{
    uint64_t value = seed;
    for (unsigned i = 1; i <= rounds; i++) {
        value = value * UINT64_C(6364136223846793005) + i;
        value ^= value << 13 | value >> 51;
        value += value / (i | 1);
        value ^= value % (i + 3);
    }
    return value;
}

struct extended {
    uint64_t mantissa;
    uint16_t exponent;
};

static struct extended x87_answer(void)
{
    volatile long double one = 1.0L;
    long double value = one;
    for (int i = 1; i <= 500; i++)
        value = __builtin_sqrtl(value * i + one / i);
    struct extended result = {0, 0};
    memcpy(&result.mantissa, &value, 8);
    memcpy(&result.exponent, (const char *)&value + 8, 2);
    return result;
}

static uint64_t sse_answer(void)
{
    volatile double one = 1.0;
    double value = one;
    for (int i = 1; i <= 500; i++)
        value = __builtin_sqrt(value * i + one / i);
    uint64_t bits;
    memcpy(&bits, &value, sizeof bits);
    return bits;
}

static void wrong(const char *what, uint64_t expected, uint64_t got)
{
    struct record record;
    record_begin(&record, "event");
    record_add(&record, "kind", "wrong");
    record_add(&record, "test", "%s", what);
    record_add(&record, "expected", "%llx", (unsigned long long)expected);
    record_add(&record, "got", "%llx", (unsigned long long)got);
    record_commit(&record);
}

static void approximations(void)
{
    static uint32_t first[2];
    static bool seen;
    volatile float input = 3.0f;
    __m128 value = _mm_set1_ps(input);
    float results[2];
    _mm_store_ss(&results[0], _mm_rcp_ss(value));
    _mm_store_ss(&results[1], _mm_rsqrt_ss(value));
    uint32_t bits[2];
    memcpy(bits, results, sizeof bits);
    for (int i = 0; i < 2 && seen; i++)
        if (bits[i] != first[i]) {
            struct record record;
            record_begin(&record, "event");
            record_add(&record, "kind", "approximation");
            record_add(&record, "test", "%s", i ? "rsqrtps" : "rcpps");
            record_add(&record, "old", "%x", first[i]);
            record_add(&record, "new", "%x", bits[i]);
            record_commit(&record);
        }
    memcpy(first, bits, sizeof first);
    seen = true;
}

uint64_t arithmetic_check(void)
{
    static uint64_t runs;
    uint64_t integer = integer_answer(INTEGER_SEED, INTEGER_ROUNDS);
    if (integer != INTEGER_ANSWER)
        wrong("integer", INTEGER_ANSWER, integer);
    struct extended x87 = x87_answer();
    if (x87.mantissa != X87_MANTISSA || x87.exponent != X87_EXPONENT)
        wrong("x87", X87_MANTISSA, x87.mantissa);
    uint64_t sse = sse_answer();
    if (sse != SSE_ANSWER)
        wrong("sse", SSE_ANSWER, sse);
    approximations();
    return ++runs;
}
