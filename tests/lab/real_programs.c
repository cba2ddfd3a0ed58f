/* Libraries that choose their code by CPUID when they start, kept at work: OpenSSL's libcrypto,
 * OpenBLAS, and glibc's string and mathematical functions by its own IFUNCs.
 *
 * `real_programs NAME [ROUNDS]` prints "real NAME ROUND VALUE end" for each round; the work of a
 * round depends on its number alone, and all sums are exact (integers, or floats that are small
 * integers), so any CPU and any code path must give the same.  Libraries are loaded by name at run
 * time: neither headers nor the machine's own copies are needed to build this. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <locale.h>
#include <math.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

static uint64_t sum;
static void *library;

static void note(const void *bytes, size_t size)
{
    for (size_t i = 0; i < size; i++)
        sum = (sum ^ ((const uint8_t *)bytes)[i]) * 1099511628211u;
}

static void note_number(uint64_t value)
{
    note(&value, sizeof value);
}

static void *find(const char *name)
{
    void *found = dlsym(library, name);
    if (!found) {
        printf("real missing %s\n", dlerror());
        exit(1);
    }
    return found;
}

static void open_library(const char *name)
{
    library = dlopen(name, RTLD_NOW);
    if (!library) {
        printf("real missing %s\n", dlerror());
        exit(1);
    }
}

/* ---- libcrypto: AES-GCM (AES-NI, PCLMULQDQ), SHA-1, -256 and -512, ChaCha20 (SSSE3) ---- */

static void *(*cipher_new)(void);
static void (*cipher_free)(void *);
static int (*encrypt_init)(void *, const void *, void *, const uint8_t *, const uint8_t *);
static int (*encrypt_update)(void *, uint8_t *, int *, const uint8_t *, int);
static int (*encrypt_final)(void *, uint8_t *, int *);
static int (*cipher_ctrl)(void *, int, int, void *);
static int (*digest)(const void *, size_t, uint8_t *, unsigned *, const void *, void *);

static void encrypt(const char *name, const uint8_t *text, int size, int tag)
{
    const void *(*cipher)(void) = (const void *(*)(void))find(name);
    uint8_t out[1024] = {0}, key[32], iv[16];
    int written = 0, more = 0;
    memcpy(key, text, sizeof key);
    memcpy(iv, text + 32, sizeof iv);
    void *context = cipher_new();
    if (!encrypt_init(context, cipher(), NULL, key, iv) ||
        !encrypt_update(context, out, &written, text, size) ||
        !encrypt_final(context, out + written, &more))
        exit(1);
    note(out, (size_t)(written + more));
    if (tag && cipher_ctrl(context, 0x10, 16, out)) /* EVP_CTRL_AEAD_GET_TAG */
        note(out, 16);
    cipher_free(context);
}

static void set_up_crypto(void)
{
    open_library("libcrypto.so.3");
    *(void **)&cipher_new = find("EVP_CIPHER_CTX_new");
    *(void **)&cipher_free = find("EVP_CIPHER_CTX_free");
    *(void **)&encrypt_init = find("EVP_EncryptInit_ex");
    *(void **)&encrypt_update = find("EVP_EncryptUpdate");
    *(void **)&encrypt_final = find("EVP_EncryptFinal_ex");
    *(void **)&cipher_ctrl = find("EVP_CIPHER_CTX_ctrl");
    *(void **)&digest = find("EVP_Digest");
}

static void crypto(const uint8_t *text)
{
    static const char *const digests[] = {"EVP_sha1", "EVP_sha256", "EVP_sha512"};
    encrypt("EVP_aes_128_gcm", text, 288, 1);
    encrypt("EVP_aes_256_cbc", text, 96, 0);
    encrypt("EVP_chacha20", text, 192, 0);
    for (unsigned i = 0; i < 3; i++) {
        uint8_t out[64];
        unsigned size = 0;
        const void *(*kind)(void) = (const void *(*)(void))find(digests[i]);
        if (!digest(text, 200, out, &size, kind(), NULL))
            exit(1);
        note(out, size);
    }
}

/* ---- OpenBLAS: products of matrices of small integers, exact in any order ---- */

static void (*dgemm)(int, int, int, int, int, int, double, const double *, int, const double *, int,
                     double, double *, int);
static void (*sgemm)(int, int, int, int, int, int, float, const float *, int, const float *, int,
                     float, float *, int);
static double (*ddot)(int, const double *, int, const double *, int);

static void set_up_blas(void)
{
    open_library("libopenblas.so.0");
    *(void **)&dgemm = find("cblas_dgemm");
    *(void **)&sgemm = find("cblas_sgemm");
    *(void **)&ddot = find("cblas_ddot");
    const char *(*core)(void) = (const char *(*)(void))find("openblas_get_corename");
    printf("real core %s\n", core());
}

static void blas(const uint8_t *text)
{
    enum { N = 40 };
    static double a[N * N], b[N * N], c[N * N];
    static float d[N * N], e[N * N], f[N * N];
    for (unsigned i = 0; i < N * N; i++) {
        a[i] = text[i % 701] % 31, b[i] = text[(i * 7) % 709] % 29, c[i] = 0;
        d[i] = text[(i * 3) % 719] % 13, e[i] = text[(i * 5) % 727] % 11, f[i] = 0;
    }
    dgemm(101, 111, 112, N, N, N, 1.0, a, N, b, N, 0.0, c, N); /* row major, A, transposed B */
    sgemm(101, 111, 111, N, N, N, 1.0f, d, N, e, N, 0.0f, f, N);
    note(c, sizeof c);
    note(f, sizeof f);
    note_number((uint64_t)ddot(N * N, a, 1, b, 1));
}

/* ---- glibc: what it chose of its string and mathematical functions ---- */

static void strings(const uint8_t *text)
{
    static volatile size_t zero; /* so that the compiler cannot know better */
    char a[800], b[800], c[1700];
    for (unsigned i = 0; i < 799; i++)
        a[i] = (char)('A' + text[i] % 50);
    a[799] = 0;
    for (unsigned offset = 0; offset < 48; offset += 5) {
        memcpy(b, a + zero, sizeof b);
        memmove(b + offset + zero, b, 300);
        b[799] = 0;
        note(b, sizeof b);
        note_number(strlen(a + offset + zero));
        note_number((uint64_t)(strcmp(a + offset, b + zero) > 0));
        note_number((uint64_t)(memcmp(a, b + zero, 700) > 0));
        note_number((uint64_t)(strcasecmp(a + offset, b + zero) > 0));
        note_number((uint64_t)(strncasecmp(a, b + zero, 90) > 0));
        note_number(strspn(a + offset + zero, "ABCDEFGHIJKLMNOPQRSTUVWXYZ[abcdefgh"));
        note_number(strcspn(a + offset + zero, "xyz{|q"));
        const char *at = strpbrk(a + offset + zero, "uvw");
        note_number(at ? (uint64_t)(at - a) : 0);
        at = strstr(a + zero, b + 790);
        note_number(at ? (uint64_t)(at - a) : 0);
        at = strrchr(a + offset + zero, 'Q');
        note_number(at ? (uint64_t)(at - a) : 0);
        strcpy(c, a + offset + zero);
        strcat(c, b + zero);
        note(c, strlen(c));
    }
    for (unsigned i = 0; i < 20; i++) {
        volatile double x = (double)text[i] / 16 - 7, y = 0;
        volatile float z = (float)text[i + 20] / 16 - 7;
        y += floor(x) * 3 + ceil(x) * 5 + rint(x) * 7 + trunc(x) + nearbyint(x);
        y += (double)(floorf(z) + ceilf(z) * 3 + rintf(z) * 5 + truncf(z) * 7);
        note_number((uint64_t)(int64_t)y);
    }
}

int main(int argc, char **argv)
{
    const char *name = argc > 1 ? argv[1] : "strings";
    unsigned long rounds = argc > 2 ? strtoul(argv[2], NULL, 10) : 0;
    void (*work)(const uint8_t *) = !strcmp(name, "crypto") ? crypto
                                    : !strcmp(name, "blas") ? blas
                                                            : strings;
    if (work == crypto)
        set_up_crypto();
    if (work == blas)
        set_up_blas();
    for (unsigned long round = 0; !rounds || round < rounds; round++) {
        uint8_t text[1024];
        uint64_t seed = (round + 1) * 0x9e3779b97f4a7c15u;
        char line[160];
        for (unsigned i = 0; i < sizeof text; i++) {
            seed ^= seed << 13;
            seed ^= seed >> 7;
            seed ^= seed << 17;
            text[i] = (uint8_t)seed;
        }
        sum = 14695981039346656037u;
        work(text);
        int size = snprintf(line, sizeof line, "real %s %lu %016llx end\n", name, round,
                            (unsigned long long)sum);
        fflush(stdout);
        if (write(1, line, (size_t)size) != size)
            return 1;
        struct timespec pause = {0, 200 * 1000 * 1000};
        if (!rounds)
            nanosleep(&pause, NULL);
    }
    return 0;
}
